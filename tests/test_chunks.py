"""Chunks give what the whole clip gives, plain, recorded and fused, for every frame index; memory does not grow where
it need not.
"""

import os
import subprocess
import sys

import pytest
import torch
from random_weights import numbers, randomize, relative
from safetensors.torch import load_file

from fz.attention import Keep, Plain, Recorder, StopForward
from fz.chunks import Chunks, order
from fz.ddim import CLEAN, Schedule
from fz.denoiser import Denoiser
from fz.edit import Edit, edit, invert
from fz.errors import FzError
from fz.frames import FrameIndex
from fz.fusion import Fuser, Fusion
from fz.guidance import Guidance
from fz.masks import EditRegion, LatentBlend
from fz.memory.budget import live_maps
from fz.memory.kept import KeptInMemory
from fz.model.layers import TextContext
from fz.model.unet import Temporal, UNet, UNetConfig
from fz.run import main
from fz.settings.config import build
from fz.source import Source

WORDS, FRAMES, SIDE = 77, 5, 16
SHAPE = dict(
    block_out_channels=(16, 32, 32, 32),
    layers_per_block=1,
    heads=(2, 2, 2, 2),
    cross_attention_dim=24,
    norm_num_groups=8,
)
INDEXES = [(0, "mid"), ("mid",), (-1, "first"), (0, "first", "last"), (), (-2, 0), ("last", "last", 0)]
ANY_ORDER = [(-1, 1), (-1, "mid")]
TEXT = numbers(2, 2, WORDS, 24)
SCHEDULE = Schedule.from_config({}, 3)


def model(clip_norm, temporal=None):
    unet = randomize(UNet(UNetConfig(**SHAPE, temporal=temporal), clip_norm))
    return unet.to(memory_format=torch.channels_last)


@pytest.fixture(scope="module", params=[True, False], ids=["clip-norm", "per-frame-norm"])
def unet(request):
    return model(request.param)


def fusion():
    beta = torch.ones(SCHEDULE.steps + 1, WORDS)
    alpha = torch.ones(WORDS)
    alpha[5] = 0
    return Fusion(torch.diag(alpha), alpha, torch.ones(WORDS), beta, (0, 3))


def region():
    words = torch.zeros(WORDS)
    words[[2, 5]] = 1
    return EditRegion(words, latent_blend=LatentBlend(words, words))


def close(a, b):
    assert a.shape == b.shape and relative(a, b) < 1e-5


