"""The miniature's judge beside CLIP: what a prompt names, and in how many frames it is seen."""

import dataclasses
import json

import numpy as np
import pytest

from fz import evaluate
from fz.clips.media import write_pngs
from fz.mini import EYE
from fz.mini.eye import load_eye
from fz.mini.figures import held_out_story
from fz.mini.judged import Named, judged, named
from fz.mini.world import caption, counterfactual, draw, sample_story

needs_judge = pytest.mark.skipif(not EYE.is_file(), reason="weights/mini has no judge yet")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red car moving on the sand", Named((("red", "car"),), "sand", "plain")),
        ("a red car", Named((("red", "car"),), None, "plain")),
        ("a car in the night", Named(((None, "car"),), "night", "plain")),
        (
            "pixel art of a red car and a blue ball on the sand",
            Named((("red", "car"), ("blue", "ball")), "sand", "pixel art"),
        ),
        ("watercolor painting on the snow", Named((), "snow", "watercolor")),
        ("on the snow", Named((), "snow", None)),
        ("a silver jeep driving down a curvy road", None),
    ],
)  # fmt: skip
def test_what_a_prompt_names(prompt, expected):
    assert named(prompt) == expected


def test_every_caption_is_understood():
    for seed in range(60):
        story = sample_story(seed)
        found = named(caption(story))
        assert found.things == tuple((t.colour, t.kind) for t in story.things)
        assert (found.scene, found.style) == (story.scene, story.style)


@needs_judge
def test_true_frames_are_right_and_others_are_not():
    eye, right, wrong = load_eye(), [], []
    for i in range(4):
        story = held_out_story(8000 + i)
        thing = story.things[0]
        frames = draw(story, 3).frames
        right.append(list(judged(eye, frames, caption(story)).values()))
        other = counterfactual(
            story,
            kind="star" if thing.kind != "star" else "car",
            colour="blue" if thing.colour != "blue" else "red",
            scene="snow" if story.scene != "snow" else "sand",
            style="pixel art",
        )
        wrong.append(list(judged(eye, frames, caption(other)).values()))
    assert np.mean(right, 0).min() > 0.9 and np.mean(wrong, 0).max() < 0.1


@needs_judge
def test_two_things_are_right_where_they_are():
    eye = load_eye()
    story = held_out_story(8100, two=True)
    frames = draw(story, 2).frames
    found = judged(eye, frames, caption(story))
    assert found["seen_kind"] > 0.4 and found["seen_colour"] == 1
    swapped = dataclasses.replace(story, things=story.things[::-1])
    assert judged(eye, frames, caption(swapped))["seen_colour"] == 0


@needs_judge
def test_half_of_the_frames_right_is_a_half():
    eye, story = load_eye(), held_out_story(8002)
    other = counterfactual(story, colour="blue" if story.things[0].colour != "blue" else "red")
    frames = np.concatenate([draw(story, 2).frames, draw(other, 2).frames])
    assert judged(eye, frames, caption(story))["seen_colour"] == 0.5
    assert set(judged(eye, frames, "a dog").values()) == {None}


@needs_judge
def test_a_run_of_the_miniature_is_judged_by_it_and_no_other_is(tmp_path, capsys):
    story = held_out_story(8002)
    prompt = caption(story)
    wished = counterfactual(story, colour="blue" if story.things[0].colour != "blue" else "red")
    for name, checkpoint in (("mini", None), ("other", "sd-v1-4")):
        write_pngs(tmp_path / name / "frames/source", draw(story, 2).frames)
        write_pngs(tmp_path / name / "frames/edit-0", draw(wished, 2).frames)
        write_pngs(tmp_path / name / "frames/edit-1", draw(story, 2).frames)
        write_pngs(tmp_path / name / "frames/edit-2", draw(story, 2).frames)
        settings = {
            "source": prompt,
            "clip": {"path": "car.mp4"},
            "edits": [{"target": t, "align": "auto"} for t in (caption(wished), caption(wished), "a dog")],
            "checkpoint": checkpoint,
        }
        (tmp_path / name / "run.json").write_text(json.dumps({"status": "done", "settings": settings, "files": []}))
    names = ("seen_kind", "seen_colour", "seen_scene", "seen_style")
    argv = ["--clip-model", "none", "--out", str(tmp_path / "numbers")]
    assert evaluate.main([str(tmp_path / "other"), *argv]) == 0
    assert "seen" not in capsys.readouterr().out
    assert {row[name] for row in json.loads((tmp_path / "numbers.json").read_text()) for name in names} == {None}
    assert evaluate.main([str(tmp_path / "mini"), *argv]) == 0
    said = capsys.readouterr().out
    assert "colour seen" in said and "to the miniature's judge" in said
    right, unchanged, strange = json.loads((tmp_path / "numbers.json").read_text())
    assert [right[name] for name in names] == [1, 1, 1, 1]
    assert [unchanged[name] for name in names] == [1, 0, 1, 1]
    assert {strange[name] for name in names} == {None}
