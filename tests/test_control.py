"""ControlNets: diffusers' numbers, both layouts, nothing from zero convolutions, chunks and recomputation as the whole
clip; edges as Canny's; and what is refused, in one line.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch
from checkpoints import invert as original_names
from PIL import Image
from random_weights import numbers, randomize, relative
from safetensors.torch import load_file, save_file

import fz
from fz import mini
from fz.attention import Plain
from fz.baselines.sdedit import SDEdit
from fz.chunks import Chunks
from fz.clips.canny import edges
from fz.clips.control_video import read_control_video
from fz.clips.video import read_clip
from fz.ddim import CLEAN, Schedule
from fz.denoiser import Denoiser
from fz.edit import Edit, edit, invert
from fz.errors import FzError
from fz.frames import FrameIndex
from fz.fusion import Fusion
from fz.guidance import Guidance
from fz.masks import EditRegion
from fz.memory.budget import Footprint, wanted
from fz.memory.kept import KeptInMemory
from fz.mini.shape import CONTROL
from fz.model.control import Control, ControlConfig, ControlNet
from fz.model.layers import TextContext
from fz.model.unet import UNet, UNetConfig
from fz.run import main
from fz.settings.config import ClipSettings, Crop
from fz.source import Source
from fz.weights import layouts
from fz.weights.control import check_beside, load_control

WORDS, FRAMES, SIDE = 77, 5, 16
SHAPE = UNetConfig((16, 32, 32, 32), 1, (2, 2, 2, 2), cross_attention_dim=24, norm_num_groups=8)
TEXT = numbers(2, 2, WORDS, 24)
SCHEDULE = Schedule.from_config({}, 3)
ALWAYS = frozenset(range(1000))
SD_V1 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
}
TINY = SD_V1 | {
    "block_out_channels": (16, 32, 64, 64),
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
}
SHAPES = {
    "narrow": TINY,
    "attention elsewhere": TINY | {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D") * 2},
    "another hint": TINY | {"conditioning_embedding_out_channels": (8, 16, 24)},
}


def unet_of(config):
    config = {key: value for key, value in config.items() if key != "conditioning_embedding_out_channels"}
    return config | {"up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3}


def controlnet(config=SHAPE, hints=(8, 16), seed=1):
    return randomize(ControlNet(ControlConfig(config, hints)), seed).to(memory_format=torch.channels_last)


def control(net, frames=FRAMES, scale=1.0, timesteps=ALWAYS, side=SIDE):
    return Control(net, net.hint(numbers(7, frames, 3, 2 * side, 2 * side).sigmoid()), scale, timesteps)


def written(folder, net_config=None, **changes):
    """A ControlNet of the miniature's shape with random weights, as a folder of diffusers' layout."""
    config = (net_config or CONTROL) | changes
    net = randomize(
        ControlNet(
            ControlConfig(
                UNetConfig.from_json({k: config[k] for k in config} | {"up_block_types": []}),
                tuple(config["conditioning_embedding_out_channels"]),
            )
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    # small: an edit under random control is to stay one of finite numbers
    state = {key: t * (0.05 if key.startswith("controlnet_") else 1) for key, t in net.state_dict().items()}
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    return folder


# ---- diffusers' numbers ------------------------------------------------------------------------------------------


def parity(config, folder, side, frames=2):
    diffusers = pytest.importorskip("diffusers", reason="parity is with diffusers: pip install diffusers")
    theirs = randomize(diffusers.ControlNetModel(**config))
    theirs.save_pretrained(folder)
    with torch.device("meta"):
        their_unet = diffusers.UNet2DConditionModel(**unet_of(config))
        unet = UNet(UNetConfig.from_json(dict(their_unet.config)))
    unet = randomize(unet.to_empty(device="cpu"), seed=3).to(memory_format=torch.channels_last)
    their_unet.load_state_dict(unet.state_dict(), strict=True, assign=True)
    net = load_control(folder).to(memory_format=torch.channels_last)
    z, text = numbers(4, frames, 4, side, side), numbers(5, 1, WORDS, config["cross_attention_dim"])
    pictures = numbers(6, frames, 3, side * net.hint_stride, side * net.hint_stride).sigmoid()
    with torch.no_grad():
        down, middle = theirs(z, 481, text.expand(frames, -1, -1), pictures, conditioning_scale=0.7, return_dict=False)
        expected = their_unet(
            z,
            481,
            text.expand(frames, -1, -1),
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample
        # diffusers' frames know nothing of each other: here they are branches, and clips of one frame
        acts = Control(net, net.hint(pictures), 0.7, ALWAYS)
        got = unet(z[:, None], 481, TextContext(text.expand(frames, -1, -1)), control=acts)[:, 0]
        plain = unet(z[:, None], 481, TextContext(text.expand(frames, -1, -1)))[:, 0]
    assert relative(got, expected) < 1e-4 < 1e-2 < relative(plain, expected)


@pytest.mark.parametrize("name", SHAPES)
def test_outputs_are_diffusers(name, tmp_path):
    parity(SHAPES[name], tmp_path, 16)


@pytest.mark.slow
def test_outputs_are_diffusers_at_real_size(tmp_path):
    parity(SD_V1, tmp_path, 16)


@pytest.mark.parametrize("prefix", ["", layouts.CONTROL_PREFIX])
def test_the_original_layout_and_single_files(tmp_path, prefix):
    """The same weights from a folder, a file of it alone, and ldm's file, which may hold the whole model."""
    net = controlnet(UNetConfig((32, 64, 64, 64), cross_attention_dim=24), (8, 16, 24, 40))
    state, file = {k: t.contiguous() for k, t in net.state_dict().items()}, tmp_path / "net.safetensors"
    save_file(state, file)
    alone = load_control(file).state_dict()
    theirs = {prefix + key: t for key, t in original_names(state, layouts.control_table(2, 4)).items()}
    assert f"{prefix}input_hint_block.14.weight" in theirs and f"{prefix}zero_convs.11.0.weight" in theirs
    if prefix:
        theirs["model.diffusion_model.input_blocks.0.0.weight"] = torch.ones(1)
    torch.save({"state_dict": theirs}, tmp_path / "net.pth")
    original = load_control(tmp_path / "net.pth").state_dict()
    for key, t in state.items():
        assert torch.equal(alone[key], t) and torch.equal(original[key], t), key


