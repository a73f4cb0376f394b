"""What of the GPU path a CPU can prove: half precision, batches, offloading, stores read ahead, compiled layers."""

import pytest
import torch
from random_weights import numbers, randomize, relative
from safetensors.torch import load_file
from torch import nn

from fz import kernels
from fz.attention import Keep, Plain
from fz.ddim import CLEAN, Schedule
from fz.denoiser import Denoiser
from fz.edit import Edit, edit, invert
from fz.frames import FrameIndex
from fz.fusion import Fusion
from fz.guidance import Guidance
from fz.masks import EditRegion
from fz.memory import budget
from fz.memory.offload import Copier, KeptInRam, resident
from fz.model.compiled import cannot, compile_layers, compile_step
from fz.model.layers import FeedForward, Ranks, ResnetBlock, TextContext
from fz.model.unet import UNet, UNetConfig, sinusoidal
from fz.model.vae import VAE, VAEConfig, decode_clip, encode_clip
from fz.run import main
from fz.source import Source

CPU = torch.device("cpu")
WORDS, FRAMES = 77, 3
CONFIG = UNetConfig(
    block_out_channels=(16, 32, 32, 32), layers_per_block=1, heads=(2,) * 4, cross_attention_dim=24, norm_num_groups=8
)
INDEX = FrameIndex((0, "mid"))
SCHEDULE = Schedule.from_config({}, 3)
Z0, SOURCE, TARGET, NEGATIVE = (
    numbers(1, FRAMES, 4, 16, 16),
    numbers(2, WORDS, 24),
    numbers(3, WORDS, 24),
    numbers(4, WORDS, 24),
)


@pytest.fixture(scope="module")
def unet():
    return randomize(UNet(CONFIG)).to(memory_format=torch.channels_last)


def task():
    words = torch.zeros(WORDS)
    words[[2, 5]] = 1
    alpha = torch.ones(WORDS)
    alpha[5] = 0
    fusion = Fusion(torch.diag(alpha), alpha, torch.ones(WORDS), torch.ones(SCHEDULE.steps + 1, WORDS), (0, 3))
    return Edit(TARGET, fusion, EditRegion(words))


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.bfloat16, 0.08), (torch.float16, 0.01)], ids=["bfloat16", "float16"]
)
@torch.no_grad()
def test_half_precision_is_near_float32(unet, dtype, bound):
    """eps is float32 as the latents are, and off by no more than a sum of roundings."""
    half = randomize(UNet(CONFIG)).to(dtype).to(memory_format=torch.channels_last)
    text = torch.stack([NEGATIVE, TARGET])
    eps = half(Z0.expand(2, *Z0.shape), 300, TextContext(text), Plain(INDEX))
    exact = unet(Z0.expand(2, *Z0.shape), 300, TextContext(text), Plain(INDEX))
    assert eps.dtype == torch.float32
    assert 0 < relative(eps, exact) < bound


def test_latents_and_maps_stay_float32_in_a_half_precision_edit():
    half = randomize(UNet(CONFIG)).to(torch.bfloat16).to(memory_format=torch.channels_last)
    model = Denoiser(half, SCHEDULE, INDEX)
    source = invert(model, Source(SOURCE, latents={CLEAN: Z0}))
    z = edit(model, source, task(), Guidance(NEGATIVE))
    assert {x.dtype for x in (*source.latents.values(), *source.maps.values(), z)} == {torch.float32}


def test_norms_softmax_and_time_are_float32_inside():
    """Where half precision would lose a value that float32 keeps."""
    # 2^12 values of 8 with one 9: bfloat16 sums stop growing at 2^8 times a value
    x = torch.full((1, 8, 32, 16), 8.0)
    x[..., 0] = 9.0
    norm = nn.GroupNorm(1, 8)
    assert relative(norm.to(torch.bfloat16)(x.bfloat16()).float(), norm.float()(x)) < 1e-2
    # 4096 equal weights: their sum in bfloat16 would stop at 256
    x = torch.ones(1, 1, 4096, 1, 16, dtype=torch.bfloat16)
    out = kernels.self_attention(x, x, x, torch.zeros(1, 1, dtype=torch.int64))
    assert out.dtype == torch.bfloat16 and torch.allclose(out.float(), torch.ones(()), atol=1e-2)
    assert sinusoidal(torch.tensor([981]), 32, True, 0).dtype == torch.float32


def test_the_vae_gives_the_same_in_any_batch(monkeypatch):
    vae = randomize(VAE(VAEConfig(block_out_channels=(16, 16), layers_per_block=1, norm_num_groups=8)))
    frames = numbers(5, 5, 3, 16, 16).clamp(-1, 1)
    with torch.no_grad():
        z = encode_clip(vae, frames)
        assert z.shape == (5, 4, 8, 8) and relative(encode_clip(vae, frames, 2), z) < 1e-5
        assert relative(decode_clip(vae, z, 3), decode_clip(vae, z)) < 1e-5
    assert budget.pictures_at_once(vae, 512, 512, CPU) == 1
    monkeypatch.setattr(budget, "free_memory", lambda device: 16 * 10**9)
    sd = VAE.__new__(VAE)
    object.__setattr__(sd, "config", VAEConfig())
    some = budget.pictures_at_once(sd, 512, 512, torch.device("cuda"))
    assert 1 <= some < 16 and budget.pictures_at_once(sd, 4096, 4096, torch.device("cuda")) == 1


