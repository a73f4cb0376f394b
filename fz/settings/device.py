"""Which devices may a setting name on this machine, as far as is known without torch?"""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

from fz.errors import FzError


def check_device(name: str) -> None:
    """Raises FzError for a GPU where torch was built without any."""
    built = cuda_of_torch()
    there = {"cuda": built is not False, "mps": sys.platform == "darwin"}
    if not there.get(name.partition(":")[0], True):
        raise FzError(f"device: got {name}, which this machine or this PyTorch does not have. There is: cpu.")


def cuda_of_torch() -> bool | None:
    """Whether torch was built for GPUs of NVIDIA or AMD, by its version file; None where that does not say."""
    spec = find_spec("torch")
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8") if spec and spec.origin else ""
    except OSError:
        return None
    found = re.findall(r"^(?:cuda|hip)\b[^=\n]*=\s*(\S+)", text, re.MULTILINE)
    return any(value != "None" for value in found) if found else None
