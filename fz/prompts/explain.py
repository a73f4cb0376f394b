"""What an edit does to each token, as values for other programs: `fz.prompt --json`. Pure functions of a plan."""

from typing import Any

from torch import Tensor

from fz.prompts import align
from fz.prompts.plan import Plan, named
from fz.prompts.text import Tokens
from fz.settings.config import EditSettings


def as_json(edit: EditSettings, plan: Plan, target: Tokens, steps: int) -> dict[str, Any]:
    """One edit over T = steps edit steps. Tokens are positions as CLIP counts them, 0 being the start token.

    align: 'replace', 'refine' or 'plain'. mask_tokens: the source's tokens whose maps make the mask; none without a
    mask of words. latent_blend_tokens: those of the source and of the target that latents are blended by. columns: a
    token of the target each, with the word it is part of, and what its map is made of at the first edit step: source's
    maps by token, and the edit's own. self_steps, cross_steps: edit steps [from, to), counted from 0, at which the
    source's self- and cross-attention count, words with windows of their own aside.
    """
    fusion, region = plan.fusion, plan.region
    blend = region.latent_blend if fusion else None
    mask = region.background if region.mask_words is None else region.mask_words
    return {
        "target": edit.target,
        "align": plan.align,
        "mask_tokens": marked(mask),
        "latent_blend_tokens": [marked(blend.source_words), marked(blend.target_words)] if blend else [[], []],
        "columns": [
            {"token": p, "word": word.text, **made_of(plan, p)} for word in target.words for p in word.positions
        ],
        "self_steps": within(fusion.self_window, steps) if fusion else [0, 0],
        "cross_steps": within(align.step_window(edit.cross_replace, steps + 1), steps) if fusion else [0, 0],
    }


def made_of(plan: Plan, token: int) -> dict[str, Any]:
    """The weights of the source's maps and of the edit's own in a target token's map at the first edit step."""
    if plan.fusion is None:
        return {"source": {}, "edit": 1.0}
    column = plan.fusion.at(0).source_weights[:, token]
    return {
        "source": {str(i): round(float(column[i]), 6) for i in marked(column)},
        "edit": round(float(plan.fusion.at(0).edit_weights[token]), 6),
    }


def marked(weights: Tensor | None) -> list[int]:
    return [] if weights is None else weights.nonzero().flatten().tolist()


def within(window: tuple[int, int], steps: int) -> list[int]:
    first, end = (min(bound, steps) for bound in window)
    return [first, end] if first < end else [0, 0]


def mask_words(weights: Tensor, source: Tokens) -> str:
    """'silver (2), jeep (3)': the words that make a mask, and their tokens."""
    return ", ".join(named(word) for word in source.words if weights[list(word.core)].any())
