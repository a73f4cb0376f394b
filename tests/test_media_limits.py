"""Files that are not what their names say, do not end, or are too large: one line each, before anything is decoded.
tests/inputs/files.py makes them.
"""

import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from inputs.files import hls, huge_gif, pipe, playlist, png, postscript, sdp
from inputs.movies import X264, make, numbered
from PIL import Image

from fz.clips import fit, stream, video
from fz.clips.decode import open_source
from fz.clips.media import enlarged, write_mp4
from fz.clips.video import plan_clip, read_clip
from fz.errors import FzError
from fz.memory import budget
from fz.model import fast_vae
from fz.model.vae import VAE, VAEConfig
from fz.results import own
from fz.results.measured import picture
from fz.settings.config import ClipSettings

CPU = torch.device("cpu")


def refused(match, path, **clip):
    with pytest.raises(FzError, match=match) as caught:
        read_clip(ClipSettings(**{"path": str(path), "size": 64, "frames": None, **clip}))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def no_decoding(monkeypatch):
    """Pictures that are decoded are an error."""

    def decoded(*_, **__):
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(Image.Image, "load", decoded)
    monkeypatch.setattr(stream.Decoding, "frames", decoded)


# ---------------------------------------------------------------- not what the name says


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.mp4", "a.gif"])
def test_postscript_is_never_run(tmp_path, monkeypatch, name):
    from PIL import EpsImagePlugin

    def runs(*_, **__):
        raise AssertionError("Ghostscript was asked")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", runs)
    refused("no readable image|is no video", postscript(tmp_path / name))


def test_postscript_among_results_is_never_run(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    ran = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: ran.append(1))
    with pytest.raises(FzError, match="cannot be read as a picture"):
        picture(postscript(tmp_path / "00000.png"))
    assert not ran


@pytest.mark.parametrize("make_text", [playlist, hls], ids=["ffconcat", "hls"])
@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.txt"])
def test_a_playlist_does_not_play_its_neighbours(tmp_path, make_text, name):
    write_mp4(tmp_path / "secret.mp4", numbered(4), 25)
    refused("is no video of a kind that is read|corrupt", make_text(tmp_path / name, "secret.mp4"))


def test_session_descriptions_open_no_port(tmp_path):
    refused("is no video of a kind that is read|corrupt", sdp(tmp_path / "a.mp4"))


def test_the_command_refuses_a_bad_clip_before_torch_is_imported(tmp_path):
    code = "import sys; from fz.run import main; code = main(sys.argv[1:]); print('torch' in sys.modules, code)"
    flags = ["--source", "a red car", "--target", "a blue car", "--out", str(tmp_path / "o")]
    # the miniature knows its words, and comparing words imports torch
    flags += ["--checkpoint", str(tmp_path), "--video"]
    for path in (playlist(tmp_path / "a.mp4", "b.mp4"), "/dev/zero", tmp_path / "none.mp4"):
        done = subprocess.run([sys.executable, "-c", code, *flags, str(path)], capture_output=True, text=True)
        assert done.stdout.strip() == "False 2" and done.stderr.startswith("fz: video: "), done.stderr
    assert not (tmp_path / "o").exists()


# ---------------------------------------------------------------- without an end


