"""--mask: what of a picture with transparency is the mask, and that nothing outside a user's mask changes."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from inputs.movies import make, number, numbered
from PIL import Image

from fz.clips.control_video import read_control_video
from fz.clips.media import to_uint8
from fz.clips.user_mask import check_mask, read_mask
from fz.clips.video import read_clip
from fz.errors import FzError
from fz.masks import EditRegion, changed_pixels, paste_background, reduced
from fz.settings.config import ClipSettings

SIDE = 64
LEFT = np.zeros((SIDE, SIDE), bool)
LEFT[:, : SIDE // 2] = True


@pytest.fixture
def clip(tmp_path):
    Image.fromarray(numbered(1, SIDE, SIDE)[0]).save(tmp_path / "clip.png")
    settings = ClipSettings(str(tmp_path / "clip.png"), frames=1, size=SIDE)
    return settings, read_clip(settings, multiple=8)


def rgba(colours, clear, solid=255):
    """Colours (SIDE, SIDE, 3), transparent where `clear`."""
    alpha = np.where(clear, 0, solid).astype(np.uint8)
    return Image.fromarray(np.dstack([colours.astype(np.uint8), alpha]))


def saved(tmp_path, image, name="mask.png"):
    image.save(tmp_path / name)
    return str(tmp_path / name)


BLACK, WHITE = np.zeros((SIDE, SIDE, 3)), np.full((SIDE, SIDE, 3), 255)
PHOTO = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3))


@pytest.mark.parametrize("colours", [WHITE, BLACK, PHOTO], ids=["white", "black", "a cut-out"])
@pytest.mark.parametrize("kind", ["png", "webp", "LA"])
def test_what_is_opaque_is_edited(tmp_path, clip, colours, kind):
    """On white the transparent half was the mask, and a black object none at all."""
    image = rgba(colours, ~LEFT)
    image = image.convert("LA") if kind == "LA" else image
    path = saved(tmp_path, image, "mask.webp" if kind == "webp" else "mask.png")
    assert torch.equal(read_mask(path, *clip)[0].bool(), torch.from_numpy(LEFT))


@pytest.mark.parametrize("solid", [255, 250, 200])
def test_an_opaque_picture_goes_by_its_colours(tmp_path, clip, solid):
    drawn = np.where(LEFT[..., None], WHITE, BLACK)
    path = saved(tmp_path, rgba(drawn, np.zeros_like(LEFT), solid))
    assert torch.equal(read_mask(path, *clip)[0].bool(), torch.from_numpy(LEFT))


def test_a_transparent_video_is_a_mask(tmp_path):
    pictures = np.zeros((3, SIDE, SIDE, 4), np.uint8)
    pictures[:, LEFT, 3] = 255
    path = make(tmp_path / "mask.apng", pictures, "apng", pix_fmt="rgba")
    frames = make(tmp_path / "clip.mp4", numbered(3, SIDE, SIDE), "libx264")
    settings = ClipSettings(str(frames), frames=3, size=SIDE)
    mask = read_mask(str(path), settings, read_clip(settings, multiple=8))
    assert torch.equal(mask.bool(), torch.from_numpy(LEFT).expand(3, -1, -1))


# ---- which mask belongs to which frame -----------------------------------------------------------------------

UNEVEN = [*range(8), *(7 + 3 * k for k in range(1, 9))]  # of 30 a second, then of 10


def bars(count):
    """A mask a frame: mask k is white in its first 3 (k + 1) columns."""
    return (np.arange(SIDE) < 3 * np.arange(1, count + 1)[:, None])[:, None].repeat(SIDE, 1)


def folder(path, pictures):
    path.mkdir()
    for k, picture in enumerate(pictures):
        Image.fromarray(picture).save(path / f"{k:03d}.png")
    return str(path)


def gif(path, pictures, last=100):
    first, *more = map(Image.fromarray, pictures)
    durations = [100] * len(more) + [last]
    # GIFs join equal frames; these are none
    first.save(path, save_all=True, append_images=more, duration=durations)
    return str(path)


def drawn(masks):
    return (masks[..., None].repeat(3, -1) * 255).astype(np.uint8)


def uneven(path, pictures):
    return str(make(path, pictures, "libx264", UNEVEN, Fraction(1, 30), crf="4"))


def numbers_shown(video):
    return [number(picture) for picture in to_uint8(video)]


@pytest.mark.parametrize("kind", ["folder", "as many frames at an even rate", "a film of the same times", "tif"])
@pytest.mark.parametrize("choice", [(16, 0, 1), (4, 2, 3)], ids=["all", "some"])
def test_masks_of_a_variable_rate_go_by_the_files_frames(tmp_path, kind, choice):
    """By their place on the timeline they were other frames' masks, and nothing said so."""
    settings = ClipSettings(uneven(tmp_path / "clip.mp4", numbered(16, SIDE, SIDE)), *choice, size=SIDE)
    clip = read_clip(settings, multiple=8)
    assert clip.indices != tuple(range(settings.start, 16, settings.every)[: len(clip.indices)])
    assert numbers_shown(clip.frames) == list(clip.indices)
    masks, name = drawn(bars(16)), str(tmp_path / "masks")
    if kind == "folder":
        folder(tmp_path / "masks", masks)
    elif kind == "tif":
        name += ".tif"
        Image.fromarray(masks[0]).save(name, save_all=True, append_images=[Image.fromarray(m) for m in masks[1:]])
    elif kind.startswith("as many"):
        name = gif(tmp_path / "masks.gif", masks)
    else:
        name = uneven(tmp_path / "masks.mp4", masks)
    mask = read_mask(name, settings, clip)
    widths = mask.bool().sum((1, 2)).div(SIDE).round().int()
    expected = torch.tensor([3 * (index + 1) for index in clip.indices])
    assert (widths - expected).abs().max() <= (1 if name.endswith("mp4") else 0)
    check_mask(name, settings, clip.indices)


