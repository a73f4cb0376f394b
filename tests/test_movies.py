"""Video files of fourteen containers against a decoder that only goes forwards: every frame is the one it says it is,
wherever reading starts. tests/inputs/movies.py makes the files.
"""

import contextlib
import shutil
import subprocess

import av
import numpy as np
import pytest
from inputs.movies import CUT, VP8, VP9, WHOLE, gif, make, number, see_through, whole

from fz.clips.decode import open_source
from fz.clips.images import on_white
from fz.clips.video import read_clip
from fz.settings.config import ClipSettings

STARTS = (0, 3, 9, 12, 13, 21, 24, 31, 36, 39, 47)


def forwards(path, decoder=None, form="rgb24"):
    """All intact pictures of a file, in the order in which its decoder gives them."""
    pictures = []
    with av.open(str(path)) as box:
        stream = box.streams.video[0]
        context = av.CodecContext.create(decoder, "r") if decoder else stream.codec_context
        for packet in box.demux(stream):
            try:
                pictures += [f.to_ndarray(format=form) for f in context.decode(packet) if not f.is_corrupt]
            except av.FFmpegError:
                continue
    return pictures


def agrees(source, expected, starts=STARTS):
    """Its frames are these pictures, read all at once or each alone."""
    assert source.count == len(expected) and list(source.order) == list(range(len(expected)))
    for index, picture in source.read(range(source.count)):
        assert np.array_equal(picture, expected[index]), f"frame {index} is {number(picture)}"
    for start in starts:
        if start < source.count:
            ((index, picture),) = source.read([start])
            assert index == start and np.array_equal(picture, expected[start]), f"{start} alone is {number(picture)}"


@pytest.mark.parametrize("name", WHOLE)
def test_every_container_and_codec(tmp_path, name):
    path = whole(name, tmp_path)
    expected = forwards(path)
    assert [number(picture) for picture in expected] == list(range(48)), "the file is as it was meant"
    source = open_source(str(path))
    agrees(source, expected)
    assert source.notes == [] and source.fps == pytest.approx(30000 / 1001 if "25th" in name else 25, rel=1e-3)


@pytest.mark.parametrize("name", CUT)
def test_files_that_begin_within_a_group_of_pictures(tmp_path, name):
    """What cannot be decoded is left out, with a note; all else is there."""
    path = CUT[name](tmp_path)
    expected = forwards(path)
    source = open_source(str(path))
    # a recording's last picture is not whole: what is shown after it leans on it
    tail = 2 if name.startswith("recording") else 0
    assert len(expected) - tail <= source.count <= len(expected) and source.count >= 15
    agrees(source, expected[: source.count])
    if name != "recording.h264":
        assert any("cannot be decoded" in note and "left out" in note for note in source.notes)
    assert source.fps == pytest.approx(25, rel=1e-3)
    assert len(read_clip(ClipSettings(str(path), size=64)).frames) == 8


def ffmpeg():
    """The program, of the system or of imageio-ffmpeg; without one the test is skipped."""
    program = shutil.which("ffmpeg")
    if program is None:
        with contextlib.suppress(ImportError, RuntimeError):
            import imageio_ffmpeg

            program = imageio_ffmpeg.get_ffmpeg_exe()
    return program or pytest.skip("needs the ffmpeg program: install it, or imageio-ffmpeg")


def of_ffmpeg(path, height, width):
    """All pictures that the program gives, (F, H, W, 3) uint8."""
    command = [ffmpeg(), "-v", "quiet", "-i", str(path), "-fps_mode", "passthrough", "-f", "rawvideo"]
    raw = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], capture_output=True, check=False).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*WHOLE, *CUT])
def test_against_the_ffmpeg_program(tmp_path, name):
    """Another build of FFmpeg: the same bytes, wherever reading starts and however many frames it passes over. The
    program also shows some pictures whose references were cut off: ours are then the last.
    """
    path = whole(name, tmp_path) if name in WHOLE else CUT[name](tmp_path)
    theirs = of_ffmpeg(path, 48, 64)
    if not len(theirs):
        pytest.skip("that program cannot read this file")
    source = open_source(str(path))
    at = 0
    if name in CUT:
        ((_, first),) = source.read([0])
        numbers = [number(picture) for picture in theirs]
        at = numbers.index(number(first), max(0, len(theirs) - source.count - 2))
        assert len(theirs) - at - source.count <= 2
        theirs = theirs[at : at + source.count]
    assert len(theirs) == source.count
    for start, every in ((0, 1), (1, 2), (5, 3), (9, 7), (13, 13), (source.count - 1, 1)):
        wanted = range(start, source.count, every)
        found = dict(source.read(wanted))
        assert list(found) == list(wanted)
        for index, picture in found.items():
            assert np.array_equal(picture, theirs[index]), f"{index} of {start}::{every} is {number(picture)}"


