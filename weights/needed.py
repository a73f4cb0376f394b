"""Which files of a model are needed? Of a diffusers folder those of one precision, of a LoRA's the file itself.

From the names of the files that there are, on the Hub, in its cache or in a folder, to those that are taken.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import TypeVar

from fz.errors import FzError, suggest
from fz.weights.layouts import some, weight_files
from fz.weights.names import Name

# the vocabulary last: where it is, the others are
TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json", "merges.txt",
             "vocab.json")  # fmt: skip
VOCABULARY = (("tokenizer.json",), ("vocab.json", "merges.txt"))
Place = TypeVar("Place", bound=PurePath)

CONFIG = ("config.json",)
A_MODEL = "a folder, a file, or a Hub name as owner/name"
# what each setting expects, for the message about one that is neither path nor name
EXPECTED = {
    "checkpoint": "a diffusers folder, a single file, or a Hub name as CompVis/stable-diffusion-v1-4",
    "vae": "a diffusers VAE folder, a .pt, .ckpt or .safetensors file, or a Hub name as stabilityai/sd-vae-ft-mse",
    "tokenizer": "a folder with CLIP's vocab.json and merges.txt, or a Hub name as openai/clip-vit-large-patch14",
    "control": "a diffusers folder, a single file, or a Hub name as lllyasviel/control_v11p_sd15_canny",
    "clip": "a folder with config.json and weights, a file, or a Hub name as openai/clip-vit-base-patch32",
    "lora": "a .safetensors, .pt or .bin file, or a Hub name as owner/name or owner/name:style.safetensors",
    "embedding": "a .safetensors, .pt or .bin file, or a Hub name as owner/name or owner/name:cat.safetensors",
}
# what a file of weights alone may be called, best first; not what trainers leave beside it, nor a whole model's parts
ALONE = (r"[^/]+\.safetensors", r"[^/]+\.(bin|pt|pth|ckpt)", r".+\.safetensors", r".+\.(bin|pt|pth|ckpt)")
NOT_ALONE = re.compile(
    r"(.*/)?(checkpoint-\d+/.*|(diffusion_)?pytorch_model[^/]*|model(\.fp16)?\.[^/]*"
    r"|(optimizer|scheduler|scaler|random_states|training_args)[^/]*)"
)


@dataclass(frozen=True)
class Needed:
    """What is needed of a model's folder, or of the first of several that it has ('': the model's own).

    small: files that are taken where they are there. marks: groups of them of which one must be whole. weights: names
    of which the first that is there is taken. alone: whether the weights are one file that may have any name.
    required: whether a model without all this is none.
    """

    folders: tuple[str, ...]
    small: tuple[str, ...] = ()
    marks: tuple[tuple[str, ...], ...] = ()
    weights: tuple[str, ...] = ()
    alone: bool = False
    required: bool = True


@dataclass
class Choice:
    """files: to have, small ones first. lacking: what is needed and not there; optional: what may be absent and is.
    either: files of which one has to be named. alone: whether the last file is all that is read.
    """

    files: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    optional: list[str] = field(default_factory=list)
    either: list[str] = field(default_factory=list)
    alone: bool = False

    def place(self, folder: Path) -> Path:
        """What is read of a folder that has the files."""
        return folder / self.files[-1] if self.alone else folder


OF_TOKENIZER = (Needed(("tokenizer", ""), TOKENIZER, VOCABULARY),)
# of a checkpoint nothing else; one that has none takes CLIP's
TOKENIZER_OF_CHECKPOINT = (Needed(("tokenizer",), TOKENIZER, VOCABULARY, required=False),)
OF_VAE = (Needed(("vae", ""), CONFIG, (CONFIG,), tuple(weight_files("vae"))),)
OF_CONTROLNET = (Needed(("controlnet", ""), CONFIG, (CONFIG,), tuple(weight_files("unet"))),)
OF_CLIP = (
    Needed(("",), ("config.json", "preprocessor_config.json"), (CONFIG,), tuple(weight_files("text_encoder"))),
    Needed(("", "tokenizer"), TOKENIZER, VOCABULARY, required=False),
)
# by diffusers' and PEFT's names, and by those of diffusers' textual inversion
OF_LORA = (
    Needed(
        ("",),
        ("adapter_config.json",),
        weights=("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "pytorch_lora_weights.bin"),
        alone=True,
    ),
)
OF_EMBEDDING = (Needed(("",), weights=("learned_embeds.safetensors", "learned_embeds.bin"), alone=True),)


def of_checkpoint(ema: str = "auto", vae: bool = True, tokenizer: bool = True) -> tuple[Needed, ...]:
    """A diffusers folder's parts; vae, tokenizer: whether its own are used."""
    unet = weight_files("unet", "non_ema" if ema == "plain" else None)
    schedule = ("scheduler_config.json",)
    return (
        Needed(("scheduler",), schedule, (schedule,), required=False),
        *(TOKENIZER_OF_CHECKPOINT if tokenizer else ()),
        Needed(("text_encoder",), CONFIG, (CONFIG,), tuple(weight_files("text_encoder"))),
        Needed(("vae",), CONFIG, (CONFIG,), tuple(weight_files("vae")) if vae else ()),
        Needed(("unet",), CONFIG, (CONFIG,), tuple(unet)),
    )


