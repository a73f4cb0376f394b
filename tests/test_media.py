"""Writing: what is written reads back, plays in a browser, and leaves no half file."""

import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from fz.clips import media
from fz.clips.video import read_clip
from fz.errors import FzError
from fz.settings.config import ClipSettings


def moving(count=6, height=64, width=96):
    """A bright square that moves over a colour gradient."""
    y, x = np.mgrid[:height, :width]
    frames = np.stack(
        [np.dstack([x * 255 // width, y * 255 // height, np.full_like(x, 40 * k % 256)]) for k in range(count)]
    )
    frames = frames.astype(np.uint8)
    for k in range(count):
        frames[k, 8:24, 8 * k : 8 * k + 16] = 250
    return frames


def boxes(path: Path) -> list[str]:
    """Names of an mp4's top-level boxes, in order."""
    data, names, at = path.read_bytes(), [], 0
    while at < len(data):
        names.append(data[at + 4 : at + 8].decode("latin1"))
        at += int.from_bytes(data[at : at + 4], "big")
    return names


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("shape", [(64, 96), (65, 96), (64, 97), (33, 31), (2, 2), (1, 1)], ids=str)
@pytest.mark.parametrize("fps", [8, 30000 / 1001, 23.976, 0.5])
def test_mp4_plays_in_a_browser(tmp_path, shape, fps):
    frames = moving(5, *shape)
    media.write_mp4(tmp_path / "a.mp4", frames, fps)
    names = boxes(tmp_path / "a.mp4")
    assert names.index("moov") < names.index("mdat"), "the index must come first"
    with av.open(str(tmp_path / "a.mp4")) as box:
        stream = box.streams.video[0]
        codec = stream.codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
        assert (codec.height, codec.width) == tuple(n + n % 2 for n in shape)
        assert float(stream.average_rate) == pytest.approx(fps, rel=1e-6)
        assert stream.frames == 5 and box.duration / av.time_base == pytest.approx(5 / fps, rel=0.01)
        back = [frame.to_ndarray(format="rgb24") for frame in box.decode(stream)]
        # BT.709, limited range, said so.
        assert (codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range) == (1, 1, 1, 1)
    assert len(back) == 5
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_mp4_keeps_colours(tmp_path):
    frames = np.stack(
        [
            np.full((64, 64, 3), colour, np.uint8)
            for colour in [(200, 30, 60), (10, 200, 40), (30, 30, 220), (128, 128, 128)]
        ]
    )
    media.write_mp4(tmp_path / "a.mp4", frames, 8)
    back = media.to_uint8(read_clip(ClipSettings(str(tmp_path / "a.mp4"), frames=4, size=64)).frames)
    assert np.abs(back.astype(int) - frames).max() <= 6


def test_mp4_keeps_pictures(tmp_path):
    frames = moving(6, 64, 64)
    media.write_mp4(tmp_path / "a.mp4", frames, 8)
    back = media.to_uint8(read_clip(ClipSettings(str(tmp_path / "a.mp4"), frames=6, size=64)).frames)
    assert np.abs(back.astype(int) - frames).mean() < 6


@pytest.mark.parametrize(
    "fps, delays", [(8, [120, 130] * 3), (10, [100] * 6), (29.97, [30, 40, 30, 30, 40, 30]), (100, [20] * 6)]
)
def test_gif(tmp_path, fps, delays):
    frames = moving(6)
    media.write_gif(tmp_path / "a.gif", frames, fps)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 6 and gif.info["loop"] == 0
        got, back = [], []
        for k in range(6):
            gif.seek(k)
            got.append(gif.info["duration"])
            back.append(np.asarray(gif.convert("RGB")))
    assert sorted(got) == sorted(delays) and abs(sum(got) - sum(delays)) <= 10
    assert np.abs(np.stack(back).astype(int) - frames).mean() < 8


def test_gif_of_one_frame_and_of_equal_frames(tmp_path):
    media.write_gif(tmp_path / "one.gif", moving(1), 8)
    media.write_gif(tmp_path / "still.gif", np.repeat(moving(1), 4, axis=0), 8)
    assert len(read_clip(ClipSettings(str(tmp_path / "one.gif"), frames=1, size=64)).indices) == 1
    assert len(read_clip(ClipSettings(str(tmp_path / "still.gif"), frames=1, size=64)).indices) == 1


def test_pngs_read_back_exactly(tmp_path):
    frames = moving(11, 64, 64)
    media.write_pngs(tmp_path / "new" / "frames", frames)
    assert sorted(os.listdir(tmp_path / "new" / "frames")) == [f"{k:05d}.png" for k in range(11)]
    back = read_clip(ClipSettings(str(tmp_path / "new" / "frames"), frames=None, size=64))
    assert np.array_equal(media.to_uint8(back.frames), frames)
    assert os.listdir(tmp_path / "new") == ["frames"]


def test_pngs_replace_their_own_kind_only(tmp_path):
    media.write_pngs(tmp_path / "frames", moving(6))
    media.write_pngs(tmp_path / "frames", moving(2))
    assert sorted(os.listdir(tmp_path / "frames")) == ["00000.png", "00001.png"]
    (tmp_path / "frames" / "mine.txt").write_text("keep me")
    with pytest.raises(FzError, match="holds mine.txt"):
        media.write_pngs(tmp_path / "frames", moving(2))
    assert (tmp_path / "frames" / "mine.txt").read_text() == "keep me"
    (tmp_path / "file").write_text("keep me")
    with pytest.raises(FzError, match="file is a file, expected a folder"):
        media.write_pngs(tmp_path / "file", moving(2))
    assert sorted(os.listdir(tmp_path)) == ["file", "frames"]


def test_pngs_of_the_users_are_not_replaced(tmp_path):
    """By name they are no others than those that were written: 00000.png, 00001.png …"""
    mine = tmp_path / "mine"
    mine.mkdir()
    for number, picture in enumerate(moving(6)):
        Image.fromarray(picture).save(mine / f"{number:05d}.png")
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    with pytest.raises(FzError, match="holds 00000.png, expected nothing but pictures that were saved there before"):
        media.write_pngs(mine, 255 - moving(6))
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before

    # frames that are written again are no loss; one more is, and so is one that was retouched, its texts kept
    media.write_pngs(mine, moving(6))
    Image.fromarray(moving(7)[6]).save(mine / "00006.png")
    with pytest.raises(FzError, match="holds 00006.png"):
        media.write_pngs(mine, moving(6))
    (mine / "00006.png").unlink()
    with Image.open(mine / "00003.png") as image:
        retouched, texts = Image.fromarray(255 - np.asarray(image)), media.PngInfo()
        texts.add_text(media.MARK, image.info[media.MARK])
    retouched.save(mine / "00003.png", pnginfo=texts)
    with pytest.raises(FzError, match="holds 00003.png"):
        media.write_pngs(mine, moving(6))
    assert len(os.listdir(mine)) == 6 and os.listdir(tmp_path) == ["mine"]


def test_what_comes_into_a_folder_while_it_is_replaced_stays(tmp_path, monkeypatch):
    media.write_pngs(tmp_path / "frames", moving(2))
    inner, put = Image.fromarray, lambda: (tmp_path / "frames" / "mine.txt").write_text("keep me")
    monkeypatch.setattr(media.Image, "fromarray", lambda picture: put() and inner(picture))
    with pytest.raises(FzError, match="holds mine.txt"):
        media.write_pngs(tmp_path / "frames", 255 - moving(2))
    assert sorted(os.listdir(tmp_path / "frames")) == ["00000.png", "00001.png", "mine.txt"]


def test_a_folder_that_cannot_be_replaced_comes_back(tmp_path, monkeypatch):
    media.write_pngs(tmp_path / "frames", moving(2))
    before = {path.name: path.read_bytes() for path in (tmp_path / "frames").iterdir()}
    replace = os.replace

    def full(old, new):
        if str(old).endswith(f"part{os.sep}frames"):
            raise OSError(28, "No space left on device")
        replace(old, new)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FzError, match="No space left on device"):
        media.write_pngs(tmp_path / "frames", 255 - moving(2))
    assert {path.name: path.read_bytes() for path in (tmp_path / "frames").iterdir()} == before
    assert os.listdir(tmp_path) == ["frames"]


def test_pngs_through_a_link_and_into_the_current_folder(tmp_path, monkeypatch):
    media.write_pngs(tmp_path / "there" / "frames", moving(6))
    (tmp_path / "link").symlink_to(tmp_path / "there" / "frames")
    media.write_pngs(tmp_path / "link", moving(2))
    assert (tmp_path / "link").is_symlink() and len(os.listdir(tmp_path / "there" / "frames")) == 2
    monkeypatch.chdir(tmp_path / "there" / "frames")
    for here in (".", "", tmp_path / "link", "../frames"):
        with pytest.raises(FzError, match="is the current folder"):
            media.write_pngs(here, moving(2))
    with pytest.raises(FzError, match="holds frames, expected nothing but"):
        media.write_pngs("..", moving(2))
    assert len(os.listdir(".")) == 2


def test_png_grey_and_colour(tmp_path):
    media.write_png(tmp_path / "a.png", moving(1)[0])
    media.write_png(tmp_path / "b.png", moving(1)[0, :, :, 0])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), moving(1)[0])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), moving(1)[0, :, :, 0])


