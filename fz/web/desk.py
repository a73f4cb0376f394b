"""What does the page answer? A function for each thing that a visitor can do: from his form to pieces of HTML, and jobs
for the queue.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

import fz
from fz import mini
from fz.clips.decode import open_source
from fz.clips.images import opened_image
from fz.clips.media import write_png
from fz.errors import FzError
from fz.web import form as forms
from fz.web import show
from fz.web.examples import Examples
from fz.web.folder import ABOUT, PREVIEW, SHEET, Folder, Visitor, VisitorClip, read_json
from fz.web.jobs import Job, Queue
from fz.web.studio import Models, Studio
from fz.words import compared, says

LARGEST_MASK = 3_000_000  # characters of a drawn mask's text
BRUSH_SIDE = 640
GB = 1e9


@dataclass
class Desk:
    """All that the page needs."""

    folder: Folder
    models: Models
    studio: Studio
    queue: Queue
    examples: Examples

    # ---- clip ----------------------------------------------------------------------------------------------

    def choose(self, visitor: Visitor, clip_id: str) -> VisitorClip:
        """An example, or a clip that the visitor has."""
        clip = self.examples.bring(visitor, clip_id) or visitor.clip(clip_id)
        visitor.keep(clip)
        return clip

    def uploaded(self, visitor: Visitor, batch: str) -> VisitorClip:
        """The clip that an upload makes. Raises FzError where it is none, and removes it."""
        place = self.folder.batch(visitor, batch)
        files = sorted(place.iterdir()) if place.is_dir() else []
        if not files:
            raise FzError("upload: nothing came. Try again.")
        path = files[0] if len(files) == 1 else place
        try:
            video, source = fz.read(str(path), frames=1, size=64), open_source(str(path))
            name = files[0].name if len(files) == 1 else f"{len(files)} pictures"
            clip = VisitorClip(batch, name, str(path), video.picture, source.count, float(source.fps))
            visitor.keep(clip)
            return clip
        except FzError as error:
            for file in files:
                file.unlink(missing_ok=True)
            place.rmdir()
            raise FzError(self.folder.told(str(error))) from None

    def frames(self, clip: VisitorClip, form: forms.Form) -> str:
        """The frames that are taken, what is cut, and what it will take."""
        return show.thumbnails(self.studio.video(clip, form)) + show.note(self.cost(clip, form))

    def cost(self, clip: VisitorClip, form: forms.Form) -> str:
        editor, side = self.models.editor(form["model"]), form["size"]
        need = editor.predicted(form["frames"], (side, side), forms.steps_of(form, quick=False))
        if not need.fits:
            free = f"{need.free / GB:.1f} GB are free"
            return f"Too large: it takes {need.least / GB:.1f} GB, and {free}. Take fewer frames or a smaller size."
        memory = need.kept if need.free is not None and need.kept < 0.6 * need.free else need.least
        seconds = self.studio.seconds(clip, form)
        time = "" if seconds is None else f"about {spoken(seconds)}, "
        return f"An edit of these takes {time}{max(0.1, memory / GB):.1f} GB of memory."

    def brush(self, clip: VisitorClip, form: forms.Form) -> str:
        """A frame to draw on, whole as it is in the file."""
        if not clip.here:
            return ""
        video = fz.read(clip.path, frames=1, start=min(form["start"], clip.count - 1), size=clip.picture, multiple=1)
        uri = show.pictures(video.frames, longest=BRUSH_SIDE)[0]
        return f'<fz-brush data-picture="{uri}"></fz-brush>'

    def drawn(self, visitor: Visitor, clip: VisitorClip, uri: str) -> str:
        """Keep a mask that was drawn, as large as the clip's pictures, and return its id; '' for one that is black.
        Raises FzError for what is no picture.
        """
        head, _, body = uri.partition(",")
        if head != "data:image/png;base64" or len(body) > LARGEST_MASK:
            raise FzError("The area that was drawn did not arrive. Draw it again.")
        try:
            raw = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError):
            raise FzError("The area that was drawn did not arrive. Draw it again.") from None
        mask_id = hashlib.sha256(raw).hexdigest()[:16]
        path = visitor.place(clip.id) / "masks" / f"{mask_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{mask_id}.png")
        part.write_bytes(raw)
        try:
            with opened_image(part) as image:
                if max(image.size) > 2 * BRUSH_SIDE:
                    raise FzError("The area that was drawn is too large. Load the page again.")
                grey = image.convert("L")
            height, width = clip.picture
            grey = grey.resize((width, height), Image.Resampling.BILINEAR).point(lambda v: 255 * (v > 127))
            if grey.getextrema()[1] == 0:
                return ""
            write_png(path, np.asarray(grey))
            return mask_id
        finally:
            part.unlink(missing_ok=True)

    # ---- words ---------------------------------------------------------------------------------------------

    def words(self, clip: VisitorClip | None, form: forms.Form) -> tuple[str, str]:
        """What happens to each word, and a slider for each."""
        if not says(form["source"]):
            return show.note("Say what is in your clip, in a sentence."), ""
        target = forms.sentence(form)
        if target == "":
            return show.note("Say what it should become."), ""
        arguments = forms.editing(form)
        # while one types, a word that has a slider may be gone from the sentence
        arguments.pop("reweight", None)
        editor = self.models.editor(form["model"])
        explained = editor.explain(form["source"], target, **arguments)
        form["weights"] = {w: f for w, f in form["weights"].items() if show.bare(w) in words_of(explained.target)}
        steps = forms.steps_of(form, quick=False)
        explained = editor.explain(form["source"], target, steps=steps, **forms.editing(form))
        miniature = self.models.is_miniature(form["model"])
        can_look = clip is not None and self.studio.at_hand(clip, form) is not None
        strange = mini.not_learned([form["source"], explained.target]) if miniature else []
        lines = [
            show.note(line.partition(" --list-words")[0].replace("the mini", "The mini"), "warn") for line in strange
        ]
        table = show.words(explained, miniature, can_look) + "".join(lines)
        return table, show.weights(explained.target, form["weights"])

    def word(self, clip: VisitorClip, form: forms.Form, word: str) -> str:
        """Where a word of the source is."""
        inversion = self.studio.at_hand(clip, form)
        if inversion is None:
            return show.note("Make a preview first: then the page knows where each word is.")
        shown = show.over(inversion.video, inversion.attention(word), f"where {word} is")
        return f"<h3>Where is “{show.safe(word)}”?</h3>{shown}"

    def area(self, clip: VisitorClip, form: forms.Form) -> str:
        """Where the edit may change the clip, or shapes of it, at the limit that counts."""
        if form["mask"]:
            return show.note("The area that you drew below is used.")
        limit = forms.limit(form)
        if limit is None:
            return show.note(forms.MOOT["threshold"] if form["area"] else "")
        inversion = self.studio.at_hand(clip, form)
        if inversion is None:
            follows = ", and follows the slider" if forms.sets_limit(form) else ""
            return show.note(f"Make a preview first: then the area is shown here{follows}.")
        editor = self.models.editor(form["model"])
        explained = editor.explain(form["source"], forms.sentence(form), **forms.editing(form))
        words = [explained.source_words[i] for i in explained.mask_words]
        if not words:
            return show.note("No word of the first sentence changes, so there is no area. Draw one under “More”.")
        mask = inversion.mask(words, limit, edge=form["keep_background"])
        what = " may change" if form["keep_background"] else ": there shapes may change"
        usual = "" if forms.sets_limit(form) else f", at the usual tightness of {limit:g}"
        share = f"{100 * float(mask.float().mean()):.0f} % of the picture{what}{usual}"
        shown = show.spotlight(inversion.video, mask, f"the area of {' '.join(words)}")
        return f'<div class="fz-area" data-limit="{limit:g}">{shown}{show.note(share)}</div>'

    # ---- edits ---------------------------------------------------------------------------------------------

    def submit(self, visitor: Visitor, clip: VisitorClip, kind: str, form: dict[str, Any]) -> Job:
        """Put an edit into the queue. Raises FzError for what would fail there."""
        if not clip.here:
            raise FzError(f"{clip.name} went after a day. Bring it again.")
        checked = forms.checked(form)
        if not says(checked["source"]):
            raise FzError("Say what is in your clip first.")
        if forms.sentence(checked) == "":
            raise FzError("Say what it should become first.")
        arguments = forms.editing(checked)
        editor = self.models.editor(checked["model"])
        editor.explain(checked["source"], forms.sentence(checked), **arguments)
        if kind == "sheet":
            self.studio.tried(checked, str(form.get("vary", "")))
            checked["vary"] = form["vary"]
        return self.queue.submit(Job(visitor.name, clip.id, kind, checked, stays=checked["stays"]))

    def preview(self, visitor: Visitor, clip: VisitorClip) -> str:
        content = read_json(visitor.place(clip.id) / "preview.json", PREVIEW)
        if not content:
            return ""
        return f'<div class="fz-preview">{show.player(content["source"], content["edit"], 2, content["target"])}</div>'

    def sheet(self, visitor: Visitor, clip: VisitorClip) -> str:
        return show.sheet(read_json(visitor.place(clip.id) / "sheet.json", SHEET))

    def tile(self, visitor: Visitor, clip: VisitorClip, number: int) -> dict[str, Any]:
        """The form of a sheet's picture."""
        tiles = read_json(visitor.place(clip.id) / "sheet.json", SHEET).get("tiles", [])
        if not 0 <= number < len(tiles):
            raise FzError("This picture is not here any more. Make the sheet again.")
        return forms.checked(tiles[number]["form"])

    def results(self, visitor: Visitor, clip: VisitorClip, chosen: str = "") -> tuple[str, str]:
        """The result that was chosen, or else the newest, and all of them."""
        found = {r: read_json(visitor.result(clip.id, r) / "about.json", ABOUT) for r in visitor.results(clip.id)}
        about = {r: content for r, content in found.items() if content}
        if not about:
            return show.note("Your edit appears here."), ""
        now = chosen if chosen in about else next(iter(about))
        return show.result(clip, now, about[now]), show.history(clip.id, about.items(), now)

    def form_of(self, visitor: Visitor, clip: VisitorClip, result: str = "") -> dict[str, Any] | None:
        """The form of a result, or else of the newest; None where there is none."""
        results = [result] if result else visitor.results(clip.id)[:1]
        if not results:
            return None
        return forms.checked(read_json(visitor.result(clip.id, results[0]) / "about.json", ABOUT).get("form", {}))


def words_of(sentence: str) -> set[str]:
    return set(compared(sentence))


def spoken(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
