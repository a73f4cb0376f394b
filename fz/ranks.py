"""The processes that torchrun started for one clip: which frames are whose, and what is given to whom?

Everything is given point to point, by NCCL between GPUs and by gloo between CPUs, and counted. `Alone` is one process,
which has all frames and gives nothing.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fz.errors import FzError

Shape = Sequence[int]


class Alone:
    """One process. given: the bytes that this one gave to others, of tensors that cross frames."""

    rank, world, given = 0, 1, 0

    @property
    def leads(self) -> bool:
        """Does this process read and write what all share?"""
        return self.rank == 0

    def blocks(self, frames: int) -> list[range]:
        """The frames of each process, in a row, as many as the others' or one more. Raises FzError for too few."""
        if frames < self.world:
            raise FzError(f"shard: got {frames} frames for {self.world} processes, expected at least one for each.")
        ends = [frames * r // self.world for r in range(self.world + 1)]
        return [range(a, b) for a, b in zip(ends, ends[1:], strict=False)]

    def own(self, frames: int) -> slice:
        block = self.blocks(frames)[self.rank]
        return slice(block.start, block.stop)

    def swap(self, out: Mapping[int, Tensor], shapes: Mapping[int, Shape], like: Tensor) -> dict[int, Tensor]:
        """Give `out[r]` to process r, and get what it gives, of `shapes[r]`, in the dtype of `like`. All processes call
        it together.
        """
        return {}

    def gather(self, x: Tensor, frames: int, dim: int = 0) -> Tensor:
        """All frames of what each process has of its own, side by side."""
        if self.world == 1:
            return x
        shape = list(x.shape)
        shapes = {}
        for r, block in enumerate(self.blocks(frames)):
            if r != self.rank:
                shapes[r] = [*shape[:dim], len(block), *shape[dim + 1 :]]
        parts = self.swap(dict.fromkeys(shapes, x), shapes, x) | {self.rank: x}
        return torch.cat([parts[r] for r in range(self.world)], dim)

    def sum(self, x: Tensor) -> Tensor:
        """The sum of everybody's, in the same order everywhere: the same bits."""
        others = [r for r in range(self.world) if r != self.rank]
        parts = self.swap(dict.fromkeys(others, x), dict.fromkeys(others, x.shape), x) | {self.rank: x}
        return torch.stack([parts[r] for r in range(self.world)]).sum(0)

    def agree(self, value: Any) -> Any:
        """The first process's value, in all."""
        return value

    def first(self, work: Callable[[], Any]) -> Any:
        """What `work` gives in the first process; None in others, which get its FzError, too."""
        return work()

    def total(self, number: int) -> int:
        """The sum of everybody's number."""
        return number

    def close(self) -> None:
        """No more is given or got."""


def numbers_of_torchrun(what: str) -> tuple[int, int, int]:
    """Which process is this, of how many, and which of this machine's: 0, 1, 0 without torchrun. Raises FzError, which
    begins with `what`, for numbers that cannot be.
    """
    usual = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    given = [os.environ.get(name, number) for name, number in usual.items()]
    numbers = all(re.fullmatch(r"\d{1,9}", text, re.ASCII) for text in given)
    rank, world, local = (int(text) if numbers else 0 for text in given)
    if not numbers or rank >= world or (world > 1 and "RANK" not in os.environ):
        got = ", ".join(f"{name} {os.environ.get(name, 'not set')[:20]}" for name in usual)
        raise FzError(
            f"{what}: got {got} in the environment, expected a RANK from 0 to WORLD_SIZE - 1. Start it by torchrun, or "
            "unset them."
        )
    return rank, world, local


class Elsewhere(FzError):
    """What was wrong in the first process, which says it."""


class Ranks(Alone):
    """This process of those that torchrun started. Raises FzError where it did not."""

    def __init__(self, device: torch.device):
        if "RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
            raise FzError("shard: got one process. Start several by torchrun --nproc-per-node N -m fz.run.")
        _, _, local = numbers_of_torchrun("shard")
        if device.type not in ("cpu", "cuda"):
            raise FzError(f"shard: got device {device.type}, expected cpu or cuda. Pass --device cpu.")
        if device.type == "cuda":
            torch.cuda.set_device(local % torch.cuda.device_count())
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        self.rank, self.world, self.device, self.given = dist.get_rank(), dist.get_world_size(), device, 0

    def swap(self, out: Mapping[int, Tensor], shapes: Mapping[int, Shape], like: Tensor) -> dict[int, Tensor]:
        got = {r: torch.empty(tuple(shape), dtype=like.dtype, device=like.device) for r, shape in shapes.items()}
        # what is given has to live until it has arrived
        given = {r: x.contiguous() for r, x in out.items()}
        sends = [dist.P2POp(dist.isend, x, r) for r, x in given.items() if x.numel()]
        receives = [dist.P2POp(dist.irecv, x, r) for r, x in got.items() if x.numel()]
        if sends or receives:
            for request in dist.batch_isend_irecv([*sends, *receives]):
                request.wait()
        self.given += sum(x.numel() * x.element_size() for x in given.values())
        return got

    def agree(self, value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, 0, device=self.device)
        return box[0]

    def first(self, work: Callable[[], Any]) -> Any:
        if not self.leads:
            if (line := self.agree(None)) is not None:
                raise Elsewhere(line)
            return None
        try:
            result = work()
        except FzError as error:
            self.agree(str(error))
            raise
        self.agree(None)
        return result

    def total(self, number: int) -> int:
        numbers = [0] * self.world
        dist.all_gather_object(numbers, number)
        return sum(numbers)

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
