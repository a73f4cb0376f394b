"""Values of layers and of the choice of frames against plain formulas, and what a transformed model shares."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from random_weights import numbers, randomize, relative

from fz.attention import Plain
from fz.chunks import Chunks
from fz.frames import FrameIndex, frame_table
from fz.kernels import gemm, onednn_tiles
from fz.model import fast_cpu
from fz.model.layers import (
    ClipGroupNorm,
    Conv3x3,
    FeedForward,
    LowRankTemporalConv,
    ResnetBlock,
    Site,
    TemporalAttention,
    TextContext,
    Upsample,
)
from fz.model.swap import swapped
from fz.model.unet import UNet, UNetConfig, sinusoidal
from fz.model.vae import VAE, Resample, VAEConfig, decode_clip, encode_clip

SHAPE = dict(
    block_out_channels=(16, 32, 32, 32),
    layers_per_block=1,
    heads=(2, 2, 2, 2),
    cross_attention_dim=24,
    norm_num_groups=8,
)
SITE = Site("attn1", "self", 2, 16)
SD1 = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": 3 * ["CrossAttnDownBlock2D"] + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + 3 * ["CrossAttnUpBlock2D"],
}


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


@torch.no_grad()
def test_a_feed_forward_is_its_formula():
    """Of the first projection one half is the value, the other, through gelu, its gate (Shazeer 2020)."""
    ff, x = randomize(FeedForward(8)).double(), numbers(1, 5, 8).double()
    value, gate = (x @ ff.net[0].proj.weight.T + ff.net[0].proj.bias).split(32, -1)
    gated = value * gate * 0.5 * (1 + torch.erf(gate / 2**0.5))
    assert relative(ff(x), gated @ ff.net[2].weight.T + ff.net[2].bias) < 1e-12


@torch.no_grad()
def test_time_is_its_formula():
    """cos(t w_i), then sin(t w_i), w_i = 10000^(-i / half); then two linear layers, SiLU after each."""
    half = 8
    w = 10000.0 ** (-torch.arange(half).double() / half)
    for t in (0, 1, 500, 999):
        expected = torch.cat([(t * w).cos(), (t * w).sin()])
        assert torch.allclose(sinusoidal(torch.tensor([t]), 16, True, 0)[0].double(), expected, atol=1e-4)
        assert torch.allclose(sinusoidal(torch.tensor([t]), 16, False, 0)[0].double(), expected.roll(half), atol=1e-4)
    unet = randomize(UNet(UNetConfig(**SHAPE))).double()
    first, second = unet.time_embedding.linear_1, unet.time_embedding.linear_2
    t = torch.tensor([300, 7])
    x = torch.cat([(t[:, None] * w).cos(), (t[:, None] * w).sin()], -1)
    x = F.silu(F.silu(x @ first.weight.T + first.bias) @ second.weight.T + second.bias)
    assert relative(unet.time(t, 2, torch.device("cpu"), torch.float64), x) < 1e-5
    assert UNetConfig.from_json(SD1).flip_sin_to_cos and UNetConfig.from_json(SD1).freq_shift == 0


@torch.no_grad()
def test_a_resnet_block_is_its_formula():
    """norm, SiLU, 3x3, + time, norm, SiLU, 3x3, + the input, by a 1x1 where the widths differ."""
    block = randomize(ResnetBlock(8, 16, 12, 4, 1e-5, lambda c: None)).double()
    x, time = numbers(1, 3, 8, 6, 6).double(), numbers(2, 3, 12).double()
    h = F.conv2d(F.silu(F.group_norm(x, 4, block.norm1.weight, block.norm1.bias, 1e-5)), block.conv1.weight, None, 1, 1)
    added = time @ block.time_emb_proj.weight.T + block.time_emb_proj.bias + block.conv1.bias
    h = h + added[..., None, None]
    h = F.silu(F.group_norm(h, 4, block.norm2.weight, block.norm2.bias, 1e-5))
    expected = F.conv2d(h, block.conv2.weight, block.conv2.bias, 1, 1)
    expected = expected + F.conv2d(x, block.conv_shortcut.weight, block.conv_shortcut.bias)
    assert relative(block(x, time, 3, 1), expected) < 1e-10


@torch.no_grad()
def test_an_upsampler_repeats_pixels_and_convolves():
    up = randomize(Upsample(4, lambda c: None)).double()
    x = numbers(1, 2, 4, 3, 3).double()
    doubled = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert relative(up(x, 2), F.conv2d(doubled, up.conv.weight, up.conv.bias, 1, 1)) < 1e-10


def test_the_norms_of_transformers_and_of_the_vae_have_their_own_epsilon():
    """1e-6 there, the configuration's in ResNet blocks: faint pictures tell them apart."""
    unet, vae = (
        UNet(UNetConfig(**SHAPE)),
        VAE(VAEConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)),
    )
    of_unet = {name: m.eps for name, m in unet.named_modules() if isinstance(m, torch.nn.GroupNorm)}
    assert {eps for name, eps in of_unet.items() if "attentions" in name} == {1e-6}
    assert {eps for name, eps in of_unet.items() if "attentions" not in name} == {1e-5}
    assert {m.eps for m in vae.modules() if isinstance(m, torch.nn.GroupNorm)} == {1e-6}


