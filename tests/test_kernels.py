"""Attention kernels against the float64 reference, which builds the maps: at most twice the error of maps in a dtype.

The Triton kernels run under triton's interpreter, on sites of SD v1.4 with fewer tokens; outputs begin as NaN.
"""

import math

import pytest
import torch

pytest.importorskip("triton")

from attention_cases import INDICES, MASKS, SITE_IDS, SITES, VERSIONS, check, cross_case, error, operands, self_case, up  # noqa: E402

from fz import kernels  # noqa: E402
from fz.errors import FzError  # noqa: E402
from fz.kernels import reference, torch_ops, triton_cross, triton_cross_fp32, triton_self, triton_tiles  # noqa: E402

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize(("tokens", "d"), SITES, ids=SITE_IDS)
def test_self_attention_at_sites(name, tokens, d):
    check(name, "self_attention", *self_case(tokens, d))


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize("pattern", ("plain", *MASKS))
def test_self_attention_masks(name, pattern):
    check(name, "self_attention", *self_case(70, 40, pattern=pattern))


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("keep", (False, True), ids=("all keys", "key mask"))
def test_self_attention_frames(name, index, keep):
    check(name, "self_attention", *self_case(18, 40, index=index, keep=keep))


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize(("tokens", "d"), [(50, 40), (33, 80), (40, 160), (17, 8)])
def test_self_attention_half(name, dtype, tokens, d):
    check(name, "self_attention", *self_case(tokens, d, dtype=dtype))


@pytest.mark.slow
@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32), ids=str)
@pytest.mark.parametrize("pattern", ("plain", *MASKS))
@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize(("tokens", "d"), [(256, 40), (144, 80), (130, 160)])
def test_self_attention_everything(name, dtype, pattern, index, tokens, d):
    check(name, "self_attention", *self_case(tokens, d, index, pattern, dtype, keep=index == "three"))


@pytest.mark.parametrize("name", VERSIONS)
def test_rows_without_keys_are_zero(name):
    args, options = self_case(18, 40)
    options["key_mask"] = torch.ones(2, 3, 18, dtype=torch.bool)
    options["key_mask"][1, [0, 1]] = False
    out = VERSIONS[name].self_attention(*args, **options)
    # frames 0 and 1 of the last branch read frames 0 and 1 only
    assert not out[1, :2].any() and out[1, 2].any() and out[0].any()


@pytest.mark.parametrize("name", VERSIONS)
def test_doubling_an_anchor_is_concatenating_it_twice(name):
    (q, k, v, _), _ = self_case(18, 40)
    table = torch.tensor([[0, 1, 1]] * 3)
    got = VERSIONS[name].self_attention(q, k, v, table)
    keys, values = (torch.cat([x[:, 0], x[:, 1], x[:, 1]], 1).double().transpose(1, 2) for x in (k, v))
    for i in range(3):
        attended = torch.nn.functional.scaled_dot_product_attention(q[:, i].double().transpose(1, 2), keys, values)
        assert error(got[:, i], attended.transpose(1, 2)) < 1e-6


@pytest.mark.parametrize("name", VERSIONS)
def test_identities(name):
    """M = 1 is plain editing, M = 0 the source's attention on the edit's values, to the bit for the same rows."""
    (q, k, v, frames), options = self_case(50, 40, pattern="all")
    run = VERSIONS[name].self_attention
    assert torch.equal(run(q, k, v, frames, **options), run(q, k, v, frames))
    kept = run(q, k, v, frames, **{**options, "mask": torch.zeros_like(options["mask"])})
    none = run(q[:-1], k[:-1], v, frames, **{**options, "mask": None})
    source = run(options["q_src"][None], options["k_src"][None], v[-1:], frames)
    assert torch.equal(kept, none) and torch.equal(kept[-1:], source)


@pytest.mark.parametrize("name", VERSIONS)
def test_sources_in_another_dtype(name):
    args, options = self_case(18, 40)
    exact = reference.self_attention(*map(up, args), **{k: up(v) for k, v in options.items()})
    options = {k: v.half() if k.endswith("src") else v for k, v in options.items()}
    out = VERSIONS[name].self_attention(*args, **options)
    assert out.dtype == torch.float32 and error(out, exact) < 1e-3


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize(("tokens", "d"), SITES, ids=SITE_IDS)
def test_cross_attention_at_sites(name, tokens, d):
    check(name, "cross_attention", *cross_case(tokens, d))


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize(
    "options",
    [{"fused": False}, {"edit": False}, {"fused": False, "map_branch": 0}, {"map_branch": -1, "words": 3},
     {"edit": False, "map_branch": 0}],
    ids=("plain", "source only", "plain, map", "fused, map of words", "source only, map"),
)  # fmt: skip
def test_cross_attention_parts(name, dtype, options):
    check(name, "cross_attention", *cross_case(35, 40, dtype=dtype, **options))


