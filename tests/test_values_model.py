"""Values of layers and of the choice of frames against plain formulas, and what a transformed model shares."""

import subprocess
import sys

import pytest
import torch
from random_weights import numbers, randomize, relative

from fz.chunks import Chunks
from fz.frames import FrameIndex, frame_table
from fz.kernels import gemm
from fz.model import fast_cpu
from fz.model.layers import ClipGroupNorm, Site, TextContext
from fz.model.swap import swapped
from fz.model.unet import UNet, UNetConfig

SHAPE = dict(
    block_out_channels=(16, 32, 32, 32),
    layers_per_block=1,
    heads=(2, 2, 2, 2),
    cross_attention_dim=24,
    norm_num_groups=8,
)
SITE = Site("attn1", "self", 2, 16)


@pytest.mark.parametrize("frames", [1, 2, 6], ids=lambda f: f"statistics of {f}")
def test_clip_norm_is_its_formula(frames):
    """Mean and variance of a group run over its channels, the pixels, and so many frames of a branch."""
    norm, groups = ClipGroupNorm(2, 8, eps=1e-5), 2
    with torch.no_grad():
        norm.weight.copy_(numbers(1, 8)), norm.bias.copy_(numbers(2, 8))
    # frames of very different brightness, so that statistics of another range show
    x = numbers(3, 6, 8, 3, 5) * torch.arange(1.0, 7)[:, None, None, None] + torch.arange(6.0)[:, None, None, None]
    cells = x.double().reshape(6 // frames, frames, groups, 4, 3, 5)
    mean = cells.mean((1, 3, 4, 5), keepdim=True)
    variance = ((cells - mean) ** 2).mean((1, 3, 4, 5), keepdim=True)
    expected = ((cells - mean) / (variance + 1e-5).sqrt()).reshape(6, 8, 3, 5)
    expected = expected * norm.weight[:, None, None] + norm.bias[:, None, None]
    with torch.no_grad():
        assert relative(norm(x, frames).double(), expected) < 1e-6


@pytest.mark.parametrize("clip_norm", [True, False], ids=["clip", "frame"])
@torch.no_grad()
def test_which_norms_see_the_whole_clip(clip_norm, monkeypatch):
    """Those of ResNet blocks and the last one, unless each frame has its own statistics; transformers' never do."""
    unet, seen, norm = randomize(UNet(UNetConfig(**SHAPE), clip_norm)), {}, ClipGroupNorm.forward
    name_of = {module: name for name, module in unet.named_modules()}

    def spy(self, x, frames, *rest, **options):
        seen[name_of[self]] = frames
        return norm(self, x, frames, *rest, **options)

    monkeypatch.setattr(ClipGroupNorm, "forward", spy)
    z, text = numbers(3, 1, 3, 4, 16, 16), TextContext(numbers(4, 1, 77, 24))
    whole = unet(z, 300, text)
    assert len(seen) == sum(isinstance(m, ClipGroupNorm) for m in unet.modules())
    for name, frames in seen.items():
        assert frames == (3 if clip_norm and ".attentions." not in name else 1), name
    alone = torch.cat([unet(z[:, f : f + 1], 300, text) for f in range(3)], 1)
    assert (relative(whole, alone) < 1e-5) == (not clip_norm) and relative(whole, alone) < 1


@pytest.mark.parametrize(("frames", "mid"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (8, 3), (9, 4)])
def test_the_middle_frame(frames, mid):
    assert FrameIndex((0, "mid")).table(SITE, frames).tolist() == [[f, mid] for f in range(frames)]
    assert FrameIndex(("middle",)).table(SITE, frames).tolist() == [[mid]] * frames


def test_an_index_table_is_made_once():
    x = type("Tokens", (), {"shape": (1, 5, 4), "tokens": torch.zeros(1, 5, 4, 16)})
    first = frame_table(FrameIndex((0, "mid")), SITE, x)
    assert frame_table(FrameIndex((0, "mid")), SITE, x) is first
    assert frame_table(FrameIndex((0, "last")), SITE, x) is not first


def test_a_swapped_model_shares_parameters_and_leaves_the_first_alone():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.ReLU()))
    seen = []

    def replace(name, module):
        seen.append(name)
        return torch.nn.Tanh() if name == "1.0" else None

    other = swapped(model, replace)
    assert seen == ["", "0", "1", "1.0"]
    assert isinstance(other[1][0], torch.nn.Tanh) and isinstance(model[1][0], torch.nn.ReLU)
    assert other[0].weight is model[0].weight and type(other) is type(model)


