"""Edits of a Python program as the folder that `fz run` writes: clips, frames, masks, attention and run.json."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fz.errors import FzError
from fz.results.folder import ResultFolder
from fz.results.result import Edited, Result
from fz.stages import versions

if TYPE_CHECKING:
    from fz.inverted import InvertedClip


def save_run(inversion: "InvertedClip", out: str | Path, edits: Sequence[Edited]) -> Path:
    """Missing folders are made. Raises FzError for what is no path or no edit, for a folder that holds something else,
    and for edits whose settings differ in more than the edit itself.
    """
    if not edits:
        raise FzError("save: got no edits, expected what InvertedClip.edit returned.")
    if not isinstance(out, (str, Path)) or out == "":
        raise FzError(f"save: got {out!r}, expected a folder's path, as save('red', edited).")
    if others := [edited for edited in edits if not isinstance(edited, Edited)]:
        raise FzError(f"save: got {type(others[0]).__name__}, expected what InvertedClip.edit returned.")
    runs = [dataclasses.replace(edited.settings, edits=edits[0].settings.edits) for edited in edits]
    if any(run != runs[0] for run in runs):
        raise FzError("save: got edits of different guidance, method or clip, expected those of one run. Save each.")
    ours = tuple(edited.settings.edits[0] for edited in edits)
    settings = dataclasses.replace(runs[0], edits=ours, out=str(Path(out).expanduser()))
    notes = list(dict.fromkeys(note for edited in edits for note in (*inversion.journal.notes, *edited.notes)))
    result = Result(settings, notes, settings.out, inversion.video, inversion.source, inversion.schedule, list(edits))
    result.stages = dict(inversion.journal.stages)
    with ResultFolder.claim(settings) as folder:
        folder.start(settings)
        folder.write_source(inversion.video, inversion.source, inversion.tokens, inversion.schedule)
        for i, edited in enumerate(edits):
            folder.write_edit(i, inversion.video, edited)
        folder.finish(result, versions(inversion.editor.device))
    return folder.path
