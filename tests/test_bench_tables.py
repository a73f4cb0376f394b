"""Rows that benches append to a CSV: under their own columns, or not at all; what measures nothing takes no file."""

import csv

import pytest

from bench import attention, attention_times, edit, edit_times, whole
from bench.tables import ATTENTION, EDIT, append


def read(path):
    return list(csv.DictReader(path.open(encoding="utf-8", newline="")))


@pytest.mark.parametrize("command", [edit, attention], ids=["edit", "attention"])
def test_a_file_of_other_columns_is_refused_before_anything_is_measured(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(edit_times, "measure_all", lambda given: pytest.fail("measured"))
    monkeypatch.setattr(attention_times, "run", lambda given: pytest.fail("measured"))
    path = tmp_path / "rows.csv"
    for content in (b"step,seconds\nx,1\n", b"\xff\xfe\x00", b"\n"):
        path.write_bytes(content)
        assert command.main(["--csv", str(path)]) == 2 and path.read_bytes() == content
        said = capsys.readouterr().err
        assert "rows.csv" in said and "Pass another --csv." in said


@pytest.mark.parametrize(("command", "flag"), [(edit, "--model"), (attention, "--static")], ids=["edit", "attention"])
def test_what_measures_nothing_takes_no_file(command, flag, tmp_path, capsys):
    assert command.main([flag, "--csv", str(tmp_path / "rows.csv")]) == 2
    assert f"beside {flag}, which measures nothing" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_rows_are_appended_under_one_head(tmp_path):
    path = tmp_path / "rows.csv"
    path.touch()
    append(path, EDIT, [{"step": "forward", "seconds": 1.5}])
    append(path, EDIT, [{"step": "decode", "seconds": 2.5, "commit": "abc"}])
    assert [(row["step"], row["seconds"], row["commit"]) for row in read(path)] == [
        ("forward", "1.5", ""), ("decode", "2.5", "abc"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="not in fieldnames"):
        append(path, EDIT, [{"another": 1}])
    assert set(EDIT) & set(ATTENTION) >= {"commit", "machine", "threads", "size", "frames"}


def test_a_whole_edits_seconds_are_written_too(tmp_path, monkeypatch):
    monkeypatch.setattr(whole, "run", lambda *a: {"exact: edit step": 2.0, "exact": 100.0, "fast": 10.0})
    line = ["--fast", "--small", "--size", "64", "--frames", "2", "--threads", "1", "--csv", str(tmp_path / "rows.csv")]
    assert edit.main(line) == 0
    rows = read(tmp_path / "rows.csv")
    assert [(row["step"], row["seconds"]) for row in rows] == [
        ("exact: edit step", "2.0"), ("exact", "100.0"), ("fast", "10.0"),
    ]  # fmt: skip
    assert {row["size"] for row in rows} == {"64"} and all(row["commit"] and row["machine"] for row in rows)
