"""GroupNorm of clips and frames, with time embedding and SiLU: every version against float64, the bits of the CPU."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from attention_cases import error  # noqa: E402
from random_weights import randomize  # noqa: E402

from fz import kernels  # noqa: E402
from fz.kernels import reference, torch_ops, triton_norm, triton_ops  # noqa: E402
from fz.model.layers import ResnetBlock  # noqa: E402

pytestmark = pytest.mark.usefixtures("poisoned")

FRAMES = 3
SHAPES = {"C64": (64, 5, 7), "C320": (320, 1, 2), "one pixel": (32, 1, 1)}
FORMS = {"norm": (False, False), "silu": (False, True), "time": (True, False), "time, silu": (True, True)}


def case(shape, dtype, over_clip=True, time=False, mean=0.0, std=1.0):
    generator = torch.Generator().manual_seed(0)

    def numbers(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    c = shape[0]
    x = (numbers(2 * FRAMES, *shape) * std + mean).to(dtype).contiguous(memory_format=torch.channels_last)
    frames = FRAMES if over_clip else 1
    args = (x, frames, c // 8 if c % 8 == 0 else 1, numbers(c).to(dtype), numbers(c).to(dtype), 1e-5)
    return args, {"time": numbers(2, c).repeat_interleave(FRAMES, 0).to(dtype) if time else None}


def run(ops, args, options):
    """With operands of its own: x may be written."""
    return ops.group_norm(args[0].clone(memory_format=torch.channels_last), *args[1:], **options)


def exact(args, options):
    args = [a.double() if torch.is_tensor(a) else a for a in args]
    options = {k: v.double() if torch.is_tensor(v) else v for k, v in options.items()}
    x, frames, groups, weight, bias, eps = args
    if options["time"] is not None:
        x = x + options["time"][:, :, None, None]
    y = F.group_norm(x.unflatten(0, (-1, frames)).transpose(1, 2), groups, weight, bias, eps)
    y = y.transpose(1, 2).flatten(0, 1)
    return F.silu(y) if options["silu"] else y


@pytest.mark.parametrize("ops", (reference, torch_ops, triton_ops), ids=("reference", "torch", "triton"))
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("over_clip", (True, False), ids=("clip", "frame"))
@pytest.mark.parametrize("shape", SHAPES)
def test_float32(ops, shape, over_clip, form):
    time, silu = FORMS[form]
    args, options = case(SHAPES[shape], torch.float32, over_clip, time)
    got = run(ops, args, options | {"silu": silu})
    assert got.dtype == torch.float32 and got.is_contiguous(memory_format=torch.channels_last)
    assert error(got, exact(args, options | {"silu": silu})) < 1e-6


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32), ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_a_large_mean_costs_no_more_than_its_rounding(dtype, form):
    """Mean over deviation 30: the sum of squares less the squared sum would lose three digits."""
    time, silu = FORMS[form]
    args, options = case((64, 8, 8), dtype, time=time, mean=30.0)
    options["silu"] = silu
    truth = exact(args, options)
    # torch's own kernels do lose them, and round x + time before their statistics
    # and triton's interpreter cuts bfloat16's digits off where a GPU rounds
    times = 4 if dtype == torch.bfloat16 else 2
    assert error(run(triton_ops, args, options), truth) <= times * error(run(reference, args, options), truth)


def test_many_chunks_of_rows_are_merged(monkeypatch):
    """As on a GPU, where a clip has more rows than here: tails of chunks, and of the last one's tile."""
    monkeypatch.setattr(triton_norm, "TILE", 256)
    args, options = case((64, 9, 9), torch.float32, time=True, mean=5.0)
    got, again = (run(triton_ops, args, options | {"silu": True}) for _ in range(2))
    assert error(got, exact(args, options | {"silu": True})) < 1e-6
    assert torch.equal(got, again)


def test_a_block_has_the_bits_it_had():
    """On a CPU the function is the operations it took the place of."""
    block = randomize(ResnetBlock(8, 16, 32, 4, 1e-5, lambda _: None))
    x = torch.randn(6, 8, 8, 8, generator=torch.Generator().manual_seed(1)).contiguous(
        memory_format=torch.channels_last
    )
    time = torch.randn(2, 32, generator=torch.Generator().manual_seed(2)).repeat_interleave(3, 0)

    def norm(layer, x, frames):
        if frames == 1:
            return F.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps)
        clip = x.unflatten(0, (-1, frames)).transpose(1, 2)
        y = F.group_norm(clip, layer.num_groups, layer.weight, layer.bias, layer.eps)
        return y.transpose(1, 2).flatten(0, 1)

    with torch.no_grad():
        for frames in (3, 1):
            h = block.conv1(F.silu(norm(block.norm1, x, frames)), 3)
            h += block.time_emb_proj(time)[:, :, None, None]
            h = block.conv2(F.silu(norm(block.norm2, h, frames)), 3)
            expected = block.conv_shortcut(x) + h
            assert torch.equal(block(x, time, 3, frames), expected)
    assert kernels.which() == "torch"
