"""What is a tuning asked to do, and where is that read from? Flags, and released tuning YAMLs (`fz.tuning.released`)
under them.

Nothing here imports torch.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fz import mini
from fz.errors import FzError
from fz.settings import texts, tree
from fz.settings.checks import check_says
from fz.settings.config import ClipSettings
from fz.settings.idle import alone
from fz.settings.limits import check_tuning
from fz.shell import Parser, unknown
from fz.tuning import released

DESCRIPTION = (
    "Tune a Stable Diffusion v1 checkpoint on one clip, so that edits of shape keep its motion. The --out folder DIR "
    "is then a checkpoint: `python -m fz.run --checkpoint DIR --video CLIP …`. Beside it are loss.csv, loss.png and "
    "samples. The same command goes on where it was stopped. --config takes a released tuning YAML; flags are over "
    "it."
)
RECIPES = ("tune-a-video", "fatezero")
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class TuneSettings:
    """All of a tuning. rate None: the recipe's. lora_rank: of a LoRA, which is then made in place of a checkpoint.
    class_images: pictures of the same kind of thing, so that it is not forgotten.
    """

    clip: ClipSettings
    prompt: str
    out: str
    checkpoint: str | None = None
    vae: str | None = None
    tokenizer: str | None = None
    model_config: str | None = None
    ema: str = "auto"
    recipe: str = "tune-a-video"
    steps: int = 100
    rate: float | None = None
    rank: int = 160
    lora_rank: int | None = None
    accumulate: int = 1
    recompute: bool = True
    snr_power: float = 0.0
    dtype: str = "float32"
    seed: int = 0
    class_images: str | None = None
    class_prompt: str | None = None
    class_weight: float = 1.0
    sample_prompts: tuple[str, ...] = ()
    sample_every: int = 0
    sample_steps: int = 20
    guidance: float = 7.5
    save_every: int = 50
    device: str = "auto"
    threads: int | None = None
    overwrite: bool = False
    dry_run: bool = False

    def __post_init__(self):
        check_tuning(self)

    def every_class_image(self) -> ClipSettings:
        """All of them, whole: which frames are taken and what is cropped is the clip's. Raises FzError without any."""
        if self.class_images is None:
            raise FzError("class_images: got none, expected a folder of pictures.")
        return ClipSettings(self.class_images, frames=None, size=self.clip.size)


def parser() -> argparse.ArgumentParser:
    out = Parser(
        prog="python -m fz.tune",
        description=DESCRIPTION,
        usage="%(prog)s [flags]",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )

    def flag(name: str, setting: str, parse: Any, metavar: str, text: str, **more: Any) -> None:
        default = next((f.default for f in dataclasses.fields(TuneSettings) if f.name == setting), None)
        shown = (
            f" (default: {default})"
            if default not in (None, (), dataclasses.MISSING) and not isinstance(default, bool)
            else ""
        )
        out.add_argument(f"--{name}", dest=setting, type=parse, metavar=metavar, help=text + shown, **more)

    flag("video", "clip.path", str, "PATH", "the clip, as fz.run takes it; default with the miniature: its example")
    flag("prompt", "prompt", texts.sentence, "TEXT", "a sentence that describes it")
    flag("out", "out", str, "DIR", "the tuned checkpoint")
    flag(
        "checkpoint",
        "checkpoint",
        str,
        "PATH",
        "Stable Diffusion v1, a folder, a file or a Hub name; default: the bundled miniature",
    )
    flag("vae", "vae", str, "PATH", "another VAE")
    flag("tokenizer", "tokenizer", str, "DIR", "CLIP's tokenizer, for a checkpoint that has none")
    flag("model-config", "model_config", str, "DIR", "configs, for a single file that is not quite SD v1's shape")
    flag("ema", "ema", texts.one_of(("auto", "ema", "plain")), "WHICH", "of a checkpoint that has two sets of weights")
    flag("size", "clip.size", texts.size, "N|HxW", "as in fz.run (default: 512; the miniature's own)")
    flag("frames", "clip.frames", texts.count, "N|all", "how many frames (default: 8; a LoRA's pictures: all)")
    flag("start", "clip.start", texts.whole(0), "N", "the first frame")
    flag("every", "clip.every", texts.whole(1), "N", "take every N-th frame")
    flag("crop", "clip.crop", texts.crop, "L,R,T,B", "pixels to cut first")
    flag(
        "recipe",
        "recipe",
        texts.one_of(RECIPES),
        "NAME",
        "tune-a-video: queries and temporal attention; fatezero: low-rank temporal convolutions, too",
    )
    flag("steps", "steps", texts.whole(1), "N", "training steps in all")
    flag("rate", "rate", texts.number, "R", "AdamW's rate (default: 3e-5, fatezero 1e-5, a LoRA 1e-4)")
    flag("rank", "rank", texts.whole(1), "N", "of the temporal convolutions")
    flag(
        "lora-rank",
        "lora_rank",
        texts.whole(1),
        "R",
        "learn a LoRA of that rank from the pictures, each under NAME.txt beside it or the prompt",
    )
    flag("accumulate", "accumulate", texts.whole(1), "N", "draws of noise a step")
    out.add_argument(
        "--keep-activations",
        dest="recompute",
        action="store_const",
        const=False,
        help="no gradient checkpointing: a third faster, several times the memory",
    )
    flag(
        "snr-power",
        "snr_power",
        texts.number,
        "P",
        "a draw's loss weighs SNR^-P: colours and styles are learned where there is most noise, with 0.5 to 1",
    )
    flag("dtype", "dtype", texts.one_of(DTYPES), "NAME", "of the products; weights stay float32")
    flag("seed", "seed", texts.whole(0), "N", "of all draws")
    flag("class-images", "class_images", str, "DIR", "pictures of its kind, learned beside the clip")
    flag("class-prompt", "class_prompt", texts.sentence, "TEXT", "what they show, as 'a photo of a car'")
    flag("class-weight", "class_weight", texts.number, "W", "of their loss")
    flag(
        "sample-prompt",
        "sample_prompts",
        texts.sentence,
        "TEXT",
        "sample it from the inverted clip on the way; again for more",
        action="append",
    )
    flag("sample-every", "sample_every", texts.whole(0), "N", "steps between samples; 0: only at the end")
    flag("sample-steps", "sample_steps", texts.whole(1), "N", "DDIM steps of a sample")
    flag("guidance", "guidance", texts.number, "W", "of a sample; of the miniature's 3")
    flag("save-every", "save_every", texts.whole(1), "N", "steps between states from which the same command goes on")
    flag("device", "device", str, "NAME", "auto, cpu, cuda or mps")
    flag("threads", "threads", texts.whole(1), "N", "CPU threads")
    for name, text in (
        ("overwrite", "replace another tuning in DIR"),
        ("dry-run", "load and check everything, train nothing"),
    ):
        out.add_argument(f"--{name}", dest=name.replace("-", "_"), action="store_const", const=True, help=text)
    out.add_argument(
        "--config", metavar="YAML", help="a released tuning config, unchanged; what is done otherwise is said"
    )
    out.add_argument("--set", action="append", metavar="KEY=VALUE", help="a value of it")
    return out


