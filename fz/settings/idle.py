"""Which flags change nothing, for want of another? `--strength` without `--method sdedit`, and the like.

Not here: what an edit's numbers come to beside each other (`fz.settings.effect`), a ControlNet's settings
(`fz.settings.control`), and fusion's under a method that fuses nothing, of which `fz.baselines` tells.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fz.errors import FzError
from fz.settings.config import EditSettings, Overlay, Settings, is_edit
from fz.settings.effect import MASKING, acting
from fz.settings.sweep import Variant, varied

Values = Mapping[str, Any]  # settings by name: of a run, of one of its edits


def guides(run: Values, edit: Values) -> bool:
    return run["guidance"] > 1


def follows_words(run: Values, edit: Values) -> bool:
    fuses = edit["align"] != "plain"
    if run["method"] not in MASKING or not (fuses or edit["keep_background"]):
        return True  # of these the method, or the alignment, tells
    masks = acting(edit["threshold"]) is not None or edit["blend_latents"] is not None
    return edit["mask"] is None and (edit["keep_background"] or (fuses and masks))


# setting -> (what it counts with, does it count in this edit of this run)
NEEDS: Mapping[str, tuple[str, Callable[[Values, Values], bool]]] = {
    "strength": ("--method sdedit", lambda run, edit: run["method"] == "sdedit"),
    "reconstruction_prompt": ("--attention reconstruction", lambda run, edit: run["attention"] == "reconstruction"),
    "negative": ("--guidance above 1", guides),
    "guidance_window": ("--guidance above 1", guides),
    "conv_memory": ("--conv auto", lambda run, edit: run["conv"] != "direct"),
    "enhance_factor": ("--enhance", lambda run, edit: edit["enhance"] is not None),
    "blend_words": ("a mask of words (--threshold, --blend-latents or --keep-background, no --mask)", follows_words),
}


def counts(name: str, run: Values, edit: Values) -> bool:
    """Does the setting make a difference to this edit?"""
    return name not in NEEDS or NEEDS[name][1](run, edit)


def idle_flags(given: Overlay, runs: Sequence[Settings], variants: Sequence[Variant]) -> list[str]:
    """A line for each setting that flags gave, that is not the default, and that counts in no edit of any of these
    runs, swept.
    """
    lines = []
    for path in given:
        number, name = path.split(".")[1:] if is_edit(path) else ("*", path)
        if name not in NEEDS:
            continue
        meant = [(run, edit) for run in runs for edit in (run.edits if number == "*" else run.edits[int(number) :][:1])]
        usual = getattr(EditSettings if is_edit(path) else Settings, name)
        if all(getattr(edit if is_edit(path) else run, name) == usual for run, edit in meant):
            continue
        swept = [(run, varied(edit, variant)) for run, edit in meant for variant in variants or [()]]
        if not any(counts(name, vars(run), vars(edit)) for run, edit in swept):
            lines.append(alone(name, NEEDS[name][0]))
    return lines


def alone(name: str, needs: str) -> str:
    return f"{name.replace('_', '-')}: changes nothing by itself, expected {needs} with it"


def check_clip_model(given: argparse.Namespace) -> None:
    """Of `fz.evaluate` and `fz.report`: raise FzError for a tokenizer without the CLIP that it is for."""
    if given.tokenizer is not None and given.clip_model in (None, "none"):
        raise FzError(f"{alone('tokenizer', '--clip-model')}. Pass that, or leave it out.")
