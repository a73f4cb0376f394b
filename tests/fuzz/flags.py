"""Inputs by flags alone: values that make no sense, sentences, sweeps, and surroundings that are not as usual."""

import importlib
import shutil
from pathlib import Path
from random import Random

from .checks import Input
from .damage import sentence
from .ground import SOURCE, Ground, joined

Flags = list[tuple[str, str | None]]
SENSIBLE = (
    "1", "2", "0", "0.5", "0,1", "0.1,0.8", "none", "all", "64", "64x96", "96", "red", "car", "blue=2", "car=0.5",
    "auto", "style", "shape", "attribute", "refine", "replace", "plain", "memory", "disk", "recompute", "float32",
    "bfloat16", "float16", "same", "-1,first", "0,mid", "[0, last]", "direct", "cpu", "ddim", "sdedit", "pnp",
    "null-p2p", "fatezero", "no-self", "full-self", "reconstruction", "no-cross", "self_replace=0.2,0.5",
    "threshold=0:0.4:0.2", "reweight.blue=1,2", "1,1,1,1", "red car", "a green car", "inversion", "ema", "3e-5",
    "tune-a-video",
)  # fmt: skip
HOSTILE = (
    "", " ", "nan", "inf", "-inf", "-1", "-0", "1e308", "1e-320", "1_0", " 7 ", "²", "٣", "१", "+5", "0x10", "1e3",
    "1,2,3", ",", "=", "=1", "red=", "a=b=c", "=nan", "red=1e308", "99999999999999999999", "1" * 18, "9" * 400,
    "1" * 5000, "x" * 100_000, "64x", "x64", "64x64x64", "0x0", "8192", "8193", "8192x64", "1000000x1", "1000",
    "1001", "4096", "\x1b[31mred", "a\nb", "\udcff\udcfe", "$HOME", "${a}", "%s%n", "{}", "[]", "[", "--", "-",
    "--steps", "-x", "@file", "é" * 200, "🚗", "\u202e\u2066x", "\u2028", "none.mp4", "file", "folder", ".", "~",
    "~nosuchuser", "~nosuchuser/x", "/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem", "/nowhere/x",
    "file/x", "https://example.org/a.mp4", "file:clip.mp4", "*", "[", "*.png", "threshold=", "self_replace=0:1:0",
    "self_replace=0:1:1e-9", "self_replace=nan", "reweight.=1", "reweight.none=1", "steps=1", "threshold=0:1e5:1",
    "=1,2",
)  # fmt: skip
# flags whose large values are work that somebody may want, not a fault
COSTLY = (
    "steps",
    "size",
    "frames",
    "sample-steps",
    "map-steps",
    "accumulate",
    "rank",
    "clips",
    "seeds",
    "every",
    "processes",
)
COMMANDS = ("fz.run",) * 5 + (
    "fz.prompt",
    "fz.prompt",
    "fz.tune",
    "fz.tune",
    "fz.sweep",
    "fz.evaluate",
    "fz.report",
)


def base(chance: Random, ground: Ground, command: str, work: Path) -> tuple[Flags, list[str]]:
    """(flags of a command line that is fine, what stands before them)."""
    if command == "fz.tune":
        return ground.tuning(dry_run=chance.random() < 0.6 or None), []
    if command == "bench.table1":
        return ground.table1(), []
    if command in ("fz.evaluate", "fz.report"):
        shutil.copytree(ground.results / "o", work / "o")
        return [("--clip-model", chance.choice(("none", str(ground.judge))))], ["o"]
    flags = ground.flags(dry_run=(command == "fz.run" and chance.random() < 0.6) or None)
    if command == "fz.prompt" and chance.random() < 0.6:
        flags = [(name, value) for name, value in flags if name != "--video"]
    if command == "fz.sweep":
        flags += [("--sweep", "threshold=0.2,0.4"), ("--clip-model", "none")]
    return flags, []


def known_flags(command: str) -> list[str]:
    """All flags of a command."""
    if command in ("fz.run", "fz.prompt", "fz.sweep"):
        from fz.settings.flags import build_parser

        parser = build_parser([0, 1])
    elif command == "fz.tune":
        from fz.tuning.settings import parser as parser_of

        parser = parser_of()
    else:
        parser = importlib.import_module(command).build_parser()
    more = ["--map-steps", "--json"] if command == "fz.prompt" else []
    return sorted(name for name in parser._option_string_actions if name.startswith("--")) + more


def flags(chance: Random, ground: Ground, work: Path) -> Input:
    command = chance.choice((*COMMANDS, "bench.table1"))
    given, first = base(chance, ground, command, work)
    known = known_flags(command)
    for _ in range(chance.choice((1, 1, 2, 3, 5))):
        name = chance.choice(known)
        if name == "--debug":  # shows tracebacks, which is what it is for
            continue
        value = chance.choice(SENSIBLE if chance.random() < 0.4 else HOSTILE)
        way = chance.randrange(10)
        if way < 6:
            given = [*((n, v) for n, v in given if n != name), (name, value)]
        elif way == 6:
            given.append(
                (chance.choice((name, name[:-1], name + "s", name.replace("-", "_"), name + ".0", name + ".7")), value)
            )
        elif way == 7 and given:
            at = chance.randrange(len(given))
            given[at] = (given[at][0], chance.choice((None, value)))
        elif way == 8 and given:
            del given[chance.randrange(len(given))]
        else:
            given.insert(chance.randrange(len(given) + 1), (value, None))
    return finished(chance, command, given, first, work, "flags")


