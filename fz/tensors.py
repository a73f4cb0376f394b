"""How are tensors written to a file, whole or not at all?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fz.whole import atomic, unwritten


def write_pt(path: Path, content: Any, what: str = "out") -> None:
    """PyTorch's format: the same bytes for the same content. what: the option that chose the place. Raises FzError
    where there is no room for it.
    """
    with atomic(path, what) as part, open(part, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # PyTorch's, of a write that failed
            raise unwritten(what, path, error) from None


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None, what: str = "out"
) -> None:
    """what: the option that chose the place. Raises FzError where there is no room for it."""
    with atomic(path, what) as part:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata=metadata)
        except SafetensorError as error:
            raise unwritten(what, path, error) from None
