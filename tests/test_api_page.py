"""What a page needs of `import fz`: words explained before anything is inverted, areas without a run, the folder of a
run, the text of a program, and an edit that is stopped.
"""

import dataclasses
import json
import shlex

import numpy as np
import pytest
import torch
from PIL import Image

import fz
from fz.memory import budget
from fz.program import program
from fz.results.claim import as_json
from fz.settings.command import command
from fz.settings.parse import parse

SOURCE, TARGET = "a red car moving on the sand", "a blue car moving on the sand"


@pytest.fixture(scope="module")
def editor():
    torch.set_num_threads(1)
    return fz.load(device="cpu", threads=1)


@pytest.fixture(scope="module")
def clip():
    return fz.read(frames=2)


@pytest.fixture(scope="module")
def inversion(editor, clip):
    return editor.invert(clip, SOURCE, steps=2)


@pytest.fixture(scope="module")
def result(inversion):
    return inversion.edit(TARGET, kind="shape", reweight={"blue": 2})


def test_a_clip_knows_where_it_came_from(clip, editor):
    assert clip.clip.path.endswith("example") and clip.picture == (128, 128) and clip.clip.frames == 2
    wide = dataclasses.replace(clip, frames=torch.zeros(2, 3, 100, 128))
    assert editor.invert(wide, SOURCE, steps=1).settings.clip.path.startswith("a clip ")


@pytest.mark.parametrize(
    ("count", "indices", "every"), [(1, (0,), 8), (2, (0, 4), 4), (3, (0, 2, 4), 2), (9, tuple(range(8)), 1)]
)
def test_some_frames_are_a_clip_too(count, indices, every):
    whole = fz.read(frames=8)
    some = whole.some(count)
    assert some.indices == indices and torch.equal(some.frames, whole.frames[list(indices)])
    again = fz.read(frames=some.clip.frames, every=some.clip.every)
    assert some.clip.every == every and torch.equal(again.frames, some.frames)
    with pytest.raises(fz.FzError, match="at least 1"):
        whole.some(0)


def test_words_are_explained_before_anything_is_inverted(editor):
    told = editor.explain(SOURCE, TARGET, kind="shape", reweight={"blue": 2})
    assert [c.what for c in told.columns] == ["kept", "replaced", *["kept"] * 5]
    assert told.columns[1].sources == ("red",) and told.columns[1].weight == 2
    assert told.gone == told.mask_words == (1,) and told.source_words[1] == "red"
    assert editor.explain(SOURCE, remove="red car").target == "moving on the sand"
    assert editor.explain(SOURCE, f"{TARGET}, snow").columns[-1].what == "new"
    for wrong, line in (
        ({"target": "very " * 80}, "at most 77"),
        ({"target": TARGET, "reweight": {"green": 2}}, "'green' is not in"),
        ({"target": TARGET, "thresold": 1}, "Did you mean 'threshold'"),
    ):
        with pytest.raises(fz.FzError, match=line):
            editor.explain(SOURCE, **wrong)


def test_the_area_follows_the_threshold(inversion, clip):
    shares = [float(inversion.mask("red car", limit).float().mean()) for limit in (0.0, 0.3, 0.6, 0.9, 1.0)]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0.9 and shares[-1] == 0 and shares[1] > shares[3]
    assert inversion.mask(("red", "car")).equal(inversion.mask("red car"))
    assert inversion.mask("car").shape == (2, *clip.frames.shape[-2:]) and inversion.mask("car").dtype == torch.bool
    for words, limit in (("lorry", 0.3), ("car", 1.5), ("car", "0.3"), ("car", True)):
        with pytest.raises(fz.FzError):
            inversion.mask(words, limit)


def test_it_is_the_area_that_an_edit_keeps_to(inversion, clip):
    """The background's pixels are the clip's where neither the mask nor its edge reaches."""
    edited = inversion.edit(TARGET, kind="attribute", threshold=0.5, keep_background=True)
    far = ~torch.nn.functional.max_pool2d(inversion.mask("red", 0.5).float(), 33, 1, 16).bool()
    same = (edited.frames == clip.frames).all(1)
    assert far.any() and same[far].all() and not same.all()


def test_memory_is_predicted(editor):
    small, large = (editor.predicted(frames, (128, 128)) for frames in (2, 8))
    assert 0 < small.least < small.kept < large.kept and small.fits
    assert not editor.predicted(8, (8192, 8192)).fits


def test_an_edit_that_needs_more_than_was_counted_is_refused_before_it_is_computed(editor, monkeypatch):
    """By a method that an inversion does not know of; what it has counted is the process's already."""
    inversion = editor.invert(fz.read(frames=8), SOURCE, steps=1)
    free = 10**6
    monkeypatch.setattr(budget, "free_memory", lambda device: free)
    monkeypatch.setattr(fz.inverted.InvertedClip, "apply", lambda self, chosen, *more, **named: chosen.method)
    assert [inversion.edit(TARGET, method=name) for name in ("fatezero", "ddim")] == ["fatezero", "ddim"]
    with pytest.raises(fz.FzError, match="memory: this edit needs about .* are free. Take fewer frames"):
        inversion.edit(TARGET, method="null-p2p")
    free = None
    assert inversion.edit(TARGET, method="null-p2p") == "null-p2p"