def finished(chance: Random, command: str, given: Flags, first: list[str], work: Path, kind: str) -> Input:
    """The input, with what would be too much work made a dry run, or left out."""
    given = [(n, v if v is None else v.replace("\0", "")) for n, v in given]
    large = any(n.lstrip("-").split("=")[0].split(".")[0] in COSTLY and costly(v) for n, v in given)
    runs = command in ("fz.run", "fz.sweep", "fz.tune")
    # a size that was left out is 512
    if runs and (large or all(n != "--size" for n, _ in given)):
        given = [*(pair for pair in given if pair[0] != "--dry-run"), ("--dry-run", None)]
    elif large:
        given = [(n, v) for n, v in given if n.lstrip("-") not in COSTLY and n != "--video"]
    for n, v in given:
        # a folder of results may be anywhere, but not outside the input's folder
        assert (
            n not in ("--out", "--cache") or v is None or not v.startswith("/nowhere") or not Path("/nowhere").exists()
        )
    (work / "file").write_text("a file")
    (work / "folder").mkdir()
    tied = [(f"{n}={v}", None) if v is not None and chance.random() < 0.1 else (n, v) for n, v in given]
    return Input(kind, command, [*first, *joined(tied)], work, keep=[work / "file", work / "folder"])


def costly(value: str | None) -> bool:
    try:
        return value in (None, "all") or max(float(part) for part in value.split("x")) > 96
    except ValueError:
        return False


def sentences(chance: Random, ground: Ground, work: Path) -> Input:
    """Prompts, and the words that other flags take from them."""
    command = chance.choice(("fz.prompt", "fz.prompt", "fz.run"))
    source = sentence(chance) if chance.random() < 0.8 else SOURCE
    words = source.split(" ")
    for _ in range(chance.randrange(4)):
        words[chance.randrange(len(words))] = chance.choice((sentence(chance)[:20], "", "blue", words[0], words[-1]))
    given = [
        (n, v) for n, v in ground.flags(source=source, target=" ".join(words)) if command == "fz.run" or n != "--video"
    ]
    pick = [*(w for w in source.split(" ") if w), "car", "jeep"]
    for _ in range(chance.randrange(4)):
        word, two = chance.choice(pick), " ".join(chance.sample(pick, min(2, len(pick))))
        given.append(
            chance.choice(
                (
                    ("--reweight", f"{word}={chance.choice((2, -1, 0, 1e30))}"), ("--cross-replace", f"{word}=0.5"),
                    ("--blend-words", two), ("--threshold", "0.3"), ("--align", chance.choice(("auto", "refine",
                    "replace"))), ("--remove", two), ("--enhance", word), ("--negative", sentence(chance)),
                    ("--blend-latents", "0.3"), ("--target", sentence(chance)), ("--edit", chance.choice(("style",
                    "shape", "attribute"))), ("--reconstruction-prompt", sentence(chance)), ("--save-latents", None),
                )
            )
        )  # fmt: skip
    if command == "fz.run" and chance.random() < 0.5:
        given.append((chance.choice(("--dry-run", "--list-words")), None))
    return Input("sentences", command, joined([(n, v and v.replace("\0", "")) for n, v in given]), work)


def sweeps(chance: Random, ground: Ground, work: Path) -> Input:
    axes = []
    names = (
        "threshold", "blend_th", "self_replace", "self-replace", "cross_replace", "blend_latents", "reweight.blue",
        "reweight.", "reweight", "steps", "", "reweight.car", "thresholds",
    )  # fmt: skip
    texts = (
        "0.2", "0.2,0.3", "none", "none,0.1", "0:1:0.5", "0:1:0", "1:0:0.1", "nan", "0,inf", "", ",", "a", "0.1:0.2",
        "0:1:0.001", "-1:1:1", "1e5,1e6", "0.2,,0.3", "0:1e308:1e307", "²",
    )  # fmt: skip
    for _ in range(chance.choice((1, 1, 2, 3, 64))):
        name, values = chance.choice(names), chance.choice(texts)
        axes.append(f"{name}={values}" if chance.random() < 0.95 else values)
    given = ground.flags(dry_run=chance.random() < 0.5 or None)
    return Input("sweeps", "fz.sweep", [*joined(given), "--clip-model", "none", "--sweep", *axes], work)


def surroundings(chance: Random, ground: Ground, work: Path) -> Input:
    """Variables, encodings and outputs that are closed or full."""
    command = chance.choice(("fz.run", "fz.run", "fz.prompt", "fz.evaluate", "fz.tune"))
    given, first = base(chance, ground, command, work)
    if command in ("fz.run", "fz.prompt"):
        given = [*given, ("--target", chance.choice(("a blue car", "ein blaues Auto – schön", "青い車 on the sand")))]
    if command == "fz.run" and chance.random() < 0.3:
        given = [pair for pair in given if pair[0] != "--cache"]
    names = (
        "FZ_CACHE",
        "FZ_KERNELS",
        "HOME",
        "XDG_CACHE_HOME",
        "TMPDIR",
        "COLUMNS",
        "LANG",
        "OMP_NUM_THREADS",
        "HF_HOME",
    )
    values = (
        "",
        "0",
        "-1",
        "x",
        "nan",
        "reference",
        "torch",
        "triton",
        "/dev/null",
        "file",
        "nowhere/x",
        "~",
        None,
        "é",
        "1e9",
    )
    environment = {chance.choice(names): chance.choice(values) for _ in range(chance.randrange(3))}
    stdout = chance.choice(("file", "file", "ascii", "latin-1", "cp1252", "closed", "full"))
    (work / "file").write_text("a file")
    return Input(
        "surroundings", command, [*first, *joined(given)], work, environment=environment, stdout=stdout,
        keep=[work / "file"], codes=(0, 2, 120) if stdout in ("closed", "full") else (0, 2),
    )  # fmt: skip
