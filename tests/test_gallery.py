"""The gallery shows the median of the candidates of each kind of edit, the worst shape edit as a failure, and says what
all of them reached.
"""

import json

import numpy as np
import pytest

from bench import gallery, gallery_clips
from fz.mini.figures import held_out_story
from fz.mini.world import caption
from fz.results.lock import Lock


@pytest.mark.parametrize("entry", gallery_clips.ENTRIES, ids=lambda entry: entry.name)
def test_an_entry_asks_for_what_its_name_says(entry):
    story = held_out_story(gallery_clips.FIRST, two=entry.two)
    before, after = caption(story).split(), caption(entry.wished(story, 0)).split()
    thing = story.things[0]
    if entry.name == "removal":
        assert entry.settings_for(story)["remove"] == f"{thing.colour} {thing.kind}" and thing.kind not in after
        return
    changed = [word for word in before if word not in after]
    wanted = {"shape": [thing.kind], "style": [], "background": [story.scene]}.get(entry.name, [thing.colour])
    assert [word for word in changed if word not in ("a", "an", "in", "on", "the")] == wanted
    assert entry.name != "style" or after[-len(before) :] == before


@pytest.fixture
def written(monkeypatch):
    """The gallery without an editor: name of each gif -> its brightest value, which is the shown candidate's score."""
    scores = [21.0, 25.0, 19.0, 30.0, 23.0]

    def candidate(editor, entry, i):
        return gallery_clips.Candidate(gallery_clips.FIRST + i, None, "", None, None, scores[i])

    def picture(candidate, note=""):
        return np.full((2, 8, 8, 3), int(candidate.score) + (100 if "failure" in note else 0), np.uint8)

    gifs = {}
    monkeypatch.setattr(gallery_clips, "candidate", candidate)
    monkeypatch.setattr(gallery_clips, "picture", picture)
    monkeypatch.setattr(gallery_clips.fz, "load", lambda: None)
    monkeypatch.setattr(gallery_clips, "write_gif", lambda path, frames, fps: gifs.update({path.name: frames.max()}))
    return gifs


def test_the_median_is_shown_and_the_worst_is_called_a_failure(tmp_path, written):
    assert gallery.main(["--out", str(tmp_path), "--only", "shape", "removal", "--candidates", "5"]) == 0
    assert written == {"shape.gif": 23, "failure.gif": 119, "removal.gif": 23}
    said = json.loads((tmp_path / "gallery.json").read_text())
    assert said["shape"]["shown"] == gallery_clips.FIRST + 4 and len(said["shape"]["psnr"]) == 5


def test_what_is_made_alone_leaves_the_others_figures(tmp_path, written, capsys):
    def make(*names):
        return gallery.main(["--out", str(tmp_path), "--only", *names, "--candidates", "5"])

    assert make("removal", "shape") == 0
    before = json.loads((tmp_path / "gallery.json").read_text())
    assert list(before) == ["shape", "removal"]
    (tmp_path / "gallery.json").write_text(json.dumps(before | {"removal": {"shown": 7, "psnr": {"7": 1.5}}}))
    assert make("shape", "style") == 0
    after = json.loads((tmp_path / "gallery.json").read_text())
    assert list(after) == ["shape", "style", "removal"] and after["removal"] == {"shown": 7, "psnr": {"7": 1.5}}
    with Lock(tmp_path):
        assert make("removal") == 2
    assert "is being written by" in capsys.readouterr().err


def test_an_even_number_of_candidates_has_no_middle(capsys):
    assert gallery.main(["--candidates", "4"]) == 2
    assert "expected an odd number" in capsys.readouterr().err
