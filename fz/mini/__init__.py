"""A miniature Stable Diffusion for a small drawn world: its pictures, its training, and the checkpoint that ships with
the project.

This file says where the shipped data is and what a run without a checkpoint or without a clip means; the data is in
`weights/mini`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fz.weights
from fz.errors import FzError, suggest

if TYPE_CHECKING:
    from fz.settings.config import Settings

SIZE = 128  # side of the pictures that the shipped UNet was last trained on
# guidance: of 2, 2.5, 3 and 4, on stories of which nothing is reported, 3 missed no colour and no more kinds than 4;
# 2 keeps 1 to 2 dB more of the background and misses a colour of twelve
DEFAULTS: dict[str, Any] = {"clip.size": SIZE, "guidance": 3.0, "steps": 20}
FOLDER = Path(fz.weights.__file__).parent / "mini"
EYE = FOLDER / "measure.safetensors"  # the network that judges pictures


def checkpoint(given: str | None = None) -> str:
    """The checkpoint that was given, else the miniature's folder. Raises FzError if that is not there."""
    if given is not None:
        return given
    if not (FOLDER / "unet").is_dir():
        raise FzError(f"miniature: {FOLDER} has no unet/. Install the project with its data, or pass --checkpoint.")
    return str(FOLDER)


def clip() -> str:
    """The folder of the miniature's CLIP, for metrics. Raises FzError if it is not there."""
    if not (FOLDER / "clip" / "model.safetensors").is_file():
        raise FzError(
            f"clip: {FOLDER} has no clip/. Install the project with its data, or pass --clip-model PATH, or none."
        )
    return str(FOLDER / "clip")


def example() -> dict[str, Any]:
    """The edit of a run that is given no clip: settings, by their paths (`fz.settings.config.build`)."""
    return {
        "clip.path": str(FOLDER / "example"),
        "source": "a red car moving on the sand",
        "edits.0.target": "a blue car moving on the sand",
    }


def strange_clip(path: str) -> list[str]:
    """A line for a clip that is not the example: who brings a real video should know before anything runs."""
    if not path or path == str(FOLDER / "example"):
        return []
    return [
        "the miniature knows its own drawn clips only and cannot edit a real video: for that, pass --checkpoint with a "
        "Stable Diffusion v1 model."
    ]


def strange_words(settings: "Settings", learned: Iterable[str] | None = None) -> list[str]:
    """A line for each word of a run's sentences that the miniature does not know; none with another checkpoint.

    learned: words that embeddings bring; before they are read, nothing is said where a word is a file's own.
    """
    if learned is None:
        learned = [word for _, word in settings.embedding]
    if settings.checkpoint is not None or None in learned:
        return []
    return not_learned([settings.source, *(edit.target for edit in settings.edits)], learned)


def not_learned(prompts: Iterable[str], learned: Iterable[str] = ()) -> list[str]:
    """A line for each word that no caption of the miniature's training had, and what may have been meant. learned:
    words that embeddings bring.
    """
    from fz.mini.world import vocabulary
    from fz.words import bare, is_punctuation, split

    known = [*vocabulary(), *map(bare, learned)]
    words = dict.fromkeys(bare(word) for prompt in prompts for word in split(prompt))
    strange = [word for word in words if word not in known and not all(map(is_punctuation, word))]
    return [
        f"the miniature does not know {word!r}.{suggest(word, known)} --list-words tells what it knows."
        for word in strange
    ]
