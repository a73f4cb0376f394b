"""Ways to damage bytes, JSON, YAML and sentences, each drawn from a `random.Random`."""

import json
import os
from pathlib import Path
from random import Random
from typing import Any

HEADS = (
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"PK\x03\x04",
    b"\x80\x02}q\x00.",
    b"%!PS\n",
    b"RIFF\x10\0\0\0WEBP",
    b"<html>",
)
STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 0.5, -0.5, 1e308, float("nan"), float("inf"), 10**9, 10**17, 10**40, 2**31, "",
    "abc", "1", "²", "nan", [], {}, [[]], [None], {"a": 1}, [1, 2], "x" * 3000, "\x1b[2Jx", "a\nb", "\ud800",
    "../../x", "/", [0] * 500,
)  # fmt: skip
# what a value of YAML may be written as
SCALARS = (
    "2020-99-99", "!!int abc", "!!float x", "!!timestamp x", "!!binary '^'",
    '!!python/object/apply:os.mkdir ["pwned"]', "!x y", "${a.b}", "${", "${..}", "${x:y}", "${editing_config}",
    "*x", "&a [*a]", "{<<: *x}", "0x", ".nan", ".inf", "-.inf", "1_000", "0o9", "~", "? a", "|", "'", "[1",
    "{a: {a: {a: 1}}}", "²", "10**9", "99999999999999999999", "1e400", "null", "yes", "- a", "\t", "%x", "@x",
    "`x", "a: b: c", "[]", "{}", "[[]]", "[null]", "1:30:00", "0.5", "-1", "''", '"\\ud800"', '"\\x1b[2J"',
)  # fmt: skip
WORDS = (
    "a",
    "red",
    "blue",
    "car",
    "cat",
    "ball",
    "on",
    "the",
    "sand",
    "riding",
    "horse",
    "jeep",
    "watercolor",
    "of",
    "two",
)
MARKS = (
    " ",
    "  ",
    "\t",
    "\n",
    "\u00a0",
    "\u3000",
    ", ",
    ",",
    " - ",
    "-",
    ". ",
    "…",
    "'s ",
    " & ",
    "\u200b",
    " 'x' ",
    "/",
    "!? ",
)
ODD = (
    "ä",
    "車",
    "🚗",
    "e\u0301",
    "ﬁ",
    "RED",
    "Car's",
    "8K",
    "don't",
    "<b>",
    "\x1b[31m",
    "\x00"[:0] + "\x07",
    "a" * 90,
    "\udcff",
)


def damaged(chance: Random, data: bytes) -> bytes:
    """Bytes with one or two wounds."""
    for _ in range(chance.choice((1, 1, 2))):
        at = chance.randrange(len(data) + 1) if chance.random() < 0.6 else chance.randrange(min(len(data), 200) + 1)
        length = int(chance.uniform(1, 12) ** 3)
        way = chance.randrange(10)
        if way == 0:
            data = data[:at]
        elif way == 1:
            flipped = bytearray(data)
            for _ in range(chance.choice((1, 3, 30))):
                if flipped:
                    where = chance.randrange(len(flipped)) if chance.random() < 0.5 else min(at, len(flipped) - 1)
                    flipped[where] ^= 1 << chance.randrange(8)
            data = bytes(flipped)
        elif way == 2:
            data = data[:at] + bytes(length) + data[at + length :]
        elif way == 3:
            data = data[:at] + chance.randbytes(length) + data[at + length :]
        elif way == 4:
            data = data[:at] + chance.randbytes(length) + data[at:]
        elif way == 5:
            data = data[:at] + data[at + length :]
        elif way == 6:
            data = data[at : at + length] + data
        elif way == 7:
            data += chance.choice((b"\0", b"\n", chance.randbytes(length), data[:length]))
        elif way == 8:
            data = chance.choice(HEADS) + data[chance.choice((0, 8)) :]
        else:
            data = chance.choice(
                (b"", b"\0" * 100, chance.randbytes(200), b"\xff" * 4096, b"version https://git-lfs\n")
            )
    return data


def json_damaged(chance: Random, text: str) -> bytes:
    """JSON with another value, without a key, or that is none."""
    way = chance.randrange(12)
    if way < 9:
        tree = json.loads(text)
        for _ in range(chance.choice((1, 1, 1, 2))):
            tree = changed(chance, tree)
        return json.dumps(tree).encode()
    if way == 9:
        return damaged(chance, text.encode())
    if way == 10:
        name = text.split('"')[1] if '"' in text else "a"
        made = (
            "[" * 100_000, '{"a":' * 50_000, text[:-2] + f', "{name}": 1}}', "\ufeff" + text, "// x\n" + text,
            text.replace("1", "1" * 5000, 1), "NaN", "null", "[]", '"x"', "{}", text + text, "",
        )  # fmt: skip
        return chance.choice(made).encode()
    return text.encode(chance.choice(("utf-16", "utf-32")))