@torch.no_grad()
def test_chunks_leave_the_model_alone():
    """A convolution of the model sees all frames after it was run in chunks, one of the chunks' model so many."""
    unet = randomize(UNet(UNetConfig(**SHAPE))).to(memory_format=torch.channels_last)
    kinds, z, text = [type(m) for m in unet.modules()], numbers(3, 1, 5, 4, 16, 16), TextContext(numbers(4, 1, 77, 24))
    whole, chunks = unet(z, 300, text), Chunks(unet, 2)
    assert [type(m) for m in unet.modules()] == kinds and "at_once" not in vars(unet.conv_in)
    seen = {"whole": [], "chunks": []}

    def watched(name, convolve):
        return lambda x: (seen[name].append(len(x)), convolve(x))[1]

    inner = chunks.unet.conv_in.conv
    assert inner is unet.conv_in, "the very layer, some frames at a time"
    inner.convolve = watched("chunks", inner.convolve)
    assert relative(chunks(z, 300, text), whole) < 1e-5 and seen["chunks"] == [2, 2, 1]
    inner.convolve = watched("whole", inner.convolve)
    unet(z, 300, text)
    assert seen["whole"] == [5]


def test_which_layers_are_packed(monkeypatch):
    """Those of tokens; not the time embedding's, nor keys and values of a prompt."""
    if not gemm.has_packed():
        pytest.skip("this PyTorch has no packed product")
    monkeypatch.setattr(fast_cpu, "prefers_onednn", lambda: True)
    fast, _ = fast_cpu.prepare(randomize(UNet(UNetConfig(**SHAPE))), (16, 16), 2, "direct")
    block = fast.down_blocks[0].attentions[0]
    attention = block.transformer_blocks[0]
    packed = {"proj_in", "proj_out", "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q"}
    packed |= {"attn2.to_out.0", "ff.net.0", "ff.net.2"}
    names = {name for name, m in (*block.named_modules(), *attention.named_modules()) if isinstance(m, fast_cpu.FAST)}
    assert {n.removeprefix("transformer_blocks.0.") for n in names} == packed
    assert not any("time" in name for name, _ in fast_cpu.signature(fast))


# ---- the choice of products --------------------------------------------------------------------------------

CHOICE = """
import sys, time
def clock(*_): raise SystemExit("a clock was read")
import torch
for name in ("perf_counter", "process_time", "time", "monotonic", "perf_counter_ns", "time_ns", "monotonic_ns"):
    setattr(time, name, clock)
torch.set_num_threads(int(sys.argv[1]))
from fz.kernels import gemm
print(gemm.prefers_onednn())
"""


def test_the_choice_is_the_same_in_every_process_and_reads_no_clock():
    runs = [
        subprocess.run([sys.executable, "-c", CHOICE, threads], capture_output=True, text=True) for threads in "121"
    ]
    assert {run.returncode for run in runs} == {0}, runs[0].stderr
    assert {run.stdout.strip() for run in runs} == {str(gemm.prefers_onednn())}


@pytest.mark.parametrize(
    ("cpuinfo", "flags", "expected"),
    [
        ("vendor_id\t: GenuineIntel\nflags\t: avx2", "AVX2", False),
        ("vendor_id\t: AuthenticAMD\nflags\t: avx2", "AVX2", True),
        ("vendor_id\t: AuthenticAMD\n", "DEFAULT", False),
        ("vendor_id\t: HygonGenuine\n", "AVX512", True),
        ("CPU implementer\t: 0x41\n", "AVX2", False),
    ],
    ids=["Intel", "AMD", "AMD without AVX2", "Hygon", "Arm"],
)
def test_the_machine_chooses(cpuinfo, flags, expected, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(gemm, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(gemm, "has_packed", lambda: True)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: flags)
    gemm.prefers_onednn.cache_clear()
    try:
        assert gemm.prefers_onednn() is expected
    finally:
        gemm.prefers_onednn.cache_clear()
