"""Where are the source's words? Their attention and the masks made of it, as strips of frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fz.clips.media import contact_sheet, overlay, to_uint8, write_png
from fz.masks import blend_mask
from fz.prompts.plan import Plan, weights
from fz.prompts.text import Tokens
from fz.settings.config import EditSettings
from fz.settings.place import slug

TAU = 0.3


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
        write_png(folder / name, contact_sheet(rows, labels))
        written.append(folder / name)

    rows, labels = [], []
    for word in tokens.words:
        attention = overlay(clip, maps[..., list(word.positions)].sum(-1).unflatten(1, size))
        mask = overlay(clip, blend_mask(maps, weights(tokens, [word.text]), threshold, size, pixels))
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