def test_eight_bits_are_widened(tmp_path):
    net = controlnet(UNetConfig((32, 64, 64, 64), cross_attention_dim=24), (8, 16, 24, 40))
    low = {k: t.contiguous().to(torch.float8_e4m3fn) for k, t in net.state_dict().items()}
    save_file(low, tmp_path / "net.safetensors")
    loaded = load_control(tmp_path / "net.safetensors").state_dict()
    assert all(torch.equal(loaded[key], t.float()) for key, t in low.items())


def test_names_of_the_original_layout():
    """Against a list made by hand from ldm's `cldm`: input_blocks 0 … 11, each with a zero convolution."""
    table = layouts.control_table(2, 4)
    assert table["zero_convs.0.0"] == "controlnet_down_blocks.0" and table["zero_convs.11.0"].endswith("blocks.11")
    assert table["input_blocks.3.0.op"] == "down_blocks.0.downsamplers.0.conv"
    assert table["input_hint_block.0"] == "controlnet_cond_embedding.conv_in"
    assert table["input_hint_block.12"] == "controlnet_cond_embedding.blocks.5"
    assert table["middle_block_out.0"] == "controlnet_mid_block"


# ---- nothing, and the same however it is computed ----------------------------------------------------------------


def fusion():
    alpha = torch.ones(WORDS)
    alpha[5] = 0
    return Fusion(torch.diag(alpha), alpha, torch.ones(WORDS), torch.ones(SCHEDULE.steps + 1, WORDS), (0, 3))


def region():
    words = torch.zeros(WORDS)
    words[[2, 5]] = 1
    return EditRegion(words, threshold=0.3)