# ---------------------------------------------------------------- interruptions and refusals


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError, MemoryError])
@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("kind", ["mp4", "gif", "folder"])
def test_interruption_leaves_no_half_file(tmp_path, monkeypatch, stop, existing, kind):
    path = tmp_path / f"a.{kind}"
    write = {
        "mp4": media.write_mp4,
        "gif": media.write_gif,
        "folder": lambda path, frames, fps: media.write_pngs(path, frames),
    }[kind]
    if existing:
        write(path, moving(2), 8)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    calls = []

    def third_time(inner):
        def call(*args, **kwargs):
            calls.append(1)
            if len(calls) == 3:
                raise stop()
            return inner(*args, **kwargs)

        return call

    if kind == "mp4":
        monkeypatch.setattr(media, "_yuv_frame", third_time(media._yuv_frame))
    else:
        monkeypatch.setattr(media.Image, "fromarray", third_time(Image.fromarray))
    with pytest.raises(stop):
        write(path, moving(6), 8)
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_atomic(tmp_path):
    with media.atomic(tmp_path / "deep" / "a.json") as part:
        part.write_text("{}")
        assert os.listdir(tmp_path / "deep") == [part.parent.name] and part.parent.name.startswith(".")
        assert part.name == "a.json"
    assert (tmp_path / "deep" / "a.json").read_text() == "{}" and os.listdir(tmp_path / "deep") == ["a.json"]
    with pytest.raises(ZeroDivisionError), media.atomic(tmp_path / "deep" / "a.json") as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert (tmp_path / "deep" / "a.json").read_text() == "{}" and os.listdir(tmp_path / "deep") == ["a.json"]