def test_the_folder_of_a_run(inversion, result, tmp_path):
    assert inversion.save(tmp_path / "run", result) == tmp_path / "run"
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["status"] == "done" and run["settings"] == as_json(result.settings)
    assert all((tmp_path / "run" / name).is_file() for name in run["files"])
    written = [np.asarray(Image.open(tmp_path / f"run/frames/edit-0/{i:05d}.png")) for i in range(2)]
    assert np.array_equal(written, result.uint8())
    other = inversion.edit(TARGET, guidance=5)
    for wrong in ((), (result, other)):
        with pytest.raises(fz.FzError, match="save"):
            inversion.save(tmp_path / "two", *wrong)
    assert not (tmp_path / "two").exists()
    with pytest.raises(fz.FzError, match="holds a run with other settings"):
        inversion.save(tmp_path / "run", other)


def test_edits_of_another_inversion_are_not_saved_as_its_own(editor, clip, inversion, result, tmp_path):
    """By its clip's pixels, by its sentence or steps, and by what it kept."""
    others = [
        editor.invert(torch.flip(clip.frames, (0,)), SOURCE, steps=2),
        editor.invert(clip, SOURCE, steps=1),
        editor.invert(clip, "a red car moving on the road", steps=2),
        editor.invert(clip, SOURCE, steps=2, store_dtype="bfloat16"),
    ]
    arrays = editor.invert(clip.frames, SOURCE, steps=2)
    for one, edited in [(other, result) for other in others] + [(others[0], arrays.edit(TARGET))]:
        with pytest.raises(fz.FzError, match="save: got the edit of .* another inversion, expected one of this"):
            one.save(tmp_path / "mix", edited)
        with pytest.raises(fz.FzError, match="another inversion"):
            one.save(tmp_path / "mix", one.edit(TARGET), edited)
    assert not (tmp_path / "mix").exists()
    again = editor.invert(clip, SOURCE, steps=2)
    kind = {"kind": "shape", "reweight": {"blue": 2}}
    again.save(tmp_path / "same", again.edit(TARGET, **kind), result)
    assert (tmp_path / "same/edit-0.mp4").read_bytes() == (tmp_path / "same/edit-1.mp4").read_bytes()


def test_runs_of_other_arrays_do_not_replace_each_other(editor, clip, tmp_path):
    """Their settings had been the same, as if it were one clip."""
    one, other = (editor.invert(frames, SOURCE, steps=1) for frames in (clip.frames, clip.frames.flip(0)))
    one.save(tmp_path / "run", one.edit(TARGET))
    with pytest.raises(fz.FzError, match="holds a run with other settings .*clip.path 'a clip "):
        other.save(tmp_path / "run", other.edit(TARGET))
    one.save(tmp_path / "run", one.edit(TARGET))


def test_the_program_gives_the_same_bits(result, tmp_path):
    text = program(result.settings, str(tmp_path / "again.mp4"))
    exec(compile(text, "program", "exec"), {})
    result.save(tmp_path / "first.mp4")
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "first.mp4").read_bytes()


def test_the_command_says_the_same_settings(result):
    argv = shlex.split(command(as_json(result.settings)))[3:]
    assert as_json(parse(argv).settings) == as_json(result.settings)


def test_programs_of_other_settings(result):
    edit = dataclasses.replace(result.settings.edits[0], remove="red car", mask="mask.png")
    text = program(dataclasses.replace(result.settings, edits=(edit,), negative="blur", checkpoint="sd.ckpt"))
    assert "fz.load('sd.ckpt', " in text and "remove='red car'" in text and "negative='blur'" in text
    with pytest.raises(fz.FzError, match="2 edits"):
        program(dataclasses.replace(result.settings, edits=(edit, edit)))


def test_an_edit_is_stopped_by_its_callback(editor, inversion, clip, result, tmp_path):
    class Enough(Exception):
        pass

    def stop(step, z):
        raise Enough

    with pytest.raises(Enough):
        inversion.edit(TARGET, callback=stop)
    with pytest.raises(Enough):
        editor.invert(clip, SOURCE, steps=2, callback=stop, cache=tmp_path)
    # nothing is broken by it, and what was done is found again
    steps = []
    again = editor.invert(clip, SOURCE, steps=2, cache=tmp_path, callback=lambda step, z: steps.append(step))
    assert steps == [2]
    same = again.edit(TARGET, kind="shape", reweight={"blue": 2})
    assert torch.equal(same.frames, result.frames)
    assert torch.equal(inversion.edit(TARGET, kind="shape", reweight={"blue": 2}).frames, result.frames)
