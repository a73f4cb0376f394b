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


def cells(line):
    """Of a table's row, as Markdown splits it: at every bar that no backslash takes."""
    return re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))


def test_tables_have_their_headers_cells(root):
    """A row of more loses them on GitHub, and a row under a blank line is no table's."""
    places = [root, *(root / name for name in ("docs", "bench", "fz", "kernels", "weights", "tests"))]
    files = [file for place in places for file in (place.glob("*.md") if place == root else place.rglob("*.md"))]
    rows = 0
    for file in files:
        text = re.sub(
            r"^```.*?^```", lambda code: "\n" * code[0].count("\n"), file.read_text("utf-8"), flags=re.M | re.S
        )
        head = None
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.startswith("|"):
                head = None
                continue
            head = head or (number, len(cells(line)))
            where = f"{file.relative_to(root)}:{number}"
            assert len(cells(line)) == head[1], f"{where}: {len(cells(line))} cells, its header has {head[1]}"
            if number == head[0] + 1:
                assert re.fullmatch(r"[|:\- ]+", line), f"{where}: no line of dashes under a table's header"
            rows += 1
    assert rows > 200
