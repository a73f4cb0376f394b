"""fz: FateZero (arXiv 2303.09535) in pure PyTorch: text-driven video editing by fusing attention.

    import fz

    editor = fz.load("sd-v1-4.ckpt")  # once; nothing: the bundled miniature
    clip = fz.read("jeep.mp4", frames=8, size=512)  # or an array, a tensor, a list of pictures
    inversion = editor.invert(clip, "a silver jeep on a road")
    result = inversion.edit("a red jeep on a road", kind="attribute", reweight={"red": 2})
    result.save("red.mp4")

`python -m fz.run` does the same from a command line. Importing fz imports nothing else: torch comes with the first name
that is used.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fz.clips.arrays import read as read
    from fz.clips.video import Video as Video
    from fz.editor import Editor as Editor
    from fz.editor import load as load
    from fz.errors import FzError as FzError
    from fz.inverted import InvertedClip as InvertedClip
    from fz.results.result import Edited as Edited

# `python -m fz.COMMAND` imports this first, and then for seconds what the command needs
if sys.argv[:1] == ["-m"]:
    from fz.shell import guard_imports

    guard_imports()

__version__ = "0.1.0"
__all__ = ["Edited", "Editor", "FzError", "InvertedClip", "Video", "load", "read"]

# kernels/ and weights/ stand beside fz/ in a checkout and in it once installed (setup.py): a checkout runs uninstalled,
# too
if not (Path(__file__).parent / "kernels").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

HOMES = {
    "Edited": "fz.results.result",
    "Editor": "fz.editor",
    "FzError": "fz.errors",
    "InvertedClip": "fz.inverted",
    "Video": "fz.clips.video",
    "load": "fz.editor",
    "read": "fz.clips.arrays",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'fz' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
