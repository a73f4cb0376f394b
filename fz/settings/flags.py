"""The flags of `python -m fz.run`: one table, and the parser that is made of it.

A flag's `dest` is the path of the setting that it sets, so that what was given is an overlay of `fz.settings.config`
already. What a flag's text means is `fz.settings.texts`' question, how flags, presets and configs are laid over each
other `fz.settings.parse`'s.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import fz
from fz.settings.config import (
    ABLATIONS,
    ALIGNS,
    ATTENTIONS,
    CONVS,
    DTYPES,
    FUSES,
    GRAPHS,
    METHOD_NAMES,
    PRESETS,
    SOLVERS,
    STORE_DTYPES,
    STORES,
    WEIGHTS,
    ClipSettings,
    Crop,
    EditSettings,
    Settings,
)
from fz.settings.texts import (
    count,
    crop,
    device,
    factor_of_word,
    file_of_strength,
    file_of_word,
    frame_index,
    gradients,
    number,
    number_or_none,
    one_of,
    reuse,
    sentence,
    share,
    share_of_word,
    size,
    whole,
    words,
)
from fz.shell import Parser

DESCRIPTION = (
    "Edit a video by text: FateZero (arXiv 2303.09535) on any Stable Diffusion v1 checkpoint. Without "
    "flags, the bundled example."
)
EPILOG = """
examples:
  python -m fz.run --checkpoint sd-v1-4 --video jeep.mp4 --edit style \\
      --source 'a silver jeep on a road' \\
      --target 'watercolor painting of a silver jeep on a road' --reweight watercolor=10
  python -m fz.run --checkpoint tuned --video frames/ --edit shape \\
      --source 'a silver jeep on a road' --target 'a Porsche car on a road'
  python -m fz.run --config jeep_watercolor.yaml --set dataset_config.path=frames \\
      --set editing_config.num_inference_steps=10