def test_what_is_written_does_not_depend_on_the_process(tmp_path, monkeypatch):
    """An archive of torch.save holds the name under which it was written."""
    written = []
    for process in (11, 4711):
        monkeypatch.setattr(media.os, "getpid", lambda process=process: process)
        with media.atomic(tmp_path / "weights.bin") as part:
            torch.save({"a": torch.arange(3)}, part)
        written.append((tmp_path / "weights.bin").read_bytes())
    assert written[0] == written[1]


def test_refuses_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (lambda path: media.write_mp4(path, moving(2), 8), lambda path: media.write_gif(path, moving(2), 8)):
        with pytest.raises(FzError, match="cannot be written"):
            write(tmp_path / "file" / "a.out")
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(FzError, match="cannot be written"):
            write(tmp_path / "folder")
    with pytest.raises(FzError, match="file is not a folder"):
        media.write_png(tmp_path / "file" / "a.png", moving(1)[0])
    with pytest.raises(FzError, match="cannot be written"):
        media.write_pngs(tmp_path / "file" / "frames", moving(2))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_says_when_the_disk_is_full(tmp_path):
    with pytest.raises(FzError, match="cannot be written .No space left on device"), media.atomic(tmp_path / "a"):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_refuses_rates(tmp_path, fps):
    for write in (media.write_mp4, media.write_gif):
        with pytest.raises(FzError, match="^fps"):
            write(tmp_path / "a", moving(2), fps)


def test_refuses_frames(tmp_path):
    for frames in (np.zeros((0, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3)), np.zeros((8, 8), np.uint8)):
        with pytest.raises(FzError, match="got frames of shape"):
            media.write_pngs(tmp_path / "a", frames)
    with pytest.raises(FzError, match="got frames of shape"):
        media.write_mp4(tmp_path / "a", np.zeros((2, 8, 8), np.uint8), 8)


# ---------------------------------------------------------------- pictures


