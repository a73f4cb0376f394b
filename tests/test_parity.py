"""Models and sampling against diffusers, which is not installed with fz: names, outputs, and F = 1 as plain Stable
Diffusion.

Both sides share one copy of random weights. Real sizes are Stable Diffusion v1.4's own shapes, and slow.
"""

import pytest
import torch
from checkpoints import compvis
from random_weights import numbers, randomize, relative

from fz.ddim import Schedule
from fz.denoiser import Denoiser
from fz.edit import Edit, edit, invert
from fz.frames import FrameIndex
from fz.guidance import Guidance
from fz.model import fast_cpu
from fz.model.layers import TextContext
from fz.model.unet import Temporal, UNet, UNetConfig
from fz.model.vae import SCALE, VAE, VAEConfig, decode_clip
from fz.source import Source
from fz.weights import layouts
from fz.weights.load import load_checkpoint

diffusers = pytest.importorskip("diffusers", reason="parity is with diffusers: pip install diffusers")
pytest_plugins = ["golden_model"]

TOKENS = 77
PAPERS, TUNED, OWN = FrameIndex(), FrameIndex((-1, "first"), least_channels=64), FrameIndex(())
SD_V1 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
TINY = SD_V1 | {
    "block_out_channels": (16, 32, 64, 64),
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
}
THREE_LEVELS = {
    "block_out_channels": (16, 32, 48),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
UNETS = {
    "tiny": TINY,
    "heads a level": TINY | {"attention_head_dim": (2, 4, 8, 8)},
    "three levels": TINY | THREE_LEVELS,
    "three layers": TINY | {"layers_per_block": 3},
    "time": TINY | {"flip_sin_to_cos": False, "freq_shift": 1},
    "norms": TINY | {"norm_num_groups": 4, "norm_eps": 1e-2},
}
VAES = {"tiny": ((16, 32, 32, 32), 2), "three levels": ((8, 16, 32), 1)}


def unet_pair(config):
    """Ours and diffusers', of one set of weights."""
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(**config)
        ours = UNet(UNetConfig.from_json(dict(theirs.config)))
    ours = randomize(ours.to_empty(device="cpu")).to(memory_format=torch.channels_last)
    theirs.load_state_dict(ours.state_dict(), strict=True, assign=True)
    return ours, theirs.eval().requires_grad_(False)


def vae_pair(widths, layers, groups=32):
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKL(
            block_out_channels=widths,
            layers_per_block=layers,
            norm_num_groups=groups,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
        )
        ours = VAE(VAEConfig.from_json(dict(theirs.config)))
    ours = randomize(ours.to_empty(device="cpu"))
    theirs.load_state_dict(ours.state_dict(), strict=True, assign=True)
    return ours, theirs.eval().requires_grad_(False)


def both(ours, theirs, frames, h, w, t=541):
    """eps of two prompts and so many frames from both; ours with statistics per frame, as diffusers knows no clips."""
    z, text = numbers(1, 2, frames, 4, h, w), numbers(2, 2, TOKENS, ours.config.cross_attention_dim)
    ours.clip_norm = False
    with torch.no_grad():
        got = ours(z, t, TextContext(text))
        expected = theirs(z.flatten(0, 1), t, text.repeat_interleave(frames, 0)).sample
    return got, expected.unflatten(0, (2, frames))


# ---- the UNet ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["torch", "reference"])
@pytest.mark.parametrize("name", UNETS)
def test_unet(name, version, monkeypatch):
    monkeypatch.setenv("FZ_KERNELS", version)
    got, expected = both(*unet_pair(UNETS[name]), frames=3, h=16, w=24)
    assert relative(got, expected) < 1e-5


def test_unet_at_two_times():
    """One timestep a branch."""
    ours, theirs = unet_pair(TINY)
    z, text, t = numbers(1, 2, 1, 4, 8, 8), numbers(2, 2, TOKENS, 24), torch.tensor([1, 981])
    with torch.no_grad():
        assert relative(ours(z, t, TextContext(text))[:, 0], theirs(z[:, 0], t, text).sample) < 1e-5


def test_a_wrong_weight_shows():
    """The bound is not so wide, nor the weights so tame, that a wrong layer deep inside would pass."""
    ours, theirs = unet_pair(TINY)
    for layer in (
        ours.mid_block.attentions[0].transformer_blocks[0].attn2.to_k,
        ours.down_blocks[3].resnets[1].time_emb_proj,
    ):
        layer.weight = torch.nn.Parameter(layer.weight * 1.01, requires_grad=False)
        assert relative(*both(ours, theirs, frames=1, h=16, w=16)) > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("fast", [False, True], ids=["plain", "prepared for the CPU"])
@pytest.mark.parametrize(("h", "w", "frames"), [(8, 8, 2), (32, 32, 1), (16, 24, 1)])
def test_real_unet(h, w, frames, fast, real_unets, record_property):
    ours, theirs = real_unets
    if fast:
        ours, _ = fast_cpu.prepare(ours, (h, w), frames)
    got, expected = both(ours, theirs, frames, h, w)
    record_property("relative", relative(got, expected))
    assert relative(got, expected) < 1e-4


@pytest.fixture(scope="module")
def real_unets():
    return unet_pair(SD_V1)


# ---- the VAE -----------------------------------------------------------------------------------------------


def check_vae(ours, theirs, h, w, bound):
    frames, z = numbers(3, 2, 3, h, w).clamp(-1, 1), numbers(4, 2, 4, h // ours.config.stride, w // ours.config.stride)
    with torch.no_grad():
        posterior = theirs.encode(frames).latent_dist
        mean, logvar = ours.moments(frames)
        errors = {
            "mean": relative(mean, posterior.mean),
            "logvar": relative(logvar.clamp(-30, 20), posterior.logvar),
            "picture": relative(ours.decode(z), theirs.decode(z).sample),
        }
        assert torch.equal(ours.encode(frames), mean)
    assert max(errors.values()) < bound, errors
    return errors


@pytest.mark.parametrize("name", VAES)
def test_vae(name):
    check_vae(*vae_pair(*VAES[name], groups=8), h=32, w=48, bound=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("h", "w"), [(64, 64), (256, 192)])
def test_real_vae(h, w, record_property):
    record_property("relative", check_vae(*vae_pair((128, 256, 512, 512), 2), h=h, w=w, bound=1e-4))


# ---- names -------------------------------------------------------------------------------------------------


def test_compvis_names_are_those_of_diffusers_converter():
    """Our tables against diffusers' own conversion of the original layout, at Stable Diffusion v1's shapes: one tensor
    for each name.
    """
    from diffusers.loaders import single_file_utils as converters

    with torch.device("meta"):
        unet, vae = UNet(UNetConfig()).state_dict(), VAE(VAEConfig()).state_dict()
    flat = compvis(unet, vae, {})
    attention_blocks = {
        "down_block_types": SD_V1["down_block_types"],
        "up_block_types": SD_V1["up_block_types"],
        "layers_per_block": 2,
    }
    config = attention_blocks | {"class_embed_type": None, "addition_embed_type": None}
    converted = converters.convert_ldm_unet_checkpoint(dict(flat), config)
    assert converted.keys() == unet.keys()
    named = layouts.rename(
        layouts.under(flat, layouts.UNET_PREFIX), layouts.unet_table(2, UNetConfig().up_attention), "test"
    )
    assert all(t is named[key] for key, t in converted.items())

    levels = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    converted = converters.convert_ldm_vae_checkpoint(dict(flat), levels)
    assert converted.keys() == vae.keys()
    named = layouts.rename(layouts.under(flat, layouts.VAE_PREFIX), layouts.vae_table(4, 2), "test")
    for key, t in converted.items():
        # both make linear layers of the attention's 1x1 convolutions: other tensors, of the same shape
        assert t.shape == vae[key].shape if ".attentions." in key else t is named[key]


# ---- plain Stable Diffusion --------------------------------------------------------------------------------


def sample(unet, z, embedding, negative, scheduler, steps, guidance, frame_index):
    """fz's sampling without fusion of z (F, 4, h, w), as after an inversion."""
    schedule = Schedule.from_config(scheduler, steps)
    source = Source(embedding, latents={schedule.timesteps[0]: z})
    return edit(Denoiser(unet, schedule, frame_index), source, Edit(embedding), Guidance(negative, guidance))


def pipeline(folder):
    """diffusers' own pipeline of a folder, sampling with DDIM."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False, low_cpu_mem_usage=False
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(
        pipe.scheduler.config, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    return pipe


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_one_untuned_frame_is_plain_stable_diffusion(guidance, golden):
    """Text, 5 steps of DDIM and decoding: diffusers' StableDiffusionPipeline on the same files. The paper's frame index
    changes nothing.
    """
    prompt, negative, z = "watercolor painting of a silver jeep, near the sea", "blurry", numbers(5, 1, 4, 16, 16)
    ours, pipe = load_checkpoint(golden / "tiny_sd"), pipeline(golden / "tiny_sd")
    embedding, unguided = ours.text.encode([prompt, negative])
    options = {
        "prompt": prompt,
        "negative_prompt": negative,
        "num_inference_steps": 5,
        "guidance_scale": guidance,
        "eta": 0.0,
    }
    expected = pipe(**options, latents=z, height=128, width=128, output_type="latent").images
    theirs = pipe.encode_prompt(prompt, "cpu", 1, True, negative)
    assert relative(embedding, theirs[0][0]) < 1e-6 and relative(unguided, theirs[1][0]) < 1e-6
    for index in (PAPERS, TUNED, OWN):
        got = sample(ours.unet, z, embedding, unguided, ours.scheduler, 5, guidance, index)
        assert relative(got, expected) < 1e-5
    with torch.no_grad():
        assert relative(decode_clip(ours.vae, got), pipe.vae.decode(expected / SCALE).sample) < 1e-5


def test_own_frames_are_plain_stable_diffusion(golden):
    """Frames that attend to themselves, normed on their own, are so many pictures."""
    ours = load_checkpoint(golden / "tiny_sd")
    embedding, negative = ours.text.encode(["a jeep", ""])
    z = numbers(6, 3, 4, 16, 16)
    ours.unet.clip_norm = False
    clip = sample(ours.unet, z, embedding, negative, ours.scheduler, 3, 7.5, OWN)
    frames = [sample(ours.unet, frame[None], embedding, negative, ours.scheduler, 3, 7.5, PAPERS) for frame in z]
    assert relative(clip, torch.cat(frames)) < 1e-5


def test_inversion_is_diffusers():
    """DDIM inversion of a frame at guidance 1, step by step, against the same UNet and noise schedule of diffusers."""
    ours, theirs = unet_pair(TINY)
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    schedule = Schedule.from_config(dict(scheduler.config), 5)
    embedding, z = numbers(2, TOKENS, 24), numbers(7, 1, 4, 16, 16)
    scheduler.set_timesteps(5)
    assert schedule.timesteps == tuple(scheduler.timesteps.tolist())
    source = invert(Denoiser(ours, schedule, PAPERS), Source(embedding, latents={-1: z}))
    before = scheduler.final_alpha_cumprod
    with torch.no_grad():
        for t in reversed(scheduler.timesteps.tolist()):
            eps, after = theirs(z, t, embedding[None]).sample, scheduler.alphas_cumprod[t]
            clean = (z - (1 - before).sqrt() * eps) / before.sqrt()
            z, before = after.sqrt() * clean + (1 - after).sqrt() * eps, after
            assert relative(source.latents[t], z) < 1e-5


# ---- tuned models ------------------------------------------------------------------------------------------

WIDTHS = (4, 16, 32, 64)
RANKS = tuple((width, max(width // 4, 1)) for width in WIDTHS)
TEMPORALS = {
    "attention": Temporal(),
    "full": Temporal(conv="full"),
    "low-rank": Temporal(conv="low_rank", ranks=RANKS),
    "only convolutions": Temporal(attention=False, conv="low_rank", ranks=RANKS),
}


def tuned(temporal):
    """A tiny UNet with a random temporal part."""
    with torch.device("meta"):
        model = UNet(UNetConfig.from_json(TINY, temporal))
    return randomize(model.to_empty(device="cpu"))


def predict(unet, frames=4):
    with torch.no_grad():
        return unet(numbers(1, 2, frames, 4, 8, 8), 541, TextContext(numbers(2, 2, TOKENS, 24)))


@pytest.mark.parametrize("name", TEMPORALS)
def test_a_fresh_temporal_part_changes_nothing(name):
    """As tuning begins: zero output of attention, identity or zero convolutions. Then the model is its untuned self on
    any clip.
    """
    model = tuned(TEMPORALS[name])
    plain = tuned(None)
    plain.load_state_dict({k: t for k, t in model.state_dict().items() if "_temporal" not in k})
    assert relative(predict(model), predict(plain)) > 1e-2, "a random temporal part must change something"
    for key, p in model.named_parameters():
        if key.endswith(
            (
                "attn_temporal.to_out.0.weight",
                "attn_temporal.to_out.0.bias",
                "conv_temporal.bias",
                "conv_temporal.up.weight",
            )
        ):
            p.zero_()
        elif key.endswith("conv_temporal.weight"):
            torch.nn.init.dirac_(p)
    # rounding only: float32, sums in another order
    assert relative(predict(model), predict(plain)) < 2e-6


def test_full_and_low_rank_convolutions_agree():
    """x + up(down(x)) with a centred `up` is the full convolution of kernel 1 + up · down."""
    low, full = tuned(TEMPORALS["low-rank"]), tuned(TEMPORALS["full"])
    state = {k: t for k, t in low.state_dict().items() if "conv_temporal" not in k}
    for key, p in low.named_parameters():
        if key.endswith("conv_temporal.up.weight"):
            p[:, :, [0, 2]] = 0
    for key, down in low.state_dict().items():
        if key.endswith("conv_temporal.down.weight"):
            stem = key.removesuffix("down.weight")
            up = low.state_dict()[f"{stem}up.weight"]
            kernel = torch.einsum("or,rik->oik", up[:, :, 1], down)
            kernel[:, :, 1] += torch.eye(len(kernel))
            state |= {f"{stem}weight": kernel, f"{stem}bias": torch.zeros(len(kernel))}
    full.load_state_dict(state)
    assert relative(predict(full), predict(low)) < 1e-5
