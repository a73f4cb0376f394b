"""Edits of a Python program as the folder that `fz run` writes: clips, frames, masks, attention and run.json."""

import dataclasses
from pathlib import Path

import torch

from fz.arguments import OF_EDITING
from fz.errors import FzError
from fz.keys import key_of_source
from fz.prompts.text import Tokens
from fz.results.folder import ResultFolder
from fz.results.result import Edited, Result
from fz.settings.config import EditSettings, Settings
from fz.settings.place import expanded
from fz.stages import versions


def save_run(found: Result, tokens: Tokens, device: torch.device, out: str | Path, overwrite: bool) -> Path:
    """found: an inversion and edits of it; tokens: of its sentence. Missing folders are made. Raises FzError for what
    is no path or no edit, for a folder that holds something else, for edits of another inversion, and for edits whose
    settings differ in more than the edit itself.
    """
    edits = found.edits
    if not edits:
        raise FzError("save: got no edits, expected what InvertedClip.edit returned.")
    if not isinstance(out, (str, Path)):
        raise FzError(f"save: got {out!r}, expected a folder's path, as save('red', edited).")
    place = expanded(out, "save")
    if not isinstance(overwrite, bool):
        raise FzError(f"overwrite: got {overwrite!r}, expected True or False.")
    if others := [edited for edited in edits if not isinstance(edited, Edited)]:
        raise FzError(f"save: got {type(others[0]).__name__}, expected what InvertedClip.edit returned.")
    ours, key = unedited(found.settings), key_of_source(found.source)
    for edited in edits:
        if edited.inversion != key or unedited(edited.settings) != ours:
            told = f"of {edited.target[:60]!r}, which is of another inversion, expected one of this"
            raise FzError(f"save: got the edit {told}. Save it by the inversion that made it.")
    runs = [dataclasses.replace(edited.settings, edits=edits[0].settings.edits) for edited in edits]
    if any(run != runs[0] for run in runs):
        raise FzError("save: got edits of different guidance, method or clip, expected those of one run. Save each.")
    settings = dataclasses.replace(
        runs[0], edits=tuple(e.settings.edits[0] for e in edits), out=str(place), overwrite=overwrite
    )
    notes = list(dict.fromkeys(note for edited in edits for note in (*found.notes, *edited.notes)))
    result = dataclasses.replace(found, settings=settings, notes=notes, out=settings.out)
    with ResultFolder.claim(settings) as folder:
        folder.start(settings)
        folder.write_source(found.video, found.source, tokens, found.schedule)
        for i, edited in enumerate(edits):
            folder.write_edit(i, found.video, edited)
        folder.finish(result, versions(device))
    return folder.path


def unedited(settings: Settings) -> Settings:
    """What of an edit's settings is its inversion's."""
    plain = dataclasses.replace(settings, edits=(EditSettings(settings.source),))
    return dataclasses.replace(plain, **{name: getattr(Settings, name) for name in OF_EDITING})
