"""From settings to the Python text that gives them: `fz.settings.command` for people who program."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from fz.arguments import OF_AN_EDIT, OF_EDITING, OF_INVERTING, OF_LOADING
from fz.errors import FzError
from fz.settings.applications import usual_of
from fz.settings.command import fields, same
from fz.settings.config import ClipSettings, Crop, EditSettings, Settings

MULTIPLE = 64  # to which `fz.read` rounds


def program(settings: Settings, save: str = "edit.mp4") -> str:
    """A program of one edit, which writes `save`. Raises FzError for settings of several edits.

    What has the value that the API takes anyway is left out, but for steps and guidance, which the miniature has of its
    own. An empty path is the miniature's example, which is read where none is given.
    """
    if len(settings.edits) != 1:
        raise FzError(f"program: got {len(settings.edits)} edits, expected one.")
    of_run, clip, edit = values(settings), values(settings.clip), values(settings.edits[0])
    usual = fields(Settings)
    load = given(of_run, ("device", "dtype", *OF_LOADING), usual)
    invert = {"steps": settings.steps} | given(of_run, OF_INVERTING, usual)
    # removing and enhancing have settings of their own, which are usual then
    usual_edit = fields(EditSettings) | usual_of(edit["remove"], edit["enhance"])
    editing = {"guidance": settings.guidance} | given(edit, OF_AN_EDIT, usual_edit) | given(of_run, OF_EDITING, usual)
    crop = settings.clip.crop
    read = given(clip, ("frames", "start", "every"), fields(ClipSettings)) | {"size": clip["size"]}
    read |= {"crop": (crop.left, crop.right, crop.top, crop.bottom)} if crop != Crop() else {}
    path = [settings.clip.path] if settings.clip.path else []
    lines = [
        "import fz",
        "",
        f"editor = fz.load({arguments([] if settings.checkpoint is None else [settings.checkpoint], load)})",
        f"clip = fz.read({arguments(path, read)}{rounded(settings.clip)})",
        f"inversion = editor.invert(clip, {arguments([settings.source], invert)})",
        f"result = inversion.edit({arguments([edit['target']], editing)})",
        f"result.save({save!r})",
    ]
    return "\n".join(lines) + "\n"


def rounded(clip: ClipSettings) -> str:
    """What a reading needs so that its sides are rounded as the model's are, where they are not whatever it is."""
    sides = clip.size if isinstance(clip.size, tuple) else (clip.size,)
    even = all(isinstance(side, int) and side % MULTIPLE == 0 for side in sides)
    return "" if even or not clip.path else ", multiple=editor.multiple"


def values(of: Any) -> dict[str, Any]:
    return {field.name: getattr(of, field.name) for field in dataclasses.fields(of)}


def given(these: Mapping[str, Any], names: Iterable[str], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Those that differ from what is usual."""
    return {name: these[name] for name in names if not same_value(these[name], usual.get(name))}


def same_value(value: Any, default: Any) -> bool:
    return value == default or same(list(value) if isinstance(value, tuple) else value, default)


def arguments(first: Iterable[Any], by_name: Mapping[str, Any]) -> str:
    """The text between a call's brackets."""
    texts = [repr(value) for value in first]
    return ", ".join([*texts, *(f"{name}={value!r}" for name, value in by_name.items())])
