"""From words to numbers: what one edit fuses (`Fusion`) and where (`EditRegion`), out of its settings and the prompts'
tokens.

Here the defaults are decided that depend on the prompts: replacement or refinement, and which words make the mask. What
was decided on the user's behalf is returned as notes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fz.errors import FzError
from fz.fusion import Fusion
from fz.masks import EVERYWHERE, EditRegion, LatentBlend
from fz.prompts import align
from fz.prompts.text import Tokens
from fz.settings import applications
from fz.settings.config import EditSettings


@dataclass(frozen=True)
class Plan:
    """fusion: None for plain sampling. notes: lines for the user. region: where the edit may change the clip."""

    fusion: Fusion | None
    notes: tuple[str, ...] = ()
    region: EditRegion = EVERYWHERE


def plan_edit(edit: EditSettings, source: Tokens, target: Tokens, steps: int, name: str = "edit") -> Plan:
    """The fusion of one edit over T = steps edit steps.

    Raises FzError for words that are not in their prompt and for replacement between prompts of different word counts;
    a lenient edit (released configs) notes them instead: an absent equalizer word is ignored, an absent blend word
    means no mask.
    """
    if edit.align == "plain":
        return Plan(None, (f"{name}: sampled without fusion",))
    notes: list[str] = []
    mapper, alpha = correspondence(edit, source, target, notes)
    factors = applications.factors(edit.enhance, edit.enhance_factor, edit.reweight)
    windows = dict(edit.cross_replace_words)
    factors = {word: factors[word] for word in present(edit, target, factors, "reweight", notes)}
    windows = {word: windows[word] for word in present(edit, target, windows, "cross_replace", notes)}
    fusion = Fusion(
        mapper=mapper,
        alpha=alpha,
        equalizer=align.equalizer(target, factors),
        cross_window=align.cross_window(target, steps, edit.cross_replace, windows),
        self_window=(int(edit.self_replace[0] * steps), int(edit.self_replace[1] * steps)),
    )
    region = EditRegion(hides_object=edit.remove is not None, **masks(edit, source, target, notes))
    return Plan(fusion, tuple(f"{name}: {note}" for note in notes), region)


def correspondence(edit: EditSettings, source: Tokens, target: Tokens, notes: list[str]) -> tuple[Tensor, Tensor]:
    """Mapper A (77, 77) and alpha (77,) of replacement or refinement."""
    equal = len(source.words) == len(target.words)
    counts = f"the source has {len(source.words)} words, the target {len(target.words)}"
    replace = edit.align == "replace" or (edit.align == "auto" and equal)
    if replace and not equal:
        if not edit.lenient:
            raise FzError(f"replace: {counts}; expected equally many. Use --refine, or reword {target.prompt!r}.")
        replace = False
        notes.append(f"refinement, not replacement: {counts}")
    if replace:
        return align.replacement(source, target), torch.ones(len(target.ids))
    index, alpha = align.refinement(source, target)
    mapper = torch.zeros(len(source.ids), len(target.ids))
    mapper[index.clamp(min=0), torch.arange(len(target.ids))] = alpha
    return mapper, alpha


def present(edit: EditSettings, tokens: Tokens, words: Iterable[str], what: str, notes: list[str]) -> list[str]:
    """The words that are in the prompt; an absent one is an error, or a note if the edit is lenient."""
    there = []
    for word in words:
        try:
            align.word_positions(tokens, word, what)
        except FzError:
            if not edit.lenient:
                raise
            notes.append(f"{what}: {word!r} is not in {tokens.prompt!r}, ignored")
        else:
            there.append(word)
    return there


def masks(edit: EditSettings, source: Tokens, target: Tokens, notes: list[str]) -> dict[str, object]:
    """The mask words and thresholds of self-attention and of latents, as EditRegion's fields."""
    # a map divided by its maximum never exceeds 1: no pixel is edited, as without a mask
    threshold = None if edit.threshold is None or edit.threshold >= 1 else edit.threshold
    blends = edit.blend_latents is not None
    if threshold is None and not blends and not edit.keep_background:
        return {}
    if edit.blend_words is None and edit.remove is not None:
        # a target of its own may differ in more than the object
        source_words, target_words = applications.phrases(edit.remove), []
    elif edit.blend_words is None:
        source_words, target_words = align.differing_words(source, target)
        notes.append(f"masks follow the words that differ: {', '.join(source_words) or 'none'} of the source")
    else:
        source_words = present(edit, source, edit.blend_words[0], "blend_words", notes)
        target_words = present(edit, target, edit.blend_words[1], "blend_words", notes) if blends else []
    fields: dict[str, object] = {}
    if threshold is not None and source_words:
        fields |= {"mask_words": weights(source, source_words), "threshold": threshold}
    elif threshold is not None and edit.mask is None:
        notes.append("no blend mask: it has no word of the source; --blend-words names some")
    if blends and (source_words or target_words or edit.mask is not None):
        fields["latent_blend"] = LatentBlend(
            weights(source, source_words), weights(target, target_words), edit.blend_latents
        )
    elif blends:
        notes.append("latents are not blended: no word is named and none differs")
    if edit.keep_background:
        if not source_words and edit.mask is None:
            raise FzError(
                "keep_background: no word of the source differs, so there is no mask. Pass --blend-words or --mask."
            )
        fields["background"] = weights(source, source_words)
    return fields


def weights(tokens: Tokens, words: Iterable[str]) -> Tensor:
    """(77,): 1 at every token of the words."""
    out = torch.zeros(len(tokens.ids))
    for word in words:
        out[align.word_positions(tokens, word, "blend_words")] = 1
    return out