Flags marked * count for every target; add .N to mean target N, from 0: --threshold.1 0.3
"""
SWEEP = (
    "an edit for each combination, from one inversion, and one sheet of them with metrics: "
    "self_replace=0.2:0.9:0.1 blend_th=0.2,0.3,none reweight.WORD=1,5"
)
FASTER = (
    "several times as fast, a little less sure: about three eighths of the steps, --reuse 2:outer, --guidance-window "
    "0.5 and, on a CPU that can, --weights int8; flags that are given go before"
)
MEASURED_BY = (
    "CLIP: a folder in transformers' layout, a file with the original state dict, or a Hub name; 'none'. Default: the "
    "miniature's, for its runs"
)
JUDGE = (
    "CLIP that judges --sweep and --report: a folder, a file, a Hub name, or none; default: the miniature's, for its "
    "runs"
)


@dataclass(frozen=True)
class Flag:
    """setting: the path it sets. parse None: a switch that sets `const`. edit: belongs to one edit. many: may be given
    again.
    """

    name: str
    setting: str
    parse: Callable[[str], Any] | None
    metavar: str
    help: str
    edit: bool = False
    many: bool = False
    const: Any = None
    nargs: str | None = None


FLAGS: dict[str, tuple[Flag, ...]] = {
    "what to do": (
        Flag("video", "clip.path", str, "PATH", "mp4, webm or gif, a folder or quoted glob of images, or one image"),
        Flag("source", "source", sentence, "TEXT", "a sentence that describes the clip"),
        Flag("target", "target", sentence, "TEXT", "a sentence that describes the result; again for "
                                                   "more results", many=True),
        Flag("negative", "negative", str, "TEXT", "what the result should not look like"),
        Flag("edit", "preset", one_of(tuple(PRESETS)), "KIND", "style, attribute or shape: the paper's settings "
                                                               "for it; without, attribute's *", edit=True),
    ),
    "applications": (
        Flag("remove", "remove", str, "WORDS",
             "an object's words in the source, as 'red car' or 'red car, ball': the target is the source without "
             "them, the object hidden *",
             edit=True),
        Flag("enhance", "enhance", str, "WORDS", "words put after the target, or else the source, as 'high-quality, "
                                                 "8K', amplified *",
             edit=True),
        Flag("enhance-factor", "enhance_factor", number, "R", "by how much *", edit=True),
        Flag("mask", "mask", str, "PATH",
             "white, or in a transparent picture opaque, where the clip is edited, in place of the words' masks: an "
             "image, or a video or folder as long as the clip *",
             edit=True),
        Flag("keep-background", "keep_background", None, "", "outside the mask, latents and pixels are the clip's *",
             edit=True, const=True),
    ),
    "clip": (
        Flag("size", "clip.size", size, "N|HxW", "short side to N and a square cut from the centre, any height and "
                                                 "width, or original: the clip's own"),
        Flag("frames", "clip.frames", count, "N|all", "how many frames"),
        Flag("start", "clip.start", whole(0), "N", "the first frame, from 0"),
        Flag("every", "clip.every", whole(1), "N", "take every N-th frame"),
        Flag("crop", "clip.crop", crop, "L,R,T,B", "pixels to cut from left, right, top and bottom first"),
        Flag("fps", "clip.fps", number, "R", "frames a second of the results; default: the clip's"),
        Flag("no-audio", "clip.audio", None, "", "leave the clip's sound out of the results", const=False),
    ),
    "model": (
        Flag("checkpoint", "checkpoint", str, "PATH|NAME", "a diffusers folder, a .ckpt or .safetensors file, or a Hub "
                                                           "name; default: the bundled miniature"),
        Flag("vae", "vae", str, "PATH|NAME", "another VAE, a folder, a file or a Hub name"),
        Flag("tokenizer", "tokenizer", str, "DIR|NAME", "CLIP's vocab.json and merges.txt, for a checkpoint that "
                                                        "has none"),
        Flag("model-config", "model_config", str, "DIR", "unet/config.json and so on, for a single file that is not "
                                                         "quite SD v1's shape"),
        Flag("lora", "lora", file_of_strength, "PATH|NAME[=R]",
             "a LoRA, a file or a Hub name (owner/name, owner/name:FILE), and its strength; again for more", many=True),
        Flag("embedding", "embedding", file_of_word, "PATH|NAME[=WORD]",
             "a textual inversion, likewise, and the word of prompts that it stands for; again for more", many=True),
        Flag("clip-skip", "clip_skip", whole(1), "N", "text encoder's layers left out at its end, as A1111 counts: "
                                                      "1 is none, 2 one"),
        Flag("ema", "ema", one_of(("auto", "ema", "plain")), "WHICH", "auto, ema or plain: of a checkpoint that "
                                                                      "has two sets of weights"),
    ),
    "control": (
        Flag("control", "control", str, "PATH|NAME", "a ControlNet for Stable Diffusion v1, a folder, a file or a Hub "
                                                     "name: what it is shown holds the structure"),
        Flag("control-video", "control_video", str, "PATH|canny",
             "what it is shown: a video or folder as long as the clip, one image, or the clip's own edges; "
             "default: canny"),
        Flag("control-scale", "control_scale", number, "R", "how strongly"),
        Flag("control-window", "control_window", share, "R|A,B", "share of the steps at which it acts"),
        Flag("invert-without-control", "control_inverts", None, "", "the inversion goes without", const=False),
        Flag("canny", "canny", gradients, "LOW,HIGH", "the edges' weakest and strongest gradients"),
    ),
    "sampling": (
        Flag("steps", "steps", whole(1), "N", "steps of inversion, and of the edit"),
        Flag("solver", "solver", one_of(SOLVERS), "NAME", "ddim, or dpm++2m: of second order, for few steps"),
        Flag("guidance", "guidance", number, "W", "classifier-free guidance; 1 is none"),
        Flag("guidance-window", "guidance_window", share, "R|A,B", "share of the edit steps with guidance; the "
                                                                   "others cost a branch less"),
        Flag("reuse", "reuse", reuse, "N|N:outer", "compute all but the UNet's full-size level only every N-th step; "
                                                   "outer: all but its last layer"),
        Flag("fast", "fast", None, "", FASTER, const=True),
        Flag("fuse", "fuse", one_of(FUSES), "WHICH", "the largest feature maps whose attention is fused: half of "
             "the latent's side, as in the paper, or full, which keeps more of the clip; auto: full for the miniature "
             "where no blend mask is, else half"),
        Flag("attention", "attention", one_of(ATTENTIONS), "WHICH",
             "take the source's attention from inversion or from a reconstruction pass"),
        Flag("reconstruction-prompt", "reconstruction_prompt", sentence, "TEXT", "what that pass samples; default: "
                                                                                 "the source"),
        Flag("frame-index", "frame_index", frame_index, "LIST",
             "frames that each frame attends to: integers are relative, first, mid and last absolute; default: "
             "0,mid or, tuned, -1,first"),
        Flag("least-sc-channel", "least_channels", whole(0), "N", "layers narrower than N attend to their own "
                                                                  "frame only"),
        Flag("per-frame-norm", "clip_norm", None, "", "GroupNorm of ResNet blocks sees one frame, not "
                                                      "the clip", const=False),
    ),
    "method": (
        Flag("method", "method", one_of(METHOD_NAMES), "NAME",
             "fatezero, or what the paper compares with: ddim, sdedit, null-p2p, pnp"),
        Flag("strength", "strength", number, "R", "of sdedit: the share of the steps that are noised and denoised"),
        Flag("ablate", "ablate", one_of(tuple(ABLATIONS)), "PART",
             "the paper's ablations, over other flags: no-self, full-self, reconstruction, no-cross; again "
             "for more", many=True),
    ),
    "fusion": (
        Flag("align", "align", one_of(ALIGNS), "WHICH",
             "replace (word by word), refine (what is new), auto (replace at equal word counts, else refine), or "
             "plain: no fusion *",
             edit=True),
        Flag("replace", "align", None, "", "= --align replace *", edit=True, const="replace"),
        Flag("refine", "align", None, "", "= --align refine *", edit=True, const="refine"),
        Flag("cross-replace", "cross_replace", share_of_word, "[WORD=]R|A,B",
             "share of the steps that take the source's cross-attention, of all words or of one; again for "
             "more words *",
             edit=True, many=True),
        Flag("self-replace", "self_replace", share, "R|A,B", "share of the steps that take the source's "
                                                             "self-attention *", edit=True),
        Flag("reweight", "reweight", factor_of_word, "WORD=FACTOR", "amplify a target word; again for "
                                                                    "more words *", edit=True, many=True),
        Flag("threshold", "threshold", number_or_none, "TAU|none",
             "blend mask of self-attention: 0 edits all, 1 or none nothing; the smaller, the freer "
             "the shape *", edit=True),
        Flag("blend-words", "blend_words", words, "WORDS",
             "words of the source, then of the target, that the masks follow, as 'silver jeep' 'Porsche car'; "
             "default: those that differ *",
             edit=True, nargs="+"),
        Flag("blend-latents", "blend_latents", number_or_none, "TAU|none",
             "also keep the source's latents outside a mask of this threshold *", edit=True),
    ),
    "machine": (
        Flag("device", "device", device, "NAME", "auto, cpu, cuda, mps, or one of several GPUs, as cuda:1"),
        Flag("dtype", "dtype", one_of(DTYPES), "NAME",
             "float32, float16, bfloat16, or auto: float16 on CUDA, else float32"),
        Flag("weights", "weights", one_of(WEIGHTS), "WHICH", "int8: large layers of float32 multiply eight bits on a "
                                                             "CPU that can; same: they do not"),
        Flag("offload", "offload", None, "", "models on the GPU only while they are used, what is "
                                             "kept in RAM", const=True),
        Flag("compile", "compile", None, "", "compile the UNet's layers for a GPU", const=True),
        Flag("graph", "graph", one_of(GRAPHS), "WHICH",
             "replay passes as CUDA graphs, with the same result: auto, where that can be, on, which says why not, or "
             "off"),
        Flag("threads", "threads", whole(1), "N", "CPU threads"),
        Flag("chunk", "chunk", whole(1), "N",
             "frames that the UNet takes at a time: less memory; with --per-frame-norm it does not grow with the clip"),
        Flag("shard", "shard", None, "",
             "split the clip's frames over the processes that torchrun started: torchrun --nproc-per-node N -m fz.run "
             "--shard", const=True),
        Flag("store", "store", one_of(STORES), "WHICH",
             "the source's queries and keys: recompute them while editing, keep them in memory or on disk, or auto, "
             "by what is free"),
        Flag("store-dtype", "store_dtype", one_of(STORE_DTYPES), "NAME", "same, float16 or bfloat16: round them so"),
        Flag("cache", "cache", str, "DIR|none", "where inversions are kept for the next edit; default: the user's "
                                                "cache folder"),
        Flag("conv", "conv", one_of(CONVS), "WHICH", "3x3 convolutions on a CPU: auto is Winograd's where it pays, "
                                                     "or direct"),
        Flag("conv-memory", "conv_memory", number, "GB", "what Winograd's weights may take; default: a quarter of "
                                                         "the memory"),
        Flag("seed", "seed", whole(0), "N", "of whatever draws: --method sdedit; fatezero draws nothing"),
    ),
    "results": (
        Flag("out", "out", str, "DIR", "folder of the results; default: results/CLIP-TARGET"),
        Flag("overwrite", "overwrite", None, "", "write into a folder that holds other results", const=True),
        Flag("save-latents", "save_latents", None, "", "write latents.safetensors, with masks", const=True),
        Flag("report", "report", None, "", "write report.html, one page to look at the run", const=True),
        Flag("dry-run", "dry_run", None, "",
             "load and check everything, say what memory and time it would take, compute nothing", const=True),
    ),
}  # fmt: skip


def build_parser(numbers: Iterable[int] = (), bundled: Mapping[str, Any] | None = None) -> argparse.ArgumentParser:
    """The parser, with the `.N` forms of edit flags for these edit numbers. bundled: what other defaults the bundled
    checkpoint has, by setting.
    """
    parser = Parser(
        prog="python -m fz.run", description=DESCRIPTION, epilog=EPILOG, usage="%(prog)s [flags]", allow_abbrev=False,
        argument_default=argparse.SUPPRESS, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            add(
                group,
                flag,
                f"--{flag.name}",
                f"edits.*.{flag.setting}" if flag.edit else flag.setting,
                flag.help + default_of(flag, (bundled or {}).get(flag.setting)),
            )
            for n in numbers if flag.edit else ():
                add(group, flag, f"--{flag.name}.{n}", f"edits.{n}.{flag.setting}", argparse.SUPPRESS)
        if title == "what to do":
            group.add_argument("--config", metavar="YAML", help="a released FateZero config, read unchanged")
            group.add_argument(
                "--set",
                action="append",
                metavar="KEY=VALUE",
                help="a value of a released config, as model_config.least_sc_channel=64",
            )
    group = parser.add_argument_group("many settings")
    group.add_argument("--sweep", nargs="+", action="extend", metavar="NAME=VALUES", help=SWEEP)
    add_renamed(group, "--clip-model", "--clip", metavar="PATH", help=JUDGE)
    group = parser.add_argument_group("about")
    group.add_argument(
        "--list-words", action="store_true", help="show the prompts' words; without prompts, what the miniature knows"
    )
    group.add_argument("--verbose", action="store_true", help="print how it is computed, too: products, convolutions")
    group.add_argument("--version", action="version", version=f"fz {fz.__version__}")
    return parser


def add_renamed(group: Any, name: str, before: str, **options: Any) -> None:
    """A flag that is still read by the name that it had before, which --help no longer shows."""
    action = group.add_argument(name, **options)
    group.add_argument(before, **{**options, "help": argparse.SUPPRESS}, dest=action.dest)


def add_clip_model(parser: argparse.ArgumentParser) -> None:
    """What `fz.evaluate` and `fz.report` measure by."""
    add_renamed(parser, "--clip-model", "--clip", metavar="PATH", help=MEASURED_BY)
    parser.add_argument("--tokenizer", metavar="DIR", help="CLIP's vocab.json and merges.txt, for a CLIP that has none")


def add(group: Any, flag: Flag, name: str, dest: str, text: str) -> None:
    text = text.replace("%", "%%") if text != argparse.SUPPRESS else text
    if flag.parse is None:
        group.add_argument(name, dest=dest, action="store_const", const=flag.const, help=text)
    else:
        action = "append" if flag.many else "store"
        group.add_argument(
            name, dest=dest, action=action, type=flag.parse, metavar=flag.metavar, nargs=flag.nargs, help=text
        )


def default_of(flag: Flag, bundled: Any = None) -> str:
    """' (default: 50; with the bundled miniature 20)' of the settings' own defaults, '' where the help says it."""
    owner, name = (
        (ClipSettings, flag.setting[5:])
        if flag.setting.startswith("clip.")
        else (EditSettings if flag.edit else Settings, flag.setting)
    )
    values = {f.name: f.default for f in dataclasses.fields(owner)}
    value = values.get(name, dataclasses.MISSING)
    if flag.parse is None or value in (dataclasses.MISSING, None, "", (), Crop()):
        return ""
    also = "" if bundled in (None, value) else f"; with the bundled miniature {bundled:g}"
    return f" (default: {','.join(map(str, value)) if isinstance(value, tuple) else value}{also})"
