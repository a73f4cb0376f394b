"""--mask: what of a picture with transparency is the mask, and that nothing outside a user's mask changes."""

import numpy as np
import pytest
import torch
from inputs.movies import make, numbered
from PIL import Image

from fz.clips.user_mask import read_mask
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
