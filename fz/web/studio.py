"""Which models are loaded, which inversions are at hand, and how are a preview, an edit and a sheet of settings made of
them? All by `fz.load`, `fz.read`, `Editor.invert`, `InvertedClip.edit` and `InvertedClip.save`.
"""

import contextlib
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

import fz
from fz import mini
from fz.editor import Editor
from fz.errors import FzError
from fz.inverted import InvertedClip
from fz.settings.fast import FAST
from fz.web import form as forms
from fz.web import show
from fz.web.again import again
from fz.web.folder import ABOUT, Folder, Visitor, VisitorClip, new_id, read_json, write_json
from fz.web.jobs import Job
from fz.weights.names import shown

MINIATURE = "miniature"
# inversions held in memory; others are found in the cache folder
HELD = 3
# what an edit's step costs in inversion's steps
OF_EDIT = 2.2


class Models:
    """The checkpoints that the server was started with, by the names that visitors see; each loaded when it is used."""

    def __init__(self, checkpoints: list[str | None], options: dict[str, Any]):
        self.options, self.lock = options, threading.Lock()
        self.paths: dict[str, str | None] = {}
        self.loaded: dict[str, Editor] = {}
        for checkpoint in checkpoints or [None]:
            name = called = MINIATURE if checkpoint is None else shown(checkpoint)
            number = 1
            while name in self.paths:
                number += 1
                name = f"{called} ({number})"
            self.paths[name] = checkpoint

    @property
    def names(self) -> list[str]:
        return list(self.paths)

    def path(self, name: str) -> str | None:
        """Raises FzError for a model that the server was not started with."""
        if name not in self.paths:
            raise FzError(f"There is no model {name[:40]!r} here. Choose one of the list.")
        return self.paths[name]

    def editor(self, name: str, fast: bool = False) -> Editor:
        """fast: with weights as `fz run --fast` has them."""
        path, called = self.path(name), f"{name}, fast" if fast else name
        with self.lock:
            if called not in self.loaded:
                options = self.options | ({"weights": FAST["weights"]} if fast else {})
                self.loaded[called] = fz.load(path, **options)
            return self.loaded[called]

    def is_miniature(self, name: str) -> bool:
        return self.path(name) is None