def edited(unet, net_control, inverting=None, store=None):
    """Inverted, by the same model or another, and edited."""
    model = Denoiser(unet, SCHEDULE, FrameIndex((0, "mid")), control=net_control)
    source = Source(TEXT[0], {CLEAN: numbers(3, FRAMES, 4, SIDE, SIDE)}, keep=wanted([fusion()]))
    if store is not None:
        source.store = store
    invert(inverting or model, source)
    return edit(model, source, Edit(TEXT[1], fusion(), region()), Guidance(TEXT[0] * 0, 3.0))


@pytest.fixture(scope="module")
def unet():
    return randomize(UNet(SHAPE)).to(memory_format=torch.channels_last)


def test_zero_convolutions_leave_the_edit_to_the_bit(unet):
    net = controlnet()
    for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    expected = edited(unet, None)
    assert torch.equal(edited(unet, control(net)), expected)
    assert torch.equal(edited(unet, control(controlnet(), scale=0.0)), expected)
    assert torch.equal(edited(unet, control(controlnet(), timesteps=frozenset())), expected)
    assert relative(edited(unet, control(controlnet())), expected) > 1e-2


def test_what_is_kept_and_what_is_computed_again_are_the_same_bits(unet):
    """With control in the inversion, and without."""
    acts = control(controlnet(), timesteps=frozenset(SCHEDULE.timesteps[1:]))
    plain = Denoiser(unet, SCHEDULE, FrameIndex((0, "mid")))
    results = []
    for inverting in (None, plain):
        again, kept = (edited(unet, acts, inverting, store) for store in (None, KeptInMemory()))
        assert torch.equal(again, kept)
        results.append(kept)
    assert relative(*results) > 1e-3


@pytest.mark.parametrize("clip_norm", [True, False], ids=["clip-norm", "per-frame-norm"])
def test_chunks_are_the_whole_clip(unet, clip_norm):
    whole = randomize(UNet(SHAPE, clip_norm)).to(memory_format=torch.channels_last)
    acts = control(controlnet())
    acts.net.clip_norm = clip_norm
    expected = edited(whole, acts)
    for store in (None, KeptInMemory()):
        assert relative(edited(Chunks(whole, 2), acts, store=store), expected) < 1e-4


def test_its_attention_is_plain_and_reads_other_frames(unet):
    """Nothing of it is recorded, its sites are no UNet's, and the frame index counts."""
    net = controlnet()
    names = {site.name for site in unet.sites()}
    z, text = numbers(3, 1, FRAMES, 4, SIDE, SIDE), TextContext(TEXT[:1])
    acts, seen = control(net), []

    def attend(site, x):
        seen.append(site)
        return Plain(FrameIndex((0, "mid")))(site, x)

    with torch.no_grad():
        expected = unet(z, 300, text, Plain(FrameIndex((0, "mid"))), control=acts)
        assert torch.equal(unet(z, 300, text, attend, control=acts), expected)
        own = net(z, 300, text, acts.hint, Plain(FrameIndex(())))[0]
        assert relative(net(z, 300, text, acts.hint, Plain(FrameIndex((0, "mid"))))[0], own) > 1e-3
    of_control = [site for site in seen if not site.fusible]
    assert len(of_control) == 8 and {site.name for site in seen if site.fusible} == names
    assert not names & {site.name for site in of_control}


def test_frames_that_are_branches_have_their_own_pictures(unet):
    """SDEdit's: frames as if there were fewer."""
    acts = control(controlnet())
    model = Denoiser(unet, SCHEDULE, FrameIndex(()), control=acts)
    z, task = numbers(3, FRAMES, 4, SIDE, SIDE), Edit(TEXT[1])
    together = SDEdit(1.0)(model, Source(TEXT[0], {CLEAN: z}), task, Guidance(TEXT[0], 3.0))
    for count in (1, 3):
        fewer = dataclasses.replace(model, control=acts.part(range(count)))
        some = SDEdit(1.0)(fewer, Source(TEXT[0], {CLEAN: z[:count]}), task, Guidance(TEXT[0], 3.0))
        assert relative(together[:count], some) < 1e-4
    others = dataclasses.replace(model, control=acts.part([1, 2, 3, 4, 0]))
    assert relative(SDEdit(1.0)(others, Source(TEXT[0], {CLEAN: z}), task, Guidance(TEXT[0], 3.0)), together) > 1e-3