@torch.no_grad()
def test_each_branch_has_its_own_time():
    """Two branches of two frames at two timesteps are each alone."""
    unet = randomize(UNet(UNetConfig(**SHAPE)))
    z, text = numbers(1, 2, 2, 4, 8, 8), numbers(2, 2, 77, unet.config.cross_attention_dim)
    both = unet(z, torch.tensor([900, 30]), TextContext(text), Plain(FrameIndex((0, "mid"))))
    for b, t in enumerate((900, 30)):
        alone = unet(z[b : b + 1], t, TextContext(text[b : b + 1]), Plain(FrameIndex((0, "mid"))))
        assert relative(both[b : b + 1], alone) < 1e-4


@torch.no_grad()
def test_temporal_attention_is_of_one_pixel_in_all_frames():
    layer, x = randomize(TemporalAttention(8, 2)).double(), numbers(1, 2, 5, 3, 8).double()
    expected = torch.empty_like(x)
    for b in range(2):
        for n in range(3):
            q, k, v = (linear(x[b, :, n]).unflatten(-1, (2, 4)) for linear in (layer.to_q, layer.to_k, layer.to_v))
            s = torch.einsum("fhd,ghd->hfg", q, k).div(2.0).softmax(-1)
            expected[b, :, n] = layer.to_out[0](torch.einsum("hfg,ghd->fhd", s, v).flatten(1))
    assert relative(layer(x), expected) < 1e-12


@torch.no_grad()
def test_a_low_rank_convolution_over_time_is_a_residual():
    layer, x = randomize(LowRankTemporalConv(6, 2)).double(), numbers(1, 4, 6, 5).double()
    down = F.conv1d(x, layer.down.weight, None, 1, 1)
    assert relative(layer(x), x + F.conv1d(down, layer.up.weight, None, 1, 1)) < 1e-12


@torch.no_grad()
def test_a_convolution_over_time_is_of_one_pixel_in_its_branch_s_frames():
    layer, x = randomize(Conv3x3(3, 4, temporal=0)).double(), numbers(1, 2 * 5, 3, 6, 7).double()
    out, spatial = layer(x, 5), F.conv2d(x, layer.weight, layer.bias, padding=1)
    over_time = layer.conv_temporal
    for b, h, w in ((0, 0, 0), (1, 2, 6), (1, 5, 3)):
        frames = slice(5 * b, 5 * b + 5)
        expected = F.conv1d(spatial[frames, :, h, w].T, over_time.weight, over_time.bias, padding=1).T
        assert relative(out[frames, :, h, w], expected) < 1e-12


@torch.no_grad()
def test_latents_are_the_posterior_s_mean_scaled_and_go_back_unscaled():
    """z_0 = 0.18215 mean; whatever so many frames at a time."""
    vae = randomize(VAE(VAEConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)))
    frames, z = numbers(1, 3, 3, 16, 16), numbers(2, 3, 4, 8, 8)
    mean = vae.quant_conv(vae.encoder(frames))[:, :4]
    decoded = vae.decoder(vae.post_quant_conv(z / 0.18215))
    for at_once in (1, 3):
        assert relative(encode_clip(vae, frames, at_once), 0.18215 * mean) < 1e-5
        assert relative(decode_clip(vae, z, at_once), decoded) < 1e-5


@torch.no_grad()
def test_a_picture_is_padded_on_the_right_and_below_as_it_is_halved():
    down, up = randomize(Resample(4, down=True)).double(), randomize(Resample(4, down=False)).double()
    x = numbers(1, 1, 4, 6, 6).double()
    padded = torch.zeros(1, 4, 7, 7).double()
    padded[:, :, :6, :6] = x
    assert relative(down(x), F.conv2d(padded, down.conv.weight, down.conv.bias, 2)) < 1e-12
    doubled = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert relative(up(x), F.conv2d(doubled, up.conv.weight, up.conv.bias, 1, 1)) < 1e-12


@torch.no_grad()
def test_skips_come_after_what_comes_from_below():
    """The first channels of what the decoder's ResNets get are the level below's, the others the encoder's."""
    unet, given = randomize(UNet(UNetConfig(**SHAPE))), []
    first = unet.up_blocks[0].resnets[0]
    first.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].clone()))
    below = []
    unet.mid_block.resnets[1].register_forward_hook(lambda module, inputs, out: below.append(out.clone()))
    unet(numbers(3, 1, 2, 4, 16, 16), 300, TextContext(numbers(4, 1, 77, 24)))
    assert torch.equal(given[0][:, :32], below[0]) and given[0].shape[1] == 64


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
from fz.kernels import gemm, onednn_tiles
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


@pytest.mark.parametrize(
    ("cpuinfo", "flags", "expected"),
    [
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\n", "AVX512", 256),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\n", "AVX512", 512),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 23\n", "AVX2", 256),
        ("vendor_id\t: GenuineIntel\ncpu family\t: 6\n", "AVX512", 512),
    ],
    ids=["Zen 4", "Zen 5", "Zen 2", "Intel"],
)
def test_tiles_serve_many_keys_where_vectors_are_wide(cpuinfo, flags, expected, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(gemm, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: flags)
    monkeypatch.setattr(onednn_tiles, "prefers_onednn", lambda: True)
    gemm.vector_bits.cache_clear()
    try:
        assert gemm.vector_bits() == expected
        x = torch.empty(1, 2, 1024, 1, 40)
        assert onednn_tiles.serves(x[:, 0], x, x, [0, 1], 1024) is (expected == 512)
        few = torch.empty(1, 1, 77, 1, 40)
        assert onednn_tiles.serves(x[:, 0], few, few, [0], 1024)
    finally:
        gemm.vector_bits.cache_clear()
