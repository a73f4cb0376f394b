"""How do clips, words, masks, sheets and results look on the page? Pieces of HTML; whatever a visitor wrote is escaped.

Elements called fz-… are page.js's.
"""

import base64
import html
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from fz.clips.media import overlay, to_uint8
from fz.clips.video import Video
from fz.mini.world import vocabulary
from fz.prompts.describe import Explained
from fz.web.folder import VisitorClip
from fz.words import bare, compared, counts

MOST_SHOWN = 24  # thumbnails
WHAT = {
    "kept": "stays as it is",
    "replaced": "takes the place of",
    "new": "is new",
    "own": "finds its own place",
}


def safe(text: object) -> str:
    return html.escape(str(text), quote=True)


def data(value: Any) -> str:
    """JSON for an attribute."""
    return safe(json.dumps(value))


def note(line: str, kind: str = "note") -> str:
    return f'<p class="fz-{kind}" role="{"alert" if kind == "error" else "status"}">{safe(line)}</p>' if line else ""


# ---- pictures ----------------------------------------------------------------------------------------------


def picture(pixels: np.ndarray, longest: int = 384) -> str:
    """(H, W, 3) uint8 as a data URI."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=88, method=2)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"


def pictures(frames: Tensor, longest: int = 384) -> list[str]:
    """(F, 3, H, W) in [-1, 1] as data URIs."""
    return [picture(frame, longest) for frame in to_uint8(frames)]


def strip(shown: Sequence[np.ndarray], labels: Sequence[str], alt: str) -> str:
    """A row of small pictures."""
    cells = [
        f'<figure><img src="{picture(pixels, 160)}" alt="{safe(alt)}, {safe(label)}"><figcaption>{safe(label)}'
        "</figcaption></figure>"
        for pixels, label in zip(shown, labels, strict=True)
    ]
    return f'<div class="fz-strip" tabindex="0" role="group" aria-label="{safe(alt)}">{"".join(cells)}</div>'


def chosen(count: int) -> list[int]:
    """Which of so many frames are shown, evenly."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, MOST_SHOWN))})


def thumbnails(video: Video) -> str:
    """The frames that are taken, and what is left out of the clip."""
    frames, some = to_uint8(video.frames), chosen(len(video.frames))
    row = strip([frames[i] for i in some], [str(video.indices[i] + 1) for i in some], "frames that are taken")
    more = f"{len(some)} of the {len(frames)} frames that are taken" if len(some) < len(frames) else ""
    return row + note(more) + "".join(note(without_advice(line)) for line in video.notes)


def without_advice(line: str) -> str:
    """A note of `fz.read`'s without its advice, which names settings, frames counted from 1 as the page does."""
    line = re.split(r"; (?:--|[a-z]+=)", line)[0]
    head = re.match(r"frames? [\d, –…]+ of ", line)
    if head is None:
        return line
    told = re.sub(r"\d+", lambda found: str(int(found[0]) + 1), head[0])
    return f"{told[0].upper()}{told[1:]}{line[head.end() :]}"


def over(video: Video, maps: Tensor, alt: str) -> str:
    """Maps (F, h, w) over the frames: bright is much."""
    some = chosen(len(video.frames))
    shown = overlay(to_uint8(video.frames[some]), maps[some])
    return strip(list(shown), [str(video.indices[i] + 1) for i in some], alt)


def spotlight(video: Video, mask: Tensor, alt: str) -> str:
    """A mask (F, H, W) over the frames: what may change in its colours, the rest dim."""
    some = chosen(len(video.frames))
    frames, lit = to_uint8(video.frames[some]), mask[some].cpu().numpy()[..., None]
    grey = (frames.mean(-1, keepdims=True) * 0.35 + 20).repeat(3, -1).astype(np.uint8)
    return strip(list(np.where(lit, frames, grey)), [str(video.indices[i] + 1) for i in some], alt)


# ---- words -------------------------------------------------------------------------------------------------


def words(explained: Explained, miniature: bool, can_look: bool) -> str:
    """Both sentences with what differs in colour, and what happens to each word of the new one."""
    source = [word_button(word, "gone" if i in explained.gone else "", can_look)
              for i, word in enumerate(explained.source_words)]  # fmt: skip
    known, rows, target = set(vocabulary()), [], []
    for column in explained.columns:
        strange = miniature and bare(column.word) not in known and counts(column.word)
        kind = "strange" if strange else column.what
        target.append(f'<span class="fz-word {kind}">{safe(column.word)}</span>')
        told = "is unknown to the miniature" if strange else WHAT[column.what]
        told += f" <b>{safe(' '.join(column.sources))}</b>" if column.what == "replaced" and not strange else ""
        till = f"until step {column.steps[1]}" if column.steps and column.what in ("kept", "replaced") else ""
        strength = f"×{column.weight:g}" if column.weight != 1 else ""
        rows.append(
            f'<tr class="{kind}"><th scope="row">{safe(column.word)}</th><td>{told}</td><td>{till}</td>'
            f"<td>{strength}</td></tr>"
        )
    head = "".join(f'<th scope="col">{title}</th>' for title in ("Word", "What happens", "Kept in place", "Strength"))
    hint = "" if can_look else note("After a preview, choose a word of the first line to see where it is.")
    return (
        f'<div class="fz-words"><p class="fz-sentence"><span>Now</span> {" ".join(source)}</p>'
        f'<p class="fz-sentence"><span>Then</span> {" ".join(target) or safe(explained.target)}</p>{hint}'
        f'<details><summary>Word by word</summary><div class="fz-scroll" tabindex="0" role="region" '
        f'aria-label="word by word"><table><tr>{head}</tr>{"".join(rows)}</table></div></details></div>'
    )


