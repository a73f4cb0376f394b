"""README and docs against the code: the file guide names every module once and nothing else, flags exist, links
lead somewhere.
"""

import re

import pytest

from bench import table1
from bench.table1_rows import EVERY
from fz import batch, evaluate
from fz.settings import flags
from fz.tuning.settings import parser as tune_parser

OF_OTHERS = {"--nproc-per-node", "--max-restarts", "--index-url"}  # torchrun's and pip's
DOCS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md")


@pytest.fixture(scope="module")
def pages(root):
    """Path -> text of every page."""
    return {path: path.read_text(encoding="utf-8") for pattern in DOCS for path in sorted(root.glob(pattern))}


def test_every_module_is_in_the_file_guide_once(root, pages):
    guide = pages[root / "docs" / "files.md"]
    named = re.findall(r"`((?:fz|kernels|weights|bench)/[\w/]+\.py)`", guide)
    there = [
        str(p.relative_to(root)) for name in ("fz", "kernels", "weights", "bench") for p in (root / name).rglob("*.py")
    ]
    assert sorted(named) == sorted(there)


def test_flags_of_the_docs_exist(root, pages):
    parsers = (
        flags.build_parser([0, 1]),
        evaluate.build_parser(),
        table1.build_parser(),
        tune_parser(),
        batch.build_parser(),
    )
    known = {name for parser in parsers for action in parser._actions for name in action.option_strings}
    for name in (
        "README.md",
        "docs/editing.md",
        "docs/measuring.md",
        "docs/tuning.md",
        "docs/formats.md",
        "docs/batch.md",
    ):
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z.0-9-]*[a-z0-9]", pages[root / name]))
        assert named - OF_OTHERS <= known, name
    for method in re.search(r"--methods ([\w -]+)\n", pages[root / "docs" / "measuring.md"])[1].split():
        assert method in EVERY


def test_links_lead_somewhere(root, pages):
    for path, text in pages.items():
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            assert target.startswith("http") or (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_readme_is_short(root, pages):
    assert len(pages[root / "README.md"].splitlines()) <= 160
