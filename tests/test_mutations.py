"""Breaks the code on purpose, one line at a time, in a copy without reference data: the default tests must notice.

The mutations are `tests/mutations/table.py`. One: `python -m pytest -q -m slow tests/test_mutations.py -k NAME`.
"""

import os
import shutil
import subprocess
import sys

import pytest

from tests.mutations.table import MUTATIONS

COPIED = ("fz", "kernels", "weights", "bench", "tests", "setup.py", "pyproject.toml", "README.md", "docs")
SECONDS = 900


@pytest.fixture(scope="module")
def copy(root, tmp_path_factory):
    """A copy of the project in a folder of its own: no reference data beside it."""
    there = tmp_path_factory.mktemp("mutated") / "project"
    there.mkdir()
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, there / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(root / name, there / name)
    return there


def python(copy, *arguments):
    """Python in the copy, which is what `import fz` finds there; its exit code and output."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("FZ_SHARED", None)
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=SECONDS)
    return done.returncode, done.stdout + done.stderr


def run_tests(copy, files):
    code, output = python(copy, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files)
    return code, output[-3000:]


def test_every_mutation_applies(root):
    """A table that no longer fits the code tests nothing."""
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS) >= 25
    for m in MUTATIONS:
        text = (root / m.file).read_text(encoding="utf-8")
        assert text.count(m.old) == 1, f"{m.name}: {m.old!r} is {text.count(m.old)} times in {m.file}, expected once"
        assert m.old != m.new and all((root / file).is_file() for file in m.tests)


@pytest.mark.slow
def test_the_copy_is_what_runs(copy):
    """Unbroken, its tests pass; and they import the copy."""
    code, output = python(copy, "-c", "import fz, fz.kernels; print(fz.__file__, fz.kernels.__file__)")
    assert code == 0 and output.count(str(copy)) == 2, output
    code, output = run_tests(copy, sorted({file for m in MUTATIONS for file in m.tests}))
    assert code == 0, output


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_is_caught(copy, mutation):
    file = copy / mutation.file
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        code, output = run_tests(copy, mutation.tests)
    finally:
        file.write_text(text, encoding="utf-8")
    # 1: tests ran and one failed; anything else is no catch
    assert code == 1, f"{mutation.name} was not caught (pytest's exit code {code}):\n{output}"
