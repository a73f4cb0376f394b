"""Stages 2 and 3 of `bench.gpu`: are the kernels right on this GPU, and are they faster than what else there is?

Errors are against float64, at most twice those of maps in the operands' dtype; every case runs twice, to the same bits;
what a kernel leaves unwritten is NaN. Rivals: SDPA by each backend that can be forced, keys laid side by side
beforehand; where rows are fused, two of them and a blend; one attention of rows that are sorted by the mask (varlen).
"""

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.attention_ways import anchored, disc
from bench.gpu_run import Row, reason_of
from fz.kernels import reference, rows, torch_ops, triton_norm, triton_ops
from fz.kernels.triton_tiles import Tiles, capability_of, self_tiles
from fz.memory.machine import pick_device

WORDS = 77
SAMPLED = 128  # rows of a frame that are compared where a frame has many
INDICES = {"own, mid": [[0, 1], [1, 1], [2, 1]], "mid": [[1], [1], [1]], "three": [[0, 1, 0], [0, 1, 2], [2, 2, 2]]}
MASKS = ("plain", "no mask", "none", "all", "random", "disc")


def error(x: Tensor, exact: Tensor) -> float:
    return ((x.double() - exact).norm() / exact.norm()).item()


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """New tensors begin as NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def up(x: object) -> object:
    return x.double() if torch.is_tensor(x) and x.is_floating_point() else x


def compared(name: str, function: str, args: tuple, options: dict, chosen: Tensor | None = None) -> Row:
    """A row: the kernel's error and that of maps, whether both runs are equal, and whether all of it is right.

    chosen: query rows that are compared, all if None.
    """
    cut = lambda x: x if chosen is None else x[:, :, chosen]  # noqa: E731
    q, *others = args
    few = {k: v for k, v in options.items() if v is not None}
    if chosen is not None:
        few |= {k: few[k][:, chosen] for k in ("q_src", "mask") if k in few}
    with poisoned():
        got, again = (getattr(triton_ops, function)(*args, **options) for _ in range(2))
    exact = getattr(reference, function)(*map(up, (cut(q), *others)), **{k: up(v) for k, v in few.items()})
    maps = getattr(reference, function)(cut(q), *others, **few)
    pairs = [(got, again, exact, maps)] if torch.is_tensor(got) else list(zip(got, again, exact, maps, strict=True))
    pairs = [p for p in pairs if p[0] is not None]
    row: Row = {"case": name, "equal": all(torch.equal(a, b) for a, b, _, _ in pairs), "error": 0.0, "maps": 0.0}
    row["right"] = row["equal"]
    for i, (a, _, e, m) in enumerate(pairs):
        found, allowed = error(cut(a) if i == 0 else a, e), max(2 * error(m, e), 1e-6 if i else 0)
        row["right"] = row["right"] and found <= allowed  # NaN compares false
        row |= {"error": max(row["error"], found), "maps": max(row["maps"], allowed / 2)}
    return row


def self_case(d: int, tokens: int, dtype: torch.dtype, pattern: str, index: str, device: torch.device, keep: str = ""):
    """Arguments and options; q, k, v are slices of one projection."""
    table = torch.tensor(INDICES[index])
    f = len(table)
    q, k, v = torch.randn(2, f, tokens, 3, 2, d, device=device).to(dtype).unbind(3)
    q_src, k_src = torch.randn(f, tokens, 2, 2, d, device=device).to(dtype).unbind(2)
    mask = {"none": torch.zeros(f, tokens), "all": torch.ones(f, tokens), "random": torch.rand(f, tokens) > 0.5,
            "disc": disc(f, tokens)}.get(pattern)  # fmt: skip
    options = {} if pattern == "plain" else {"q_src": q_src, "k_src": k_src, "mask": None}
    if mask is not None:
        options["mask"] = mask.bool().to(device)
    elif pattern == "no mask":
        q, k = q[:-1], k[:-1]
    if keep:
        options["key_mask"] = torch.rand(2, f, tokens, device=device) > 0.3
        options["key_mask"][1, 0] = False  # a frame that nobody sees
    if keep == "fewer queries":
        q, table = q[:, 1:], table[1:]
        for name in ("q_src", "mask"):
            if options.get(name) is not None:
                options[name] = options[name][1:]
    return (q, k, v, table), options


def cross_case(d: int, tokens: int, dtype: torch.dtype, form: str, device: torch.device):
    q = torch.randn(2, 2, tokens, 2, d, device=device).to(dtype)
    k, v = torch.randn(2, WORDS, 2, 2, d, device=device).to(dtype).unbind(2)
    options: dict[str, object] = {"map_branch": 0 if "map" in form else None}
    if "plain" not in form:
        options["q_src"] = torch.randn(2, tokens, 2, d, device=device).to(dtype)
        options["k_src"], options["v_src"] = torch.randn(WORDS, 2, 2, d, device=device).to(dtype).unbind(1)
    if "weights" in form:
        options["map_weights"] = (torch.rand(WORDS, 3, device=device) > 0.9).to(dtype)
    return (q[:-1] if "source" in form else q, k, v), options


def norm_case(
    name: str, dtype: torch.dtype, frames: int, timed: bool, silu: bool, device: torch.device, small: bool
) -> Row:
    c, side = (32, 4) if small else (320, 32)
    x = (torch.randn(4, c, side, side, device=device) + 30).to(dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, c, device=device).to(dtype)
    time_ = torch.randn(4 // frames, c, device=device).to(dtype).repeat_interleave(frames, 0) if timed else None
    args, options = (frames, 8, weight, bias, 1e-5), {"time": time_, "silu": silu}
    with poisoned():
        got, again = (triton_norm.group_norm(x.clone(), *args, **options) for _ in range(2))
    exact = reference.group_norm(up(x), *map(up, args), time=up(time_), silu=silu)
    found, maps = error(got, exact), error(reference.group_norm(x, *args, **options), exact)
    return {"case": name, "equal": torch.equal(got, again), "error": found, "maps": maps,
            "right": torch.equal(got, again) and found <= max(2 * maps, 1e-6)}  # fmt: skip


def cases(small: bool, device: torch.device) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Every comparison and its name, the most telling ones first."""
    sizes = ((40, 16), (80, 9)) if small else ((40, 4096), (80, 1024), (160, 256), (160, 64), (64, 1000), (8, 63))
    dtypes = (torch.float16,) if small else (torch.float16, torch.bfloat16, torch.float32)
    for dtype in dtypes:
        for d, tokens in sizes:
            chosen = torch.arange(0, tokens, tokens // SAMPLED, device=device) if tokens > 1024 else None
            # all masks, tables and hidden keys once each rather than their product
            plans = [(p, "own, mid", "") for p in MASKS] + [("random", index, "") for index in ("mid", "three")]
            plans += [("random", "three", "hidden"), ("plain", "own, mid", "fewer queries")]
            for pattern, index, keep in plans if not small else plans[::3]:
                name = f"self D{d} N{tokens} {dtype} {pattern}, {index}, {keep or 'all keys'}".replace("torch.", "")
                case = (d, tokens, dtype, pattern, index, device, keep)
                yield name, lambda n=name, c=case, r=chosen: compared(n, "self_attention", *self_case(*c), r)
            for form in ("plain", "plain, map", "fused", "fused, map, weights", "source only"):
                name = f"cross D{d} N{tokens} {dtype} {form}".replace("torch.", "")
                case = (d, min(tokens, 1024), dtype, form, device)
                yield name, lambda n=name, c=case: compared(n, "cross_attention", *cross_case(*c))
        for frames in (2, 1):
            for timed, silu in ((False, False), (True, True)):
                name = f"norm {dtype}".replace("torch.", "") + f" frames {frames} time {timed} silu {silu}"
                yield name, lambda a=(name, dtype, frames, timed, silu): norm_case(*a, device, small)


def check(device: torch.device, small: bool, until: float) -> Iterator[Row]:
    """A row of each case that there was time for; a case that raises is wrong."""
    for name, case in cases(small, device):
        if time.monotonic() > until:
            yield {"case": "the rest", "skipped": True, "right": None}
            return
        try:
            yield case()
        except Exception as reason:  # whatever a kernel may raise, an illegal address of memory among it
            yield {"case": name, "right": False, "raised": reason_of(reason)}


def backends() -> dict[str, object]:
    from torch.nn.attention import SDPBackend

    return {b.name: b for b in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION,
                                SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)}  # fmt: skip


