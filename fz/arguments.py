"""Are a Python caller's arguments settings? Their names are checked here, their values in `fz.settings.config`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fz.errors import FzError, suggest
from fz.settings.checks import check_one_of
from fz.settings.config import PRESETS, EditSettings, edit_settings
from fz.settings.place import expanded
from fz.settings.spoken import OTHERWISE

PATHS = ("mask", "vae", "tokenizer", "model_config", "control")
OF_LOADING = ("vae", "tokenizer", "model_config", "control", "ema", "lora", "embedding", "clip_skip", "clip_norm",
              "frame_index", "least_channels", "offload", "compile", "graph", "threads", "conv", "conv_memory",
              "weights")  # fmt: skip
OF_INVERTING = ("steps", "solver", "fuse", "reuse", "chunk", "store", "store_dtype", "control_scale", "control_window",
                "control_inverts", "canny")  # fmt: skip
OF_EDITING = ("negative", "method", "strength", "guidance", "guidance_window", "attention", "reconstruction_prompt",
              "seed")  # fmt: skip
OF_AN_EDIT = tuple(f.name for f in dataclasses.fields(EditSettings) if f.name not in ("target", "lenient"))


def named(settings: Mapping[str, Any], known: Sequence[str], what: str) -> dict[str, Any]:
    """The settings, paths as text and lists as tuples. Raises FzError for one that `what` does not have."""
    for name in settings:
        if name not in known:
            here = OTHERWISE.get(name.replace("_", "-"))
            meant = f" Did you mean {here}?" if here and here.partition("=")[0] in known else suggest(name, known)
            raise FzError(f"{what}: unknown setting {name!r}, expected {', '.join(known)}.{meant}")
    listed = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    return {name: path_of(value, name) if name in PATHS else value for name, value in listed.items()}


def path_of(value: Any, name: str) -> str | None:
    """The path as text. Raises FzError for an empty one, and for what is none."""
    if value is not None and not isinstance(value, (str, Path)):
        raise FzError(f"{name}: got {type(value).__name__}, expected a path.")
    return None if value is None else str(expanded(value, name))


def edit_of(source: str, target: str | None, kind: str | None, given: Mapping[str, Any]) -> EditSettings:
    """An edit's settings: the preset `kind`, and what is given over it. Without a target it must remove or enhance."""
    if kind is not None:
        check_one_of("kind", kind, tuple(PRESETS))
    if target is None and not (given.get("remove") or given.get("enhance")):
        raise FzError("target: got none, expected a sentence, as 'a red jeep on a road', or remove or enhance.")
    preset = PRESETS[kind] if kind is not None else {}
    return edit_settings(source, {**preset, **given, **({} if target is None else {"target": target})})


def called(callback: Any) -> Any:
    if callback is not None and not callable(callback):
        raise FzError(f"callback: got {callback!r}, expected a function of the step and the latents after it.")
    return callback


def listed_words(words: Any) -> list[str]:
    """A word of the source, or several, as a list."""
    listed = [words] if isinstance(words, str) else words
    if not isinstance(listed, (list, tuple)) or not listed or not all(isinstance(word, str) for word in listed):
        raise FzError(f"mask: got {words!r}, expected a word of the source or a list of them.")
    return list(listed)


def one_phrase(words: Any, what: str) -> str:
    """A word, or several in a row."""
    if not isinstance(words, str):
        raise FzError(f"{what}: got {words!r}, expected a word of the source, or several in a row, as 'red car'.")
    return words