def word_button(word: str, kind: str, can_look: bool) -> str:
    if not can_look:
        return f'<span class="fz-word {kind}">{safe(word)}</span>'
    return (
        f'<button type="button" class="fz-word {kind}" data-say="fz-word" data-value="{safe(word)}" '
        f'title="Where is it?">{safe(word)}</button>'
    )


def weights(target: str, given: Mapping[str, float]) -> str:
    """A slider for each word that means something."""
    listed = [word for word in dict.fromkeys(compared(target)) if counts(word)]
    return f'<fz-weights data-words="{data(listed[:24])}" data-values="{data(dict(given))}"></fz-weights>'


# ---- results -----------------------------------------------------------------------------------------------


def player(source: Sequence[str], edit: Sequence[str], fps: float, label: str) -> str:
    clip = {"source": list(source), "edit": list(edit), "fps": min(30, max(1, fps)), "label": label}
    return f'<fz-player data-clip="{data(clip)}"></fz-player>'


def address(clip: str, result: str, name: str) -> str:
    return f"fz/result/{clip}/{result}/{name}"


def result(clip: VisitorClip, result_id: str, about: Mapping[str, Any]) -> str:
    """A finished edit: to look at, to take away, and how to get it again."""
    frames = [f"{i:05d}.png" for i in range(int(about["frames"]))]
    shown = player(
        [address(clip.id, result_id, f"source-{name}") for name in frames],
        [address(clip.id, result_id, f"edit-{name}") for name in frames],
        float(about["fps"]),
        str(about["target"]),
    )
    files = {"Video": "edit.mp4", "Animation": "edit.gif", "Side by side": "side-by-side.mp4",
             "Pictures": "frames.zip", "Report": "report.html"}  # fmt: skip
    if about["form"].get("mask"):
        files["Drawn area"] = "mask.png"
    hrefs = {title: address(clip.id, result_id, name) for title, name in files.items()}
    if clip.here:
        hrefs["Clip"] = f"fz/clip/{clip.id}"
    links = "".join(f'<a class="fz-button" href="{href}" download>{title}</a>' for title, href in hrefs.items())
    texts = about.get("texts", {})
    needs = "".join(note(line) for line in texts.get("needs", "").splitlines())
    code = "".join(
        f'<details class="fz-code"><summary>{title}</summary><pre id="fz-{key}" tabindex="0">{safe(texts.get(key, ""))}'
        f'</pre><button type="button" class="fz-button" data-copy="fz-{key}">Copy</button>{needs}</details>'
        for key, title in (("command", "The same by a command"), ("python", "The same in Python"))
    )
    again = "the clip was known already, " if about.get("inverted_before") else ""
    told = note(f"{again}{float(about.get('seconds', 0)):.1f} s")
    return (
        f'<div class="fz-result" data-result="{result_id}">{shown}<div class="fz-files">{links}</div>{told}{code}</div>'
    )


def history(clip: str, results: Iterable[tuple[str, Mapping[str, Any]]], now: str) -> str:
    """This clip's edits side by side."""
    cards = [
        f'<li><button type="button" class="fz-card" data-say="fz-result" data-value="{result_id}" '
        f'aria-pressed="{str(result_id == now).lower()}"><img alt="" '
        f'src="{address(clip, result_id, "edit.gif")}"><span>{safe(about["target"])}</span></button></li>'
        for result_id, about in results
    ]
    return f'<h3>All edits of this clip</h3><ul class="fz-cards">{"".join(cards)}</ul>' if cards else ""


def sheet(content: Mapping[str, Any]) -> str:
    """Pictures of settings; a click takes them."""
    if not content.get("tiles"):
        return ""
    tiles = "".join(
        f'<li><button type="button" class="fz-card" data-say="fz-tile" data-value="{i}"><img alt="" '
        f'src="{safe(tile["picture"])}"><span>{safe(tile["label"])}</span></button></li>'
        for i, tile in enumerate(content["tiles"])
    )
    own = f'<li class="fz-card"><img alt="" src="{safe(content["source"])}"><span>your clip</span></li>'
    return f'<p class="fz-note">Choose a picture to take its settings.</p><ul class="fz-cards">{own}{tiles}</ul>'


def examples(listed: Iterable[tuple[str, Path, VisitorClip]]) -> str:
    cards = [
        f'<li><button type="button" class="fz-card" data-say="fz-clip" data-value="{name}"><img alt="" '
        f'src="{picture(np.asarray(Image.open(first).convert("RGB")), 160)}"><span>{safe(clip.name)}</span></button>'
        "</li>"
        for name, first, clip in listed
    ]
    return f'<ul class="fz-cards fz-examples">{"".join(cards)}</ul>'
