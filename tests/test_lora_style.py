"""The bench of a LoRA's style: it learns from its own pictures, of this run, and no others. Training is played."""

import json

import numpy as np
import pytest

from bench import lora_clips, lora_style
from fz.results.lock import Lock


@pytest.fixture
def learned(monkeypatch):
    """Names of the files that each tuning found."""
    found = []

    def tune(argv):
        folder = argv[argv.index("--video") + 1]
        found.append(sorted(p.name for p in lora_clips.Path(folder).iterdir()))
        return 0

    monkeypatch.setattr(lora_clips.tune, "main", tune)
    monkeypatch.setattr(
        lora_clips,
        "edited",
        lambda lora, stories, *a: (["plain"] * len(stories), [np.zeros((64, 64, 3), np.uint8)] * len(stories)),
    )
    return found


def bench(out, *more):
    return lora_style.main(["--out", str(out), "--size", "64", "--clips", "2", *more])


def test_what_an_earlier_run_left_is_not_learned_from(tmp_path, learned):
    assert bench(tmp_path / "o", "--pictures", "3") == 0
    assert bench(tmp_path / "o", "--pictures", "1", "--style", "blueprint") == 0
    assert [len(names) for names in learned] == [12, 4]
    assert learned[1] == ["000-plain.png", "000-plain.txt", "000-styled.png", "000-styled.txt"]
    assert (tmp_path / "o/pictures/000-styled.txt").read_text().startswith("blueprint of ")
    record = json.loads((tmp_path / "o/lora_style.json").read_text())
    assert record["settings"]["pictures"] == 1 and record["styles"]["with"]["plain"] == 2


def test_a_file_of_the_users_is_neither_learned_from_nor_removed(tmp_path, learned, capsys):
    assert bench(tmp_path, "--pictures", "2") == 0
    mine = tmp_path / "pictures/mine.png"
    mine.write_bytes(b"mine")
    assert bench(tmp_path, "--pictures", "1") == 2 and len(learned) == 1 and mine.read_bytes() == b"mine"
    assert "mine.png is not this bench's, and would be learned from" in capsys.readouterr().err


def test_a_folder_is_one_processs(tmp_path, learned, capsys):
    with Lock(tmp_path):
        assert bench(tmp_path) == 2 and not learned
    assert "is being written by" in capsys.readouterr().err


def test_a_style_is_told_at_any_size():
    story = lora_clips.plain(7)
    for size in (64, 128):
        drawn = lora_clips.as_given(story, 1, size).frames
        assert lora_clips.style_of(drawn, story, "blueprint") == "plain"
        new = np.stack([lora_clips.NEW_STYLES["blueprint"](frame) for frame in drawn])
        assert lora_clips.style_of(new, story, "blueprint") == "blueprint"