@pytest.mark.parametrize("name", VERSIONS)
def test_cross_attention_without_edit_equals_zero_values(name):
    (q, k, v), options = cross_case(35, 40)
    v[-1] = 0
    run = VERSIONS[name].cross_attention
    assert error(run(q[:-1], k, v, **options)[0], run(q, k, v, **options)[0].double()) < 1e-6


class Counted:
    """In a kernel's place: counts the programs it would be launched with."""

    def __init__(self):
        self.programs = 0

    def __getitem__(self, grid):
        self.programs += math.prod(grid)
        return lambda *args, **kwargs: None


@pytest.mark.parametrize("pattern", MASKS)
def test_a_mixed_mask_launches_one_tile_more_a_frame_and_head(monkeypatch, pattern):
    counted = []
    for of in ("plain", pattern):
        args, options = self_case(200, 40, pattern=of, branches=2, heads=3)
        monkeypatch.setattr(triton_self, "self_attention_kernel", Counted())
        triton_self.self_attention(*args, **options)
        counted.append(triton_self.self_attention_kernel.programs)
    frames, heads = 3, 3
    assert counted[0] == 2 * frames * heads * -(-200 // triton_tiles.self_tiles(40, torch.float32, 80, True).block_q)
    assert counted[1] - counted[0] <= frames * heads
    if pattern == "no mask":
        assert counted[1] == counted[0]


def test_the_map_comes_from_the_same_launch(monkeypatch):
    counted = Counted()
    monkeypatch.setattr(triton_cross_fp32, "cross_attention_fp32_kernel", counted)
    (q, k, v), options = cross_case(35, 40, map_branch=0)
    triton_cross.cross_attention(q, k, v, **options)
    # a program for each tile of a frame, branch and head
    assert counted.programs == 2 * 2 * 2 * -(-35 // triton_cross_fp32.ROWS)


def allocations(run) -> list[int]:
    """Bytes of every allocation that torch makes during a call, those inside operators included."""
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    return [e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]" and e.nbytes() > 0]


@pytest.mark.parametrize("index", ([0, "mid"], [-1, "first"], ["mid"]), ids=str)
@pytest.mark.parametrize("pattern", ("plain", "none", "random", "no mask"))
def test_torch_makes_no_temporary_larger_than_an_operand(index, pattern):
    from fz.frames import FrameIndex
    from fz.model.layers import Site

    f, tokens, heads, d = 8, 256, 8, 40
    frames = FrameIndex(tuple(index)).table(Site("x", "self", 2, heads * d), f)
    q, k, v = operands(2, f, tokens, heads, d, count=3, dtype=torch.float32)
    q_src, k_src = operands(f, tokens, heads, d, count=2, dtype=torch.float32, seed=1)
    mask = torch.rand(f, tokens) > 0.5 if pattern == "random" else torch.zeros(f, tokens, dtype=torch.bool)
    options = (
        {} if pattern == "plain" else {"q_src": q_src, "k_src": k_src, "mask": None if pattern == "no mask" else mask}
    )
    made = allocations(lambda: torch_ops.self_attention(q, k, v, frames, **options))
    operand = v.numel() * v.element_size()
    assert max(made) <= operand


def test_choice(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.delenv("FZ_KERNELS", raising=False)
    assert kernels.choose(cpu) == "torch"
    args, options = self_case(4, 8)
    for name in kernels.VERSIONS:
        monkeypatch.setenv("FZ_KERNELS", name)
        kernels.self_attention(*args, **options)
        assert kernels.which() == name
    # gradients: no kernel has a backward pass
    kernels.self_attention(args[0].clone().requires_grad_(), *args[1:], **options)
    assert kernels.which() == "torch"
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(FzError, match="Triton needs a GPU"):
        kernels.choose(cpu)
    monkeypatch.setenv("FZ_KERNELS", "tirton")
    with pytest.raises(FzError, match="Did you mean 'triton'"):
        kernels.choose(cpu)
    monkeypatch.setenv("FZ_KERNELS", "triton")
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FzError, match="triton is not installed"):
        kernels.choose(cpu)


@pytest.mark.parametrize(("device", "hip", "expected"), [("cuda", None, "triton"), ("cuda", "6.4", "torch"),
                                                         ("mps", None, "torch"), ("cpu", None, "torch")])  # fmt: skip
def test_triton_is_taken_on_nvidias_gpus_alone(monkeypatch, device, hip, expected):
    monkeypatch.delenv("FZ_KERNELS", raising=False)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert kernels.choose(torch.device(device)) == expected


def test_triton_that_is_too_old_is_not_taken(monkeypatch):
    import triton

    monkeypatch.setattr(triton, "__version__", "3.1.0")
    monkeypatch.setenv("FZ_KERNELS", "triton")
    with pytest.raises(FzError, match="triton 3.1.0 is older than 3.2"):
        kernels.choose(torch.device("cpu"))
