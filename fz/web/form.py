"""What do the page's controls mean? From their values to arguments of `fz.read`, `Editor.invert` and
`InvertedClip.edit`.

A form is a flat dict that is JSON: it is kept beside each result, so that its settings can be taken again.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fz.arguments import edit_of
from fz.errors import FzError
from fz.settings.config import PRESETS, EditSettings
from fz.settings.effect import STEADY, effect
from fz.settings.fast import FAST, fast_steps
from fz.settings.sweep import NAMES, read_sweeps
from fz.web.wording import LABELS
from fz.words import says

Form = Mapping[str, Any]

KINDS = {"A colour or material": "attribute", "The whole style": "style", "The shape of something": "shape"}
PREVIEW_FRAMES, PREVIEW_STEPS = 2, 6
MOST_FRAMES = 64
MOST_TILES = 12
LONGEST = 1000  # letters of a sentence
# of the page's sliders, for whoever sends something else
BOUNDS = {
    "frames": (1, MOST_FRAMES), "start": (0, 10**6), "every": (1, 1000), "size": (64, 768), "steps": (2, 100),
    "guidance": (1, 15), "keep_shape": (0, 100), "keep_place": (0, 100), "area_limit": (0, 1),
}  # fmt: skip
# of the paper's 50 steps, what a drawn world needs
USUAL: dict[str, Any] = {
    "model": "", "source": "", "target": "", "kind": "attribute",
    "frames": 8, "start": 0, "every": 1, "size": 128,
    "keep_shape": 80, "keep_place": 70, "area": False, "area_limit": STEADY,
    "weights": {}, "keep_background": False, "remove": "", "enhance": "", "mask": "",
    "steps": 20, "guidance": 3.0, "fast": False, "stays": True,
}  # fmt: skip
# what a sheet can vary, by its name on the page: settings' names, and values
VARIED = {
    "How much of the shape is kept": ("self_replace", "0.2,0.4,0.6,0.8,1"),
    "How long things are kept in place": ("cross_replace", "0.2,0.4,0.6,0.8,1"),
    LABELS["area_limit"]: ("threshold", "0.1,0.2,0.3,0.45,0.6,none"),
    "How strong the new words are": ("reweight", "0.5,1,2,4,8"),
}
# why a sheet's pictures would all be one
MOOT = {
    "threshold": "So little of the shape is kept that it may change everywhere and no area is used: keep more of it.",
    "reweight": "Things are kept in place so shortly that no word has a strength: keep them longer.",
}


def of_preset(kind: str) -> dict[str, Any]:
    """The controls' values for one of the paper's presets."""
    preset = PRESETS[kind]
    return {
        "keep_shape": round(100 * preset["self_replace"][1]),
        "keep_place": round(100 * preset["cross_replace"][1]),
        "area": preset["threshold"] is not None,
        "area_limit": preset["threshold"] or STEADY,
    }


def checked(form: Form) -> dict[str, Any]:
    """The form with every control's value in its kind. Raises FzError for what no control can give."""
    out = {}
    for name, usual in USUAL.items():
        value = form.get(name, usual)
        kinds = (int, float) if isinstance(usual, (int, float)) and not isinstance(usual, bool) else type(usual)
        if value is None or not isinstance(value, kinds) or isinstance(value, bool) != isinstance(usual, bool):
            raise FzError(f"The page sent no proper value for {name.replace('_', ' ')}. Load it again.")
        if isinstance(value, float) and not math.isfinite(value):
            raise FzError(f"The page sent {value} for {name.replace('_', ' ')}, expected a number. Load it again.")
        out[name] = int(value) if isinstance(usual, int) and not isinstance(usual, bool) else value
    if out["kind"] not in PRESETS:
        raise FzError("Choose what is to change: a colour, the style or a shape.")
    if not all(isinstance(w, str) and isinstance(f, (int, float)) for w, f in out["weights"].items()):
        raise FzError("The page sent no proper weights of words. Load it again.")
    for name, (low, high) in BOUNDS.items():
        if not low <= out[name] <= high:
            raise FzError(f"The page sent {out[name]} for {name.replace('_', ' ')}, expected {low} to {high}.")
    for name in ("source", "target", "remove", "enhance"):
        if len(out[name]) > LONGEST:
            raise FzError(f"A sentence has {len(out[name])} letters, expected at most {LONGEST}. Shorten it.")
    if not re.fullmatch(r"([0-9a-f]{16})?", out["mask"]):
        raise FzError("The area that you drew is not here any more. Draw it again.")
    if len(out["weights"]) > LONGEST:
        raise FzError("The page sent no proper weights of words. Load it again.")
    return out


def ends(count: int) -> dict[str, int]:
    """How far the sliders of a clip of so many pictures go; no slider of Gradio's is without a way to go."""
    return {"frames": max(2, min(count, MOST_FRAMES)), "start": max(1, count - 1), "every": max(2, min(10, count))}


