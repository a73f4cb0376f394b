"""The miniature's CLIP: what its batches are made of, its loss, its way into a folder, and what the shipped one can
tell apart.
"""

import json
import random

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from bench.table1_cells import judge_of
from bench.table1_key import fingerprint
from fz import evaluate, mini
from fz.checkpoint import choose_clip
from fz.clips.media import write_pngs
from fz.errors import FzError
from fz.mini import clip_training
from fz.mini.clip_training import CHOICES, Neighbours, attributes, contrast, new_clip, otherwise, retrieval, stories_of
from fz.mini.data import held_out
from fz.mini.folder import export_clip
from fz.mini.words import new_tokenizer
from fz.mini.world import caption, sample_story
from fz.weights.clip import load_clip

needs_clip = pytest.mark.skipif(not (mini.FOLDER / "clip").is_dir(), reason="weights/mini has no clip/ yet")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model with random weights and the folder that export makes of it."""
    state, out = tmp_path_factory.mktemp("state"), tmp_path_factory.mktemp("out")
    torch.manual_seed(0)
    tokenizer = new_tokenizer(state / "tokenizer")
    model = new_clip(tokenizer).eval()
    with torch.no_grad():
        for p in model.parameters():  # biases too, which begin at 0
            p.copy_((p + 0.1 * torch.randn_like(p)).half())
    torch.save({"shadow": torch.nn.ModuleDict({"clip": model}).state_dict()}, state / "clip.pt")
    export_clip(state, out)
    return model, tokenizer, out / "clip"


def words_that_differ(a, b):
    a, b = a.replace("an ", "a ").split(), b.replace("an ", "a ").split()
    return sum(x != y for x, y in zip(a, b, strict=True)) if len(a) == len(b) else None


@pytest.mark.parametrize("what", CHOICES)
def test_a_changed_caption_differs_in_that_alone(what):
    rng = random.Random(0)
    for seed in range(30):
        story = sample_story(seed)
        other = otherwise(story, what, rng)
        before, after = attributes(story), attributes(other)
        assert [x != y for x, y in zip(before, after, strict=True)] == [name == what for name in CHOICES]
        if what in ("colour", "kind"):
            assert words_that_differ(caption(story), caption(other)) == 1


def test_a_group_differs_in_one_attribute_at_most():
    stories = [sample_story(seed) for seed in range(3000)]
    near, rng, several = Neighbours(stories), random.Random(0), 0
    for _ in range(40):
        group = near.group(rng, 4)
        columns = list(zip(*(near.named[i] for i in group), strict=True))
        different = sum(len(set(column)) > 1 for column in columns)
        assert different <= 1
        several += different
    assert several > 20


def test_stories_are_found_again_with_and_without_their_things():
    captions = [
        caption(sample_story(0)),
        caption(sample_story(1)),
        caption(clip_training.dataclasses.replace(sample_story(2), things=())),
    ]
    assert [caption(s) for s in stories_of(captions)] == captions and not stories_of(captions)[2].things
    with pytest.raises(ValueError, match="1 captions"):
        stories_of(["a grey mouse"])


def test_the_loss_is_least_where_pictures_meet_their_captions():
    images = torch.nn.functional.normalize(torch.eye(4), dim=-1)
    texts, same = torch.cat([images, -images]), torch.cat([torch.eye(4), torch.zeros(4, 4)], 1)
    assert contrast(images, texts, torch.tensor(50.0), same) < 1e-3
    # pictures 0 and 1 swapped; and a wrong caption that is as near as the right one
    assert contrast(images[[1, 0, 2, 3]], texts, torch.tensor(50.0), same) > 20
    assert contrast(images, torch.cat([images, images]), torch.tensor(50.0), same) == pytest.approx(
        np.log(2) / 2, abs=1e-3
    )
    # two pictures with one caption: both are right
    shared = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    assert contrast(images[:1].repeat(2, 1), images[:1].repeat(2, 1), torch.tensor(50.0), shared) == pytest.approx(
        np.log(2), abs=1e-4
    )


def test_export_gives_the_trained_features_to_both_readers(exported):
    model, tokenizer, folder = exported
    pictures = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    ours, theirs = (
        load_clip(folder),
        CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval(),
    )
    sentences = ["a red car moving on the sand", "a blue star on the grass"]
    x = ours.preprocess(pictures)
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(
            model.visual_projection(model.vision_model(pixel_values=x).pooler_output), dim=-1
        )
        read = torch.nn.functional.normalize(
            theirs.visual_projection(theirs.vision_model(pixel_values=x).pooler_output), dim=-1
        )
        texts = torch.nn.functional.normalize(clip_training.texts_of(model, tokenizer, sentences), dim=-1)
    torch.testing.assert_close(ours.images(pictures), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(read, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.texts(sentences), texts, atol=1e-5, rtol=0)
    torch.testing.assert_close(clip_training.as_clip(model, tokenizer).images(pictures), wanted, atol=1e-5, rtol=0)
    # what training feeds is what the metrics feed
    torch.testing.assert_close(clip_training.normalised(torch.from_numpy(pictures).permute(0, 3, 1, 2)), x)


def test_without_training_there_is_nothing_to_export(tmp_path):
    with pytest.raises(FzError, match="train_clip"):
        export_clip(tmp_path, tmp_path / "out")


@needs_clip
def test_the_shipped_one_tells_held_out_pictures_apart():
    found = retrieval(choose_clip(None), count=64, size=64)
    assert found["colour"] > 0.97 and found["scene"] > 0.97 and found["style"] > 0.97 and found["kind"] > 0.88
    assert sum(f.stat().st_size for f in (mini.FOLDER / "clip").iterdir()) < 4e6


@needs_clip
def test_it_is_the_default_for_the_miniature_s_runs_only(tmp_path, capsys):
    from fz.mini.world import counterfactual, draw

    story = held_out(3, two=False, style="plain")
    target = counterfactual(story, colour="blue" if story.things[0].colour != "blue" else "red")
    for name, checkpoint in (("mini", None), ("other", "sd-v1-4")):
        write_pngs(tmp_path / name / "frames/source", draw(story, 3, 64).frames)
        write_pngs(tmp_path / name / "frames/edit-0", draw(target, 3, 64).frames)
        settings = {
            "source": caption(story),
            "clip": {"path": "car.mp4"},
            "edits": [{"target": caption(target), "align": "auto"}],
            "checkpoint": checkpoint,
        }
        (tmp_path / name / "run.json").write_text(json.dumps({"status": "done", "settings": settings, "files": []}))
    assert evaluate.main([str(tmp_path / "mini"), str(tmp_path / "other"), "--out", str(tmp_path / "numbers")]) == 0
    ours, other = json.loads((tmp_path / "numbers.json").read_text())
    # the drawn counterfactual: every frame is nearer to the target prompt
    assert ours["clip"] == "clip" and ours["frame_acc"] == 1 and ours["tem_con"] > 0.9
    assert other["clip"] is None and other["tem_con"] is None
    assert evaluate.main([str(tmp_path / "mini"), "--clip", "none", "--out", str(tmp_path / "numbers")]) == 0
    assert json.loads((tmp_path / "numbers.json").read_text())[0]["tem_con"] is None


@needs_clip
def test_table_1_uses_it_for_held_out_clips_and_its_cells_know_the_weights(tmp_path):
    judge_of.cache_clear()
    assert judge_of(None, None, None, False)[0].name == "clip" and judge_of(None, None, None, True)[0] is None
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.safetensors").write_bytes(name.encode() * 100_000)
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b") != fingerprint(None)
