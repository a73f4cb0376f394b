"""The README against the code: its file guide names every module once and nothing else, and its flags exist."""

import re

import pytest

from bench import table1
from fz import evaluate
from fz.settings import flags


@pytest.fixture(scope="module")
def readme(root):
    return (root / "README.md").read_text(encoding="utf-8")


def test_every_module_is_in_the_file_guide_once(root, readme):
    guide = readme.partition("## Files\n")[2].partition("\n## ")[0]
    named = re.findall(r"`((?:fz|kernels|weights|bench)/[\w/]+\.py)`", guide)
    there = [
        str(p.relative_to(root)) for name in ("fz", "kernels", "weights", "bench") for p in (root / name).rglob("*.py")
    ]
    assert sorted(named) == sorted(path for path in there if path != "fz/__init__.py")


def test_flags_of_the_measuring_section_exist(readme):
    section = readme.partition("## Measure, sweep, look\n")[2].partition("\n## ")[0]
    parsers = (flags.build_parser(), evaluate.build_parser(), table1.build_parser())
    known = {name for parser in parsers for action in parser._actions for name in action.option_strings}
    named = set(re.findall(r"--[a-z][a-z-]*", section))
    assert len(named) > 10 and named <= known
    for method in re.search(r"--methods ([\w -]+)\n", section)[1].split():
        assert method in table1.EVERY
