"""Which of an edit's settings count beside the others? A threshold does not where the user gives a mask, nor a word's
weight where no cross-attention is fused.

What the words themselves decide, such as a mask that none of them makes, is `fz.prompts.plan`'s question.
"""

from typing import Any

from fz.settings.checks import Window
from fz.settings.config import EditSettings, Settings

FUSING = ("fatezero", "null-p2p")  # methods that fuse attention
MASKING = ("fatezero",)  # and those of them that have masks
STEADY = 0.3  # the threshold of what `--keep-background` lets change, unless it is set


def effect(edit: EditSettings, steps: int, method: str = "fatezero") -> dict[str, Any]:
    """What each setting that a sweep varies comes to over T = steps edit steps; None where it does not count. Edits
    that differ in these settings alone are the same where this is.
    """
    if method not in FUSING or (edit.align == "plain" and method not in MASKING):
        return {}
    if edit.align == "plain":
        # the background is kept all the same
        return {"threshold": threshold(edit, False)} if edit.keep_background else {}
    own = steps_of(edit.self_replace, steps)
    words = {word: steps_of(share, steps, steps + 1) for word, share in edit.cross_replace_words}
    cross = steps_of(edit.cross_replace, steps, steps + 1)
    weighs = cross is not None or any(words.values())
    blends = edit.blend_latents if method in MASKING else None
    return {
        "self_replace": own,
        "cross_replace": cross,
        "threshold": threshold(edit, own is not None) if method in MASKING else None,
        "blend_latents": blends if blends is None or edit.mask is None else "mask",
        "reweight": tuple(edit.reweight) if weighs else None,
    }


def steps_of(share: Window, steps: int, count: int | None = None) -> tuple[int, int] | None:
    """The edit steps [from, to) of a share of `count`, which are T or T + 1 of `fz.prompts.align.cross_window`."""
    count = steps if count is None else count
    first, end = int(share[0] * count), min(int(share[1] * count), steps)
    return (first, end) if first < end else None


def acting(tau: float | None) -> float | None:
    """A threshold; from 1 on it is none, as without a mask: a map divided by its maximum never exceeds 1."""
    return None if tau is None or tau >= 1 else tau


def threshold(edit: EditSettings, fuses_self: bool) -> float | None:
    """tau, where a mask of words is used: while self-attention is fused, by a removal, or to keep the background."""
    tau = acting(edit.threshold)
    if edit.mask is not None:
        return None
    if fuses_self or edit.remove is not None:
        return tau
    return (STEADY if tau is None else tau) if edit.keep_background else None


def fused_sentence(settings: Settings) -> str:
    """The sentence whose attention edits fuse: of the pass that stands in inversion's place, if there is one."""
    of_pass = settings.reconstruction_prompt if settings.attention == "reconstruction" else None
    return settings.source if of_pass is None else of_pass


def beside(name: str, edit: EditSettings, steps: int, method: str = "fatezero") -> str | None:
    """The setting beside which another does not count, and why; None where it does."""
    of_masks = name in ("threshold", "blend_latents")
    if method not in FUSING:
        return f"method {method}, which fuses no attention"
    keeps_background = name == "threshold" and edit.keep_background and method in MASKING
    if edit.align == "plain" and not keeps_background:
        return "align plain, which fuses no attention"
    if of_masks and method not in MASKING:
        return f"method {method}, which has no masks"
    if of_masks and edit.mask is not None:
        return f"the mask {edit.mask}, which is used in its place"
    acts = effect(edit, steps, method)
    if name == "threshold" and acts.get("self_replace") is None and acts["threshold"] is None:
        return f"self_replace {share(edit.self_replace)}, which is no step of {steps}, so that no mask is used"
    if name.startswith("reweight") and acts["reweight"] is None:
        return f"cross_replace {share(edit.cross_replace)}, which is no step of {steps}, so that no word is weighed"
    return None


def share(window: Window) -> str:
    """As the command line has it."""
    return f"{window[1]:g}" if window[0] == 0 else f"{window[0]:g},{window[1]:g}"
