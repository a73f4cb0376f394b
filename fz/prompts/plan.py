"""From words to numbers: what one edit fuses (`Fusion`) and where (`EditRegion`), out of its settings and the prompts'
tokens.

Here the defaults are decided that depend on the prompts: replacement or refinement, and which words make the mask. What
was decided on the user's behalf is returned as notes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fz.attention import least_stride
from fz.errors import FzError
from fz.fusion import Fusion
from fz.masks import EVERYWHERE, EditRegion, LatentBlend
from fz.prompts import align
from fz.prompts.text import Tokens, Word
from fz.settings import applications
from fz.settings.config import EditSettings
from fz.settings.effect import acting
from fz.words import bare


@dataclass(frozen=True)
class Plan:
    """fusion: None for plain sampling. notes: lines for the user. region: where the edit may change the clip. align:
    what was chosen: replace, refine or plain.
    """

    fusion: Fusion | None
    notes: tuple[str, ...] = ()
    region: EditRegion = EVERYWHERE
    align: str = "plain"


def plan_edit(
    edit: EditSettings, source: Tokens, target: Tokens, steps: int, name: str = "edit", full: bool = False
) -> Plan:
    """The fusion of one edit over T = steps edit steps. full: at the full-size level too.

    Raises FzError for words that are not in their prompt and for replacement between prompts of different word counts;
    a lenient edit (released configs) notes them instead: an absent equalizer word is ignored, an absent blend word
    means no mask.
    """
    notes: list[str] = []
    for words in applications.phrases(edit.remove) if edit.remove else ():
        align.word_positions(source, words, "remove")
    if edit.align == "plain":
        region = background_alone(edit, source, target, notes)
        return Plan(None, tuple(f"{name}: {note}" for note in (unfused(edit), *notes)), region)
    chosen = choose_align(edit, source, target, notes)
    mapper, alpha = correspondence(chosen, source, target)
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
        least_stride=least_stride(full),
    )
    region = EditRegion(hides_object=edit.remove is not None, **masks(edit, source, target, notes))
    return Plan(fusion, tuple(f"{name}: {note}" for note in notes), region, chosen)


def background_alone(edit: EditSettings, source: Tokens, target: Tokens, notes: list[str]) -> EditRegion:
    """Where an edit that fuses nothing may change the clip: everywhere, unless it keeps the background."""
    if not edit.keep_background:
        return EVERYWHERE
    fields = masks(replace(edit, blend_latents=None), source, target, notes)
    return EditRegion(**{name: fields[name] for name in ("background", "threshold") if name in fields})


def unfused(edit: EditSettings) -> str:
    """What is said of an edit that fuses nothing, and of what was asked for that does not count then."""
    said = ["sampled without fusion", *(["what is removed is not hidden"] if edit.remove else [])]
    # a removal has a threshold of its own
    of_masks = () if edit.keep_background else ("mask",) if edit.remove else ("threshold", "mask")
    asked = [name for name in (*of_masks, "blend_latents", "reweight") if getattr(edit, name)]
    if asked:
        said.append(f"{' and '.join(asked)} {'count' if len(asked) > 1 else 'counts'} for nothing")
    return "; ".join(said)


def choose_align(edit: EditSettings, source: Tokens, target: Tokens, notes: list[str]) -> str:
    """'replace' or 'refine'. Replacement pairs words by their places: it is chosen where unchanged words keep theirs,
    and stands where the edit says it.
    """
    equal, stay = len(source.words) == len(target.words), align.keeps_places(source, target)
    if edit.align == "refine" or (edit.align == "auto" and not stay):
        return "refine"
    if not equal:
        counts = f"the source has {len(source.words)} words, the target {len(target.words)}"
        if not edit.lenient:
            raise FzError(f"replace: {counts}; expected equally many. Use --refine, or reword {target.prompt!r}.")
        notes.append(f"refinement, not replacement: {counts}")
        return "refine"
    if not stay:
        moved = [
            f"{target.words[j].text!r} takes the attention of {source.words[j].text!r}"
            for i, j in align.paired(source, target)
            if None not in (i, j) and i != j
        ]
        notes.append(f"replacement by place, though words move: {', '.join(moved[:3])}; refinement keeps them")
    return "replace"


def correspondence(chosen: str, source: Tokens, target: Tokens) -> tuple[Tensor, Tensor]:
    """Mapper A (77, 77) and alpha (77,) of replacement or refinement."""
    if chosen == "replace":
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
    threshold = acting(edit.threshold)
    blends = edit.blend_latents is not None
    if threshold is None and not blends and not edit.keep_background:
        return {}
    source_tokens, target_tokens = mask_tokens(edit, source, target, notes)
    fields: dict[str, object] = {}
    if threshold is not None and source_tokens:
        fields |= {"mask_words": align.weights(source_tokens), "threshold": threshold}
    elif threshold is not None and edit.mask is None:
        notes.append("no blend mask: it has no word of the source; --blend-words names some")
    if blends and (source_tokens or target_tokens or edit.mask is not None):
        fields["latent_blend"] = LatentBlend(
            align.weights(source_tokens), align.weights(target_tokens), edit.blend_latents
        )
    elif blends:
        notes.append("latents are not blended: no word is named and none differs")
    if edit.keep_background:
        if not source_tokens and edit.mask is None:
            raise FzError(
                "keep_background: no word of the source differs, so there is no mask. Pass --blend-words or --mask."
            )
        fields["background"] = align.weights(source_tokens)
    return fields


def mask_tokens(edit: EditSettings, source: Tokens, target: Tokens, notes: list[str]) -> tuple[list[int], list[int]]:
    """The positions whose maps make the masks, of the source's tokens and of the target's."""
    if edit.blend_words is None and edit.remove is None:
        gone, come = align.differing_words(source, target)
        if edit.mask is None:
            notes.append(f"masks follow the words that differ: {', '.join(map(named, gone)) or 'none'} of the source")
        return [p for word in gone for p in word.core], [p for word in come for p in word.core]
    if edit.blend_words is None:
        # a target of its own may differ in more than what is removed
        groups = [applications.phrases(edit.remove), []]
    else:
        # the target's count where latents are blended, and are words of it all the same
        asked = zip((source, target), edit.blend_words, strict=True)
        groups = [present(edit, tokens, words, "blend_words", notes) for tokens, words in asked]
    both = zip((source, target), groups, strict=True)
    gone, come = (weights(tokens, words).nonzero().flatten().tolist() for tokens, words in both)
    return gone, come


def named(word: Word) -> str:
    """'red (2)': a word and the positions of its tokens."""
    return f"{bare(word.text)} ({','.join(map(str, word.core))})"


def weights(tokens: Tokens, words: Iterable[str]) -> Tensor:
    """(77,): 1 at every token of the words, wherever they stand."""
    return align.weights([p for word in words for p in align.word_positions(tokens, word, "blend_words")])