def reading(form: Form) -> dict[str, Any]:
    """Arguments of `fz.read`."""
    return {name: form[name] for name in ("frames", "start", "every", "size")}


def steps_of(form: Form, quick: bool) -> int:
    """Of an edit; quick: of a preview, which is fast already."""
    whole = fast_steps(form["steps"]) if form["fast"] else form["steps"]
    return min(whole, PREVIEW_STEPS) if quick else whole


def inverting(form: Form, quick: bool) -> dict[str, Any]:
    """Arguments of `Editor.invert`."""
    return {"steps": steps_of(form, quick)} | ({"reuse": FAST["reuse"]} if form["fast"] and not quick else {})


def guiding(form: Form, quick: bool) -> dict[str, Any]:
    """Arguments of an edit that are the run's."""
    window = {"guidance_window": FAST["guidance_window"]} if form["fast"] and not quick else {}
    return {"guidance": form["guidance"], **window}


def sentence(form: Form) -> str | None:
    """The target; None where removing or enhancing makes it."""
    target = form["target"].strip()
    return target if says(target) else (None if form["remove"].strip() or form["enhance"].strip() else "")


def editing(form: Form, mask: Path | None = None) -> dict[str, Any]:
    """Arguments of an edit itself. mask: where the drawn one is; `Editor.explain` has to know only that there is."""
    mask = mask or (Path(form["mask"]) if form["mask"] else None)
    out: dict[str, Any] = {
        "kind": form["kind"],
        "self_replace": form["keep_shape"] / 100,
        "cross_replace": form["keep_place"] / 100,
        "threshold": form["area_limit"] if form["area"] or mask is not None else None,
        "keep_background": form["keep_background"],
    }
    if weights := {word: factor for word, factor in form["weights"].items() if factor != 1}:
        out["reweight"] = weights
    out |= {name: form[name].strip() for name in ("remove", "enhance") if form[name].strip()}
    return out | ({"mask": str(mask)} if mask is not None else {})


def limit(form: Form) -> float | None:
    """How tight the area of words is that counts in this edit; None where none does."""
    edit = settings_of(form)
    frees_shapes = effect(edit, steps_of(form, quick=False))["threshold"]
    return STEADY if frees_shapes is None and edit.keep_background and edit.mask is None else frees_shapes


def sets_limit(form: Form) -> bool:
    """Is it the slider that says so?"""
    return form["area"] and not form["mask"]


def varied(form: Form, what: str, words: list[str], has_area: bool) -> list[dict[str, Any]]:
    """The form once for each value of what a sheet varies that makes another edit. words: the target's that the source
    has not; has_area: does a word of the source change? Raises FzError for what cannot be varied.
    """
    if what not in VARIED:
        raise FzError("Choose what to try.")
    name, values = VARIED[what]
    if name == "reweight" and not words:
        raise FzError("No word of the new sentence is new, so there is none to make stronger.")
    if name == "threshold" and form["mask"]:
        raise FzError("The area that you drew is used, whatever is set here. Clear it, or try something else.")
    if name == "threshold" and not has_area:
        raise FzError("No word of the first sentence changes, so there is no area. Try something else.")
    steps, made = steps_of(form, quick=True), {}
    for tile in each_value(form, name, values, words):
        made.setdefault(tuple(effect(settings_of(tile), steps).items()), tile)
    if len(made) < 2:
        raise FzError(f"{MOOT[name]} Try something else.")
    return list(made.values())


def settings_of(form: Form) -> EditSettings:
    """The edit that a form asks for."""
    arguments = editing(form)
    return edit_of(form["source"], sentence(form), arguments.pop("kind"), arguments)


def each_value(form: Form, name: str, values: str, words: list[str]) -> list[dict[str, Any]]:
    """The form with each value of 'a,b,none' of a setting in its controls."""
    text = f"{name}={values}" if name in NAMES else f"reweight.{words[0]}={values}"
    out = []
    for ((_, value),) in read_sweeps([text])[:MOST_TILES]:
        if name == "threshold":
            out.append(
                {**form, "area": value is not None, "area_limit": form["area_limit"] if value is None else value}
            )
        elif name == "reweight":
            out.append({**form, "weights": {**form["weights"], **dict.fromkeys(words, value)}})
        else:
            out.append({**form, "keep_shape" if name == "self_replace" else "keep_place": round(100 * value)})
    return out


def label(form: Form, before: Form) -> str:
    """What differs in a form from another, in the page's words."""
    told = []
    if form["keep_shape"] != before["keep_shape"]:
        told.append(f"shape kept {form['keep_shape']} %")
    if form["keep_place"] != before["keep_place"]:
        told.append(f"kept in place {form['keep_place']} %")
    if (form["area"], form["area_limit"]) != (before["area"], before["area_limit"]):
        told.append(f"tightness {form['area_limit']:g}" if form["area"] else "shapes kept everywhere")
    for word, factor in form["weights"].items():
        if before["weights"].get(word, 1) != factor:
            told.append(f"{word} ×{factor:g}")
    return ", ".join(told) or "as it is now"
