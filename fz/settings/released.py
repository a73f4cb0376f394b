"""The released FateZero configs as settings: from the names in those YAML files to `fz.settings.config` overlays.

Nothing else knows the released names, which `fz.settings.released_names` lists. How the file is read is
`fz.settings.tree`'s question.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fz.errors import FzError
from fz.settings.config import Crop, Overlay
from fz.settings.convert import number, share, shown, text, truth, whole, words
from fz.settings.released_names import COUNTS, P2P, TABLE, check_names
from fz.settings.tree import Config, Tree, is_number
from fz.words import compared, says

# what the released code takes for keys that a config lacks
DEFAULTS: Overlay = {
    "guidance": 7.0,
    "steps": 20,
    "clip.frames": 8,
    "clip.size": 512,
    "frame_index": (-1, "first"),
    "least_channels": 0,
    "edits.*.align": "replace",
    "edits.*.lenient": True,
}


@dataclass
class Translation:
    """overlay: settings. origins: from which released names each came. notes: what is printed."""

    overlay: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def put(self, setting: str, value: Any, *origins: str) -> None:
        self.overlay[setting] = value
        self.origins[setting] = origins

    def of(self, names: Iterable[str]) -> Overlay:
        """The part of the overlay that these released names had a hand in."""
        names = tuple(names)
        return {s: v for s, v in self.overlay.items() if any(related(o, n) for o in self.origins[s] for n in names)}


def related(a: str, b: str) -> bool:
    return a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.")


def translate(tree: Tree) -> Translation:
    """Settings of a released config, or of a part of one: keys that it lacks give no setting (see DEFAULTS).

    Raises FzError for a name that the released code does not have, an interpolation that leads nowhere, and values of
    the wrong kind.
    """
    check_names(tree)
    config, out = Config(tree), Translation()
    for name, row in TABLE.items():
        value = config.get(name)
        if value is not None:
            converted = row.convert(value, name)
            if row.setting:
                out.put(row.setting, converted, name)
    for name in COUNTS:
        value = config.get(name)
        if value is not None and whole(value, name) < 1:
            raise FzError(f"{name}: got {shown(value)}, expected a whole number of at least 1.")
    sides = {side: config.get(f"dataset_config.offset.{side}") for side in ("left", "right", "top", "bottom")}
    offset = {side: whole(value, f"dataset_config.offset.{side}") for side, value in sides.items() if value is not None}
    if offset:
        out.put("clip.crop", Crop(**offset), "dataset_config.offset")
    put_prompts(config, out)
    return out


def put_prompts(config: Config, out: Translation) -> None:
    prompt, source = config.get("dataset_config.prompt"), config.get("editing_config.source_prompt")
    if prompt is not None or source is not None:
        chosen = text(prompt if source is None else source, "dataset_config.prompt")
        out.put("source", chosen, "dataset_config.prompt", "editing_config.source_prompt")
        if prompt is not None and chosen != prompt:
            out.notes.append(f"the source is editing_config.source_prompt, {chosen!r}, for inversion too")
    name = "editing_config.editing_prompts"
    prompts = config.get(name)
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if prompts is not None and (not isinstance(prompts, list) or not prompts):
        raise FzError(f"{name}: got {shown(prompts)}, expected a list of sentences.")
    prompts = [text(p, name) for p in prompts or ()]
    for i, target in enumerate(prompts):
        out.put(f"edits.{i}.target", target, name)
    if prompts and source is None and prompt is not None and not same_words(prompts[0], str(prompt)):
        out.notes.append(
            f"words and masks follow dataset_config.prompt; the released code has {prompts[0]!r} for it, the first of "
            "editing_prompts, where editing_config.source_prompt is not set"
        )
    put_methods(config, out, prompts)


def same_words(a: str, b: str) -> bool:
    """Punctuation apart."""
    first, second = ([word for word in compared(sentence) if says(word)] for sentence in (a, b))
    return first == second


def put_methods(config: Config, out: Translation, prompts: list[str]) -> None:
    """How each edit is reached: p2p_config, and the two switches that turn it off."""
    switch, attention = "editing_config.prompt2prompt_edit", "editing_config.use_inversion_attention"
    on = config.get(switch)
    # a config with prompts of its own takes the released default, False; a few keys given with --set leave it open
    fused = truth(on, switch) if on is not None else not prompts
    inverted = config.get(attention)
    inverted = True if inverted is None else truth(inverted, attention)
    entries = set(config.keys(P2P))
    for i in sorted(entries):
        if not is_number(i):
            raise FzError(f"{P2P}.{i}: got {i!r} as the number of an edit, expected 0 to {max(len(prompts) - 1, 0)}.")
        # entries without a prompt are left over from a longer list
        if not prompts or int(i) < len(prompts):
            put_edit(int(i), config.get(f"{P2P}.{i}") or {}, out)
    if not fused:
        for i in range(len(prompts)):
            out.put(f"edits.{i}.align", "plain", switch)
        if on is not None and not prompts:
            out.put("edits.*.align", "plain", switch)
        return
    if lacking := [i for i in range(len(prompts)) if str(i) not in entries]:
        got = f"{P2P}: no entry {lacking[0]} for {prompts[lacking[0]]!r}"
        raise FzError(
            f"{got}, expected one for each editing prompt (0 to {len(prompts) - 1}). Add it, or set "
            "prompt2prompt_edit to false."
        )
    if config.get(attention) is not None:
        out.put("attention", "inversion" if inverted else "reconstruction", attention, switch)
    if not inverted and prompts:
        # the released code samples the first prompt with guidance, and keeps its attention for the others
        out.put("reconstruction_prompt", prompts[0], attention, "editing_config.editing_prompts")
        out.put("edits.0.align", "plain", attention, switch)


def put_edit(i: int, entry: Mapping[str, Any], out: Translation) -> None:
    """One entry of p2p_config."""
    name = f"{P2P}.{i}"
    if not isinstance(entry, dict):
        raise FzError(f"{name}: got {shown(entry)}, expected cross_replace_steps, self_replace_steps and so on.")

    def put(setting: str, value: Any, *keys: str) -> None:
        out.put(f"edits.{i}.{setting}", value, *(f"{name}.{key}" for key in keys))

    if entry.get("is_replace_controller") is not None:
        replaces = truth(entry["is_replace_controller"], f"{name}.is_replace_controller")
        put("align", "replace" if replaces else "refine", "is_replace_controller")
    cross = entry.get("cross_replace_steps")
    if isinstance(cross, dict):
        shares = {word: share(value, f"{name}.cross_replace_steps.{word}") for word, value in cross.items()}
        # as prompt-to-prompt has it: without a default, other words are replaced throughout
        put("cross_replace", shares.pop("default_", 1.0), "cross_replace_steps")
        put("cross_replace_words", tuple(shares.items()), "cross_replace_steps")
    elif cross is not None:
        put("cross_replace", share(cross, f"{name}.cross_replace_steps"), "cross_replace_steps")
    if entry.get("self_replace_steps") is not None:
        put("self_replace", share(entry["self_replace_steps"], f"{name}.self_replace_steps"), "self_replace_steps")
    if entry.get("eq_params") is not None:
        put("reweight", equalizer(entry["eq_params"], f"{name}.eq_params", out.notes), "eq_params")
    if any(key.startswith("blend_") for key in entry):
        put_blend(entry, name, put)


def equalizer(params: Any, name: str, notes: list[str]) -> tuple[tuple[str, float], ...]:
    if not isinstance(params, dict) or params.get("words") is None or params.get("values") is None:
        raise FzError(f"{name}: got {shown(params)}, expected words and values, as words: [watercolor], values: [10].")
    named = words(params["words"], f"{name}.words")
    values = params["values"] if isinstance(params["values"], list) else [params["values"]]
    factors = [number(v, f"{name}.values") for v in values]
    if len(named) != len(factors):
        used = min(len(named), len(factors))
        notes.append(f"{name}: {len(named)} words and {len(factors)} values, the first {used} of both are used")
    return tuple(zip(named, factors, strict=False))


def put_blend(entry: Mapping[str, Any], name: str, put: Callable[..., None]) -> None:
    """Masks. Released: none without blend_words, and only the first number of blend_th counts."""
    keys = ("blend_words", "blend_self_attention", "blend_latents", "blend_th")
    named = entry.get("blend_words")
    attention, latents = (
        entry.get(k) is not None and truth(entry[k], f"{name}.{k}") for k in ("blend_self_attention", "blend_latents")
    )
    thresholds = entry.get("blend_th")
    first = thresholds[0] if isinstance(thresholds, list) and thresholds else 0.3 if thresholds is None else thresholds
    threshold = number(first, f"{name}.blend_th")
    if named in (None, "None"):
        put("threshold", None, *keys)
        put("blend_latents", None, *keys)
        return
    if not isinstance(named, list) or not 1 <= len(named) <= 2:
        raise FzError(
            f"{name}.blend_words: got {shown(named)}, expected the source's words and the target's, as [[jeep], [car]]."
        )
    source, target = (words(w, f"{name}.blend_words") for w in (*named, [])[:2])
    put("blend_words", (source, target), *keys)
    put("threshold", threshold if attention else None, *keys)
    put("blend_latents", threshold if latents else None, *keys)