def test_a_module_is_on_the_device_only_inside(monkeypatch):
    module, moves = nn.Linear(2, 2), []
    monkeypatch.setattr(module, "to", lambda device: moves.append(device.type), raising=False)
    with resident(module, torch.device("meta"), offload=True):
        assert moves == ["meta"]
    assert moves == ["meta", "cpu"]
    with pytest.raises(RuntimeError, match="stop"), resident(module, CPU, offload=True):
        raise RuntimeError("stop")
    assert moves == ["meta", "cpu", "cpu", "cpu"]
    with resident(module, CPU, offload=False):
        pass
    assert len(moves) == 5


class Tracing(Copier):
    """A copier that says which step it copies; without CUDA copies are the tensors."""

    def __init__(self):
        super().__init__(CPU)
        self.said = []

    def to_device(self, operands, written):
        self.said.append(("read", int(operands["site"][0])))
        return super().to_device(operands, written)


def test_steps_are_read_one_ahead():
    copier = Tracing()
    kept = KeptInRam((9, 6, 3), copier)
    for t in (3, 6, 9):
        kept.put(t, {"site": (torch.tensor(t),)})
    assert kept.get(5) is None
    for _ in range(2):  # two edits
        copier.said.clear()
        assert [int(kept.get(t)["site"][0]) for t in (9, 6, 3)] == [9, 6, 3]
        assert copier.said == [("read", 9), ("read", 6), ("read", 3)]
    # an edit that ends early leaves nothing wrong for the next
    kept.get(9)
    assert int(kept.get(9)["site"][0]) == 9 and int(kept.get(6)["site"][0]) == 6


def test_what_is_kept_in_ram_edits_to_the_same_bits(unet):
    model, store = Denoiser(unet, SCHEDULE, INDEX), KeptInRam(SCHEDULE.timesteps, Copier(CPU))
    plain = invert(model, Source(SOURCE, latents={CLEAN: Z0}))
    ram = invert(model, Source(SOURCE, latents={CLEAN: Z0}, store=store, keep=lambda k: Keep(True, True)))
    assert store.steps
    a, b = (edit(model, source, task(), Guidance(NEGATIVE)) for source in (plain, ram))
    assert torch.equal(a, b)


def test_the_offloaded_store_is_chosen(tmp_path):
    from fz.memory.kept import KeptInMemory

    assert isinstance(budget.store_for("memory", tmp_path, (9, 3), CPU, print, offload=True), KeptInRam)
    assert isinstance(budget.store_for("memory", tmp_path, (9, 3), CPU, print), KeptInMemory)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_on_a_stream_are_whole():
    device = torch.device("cuda")
    kept = KeptInRam((9, 6), Copier(device))
    values = {t: torch.randn(1 << 22, device=device) for t in (6, 9)}
    for t, x in values.items():
        kept.put(t, {"site": (x.clone(),)})
    for t in (9, 6):
        assert torch.equal(kept.get(t)["site"][0], values[t])


def test_compiling_is_left_out_on_a_cpu_and_said(unet):
    assert compile_step(unet, CPU) == "compile: left out, on cpu it gains nothing"
    assert all(layer._compiled_call_impl is None for layer in unet.modules())
    assert cannot(torch.device("mps"))


@torch.no_grad()
def test_compiled_layers_give_the_same():
    """By torch.compile's own tracer, with a backend that runs what was traced."""
    ranks: Ranks = lambda _: None  # noqa: E731
    block, ff = randomize(ResnetBlock(8, 16, 32, 4, 1e-5, ranks)), randomize(FeedForward(16))
    x, time, tokens = numbers(1, 4, 8, 8, 8), numbers(2, 4, 32), numbers(3, 1, 4, 6, 16)
    expected = block(x, time, 4, 4), ff(tokens)
    names = list(block.state_dict())
    assert compile_layers([block, ff, nn.Linear(2, 2)], backend="eager") == 2
    assert list(block.state_dict()) == names and block._compiled_call_impl is not None
    assert relative(block(x, time, 4, 4), expected[0]) < 1e-6 and relative(ff(tokens), expected[1]) < 1e-6


def test_a_run_with_offload_and_compile_is_the_run(shared, tmp_path, capsys):
    def run(*flags):
        out = tmp_path / "-".join(("out", *flags))
        arguments = ["--video", str(shared / "data/jeep"), "--checkpoint", str(shared / "golden/tiny_sd"),
                     "--source", "a jeep on a road", "--target", "a red jeep on a road",
                     "--size", "64", "--frames", "3", "--steps", "2", "--cache", "none", "--threads", "1",
                     "--device", "cpu", "--conv", "direct", "--store", "memory", "--save-latents",
                     "--out", str(out)]  # fmt: skip
        assert main([*arguments, *flags]) == 0
        return load_file(out / "latents.safetensors")

    plain, offloaded = run(), run("--offload", "--compile")
    assert "compile: left out" in capsys.readouterr().out
    assert all(torch.equal(plain[name], offloaded[name]) for name in plain)
