"""Where are the source's words? Their attention and the masks made of it, as strips of frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from fz.clips.media import atomic, contact_sheet, overlay, to_uint8
from fz.errors import FzError
from fz.masks import EditRegion, blend_mask
from fz.prompts import align
from fz.prompts.plan import Plan
from fz.prompts.text import Tokens
from fz.settings.config import EditSettings
from fz.settings.place import slug

TAU = EditRegion.threshold
# what the pictures say of themselves, so that they may be replaced and no others
MADE_BY = "fz.prompt"


@dataclass(frozen=True)
class WordMaps:
    """frames: (F, 3, H, W). maps: the source's cross-attention averaged over heads, layers and steps, (F, N, 77). size:
    (h, w) of its N tokens.
    """

    frames: Tensor
    maps: Tensor
    size: tuple[int, int]


def write_pictures(
    folder: Path,
    edits: Sequence[EditSettings],
    plans: Sequence[Plan],
    tokens: Tokens,
    words: WordMaps,
) -> list[Path]:
    """A strip of frames for each word of the source (attention, and its mask), all of them in one, and the mask of each
    edit.
    """
    clip, pixels, written = to_uint8(words.frames), tuple(words.frames.shape[-2:]), []
    maps, size = words.maps, words.size
    threshold = next(
        (plan.region.threshold for plan in plans if plan.fusion and plan.region.mask_words is not None), TAU
    )

    def picture(name: str, rows: Sequence, labels: Sequence[str]) -> None:
        about = PngInfo()
        about.add_text("Software", MADE_BY)
        with atomic(folder / name) as part:
            Image.fromarray(contact_sheet(rows, labels)).save(part, format="PNG", pnginfo=about)
        written.append(folder / name)

    rows, labels = [], []
    for word in tokens.words:
        attention = overlay(clip, maps[..., list(word.core)].sum(-1).unflatten(1, size))
        mask = overlay(clip, blend_mask(maps, align.weights(word.core), threshold, size, pixels))
        picture(
            f"{word.index:02d}-{slug(word.text, 24)}.png",
            [attention, mask],
            [word.text, f"{word.text} > {threshold:g}"],
        )
        rows, labels = [*rows, attention, mask], [*labels, word.text, f"{word.text} > {threshold:g}"]
    picture("all-words.png", rows, labels)
    for i, (edit, plan) in enumerate(zip(edits, plans, strict=True)):
        if plan.fusion and plan.region.mask_words is not None:
            mask = blend_mask(maps, plan.region.mask_words, plan.region.threshold, size, pixels)
            picture(
                f"mask-edit-{i}.png",
                [overlay(clip, mask)],
                [f"{edit.target}: what is edited, > {plan.region.threshold:g}"],
            )
    return written


def picture_names(tokens: Tokens, plans: Sequence[Plan]) -> list[str]:
    """What `write_pictures` writes."""
    words = [f"{word.index:02d}-{slug(word.text, 24)}.png" for word in tokens.words]
    masks = [f"mask-edit-{i}.png" for i, plan in enumerate(plans) if plan.fusion and plan.region.mask_words is not None]
    return [*words, "all-words.png", *masks]


def check_pictures(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """Raise FzError where a file of these names is there that `write_pictures` did not write, unless it may be
    replaced; and for links, which are never followed.
    """
    if folder.exists() and not folder.is_dir():
        raise FzError(f"out: {folder} is a file, expected a folder. Pass another --out.")
    for name in names:
        place = folder / name
        if place.is_symlink() or (place.exists() and not place.is_file()):
            raise FzError(f"out: {place} is a link or a folder, expected a file. Move it, or pass another --out.")
        if place.exists() and not overwrite and not is_picture(place):
            raise FzError(
                f"out: {place} is there, and not of an earlier fz.prompt. Pass another --out, or --overwrite to "
                "replace it."
            )


def is_picture(file: Path) -> bool:
    """Did `write_pictures` write it?"""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            return image.info.get("Software") == MADE_BY
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
