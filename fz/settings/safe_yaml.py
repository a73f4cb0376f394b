"""YAML of strangers, read into dicts, lists, text, numbers and booleans, and nothing else.

PyYAML's safe loader runs no code, but it takes two values for one key, builds what ten lines of aliases multiply to a
billion values, and answers odd scalars with Python's own exceptions. Here each of them is an FzError of one line. Dates
stay text.
"""

import re
import stat
from pathlib import Path
from typing import Any

import yaml

from fz.errors import FzError

MOST_BYTES = 50_000  # the released configs have 3000
MOST_VALUES = 20_000  # with aliases written out
DEEPEST = 30  # values in one another; the released configs have 5
KINDS = ("map", "seq", "str", "int", "float", "bool", "null", "merge")


class Syntax(FzError):
    """The text is no YAML."""


def read_file(path: Path, most_bytes: int = MOST_BYTES, what: str = "config", numbers: bool = True) -> Any:
    """The content of a YAML file; without `numbers` it is read by `TextLoader`. Raises FzError, which begins with
    `what`, for what cannot be read, is no file, or is too large.
    """
    try:
        # a pipe would be waited for, a device never ends
        if not stat.S_ISREG(path.stat().st_mode):
            kind = "a folder" if path.is_dir() else "no regular file"
            raise FzError(f"{what}: {path} cannot be read ({kind}). Expected a YAML file.")
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, FzError):
            raise
        raise FzError(
            f"{what}: {path} cannot be read ({getattr(error, 'strerror', None) or error}). Expected a YAML file."
        ) from error
    if len(content) > most_bytes:
        raise FzError(f"{what}: {path} has more than {most_bytes} bytes, expected a YAML file of a few thousand.")
    try:
        return parse(text, Loader if numbers else TextLoader)
    except Syntax as error:
        form = "the released configs' form" if what == "config" else "a list of names and values"
        raise FzError(f"{what}: {path} is no YAML{error}. Expected {form}.") from error
    except FzError as error:
        raise FzError(f"{what}: {path}: {error}") from error


def parse(text: str, kind: "type[Loader] | None" = None) -> Any:
    """What a YAML text says. Raises Syntax if it is none, FzError if it says a key twice or too much."""
    loader = None
    try:
        loader = (kind or Loader)(text)
        node = loader.get_single_node()
        if node is None:
            return None
        weigh(node, {}, set())
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise Syntax(f"{f' at line {mark.line + 1}' if mark else ''} ({problem[:200]})") from error
    finally:
        if loader is not None:
            loader.dispose()


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with bounds."""

    def __init__(self, text: str):
        super().__init__(text)
        self.depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        self.depth += 1
        if self.depth > DEEPEST:
            raise FzError(f"{line(self.peek_event())}: values are nested deeper than {DEEPEST}, expected a few levels.")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: str | None) -> yaml.Node:
        node = super().compose_mapping_node(anchor)
        first: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            # 0 and '0' are one name
            if isinstance(key, yaml.ScalarNode) and first.setdefault(key.value, key) is not key:
                raise FzError(
                    f"{line(key)}: {key.value[:60]!r} is there twice, first at {line(first[key.value])}. Expected a "
                    "key once."
                )
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag not in TAGS:
            kind = node.tag.removeprefix(PREFIX)[:60]
            raise Syntax(f" at {line(node)} (a value of kind {kind!r}; expected text, a number, a list or names)")
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, TypeError, OverflowError, AttributeError) as error:
            if isinstance(error, FzError):
                raise
            value = repr(node.value)[:60] if isinstance(node, yaml.ScalarNode) else "names or a list"
            raise Syntax(f" at {line(node)} (got {value}, expected {node.tag.removeprefix(PREFIX)})") from error


PREFIX = "tag:yaml.org,2002:"
TAGS = {PREFIX + kind for kind in KINDS}
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rows if tag in TAGS]
    for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class TextLoader(Loader):
    """For values that a command line could have: numbers are text, and so are on, off, yes and no, which are words.
    YAML 1.1 reads 010 as 8, 1:30 as 90, on as true.
    """


TextLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rows if tag in (PREFIX + "null", PREFIX + "merge")]
    for first, rows in Loader.yaml_implicit_resolvers.items()
}
TextLoader.add_implicit_resolver(PREFIX + "bool", re.compile("(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def weigh(node: yaml.Node, known: dict[int, tuple[int, int]], above: set[int]) -> tuple[int, int]:
    """(values, levels) of a node with its aliases written out. Raises FzError for too many, and for one in itself."""
    if id(node) in above:
        raise FzError(f"{line(node)}: an alias stands for what it is in, expected no value within itself.")
    if id(node) in known:
        return known[id(node)]
    parts = node.value if isinstance(node, yaml.CollectionNode) else []
    count, levels = 1, 1
    for part in (p for pair in parts for p in pair) if isinstance(node, yaml.MappingNode) else parts:
        more, deep = weigh(part, known, above | {id(node)})
        count, levels = count + more, max(levels, deep + 1)
    if count > MOST_VALUES or levels > DEEPEST:
        raise FzError(
            f"{line(node)}: aliases make {count} values of it, {levels} levels deep, expected at most "
            f"{MOST_VALUES} and {DEEPEST}. Write them out."
        )
    known[id(node)] = count, levels
    return known[id(node)]


def line(node: Any) -> str:
    return f"line {node.start_mark.line + 1}"
