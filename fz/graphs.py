"""`--graph`: how is a forward pass captured once, as a CUDA graph, and then replayed?

A replay launches a whole pass at once, where the host would launch its thousand kernels one by one. It is the same
kernels on the same addresses, so results are those of a pass that was not captured: what changes from step to step is
copied to where the captured pass reads it, and what it gives is copied out. A pass is captured when one like it, of the
same shapes, prompts and attention, comes for the second time; those of sdedit,
null-p2p, of pnp while it injects, and in chunks are not.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fz import kernels
from fz.attention import Plain, Recorder, StopForward
from fz.chunks import Chunks, results
from fz.crossing import OWN
from fz.fusion import Fuser
from fz.memory.free import free_memory, gb
from fz.model.layers import Alter, Attend, TextContext
from fz.model.swap import StandIn
from fz.model.unet import UNet
from fz.shard import Shard

# an edit's passes are of few kinds at a time: its own, the source's again, and before and after it others
MOST = 4
Run = Callable[[], Tensor | None]
Prompts = tuple[TextContext, TextContext | None]


def graphed(
    unet: UNet | Chunks | Shard,
    wanted: str,
    device: torch.device,
    offload: bool,
    reuses: bool,
    note: Callable[[str], None],
) -> "tuple[UNet | Chunks | Shard | Graphs, list[str]]":
    """The UNet as `--graph` wants it, and lines to be noted: 'auto', where graphs can be; 'on' says why they cannot;
    'off'. note: is told later, if capturing fails.
    """
    reason = cannot(unet, device, offload, reuses)
    if wanted == "off" or reason:
        return unet, [f"graph: left out, {reason}"] if wanted == "on" else []
    return Graphs(unet, note), ["graph: passes that come again are replayed as CUDA graphs; --graph off leaves it out"]


def cannot(unet: UNet | Chunks | Shard, device: torch.device, offload: bool, reuses: bool) -> str | None:
    """Why passes are not captured; None if they can be."""
    if device.type != "cuda":
        return f"on {device.type} there are no CUDA graphs"
    if kernels.choose(device) != "triton":
        return "attention without Triton's kernels asks the GPU for numbers"
    if not isinstance(unet, UNet):
        return "with --chunk and --shard passes differ"
    if offload:
        return "with --offload the model has no fixed place"
    if reuses:
        return "with --reuse a pass takes features from the one before"
    return None


@dataclass(frozen=True)
class Captured:
    """A captured pass: where it reads, the timestep last; its eps, unless it is broken off; what it recorded, as
    `results` has it.
    """

    replay: Callable[[], None]
    inputs: list[Tensor]
    eps: Tensor | None
    recorded: list[dict[str, Tensor | tuple[Tensor, ...]]]


class Graphs(StandIn):
    """Called as a UNet. The given one stays as it is, and runs what is not captured."""

    def __init__(self, unet: UNet, note: Callable[[str], None]):
        self.unet, self.config, self.note = unet, unet.config, note
        # a pass that was seen once has None and its prompts, which live as long as the key that names them
        self.passes: dict[tuple, tuple[Captured | None, Prompts]] = {}
        self.works = True

    @property
    def eager(self) -> UNet:
        """What runs layer by layer."""
        return self.unet

    def __call__(
        self,
        z: Tensor,
        t: int | Tensor,
        text: TextContext,
        attend: Attend = Plain(OWN),  # noqa: B008 (frozen)
        alter: Alter | None = None,
        **more: object,
    ) -> Tensor:
        """eps of z (B, F, 4, h, w), as `UNet.forward`."""
        given = operands(attend, self.unet.conv_in.weight)
        unknown = given is None or not isinstance(t, int) or alter or any(more.values())
        if unknown or torch.is_grad_enabled() or not self.works:
            return self.unet(z, t, text, attend, alter, **more)
        inputs, prompts = [z, *given], (text, getattr(attend, "source_text", None))
        key = (*map(id, prompts), constants(attend), *((x.shape, x.dtype) for x in inputs))
        seen = key in self.passes
        found, _ = self.passes.pop(key, (None, None))
        if seen and found is None:
            found = self.captured(inputs, t, text, attend)
        # the last one used is the last one to go
        self.passes[key] = found, prompts
        if len(self.passes) > MOST:
            del self.passes[next(iter(self.passes))]
        if found is None:
            return self.unet(z, t, text, attend)
        fill(found.inputs, inputs, t)
        found.replay()
        for mine, theirs in zip(results(attend), found.recorded, strict=True):
            mine |= {name: copied(x) for name, x in theirs.items()}
        if found.eps is None:
            raise StopForward
        return found.eps.clone()

    def captured(self, inputs: list[Tensor], t: int, text: TextContext, attend: Attend) -> Captured | None:
        """The pass, captured; None, said once, where CUDA or its memory do not let it be."""
        # of their own, never seen before: what is made of a mask once is then made within the graph
        static = [x.new_empty(x.shape) for x in inputs]
        timestep = torch.zeros((), dtype=torch.int64, device=inputs[0].device)
        inner = of_operands(attend, static[1:])

        def run() -> Tensor | None:
            try:
                return self.unet(static[0], timestep, text, inner)
            except StopForward:
                return None

        fill([*static, timestep], inputs, t)
        try:
            replay, eps = capture(run)
        except RuntimeError as reason:
            self.note(f"graph: left out, {str(reason).splitlines()[0][:160]}")
            self.works = False
            return None
        return Captured(replay, [*static, timestep], eps, results(inner))


def operands(attend: Attend, like: Tensor) -> list[Tensor] | None:
    """The tensors that a pass with this attention reads and that change from step to step; None for an attention that
    is not known here. like: has the device and dtype of the pass.
    """
    if isinstance(attend, (Plain, Recorder)):
        return []
    if not isinstance(attend, Fuser):
        return None
    masks = attend.masks or {}
    weights = attend.fusion.weights(like) if attend.fusion.fuses_cross else ()
    return [*(x for name in fused(attend) for x in attend.qk[name]), *(masks[s] for s in sorted(masks)), *weights]


def fused(attend: Fuser) -> list[str]:
    """The names of the sites whose kept queries and keys are read."""
    wanted = {2: attend.fusion.fuses_self, 1: attend.fusion.fuses_cross}
    return sorted(name for name, qk in attend.qk.items() if wanted[len(qk)])


def constants(attend: Plain | Recorder | Fuser) -> tuple:
    """All else that a pass with this attention depends on."""
    if isinstance(attend, Plain):
        return (attend.frame_index,)
    if isinstance(attend, Recorder):
        return attend.frame_index, attend.branch, attend.keep, attend.last
    fusion, masks = attend.fusion, attend.masks
    return (
        *(attend.frame_index, id(attend.source_text), attend.hides_object, attend.record_target),
        *(fusion.fuses_self, fusion.fuses_cross, fusion.edits_cross, masks and tuple(sorted(masks))),
        *fused(attend),
    )


def of_operands(attend: Plain | Recorder | Fuser, tensors: list[Tensor]) -> Plain | Recorder | Fuser:
    """The same attention, nothing recorded yet, of other `operands`."""
    if isinstance(attend, Plain):
        return attend
    if isinstance(attend, Recorder):
        return attend.fresh()
    left = iter(tensors)
    qk = {name: tuple(next(left) for _ in attend.qk[name]) for name in fused(attend)}
    masks = attend.masks and {stride: next(left) for stride in sorted(attend.masks)}
    fusion = attend.fusion.of_weights(*left) if attend.fusion.fuses_cross else attend.fusion
    return replace(attend, qk=qk, masks=masks, fusion=fusion)


def fill(places: list[Tensor], tensors: list[Tensor], t: int) -> None:
    """Copy tensors, and the timestep, to where a captured pass reads them."""
    kinds: dict[tuple, list[tuple[Tensor, Tensor]]] = {}
    for place, x in zip(places, tensors, strict=False):
        kinds.setdefault((x.dtype, x.is_contiguous()), []).append((place, x))
    # one launch for all of a kind
    for pairs in kinds.values():
        torch._foreach_copy_(*map(list, zip(*pairs, strict=True)))
    places[-1].fill_(t)


def copied(x: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    return tuple(map(copied, x)) if isinstance(x, tuple) else x.clone()


def capture(run: Run) -> tuple[Callable[[], None], Tensor | None]:
    """A pass as a graph: what replays it, and its eps. Raises RuntimeError where there is no memory for one."""
    torch.cuda.empty_cache()
    device = torch.device("cuda", torch.cuda.current_device())
    free, needed = free_memory(device), torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    # passes that are not captured, and the VAE, cannot use a graph's memory
    if free < 2 * needed:
        raise RuntimeError(f"a captured pass may take {gb(needed)} of its own, and {gb(free)} are free")
    graph = torch.cuda.CUDAGraph()
    # graphs share their memory: one runs at a time, and what it gives is copied at once
    with torch.cuda.graph(graph, pool=shared_memory()):
        eps = run()
    return graph.replay, eps


shared_memory = functools.cache(torch.cuda.graph_pool_handle)
