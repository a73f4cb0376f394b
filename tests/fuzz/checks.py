"""What is wrong with how an input ended: exit code, words, time, memory, and all that should not have been touched."""

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .children import Ended

MEMORY = 2 * 2**30  # bytes above a child that does nothing
BAR = re.compile(r"\d+%\||\|.*\[.*(step|it)|(step|it)s?/s|^[\w ./]+: *0(step|it)")
EXCEPTION = re.compile(
    r"\b(Key|Type|Value|Attribute|Index|Runtime|Unicode\w*|Zero\w*|Overflow|Recursion|Assertion|Name|Lookup|EOF)Error\b"
)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f\u2028\u2029]")


@dataclass
class Input:
    """One command line and what it is run in. kind: of the input; folder: its current folder; outs: what it may write,
    below the folder; keep: folders and files that must stay as they are; same: (frames, those of an undisturbed run):
    what they have to be if it ends well.
    """

    kind: str
    command: str
    argv: list[str]
    folder: Path
    about: str = ""
    environment: dict[str, str | None] = field(default_factory=dict)
    stdout: str = "file"
    codes: tuple[int, ...] = (0, 2)
    outs: tuple[str, ...] = ("o", "results", "cache")
    keep: list[Path] = field(default_factory=list)
    same: tuple[Path, Path] | None = None


def faults(given: Input, ended: Ended, before: Mapping[Path, object], baseline: int) -> list[str]:
    """A line for each thing that is wrong, its label first; before: `seen` of the kept paths before it ran."""
    out = [*ending(given, ended), *words(given, ended)]
    if ended.peak - baseline > MEMORY:
        out.append(f"memory: {(ended.peak - baseline) / 1e9:.1f} GB above the baseline")
    for path in given.keep:
        if (change := difference(before[path], seen(path))) is not None:
            out.append(f"canary: {path.name} has changed: {change}")
    spare = given.folder / "tmp"
    if spare.is_dir() and any(spare.iterdir()) and not ended.late:
        out.append(f"left over: {sorted(p.name for p in spare.iterdir())[:3]} in the temporary folder")
    if ended.code == 2 and (empty := empty_folders(given)):
        out.append(f"empty folder: {empty[0]} after a refusal")
    if ended.code == 0 and given.same and frames_of(given.same[0]) != frames_of(given.same[1]):
        out.append("differs: other frames than an undisturbed run's")
    return out


def ending(given: Input, ended: Ended) -> list[str]:
    if ended.late:
        return [f"late: not done after {ended.seconds:.0f} s"]
    left = ["processes: some were left at work"] if ended.left else []
    if ended.signal is not None:
        return [*left, f"signal: ended by signal {ended.signal}"]
    return left if ended.code in given.codes else [*left, f"code: {ended.code}, expected one of {given.codes}"]


def words(given: Input, ended: Ended) -> list[str]:
    """Of what was printed: no traceback, no stray lines, and for a refusal one line that says something."""
    if ended.late:
        return []
    if "Traceback (most recent call last)" in ended.err + ended.out:
        return [f"traceback: {ended.err.strip().splitlines()[-1][:300]}"]
    lines = lines_of(ended.err)
    if given.command == "bench.table1":
        lines = [line for line in lines if not re.match(r"clip \d+: done", line)]
    out = [f"control characters: {line[:200]!r}" for line in lines_of(ended.out) + lines if CONTROL.search(line)][:1]
    if ended.code == 0 and lines:
        out.append(f"stray line: {lines[0][:300]}")
    if ended.code == 2:
        if len(lines) != 1:
            out.append(f"lines: {len(lines)} instead of one: {' / '.join(line[:160] for line in lines[:4])}")
        elif not lines[0].startswith("fz: ") or len(lines[0]) < 24:
            out.append(f"says nothing: {lines[0]!r}")
        elif found := EXCEPTION.search(lines[0]):
            out.append(f"says nothing: {found[0]} in {lines[0][:300]}")
        elif "out of memory" in lines[0]:
            out.append(f"memory: none left instead of a prediction: {lines[0][:200]}")
        elif len(lines[0]) > 2000:
            out.append(f"long: a line of {len(lines[0])} characters: {lines[0][:120]}")
    if ended.code == 1 and lines:
        out.append(f"bug: {lines[-1][:300]}")
    return out


def lines_of(text: str) -> list[str]:
    """What was printed but for progress bars."""
    parts = [part.strip(" \n") for part in re.split(r"[\r\n]", text)]
    return [part for part in parts if part and not BAR.search(part)]


def empty_folders(given: Input) -> list[str]:
    """Folders that the command made and left empty."""
    made = [given.folder / name for name in given.outs if name != "cache"]
    return [
        str(p.relative_to(given.folder)) for p in made if p.is_dir() and not p.is_symlink() and not any(p.iterdir())
    ]


def seen(path: Path) -> object:
    """All of a folder or file that a command could change: kinds, sizes, times, links, contents of small files."""
    found: dict[str, object] = {}
    roots = [path]
    while roots:
        at = roots.pop()
        try:
            about = os.lstat(at)
        except OSError:
            continue
        name = str(at.relative_to(path))
        if stat.S_ISDIR(about.st_mode):
            found[name] = "folder"
            roots += [at / entry for entry in os.listdir(at)]
        elif stat.S_ISLNK(about.st_mode):
            found[name] = os.readlink(at)
        elif stat.S_ISREG(about.st_mode) and about.st_size < 65536:
            found[name] = hashlib.sha256(at.read_bytes()).hexdigest()
        else:
            found[name] = (about.st_mode, about.st_size, about.st_mtime_ns, about.st_ino)
    return found


def difference(before: object, after: object) -> str | None:
    assert isinstance(before, dict) and isinstance(after, dict)
    if before == after:
        return None
    gone, new = sorted(before.keys() - after.keys()), sorted(after.keys() - before.keys())
    changed = sorted(name for name in before.keys() & after.keys() if before[name] != after[name])
    said = (("gone", gone), ("new", new), ("written", changed))
    return ", ".join(f"{what} {len(names)} ({names[0]!r})" for what, names in said if names)


def frames_of(folder: Path) -> dict[str, str]:
    """Digests of the frames of a results folder."""
    files = sorted(folder.glob("frames/edit-*/[0-9]*.png"))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files if p.is_file()}