def parse(argv: Sequence[str]) -> tuple[TuneSettings, list[str]]:
    """The settings and what the user should know. Raises FzError in one line."""
    all_flags = parser()
    given, rest = all_flags.parse_known_args(list(argv))
    if rest:
        raise FzError(unknown(rest, all_flags))
    given = vars(given)
    given.pop("debug", None)
    config, assignments = given.pop("config", None), given.pop("set", [])
    notes: list[str] = []
    values: dict[str, Any] = {}
    content = tree.read(config) if config is not None else {}
    for assignment in assignments:
        tree.assign(content, assignment)
    if content:
        values = released.of_yaml(content, given, notes)
    if config is not None:
        values.setdefault("out", str(Path("results") / f"tuned-{Path(config).stem}"))
        values.setdefault("steps", released.STEPS)
        if "lora_rank" not in given:
            values.setdefault("rate", released.RATE)
    values |= given
    if values.get("checkpoint") is None:
        miniature(values)
    clip = {name.removeprefix("clip."): value for name, value in values.items() if name.startswith("clip.")}
    if "path" not in clip:
        raise FzError("video: got none, expected a clip, a folder of frames or an image, as --video clip.mp4.")
    for name, example in (("prompt", "--prompt 'a silver jeep on a road'"), ("out", "--out tuned-jeep")):
        if not values.get(name):
            raise FzError(f"{name}: got none, expected one, as {example}.")
    count = 0
    if values.get("lora_rank") or content.get("dataset_config"):
        count = pictures_at(clip["path"])
    if values.get("lora_rank") and count and "frames" not in clip:
        clip["frames"] = None
    top = {name: value for name, value in values.items() if not name.startswith("clip.")}
    top["sample_prompts"] = tuple(top.get("sample_prompts", ()))
    for name, sentence in (
        ("prompt", top["prompt"]),
        *([("class_prompt", top["class_prompt"])] if top.get("class_prompt") is not None else []),
        *(("sample_prompt", prompt) for prompt in top["sample_prompts"]),
    ):
        check_says(name, sentence, "one that describes the pictures, as 'a silver jeep on a road'")
    settings = TuneSettings(ClipSettings(**clip), **top)
    if count and settings.lora_rank is None and (note := released.windows_note(content, settings.clip, count)):
        notes.append(note)
    if settings.rate is not None and not 0 < settings.rate < 1:
        raise FzError(f"rate: got {settings.rate}, expected a number between 0 and 1, as 3e-5.")
    if (settings.class_images is None) != (settings.class_prompt is None):
        raise FzError(
            "class images: got only one of --class-images and --class-prompt, expected both, as 'a photo of a car'."
        )
    check_idle(given, settings)
    return settings, notes


def pictures_at(path: str) -> int:
    """How many image files are there; 0 for a video. What cannot be read is said when it is."""
    # numpy and PyAV, which --help does without
    from fz.clips.decode import open_source
    from fz.clips.images import Images

    try:
        source = open_source(path)
        return source.count if isinstance(source, Images) else 0
    except FzError:
        return 0


def check_idle(given: Mapping[str, Any], settings: TuneSettings) -> None:
    """Raise FzError for a flag that changes nothing, for want of another. A YAML may have such values."""
    if "recipe" in given and settings.lora_rank is not None:
        raise FzError(
            f"recipe: got {settings.recipe!r} with --lora-rank, expected one of them: a LoRA has a recipe of its own. "
            "Leave one out."
        )
    for name, needs, counts in (
        ("rank", "--recipe fatezero", settings.recipe == "fatezero" and settings.lora_rank is None),
        ("class_weight", "--class-images", settings.class_images is not None),
        *((name, "--sample-prompt", settings.sample_prompts) for name in ("sample_every", "sample_steps", "guidance")),
    ):
        if name in given and not counts and getattr(settings, name) != getattr(TuneSettings, name):
            raise FzError(f"{alone(name, needs)}. Pass that, or leave it out.")


def miniature(values: dict[str, Any]) -> None:
    """Defaults of a tuning of the bundled checkpoint."""
    if "clip.path" not in values:
        example = mini.example()
        values["clip.path"] = example["clip.path"]
        values.setdefault("prompt", example["source"])
    values.setdefault("clip.size", mini.SIZE)
    values.setdefault("guidance", mini.DEFAULTS["guidance"])
