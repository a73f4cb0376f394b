"""Cells of a long measurement: done once, done again where they are another's or damaged, by one process or several."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import alive

from fz.results.cells import cell, each

SCHEMA = {"figures": [float]}
BEGUN = []


def begin():
    BEGUN.append(os.getpid())


def square(x):
    import torch

    return x * x, BEGUN[-1] == os.getpid(), torch.get_num_threads()


def test_a_cell_is_measured_once_for_its_key(tmp_path):
    counted = []

    def measure():
        counted.append(1)
        return {"figures": [0.5]}

    name = tmp_path / "deep/a.json"
    first = cell(name, "k", SCHEMA, measure)
    assert first == cell(name, "k", SCHEMA, measure) == {"key": "k", "figures": [0.5]} and len(counted) == 1
    file = tmp_path / "deep/a-k.json"
    before = file.read_bytes()
    for damaged in (b"", before[:9], before.replace(b"0.5", b'"0.5"'), b"[]"):
        file.write_bytes(damaged)
        assert cell(name, "k", SCHEMA, measure) == first and file.read_bytes() == before
    # measured with other settings: a file of its own, also where they differ late in the key
    assert cell(name, "other", SCHEMA, measure)["key"] == "other" and len(counted) == 6
    assert cell(name, "k", SCHEMA, measure) == first and len(counted) == 6
    for key in ("12345678-a", "12345678-b", "12345678-a"):
        assert cell(name, key, SCHEMA, measure)["key"] == key
    assert len(counted) == 9 and len(list(file.parent.iterdir())) == 3


@pytest.mark.parametrize("processes", [1, 2])
def test_each_begins_and_answers_in_order(processes):
    BEGUN.clear()
    found = list(each(square, range(5), processes, begin))
    assert [value for value, _, _ in found] == [0, 1, 4, 9, 16] and all(begun for _, begun, _ in found)
    assert len(BEGUN) == (processes == 1) and (processes == 1 or {threads for *_, threads in found} == {1})


# each item says that it began, and ends long after
LONG = """
import sys, time
from pathlib import Path
from fz.results.cells import each
from fz.shell import answered, leave

def begin_item(i):
    Path(sys.argv[1], f"begun-{i}").touch()
    if i == 0 and sys.argv[2] == "error":
        while not Path(sys.argv[1], "begun-1").exists():
            time.sleep(0.05)
        raise ValueError("an item's")
    time.sleep(6)
    Path(sys.argv[1], f"ended-{i}").touch()

if __name__ == "__main__":
    leave(answered(lambda: list(each(begin_item, range(8), 2))))
"""
SAID = {
    "group": "fz: interrupted.\n",
    "parent": "fz: interrupted.\n",
    "error": "fz: ValueError: an item's - this is a bug; --debug shows the traceback.\n",
}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", ["group", "parent", "terminated", "error"])
def test_what_stops_it_stops_every_process_and_begins_nothing(tmp_path, root, how):
    (tmp_path / "long.py").write_text(LONG)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "long.py", tmp_path, how],
        env=os.environ | {"PYTHONPATH": str(root)}, cwd=tmp_path, start_new_session=True,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + 120
        while not (tmp_path / "begun-1").exists() and time.monotonic() < end:
            time.sleep(0.05)
        stop = {"group": os.killpg, "parent": os.kill}.get(how)
        if stop:
            stop(process.pid, signal.SIGINT)
        elif how == "terminated":
            process.kill()
        said = process.communicate(timeout=60)[1]
        assert process.returncode != 0 and (how == "terminated" or said == SAID[how])
        end = time.monotonic() + 30
        while alive(process.pid) and time.monotonic() < end:
            time.sleep(0.05)
        assert not alive(process.pid)
        # the one that failed may have taken another before its error was known
        left = {p.name for p in tmp_path.glob("*-*")} - ({"begun-2"} if how == "error" else set())
        assert left == {"begun-0", "begun-1"}
    finally:
        if alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
