"""From a command line to one `Settings`: defaults < YAML < --fast < --edit < other flags < --ablate < --set.

The flags are in `fz.settings.flags`, the names of released configs in `fz.settings.released`; running and printing is
`fz.run`'s. Flags of an edit count for every target, or with `.N` for target N alone (`--threshold.1 0.3`).
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fz import words
from fz.errors import FzError
from fz.settings import applications, released, tree
from fz.settings.config import ABLATIONS, PRESETS, Overlay, Settings, build, is_edit
from fz.settings.effect import fused_sentence
from fz.settings.fast import fast_overlay
from fz.settings.flags import build_parser
from fz.settings.idle import idle_flags
from fz.settings.sweep import Variant, expand, read_sweeps
from fz.shell import unknown


@dataclass(frozen=True)
class Request:
    """What a command line asks for. settings None: the words that the miniature knows; sweep: what each of its edits is
    varied by.
    """

    settings: Settings | None
    list_words: bool = False
    sweep: tuple[Variant, ...] = ()
    clip_model: str | None = None  # the CLIP that judges a sweep and a report
    verbose: bool = False


def parse(argv: Sequence[str], notes_idle: bool = False) -> Request:
    """notes_idle: flags that change nothing are noted, as they may be for all jobs of a batch, and not refused.

    Raises FzError, in one line, for flags that are unknown or wrong and for settings that cannot be; SystemExit after
    --help.
    """
    argv = joined(argv)
    numbers = sorted({int(found[1]) for a in argv if (found := re.match(r"--[a-z-]+\.(\d{1,4})(?:=|$)", a))})
    parser = build_parser(numbers, of_miniature())
    given, rest = parser.parse_known_args(argv)
    if rest:
        raise FzError(unknown(rest, parser))
    given = vars(given)
    given.pop("debug", None)
    verbose = given.pop("verbose", False)
    list_words = given.pop("list_words", False)
    sweeps, clip_model = given.pop("sweep", []), given.pop("clip_model", None)
    config, assignments = given.pop("config", None), given.pop("set", [])
    fast = given.pop("fast", False)
    flags = flag_overlay(given)

    content = tree.read(config) if config is not None else {}
    changed = [tree.assign(content, assignment) for assignment in assignments]
    translation = released.translate(content)
    of_config = [released.DEFAULTS, translation.overlay] if config is not None else []
    preset = preset_overlay(given)
    ablations = [ABLATIONS[name] for name in given.get("ablate", [])]
    if twice := {path for i, one in enumerate(ablations) for other in ablations[:i] for path in one if path in other}:
        raise FzError(
            f"ablate: got {' and '.join(given['ablate'])}, which both say what {sorted(twice)[0].rpartition('.')[2]} "
            "is. Leave one out."
        )
    over = [flags, *ablations, translation.of(changed)]
    if list_words:
        if not any("source" in overlay or "edits.0.target" in overlay for overlay in (*of_config, *over)):
            return Request(None, list_words)
        if any("source" in overlay for overlay in (*of_config, *over)):
            of_config.insert(0, {"clip.path": ""})  # words need no clip
    beneath, notes = [*bundled([*of_config, *over]), *of_config], list(translation.notes)
    if fast:
        overlay, line = fast_overlay(beneath, flags.get("method", Settings.method))
        beneath.append(overlay)
        notes.append(line)
    settings = build(*beneath, preset, *over)
    if preset and config is not None:
        notes += replaced(translation.overlay, build(*beneath, *over), settings)
    settings = dataclasses.replace(settings, notes=(*notes, *settings.notes))
    if settings.checkpoint is None:
        from fz import mini

        strange = (*mini.strange_clip(settings.clip.path), *mini.strange_words(settings))
        settings = dataclasses.replace(settings, notes=(*settings.notes, *strange))
    if given.get("ablate") and settings.method != "fatezero":
        raise FzError(
            f"ablate: got it with method {settings.method!r}, expected 'fatezero', whose parts it takes away. Leave "
            "one out."
        )
    if beyond := [n for n in numbers if n >= len(settings.edits)]:
        raise FzError(
            f"flags of edit .{beyond[0]}: there are {len(settings.edits)} targets, numbered from 0. Expected .N of "
            "one of them."
        )
    variants = read_sweeps(sweeps) if sweeps else []
    # an ablation may take away what a flag counts with
    whole = build(*beneath, preset, flags, translation.of(changed)) if ablations else settings
    idle = idle_flags(flags, (settings, whole), variants)
    if idle and not notes_idle:
        raise FzError(f"{idle[0]}. Pass that, or leave it out.")
    settings = dataclasses.replace(settings, notes=(*settings.notes, *idle))
    swept = expand(settings, variants) if variants else settings
    check_words(swept)
    if clip_model is not None and not (sweeps or settings.report):
        raise FzError(
            f"clip model: got {clip_model!r} without --sweep or --report, which it judges. Pass one of them, or "
            "leave it out."
        )
    if list_words:
        return Request(settings, list_words)
    return Request(swept, sweep=tuple(variants), clip_model=clip_model, verbose=verbose)


def of_miniature() -> Overlay:
    """What the bundled checkpoint is run with unless told otherwise; nothing where it is not installed."""
    try:
        from fz import mini
    except ImportError:
        return {}
    return mini.DEFAULTS


def replaced(of_config: Overlay, without: Settings, settings: Settings) -> list[str]:
    """A line that names what a config said of its edits and `--edit` says otherwise. without: the settings had there
    been no --edit.
    """
    said = dict.fromkeys(path.rpartition(".")[2] for path in of_config if is_edit(path))
    changed = [
        name.replace("_", "-")
        for name in said
        if any(getattr(a, name) != getattr(b, name) for a, b in zip(without.edits, settings.edits, strict=True))
    ]
    return [f"--edit goes before the config's {', '.join(changed)}"] if changed else []


def check_words(settings: Settings) -> None:
    """Raise FzError for a word that is named and that its sentence has not: plans say so too, once a tokenizer is
    loaded.
    """
    for edit in settings.edits:
        if settings.method != "fatezero" or edit.align == "plain" or edit.lenient:
            continue
        for what, named in (("reweight", edit.reweight), ("cross_replace", edit.cross_replace_words)):
            for word, _ in named:
                words.occurrences(edit.target, words.split(edit.target), word, what)
        for phrase in applications.phrases(edit.remove) if edit.remove else ():
            words.occurrences(settings.source, words.split(settings.source), phrase, "remove")
        masked = edit.threshold is not None or edit.blend_latents is not None or edit.keep_background
        if edit.blend_words is not None and masked:
            for sentence, named in zip((fused_sentence(settings), edit.target), edit.blend_words, strict=True):
                for word in named:
                    words.occurrences(sentence, words.split(sentence), word, "blend_words")


def joined(argv: Sequence[str]) -> list[str]:
    """argv with values such as -1,first tied to their flags: argparse takes what begins with '-' for a flag."""
    out: list[str] = []
    for arg in argv:
        if re.match(r"-\d|-\.\d|-inf|-nan", arg) and out and re.fullmatch(r"--[a-z][a-z.\d-]*", out[-1]):
            out[-1] += f"={arg}"
        else:
            out.append(arg)
    return out


def flag_overlay(given: dict[str, Any]) -> Overlay:
    """The flags that were given, as settings."""
    out: dict[str, Any] = {}
    for dest, value in given.items():
        edit, _, name = dest.rpartition(".")
        if name in ("preset", "ablate"):  # overlays of their own
            continue
        if dest == "target":
            out |= {f"edits.{i}.target": target for i, target in enumerate(value)}
        elif name == "cross_replace":
            general = [window for word, window in value if word is None]
            if len(general) > 1:
                raise FzError("--cross-replace: got two shares of all words, expected one; others are WORD=SHARE.")
            if general:
                out[dest] = general[-1]
            if len(general) < len(value):
                out[f"{edit}.cross_replace_words"] = tuple((word, window) for word, window in value if word is not None)
        elif name in ("reweight", "lora", "embedding"):
            out[dest] = tuple(value)
        elif name == "blend_words":
            if len(value) > 2:
                raise FzError(
                    f"--blend-words: got {len(value)} groups, expected the source's words and the target's, each "
                    "in quotes."
                )
            out[dest] = (*value, ())[:2]
        else:
            out[dest] = value
    return out


def preset_overlay(given: dict[str, Any]) -> Overlay:
    presets = {dest.removesuffix(".preset"): PRESETS[kind] for dest, kind in given.items() if dest.endswith(".preset")}
    return {f"{edit}.{name}": value for edit, preset in sorted(presets.items()) for name, value in preset.items()}


def bundled(overlays: Sequence[Overlay]) -> list[Overlay]:
    """What stands beneath everything: for a run without a checkpoint, the miniature's size; without a clip too, its
    example.
    """
    given = set().union(*overlays)
    if "checkpoint" in given:
        return []
    try:
        from fz import mini
    except ImportError:
        raise FzError(
            "checkpoint: got none, and no miniature is installed. Pass --checkpoint, a folder or a file."
        ) from None
    if "clip.path" in given:
        return [mini.DEFAULTS]
    return [mini.DEFAULTS, mini.example()]