def forced(backend: object, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, N, Nh, D) by one backend of scaled_dot_product_attention."""
    from torch.nn.attention import sdpa_kernel

    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def sorted_rows(q: Tensor, k: Tensor, v: Tensor, q_src: Tensor, k_src: Tensor, mask: Tensor) -> Callable[[], Tensor]:
    """One varlen attention: each frame is two sequences, its edited rows and its kept ones. All (F, …)."""
    from torch.nn.attention.varlen import varlen_attn

    order, edited = rows.pack_rows(mask)
    f, n = mask.shape
    lengths = torch.stack([edited, n - edited], 1).flatten()
    starts = F.pad(lengths.cumsum(0), (1, 0)).int()
    keys = torch.arange(2 * f + 1, device=q.device, dtype=torch.int32) * k.shape[1]
    both_k, both_v = torch.stack([k, k_src], 1).flatten(0, 2), torch.stack([v, v], 1).flatten(0, 2)
    index = order.long()[:, :, None, None].expand(q.shape)
    kept = mask.gather(1, order.long())[:, :, None, None]

    def run() -> Tensor:
        packed = torch.where(kept, q.gather(1, index), q_src.gather(1, index)).flatten(0, 1)
        out = varlen_attn(packed, both_k, both_v, starts, keys, n, k.shape[1]).unflatten(0, (f, n))
        return torch.empty_like(out).scatter_(1, index, out)

    return run


def rivals(x: tuple[Tensor, ...], table: Tensor, mask: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Ways to (F, N, Nh, D), fused: x are q, k, v, q_src, k_src of the branch. Laying out beforehand is free."""
    q, k, v, q_src, k_src = x
    k, v, k_src = (anchored(o, table) for o in (k, v, k_src))
    ways: dict[str, Callable[[], Tensor]] = {}
    for name, backend in backends().items():
        ways[f"plain, {name}"] = lambda b=backend: forced(b, q, k, v)
        ways[f"fused, two {name} + blend"] = lambda b=backend: torch.where(
            mask[:, :, None, None], forced(b, q, k, v), forced(b, q_src, k_src, v)
        )
    for name, make in (("fused, rows sorted, varlen", sorted_rows), ("fused, flex_attention", flexible)):
        try:
            ways[name] = make(q, k, v, q_src, k_src, mask)
        except Exception as reason:  # a PyTorch that lacks it, or has it otherwise
            ways[name] = functools.partial(again, reason)
    return ways


