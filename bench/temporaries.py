"""What a function allocates: the tensors that its operators make, by operator, and how many bytes of them live at once.

Seen through PyTorch's dispatcher, so on any device, each tensor that PyTorch makes; not a kernel's own scratch space.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Made:
    """One new tensor: the operator that made it and its bytes."""

    operator: str
    bytes: int


class Temporaries(TorchDispatchMode):
    """Within this, every operator's new tensors are counted. made: in order; peak: bytes alive at once, at most."""

    def __init__(self):
        super().__init__()
        self.made: list[Made] = []
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {_storage(x)._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        self._alive = {key: (ref, size) for key, (ref, size) in self._alive.items() if not ref.expired()}
        for x in tree_leaves(result):
            # a view, or a result in place, is nothing new
            if (
                isinstance(x, torch.Tensor)
                and _storage(x)._cdata not in given
                and _storage(x)._cdata not in self._alive
            ):
                storage = _storage(x)
                self.made.append(Made(str(func), storage.nbytes()))
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result

    def largest(self) -> Made:
        return max(self.made, key=lambda made: made.bytes, default=Made("nothing", 0))


def _storage(x: torch.Tensor) -> torch.UntypedStorage:
    return x.untyped_storage()


def temporaries(run: Callable[[], object]) -> Temporaries:
    """What one call makes, its result included; not the first, which may measure or set up something."""
    run()
    with Temporaries() as counted:
        run()
    return counted
