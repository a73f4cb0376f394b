"""What a clip leaves out of its source is said in one line."""

import av
import numpy as np
import pytest
from inputs.movies import make, numbered
from PIL import Image

from fz.clips.media import write_pngs
from fz.clips.taken import frames_line, left_out, seen, whole_size
from fz.clips.video import read_clip
from fz.settings.config import ClipSettings


class Source:
    count, fps, rated, still, audio = 90, 30.0, True, False, True


@pytest.fixture
def with_sound(tmp_path):
    """90 frames of 160x90 at 30 a second, and a tone."""
    with av.open(str(tmp_path / "a.mp4"), "w") as box:
        stream, sound = box.add_stream("libx264", rate=30), box.add_stream("aac", rate=16000)
        stream.width, stream.height, stream.pix_fmt = 160, 90, "yuv420p"
        for _ in range(90):
            box.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((90, 160, 3), np.uint8), format="rgb24")))
        box.mux(stream.encode())
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        box.mux(sound.encode(frame))
        box.mux(sound.encode())
    return tmp_path / "a.mp4"


def test_the_line():
    line = left_out(range(8), Source, (360, 640), (128, 128), 32, "--no-audio")
    expected = "frames 0–7 of 90 (0.27 of 3.00 s), centre 360×360 → 128×128, no audio (--no-audio)"
    assert line == expected + "; --frames all, --every 5, --size 128x224"


def test_a_clip_says_it(with_sound):
    notes = read_clip(ClipSettings(str(with_sound), size=64), multiple=32).notes
    assert "frames 0–7 of 90 (0.27 of 3.00 s), centre 90×90 → 64×64; --frames all, --every 5, --size 64x128" in (notes)


def test_nothing_left_out_says_nothing(tmp_path):
    path = make(tmp_path / "a.mp4", numbered(4, 64, 96), "libx264")
    assert read_clip(ClipSettings(str(path), frames=None, size=(64, 96)), multiple=32).notes == ()
    Image.fromarray(numbered(1, 64, 64)[0]).save(tmp_path / "a.png")
    assert read_clip(ClipSettings(str(tmp_path / "a.png"), frames=1, size=64)).notes == ()


def test_pictures_have_no_seconds(tmp_path):
    write_pngs(tmp_path / "a", numbered(12, 64, 64))
    notes = read_clip(ClipSettings(str(tmp_path / "a"), size=64)).notes
    assert notes == ("frames 0–7 of 12; --frames all",)


@pytest.mark.parametrize(
    "positions, line",
    [
        (range(3, 4), "frame 3 of 90 (0.03 of 3.00 s)"),
        (range(0, 36, 5), "frames 0, 5, …, 35 of 90 (1.33 of 3.00 s)"),
        (range(2, 9, 4), "frames 2, 6 of 90 (0.27 of 3.00 s)"),
        (range(0, 90), "frames 0–89 of 90 (3.00 of 3.00 s)"),
    ],
    ids=str,
)
def test_which_frames(positions, line):
    assert frames_line(positions, 90, 30.0) == line


@pytest.mark.parametrize(
    "part, size, middle, keeps",
    [
        ((360, 640), (512, 512), (360, 360), (512, 896)),
        ((640, 360), (512, 512), (360, 360), (896, 512)),
        ((360, 640), (360, 640), (360, 640), (384, 640)),
        ((64, 64), (128, 192), (43, 64), (128, 128)),
    ],
    ids=str,
)
def test_what_is_seen(part, size, middle, keeps):
    assert seen(part, size) == middle and whole_size(part, size, 64) == keeps
