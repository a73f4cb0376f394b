"""Settings: what a run is asked to do, as frozen dataclasses that are checked once, when they are made.

Command-line flags, presets and released YAML files all become overlays, flat dicts of `Settings` paths ('clip.frames',
'edits.0.threshold'), laid over each other in order of precedence by `build`. Nothing behind this file knows where a
value came from.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fz.errors import FzError, suggest
from fz.frames import FrameIndex
from fz.settings import applications
from fz.settings.checks import (
    LARGEST_FACTOR,
    Window,
    check_number,
    check_one_of,
    check_paths,
    check_says,
    check_sentence,
    check_shard,
    check_whole,
    files_with,
    is_factor,
    is_number,
    make_plain,
    pairs,
    reuse,
    strengths,
    window,
    word_groups,
)
from fz.settings.clip import ClipSettings, Crop, Size  # noqa: F401 (asked for here, too)
from fz.settings.control import ControlSettings, check_control

DTYPES = ("float32", "float16", "bfloat16", "auto")  # auto: float16 on CUDA, else float32
DEVICES = ("auto", "cpu", "cuda", "mps")
ATTENTIONS = ("inversion", "reconstruction")
CONVS = ("auto", "direct")
GRAPHS = ("auto", "on", "off")
WEIGHTS = ("same", "int8")
SOLVERS = ("ddim", "dpm++2m")
FUSES = ("auto", "half", "full")
STORES = ("auto", "recompute", "memory", "disk")
STORE_DTYPES = ("same", "float16", "bfloat16")
PRESETS: Mapping[str, Mapping[str, Any]] = {
    # the paper, appendix A: t_s = 0.2 T, t_c = 0.3 T, tau = 1 (no pixel is edited) for style and attribute; 0.5, 0.5,
    # 0.3 for shape
    "style": {"self_replace": (0.0, 0.8), "cross_replace": (0.0, 0.7), "threshold": None, "align": "refine"},
    "attribute": {"self_replace": (0.0, 0.8), "cross_replace": (0.0, 0.7), "threshold": None, "align": "auto"},
    "shape": {"self_replace": (0.0, 0.5), "cross_replace": (0.0, 0.5), "threshold": 0.3, "align": "auto"},
}
ALIGNS = ("auto", "replace", "refine", "plain")
METHOD_NAMES = ("fatezero", "ddim", "sdedit", "null-p2p", "pnp")  # the table of them is `fz.baselines.METHODS`
KNOWN = {"method": METHOD_NAMES, "dtype": DTYPES, "attention": ATTENTIONS, "store": STORES, "store_dtype": STORE_DTYPES,
         "conv": CONVS, "graph": GRAPHS, "weights": WEIGHTS, "solver": SOLVERS,
         "fuse": FUSES}  # fmt: skip
REUSING = ("fatezero", "ddim")  # which may reuse deep features, take another solver, guide some steps, go in chunks
# the paper's ablations, as overlays of a run's settings
ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    # Fig. 4 and 9: no self-attention is the source's; all of it is, everywhere and always
    "no-self": {"edits.*.self_replace": (0.0, 0.0)},
    "full-self": {"edits.*.self_replace": (0.0, 1.0), "edits.*.threshold": None},
    # Fig. 3 and 8: attention of a sampling pass in place of inversion's
    "reconstruction": {"attention": "reconstruction"},
    "no-cross": {"edits.*.cross_replace": (0.0, 0.0), "edits.*.cross_replace_words": ()},
}


@dataclass(frozen=True)
class EditSettings:
    """One target sentence and how it is reached.

    align: 'replace' (prompts of equal word count), 'refine', 'auto' (replace where it can be), or 'plain' (sample
    without fusion). cross_replace: window for all words; cross_replace_words: (word, window) pairs for single ones;
    self_replace: window. reweight: (target word, factor) pairs. threshold: tau of the self-attention blend mask, None
    for no mask. blend_words: (source words, target words) of the masks; None: the words that differ.
    remove: phrases of the source that the target lacks and whose object is hidden; enhance: words that the target has
    on top, amplified by enhance_factor. mask: a file of masks in place of the words'. keep_background: outside the mask
    all is the source's. blend_latents: tau of the latent blend, None for none. lenient (released configs): absent
    words, uneven prompts are noted, not refused.
    """

    target: str
    align: str = "auto"
    cross_replace: Window = (0.0, 0.7)
    cross_replace_words: tuple[tuple[str, Window], ...] = ()
    self_replace: Window = (0.0, 0.8)
    reweight: tuple[tuple[str, float], ...] = ()
    threshold: float | None = None
    blend_words: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    blend_latents: float | None = None
    remove: str | None = None
    enhance: str | None = None
    enhance_factor: float = 2.0
    mask: str | None = None
    keep_background: bool = False
    lenient: bool = False

    def __post_init__(self):
        make_plain(self)
        check_says(
            "target", self.target, "a sentence that describes the clip after the edit, as 'a red jeep on a road'"
        )
        check_one_of("align", self.align, ALIGNS)
        object.__setattr__(self, "cross_replace", window(self.cross_replace, "cross_replace"))
        object.__setattr__(self, "self_replace", window(self.self_replace, "self_replace"))
        words = pairs("cross_replace_words", self.cross_replace_words, "{'red': 0.3}")
        words = tuple((word, window(share, f"cross_replace of {word!r}")) for word, share in words)
        object.__setattr__(self, "cross_replace_words", words)
        object.__setattr__(self, "reweight", pairs("reweight", self.reweight, "{'red': 5}"))
        for word, factor in self.reweight:
            if not is_factor(factor):
                expected = f"a number from -{LARGEST_FACTOR} to {LARGEST_FACTOR}, as {word}=10"
                raise FzError(f"reweight: got {factor!r} for {word!r}, expected {expected}.")
        if not is_factor(self.enhance_factor):
            raise FzError(
                f"enhance_factor: got {self.enhance_factor!r}, expected a number of at most {LARGEST_FACTOR}, as 2; 1 "
                "amplifies nothing."
            )
        if self.mask is not None and (not isinstance(self.mask, str) or not self.mask):
            raise FzError(f"mask: got {self.mask!r}, expected the path of a clip or picture, as 'mask.png'.")
        if not isinstance(self.keep_background, bool):
            raise FzError(f"keep_background: got {self.keep_background!r}, expected True or False.")
        if self.blend_words is not None:
            object.__setattr__(self, "blend_words", word_groups(self.blend_words))
        for name in ("threshold", "blend_latents"):
            value = getattr(self, name)
            if value is not None and not is_number(value, 0, math.inf if self.lenient else 1):
                raise FzError(
                    f"{name}: got {value!r}, expected a number from 0 (all is edited) to 1 (nothing is), or none."
                )


def fuses_full(fuse: str, miniature: bool, edit: EditSettings | None = None) -> bool:
    """Is attention at the full-size level fused, in this edit or in any? 'auto': the miniature's is, which is as large
    as the largest that the released code fuses, 32x32; not with a blend mask, where outlines are to change.
    """
    if fuse == "auto":
        return miniature and (edit is None or edit.threshold is None)
    return fuse == "full"


@dataclass(frozen=True)
class Settings(ControlSettings):
    """All of a run. None means 'by the model': frame_index [own, mid] for an untuned checkpoint, [-1, first] for a
    tuned one.
    """

    clip: ClipSettings
    source: str
    edits: tuple[EditSettings, ...]
    checkpoint: str | None = None  # None: the miniature that ships with the project
    vae: str | None = None
    tokenizer: str | None = None
    model_config: str | None = None
    ema: str = "auto"
    lora: tuple[tuple[str, float], ...] = ()  # (file, strength)
    embedding: tuple[tuple[str, str | None], ...] = ()  # (file, word; None: the file's own)
    clip_skip: int = 1  # as A1111 counts: 1 is the text encoder's last layer, 2 the one before it
    negative: str = ""
    method: str = "fatezero"
    strength: float = 0.75  # the share of the steps that method sdedit noises and denoises
    steps: int = 50
    solver: str = "ddim"  # of inversion and editing
    guidance: float = 7.5
    guidance_window: Window = (0.0, 1.0)  # the share of edit steps with guidance; one branch less outside it
    attention: str = "inversion"
    fuse: str = "auto"  # the largest feature maps that are fused: half of the latent's side, or full (`fuses_full`)
    reconstruction_prompt: str | None = None  # None: the source prompt
    frame_index: tuple[int | str, ...] | None = None
    least_channels: int = 0
    clip_norm: bool = True
    reuse: int | str = 1  # deep features are computed every N-th step: 3, or '3:outer'
    chunk: int | None = None  # frames that the UNet takes at a time; None: all
    shard: bool = False  # frames are split over the processes that torchrun started
    store: str = "auto"
    store_dtype: str = "same"
    cache: str | None = None  # where inversions are kept; None: the user's cache folder; 'none': nowhere
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    offload: bool = False  # models on the device only while they are used, queries and keys in RAM
    compile: bool = False
    graph: str = "auto"  # passes replayed as CUDA graphs: 'auto' where they can be, 'on' says why not, 'off'
    threads: int | None = None
    conv: str = "auto"  # 3x3 convolutions on a CPU: 'auto' as Winograd's where that pays, or 'direct'
    conv_memory: float | None = None  # GB that Winograd's weights may take; None: a quarter of the machine's memory
    weights: str = "same"  # of the large layers on a CPU: the dtype's, or 'int8'
    out: str | None = None
    overwrite: bool = False
    save_latents: bool = False
    report: bool = False
    dry_run: bool = False
    notes: tuple[str, ...] = field(default=(), compare=False)  # what was decided on the user's behalf, printed

    def __post_init__(self):
        make_plain(self)
        check_paths(self)
        for name, known in KNOWN.items():
            check_one_of(name, getattr(self, name), known)
        # one of several GPUs: cuda:1
        check_one_of("device", re.sub(r"^cuda:\d+$", "cuda", str(self.device)), DEVICES)
        if self.conv_memory is not None:
            check_number("conv_memory", self.conv_memory, 0, 10**6, "gigabytes, as 2.5.")
        check_one_of("ema", self.ema, ("auto", "ema", "plain"))
        object.__setattr__(self, "lora", strengths(self.lora))
        object.__setattr__(self, "embedding", files_with("embedding", self.embedding, str))
        check_whole("clip_skip", self.clip_skip, 1, 48, "1 is none, 2 is the layer before the last.")
        for name in ("clip_norm", "offload", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise FzError(f"{name}: got {getattr(self, name)!r}, expected True or False.")
        check_whole("steps", self.steps, 1, 1000, "The paper uses 50.")
        check_whole("seed", self.seed, 0, 2**63 - 1)
        check_whole("least_channels", self.least_channels, 0, 10**9)
        check_whole("threads", 1 if self.threads is None else self.threads, 1, 1024)
        check_number("guidance", self.guidance, 0, 1000, "7.5 is usual, 1 is none.")
        object.__setattr__(self, "reuse", reuse(self.reuse))
        if self.chunk is not None:
            check_whole("chunk", self.chunk, 1, 10**6)
            if self.method not in REUSING:
                raise FzError(
                    f"chunk: got {self.chunk} with method {self.method}, expected fatezero or ddim. Leave --chunk out."
                )
            if any(e.remove for e in self.edits):
                got = f"chunk: got {self.chunk} with an edit that removes an object"
                expected = "expected one without: what hides the object spans chunks"
                raise FzError(f"{got}, {expected}. Leave --chunk or --remove out.")
        check_control(self)
        check_shard(self)
        object.__setattr__(self, "guidance_window", window(self.guidance_window, "guidance_window"))
        for name in ("reuse", "solver", "guidance_window"):
            value = getattr(self, name)
            if value != getattr(Settings, name) and self.method not in REUSING:
                got, flag = f"{name}: got {value} with method {self.method}", name.replace("_", "-")
                raise FzError(f"{got}, expected method fatezero or ddim. Leave --{flag} out.")
        if not isinstance(self.strength, (int, float)) or isinstance(self.strength, bool) or not 0 < self.strength <= 1:
            raise FzError(
                f"strength: got {self.strength!r}, expected a share of the steps above 0, at most 1, as 0.75."
            )
        check_says("source", self.source, "one that describes the clip, as --source 'a silver jeep on a road'")
        check_sentence("negative", self.negative)
        if self.reconstruction_prompt is not None:
            check_sentence("reconstruction_prompt", self.reconstruction_prompt)
        if not self.edits:
            raise FzError("target: got none, expected at least one sentence, as --target 'a red jeep on a road'.")
        if self.frame_index is not None:
            FrameIndex(self.frame_index)

    def fuses_full(self, edit: EditSettings | None = None) -> bool:
        """Is attention at the full-size level fused, in this edit or in any?"""
        return fuses_full(self.fuse, self.checkpoint is None, edit)


Overlay = Mapping[str, Any]  # 'clip.frames' -> 16, 'edits.0.threshold' -> 0.3, 'edits.*.align' -> 'refine' (every edit)


def build(*overlays: Overlay, notes: tuple[str, ...] = ()) -> Settings:
    """Settings from overlays, later ones over earlier ones; within one, `edits.N.x` over `edits.*.x`.

    `edits.N.target` of the last overlay that names targets decides how many edits there are; so do removals, which need
    no target. Raises FzError for a path that no setting has, naming the nearest, and for what the settings themselves
    refuse.
    """
    merged: dict[str, Any] = {}
    for overlay in overlays:
        for path in overlay:
            check_path(path)
        if any(is_target(path) or path.endswith(".remove") for path in overlay):
            merged = {path: value for path, value in merged.items() if not is_target(path)}
        # every edit's value is over what an earlier overlay gave to one
        every = {path[len("edits.*.") :] for path in overlay if path.startswith("edits.*.")}
        merged = {path: value for path, value in merged.items() if not (is_edit(path) and path.split(".")[2] in every)}
        merged |= overlay
    every = {path[len("edits.*.") :]: value for path, value in merged.items() if path.startswith("edits.*.")}
    if "clip.path" not in merged:
        raise FzError("video: got none, expected a clip, a folder of frames or an image, as --video clip.mp4.")
    clip = ClipSettings(**below(merged, "clip."))
    top = {path: value for path, value in merged.items() if "." not in path}
    if "source" not in top:
        raise FzError(
            "source: got none, expected a sentence that describes the clip, as --source 'a silver jeep on a road'."
        )
    edits = tuple(
        edit_settings(top["source"], {**every, **below(merged, f"edits.{i}.")}) for i in range(edit_count(merged))
    )
    made = [
        f"edit {i}: the target is {edit.target!r}, the source without {edit.remove!r}"
        for i, edit in enumerate(edits)
        if edit.remove and merged.get(f"edits.{i}.target", every.get("target")) is None
    ]
    return Settings(clip=clip, edits=edits, **top, notes=(*notes, *made))


def edit_count(merged: Overlay) -> int:
    """How many edits there are. One that has no sentence of its own must remove or enhance something."""
    says = ("target", "remove", "enhance")
    numbers = {int(found[1]) for path in merged if (found := re.fullmatch(rf"edits\.(\d+)\.({'|'.join(says)})", path))}
    everyone = any(merged.get(f"edits.*.{name}") is not None for name in says)
    missing = sorted(set(range(max(numbers, default=0))) - numbers)
    if missing and not everyone:
        wanted = f"expected one, as there are flags of edit .{max(numbers)}"
        raise FzError(f"target: got none for edit .{missing[0]}, {wanted}. Number edits from 0.")
    return max(numbers) + 1 if numbers else int(everyone)


def edit_settings(source: str, given: Mapping[str, Any]) -> EditSettings:
    """One edit; its sentence, where removing or enhancing makes it, out of the source."""
    for name in ("remove", "enhance"):
        words = given.get(name)
        if words is not None and (not isinstance(words, str) or not words.strip(" ,")):
            raise FzError(
                f"{name}: got {words!r}, expected words, as {'red car' if name == 'remove' else 'high-quality, 8K'!r}."
            )
    target = given.get("target")
    if given.get("remove") or given.get("enhance"):
        target = applications.target_of(source, target, given.get("remove"), given.get("enhance"))
    whole = {**applications.usual_of(given.get("remove"), given.get("enhance")), **given, "target": target}
    if whole.get("remove"):
        whole["threshold"] = applications.threshold(whole["threshold"], whole.get("mask"))
    return EditSettings(**whole)


def is_target(path: str) -> bool:
    return path.startswith("edits.") and path.endswith(".target")


def is_edit(path: str) -> bool:
    return path.startswith("edits.")


def below(merged: Overlay, prefix: str) -> dict[str, Any]:
    return {path[len(prefix) :]: value for path, value in merged.items() if path.startswith(prefix)}


def check_path(path: str) -> None:
    names = {f.name for f in dataclasses.fields(Settings)} - {"clip", "edits", "notes"}
    known = names | {f"clip.{f.name}" for f in dataclasses.fields(ClipSettings)}
    known |= {f"edits.*.{f.name}" for f in dataclasses.fields(EditSettings)}
    parts = path.split(".")
    general = f"edits.*.{parts[2]}" if re.fullmatch(r"edits\.\d{1,4}\.\w+", path, re.ASCII) else path
    if general not in known:
        raise FzError(f"unknown setting {path!r}.{suggest(general, known)}")
