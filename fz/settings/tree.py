"""A config file as a tree of names: read from YAML, changed by `section.key=value`, its interpolations resolved when a
value is used.

Interpolations are OmegaConf's, `${a.b}` from the root and `${..a.b}` from where it stands; its resolvers
(`${oc.env:…}`) are left out. Which names there may be is `fz.settings.released`'s question.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fz.errors import FzError
from fz.settings import safe_yaml
from fz.settings.place import expanded

Names = tuple[str, ...]  # the way from the root to a value
Tree = dict[str, Any]  # nested; keys are text, 0 and '0' are the same
LONGEST = 10_000  # characters of a value with its interpolations resolved
MOST_STEPS = 10_000  # values looked at to resolve one
MOST_REFERENCES = 30  # from a name to a name to a name


def read(path: str | Path) -> Tree:
    """The tree of a YAML file. Raises FzError, in one line, for a file that cannot be read or is no tree of names."""
    content = safe_yaml.read_file(expanded(path, "config"))
    if not isinstance(content, dict):
        raise FzError(
            f"config: {path} holds {type(content).__name__}, expected sections such as dataset_config and "
            "editing_config."
        )
    return with_text_keys(content)


def with_text_keys(node: Any) -> Any:
    if isinstance(node, dict):
        return {str(key): with_text_keys(value) for key, value in node.items()}
    return [with_text_keys(value) for value in node] if isinstance(node, list) else node


def split(name: str) -> Names:
    """'a.b[0].c' -> ('a', 'b', '0', 'c')."""
    return tuple(re.sub(r"\[(\d+)\]", r".\1", name).split("."))


def assign(tree: Tree, assignment: str) -> str:
    """Put `section.key=value` (the value in YAML) into the tree; returns the name. Raises FzError for what is no
    assignment.
    """
    name, equals, value = assignment.partition("=")
    name = name.strip()
    if not equals or not all(split(name)) or len(split(name)) > safe_yaml.DEEPEST:
        raise FzError(
            f"--set: got {brief(assignment)}, expected section.key=value, as editing_config.num_inference_steps=10."
        )
    *parents, last = split(name)
    node: Any = tree
    for i, part in enumerate(parents):
        if isinstance(node, list):
            node = node[position(node, part, name)]
        else:
            if node.get(part) is None or not isinstance(node[part], (dict, list)):
                node[part] = {}
            node = node[part]
        if not isinstance(node, (dict, list)):
            raise FzError(
                f"--set {name}: {'.'.join(parents[: i + 1])} is {node!r}, it has no parts. Set it as a whole."
            )
    parsed = parse_value(value)
    if isinstance(node, dict):
        node[last] = parsed
    elif is_number(last) and int(last) == len(node):
        node.append(parsed)
    else:
        node[position(node, last, name)] = parsed
    return ".".join(split(name))


def parse_value(value: str) -> Any:
    """YAML, but for sentences, which may have colons, dashes and # in them."""
    value = value.strip()
    try:
        parsed = with_text_keys(safe_yaml.parse(value))
    except safe_yaml.Syntax:
        return value
    plain = isinstance(parsed, str) and value[0] not in "'\""
    block = (isinstance(parsed, dict) and value[0] != "{") or (isinstance(parsed, list) and value[0] != "[")
    return value if plain or block else parsed


def is_number(part: str) -> bool:
    """Is this name a place in a list? (str.isdigit() says so of '²', too.)"""
    return re.fullmatch(r"\d{1,9}", part, re.ASCII) is not None


def position(items: list, part: str, name: str) -> int:
    if not is_number(part) or int(part) >= len(items):
        raise FzError(
            f"--set {name}: got {part!r} as a place in a list of {len(items)}, expected 0 to {len(items) - 1}."
        )
    return int(part)


def leaves(node: Any, path: Names = ()) -> Iterable[tuple[Names, Any]]:
    """Every value of a tree; empty sections and lists of values are values."""
    if isinstance(node, list) and any(isinstance(value, dict) for value in node):
        node = {str(i): value for i, value in enumerate(node)}
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, (*path, key))
    else:
        yield path, node