def test_memory_is_predicted_with_it(unet):
    net = controlnet()
    without = Footprint(unet, (SIDE, SIDE), FRAMES)
    beside = dataclasses.replace(without, control=net)
    cpu = torch.device("cpu")
    feature_map = SIDE * SIDE * 16 * 4
    assert beside.working(0, cpu) - without.working(0, cpu) == 6 * FRAMES * feature_map


# ---- edges -------------------------------------------------------------------------------------------------------


def slow_canny(picture, low, high):
    """Canny pixel by pixel, (3, H, W) in [-1, 1], as the papers say, in float64."""
    grey = np.tensordot([0.299, 0.587, 0.114], (picture.double().numpy() + 1) * 127.5, 1)
    at = np.arange(-4, 5)
    gauss = np.exp(-(at**2) / 2) / np.exp(-(at**2) / 2).sum()
    for axis in (0, 1):
        grey = np.apply_along_axis(lambda line: np.convolve(np.pad(line, 4, "edge"), gauss, "valid"), axis, grey)
    p, (h, w) = np.pad(grey, 1, "edge"), grey.shape
    dx = p[:-2, 2:] + 2 * p[1:-1, 2:] + p[2:, 2:] - p[:-2, :-2] - 2 * p[1:-1, :-2] - p[2:, :-2]
    dy = p[2:, :-2] + 2 * p[2:, 1:-1] + p[2:, 2:] - p[:-2, :-2] - 2 * p[:-2, 1:-1] - p[:-2, 2:]
    strength = np.pad(np.abs(dx) + np.abs(dy), 1)
    ridge = np.zeros((h, w), bool)
    for y in range(h):
        for x in range(w):
            angle = np.degrees(np.arctan2(dy[y, x], dx[y, x])) % 180
            down, right = [(0, 1), (1, 1), (1, 0), (1, -1)][int((angle + 22.5) // 45) % 4]
            own = strength[y + 1, x + 1]
            before, after = strength[y + 1 - down, x + 1 - right], strength[y + 1 + down, x + 1 + right]
            ridge[y, x] = own > before and own >= after
    strength = strength[1:-1, 1:-1]
    found, todo = np.zeros((h, w), bool), list(zip(*np.nonzero(ridge & (strength > high)), strict=True))
    while todo:
        y, x = todo.pop()
        if 0 <= y < h and 0 <= x < w and not found[y, x] and ridge[y, x] and strength[y, x] > low:
            found[y, x] = True
            todo += [(y + a, x + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    return found


def test_edges_are_cannys():
    """Of drawn frames and of noise that is smooth enough to have some; all pixels but a few on a tie of rounding."""
    drawn = read_clip(ClipSettings(str(mini.FOLDER / "example"), 2, size=64), 32).frames
    noise = (4 * torch.nn.functional.avg_pool2d(numbers(1, 2, 3, 44, 60), 5, stride=1)).clamp(-1, 1)
    for frames, low, high in ((drawn, 50, 100), (drawn, 20, 300), (noise, 60, 140)):
        found = edges(frames, low, high).numpy()
        expected = np.stack([slow_canny(frame, low, high) for frame in frames])
        assert expected.mean() > 0.005
        assert (found != expected).mean() < 2e-3
        assert not np.array_equal(expected, edges(frames, high, high).numpy()) or low == high


def test_edges_of_a_square():
    """One closed line, a pixel wide, where the square ends; weak edges only beside strong ones."""
    frames = -torch.ones(1, 3, 40, 40)
    frames[..., 10:30, 10:30] = 1
    found = edges(frames)[0]
    rows, columns = found.nonzero().T
    assert set(rows.tolist()) | set(columns.tolist()) <= set(range(8, 32))
    assert 68 <= int(found.sum()) <= 84  # 4 sides of 20, round at the corners
    assert not found[14:26, 14:26].any()
    assert not edges(frames * 0.01).any()


# ---- from files, and from Python ---------------------------------------------------------------------------------

RUN = ["--steps", "2", "--frames", "2", "--size", "64", "--cache", "none", "--threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return written(tmp_path_factory.mktemp("control") / "net")


def latents(out):
    return load_file(out / "latents.safetensors")


def test_a_run_with_control(folder, tmp_path, capsys):
    """Flags to results; once more is nothing to do, with another scale it is another edit of another inversion."""
    argv = [*RUN, "--control", str(folder), "--save-latents"]
    argv[argv.index("none")] = str(tmp_path / "cache")
    assert main([*argv, "--out", str(tmp_path / "a")]) == 0
    assert main([*argv, "--out", str(tmp_path / "a")]) == 0
    assert "nothing was computed" in capsys.readouterr().out
    assert main([*argv, "--out", str(tmp_path / "b"), "--control-scale", "0"]) == 0
    assert main([*argv, "--out", str(tmp_path / "c"), "--invert-without-control"]) == 0
    a, b, c = (latents(tmp_path / name) for name in "abc")
    assert torch.equal(b["inverted.002"], c["inverted.002"]) and not torch.equal(a["inverted.002"], b["inverted.002"])
    last = [x["edited.0.002"] for x in (a, b, c)]
    assert not any(torch.equal(x, y) for x, y in ((last[0], last[1]), (last[1], last[2]), (last[0], last[2])))
    before = len(list((tmp_path / "cache").iterdir()))
    # an inversion without control is the same one with and without a ControlNet
    assert main([*argv[:-3], "--out", str(tmp_path / "d")]) == 0
    assert len(list((tmp_path / "cache").iterdir())) == before == 3


def test_an_interrupted_edit_goes_on_with_it(folder, tmp_path, capsys):
    argv = [*RUN, "--control", str(folder), "--control-window", "0.5", "--save-latents"]
    assert main([*argv, "--out", str(tmp_path / "whole")]) == 0
    inversion = fz.load(control=folder, threads=1).invert(
        fz.read(size=64, frames=2), "a red car moving on the sand", steps=2, control_window=0.5
    )
    edited = inversion.edit("a blue car moving on the sand")
    assert torch.equal(edited.latents[-1], latents(tmp_path / "whole")["edited.0.002"])


def test_methods_and_chunks_with_it(folder, tmp_path):
    for name, more in {
        "ddim": ["--method", "ddim"],
        "pnp": ["--method", "pnp"],
        "sdedit": ["--method", "sdedit"],
        "reconstruction": ["--attention", "reconstruction"],
        "chunk": ["--chunk", "1"],
        "chunk alone": ["--chunk", "1", "--per-frame-norm"],
        "bfloat16": ["--dtype", "bfloat16", "--offload"],
    }.items():
        assert main([*RUN, "--control", str(folder), "--out", str(tmp_path / name), *more]) == 0, name


def test_what_it_is_shown(tmp_path):
    """A folder as long as the clip, one for the frames taken, and one image; cropped and resized as the clip was."""
    rng = np.random.default_rng(0)
    for name, count, size in (
        ("clip", 6, (64, 48)),
        ("maps", 6, (64, 48)),
        ("taken", 2, (32, 32)),
        ("one", 1, (64, 48)),
    ):
        (tmp_path / name).mkdir()
        for i in range(count):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i:02d}.png")
    clip = ClipSettings(str(tmp_path / "clip"), 2, 1, 3, 32, Crop(left=4))
    video = read_clip(clip, 32)
    maps = read_control_video(str(tmp_path / "maps"), (50, 100), clip, video)
    expected = read_clip(dataclasses.replace(clip, path=str(tmp_path / "maps")), 32).frames
    assert torch.equal(maps, expected)
    taken = read_control_video(str(tmp_path / "taken"), (50, 100), clip, video)
    assert torch.equal(taken, read_clip(ClipSettings(str(tmp_path / "taken"), 2, size=32), 32).frames)
    one = read_control_video(str(tmp_path / "one/00.png"), (50, 100), clip, video)
    assert one.shape == video.frames.shape and torch.equal(one[0], one[1])
    canny = read_control_video("canny", (50, 100), clip, video)
    assert torch.equal(canny[:, 0] > 0, edges(video.frames)) and set(canny.unique().tolist()) == {-1.0, 1.0}


def test_python_shows_pictures(folder):
    clip = fz.read(size=64, frames=2)
    editor = fz.load(control=folder, threads=1)
    # at a size at which the UNet, and not the VAE, takes most
    with_it, without = (e.predicted(200, (64, 64)).least for e in (editor, fz.load(threads=1)))
    assert with_it > without
    source = "a red car moving on the sand"
    own = editor.invert(clip, source, steps=2)
    named = editor.invert(clip, source, steps=2, control_video="canny", canny=(50, 100))
    shown = editor.invert(clip, source, steps=2, control_video=clip)
    z = [i.source.tensors(i.schedule)["inverted.002"] for i in (own, named, shown)]
    assert torch.equal(z[0], z[1]) and not torch.equal(z[0], z[2])
    # a folder says which pictures they were
    other = editor.invert(clip, source, steps=2, control_video=clip.frames.flip(0))
    names = [inversion.settings.control_video for inversion in (own, named, shown, other)]
    assert names[:2] == [None, None] and len(set(names)) == 3
    with pytest.raises(FzError, match="control_video: got frames 3 of 64x64"):
        editor.invert(clip, source, steps=2, control_video=torch.zeros(3, 3, 64, 64))
    with pytest.raises(FzError, match="without a ControlNet"):
        fz.load(threads=1).invert(clip, source, steps=2, control_video=clip)


# ---- refusals ----------------------------------------------------------------------------------------------------


def changed(folder, tmp_path, config=None, drop=None, add=None):
    """The folder with another config, without some keys, or with more."""
    new = tmp_path / "bad"
    new.mkdir()
    (new / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | (config or {})))
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    state = {k: t for k, t in state.items() if not drop or drop not in k} | (add or {})
    save_file(state, new / "diffusion_pytorch_model.safetensors")
    return new


FOLDERS = {
    "SDXL's": ({"cross_attention_dim": 2048}, "Stable Diffusion XL"),
    "SD 2's": ({"cross_attention_dim": 1024}, "Stable Diffusion 2"),
    "SD 2's projections": ({"use_linear_projection": True}, "Stable Diffusion 2"),
    "a UNet": ({"_class_name": "UNet2DConditionModel"}, "expected a ControlNetModel"),
    "of nine channels": ({"in_channels": 9}, "in_channels is 9, expected 4"),
    "of one channel": ({"conditioning_channels": 1}, "conditioning_channels is 1, expected 3"),
    "blue first": ({"controlnet_conditioning_channel_order": "bgr"}, "expected 'rgb'"),
    "pooled": ({"global_pool_conditions": True}, "expected False"),
    "a hint that is no list": ({"conditioning_embedding_out_channels": 16}, "expected a list"),
    "no widths": ({"block_out_channels": None}, "expected a list"),
    "an unknown field": ({"gain": 2}, "unknown field gain"),
    "other widths": ({"block_out_channels": [40, 80, 120, 120]}, "of the wrong shape"),
}
KEYS = {
    "cut": (dict(drop="controlnet_mid_block"), "2 keys missing (controlnet_mid_block"),
    "with a decoder": (dict(add={"up_blocks.0.resnets.0.conv1.weight": torch.ones(1)}), "is a UNet"),
    "XL's embedding": (dict(add={"add_embedding.linear_1.weight": torch.ones(1)}), "Stable Diffusion XL"),
    "a union": (dict(add={"task_embedding": torch.ones(1)}), "several kinds of control"),
}
FILES = {
    "a LoRA": ({"lora_unet_down_blocks_0.lora_down.weight": torch.ones(1)}, "a LoRA file"),
    "ldm's UNet": (
        {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1),
         "model.diffusion_model.output_blocks.0.0.x": torch.ones(1)},
        "is a UNet",
    ),
    "an adapter": ({"adapter.body.0.weight": torch.ones(1)}, "a T2I-Adapter"),
    "a difference": (
        {"difference": torch.ones(1), "control_model.zero_convs.0.0.weight": torch.ones(1)},
        "its difference from a UNet",
    ),
    "anything": ({"weight": torch.ones(1)}, "no ControlNet (it has weight)"),
    "nothing of ldm's": ({"input_hint_block.0.weight": torch.ones(1)}, "zero convolutions for 1 levels"),
}  # fmt: skip


def refused(path):
    with pytest.raises(FzError) as raised:
        load_control(path)
    said = str(raised.value)
    assert said.startswith("control: ") and "\n" not in said and len(said) < 600
    return said


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_that_are_refused(name, folder, tmp_path):
    config, expected = FOLDERS[name]
    assert expected in refused(changed(folder, tmp_path, config))


@pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_a_link_to_a_file_that_is_gone(name, folder, tmp_path):
    bad = changed(folder, tmp_path)
    (bad / name).unlink()
    (bad / name).symlink_to("../blobs/0123abcd")
    assert f"{name}: is a link to ../blobs/0123abcd, which does not exist" in refused(bad)


@pytest.mark.parametrize("name", KEYS)
def test_keys_that_are_refused(name, folder, tmp_path):
    how, expected = KEYS[name]
    assert expected in refused(changed(folder, tmp_path, **how))


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_refused(name, tmp_path):
    state, expected = FILES[name]
    save_file(state, tmp_path / "file.safetensors")
    assert expected in refused(tmp_path / "file.safetensors")


def test_places_that_are_refused(tmp_path):
    (tmp_path / "text.safetensors").write_text("no weights")
    assert "does not exist" in refused(tmp_path / "none")
    assert "a text file" in refused(tmp_path / "text.safetensors")
    assert "has no config.json" in refused(tmp_path)
    assert "whole checkpoint" in refused(mini.FOLDER)


def test_another_models_is_refused_beside_the_checkpoint(folder):
    net = load_control(folder)
    check_beside(net, UNetConfig.from_json(json.loads((mini.FOLDER / "unet/config.json").read_text())), 4)
    with pytest.raises(FzError, match=r"control: its block_out_channels is \(40.*the checkpoint's \(320"):
        check_beside(net, UNetConfig(), 8)
    with pytest.raises(FzError, match="control: its pictures are 4 times"):
        check_beside(net, net.config, 8)


FLAGS = {
    "nothing to control": (["--control-scale", "2"], "control_scale: got 2.0 without a ControlNet"),
    "a scale": (
        ["--control", "net", "--control-scale", "-1"],
        "control_scale: got -1.0, expected a number",
    ),
    "a window": (["--control", "net", "--control-window", "0.5,0.2"], "--control-window: got '0.5,0.2'"),
    "thresholds": (["--control", "net", "--canny", "9,3"], "canny: got 9 and 3"),
    "one threshold": (["--control", "net", "--canny", "9"], "expected LOW,HIGH"),
    "thresholds of a video": (["--control", "net", "--control-video", "y", "--canny", "5,9"], "has its own edges"),
    "deep features": (["--control", "net", "--reuse", "3"], "control: got reuse 3, expected 1"),
    "a method": (["--control", "net", "--method", "null-p2p"], "control: got method null-p2p"),
    "no video": (["--control", "net", "--control-video", "none.mp4"], "control_video: "),
    "no file": (
        ["--control", "none.safetensors"],
        "none.safetensors does not exist. Expected a diffusers",
    ),
    "no ControlNet": (["--control", "net"], "control: "),
    "another length": (["--control", "net", "--control-video", "two"], "two holds 2 pictures, expected 1 or 8"),
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags_that_are_refused(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two").mkdir()
    for i in range(2):
        Image.new("RGB", (128, 128)).save(tmp_path / "two" / f"{i}.png")
    # what nobody could read without saying so
    for folder in ("net", "model"):
        (tmp_path / folder).mkdir()
    flags, expected = FLAGS[name]
    clip = ["--video", str(mini.FOLDER / "example"), "--source", "a car", "--target", "a cat"]
    assert main([*clip, "--checkpoint", "model", "--out", "out", *flags]) == 2
    said = capsys.readouterr().err
    assert expected in said and len(said.splitlines()) == 1 and not (tmp_path / "out").exists()