class Studio:
    """What runs on the device. `do` is the queue's; all else only looks."""

    def __init__(self, models: Models, folder: Folder):
        self.models, self.folder = models, folder
        self.held: OrderedDict[tuple, InvertedClip] = OrderedDict()
        self.speed: dict[str, float] = {}  # seconds of an inversion step of one frame of 128², by model

    # ---- what is there -------------------------------------------------------------------------------------

    def video(self, clip: VisitorClip, form: forms.Form) -> fz.Video:
        """The clip's frames. Raises FzError where it cannot be read so, or went after its day."""
        if not clip.here:
            raise FzError(f"{clip.name} went after a day. Bring it again.")
        multiple = self.models.editor(form["model"]).multiple
        return fz.read(clip.path, **forms.reading(form), multiple=multiple)

    def inversion(self, clip: VisitorClip, form: forms.Form, quick: bool = False) -> InvertedClip | None:
        """The clip's inversion under its sentence, if it is in memory."""
        return self.held.get(key(clip, form, quick))

    def at_hand(self, clip: VisitorClip, form: forms.Form) -> InvertedClip | None:
        """The whole inversion, or else a preview's."""
        return self.inversion(clip, form) or self.inversion(clip, form, quick=True)

    def seconds(self, clip: VisitorClip, form: forms.Form) -> float | None:
        """How long a whole edit will take; None before anything was timed."""
        speed = self.speed.get(form["model"])
        steps = forms.steps_of(form, quick=False) * (OF_EDIT + (self.inversion(clip, form) is None))
        # what is saved a step where every second one is whole, as measured (docs/measurements.md)
        steps *= 0.6 if form["fast"] else 1
        return None if speed is None else speed * steps * form["frames"] * (form["size"] / 128) ** 2

    # ---- what is done --------------------------------------------------------------------------------------

    def do(self, job: Job) -> str:
        visitor = Visitor(self.folder.visitors / job.visitor)
        clip, form = visitor.clip(job.clip), forms.checked(job.form)
        place = visitor.place(job.clip)
        if job.kind == "run":
            return self.run(job, clip, form, place)
        if job.kind == "preview":
            return self.preview(job, clip, form, place)
        return self.sheet(job, clip, form, place)

    def inverted(self, job: Job, clip: VisitorClip, form: forms.Form, quick: bool) -> InvertedClip:
        """From memory, from the cache folder as far as it has it, or computed."""
        at = key(clip, form, quick)
        if at in self.held:
            self.held.move_to_end(at)
            return self.held[at]
        job.begin("Looking at your clip")
        editor, video = self.models.editor(form["model"], form["fast"] and not quick), self.video(clip, form)
        steps = forms.steps_of(form, quick)
        timed, began = [0], time.perf_counter()

        def after(step: int, z: torch.Tensor) -> None:
            timed[0] += 1
            job.step(1)

        found = editor.invert(
            video.some(forms.PREVIEW_FRAMES) if quick else video,
            form["source"],
            **forms.inverting(form, quick),
            # a preview's is done sooner than it is read back
            cache=None if quick else self.folder.cache,
            callback=after,
        )
        job.work += steps - timed[0]
        if timed[0] > 1 and form["model"] not in self.speed and not form["fast"]:
            self.note_speed(form, time.perf_counter() - began, timed[0] * len(found.video.frames))
        self.held[at] = found
        while len(self.held) > HELD:
            self.held.popitem(last=False)
        return found

    def note_speed(self, form: forms.Form, seconds: float, frame_steps: float) -> None:
        self.speed[form["model"]] = seconds / frame_steps / (form["size"] / 128) ** 2

    def edited(
        self, job: Job, inversion: InvertedClip, form: forms.Form, mask: Path | None, quick: bool = True
    ) -> fz.Edited:
        began = time.perf_counter()
        edited = inversion.edit(
            forms.sentence(form),
            **forms.editing(form, mask),
            **forms.guiding(form, quick),
            callback=lambda step, z: job.step(OF_EDIT),
        )
        steps = OF_EDIT * inversion.schedule.steps
        if not form["fast"]:
            self.note_speed(form, time.perf_counter() - began, steps * len(inversion.video.frames))
        return edited

    def preview(self, job: Job, clip: VisitorClip, form: forms.Form, place: Path) -> str:
        steps = forms.steps_of(form, quick=True)
        job.of = steps * ((self.inversion(clip, form, quick=True) is None) + OF_EDIT)
        inversion = self.inverted(job, clip, form, quick=True)
        job.begin("Sketching")
        edited = self.edited(job, inversion, form, mask_of(place, form))
        pictures = {"source": show.pictures(inversion.video.frames), "edit": show.pictures(edited.frames)}
        write_json(place / "preview.json", {**pictures, "target": edited.target, "form": dict(form)})
        return "preview"

    def run(self, job: Job, clip: VisitorClip, form: forms.Form, place: Path) -> str:
        job.of = forms.steps_of(form, quick=False) * ((self.inversion(clip, form) is None) + OF_EDIT) * 1.05
        began, inverted_before = time.time(), self.inversion(clip, form) is not None
        inversion = self.inverted(job, clip, form, quick=False)
        job.begin("Painting")
        edited = self.edited(job, inversion, form, mask_of(place, form), quick=False)
        job.begin("Writing the files")
        result = new_id()
        folder = inversion.save(place / "results" / result / "run", edited)
        frames = len(edited.frames)
        about = {
            "form": dict(form),
            "target": edited.target,
            "frames": frames,
            "fps": edited.fps,
            "clip": clip.name,
            "seconds": round(time.time() - began, 2),
            "inverted_before": inverted_before,
            "texts": again(edited.settings, clip),
        }
        # with this file the result is one
        write_json(folder.parent / "about.json", about)
        return result

    def sheet(self, job: Job, clip: VisitorClip, form: forms.Form, place: Path) -> str:
        tried = self.tried(form, str(job.form.get("vary", "")))
        steps = forms.steps_of(form, quick=True)
        job.of = steps * ((self.inversion(clip, form, quick=True) is None) + OF_EDIT * len(tried))
        inversion = self.inverted(job, clip, form, quick=True)
        tiles = []
        for i, other in enumerate(tried):
            job.begin(f"Trying {i + 1} of {len(tried)}")
            edited = self.edited(job, inversion, other, mask_of(place, form))
            picture = show.pictures(edited.frames[-1:], longest=256)[0]
            tiles.append({"picture": picture, "label": forms.label(other, form), "form": dict(other)})
        source = show.pictures(inversion.video.frames[-1:], longest=256)[0]
        write_json(place / "sheet.json", {"source": source, "tiles": tiles})
        return "sheet"

    def tried(self, form: forms.Form, what: str) -> list[dict[str, Any]]:
        """The forms of a sheet. Raises FzError for what cannot be varied, or makes no two edits."""
        editor = self.models.editor(form["model"])
        # of the words alone, whatever the controls say
        asked = forms.editing({**form, "keep_place": 100, "area": True, "area_limit": 0.3})
        explained = editor.explain(form["source"], forms.sentence(form), **asked)
        new = [c.word for c in explained.columns if c.what in ("new", "replaced")]
        return forms.varied(form, what, new, bool(explained.mask_words))

    def warm(self, clip: VisitorClip) -> None:
        """Load the first model, and look at the bundled clip as a preview does, so that the first one comes soon."""
        name = self.models.names[0]
        self.models.editor(name)
        self.restore()
        if self.models.is_miniature(name):
            form = {**forms.USUAL, "model": name, "source": clip.source, "target": clip.target}
            self.inverted(Job("", clip.id, "preview", form), clip, form, quick=True)

    def restore(self) -> None:
        """Read the newest results' inversions of the first model back, so that after a restart their words and areas
        are shown without a preview. One that the cache folder has not whole is given up after a step.
        """
        for visitor, clip_id, result in self.folder.newest()[: 3 * HELD]:
            if len(self.held) >= HELD - 1:
                break
            about = read_json(visitor.result(clip_id, result) / "about.json", ABOUT)
            with contextlib.suppress(FzError, Incomplete):
                clip, form = visitor.clip(clip_id), forms.checked(about.get("form", {}))
                # another model, or other weights, would be loaded for it alone
                if form["model"] == self.models.names[0] and not form["fast"]:
                    self.inverted(Stored(visitor.name, clip_id, "run", form), clip, form, quick=False)


class Incomplete(Exception):
    """An inversion is not whole in the cache folder."""


class Stored(Job):
    """A job that takes what is stored, and ends where something would have to be computed."""

    def step(self, work: float) -> None:
        raise Incomplete


def key(clip: VisitorClip, form: forms.Form, quick: bool) -> tuple:
    """What an inversion depends on."""
    reading = tuple(forms.reading(form).items())
    inverting = tuple(forms.inverting(form, quick).items())
    return clip.path, form["model"], form["source"], reading, inverting, form["fast"] and not quick, quick


def mask_of(place: Path, form: forms.Form) -> Path | None:
    """The mask that the visitor drew for this clip. Raises FzError where it is gone."""
    if not form["mask"]:
        return None
    path = place / "masks" / f"{form['mask']}.png"
    if not form["mask"].isalnum() or not path.is_file():
        raise FzError("The area that you drew is not here any more. Draw it again.")
    return path


def guess(models: Models, name: str) -> dict[str, Any]:
    """Sizes, steps and guidance that a model begins with."""
    if models.is_miniature(name):
        usual = mini.DEFAULTS
        return {"size": usual["clip.size"], "steps": usual["steps"], "guidance": usual["guidance"]}
    return {"size": 512, "steps": 50, "guidance": 7.5}
