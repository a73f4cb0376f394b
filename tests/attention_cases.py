"""Operands of attention in every shape; the comparison with float64: at most twice the error of maps in their dtype."""

import torch

from fz.kernels import reference, torch_ops, triton_ops

VERSIONS = {"torch": torch_ops, "triton": triton_ops}
WORDS = 77
# heads' sizes of SD v1.4, tokens scaled down, with tails of every kind; 8 and 64 are the miniature's and SD v2's
SITES = [(64, 40), (50, 40), (33, 80), (40, 160), (3, 160), (17, 8), (20, 64)]
SITE_IDS = [f"N{n}-D{d}" for n, d in SITES]
MASKS = ("no mask", "none", "all", "random", "one row", "blocks")
INDICES = {
    "mid": [[1], [1], [1]],
    "own and mid": [[0, 1], [1, 1], [2, 1]],
    "former and first": [[0, 0], [0, 0], [1, 0]],
    "three": [[0, 1, 0], [0, 1, 2], [2, 2, 2]],
}


def masks(pattern, frames, tokens):
    generator = torch.Generator().manual_seed(5)
    mask = torch.zeros(frames, tokens, dtype=torch.bool)
    if pattern == "all":
        mask[:] = True
    elif pattern == "random":
        mask = torch.rand(frames, tokens, generator=generator) > 0.5
    elif pattern == "one row":
        mask[1, tokens // 2] = True
    elif pattern == "blocks":
        mask[0, : tokens // 3] = True
        mask[2, tokens // 2 :] = True
    return None if pattern == "no mask" else mask


def operands(*shape, count, dtype, seed=0):
    """Slices of one projection, as a fused linear layer would give them: tokens further apart than heads are wide."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape[:-2], count, *shape[-2:], generator=generator, dtype=torch.float64).to(dtype)
    return x.unbind(-3)


def up(x):
    return x.double() if torch.is_tensor(x) and x.is_floating_point() else x


def error(x, exact):
    assert x.isfinite().all(), "something was not written"
    return ((x.double() - exact).norm() / exact.norm()).item()


def check(name, function, args, options, **launch):
    """A version has at most twice the error of maps in its dtype, against float64. launch: of its launcher."""
    exact, exact_map = getattr(reference, function)(*map(up, args), **{k: up(v) for k, v in options.items()}), None
    maps = getattr(reference, function)(*args, **options)
    got = getattr(VERSIONS[name], function)(*args, **options, **launch)
    if function == "cross_attention":
        (exact, exact_map), (maps, map_of_maps), (got, got_map) = exact, maps, got
    assert got.shape == exact.shape and got.dtype == args[2].dtype
    assert error(got, exact) <= 2 * error(maps, exact)
    if exact_map is not None:
        assert got_map.shape == exact_map.shape
        assert error(got_map, exact_map) <= max(2 * error(map_of_maps, exact_map), 1e-6)


def self_case(tokens, d, index="own and mid", pattern="random", dtype=torch.float32, keep=False, branches=2, heads=2):
    frames = torch.tensor(INDICES[index])
    f = len(frames)
    q, k, v = operands(branches, f, tokens, heads, d, count=3, dtype=dtype)
    q_src, k_src = operands(f, tokens, heads, d, count=2, dtype=dtype, seed=1)
    options = {"q_src": q_src, "k_src": k_src, "mask": masks(pattern, f, tokens)}
    if pattern == "plain":
        options = {}
    elif pattern == "no mask":
        q, k = q[:-1], k[:-1]
    if keep:
        options["key_mask"] = torch.rand(branches, f, tokens, generator=torch.Generator().manual_seed(6)) > 0.3
    return (q, k, v, frames), options


def cross_case(
    tokens, d, fused=True, edit=True, map_branch=None, words=None, dtype=torch.float32, heads=2, branches=2, frames=2
):
    (q,) = operands(branches, frames, tokens, heads, d, count=1, dtype=dtype)
    k, v = operands(branches, WORDS, heads, d, count=2, dtype=dtype, seed=1)
    options = {"map_branch": map_branch}
    if fused:
        (options["q_src"],) = operands(frames, tokens, heads, d, count=1, dtype=dtype, seed=2)
        options["k_src"], options["v_src"] = operands(WORDS, heads, d, count=2, dtype=dtype, seed=3)
    if words:
        options["map_weights"] = (torch.rand(WORDS, words, generator=torch.Generator().manual_seed(4)) > 0.9).to(dtype)
    return (q if edit else q[:-1], k, v), options