def again(reason: Exception) -> NoReturn:
    raise reason


def flexible(q: Tensor, k: Tensor, v: Tensor, q_src: Tensor, k_src: Tensor, mask: Tensor) -> Callable[[], Tensor]:
    """flex_attention of blended queries over [edit; source] keys, of which a row sees one half; compiled on a GPU."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    f, n = mask.shape
    keys = k.shape[1]

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j < keys) == mask[b, i]

    blocks = create_block_mask(sees, f, None, n, 2 * keys, device=q.device)
    both_k, both_v = torch.cat([k, k_src], 1).transpose(1, 2), torch.cat([v, v], 1).transpose(1, 2)
    attend = torch.compile(flex_attention) if q.is_cuda else flex_attention

    def run() -> Tensor:
        blended = torch.where(mask[:, :, None, None], q, q_src).transpose(1, 2)
        return attend(blended, both_k, both_v, block_mask=blocks).transpose(1, 2)

    return run


def in_turn(ways: list[Callable[[], object]]) -> Callable[[], object]:
    """Each call is the next one of them: of other operands, so that none is found in the cache."""
    following = itertools.cycle(ways)
    return lambda: next(following)()


def ours(x: tuple[Tensor, ...], table: Tensor, mask: Tensor) -> dict[str, Callable[[], Tensor]]:
    """This project's kernels, by the table's tiles and by others that compiled well."""
    q, k, v, q_src, k_src = x
    device, d = q.device, q.shape[-1]
    fused = {"q_src": q_src, "k_src": k_src, "mask": mask}
    chosen = self_tiles(d, v.dtype, capability_of(device), False)
    others = {"table": None, "table, not specialised": replace(self_tiles(d, v.dtype, capability_of(device), True))}
    if chosen.tma:
        stages = replace(others["table, not specialised"], stages=5 - others["table, not specialised"].stages)
        others |= {"other stages": stages, "pointers": Tiles(128, 64, 8, 3)}
    ways = {}
    for name, tiles in others.items():
        ways[f"plain, this ({name})"] = lambda t=tiles: triton_ops.self_attention(
            q[None], k[None], v[None], table, tiles=t
        )[0]
        if name != "table, not specialised":
            ways[f"fused, this ({name})"] = lambda t=tiles: triton_ops.self_attention(
                q[None], k[None], v[None], table, **fused, tiles=t
            )[0]
    return ways


def attention(device: torch.device, small: bool, until: float, clock: Callable[..., float]) -> Iterator[Row]:
    """Milliseconds of every way at every self site, fused and plain; and of cross-attention, with SDPA beside it."""
    sites = ((40, 16),) if small else ((40, 4096), (80, 1024), (160, 256), (160, 64))
    frames, heads = (2, 2) if small else (8, 8)
    for d, n in sites:
        dtype = torch.float16
        table = torch.tensor([[i, (frames - 1) // 2] for i in range(frames)])
        mask = disc(frames, n).to(device)
        several: dict[str, list[Callable[[], object]]] = {}
        for _ in range(1 if small else 3):
            x = tuple(torch.randn(frames, n, heads, d, device=device).to(dtype) for _ in range(5))
            k, v = (torch.randn(1, WORDS, heads, d, device=device).to(dtype) for _ in range(2))
            q = x[0][None]
            ways = ours(x, table, mask) | rivals(x, table.to(device), mask)
            ways |= {"cross, this": lambda q=q, k=k, v=v: triton_ops.cross_attention(q, k, v)[0],
                     "cross, SDPA": lambda q=q, k=k, v=v: torch_ops.cross_attention(q, k, v)[0]}  # fmt: skip
            for name, way in ways.items():
                several.setdefault(name, []).append(way)
        # the same again, at the end: what differs between the two is noise
        several["plain, this (table), again"] = several["plain, this (table)"]
        for name, way in several.items():
            row: Row = {"site": f"D{d} N{n}", "way": name}
            if time.monotonic() > until:
                row["skipped"] = True
            else:
                try:
                    row["ms"] = clock(in_turn(way))
                except Exception as reason:  # the next way is still worth its seconds
                    row["failed" if "this" in name else "cannot"] = reason_of(reason)
            yield row


@torch.no_grad()
def check_small() -> list[Row]:
    """All comparisons in small, on the GPU where there is one."""
    return list(check(pick_device("cuda" if torch.cuda.is_available() else "cpu"), True, time.monotonic() + 600))
