"""Reading: the released code's frames and numbers, and real files of every kind made here with PyAV and Pillow."""

import dataclasses
import json
import os
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from inputs.movies import numbered
from PIL import Image
from safetensors import safe_open

from fz.clips import decode, images, movie, stream
from fz.clips.fit import fit
from fz.clips.media import to_uint8, write_gif, write_mp4, write_pngs
from fz.clips.video import choose, read_clip, round_size
from fz.errors import FzError
from fz.settings.config import ClipSettings, Crop

RED, GREEN, BLUE, WHITE = (230, 20, 20), (20, 200, 40), (30, 40, 220), (240, 240, 240)


def grey(count, height=48, width=64, step=4):
    """Frame k has grey level step * k: the level tells which frame came out."""
    return np.stack([np.full((height, width, 3), step * k, np.uint8) for k in range(count)])


def quarters(height=64, width=96):
    """Red, green; blue, white: tells which way is up."""
    picture = np.zeros((height, width, 3), np.uint8)
    h, w = height // 2, width // 2
    picture[:h, :w], picture[:h, w:], picture[h:, :w], picture[h:, w:] = RED, GREEN, BLUE, WHITE
    return picture


def corners(picture):
    """The four quarters' middles of (H, W, 3) or of a (3, H, W) frame in [-1, 1]."""
    if isinstance(picture, torch.Tensor):
        picture = to_uint8(picture[None])[0]
    h, w = picture.shape[:2]
    return [tuple(picture[y, x].tolist()) for y in (h // 4, 3 * h // 4) for x in (w // 4, 3 * w // 4)]


def same(got, expected, tolerance=12):
    assert np.abs(np.array(got, int) - np.array(expected, int)).max() <= tolerance, f"{got} is not {expected}"


def encode(
    path, frames, times=None, unit=Fraction(1, 25), codec="libx264", pix_fmt="yuv420p", prepare=None, gop=12, **options
):
    """A video file with given display times (in units)."""
    with av.open(str(path), "w") as box:
        stream = box.add_stream(codec, rate=1 / unit, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.gop_size = pix_fmt, gop
        stream.codec_context.time_base = unit
        if prepare:
            prepare(stream)
        for picture, pts in zip(frames, times or range(len(frames)), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = pts, unit
            box.mux(stream.encode(frame))
        box.mux(stream.encode())
    return path


def levels(video, step=4):
    """Which frames of grey() these are."""
    return np.rint(to_uint8(video.frames).astype(float).mean((1, 2, 3)) / step).astype(int).tolist()


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    """20 frames at 25 fps."""
    path = tmp_path_factory.mktemp("clip") / "twenty.mp4"
    write_mp4(path, grey(20), 25)
    return path


# ---------------------------------------------------------------- the released code's numbers


@pytest.mark.parametrize("name", ["landscape_down", "portrait_down", "up", "same", "odd_crop", "offset"])
def test_resizes_as_released(golden, tmp_path, name):
    with safe_open(golden / "resize.safetensors", "pt") as file:
        picture, expected = file.get_tensor(f"{name}.in"), file.get_tensor(f"{name}.out")
        settings = json.loads(file.metadata()[name])
    Image.fromarray(picture.numpy()).save(tmp_path / "0.png")
    clip = ClipSettings(str(tmp_path), frames=1, size=settings["image_size"], crop=Crop(**settings.get("offset", {})))
    frame = read_clip(clip).frames[0]
    assert frame.shape == expected.shape and frame.dtype == torch.float32
    assert (frame - expected).abs().max() <= 1e-6


def test_golden_clip_is_read_exactly(golden):
    with safe_open(golden / "01_style.safetensors", "pt") as file:
        expected = file.get_tensor("frames_u8")
    video = read_clip(ClipSettings(str(golden / "clips" / "car128"), frames=8, size=128))
    assert torch.equal(video.frames, expected.permute(0, 3, 1, 2).float().div(255) * 2 - 1)
    assert video.indices == tuple(range(8)) and video.notes == ()


def test_chooses_frames_as_released(golden):
    tried = 0
    for case in json.loads((golden / "frame_indices.json").read_text()):
        settings = case["kwargs"]
        frames = settings["n_sample_frame"]
        asked = (
            20,
            None if frames == -1 else frames,
            settings.get("start_sample_frame", 0),
            settings.get("sampling_rate", 1),
        )
        if isinstance(case["frames"], str):
            with pytest.raises(FzError):
                choose(*asked)
        else:
            assert list(choose(*asked)) == case["frames"][0]
        tried += 1
    assert tried == 7


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    "asked, given",
    [
        (512, 512),
        (500, 512),
        (64, 64),
        (33, 64),
        (32, 64),
        ((128, 192), (128, 192)),
        ((360, 640), (384, 640)),
        ([96, 95], (128, 64)),
    ],
)
def test_rounded_sizes_are_noted(asked, given):
    size, note = round_size(asked)
    assert size == given
    changed = given != (tuple(asked) if isinstance(asked, list) else asked)
    assert (note is not None) == changed
    if changed:
        assert "is rounded to" in note and "64" in note


@pytest.mark.parametrize(
    "size", [0, -64, (0, 64), (64, -1), 31, (512, 16), 100000, "512", 12.5, (1, 2, 3), (), None, True]
)
def test_refuses_sizes(size):
    with pytest.raises(FzError, match="^size"):
        round_size(size)


@pytest.mark.parametrize("source", [(90, 160), (160, 90), (64, 64), (300, 64), (65, 97)], ids=str)
@pytest.mark.parametrize("size", [(64, 128), (128, 64), (64, 64), (192, 128)], ids=str)
def test_any_size_is_covered_and_centred(source, size):
    """A ramp keeps its middle and its aspect ratio: equal slopes across and down, zero at the centre."""
    h, w = source
    y, x = torch.meshgrid(torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2, indexing="ij")
    out = fit(torch.stack([x, y, torch.ones(h, w)]), size)
    assert out.shape == (3, *size)
    scale = max(size[0] / h, size[1] / w)
    middle = out[:, size[0] // 4 : -size[0] // 4, size[1] // 4 : -size[1] // 4]
    assert (middle[0].diff(dim=1).mean() - 1 / scale).abs() < 0.03 / scale
    assert (middle[1].diff(dim=0).mean() - 1 / scale).abs() < 0.03 / scale
    # Centred to within a pixel of the output.
    assert middle[0].mean().abs() <= 1 / scale and middle[1].mean().abs() <= 1 / scale
    assert (out[2] - 1).abs().max() < 1e-5


def test_read_clip_rounds_and_says_so(twenty):
    video = read_clip(ClipSettings(str(twenty), frames=2, size=(100, 190)))
    assert video.frames.shape == (2, 3, 128, 192)
    assert "size 100x190 is rounded to 128x192: the model needs multiples of 64" in video.notes
    assert any("enlarged 3 times" in note for note in video.notes)
    assert read_clip(ClipSettings(str(twenty), frames=2, size=40), multiple=8).frames.shape == (2, 3, 40, 40)


def test_square_is_square_from_any_square():
    # The released int(scale * side) may fall one short of the side.
    for side in range(33, 120):
        assert fit(torch.rand(3, side, side), (64, 64)).shape == (3, 64, 64)


def test_crop_is_taken_before_the_size(tmp_path):
    picture = np.zeros((70, 100, 3), np.uint8)
    picture[3:67, 11:75] = quarters(64, 64)
    Image.fromarray(picture).save(tmp_path / "a.png")
    video = read_clip(ClipSettings(str(tmp_path / "a.png"), size=64, crop=Crop(left=11, right=25, top=3, bottom=3)))
    assert np.array_equal(to_uint8(video.frames)[0], quarters(64, 64))


@pytest.mark.parametrize(
    "crop", [Crop(left=32, right=32), Crop(top=48), Crop(bottom=1000), Crop(left=-1), Crop(top=1.5)], ids=str
)
def test_refuses_crops(twenty, crop):
    with pytest.raises(FzError, match="^crop"):
        read_clip(ClipSettings(str(twenty), size=64, crop=crop))


# ---------------------------------------------------------------- video files


@pytest.mark.parametrize(
    "name, codec, options",
    [
        ("a.mp4", "libx264", {}),
        ("a.webm", "libvpx-vp9", {"cpu-used": "8", "deadline": "realtime"}),
        ("hidden.webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
        ("b_frames.mkv", "libx264", {"bf": "3", "x264-params": "open-gop=1"}),
        ("a.avi", "mpeg4", {"b": "8000000"}),
        ("raw.h264", "libx264", {}),
        ("a.ts", "libx264", {}),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_reads_every_kind(tmp_path, name, codec, options):
    unit = Fraction(1, 1000) if name.endswith("webm") else Fraction(1, 25)
    path = encode(
        tmp_path / name,
        grey(40, step=6),
        [40 * k for k in range(40)] if name.endswith("webm") else None,
        unit,
        codec,
        **options,
    )
    video = read_clip(ClipSettings(str(path), frames=None, size=64))
    assert video.indices == tuple(range(40)) and levels(video, 6) == list(range(40))
    assert video.fps == pytest.approx(25) and not any("rate" in note for note in video.notes)
    late = read_clip(ClipSettings(str(path), frames=3, start=29, every=5, size=64))
    assert late.indices == (29, 34, 39) and levels(late, 6) == [29, 34, 39]
    assert late.fps == pytest.approx(5)


def test_every_start_gives_its_own_frame(tmp_path):
    """Key frames, B frames and open groups: seeking never changes which frame comes."""
    path = encode(tmp_path / "a.mp4", grey(40), gop=7, bf="2", **{"x264-params": "open-gop=1"})
    for start in range(40):
        assert levels(read_clip(ClipSettings(str(path), frames=1, start=start, size=64))) == [start]


def test_decodes_no_more_than_needed(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", grey(60), gop=5, bf="0")
    source = decode.open_source(str(path))
    seen, inner = [], stream.Decoding.frames

    def counting(self, *file):
        for frame in inner(self, *file):
            seen.append(frame.pts)
            yield frame

    monkeypatch.setattr(stream.Decoding, "frames", counting)
    list(source.read([1, 3]))
    assert len(seen) == 4
    seen.clear()
    list(source.read([50]))
    assert len(seen) <= 11


@pytest.mark.parametrize("fps", [30000 / 1001, 24000 / 1001, 12.5, 60, 1])
@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_rate_comes_through(tmp_path, fps, kind):
    path = tmp_path / f"a.{kind}"
    (write_mp4 if kind == "mp4" else write_gif)(path, grey(25, 16, 16, 10), fps)
    video = read_clip(ClipSettings(str(path), frames=None, size=64))
    assert video.fps == pytest.approx(fps, rel=1e-6 if kind == "mp4" else 0.2 if fps == 60 else 0.02)
    assert video.indices == tuple(range(25))
    assert read_clip(ClipSettings(str(path), frames=4, every=3, size=64)).fps == pytest.approx(video.fps / 3)


@pytest.mark.parametrize(
    "degrees, mirror, expected",
    [
        (0, None, [RED, GREEN, BLUE, WHITE]),
        (90, None, [GREEN, WHITE, RED, BLUE]),
        (-90, None, [BLUE, RED, WHITE, GREEN]),
        (180, None, [WHITE, BLUE, GREEN, RED]),
        (0, "hflip", [GREEN, RED, WHITE, BLUE]),
        (0, "vflip", [BLUE, WHITE, RED, GREEN]),
        (90, "hflip", [WHITE, GREEN, BLUE, RED]),
    ],
)
def test_turned_mp4_is_upright(tmp_path, degrees, mirror, expected):
    def prepare(stream):
        stream.set_display_rotation(degrees, **({mirror: True} if mirror else {}))

    path = encode(tmp_path / "a.mp4", np.stack([quarters()] * 2), prepare=prepare, crf="4")
    video = read_clip(ClipSettings(str(path), frames=2, size=(128, 64) if degrees in (90, -90) else (64, 128)))
    same(corners(video.frames[1]), expected)
    # The picture's own size, not only the fitted one.
    (_, picture), *_ = decode.open_source(str(path)).read([0])
    assert picture.shape == ((96, 64, 3) if degrees in (90, -90) else (64, 96, 3))


def test_wide_pixels_are_widened(tmp_path):
    def prepare(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)

    path = encode(tmp_path / "a.mp4", np.stack([quarters(64, 64)] * 2), prepare=prepare, crf="4")
    video = read_clip(ClipSettings(str(path), frames=1, size=(64, 128)))
    same(corners(video.frames[0]), [RED, GREEN, BLUE, WHITE])
    assert any("2:1" in note for note in video.notes)


@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_variable_rate_is_made_constant(tmp_path, kind):
    """10 frames 100 ms apart, then 10 frames 200 ms apart: each position shows the frame nearest in time."""
    times = [100 * k for k in range(10)] + [900 + 200 * k for k in range(1, 11)]
    codec, options = ("libx264", {}) if kind == "mp4" else ("libvpx-vp9", {"cpu-used": "8", "deadline": "realtime"})
    path = encode(tmp_path / f"a.{kind}", grey(20), times, Fraction(1, 1000), codec, **options)
    video = read_clip(ClipSettings(str(path), frames=None, size=64))
    assert video.fps == pytest.approx(19 / 2.9, rel=0.01)
    assert any("variable" in note for note in video.notes)
    assert len(video.indices) == 20 and levels(video) == list(video.indices)
    for place, index in enumerate(video.indices):
        assert abs(times[index] - place * 2900 / 19) <= min(abs(t - place * 2900 / 19) for t in times) + 1e-6
    assert video.indices[0] == 0 and video.indices[-1] == 19 and len(set(video.indices)) < 20


@pytest.mark.parametrize("unit, fps", [(1000, 30000 / 1001), (100, 60), (100, 24), (1000, 240)], ids=str)
def test_rounded_times_are_no_variable_rate(unit, fps):
    times = [round(k * unit / fps) / unit for k in range(500)]
    rate, order = movie.timeline(times, fps)
    assert order == list(range(500)) and rate == fps


def test_gif_that_rests_on_its_last_frame_keeps_its_rate(tmp_path):
    pictures = [Image.fromarray(f) for f in grey(8, step=20)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=[100] * 7 + [2000])
    video = read_clip(ClipSettings(str(tmp_path / "a.gif"), size=64))
    assert video.indices == tuple(range(8)) and video.fps == pytest.approx(10)


def test_transparent_gif_is_on_white(tmp_path):
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[:, :16] = (*RED, 255)
    pictures = [Image.fromarray(rgba), Image.fromarray(rgba[:, ::-1].copy())]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=100, disposal=2)
    video = read_clip(ClipSettings(str(tmp_path / "a.gif"), frames=2, size=64))
    same(corners(video.frames[0]), [RED, (255, 255, 255)] * 2, 3)
    same(corners(video.frames[1]), [(255, 255, 255), RED] * 2, 3)
    assert any("white" in note for note in video.notes)


@pytest.mark.parametrize("shape", [(49, 65), (33, 64), (2, 2)], ids=str)
def test_odd_sizes(tmp_path, shape):
    path = encode(tmp_path / "a.mp4", grey(3, *shape), pix_fmt="yuv444p")
    video = read_clip(ClipSettings(str(path), frames=3, size=64))
    assert video.frames.shape == (3, 3, 64, 64) and levels(video) == [0, 1, 2]


def test_ten_bit_and_colours(tmp_path):
    path = encode(tmp_path / "a.mp4", np.stack([quarters()] * 2), pix_fmt="yuv420p10le", crf="4")
    same(corners(read_clip(ClipSettings(str(path), frames=1, size=(64, 128))).frames[0]), [RED, GREEN, BLUE, WHITE])


def test_one_frame_mp4(tmp_path):
    path = encode(tmp_path / "a.mp4", grey(1))
    video = read_clip(ClipSettings(str(path), frames=1, size=64))
    assert video.indices == (0,) and video.fps == pytest.approx(25)
    with pytest.raises(FzError, match="has 1 frame, too few for 8 frames"):
        read_clip(ClipSettings(str(path), size=64))


def test_a_name_with_a_colon_or_percent(tmp_path):
    for name in ("a:b.mp4", "shot%03d.mp4", "sp ace'é.mp4", "[1].mp4"):
        path = encode(tmp_path / name, grey(2))
        assert len(read_clip(ClipSettings(str(path), frames=2, size=64)).indices) == 2


# ---------------------------------------------------------------- images


@pytest.mark.parametrize("kind", ["png", "jpg", "jpeg", "webp", "bmp", "PNG"])
def test_folder_of_images(tmp_path, kind):
    for k in range(4):
        Image.fromarray(grey(4, 64, 64, 40)[k]).save(tmp_path / f"{k:05d}.{kind}")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._00000.png").write_bytes(b"left by another system")
    video = read_clip(ClipSettings(str(tmp_path), frames=None, size=64))
    assert levels(video, 40) == [0, 1, 2, 3] and video.fps == 8 and video.notes == ()
    assert read_clip(ClipSettings(str(tmp_path), frames=2, every=2, size=64)).indices == (0, 2)


def test_numbers_in_names_count_as_numbers(tmp_path):
    for k in range(12):
        Image.fromarray(grey(12, 64, 64, 20)[k]).save(tmp_path / f"frame{k}.png")
    video = read_clip(ClipSettings(str(tmp_path), frames=None, size=64))
    assert levels(video, 20) == list(range(12))
    assert any("frame2.png before frame10.png" in note for note in video.notes)


def test_glob(tmp_path):
    write_pngs(tmp_path / "a", grey(12, 64, 64, 20))
    assert levels(read_clip(ClipSettings(str(tmp_path / "a" / "0000*.png"), frames=None, size=64)), 20) == list(
        range(10)
    )
    write_mp4(tmp_path / "one.mp4", grey(2), 8)
    assert len(read_clip(ClipSettings(str(tmp_path / "*.mp4"), frames=2, size=64)).indices) == 2


def test_single_image_is_one_frame(tmp_path):
    Image.fromarray(quarters(64, 64)).save(tmp_path / "a.png")
    video = read_clip(ClipSettings(str(tmp_path / "a.png"), size=64))
    assert video.frames.shape == (1, 3, 64, 64) and video.fps == 8
    assert np.array_equal(to_uint8(video.frames)[0], quarters(64, 64))
    assert video.notes == ("a.png is one image: a clip of 1 frame, not 8",)
    assert read_clip(ClipSettings(str(tmp_path / "a.png"), frames=1, size=64)).notes == ()


@pytest.mark.parametrize("path", ["", "*", "*.png"], ids=["folder", "glob", "glob of images"])
def test_a_folder_of_one_image_is_that_image(tmp_path, path):
    """Whatever else is in it, as a caption."""
    write_pngs(tmp_path / "a", grey(1, 64, 64))
    (tmp_path / "a" / "notes.txt").write_text("text")
    video = read_clip(ClipSettings(str(tmp_path / "a" / path), size=64))
    assert len(video.frames) == 1 and video.notes[0].endswith(" is one image: a clip of 1 frame, not 8")


@pytest.mark.parametrize("name", ["a.tif", "a.tiff"])
def test_a_tiff_of_several_pages_is_a_clip(tmp_path, name):
    pages = [Image.fromarray(p) for p in grey(9, 64, 64, 20)]
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    video = read_clip(ClipSettings(str(tmp_path / name), frames=4, start=1, every=2, size=64))
    assert video.indices == (1, 3, 5, 7) == tuple(levels(video, 20)) and video.fps == 8
    assert len(read_clip(ClipSettings(str(tmp_path / "*.ti*"), frames=9, size=64)).frames) == 9
    with pytest.raises(FzError, match="has 9 frames, too few for 12"):
        read_clip(ClipSettings(str(tmp_path / name), frames=12, size=64))


def test_a_tiffs_small_copy_of_itself_is_no_frame(tmp_path):
    """Scanners and cameras leave one as another page."""
    picture = Image.fromarray(grey(2, 64, 64, 100)[1])
    small = picture.resize((16, 16))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    picture.save(tmp_path / "a.tif", save_all=True, append_images=[small])
    with Image.open(tmp_path / "a.tif") as image:
        assert image.n_frames == 2
    video = read_clip(ClipSettings(str(tmp_path / "a.tif"), size=64))
    assert levels(video, 100) == [1] and "is one image" in video.notes[0]
    (tmp_path / "b").mkdir()
    for k in range(3):
        (tmp_path / "b" / f"{k}.tif").write_bytes((tmp_path / "a.tif").read_bytes())
    assert levels(read_clip(ClipSettings(str(tmp_path / "b"), 3, size=64)), 100) == [1, 1, 1]


def test_pages_of_two_sizes_are_refused(tmp_path):
    pages = [Image.fromarray(grey(1, 64, 64 + 16 * k)[0]) for k in range(2)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    refused("a.tif changes size at frame 1, 64x64 to 80x64", path=str(tmp_path / "a.tif"), frames=2)


def test_an_animation_by_another_ending_is_a_clip(tmp_path):
    pictures = [Image.fromarray(f) for f in grey(3, 64, 64, 50)]
    pictures[0].save(tmp_path / "a.jpg", "WEBP", save_all=True, append_images=pictures[1:], duration=100, lossless=True)
    assert levels(read_clip(ClipSettings(str(tmp_path / "a.jpg"), frames=3, size=64)), 50) == [0, 1, 2]


@pytest.mark.parametrize(
    "turn, expected", [(1, [RED, GREEN, BLUE, WHITE]), (3, [WHITE, BLUE, GREEN, RED]), (6, [BLUE, RED, WHITE, GREEN])]
)
def test_exif_orientation(tmp_path, turn, expected):
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(quarters(64, 64)).save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0)
    same(corners(read_clip(ClipSettings(str(tmp_path / "a.jpg"), frames=1, size=64)).frames[0]), expected)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "RGBA", "LA", "16 bit", "palette with transparency"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    """The left half is dark, the right half is bright or transparent (white)."""
    level = np.zeros((64, 64), np.uint8)
    level[:, 32:] = 255
    name = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    if mode == "16 bit":
        Image.fromarray(level.astype(np.uint16) * 257).save(name)
    elif mode in ("RGBA", "LA"):
        Image.merge("RGBA", [Image.fromarray(level * 0)] * 3 + [Image.fromarray(255 - level)]).convert(mode).save(name)
    elif mode.startswith("palette"):
        Image.fromarray(level // 255).convert("P").save(name, transparency=1)
    else:
        Image.fromarray(level).convert(mode).save(name)
    video = read_clip(ClipSettings(str(name), frames=1, size=64))
    same(corners(video.frames[0]), [(0, 0, 0), (255, 255, 255)] * 2, 3)
    assert any("white" in note for note in video.notes) == (mode in ("RGBA", "LA", "palette with transparency"))


def test_16_bit_keeps_its_levels(tmp_path):
    Image.fromarray(np.full((64, 64), 257 * 77, np.uint16)).save(tmp_path / "a.png")
    assert (to_uint8(read_clip(ClipSettings(str(tmp_path / "a.png"), frames=1, size=64)).frames) == 77).all()


# ---------------------------------------------------------------- bad input: one line each


def refused(match, **clip):
    with pytest.raises(FzError, match=match) as caught:
        read_clip(ClipSettings(**{"size": 64, **clip}))
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400
    return text


@pytest.mark.parametrize(
    "match, clip",
    [
        ("^start: got 20, but twenty.mp4 has 20 frames: expected 0 to 19", {"start": 20}),
        ("has 20 frames, too few for 21 frames .needs 21.. Use --frames 20$", {"frames": 21}),
        ("too few for 8 frames, every 3 .needs 22.. Use --frames 7 or --every 2$", {"every": 3}),
        ("too few for 8 frames from frame 15 .needs 23.. Use --frames 5 or --start 12$", {"start": 15}),
        ("^start: got -1", {"start": -1}),
        ("^every: got 0", {"every": 0}),
        ("^frames: got 0", {"frames": 0}),
        ("^frames: got 2.5", {"frames": 2.5}),
        ("^frames: got True", {"frames": True}),
    ],
)
def test_refuses_choices(twenty, match, clip):
    refused(match, path=str(twenty), **clip)


def test_refuses_missing_paths(tmp_path, twenty):
    assert "Did you mean 'twenty.mp4'?" in refused("does not exist", path=str(twenty.with_name("twnety.mp4")))
    assert "Did you mean 'twenty.mp4'?" in refused("does not exist", path=str(twenty.with_name("twenty.webm")))
    refused("nor does the folder", path=str(tmp_path / "no" / "where.mp4"))
    refused("empty path", path=" ")
    refused("is an address", path="https://example.org/a.mp4")
    refused("matches no file", path=str(tmp_path / "*.png"))


def test_refuses_folders_without_images(tmp_path):
    refused("no images .* It is empty", path=str(tmp_path))
    (tmp_path / "a.txt").write_text("text")
    refused("no images .* 1 other file", path=str(tmp_path))
    write_mp4(tmp_path / "clip.mp4", grey(2), 8)
    refused("no images .* It holds clip.mp4: pass that file", path=str(tmp_path))
    refused("matches 2 files, none of them an image", path=str(tmp_path / "*"))


def test_refuses_animated_images_among_others(tmp_path):
    pictures = [Image.fromarray(f) for f in grey(3, step=50)]
    for name in ("a.webp", "a.png"):
        (tmp_path / name[2:]).mkdir()
        pictures[0].save(tmp_path / name[2:] / name, save_all=True, append_images=pictures[1:], duration=100)
        for k in range(7):
            pictures[0].save(tmp_path / name[2:] / f"b{k}.png")
        refused("animation of 3 frames among images", path=str(tmp_path / name[2:]))
    (tmp_path / "pages").mkdir()
    pictures[0].save(tmp_path / "pages" / "a.tif", save_all=True, append_images=pictures[1:])
    pictures[0].save(tmp_path / "pages" / "b.tif")
    refused("a.tif has 3 pages, among images", path=str(tmp_path / "pages"), frames=2)


def test_hdr_is_said(tmp_path):
    def prepare(stream):
        stream.codec_context.color_trc = 18

    path = encode(tmp_path / "a.mp4", grey(2), pix_fmt="yuv420p10le", prepare=prepare)
    assert any("HDR" in note for note in read_clip(ClipSettings(str(path), frames=1, size=64)).notes)


def test_refuses_mixed_sizes(tmp_path):
    Image.fromarray(grey(1, 64, 64)[0]).save(tmp_path / "0.png")
    Image.fromarray(grey(1, 64, 80)[0]).save(tmp_path / "1.png")
    refused("differ in size: 0.png is 64x64, 1.png is 80x64", path=str(tmp_path), frames=2)


def test_pictures_that_are_no_clip_may_differ_in_size(tmp_path):
    """Each is scaled and cut as it is alone."""
    (tmp_path / "a").mkdir()
    for k, (height, width) in enumerate([(64, 96), (200, 80), (64, 96)]):
        Image.fromarray(numbered(3, height, width)[k]).save(tmp_path / "a" / f"{k}.png")
    settings = ClipSettings(str(tmp_path / "a"), frames=None, size=(64, 80), crop=Crop(left=3))
    with pytest.raises(FzError, match="differ in size"):
        read_clip(settings, 16)
    video = read_clip(settings, 16, alike=False)
    for k in range(3):
        alone = dataclasses.replace(settings, path=str(tmp_path / "a" / f"{k}.png"), frames=1)
        assert torch.equal(video.frames[k : k + 1], read_clip(alone, 16).frames)
    assert any("pictures of 2 sizes, each scaled and cut on its own" in note for note in video.notes)
    Image.new("RGB", (1, 20000)).save(tmp_path / "a" / "3.png")
    with pytest.raises(FzError, match="1x20000 .* too narrow"):
        read_clip(dataclasses.replace(settings, crop=Crop()), 16, alike=False)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.png", "a.jpg"])
@pytest.mark.parametrize(
    "content", [b"", bytes(range(256)) * 20, b"plain text\n" * 100], ids=["empty", "noise", "text"]
)
def test_refuses_what_is_no_video(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused("no readable image|is empty|is no video|no pictures|corrupt", path=str(tmp_path / name))


def test_refuses_text_and_sound(tmp_path):
    (tmp_path / "a.txt").write_text("words\n" * 50)
    refused("no pictures|is no video", path=str(tmp_path / "a.txt"))
    with av.open(str(tmp_path / "a.wav"), "w") as box:
        stream = box.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        box.mux(stream.encode(frame))
    refused("is no video of a kind that is read", path=str(tmp_path / "a.wav"))


@pytest.mark.parametrize("part", [0.01, 0.3, 0.6, 0.97])
@pytest.mark.parametrize("index_first", [True, False], ids=["index first", "index last"])
def test_refuses_truncated_mp4(tmp_path, part, index_first):
    noise = np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), dtype=np.uint8)
    if index_first:
        write_mp4(tmp_path / "a.mp4", noise, 25)
    else:
        encode(tmp_path / "a.mp4", noise)
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: int(len(data) * part)])
    refused("truncated", path=str(tmp_path / "cut.mp4"))


def test_refuses_damaged_mp4_and_png(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (20, 48, 64, 3), dtype=np.uint8)
    write_mp4(tmp_path / "a.mp4", noise, 25)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = rng.bytes(3000)
    (tmp_path / "a.mp4").write_bytes(data)
    refused("corrupt", path=str(tmp_path / "a.mp4"), frames=None)
    Image.fromarray(noise[0]).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    refused("no readable image .* complete", path=str(tmp_path / "a.png"))


def test_truncated_webm_is_said(tmp_path):
    path = encode(
        tmp_path / "a.webm",
        grey(60),
        [100 * k for k in range(60)],
        Fraction(1, 1000),
        "libvpx-vp9",
        deadline="realtime",
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert any("may be truncated" in note for note in read_clip(ClipSettings(str(path), frames=2, size=64)).notes)


def test_header_without_frames(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as box:
        stream = box.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        box.start_encoding()
    refused("no frames|corrupt|no pictures", path=str(tmp_path / "a.mkv"))


@pytest.mark.parametrize("name", ["a.mp4", "a.png", "folder"])
def test_refuses_unreadable(tmp_path, name, monkeypatch):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif name == "a.png":
        Image.fromarray(grey(1)[0]).save(path)
    else:
        encode(path, grey(2))

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    # The super-user may read everything, so permissions are played.
    monkeypatch.setattr(stream.av, "open", denied)
    monkeypatch.setattr(images.Image, "open", denied)
    monkeypatch.setattr(os, "listdir", denied)
    refused("may not be read", path=str(path))