@pytest.mark.parametrize("name", ["a.mp4", "a.png", "folder/a.png"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    (tmp_path / "folder").mkdir()
    place = pipe(tmp_path / name)
    refused("is a pipe, expected a video", place.parent if name.startswith("folder") else place)


def test_devices_are_not_read():
    refused("/dev/zero is a device", "/dev/zero")


def test_a_dangling_link_says_where_it_leads(tmp_path):
    os.symlink(tmp_path / "gone.mp4", tmp_path / "v.mp4")
    said = refused("v.mp4 is a link to .*gone.mp4, which does not exist", tmp_path / "v.mp4")
    assert "Did you mean" not in said


# ---------------------------------------------------------------- too large


@pytest.mark.parametrize("name", ["a.png", "folder/a.png"])
def test_pixels_are_bounded_before_decoding(tmp_path, no_decoding, name):
    (tmp_path / "folder").mkdir()
    path = png(tmp_path / name, 12000, 12000)
    refused("12000x12000 .* 144 million pixels; expected at most 67", path.parent if "/" in name else path)


def test_a_gif_may_not_claim_any_size(tmp_path):
    refused("million pixels|corrupt|no pictures|is no video", huge_gif(tmp_path / "a.gif"))


@pytest.mark.parametrize("width, height", [(20000, 2), (65535, 1), (1, 65535)])
def test_narrow_pictures_are_not_enlarged_to_any_size(tmp_path, width, height):
    said = refused("too narrow: it would have to be enlarged to", png(tmp_path / "a.png", width, height), size=512)
    assert f"is {width}x{height}" in said


def test_a_panorama_is_read(tmp_path):
    assert read_clip(ClipSettings(str(png(tmp_path / "a.png", 4000, 100)), size=64)).frames.shape == (1, 3, 64, 64)


def test_a_channel_at_a_time_gives_the_same_numbers():
    part = np.random.default_rng(0).integers(0, 256, (90, 161, 3), dtype=np.uint8)
    alone = torch.cat([fit.fit(fit.to_float(part[..., c : c + 1]), (64, 96)) for c in range(3)])
    assert torch.equal(alone, fit.fit(fit.to_float(part), (64, 96)))


def test_the_clip_is_predicted_before_it_is_opened(tmp_path, monkeypatch):
    path = make(tmp_path / "a.mp4", numbered(20), "libx264", **X264)
    monkeypatch.setattr(video, "free_memory", lambda: 10**9)
    monkeypatch.setattr(video, "open_source", lambda *_: pytest.fail("the file was opened"))
    with pytest.raises(FzError, match="^memory: 8 frames of 8192x8192 need about 19.33 GB, and 1.00 GB are free"):
        plan_clip(ClipSettings(str(path), size=8192))


def test_the_prediction_counts_the_vae(monkeypatch):
    monkeypatch.setattr(fast_vae, "total_memory", lambda: 4 * 10**9)  # too little to make it fast
    with torch.device("meta"):
        sd = VAE(VAEConfig())
    # measured on a CPU: the process grows by 5.8 feature maps of the second level's width while it decodes
    assert budget.vae_bytes(sd, 512, 512, CPU) == 6 * 256 * 512 * 512 * 4
    monkeypatch.setattr(budget, "free_memory", lambda device: 30 * 10**9)
    budget.check_vae(sd, 2048, 2048, CPU)
    with pytest.raises(FzError, match="^memory: the VAE needs about 412.32 GB for a picture of 8192x8192"):
        budget.check_vae(sd, 8192, 8192, CPU)


# ---------------------------------------------------------------- rates


@pytest.mark.parametrize(
    "fps, match",
    [
        (1200, "got 1200 frames a second.* use --every 2 or more"),
        (Fraction(1, 1800), "slower: convert it"),
        (Fraction(1, 3600), "slower: convert it"),
    ],
    ids=str,
)
def test_rates_that_cannot_be_written_are_refused_before_the_work(tmp_path, monkeypatch, fps, match):
    path = make(tmp_path / "a.mp4", numbered(8), "libx264", unit=1 / Fraction(fps))
    monkeypatch.setattr(video.ClipPlan, "read", lambda plan, *_: pytest.fail("the clip was read"))
    refused(f"^fps: .*{match}", path)


def test_every_may_bring_a_rate_out_of_bounds_and_into_them(tmp_path):
    slow = make(tmp_path / "slow.mp4", numbered(8), "libx264", unit=Fraction(200))
    assert read_clip(ClipSettings(str(slow), frames=2, size=64, every=3)).fps == pytest.approx(1 / 600)
    refused("use --every 3 or less", slow, frames=2, every=4)
    fast = make(tmp_path / "fast.mp4", numbered(8), "libx264", unit=Fraction(1, 1200))
    assert read_clip(ClipSettings(str(fast), frames=2, size=64, every=2)).fps == pytest.approx(600)


@pytest.mark.parametrize("fps", [1 / 600, 1000])
def test_rates_at_the_bounds_can_be_written(tmp_path, fps):
    from fz.clips.media import write_gif

    write_mp4(tmp_path / "a.mp4", numbered(3), fps)
    write_gif(tmp_path / "a.gif", numbered(3), fps)
    assert open_source(str(tmp_path / "a.mp4")).fps == pytest.approx(fps, rel=1e-3)


# ---------------------------------------------------------------- folders


def test_other_pictures_in_a_folder_are_not_dropped_without_a_word(tmp_path):
    for k, kind in enumerate(("png", "webp", "avif")):
        Image.fromarray(numbered(3, 64, 64)[k]).save(tmp_path / f"{k}.{kind}", lossless=True, quality=100)
    (tmp_path / "3.heic").write_bytes(b"x")
    (tmp_path / "4.gif").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    for path in (tmp_path, tmp_path / "*"):
        source = open_source(str(path))
        assert source.count == 3
        assert [note for note in source.notes if "2 files of other kinds left out (3.heic, …)" in note]


# ---------------------------------------------------------------- written


def test_small_maps_are_shown_large():
    small = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    large = enlarged(small, 128)
    assert large.shape == (2, 128, 128, 3) and np.array_equal(large[:, ::8, ::8], small)
    assert enlarged(small, 8).shape == small.shape


def test_halves_of_killed_runs_are_folders_and_go(tmp_path):
    (tmp_path / ".a.mp4.123.part").mkdir()
    (tmp_path / ".a.mp4.123.part" / "a.mp4").write_bytes(b"half")
    (tmp_path / ".a.mp4.124.part").mkdir()
    (tmp_path / ".a.mp4.124.part" / "mine.txt").write_bytes(b"whole")
    own.remove_halves(tmp_path, ["a.mp4"])
    assert [p.name for p in tmp_path.rglob("*")] == [".a.mp4.124.part", "mine.txt"]