@pytest.mark.parametrize("entries", INDEXES, ids=str)
@torch.no_grad()
def test_plain_and_recorded(unet, entries):
    # layers of 16 channels read their own frame only
    index, z = FrameIndex(entries, 32 if "last" in entries else 0), numbers(3, 2, FRAMES, 4, SIDE, SIDE)
    expected = unet(z, 300, TextContext(TEXT), Plain(index))
    seen = Recorder(index, branch=-1, keep=Keep(True, True))
    assert relative(unet(z, 300, TextContext(TEXT), seen), expected) < 1e-6
    for size in (1, 2):
        chunks = Chunks(unet, size)
        close(chunks(z, 300, TextContext(TEXT), Plain(index)), expected)
        ours = Recorder(index, branch=-1, keep=Keep(True, True))
        close(chunks(z, 300, TextContext(TEXT), ours), expected)
        close(ours.average(), seen.average())
        assert ours.qk.keys() == seen.qk.keys() and ours.qk
        for name, operands in seen.qk.items():
            for a, b in zip(ours.qk[name], operands, strict=True):
                close(a, b)


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
@pytest.mark.parametrize("entries", INDEXES, ids=str)
@torch.no_grad()
def test_fused(unet, entries, masked):
    index, z = FrameIndex(entries), numbers(3, 2, FRAMES, 4, SIDE, SIDE)
    source_text = TextContext(numbers(7, 1, WORDS, 24))
    masks = {s: numbers(i, FRAMES, SIDE // s, SIDE // s) > 0 for i, s in enumerate((2, 4, 8))} if masked else None
    source = Recorder(index, keep=Keep(True, True))
    unet(numbers(4, 1, FRAMES, 4, SIDE, SIDE), 300, source_text, source)

    def fused():
        return Fuser(index, fusion().at(0), source.qk, source_text, masks, record_target=True)

    attend = fused()
    expected = unet(z, 300, TextContext(TEXT), attend)
    plain = unet(z, 300, TextContext(TEXT), Plain(index))
    assert relative(expected[0], plain[0]) < 1e-5 and relative(expected[1], plain[1]) > 1e-2
    for size in (1, 2):
        ours = fused()
        close(Chunks(unet, size)(z, 300, TextContext(TEXT), ours), expected)
        source_map = source.average()
        close(ours.fused_target_map(source_map), attend.fused_target_map(source_map))


@pytest.mark.parametrize("entries", [(0, "mid"), (-1, "first")], ids=str)
@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_a_whole_edit_recomputed_and_kept(unet, entries, guidance):
    """Recomputed operands of chunks are made when they are fused, and are inversion's own bits."""
    index, z0 = FrameIndex(entries), numbers(5, FRAMES, 4, SIDE, SIDE)

    def run(model, kept):
        model = Denoiser(model, SCHEDULE, index)
        store = {"store": KeptInMemory(), "keep": lambda k: Keep(True, True)} if kept else {}
        source = invert(model, Source(TEXT[0], latents={CLEAN: z0}, **store))
        return edit(model, source, Edit(TEXT[1], fusion(), region()), Guidance(numbers(8, WORDS, 24), guidance))

    expected = run(unet, kept=False)
    chunks = Chunks(unet, 2)
    recomputed = run(chunks, kept=False)
    assert torch.equal(run(chunks, kept=True), recomputed)
    assert relative(recomputed, expected) < 1e-3


@torch.no_grad()
def test_a_pass_that_is_broken_off_has_all_frames(unet):
    index, z = FrameIndex((0, "mid")), numbers(3, 1, FRAMES, 4, SIDE, SIDE)
    last = [s.name for s in unet.sites() if Keep(True, True).wants(s)][-2]
    seen = Recorder(index, keep=Keep(True, True), last=last)
    with pytest.raises(StopForward):
        Chunks(unet, 2)(z, 300, TextContext(TEXT[:1]), seen)
    assert len(seen.qk[last][0]) == FRAMES


@pytest.mark.parametrize("entries", [(0, "mid"), *ANY_ORDER], ids=str)
@torch.no_grad()
def test_clip_norm_takes_tuned_models_and_any_index(entries):
    unet = model(True, Temporal(conv="full"))
    index, z = FrameIndex(entries), numbers(3, 1, FRAMES, 4, SIDE, SIDE)
    expected = unet(z, 300, TextContext(TEXT[:1]), Plain(index))
    close(Chunks(unet, 2)(z, 300, TextContext(TEXT[:1]), Plain(index)), expected)


@pytest.mark.parametrize("entries", ANY_ORDER, ids=str)
@torch.no_grad()
def test_what_no_order_of_chunks_serves_is_refused(entries):
    chunks, z = Chunks(model(False), 2), numbers(3, 1, FRAMES, 4, SIDE, SIDE)
    with pytest.raises(FzError, match="chunk: got frame index .* expected .* Leave out --per-frame-norm or --chunk"):
        chunks(z, 300, TextContext(TEXT[:1]), Plain(FrameIndex(entries)))
    # a clip that is one chunk needs no order
    assert chunks(z[:, :2], 300, TextContext(TEXT[:1]), Plain(FrameIndex(entries))).isfinite().all()


def test_tuned_models_with_per_frame_norm_are_refused():
    with pytest.raises(FzError, match="chunk: got a checkpoint with temporal layers and per-frame GroupNorm"):
        Chunks(model(False, Temporal()), 3)


def test_anchors_run_first_and_nothing_runs_twice():
    assert order(FrameIndex((0, "mid", "last")), 8, 3) == [[3, 7], [0, 1, 2], [4, 5, 6]]
    assert order(FrameIndex((-1, "first")), 5, 2) == [[0, 1], [2, 3], [4]]
    assert order(FrameIndex((-1, 5)), 5, 5) == [[0, 1, 2, 3, 4]]


PEAK = """
import sys
import torch
from fz.model import fast_cpu
from fz.chunks import Chunks
from fz.frames import FrameIndex
from fz.attention import Plain
from fz.model.layers import TextContext
from fz.memory.machine import peak_memory
from fz.model.unet import UNet, UNetConfig
torch.set_num_threads(1)
fast_cpu.keep_freed_memory()
frames, chunk, clip_norm = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "clip"
torch.manual_seed(0)
config = UNetConfig(block_out_channels=(32, 32, 32, 32), layers_per_block=1, heads=(2,) * 4, cross_attention_dim=24,
                    norm_num_groups=8)
unet = UNet(config, clip_norm).eval().to(memory_format=torch.channels_last)
run = Chunks(unet, chunk) if chunk else unet
def forward(frames):
    return run(torch.randn(1, frames, 4, 32, 32), 300,
               TextContext(torch.randn(1, 77, 24)), Plain(FrameIndex((0, "mid"))))
with torch.no_grad():
    forward(2)
    before = peak_memory(torch.device("cpu"))
    forward(frames)
print(peak_memory(torch.device("cpu")) - before)
"""


def peak(frames, chunk, norm):
    run = subprocess.run(
        [sys.executable, "-c", PEAK, str(frames), str(chunk), norm],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return int(run.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux has it")
def test_peak_memory_is_flat_with_per_frame_norm_and_less_with_clip_norm():
    # eight times the frames; 10 MB are their latents and an allocator's share, which differs from run to run
    chunks, more, whole = peak(16, 8, "frame"), peak(128, 8, "frame"), peak(64, 0, "frame")
    assert more < 1.8 * chunks and more < 0.3 * whole
    assert peak(64, 8, "clip") < 0.8 * peak(64, 0, "clip")


def settings(**changes):
    return build({"clip.path": "a.mp4", "source": "a red car", "edits.0.target": "a boat", "chunk": 4} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk": 0}, "chunk: got 0, expected a whole number"),
        ({"method": "pnp"}, "chunk: got 4 with method pnp, expected"),
        ({"source": "a red car", "edits.0.remove": "red"}, "chunk: got 4 with an edit that removes"),
    ],
    ids=["zero", "method", "remove"],
)
def test_settings_that_chunks_cannot_do_are_refused(changes, message):
    assert settings().chunk == 4
    with pytest.raises(FzError, match=message):
        settings(**changes)


def test_predicted_memory_does_not_grow_where_chunks_run_alone():
    assert (
        live_maps(64, 8, clip_norm=False) == live_maps(640, 8, clip_norm=False) < live_maps(64, None, clip_norm=False)
    )
    assert live_maps(8, 8, clip_norm=True) == live_maps(8, None, clip_norm=False) == live_maps(8, 100, clip_norm=False)
    assert live_maps(64, 8, clip_norm=True) < live_maps(64, None, clip_norm=True)


def run(shared, tmp_path, *flags):
    out = tmp_path / "-".join(("out", *flags))
    arguments = [
        "--video",
        str(shared / "data/jeep"),
        "--checkpoint",
        str(shared / "golden/tiny_sd"),
        "--source",
        "a jeep on a road",
        "--target",
        "a red jeep on a road",
        "--size",
        "64",
        "--frames",
        "5",
        "--steps",
        "2",
        "--threads",
        "1",
        "--device",
        "cpu",
        "--cache",
        "none",
        "--conv",
        "direct",
        "--save-latents",
        "--out",
        str(out),
        *flags,
    ]
    return main(arguments), out


@pytest.mark.parametrize("flags", [(), ("--per-frame-norm",), ("--per-frame-norm", "--frame-index=-1,first")], ids=str)
def test_a_run_in_chunks_is_the_run(shared, tmp_path, flags, capsys):
    code, whole = run(shared, tmp_path, *flags)
    assert code == 0
    code, parts = run(shared, tmp_path, "--chunk", "2", *flags)
    assert code == 0
    a, b = (load_file(folder / "latents.safetensors") for folder in (whole, parts))
    assert a.keys() == b.keys() and relative(b["edited.0.002"].float(), a["edited.0.002"].float()) < 1e-3


def test_a_chunk_of_all_frames_is_fused_whole(shared, tmp_path, capsys):
    """Frames that all others read go together, so many as they are: recomputing their queries and keys was a bug."""
    flags = ("--frames", "2", "--per-frame-norm", "--frame-index=first,last", "--store", "recompute")
    code, whole = run(shared, tmp_path, *flags)
    assert code == 0
    code, parts = run(shared, tmp_path, "--chunk", "1", *flags)
    assert code == 0, capsys.readouterr().err
    a, b = (load_file(folder / "latents.safetensors") for folder in (whole, parts))
    assert relative(b["edited.0.002"].float(), a["edited.0.002"].float()) < 1e-3


def test_a_run_refuses_an_index_before_it_starts(shared, tmp_path, capsys):
    code, out = run(shared, tmp_path, "--chunk", "2", "--per-frame-norm", "--frame-index=-1,mid", "--dry-run")
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and "chunk: got frame index" in said[-1]