def test_to_uint8_rounds_and_clamps(golden):
    levels = torch.arange(256, dtype=torch.float32)
    frames = (levels / 255 * 2 - 1).reshape(1, 1, 16, 16).repeat(1, 3, 1, 1)
    assert np.array_equal(media.to_uint8(frames)[0, :, :, 0].ravel(), np.arange(256))
    assert media.to_uint8(torch.tensor([-3.0, 3.0, 1 / 255]).reshape(1, 3, 1, 1)).ravel().tolist() == [0, 255, 128]
    with safe_open(golden / "01_style.safetensors", "pt") as file:
        decoded, index, expected = (file.get_tensor(name) for name in ("decoded", "decoded_frames_index", "decoded_u8"))
    got = media.to_uint8(decoded.permute(0, 3, 1, 2) * 2 - 1)
    assert np.array_equal(got, expected[index].numpy())


def test_side_by_side(tmp_path):
    a, b = moving(3), 255 - moving(3)
    row = media.side_by_side([a, b], gap=4)
    assert row.shape == (3, 64, 96 * 2 + 4, 3)
    assert np.array_equal(row[:, :, :96], a) and np.array_equal(row[:, :, 100:], b) and (row[:, :, 96:100] == 255).all()
    labelled = media.side_by_side(
        [a, b], ["source", "a very long prompt that is wrapped over several lines, and cut in the end " * 3]
    )
    head = labelled.shape[1] - 64
    assert 10 < head < 80 and np.array_equal(labelled[:, head:], row)
    assert (labelled[0, :head] == labelled[2, :head]).all()
    for column in (slice(0, 96), slice(100, 196)):
        assert labelled[0, :head, column].min() < 100, "a label is there"
    assert (labelled[0, :head, 96:100] == 255).all(), "and stays over its own clip"
    media.write_mp4(tmp_path / "a.mp4", labelled, 8)


def test_labels_of_any_text():
    for text in ("", " ", "ünïcödé 猫", "oneverylongwordwithoutanyspacesthatcannotbewrapped", "a\nb"):
        assert media.side_by_side([moving(1)], [text]).shape[2] == 96


def test_side_by_side_refuses(tmp_path):
    with pytest.raises(FzError, match="of one shape"):
        media.side_by_side([moving(3), moving(2)])
    with pytest.raises(FzError, match="of one shape"):
        media.side_by_side([])
    with pytest.raises(FzError, match="got 1 for 2"):
        media.side_by_side([moving(3), moving(3)], ["one"])


def test_contact_sheet():
    sheet = media.contact_sheet([moving(3), moving(3)], tile=48, gap=4)
    assert sheet.shape == (32 * 2 + 4, 48 * 3 + 8, 3) and sheet.dtype == np.uint8
    labelled = media.contact_sheet([moving(3), moving(3)], ["jeep", "road"], tile=48)
    assert labelled.shape[0] > sheet.shape[0] + 20 and labelled.shape[1] == sheet.shape[1]
    small = media.contact_sheet([moving(2, 8, 8)], tile=48)
    assert small.shape == (8, 20, 3), "nothing is enlarged"


def test_heat_runs_from_dark_to_bright():
    colours = media.heat(torch.linspace(0, 2, 9).reshape(1, 1, 9))[0, 0].astype(float)
    assert (np.diff(colours.sum(axis=1)) > 0).all()
    assert colours[0].tolist() == list(media.HEAT[0]) and colours[-1].tolist() == list(media.HEAT[-1])
    assert np.array_equal(media.heat(torch.tensor([[[0.5, 5.0]]]), peak=1.0)[0, 0, 1], media.HEAT[-1])
    assert (media.heat(torch.zeros(1, 2, 2)) == media.HEAT[0]).all()
    assert (media.heat(torch.full((1, 2, 2), float("nan"))) == media.HEAT[0]).all()


def test_overlay_of_maps_and_masks():
    frames = np.full((2, 64, 96, 3), 100, np.uint8)
    mask = torch.zeros(2, 8, 12, dtype=torch.bool)
    mask[:, 2:4, 3:6] = True
    shown = media.overlay(frames, mask)
    assert shown.shape == frames.shape and shown.dtype == np.uint8
    bright = shown[0, :, :, 0] > 150
    expected = np.zeros((64, 96), bool)
    expected[16:32, 24:48] = True
    assert np.array_equal(bright, expected), "a mask keeps its edges"
    assert np.array_equal(media.overlay(frames, mask.to(torch.uint8)), shown)
    ramp = torch.linspace(0, 1, 12).expand(2, 8, 12)
    shown = media.overlay(frames, ramp).astype(int).sum(axis=-1)
    assert (np.diff(shown, axis=2) >= -3).all() and np.unique(shown[0, 0]).size > 40, "a map is smoothed"
    with pytest.raises(FzError, match="3 frames over 2"):
        media.overlay(frames, torch.zeros(3, 8, 8))