def test_control_pictures_of_a_variable_rate_go_by_the_files_frames(tmp_path):
    settings = ClipSettings(uneven(tmp_path / "clip.mp4", numbered(16, SIDE, SIDE)), 16, size=SIDE)
    clip = read_clip(settings, multiple=8)
    shown = read_control_video(folder(tmp_path / "maps", numbered(16, SIDE, SIDE)), (50, 100), settings, clip)
    assert numbers_shown(shown) == list(clip.indices) != list(range(16))


def test_masks_of_a_gif_that_rests_on_its_last_frame(tmp_path):
    """One a frame of the file, or one a frame of its timeline."""
    settings = ClipSettings(gif(tmp_path / "clip.gif", numbered(8, SIDE, SIDE), 500), None, size=SIDE)
    clip = read_clip(settings, multiple=8)
    assert clip.indices == (0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 7, 7)
    eight = read_mask(folder(tmp_path / "eight", drawn(bars(8))), settings, clip)
    assert (eight.sum((1, 2)) / SIDE).tolist() == [3 * (k + 1) for k in clip.indices]
    assert torch.equal(read_mask(gif(tmp_path / "eight.gif", drawn(bars(8)), 500), settings, clip), eight)
    assert torch.equal(read_mask(gif(tmp_path / "short.gif", drawn(bars(8))), settings, clip), eight)
    twelve = read_mask(folder(tmp_path / "twelve", drawn(bars(12))), settings, clip)
    assert (twelve.sum((1, 2)) / SIDE).tolist() == [3 * (k + 1) for k in range(12)]
    with pytest.raises(FzError, match="holds 9 pictures, expected 1 or 8 or 12"):
        check_mask(folder(tmp_path / "nine", drawn(bars(9))), settings, clip.indices)


def test_masks_of_the_frames_taken_from_a_file_that_rests(tmp_path):
    """As many as are taken, one each: for how long the last one stands is nothing to the clip."""
    settings = ClipSettings(folder(tmp_path / "clip", numbered(20, SIDE, SIDE)), 6, 1, 3, size=SIDE)
    clip = read_clip(settings, multiple=8)
    mask = read_mask(gif(tmp_path / "six.gif", drawn(bars(6)), 500), settings, clip)
    assert (mask.sum((1, 2)) / SIDE).tolist() == [3 * (k + 1) for k in range(6)]


# ---- what cannot be, and what a mask does --------------------------------------------------------------------


@pytest.mark.parametrize(
    "match, image",
    [
        ("transparent everywhere", rgba(WHITE, np.ones_like(LEFT))),
        (
            "black and white, and transparent elsewhere",
            rgba(np.where(LEFT[..., None], WHITE, BLACK), np.roll(LEFT, SIDE // 4, 1)),
        ),
    ],
    ids=["clear", "both"],
)
def test_what_could_be_either_is_refused(tmp_path, clip, match, image):
    with pytest.raises(FzError, match=f"^mask: .*{match}") as caught:
        read_mask(saved(tmp_path, image), *clip)
    assert "\n" not in str(caught.value)


def test_nothing_outside_a_users_mask_changes():
    """Latents' cells are eight pixels wide; a user's mask is not."""
    mask = torch.zeros(2, SIDE, SIDE)
    mask[:, 19:43, 5:50] = 1
    region = EditRegion(user_mask=mask, background=torch.zeros(77))
    edited, source = torch.rand(2, 3, SIDE, SIDE), torch.rand(2, 3, SIDE, SIDE)
    out = paste_background(edited, source, changed_pixels(region, {}, (8, 8)))
    inside = mask.bool()[:, None].expand_as(out)
    assert torch.equal(out[~inside], source[~inside]) and torch.equal(out[inside], edited[inside])


def test_a_cell_is_edited_where_more_than_half_of_the_fullest_one_is():
    """Frame by frame, so that a small object does not vanish at a deep level."""
    cells = torch.tensor([[[1.0, 0.5], [0.75, 0.0]], [[0.25, 0.125], [0.2, 0.0]]])
    shares = cells.repeat_interleave(4, 1).repeat_interleave(4, 2)
    expected = torch.tensor([[True, False], [True, False]]).expand(2, 2, 2)
    assert torch.equal(reduced(shares, (2, 2)), expected)
