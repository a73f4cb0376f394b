"""The folder of a tuned checkpoint: whose is it, does it go on, and how is one replaced?

As a run's folder (`fz.results.folder`): one process writes at a time, files of the user's stay, and a tuning that
replaces another is made beside it, in STAGE, from where it also goes on when it was stopped.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fz import records
from fz.errors import FzError
from fz.records import within
from fz.results import own
from fz.results.claim import STAGE, check_inputs, empty
from fz.results.differing import brief
from fz.results.lock import NAME as LOCK
from fz.results.lock import Lock
from fz.settings.place import writable
from fz.tuning.settings import TuneSettings

RECORD = "tuning.json"
SAMPLING = ("sample_prompts", "sample_steps", "guidance")  # what samples depend on beside the weights
# what may differ between a run and the one that goes on with it
FREE = (
    "out",
    "steps",
    *SAMPLING,
    "sample_every",
    "save_every",
    "overwrite",
    "dry_run",
    "threads",
)
# what a tuning writes; tokenizers of other versions of transformers have other files
FILES = re.compile(
    r"tuning\.json|state\.pt|lora\.safetensors|loss\.(csv|png)|model_index\.json|samples/\d+-\d+\.gif|tokenizer/[^/]+\.(json|txt)"
    r"|scheduler/scheduler_config\.json|(unet|vae|text_encoder)/config\.json"
    r"|(unet|vae)/diffusion_pytorch_model\.bin|text_encoder/pytorch_model\.bin"
)
CHECKPOINT = re.compile(r"model_index\.json|(tokenizer|scheduler|unet|vae|text_encoder)/[^/]+")
LOSS = within(1e-12, 1e12)
# of a record, what those of before do not have: they go on
SINCE = ("dataset", "encoding")
SCHEMA = {
    "model": str,
    **{f"{name}?": str for name in SINCE},
    "recipe": str,
    "clip": {"path": str},
    "steps": int,
    "sample_every?": int,
    "sample_prompts?": [str],
    "lora_rank?": (int, None),
    "untuned?": LOSS,
    "tuned?": LOSS,
}


@dataclasses.dataclass
class TuningFolder:
    """Made by `claim`; a context, at whose end the folder is free. path: the checkpoint that is to be; work: where
    files are written; before: the record of the tuning that goes on there, {} of a new one.
    """

    path: Path
    lock: Lock | None = None
    made: list[Path] = dataclasses.field(default_factory=list)
    work: Path = Path()
    before: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def claim(cls, settings: TuneSettings) -> "TuningFolder":
        """The folder `settings.out`. Raises FzError, having changed nothing, if it holds anything else than a tuning,
        or is being written.
        """
        path = writable(settings.out, "out")
        folder = cls(path, work=path)
        if not settings.dry_run:
            try:
                folder.made = own.made(path)
                folder.lock = Lock(path)
            except OSError as error:
                own.unmake(folder.made)
                raise FzError(
                    f"out: {path} cannot be written ({error.strerror or error}). Pass another --out."
                ) from error
        try:
            folder.check(settings.overwrite)
            check_inputs(path, inputs_of(settings), set(files_in(path)))
        except BaseException:
            folder.__exit__()
            raise
        return folder

    @classmethod
    def look(cls, settings: TuneSettings) -> None:
        """Raise FzError for a folder that `claim` would refuse; change nothing."""
        with cls.claim(dataclasses.replace(settings, dry_run=True)):
            pass

    def __enter__(self) -> "TuningFolder":
        return self

    def __exit__(self, *_: object) -> None:
        if self.lock:
            self.lock.release()
        own.unmake(self.made)

    def check(self, overwrite: bool) -> None:
        """Raise FzError if files of others are in the way."""
        stage = read_record(self.path / STAGE)
        if stage and "tuned" in stage and self.lock:
            self.swap()
        if empty(self.path) or read_record(self.path) is not None:
            return
        if not overwrite and any(p.name not in (STAGE, LOCK) for p in self.path.iterdir()):
            raise FzError(
                f"out: {self.path} holds other files. Pass another --out, or --overwrite to write there all the same."
            )
        for file in sorted(self.path.rglob("*")):
            if FILES.fullmatch(name := file.relative_to(self.path).as_posix()):
                raise FzError(
                    f"out: {self.path / name} is of no tuning, and has the name that this one would write. Move it, or "
                    "pass another --out."
                )

    def begin(self, about: Mapping[str, Any], overwrite: bool) -> None:
        """Find what an earlier run of the same tuning left. about: this one's model and settings, as the record has
        them. Raises FzError if the folder holds another.
        """
        for name in ("unet", "vae", "text_encoder", "scheduler", "tokenizer", "samples", STAGE, RECORD, "state.pt"):
            if (self.path / name).is_symlink():
                raise FzError(f"out: {self.path / name} is a link. Take it away, or pass another --out.")
        there = read_record(self.path)
        if there is not None and not overwrite:
            if different := differing(there, about):
                name = different[0]
                raise FzError(
                    f"out: {self.path} holds a tuning with another {', '.join(different)} ({brief(there.get(name))} "
                    f"there, {brief(about[name])} now). Pass another --out, or --overwrite to replace it."
                )
            self.before = there
        if there is None or not overwrite:
            return
        self.work = self.path / STAGE
        left = read_record(self.work)
        if left is not None and not differing(left, about):
            self.before = left
        elif not self.lock:
            return  # a dry run
        else:
            own.remove(self.work, files_in(self.work))

    def finish(self) -> None:
        """All is written: put it into its place, and take away what a killed run had half written."""
        own.remove_halves(self.work, files_in(self.work))
        if self.work != self.path:
            self.swap()

    def swap(self) -> None:
        """Can be done again where it was cut short: the record, which says that all is there, goes last."""
        stage = self.path / STAGE
        new = [name for name in files_in(stage) if name != RECORD]
        own.move(stage, self.path, new)
        record = read_record(stage)
        # samples of the tuning that was there; the new one's may have been moved before
        own_samples = set(samples_of(record))
        stale = [n for n in files_in(self.path) if n.startswith("samples/") and n not in own_samples and n not in new]
        # and a checkpoint's where a LoRA takes its place, or the other way
        others = CHECKPOINT.fullmatch if record.get("lora_rank") else "lora.safetensors".__eq__
        own.remove(self.path, [*stale, *(name for name in files_in(self.path) if others(name))])
        own.move(stage, self.path, [RECORD])
        own.unmake([stage])


def sample_name(step: int, prompt: int) -> str:
    """The file of a sample after so many steps, of the prompt of that number."""
    return f"samples/{step:05d}-{prompt}.gif"


def samples_of(record: Mapping[str, Any]) -> Iterator[str]:
    """The samples of a whole tuning with this record."""
    steps, every = record["steps"], record.get("sample_every") or 0
    for step in {steps, *(range(every, steps, every) if every else ())}:
        yield from (sample_name(step, i) for i in range(len(record.get("sample_prompts") or ())))


def inputs_of(settings: TuneSettings) -> Iterator[tuple[str, str]]:
    """(setting, path) of what a tuning reads. A model that is a tuning itself is known by its record, too."""
    yield "video", settings.clip.path
    if settings.class_images:
        yield "class_images", settings.class_images
    for name in ("checkpoint", "vae", "tokenizer", "model_config"):
        if given := getattr(settings, name):
            yield name, given
            yield name, f"{given}/{RECORD}"


def files_in(folder: Path) -> list[str]:
    """What a tuning has written there."""
    found = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    return sorted(name for name in found if FILES.fullmatch(name))


def differing(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    known = (name for name in now if name not in FREE and not (name in SINCE and name not in there))
    return [name for name in known if now[name] != there.get(name)]


def read_record(folder: Path) -> dict[str, Any] | None:
    """The folder's tuning.json; None where there is none that a tuning wrote."""
    return records.read(folder / RECORD, SCHEMA)