def changed(chance: Random, tree: Any) -> Any:
    """A tree with one node changed."""
    places = [((), tree)]
    for way, node in places:
        if isinstance(node, dict | list) and len(places) < 3000:
            items = node.items() if isinstance(node, dict) else enumerate(node)
            places += [((*way, key), value) for key, value in items]
    way, value = chance.choice(places)
    if not way:
        return chance.choice(STRANGE)
    holder = tree
    for key in way[:-1]:
        holder = holder[key]
    what, key = chance.randrange(8), way[-1]
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    elif what == 2 and isinstance(value, int | float):
        holder[key] = chance.choice((value + 1, -value, value * 1000, str(value), [value], value / 2))
    elif what == 3 and isinstance(value, list) and value:
        holder[key] = chance.choice((value[1:], value * 2, value * 200, value[0], [value]))
    else:
        holder[key] = chance.choice(STRANGE)
    return tree


def yaml_damaged(chance: Random, text: str) -> bytes:
    """A config whose lines are changed, or one that is made to be costly."""
    if chance.random() < 0.12:
        return bomb(chance, text).encode("utf-8", "surrogatepass")
    if chance.random() < 0.15:
        return damaged(chance, text.encode())
    lines = text.splitlines()
    for _ in range(chance.choice((1, 1, 2, 3))):
        i, way = chance.randrange(len(lines)), chance.randrange(7)
        name, colon, _ = lines[i].partition(":")
        if way == 0:
            del lines[i]
        elif way == 1:
            lines.insert(chance.randrange(len(lines)), lines[i])
        elif way == 2:
            lines[i] = " " * chance.randrange(9) + lines[i].lstrip()
        elif way == 3 and colon:
            lines[i] = name + chance.choice(("x", "_", " y")) + lines[i][len(name) :]
        elif way == 4:
            lines.insert(
                i, chance.choice(("---", "...", "%YAML 9", "<<: *a", "? x", "- x", "\tx: 1", "seed: 1", "a: &a b", "#"))
            )
        else:
            lines[i] = f"{name}: {chance.choice(SCALARS)}" if colon else lines[i] + chance.choice(SCALARS)
        lines = lines or [""]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def bomb(chance: Random, text: str) -> str:
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    doubled = "a0: xxxxxxxx\n" + "".join(f"a{i}: ${{a{i - 1}}}${{a{i - 1}}}\n" for i in range(1, 40))
    return chance.choice(
        (
            text + laughs + "seed: *a11\n",
            text.replace("seed: 0", "") + doubled + "seed: ${a39}\n",
            text.replace(f'"{text.split(chr(34))[1]}"', '"${a30}"') + doubled,
            "[" * 20_000,
            "a: " + "{a: " * 5_000,
            "- " * 5_000 + "x",
            "".join(f"{' ' * i}a:\n" for i in range(3_000)),
            text + "x: &x\n  <<: *x\n",
            text + "x: &x [*x]\nseed: *x\n",
            text + "seed: ${seed}\n",
            "a: " + "${" * 2_000 + "}" * 2_000,
            text + f"seed: {'9' * 10_000}\n",
            "\x00" + text,
        )
    )


def sentence(chance: Random) -> str:
    """Words and marks, as nobody would write them."""
    parts = []
    for _ in range(chance.choice((1, 3, 5, 8, 12, 40))):
        parts += [chance.choice(WORDS if chance.random() < 0.85 else ODD)]
        parts += [chance.choice(MARKS) if chance.random() < 0.3 else " "]
    return "".join(parts) if chance.random() < 0.2 else "".join(parts).strip()


def odd_file(chance: Random, path: Path) -> str:
    """Put at path what is no plain file; returns what."""
    path.unlink(missing_ok=True)
    what = chance.choice(("fifo", "loop", "dangling", "folder", "zero", "null", "empty", "unreadable"))
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what in ("empty", "unreadable"):
        path.touch(mode=0o644 if what == "empty" else 0)
    else:
        path.symlink_to({"loop": path.name, "dangling": "nowhere", "zero": "/dev/zero", "null": "/dev/null"}[what])
    return what