# what a file says of its colours: (matrix, range), FFmpeg's numbers; 1 is BT.709, 5 and 6 BT.601, 9 BT.2020
TAGS = {"none": (None, None), "709": (1, 1), "709 full": (1, 2), "470bg": (5, 1), "170m full": (6, 2), "2020": (9, 1)}


@pytest.mark.slow
@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("height", [96, 720])
@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9", "mpeg4"])
def test_colours_against_the_ffmpeg_program(tmp_path, codec, height, tags):
    y, x = np.mgrid[:height, : 2 * height] / height
    picture = np.stack([127 * x, 255 * y, 255 - 127 * x], -1).clip(0, 255).astype(np.uint8)
    path, (matrix, span) = tmp_path / "clip.mkv", TAGS[tags]
    with av.open(str(path), "w") as box:
        stream = box.add_stream(codec, rate=25, options={"b": "4000000"})
        stream.height, stream.width, stream.pix_fmt = height, 2 * height, "yuv420p"
        if matrix:
            stream.codec_context.colorspace, stream.codec_context.color_range = matrix, span
        for _ in range(3):
            box.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        box.mux(stream.encode())
    source = open_source(str(path))
    ours = np.stack([picture for _, picture in source.read(range(source.count))])
    assert np.array_equal(ours, of_ffmpeg(path, height, 2 * height))


def test_a_cut_copy_with_an_edit_list(tmp_path):
    """mp4 says by an edit list that its first pictures, which others lean on, are not shown."""
    path = whole("h264-open.mp4", tmp_path)
    target = tmp_path / "cut.mp4"
    subprocess.run([ffmpeg(), "-v", "error", "-ss", "0.8", "-i", str(path), "-c", "copy", str(target)], check=True)
    agrees(open_source(str(target)), forwards(target))


def test_damage_in_the_middle_is_no_cut(tmp_path):
    from fz.errors import FzError

    path = whole("h264.mp4", tmp_path)
    data = bytearray(path.read_bytes())
    at = len(data) // 2
    data[at : at + 3000] = np.random.default_rng(0).bytes(3000)
    path.write_bytes(data)
    source = open_source(str(path))
    assert source.count == 48
    with pytest.raises(FzError, match="corrupt"):
        list(source.read(range(48)))


# ---------------------------------------------------------------- transparency


@pytest.mark.parametrize("codec, options", [("libvpx", VP8), ("libvpx-vp9", VP9)], ids=["vp8", "vp9"])
@pytest.mark.parametrize("kind", ["webm", "mkv"])
def test_transparency_of_vp8_and_vp9_is_on_white(tmp_path, codec, options, kind):
    options = {**options, "auto-alt-ref": "0"}
    path = make(tmp_path / f"a.{kind}", see_through(), codec, pix_fmt="yuva420p", **options)
    source = open_source(str(path))
    agrees(source, [on_white(rgba) for rgba in forwards(path, codec, "rgba")])
    picture = next(iter(source.read([2])))[1]
    assert picture[:, 40:].min() > 250 and picture[:, :24].max() < 90
    assert any("white" in note for note in source.notes)


def test_opaque_vp9_has_no_note(tmp_path):
    assert open_source(str(whole("vp9.webm", tmp_path))).notes == []


# ---------------------------------------------------------------- delays


@pytest.mark.parametrize(
    "delays, fps, order",
    [
        ([10] * 4, 10, [0, 1, 2, 3]),
        ([0] * 4, 10, [0, 1, 2, 3]),
        ([1] * 4, 10, [0, 1, 2, 3]),
        ([2] * 4, 50, [0, 1, 2, 3]),
        ([10, 1, 0, 10], 10, [0, 1, 2, 3]),
        # the last frame rests: it is there for as long
        ([10] * 3 + [40], 10, [0, 1, 2, 3, 3, 3, 3]),
        ([10] * 3 + [300], 10, [0, 1, 2] + [3] * 30),
        ([50, 10], 1 / 0.3, [0, 1]),
        ([10, 10, 50, 10, 10], 5 / 0.9, [0, 2, 2, 3, 3]),
    ],
    ids=str,
)
def test_delays_of_a_gif(tmp_path, delays, fps, order):
    source = open_source(str(gif(tmp_path / "a.gif", delays)))
    assert source.fps == pytest.approx(fps) and list(source.order) == order and source.count == len(order)
    # two delays in hundredths, of which browsers show 0 and 1 as 10
    assert source.count / source.fps == pytest.approx(sum(d if d > 1 else 10 for d in delays) / 100)
    assert not any("truncated" in note for note in source.notes)
    assert [number(picture) for _, picture in source.read(sorted(set(order)))] == sorted(set(order))
