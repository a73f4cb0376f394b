"""`python -m fz.prompt --source TEXT --target TEXT [flags of fz.run]`: what an edit will do to each word, before
anything is run.

Tokens, which words correspond, and how long each word of the target has the source's attention. With --video also where
the source's words are: their attention over a few inversion steps (--map-steps, default 4) and the masks made of it, as
pictures. --json prints a line of JSON for each edit instead (`fz.prompts.explain.as_json` says what is in it).
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fz.baselines import METHODS
from fz.clips.media import contact_sheet, overlay, to_uint8, write_png
from fz.ddim import CLEAN, Schedule
from fz.edit import Source, invert
from fz.errors import FzError
from fz.fusion import MAP_STRIDE, Fusion, blend_mask
from fz.prompts import align
from fz.prompts.explain import as_json, mask_words
from fz.prompts.plan import Plan, plan_edit
from fz.prompts.text import Tokens
from fz.results.folder import slug
from fz.settings.config import EditSettings, Settings
from fz.shell import answered
from fz.words import bare

MAP_STEPS, TAU = 4, 0.3


@dataclass(frozen=True)
class Column:
    """What happens to one word of the target in cross-attention.

    what: 'kept' (the source's attention of the same word), 'replaced' (of other words), 'new' (its own), or 'own'
    (never fused). sources: those words of the source. steps: the first and the last edit step, counted from 1, at which
    the source's attention or the weight counts; None where neither does. weight: r of re-weighting.
    """

    word: str
    positions: tuple[int, ...]
    what: str
    sources: tuple[str, ...]
    steps: tuple[int, int] | None
    weight: float


def columns(fusion: Fusion, source: Tokens, target: Tokens, steps: int) -> list[Column]:
    """A row for each word of the target over T = steps edit steps."""
    out = []
    for word in target.words:
        at = list(word.positions)
        rows = (fusion.mapper[:, at] > 0).any(1) & (fusion.kept[at] > 0).any()
        sources = tuple(dict.fromkeys(filter(None, (source.word_at(int(i)) for i in rows.nonzero()))))
        on = fusion.cross_window[:steps, at].any(1).nonzero().flatten().tolist()
        same = [bare(s) for s in sources] == [bare(word.text)]
        what = "own" if not on else "new" if not sources else "kept" if same else "replaced"
        weight = float(fusion.equalizer[word.core[0]]) if on else 1.0
        span = None if what == "own" or (what == "new" and weight == 1) else (on[0] + 1, on[-1] + 1)
        out.append(Column(word.text, word.positions, what, sources if on else (), span, weight))
    return out


def describe(edit: EditSettings, plan: Plan, source: Tokens, target: Tokens, steps: int) -> list[str]:
    """The lines of one edit."""
    lines = [repr(edit.target), *(f"  note: {note}" for note in plan.notes)]
    fusion = plan.fusion
    if fusion is None:
        return [
            *lines,
            *(f"  {word.text}  (tokens {numbers(word.positions)})" for word in target.words),
            "  nothing is fused",
        ]
    rows = [("word", "tokens", "attention", "of the source's", "at steps", "weight")]
    for c in columns(fusion, source, target, steps):
        span = f"{c.steps[0]}-{c.steps[1]} of {steps}" if c.steps else "-"
        rows.append(
            (
                c.word,
                numbers(c.positions),
                c.what,
                " ".join(c.sources) or "-",
                span,
                f"x{c.weight:g}" if c.weight != 1 else "",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines += [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lost = [word.text for word in source.words if not fusion.mapper[list(word.positions)].any()]
    if lost:
        lines.append(f"  of the source, nothing takes: {' '.join(lost)}")
    hidden = [f"  hidden from every pixel: what is under the mask of {edit.remove}"] if fusion.hides_object else []
    return [*lines, f"  self-attention: {self_attention(edit, fusion, source, steps)}", *hidden]


def self_attention(edit: EditSettings, fusion: Fusion, source: Tokens, steps: int) -> str:
    first, last = fusion.self_window
    if first >= last:
        return "the edit's own throughout"
    where = "everywhere" if edit.mask is None else f"outside the mask of {edit.mask}"
    if edit.mask is None and fusion.mask_words is not None:
        words = mask_words(fusion.mask_words, source)
        where = f"outside the mask of {words}, > {fusion.threshold:g} of its maximum"
    return f"the source's at steps {first + 1}-{last} of {steps}, {where}"


def numbers(positions: Sequence[int]) -> str:
    return ",".join(map(str, positions))


def split(argv: Sequence[str]) -> tuple[list[str], int]:
    """(flags of fz.run, value of --map-steps)."""
    rest, steps, words = [], str(MAP_STEPS), iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name == "--map-steps":
            steps = value if equals else next(words, "")
        else:
            rest.append(word)
    if not re.fullmatch(r"\d{1,4}", steps, re.ASCII) or not 1 <= int(steps) <= 1000:
        raise FzError(f"--map-steps: got {steps!r}, expected a whole number from 1 to 1000; a few are enough.")
    return rest, int(steps)


def word_maps(settings: Settings, map_steps: int, say: Callable[[str], None]) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """(frames (F, 3, H, W), the source's cross-attention averaged over heads, layers and steps (F, N, 77), (h, w) of
    its N tokens).
    """
    from fz import pipeline
    from fz.memory.machine import pick_device

    device = pick_device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    checkpoint = pipeline.load(settings, device)
    video = pipeline.read_video(settings, checkpoint.vae.config.stride * checkpoint.unet.config.stride, say)
    frame_index = pipeline.choose_frame_index(settings, checkpoint.tuned, say)
    schedule = Schedule.of(checkpoint.scheduler, map_steps)
    embedding = checkpoint.text.encode([settings.source])[0].to(device)
    z_0 = pipeline.encode(checkpoint.vae, video.frames, say).to(device)
    source = invert(checkpoint.unet, Source(embedding, latents={CLEAN: z_0}), schedule, frame_index)
    h, w = (side // MAP_STRIDE for side in z_0.shape[-2:])
    return video.frames, torch.stack(list(source.maps.values())).mean(0).cpu(), (h, w)


def write_pictures(
    folder: Path,
    settings: Settings,
    tokens: Tokens,
    plans: Sequence[Plan],
    frames: Tensor,
    maps: Tensor,
    size: tuple[int, int],
) -> list[Path]:
    """A strip of frames for each word of the source (attention, and its mask), all of them in one, and the mask of each
    edit.
    """
    clip, pixels, written = to_uint8(frames), tuple(frames.shape[-2:]), []
    threshold = next(
        (plan.fusion.threshold for plan in plans if plan.fusion and plan.fusion.mask_words is not None), TAU
    )

    def picture(name: str, rows: Sequence, labels: Sequence[str]) -> None:
        write_png(folder / name, contact_sheet(rows, labels))
        written.append(folder / name)

    rows, labels = [], []
    for word in tokens.words:
        attention = overlay(clip, maps[..., list(word.core)].sum(-1).unflatten(1, size))
        mask = overlay(clip, blend_mask(maps, align.weights(word.core), threshold, size, pixels))
        picture(
            f"{word.index:02d}-{slug(word.text, 24)}.png",
            [attention, mask],
            [word.text, f"{word.text} > {threshold:g}"],
        )
        rows, labels = [*rows, attention, mask], [*labels, word.text, f"{word.text} > {threshold:g}"]
    picture("all-words.png", rows, labels)
    for i, (edit, plan) in enumerate(zip(settings.edits, plans, strict=True)):
        if plan.fusion and plan.fusion.mask_words is not None:
            mask = blend_mask(maps, plan.fusion.mask_words, plan.fusion.threshold, size, pixels)
            picture(
                f"mask-edit-{i}.png",
                [overlay(clip, mask)],
                [f"{edit.target}: what is edited, > {plan.fusion.threshold:g}"],
            )
    return written


def answer(argv: list[str]) -> None:
    from fz.run import text_of
    from fz.settings.parse import parse

    as_lines = "--json" in argv
    rest, map_steps = split([word for word in argv if word != "--json"])
    settings = parse([*rest, "--list-words"]).settings
    if settings is None:
        raise FzError("prompt: got no sentences, expected --source 'a red car on sand' --target 'a blue car on sand'.")
    text, steps = text_of(settings), settings.steps
    source = text.tokens(settings.source)
    targets = [text.tokens(edit.target) for edit in settings.edits]
    fuses = METHODS[settings.method].fuses
    plans = [
        plan_edit(edit, source, target, steps, name=f"edit {i}")
        if fuses
        else Plan(None, (f"method {settings.method} fuses nothing",))
        for i, (edit, target) in enumerate(zip(settings.edits, targets, strict=True))
    ]
    if as_lines:
        for edit, plan, target in zip(settings.edits, plans, targets, strict=True):
            print(json.dumps(as_json(edit, plan, source, target, steps)))
        return
    print(f"source: {settings.source!r}")
    for word in source.words:
        print(f"  {word.text}  (tokens {numbers(word.positions)})")
    for i, (edit, plan, target) in enumerate(zip(settings.edits, plans, targets, strict=True)):
        print(f"\nedit {i}: " + "\n".join(describe(edit, plan, source, target, steps)))
    if settings.clip.path and any(word.partition("=")[0] == "--video" for word in rest):
        folder = Path(settings.out or Path("results") / f"prompt-{slug(Path(settings.clip.path).stem, 32) or 'clip'}")
        print()
        pictures = write_pictures(folder, settings, source, plans, *word_maps(settings, map_steps, print))
        print(
            f"the source's words over {map_steps} inversion steps: {len(pictures)} pictures in {folder}, as "
            f"{pictures[-1].name}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or "--help" in argv:
        print(__doc__)
        return 0
    return answered(lambda: answer(argv), debug="--debug" in argv)


if __name__ == "__main__":
    sys.exit(main())