def beside(what: str, file: Place) -> Place | None:
    """The small file that is read beside a setting's single file of weights, there or not; None where none is."""
    if what == "lora":
        return file.parent / "adapter_config.json" if file.stem == "adapter_model" else None
    if what == "checkpoint":
        return file.with_suffix(".yaml")
    return file.parent / "config.json" if what in ("vae", "control") else None


def choose(files: Collection[str], needs: Sequence[Needed], file: str | None = None) -> Choice:
    """What to take of these files. file: the one that was named."""
    if file is not None:
        return choose_named(file, files, needs)
    if single := single_file(files, needs):
        return Choice([*original_config(single, files, needs), single], alone=True)
    choice, weights = Choice(alone=any(need.alone for need in needs)), []
    for need in needs:
        folder = next((f for f in need.folders if any(inside(f, need.small, files))), need.folders[0])
        choice.files += inside(folder, need.small, files)
        if need.marks and not any(len(list(inside(folder, mark, files))) == len(mark) for mark in need.marks):
            lacking = under(folder, " and ".join(need.marks[-1]))
            (choice.lacking if need.required else choice.optional).append(lacking)
        if need.weights:
            found = next((w for name in need.weights if (w := whole_weights(under(folder, name), files))), [])
            either = [] if found or not need.alone else of_any_name(files)
            weights += found or either[:1]
            choice.either += either if len(either) > 1 else []
            choice.lacking += [] if found or either else [under(folder, need.weights[0])]
    choice.files += weights
    return choice


def choose_named(file: str, files: Collection[str], needs: Sequence[Needed]) -> Choice:
    """The file, and what is read beside it; nothing where weights are not what is needed."""
    if not any(need.weights for need in needs):
        return Choice()
    folder = file.rpartition("/")[0]
    small = [path for need in needs if "" in need.folders for path in inside(folder, need.small, files)]
    return Choice([*small, *original_config(file, files, needs), file], [] if file in files else [file], alone=True)


def original_config(file: str, files: Collection[str], needs: Iterable[Needed]) -> list[str]:
    """The one beside a checkpoint of a single file, where there is one."""
    if file not in files or not any(need.folders == ("unet",) for need in needs):
        return []
    config = beside("checkpoint", PurePosixPath(file)).as_posix()
    return [config] if config in files else []


def of_any_name(files: Collection[str]) -> list[str]:
    """Files that may be weights alone, those of the best kind that there is."""
    names = [file for file in sorted(files) if not NOT_ALONE.fullmatch(file)]
    kinds = ([name for name in names if re.fullmatch(kind, name)] for kind in ALONE)
    return next(filter(None, kinds), [])


def refuse(choice: Choice, of: Name | Path, files: Collection[str], what: str, place: str = "") -> None:
    """Raise FzError for a model that has not what is needed, or several files of which none was named. what: the
    setting; place: where the files are, for people.
    """
    whole, file = (replace(of, file=None), of.file) if isinstance(of, Name) else (of, None)
    if choice.lacking:
        there = some(sorted(files), 6) or "nothing"
        raise FzError(
            f"{what}: {whole}{place} has no {some(choice.lacking)} (there: {there})."
            f"{suggest(file, files) if file else ''} Expected {EXPECTED.get(what, A_MODEL)}."
        )
    if choice.either:
        first = replace(whole, file=choice.either[0]) if isinstance(whole, Name) else whole / choice.either[0]
        raise FzError(
            f"{what}: {whole}{place} has {len(choice.either)} files that may be meant ({some(choice.either, 9)}), "
            f"expected one. Name it, as --{what} {first}."
        )


def under(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def inside(folder: str, names: Iterable[str], files: Collection[str]) -> Iterable[str]:
    return (path for name in names if (path := under(folder, name)) in files)


def whole_weights(name: str, files: Collection[str]) -> list[str]:
    """A file of weights, or an index with its shards, if all are there."""
    if name not in files:
        return []
    if not name.endswith(".json"):
        return [name]
    stem, ending, variant = re.fullmatch(r"(.*)(\.safetensors|\.bin)\.index((?:\.\w+)?)\.json", name).groups()
    pattern = re.compile(rf"{re.escape(stem + variant)}-(\d+)-of-(\d+){re.escape(ending)}")
    also = re.compile(rf"{re.escape(stem)}{re.escape(variant)}-(\d+)-of-(\d+){re.escape(variant + ending)}")
    shards = sorted(f for f in files if pattern.fullmatch(f) or also.fullmatch(f))
    count = {int((pattern.fullmatch(f) or also.fullmatch(f))[2]) for f in shards}
    return [name, *shards] if count == {len(shards)} else []


def single_file(files: Collection[str], needs: Iterable[Needed]) -> str | None:
    """The one whole checkpoint that a model without unet/ consists of."""
    if not any(need.folders == ("unet",) for need in needs) or any(f.startswith("unet/") for f in files):
        return None
    for ending in (".safetensors", ".ckpt"):
        found = [f for f in files if re.fullmatch(rf"[^/\\]+\{ending}", f)]
        if found:
            return found[0] if len(found) == 1 else None
    return None
