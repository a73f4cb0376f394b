"""Which command and which Python give a result of the page again, and what has to be put in the place of names there?

They name what a visitor can have: his own file, a clip's download, a model of the Hub. Of what lies on the server they
say that it does.
"""

import dataclasses
from pathlib import Path

from fz import mini
from fz.program import program
from fz.results.claim import as_json
from fz.settings.command import command
from fz.settings.config import Settings
from fz.settings.place import slug
from fz.web.folder import VisitorClip
from fz.weights.names import parsed, shown

MASK = "mask.png"
GIVES = "“Clip” above downloads it while it is here"


def file_name(clip: VisitorClip) -> str:
    """What a clip is called where it is downloaded: a file as it is, a folder of pictures by its words."""
    return slug(clip.name, 64) if Path(clip.path).is_dir() else clip.name


def again(settings: Settings, clip: VisitorClip) -> dict[str, str]:
    """command and python, which give the same bits; needs: a line for each file or folder that they name."""
    needs = []
    # what is read where no clip is named
    bundled = settings.checkpoint is None and clip.path == mini.example()["clip.path"]
    name = "" if bundled else file_name(clip)
    if Path(clip.path).is_dir() and not bundled:
        needs.append(f"{name}: the folder in {name}.zip; {GIVES}.")
    elif not bundled:
        needs.append(f"{name}: your clip; {GIVES}.")
    (edit,) = settings.edits
    if edit.mask is not None:
        edit = dataclasses.replace(edit, mask=MASK)
        needs.append(f"{MASK}: the area that you drew; “Drawn area” above downloads it.")
    checkpoint = settings.checkpoint and shown(settings.checkpoint)
    if settings.checkpoint is not None and parsed(settings.checkpoint) is None:
        needs.append(f"{checkpoint}: the model, which lies on the server; say there where your own copy of it is.")
    named = dataclasses.replace(settings.clip, path=name)
    settings = dataclasses.replace(settings, clip=named, checkpoint=checkpoint, edits=(edit,))
    return {"command": command(as_json(settings), "my-edit"), "python": program(settings), "needs": "\n".join(needs)}
