"""A GPU that is smaller than the run: models there only while they are used, queries and keys in RAM, copied beside the
computation.

Copies use pinned memory and a CUDA stream of their own. Without CUDA a module moves, or is there already, and tensors
stay what they are.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from fz.attention import QK
from fz.source import Store

CPU = torch.device("cpu")


@contextlib.contextmanager
def resident(module: nn.Module, device: torch.device, offload: bool) -> Iterator[None]:
    """The module on that device; afterwards in RAM again, if it is to be offloaded."""
    module.to(device)
    try:
        yield
    finally:
        if offload:
            module.to(CPU)
            if device.type == "cuda":
                # else the allocator keeps what the next model needs
                torch.cuda.empty_cache()


class Copier:
    """Copies of tensors to RAM and back, on a stream of their own where the device has streams.

    A copy has happened for whoever calls `ready` with what `to_ram` or `to_device` gave as its event.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def to_ram(self, operands: QK) -> tuple[QK, object]:
        """Copies in pinned memory, and the event after which they are whole. Without a stream: the tensors, in RAM."""
        if self.stream is None:
            return {name: tuple(x.to(CPU) for x in kept) for name, kept in operands.items()}, None
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        copies = {}
        with torch.cuda.stream(self.stream):
            for name, kept in operands.items():
                copies[name] = tuple(
                    torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True) for x in kept
                )
                for x in kept:
                    # the allocator must not give x away before the copy is done
                    x.record_stream(self.stream)
            return copies, self.stream.record_event()

    def to_device(self, operands: QK, written: object) -> tuple[QK, object]:
        """Copies on the device and the event after which they are whole. written: the event of `to_ram`."""
        if self.stream is None:
            return {name: tuple(x.to(self.device) for x in kept) for name, kept in operands.items()}, None
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(written)
            copies = {
                name: tuple(x.to(self.device, non_blocking=True) for x in kept) for name, kept in operands.items()
            }
            return copies, self.stream.record_event()

    def ready(self, operands: QK, event: object) -> QK:
        """The operands of `to_device`, once this thread's own stream may read them."""
        if self.stream is not None:
            here = torch.cuda.current_stream(self.device)
            here.wait_event(event)
            for kept in operands.values():
                for x in kept:
                    x.record_stream(here)
        return operands


class KeptInRam(Store):
    """Queries and keys in RAM while the model is on a GPU: written behind, and read one step ahead, from noisy to
    clean.
    """

    def __init__(self, timesteps: tuple[int, ...], copier: Copier):
        self.copier = copier
        self.following = dict(zip(timesteps, timesteps[1:], strict=False))
        self.steps: dict[int, tuple[QK, object]] = {}
        self.ahead: dict[int, tuple[QK, object]] = {}

    def put(self, t: int, operands: QK) -> None:
        self.steps[t] = self.copier.to_ram(operands)

    def has(self, t: int) -> bool:
        return t in self.steps

    def get(self, t: int) -> QK | None:
        if t not in self.steps:
            return None
        here = self.ahead.pop(t, None) or self.copier.to_device(*self.steps[t])
        # another edit begins at the noisiest step again: what was read ahead for the last one is of no use
        self.ahead.clear()
        if (following := self.following.get(t)) in self.steps:
            self.ahead[following] = self.copier.to_device(*self.steps[following])
        return self.copier.ready(*here)
