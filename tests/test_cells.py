"""Cells of a long measurement: done once, done again where they are another's or damaged, by one process or several."""

import os

import pytest

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

    file = tmp_path / "deep/a.json"
    first = cell(file, "k", SCHEMA, measure)
    assert first == cell(file, "k", SCHEMA, measure) == {"key": "k", "figures": [0.5]} and len(counted) == 1
    before = file.read_bytes()
    for damaged in (b"", before[:9], before.replace(b"0.5", b'"0.5"'), b"[]"):
        file.write_bytes(damaged)
        assert cell(file, "k", SCHEMA, measure) == first and file.read_bytes() == before
    assert cell(file, "other", SCHEMA, measure)["key"] == "other" and len(counted) == 6


@pytest.mark.parametrize("processes", [1, 2])
def test_each_begins_and_answers_in_order(processes):
    BEGUN.clear()
    found = list(each(square, range(5), processes, begin))
    assert [value for value, _, _ in found] == [0, 1, 4, 9, 16] and all(begun for _, begun, _ in found)
    assert len(BEGUN) == (processes == 1) and (processes == 1 or {threads for *_, threads in found} == {1})