@dataclass
class Config:
    """A tree whose interpolations are resolved as values are taken out. `get` of what is absent, or null, is None.

    Raises FzError for an interpolation that leads nowhere, back to itself, or to more than can be meant.
    """

    tree: Tree
    steps: int = 0

    def get(self, name: str) -> Any:
        self.steps = 0
        return self.resolve(self.raw(name), split(name), ())

    def keys(self, name: str) -> list[str]:
        """The names of a section's, or the numbers of a list's, parts."""
        self.steps = 0
        node = self.raw(name)
        if isinstance(node, str):
            node = self.resolve(node, split(name), ())
        if isinstance(node, dict):
            return list(node)
        return [str(i) for i in range(len(node))] if isinstance(node, list) else []

    def raw(self, name: str) -> Any:
        node: Any = self.tree
        path = split(name)
        for i, part in enumerate(path):
            if isinstance(node, str):
                node = self.resolve(node, path[:i], ())
            if isinstance(node, list):
                node = node[int(part)] if is_number(part) and int(part) < len(node) else None
            else:
                node = node.get(part) if isinstance(node, dict) else None
        return node

    def resolve(self, node: Any, path: Names, seen: tuple[str, ...]) -> Any:
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise FzError(f"{where(path)}: its interpolations multiply, expected a value. Write the value itself.")
        if isinstance(node, dict):
            return {key: self.resolve(value, (*path, key), seen) for key, value in node.items()}
        if isinstance(node, list):
            return [self.resolve(value, (*path, str(i)), seen) for i, value in enumerate(node)]
        if not isinstance(node, str):
            return node
        while "${" in node:
            if len(node) > LONGEST:
                raise FzError(
                    f"{where(path)}: got {len(node)} characters, expected at most {LONGEST} where there is a ${{."
                )
            # the innermost first
            found = re.search(r"\$\{([^${}]*)\}", node)
            if found is None:
                raise FzError(
                    f"{where(path)}: got {brief(node)}, expected an interpolation as ${{section.key}}: one "
                    "is not closed."
                )
            value = self.look_up(found[1].strip(), path, seen)
            if found.span() == (0, len(node)):
                return value
            if isinstance(value, (dict, list)):
                raise FzError(
                    f"{where(path)}: {brief(found[0])} is a section or a list, expected a value within {brief(node)}."
                )
            node = node[: found.start()] + str(value) + node[found.end() :]
        return node

    def look_up(self, reference: str, path: Names, seen: tuple[str, ...]) -> Any:
        self.steps += 1
        here = f"{where(path)}: {brief(f'${{{reference}}}')[1:-1]}"
        if ":" in reference:
            raise FzError(f"{here} calls a resolver, expected the name of another key. Write the value itself.")
        dots = len(reference) - len(reference.lstrip("."))
        target = (*(path[:-dots] if dots else ()), *split(reference[dots:]))
        name = ".".join(target)
        if name in seen:
            raise FzError(f"{here} leads back to itself. Write the value itself.")
        if len(seen) >= MOST_REFERENCES:
            raise FzError(f"{here} leads on and on, expected a value at its end. Write the value itself.")
        node: Any = self.tree
        for i, part in enumerate(target):
            if isinstance(node, str):
                node = self.resolve(node, target[:i], (*seen, name))
            if isinstance(node, dict) and part in node:
                node = node[part]
            elif isinstance(node, list) and is_number(part) and int(part) < len(node):
                node = node[int(part)]
            else:
                raise FzError(f"{here} names nothing: the config has no {brief(name)[1:-1]}. Write the value itself.")
        return self.resolve(node, target, (*seen, name))


def where(path: Names) -> str:
    return brief(".".join(path))[1:-1]


def brief(text: str) -> str:
    return repr(text) if len(text) <= 120 else repr(text[:117] + "…")
