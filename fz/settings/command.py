"""The command line that gives a run's settings: `fz.settings.parse` turned round, for reports and for whoever wants to
run it again.
"""

import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from fz.settings.applications import usual_of
from fz.settings.config import ClipSettings, Crop, EditSettings, Settings
from fz.settings.flags import FLAGS, Flag
from fz.settings.idle import counts

# a run without a checkpoint has other defaults for these
ALWAYS = ("clip.size", "guidance", "steps")


def command(settings: Mapping[str, Any], out: str | None = None) -> str:
    """`python -m fz.run …` of run.json's settings, quoted for a POSIX shell. What no flag says (`lenient`) and what
    changes nothing (a strength without SDEdit) is left out. An empty path is the miniature's example, which a run
    without a clip has.
    """
    words = ["python", "-m", "fz.run"]
    defaults = {f"clip.{k}": v for k, v in fields(ClipSettings).items()} | fields(Settings)
    flat = {
        **{k: v for k, v in settings.items() if k not in ("clip", "edits")},
        **{f"clip.{k}": v for k, v in settings["clip"].items()},
    }
    for flag in first_flags(edit=False):
        if (
            flag.setting in flat
            and (flag.setting, flat[flag.setting]) != ("clip.path", "")
            and (flag.setting in ALWAYS or not same(flat[flag.setting], defaults.get(flag.setting)))
            and any(counts(flag.setting, flat, edit) for edit in settings["edits"])
        ):
            words += said(flag, f"--{flag.name}", flat[flag.setting])
    edits = settings["edits"]
    for edit in edits:
        words += ["--target", edit["target"]]
    for i, edit in enumerate(edits):
        usual = fields(EditSettings) | usual_of(edit.get("remove"), edit.get("enhance"))
        for flag in first_flags(edit=True):
            if (
                flag.setting in edit
                and not same(edit[flag.setting], usual.get(flag.setting))
                and counts(flag.setting, flat, edit)
            ):
                words += said(flag, f"--{flag.name}{f'.{i}' if len(edits) > 1 else ''}", edit[flag.setting])
            if flag.setting == "cross_replace":
                for word, (low, high) in edit.get("cross_replace_words", ()):
                    words += [f"--cross-replace{f'.{i}' if len(edits) > 1 else ''}", f"{word}={low},{high}"]
    if out:
        words += ["--out", out]
    return shlex.join(words)


def first_flags(edit: bool) -> Iterator[Flag]:
    """One flag for each setting, those with a value before switches that mean one of them."""
    seen = {"preset"}
    for flag in sorted((f for group in FLAGS.values() for f in group), key=lambda f: f.parse is None):
        if flag.edit == edit and flag.setting not in seen:
            seen.add(flag.setting)
            yield flag


def fields(kind: type) -> dict[str, Any]:
    return {f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}


def same(value: Any, default: Any) -> bool:
    """Of a value that has been JSON."""
    if isinstance(default, Crop):
        default = dataclasses.asdict(default)
    return value == (list(default) if isinstance(default, tuple) else default)


def said(flag: Flag, name: str, value: Any) -> list[str]:
    """The flag's words."""
    if flag.parse is None:
        return [name]
    if flag.setting == "reweight":
        return [part for word, factor in value for part in (name, f"{word}={factor}")]
    if flag.setting in ("lora", "embedding"):
        return [part for path, own in value for part in (name, path if own is None else f"{path}={own}")]
    if flag.setting == "blend_words":
        return [name, *(" ".join(group) for group in value)]
    if flag.setting == "clip.crop":
        return [name, ",".join(str(value[side]) for side in ("left", "right", "top", "bottom"))]
    if flag.setting == "clip.size" and isinstance(value, list):
        return [name, f"{value[0]}x{value[1]}"]
    if value is None:
        return [name, "all" if flag.setting == "clip.frames" else "none"]
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return [f"{name}={text}"] if text.startswith("-") else [name, text]
