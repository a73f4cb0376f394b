"""`fz batch`: jobs out of every layout, many processes, dead ones taken over, one table at the end."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from fz import batch
from fz.clips.decode import open_source
from fz.errors import FzError
from fz.memory import inversions
from fz.progress import Progress
from fz.queue import Place, Queue, claim
from fz.ranks import Ranks
from fz.results.lock import Lock
from fz.settings.jobs import KEYS, check_key, read_jobs

SOURCE, TARGET = "a red car moving on the sand", "a blue car moving on the sand"


@pytest.fixture
def example(root):
    return root / "weights/mini/example"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return path


def frames(folder, count=2, size=(32, 32), colour=(200, 30, 30)):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", size, colour).save(folder / f"{i:05d}.png")
    return folder


# ---- what files say --------------------------------------------------------------------------------------------


def test_yaml_of_jobs_over_shared_settings(tmp_path, example):
    frames(tmp_path / "clip")
    jobs = write(tmp_path / "jobs.yaml", f"""
shared: {{steps: 7, frames: 2, edit: style, reweight: {{blue: 2}}}}
jobs:
- {{clip: clip, source: {SOURCE}, targets: [{TARGET}, a green car]}}
- name: Mine
  clip: {example}
  source: {SOURCE}
  target: {TARGET}
  steps: 9
  reweight: {{blue: 3}}
  frame_index: [-1, first]
  size: [96, 128]
  cross_replace: 0.5
  threshold.0: none
  per_frame_norm: true
  blend_words: [car, [blue, car]]
""")  # fmt: skip
    first, second = read_jobs(str(jobs), ["--guidance", "2"])
    assert first.name == "clip-a-blue-car-moving-on-the-sand" and second.name == "mine"
    settings = read_jobs(str(jobs), ["--guidance", "2"])[0]
    with pytest.raises(FzError, match="'blue' is not in the prompt 'a green car'"):
        settings.settings(tmp_path)
    of = second.settings(tmp_path / "out")
    assert of.out == str(tmp_path / "out" / "mine") and of.clip.path == str(example) and of.steps == 9
    assert of.guidance == 2 and of.frame_index == (-1, "first") and of.clip.size == (96, 128) and of.clip_norm is False
    (edit,) = of.edits
    assert edit.reweight == (("blue", 3.0),) and edit.cross_replace == (0.0, 0.5) and edit.threshold is None
    assert edit.blend_words == (("car",), ("blue", "car"))
    # what the command line says is over what files say
    assert read_jobs(str(jobs), ["--steps", "4"])[1].settings(tmp_path).steps == 4
    assert read_jobs(str(jobs), ["--reweight", "car=4"])[1].settings(tmp_path).edits[0].reweight == (("car", 4.0),)
    assert read_jobs(str(jobs), ["--threshold", "0.2"])[1].settings(tmp_path).edits[0].threshold == 0.2
    assert read_jobs(str(jobs), ["--threshold.0", "0.4"])[1].settings(tmp_path).edits[0].threshold == 0.4


def test_changes_of_a_config_add_up(tmp_path):
    job = {"clip": "clip", "source": SOURCE, "targets": [TARGET], "set": ["seed=5"]}
    (found,) = read_jobs(str(write(tmp_path / "jobs.yaml", {"jobs": [job]})), ["--set", "seed=7", "--set", "a=1"])
    assert found.argv[-4:] == ("--set", "seed=7", "--set", "a=1") and "seed=5" in found.argv


def test_files_are_looked_for_beside_the_jobs(tmp_path):
    """Those that a value follows, too; a Hub name, and what is not there, stay as they are."""
    frames(tmp_path / "clip")
    (tmp_path / "canny").mkdir()
    for name in ("style.safetensors", "cat.pt", "a=b.pt", "net.safetensors"):
        (tmp_path / name).touch()
    jobs = write(tmp_path / "jobs.yaml", f"""
- clip: clip
  source: {SOURCE}
  target: {TARGET}
  lora: [style.safetensors=0.8, owner/style=0.5]
  embedding: {{cat.pt: <cat>}}
  control: net.safetensors
  control-video: canny
- {{clip: clip, source: {SOURCE}, target: {TARGET}, embedding: a=b.pt, lora: gone.pt=2}}
""")  # fmt: skip
    first, second = (job.settings(tmp_path) for job in read_jobs(str(jobs)))
    assert first.lora == ((str(tmp_path / "style.safetensors"), 0.8), ("owner/style", 0.5))
    assert first.embedding == ((str(tmp_path / "cat.pt"), "<cat>"),) and first.control_video == "canny"
    assert first.control == str(tmp_path / "net.safetensors")
    assert second.embedding == ((str(tmp_path / "a=b.pt"), None),) and second.lora == (("gone.pt", 2.0),)


def test_csv_of_jobs(tmp_path):
    frames(tmp_path / "clip")
    rows = [["clip", "source", "target", "threshold.1", "per-frame-norm"],
            ["clip", SOURCE, f"{TARGET}|a green car, on sand", "0.3", "yes"],
            ["clip", SOURCE, "-dashed", "", ""]]  # fmt: skip
    with open(tmp_path / "jobs.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(rows)
    first, second = (job.settings(tmp_path) for job in read_jobs(str(tmp_path / "jobs.csv")))
    assert [e.target for e in first.edits] == [TARGET, "a green car, on sand"] and first.clip_norm is False
    assert [e.threshold for e in first.edits] == [None, 0.3] and first.clip.path == str(tmp_path / "clip")
    assert second.edits[0].target == "-dashed" and second.clip_norm is True


def test_values_of_a_cell_may_have_spaces_around_their_marks(tmp_path):
    (tmp_path / "a.safetensors").touch()
    row = {"clip": "clip", "source": SOURCE, "target": f" {TARGET} | a green car |", "reweight": "blue=2 | car=3",
           "lora": "b.safetensors=2 | a.safetensors"}  # fmt: skip
    with open(tmp_path / "jobs.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([row, row.values()])
    (job,) = read_jobs(str(tmp_path / "jobs.csv"), ["--set", "lenient=true"])
    said = dict(zip(job.argv, job.argv[1:], strict=False))
    assert TARGET in job.argv and "a green car" in job.argv and not {"", " "} & {*job.argv}
    assert said["--source"] == SOURCE and {"blue=2", "car=3", "b.safetensors=2"} <= {*job.argv}
    assert str(tmp_path / "a.safetensors") in job.argv


def test_numbers_of_jobs_are_as_they_stand(tmp_path):
    """As on the command line: no octal, no minutes and seconds, and on is a word."""
    (tmp_path / "0123").mkdir()
    jobs = write(tmp_path / "jobs.yaml", f"""
- {{name: 1, clip: 0123, source: a car on the sand, target: {TARGET}, frames: 010, seed: 012, guidance: 7.50}}
- {{name: 1:30, clip: clip, source: a car, target: a bus, every: 0_2, remove: on, fast: on, steps: ~}}
- {{clip: clip, source: a car on the sand, target: {TARGET}, reweight.0: {{on: 02}}, per_frame_norm: yes}}
""")  # fmt: skip
    first, second, third = read_jobs(str(jobs))
    assert (first.name, second.name) == ("1", "1-30")
    of = first.settings(tmp_path)
    assert (of.clip.path, of.clip.frames, of.seed, of.guidance) == (str(tmp_path / "0123"), 10, 12, 7.5)
    assert second.argv[-5:] == ("--every", "0_2", "--remove", "on", "--fast")
    assert third.settings(tmp_path).edits[0].reweight == (("on", 2.0),)


@pytest.mark.parametrize("pattern", ["frames/0000?.png", "frames/0000[0-2].png", "frames/*.png"])
def test_globs_are_looked_for_beside_the_jobs(pattern, tmp_path):
    """Also where the folder's own name has a glob's marks."""
    folder = tmp_path / "mine [1]"
    frames(folder / "frames")
    jobs = write(folder / "jobs.yaml", f"- {{clip: '{pattern}', source: a, target: b}}")
    (job,) = read_jobs(str(jobs))
    found = open_source(job.settings(tmp_path).clip.path)
    assert [path.name for path in found.paths] == ["00000.png", "00001.png"]


def tgve(root, clips):
    head = ["Video name", "Our GT caption", "Style Change Caption", "Object Change Caption",
            "Background Change Caption", "Multiple Changes Caption", "Frames"]  # fmt: skip
    lines = [head]
    for part, names in clips.items():
        lines += [[f"{part} Videos:"] + [""] * 6]
        for name in names:
            lines += [[name, f"a {name}", *(f"a {name}, {i}" for i in range(4)), "32"]]
            frames(root / part / "480p_frames" / name)
        lines += [[""] * 7]
    root.mkdir(exist_ok=True)
    with open(root / "LOVEU-TGVE-2023_Dataset.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)


def test_tgve_2023(tmp_path):
    """16 + 23 + 37 clips below rows that name where they are from, 4 targets each."""
    counts = {"DAVIS_480p": 16, "youtube_480p": 23, "videvo_480p": 37}
    tgve(tmp_path / "tgve", {part: [f"{part[0]}clip-{i}" for i in range(n)] for part, n in counts.items()})
    for given in (tmp_path / "tgve", tmp_path / "tgve" / "LOVEU-TGVE-2023_Dataset.csv"):
        jobs = read_jobs(str(given), ["--edit", "style"])
        settings = [job.settings(tmp_path / "out") for job in jobs]
        assert len(jobs) == 76 and sum(len(s.edits) for s in settings) == 304
        assert all(Path(s.clip.path).is_dir() for s in settings)
        assert settings[20].source == "a yclip-4" and settings[20].edits[3].target == "a yclip-4, 3"
    assert jobs[20].name == "yclip-4"


def test_v2vbench(tmp_path):
    data = [{"video_id": f"clip_{i}", "prompt": f"a man {i}", "edit": [
        {"prompt": f"a robot {i}, {k}", "src_words": "man", "tgt_words": "robot", "type": "foreground"}
        for k in range(3)]} for i in range(50)]  # fmt: skip
    write(tmp_path / "config.yaml", "data:\n" + "\n".join(f"- {json.dumps(entry)}" for entry in data))
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "clip_3.mp4").write_bytes(b"")
    frames(tmp_path / "images" / "clip_4")
    jobs = read_jobs(str(tmp_path))
    assert len(jobs) == 50 and [job.name for job in jobs[:2]] == ["clip_0", "clip_1"]
    settings = [jobs[i].settings(tmp_path) for i in (3, 4)]
    assert settings[0].clip.path == str(tmp_path / "videos/clip_3.mp4") and len(settings[0].edits) == 3
    assert settings[1].clip.path == str(tmp_path / "images/clip_4") and settings[1].source == "a man 4"


def test_five_with_its_masks(tmp_path):
    root = tmp_path / "data"
    for kind in range(1, 7):
        edits = [{"video_name": f"000{i}_bus", "source_prompt": f"a bus {i}", "target_prompt": f"a car {i}, {kind}",
                  "save_dir": f"edit{kind}/000{i}_bus", "instruction": "x"} for i in range(3)]  # fmt: skip
        write(root / "edit_prompt" / f"edit{kind}_FiVE.json", edits)
    frames(root / "images" / "0000_bus")
    frames(root / "bmasks" / "0000_bus")
    for given in (root, tmp_path):
        jobs = read_jobs(str(given))
        assert len(jobs) == 3 and [job.name for job in jobs] == [f"000{i}_bus" for i in range(3)]
        settings = jobs[0].settings(tmp_path)
        assert len(settings.edits) == 6 and settings.clip.path == str(root / "images/0000_bus")
        assert jobs[0].masks == str(root / "bmasks/0000_bus") and jobs[1].masks is None
        assert settings.edits[0].mask is None
    with_masks = read_jobs(str(root), edit_masks=True)[0].settings(tmp_path)
    assert {edit.mask for edit in with_masks.edits} == {jobs[0].masks}
    (only,) = {len(job.settings(tmp_path).edits) for job in read_jobs(str(root / "edit_prompt" / "edit5_FiVE.json"))}
    assert only == 1


def test_fatezeros_configs_and_data(tmp_path, shared):
    """A checkout of the released code: config/ as it is, data/ where the configs say."""
    import shutil

    shutil.copytree(shared / "fatezero_configs", tmp_path / "config")
    frames(tmp_path / "data" / "teaser_car-turn")
    (tmp_path / "ckpt" / "stable-diffusion-v1-4").mkdir(parents=True)
    jobs = {job.name: job for job in read_jobs(str(tmp_path), ["--set", "editing_config.num_inference_steps=3"])}
    # all but the three of tune/; two have a train_steps that is left over
    assert len(jobs) == 24 and not any("tune" in name.split("-") for name in jobs)
    assert {"config-style-rabit_pokemon", "config-style-surf_ukiyo"} <= jobs.keys()
    settings = jobs["config-teaser-jeep_watercolor"].settings(tmp_path / "out")
    assert settings.clip.path == str(tmp_path / "data/teaser_car-turn") and settings.steps == 3
    assert settings.checkpoint == str(tmp_path / "ckpt/stable-diffusion-v1-4") and settings.edits[0].lenient
    assert all(job.settings(tmp_path / "out").edits for job in jobs.values())


MISTAKES = {
    "nothing there": (None, "does not exist"),
    "no YAML": ("a: [1\nb: }", "is no YAML"),
    "no list": ("shared: {}", "is no list of jobs"),
    "no jobs": ("jobs: []", "has no jobs"),
    "a job that is text": ("jobs: [clip.mp4]", "job 1 is 'clip.mp4'"),
    "a name beside jobs": ("jobs: []\nshard: {}", "Did you mean 'shared'"),
    "a shared name": ("shared: {stepps: 2}\njobs: [{clip: a}]", "Did you mean 'steps'"),
    "a shared place": ("shared: {out: here}\njobs: [{clip: a}]", "which the batch decides"),
    "a key twice": ("jobs:\n- {clip: a, clip: b}", "is there twice"),
    "nested too deep": ("jobs: " + "[" * 40 + "]" * 40, "nested deeper"),
    "only a bad job": ("jobs: [{clip: a, sauce: b}]", "Did you mean 'source'"),
    "a switch": ("jobs: [{clip: a, offload: 3}]", "expected true or false"),
    "a number for a switch": ("jobs: [{clip: a, steps: true}]", "expected a value"),
    "a name that is none": ("jobs: [{clip: a, name: [1]}]", "expected text"),
}


TWICE = {
    "clip and video": "jobs: [{clip: a, video: b, source: s, target: t}]",
    "target and targets": "jobs: [{clip: a, source: s, target: t, targets: [u]}]",
    "- and _": "jobs: [{clip: a, source: s, target: t, self-replace: 0.3, self_replace: 0.5}]",
    "shared": "shared: {clip: a, video: b}\njobs: [{source: s, target: t}]",
}


@pytest.mark.parametrize("case", TWICE)
def test_a_setting_by_two_of_its_names_is_refused(case, tmp_path):
    with pytest.raises(FzError, match="job 1: got both '.*' and '.*', which are one setting"):
        read_jobs(str(write(tmp_path / "jobs.yaml", TWICE[case])))


UNSAID = {
    "clip: [a, b]": "video: got",
    "source: [s, s]": "source: got",
    "targets: [[t, u]]": "target: got",
    "targets: {t: u}": "target: got names and values",
    "checkpoint: [a, b]": "checkpoint: got",
    "config: [a, b]": "config: got",
    "lora: [[a, 1]]": "lora: got",
    "clip: null": "got no clip",
    "clip: ''": "got no clip",
}


@pytest.mark.parametrize("said", UNSAID)
def test_what_no_flag_says_is_not_guessed(said, tmp_path):
    """No list becomes 'a, b', no clip becomes the bundled one."""
    given = {"clip": "clip: a", "source": "source: s", "target": "target: t"}
    given["target" if said.startswith("targets") else said.partition(":")[0]] = said
    path = write(tmp_path / "jobs.yaml", f"jobs: [{{{', '.join(given.values())}}}]")
    assert UNSAID[said] in str(read_jobs(str(path))[0].error)
    lists = (
        "frame_index: [-1, first], crop: [1, 2, 3, 4], self_replace: [0.1, 0.5], remove: [car, ball], size: [64, 96]"
    )
    path = write(tmp_path / "jobs.yaml", f"jobs: [{{clip: a, source: s, target: t, {lists}}}]")
    assert read_jobs(str(path))[0].error is None
    path = write(tmp_path / "jobs.yaml", "jobs: [{source: s, target: t}]")
    assert read_jobs(str(path), ["--video", "a"])[0].error is None


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line_before_torch(case, tmp_path, capsys):
    text, said = MISTAKES[case]
    path = tmp_path / "jobs.yaml"
    if text is not None:
        path.write_text(text)
    assert batch.main([str(path), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


CELLS = {
    "two columns": ("clip,video\na,b\n", "two columns 'video'"),
    "an unknown column": ("clip,taget\na,b\n", "Did you mean 'target'"),
    "a long row": ("clip,source\na,b,c\n", "row 1 has 3 cells, expected 2"),
    "an open quote": ('clip,source\na,"b\n', "is no CSV"),
    "null bytes": ("clip\n\0\n", "null bytes"),
    "empty": ("", "has no jobs"),
    "another encoding": (b"clip\n\xff\n", "not UTF-8"),
    "semicolons": ("clip;source\na;b\n", "jobs.csv, first row: job: unknown name 'clip;source'"),
    "semicolons are named": ("clip;source\na;b\n", "separated by ';', expected commas"),
    "tabs": ("clip\tsource\na\tb\n", "separated by '\\t', expected commas"),
    "a column without a name": ("clip,,source\na,b,c\n", "unknown name ''"),
}


@pytest.mark.parametrize("case", CELLS)
def test_cells_are_checked(case, tmp_path):
    text, said = CELLS[case]
    path = tmp_path / "jobs.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FzError, match=re.escape(said)):
        read_jobs(str(path))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_what_spreadsheets_write(end, tmp_path):
    path = tmp_path / "jobs.csv"
    path.write_bytes(b"\xef\xbb\xbf" + end.join(["clip,source,target,,", "a,b,c,,,", ",,,", "d,e,f"]).encode())
    said = [" ".join(job.argv) for job in read_jobs(str(path))]
    assert said == ["--video a --source b --target c", "--video d --source e --target f"]


def test_an_empty_path_is_no_folder(capsys):
    """As of `fz batch "$JOBS"` where nothing is in JOBS."""
    assert batch.main(["", "--dry-run"]) == 2 and "jobs: got an empty path" in capsys.readouterr().err


@pytest.mark.parametrize("video_id", [None, "", [1], {}])
def test_v2vbenchs_clips_have_names(video_id, tmp_path):
    entry = {"video_id": video_id, "prompt": "a", "edit": [{"prompt": "b"}]}
    write(tmp_path / "config.yaml", {"data": [entry]})
    with pytest.raises(FzError, match="as video_id, expected a sentence or a name"):
        read_jobs(str(tmp_path))
    frames(tmp_path / "images" / "001")
    for named in ("7", "001"):
        write(tmp_path / "config.yaml", f"data: [{{video_id: {named}, prompt: a, edit: [{{prompt: b}}]}}]")
        (job,) = read_jobs(str(tmp_path))
        assert job.name == named
    assert job.settings(tmp_path).clip.path == str(tmp_path / "images/001")


PLACES = {
    "no rank": ({"WORLD_SIZE": "2"}, "RANK not set"),
    "a rank alone": ({"RANK": "1"}, "RANK 1, WORLD_SIZE not set"),
    "none": ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE 0"),
    "beyond": ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK 2"),
    "below": ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK -1"),
    "text": ({"RANK": "a", "WORLD_SIZE": "2"}, "RANK a"),
    "empty": ({"RANK": "", "WORLD_SIZE": ""}, "RANK"),
    "local": ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "-5"}, "LOCAL_RANK -5"),
    "long": ({"RANK": "9" * 5000, "WORLD_SIZE": "9" * 5001}, "99999"),
}


@pytest.mark.parametrize("case", PLACES)
def test_a_place_that_is_none_is_refused(case, monkeypatch):
    given, said = PLACES[case]
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Place.of_environment() == Place(0, 1)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FzError, match=said) as caught:
        Place.of_environment()
    assert "Start it by torchrun" in str(caught.value) and len(str(caught.value)) < 300
    # a clip's processes would wait for one another for ever
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with pytest.raises(FzError, match="shard: got " + ("one process" if "RANK" not in given else f".*{said}")):
        Ranks(torch.device("cpu"))


def test_names_of_jobs_are_folders_of_their_own(tmp_path):
    jobs = [{"name": name, "clip": "a", "source": "b", "target": "c"} for name in ("../x", "X", "x", "failed", "...")]
    found = [job.name for job in read_jobs(str(write(tmp_path / "jobs.yaml", {"jobs": jobs})))]
    assert found == ["x", "x-2", "x-3", "failed-2", "a-c"]


def test_jobs_may_stand_after_two_dashes(tmp_path, capsys):
    path = write(tmp_path / "jobs.yaml", {"jobs": [{"clip": "gone.mp4", "source": "b", "target": "c"}]})
    for argv in (["--steps", "3", "--", str(path)], ["--report", "--", str(path)]):
        assert batch.main([*argv[:-2], "--dry-run", *argv[-2:]]) == 2
        said = capsys.readouterr()
        assert "gone.mp4 does not exist" in said.out and "bug" not in said.err
    parser = batch.build_parser()
    assert batch.of_runs(["--steps", "3", "--seed=4", "--", "--x.yaml"], parser) == ["--steps", "3", "--seed=4"]
    assert batch.main([str(path), "--", "--steps", "3"]) == 2 and "--steps" in capsys.readouterr().err


def test_flags_of_one_run_are_refused(tmp_path, capsys):
    path = write(tmp_path / "jobs.yaml", {"jobs": [{"clip": "a", "source": "b", "target": "c"}]})
    for flag, do in (
        (["--config", "x.yaml"], "Write it in a job, or pass a folder of configs"),
        (["--sweep", "threshold=0.1,0.2"], "Use fz.run."),
        (["--list-words"], "Use fz.run."),
        (["--shard"], "A batch's processes do a job each."),
    ):
        assert batch.main([str(path), *flag]) == 2
        assert f"about one run. {do}" in capsys.readouterr().err
    for name in ("sweep: [threshold=0.1]", "list_words: true", "shard: true"):
        (job,) = read_jobs(str(write(tmp_path / "jobs.yaml", f"jobs: [{{clip: a, source: b, target: c, {name}}}]")))
        assert "is about one run. Use fz.run." in job.error
    path = write(tmp_path / "jobs.yaml", {"jobs": [{"clip": "a", "source": "b", "target": "c"}]})
    assert batch.main([str(path), "--stepps", "3"]) == 2 and "Did you mean '--steps'" in capsys.readouterr().err


def test_a_job_may_be_fast(tmp_path):
    own = {"clip": "a", "source": "b", "target": "c", "checkpoint": "x"}
    shared = {"shared": {"fast": True}, "jobs": [own, {**own, "fast": False}, {**own, "steps": 7}]}
    found = [job.settings(tmp_path) for job in read_jobs(str(write(tmp_path / "jobs.yaml", shared)))]
    assert [(s.steps, s.reuse) for s in found] == [(18, "2:outer"), (50, 1), (7, "2:outer")]
    with open(tmp_path / "jobs.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([[*own, "fast"], [*own.values(), "yes"]])
    (job,) = read_jobs(str(tmp_path / "jobs.csv"))
    assert job.settings(tmp_path).steps == 18


def test_a_jobs_own_names_go_before_its_config(tmp_path):
    edits = {"editing_prompts": ["a blue car"], "prompt2prompt_edit": True, "num_inference_steps": 30}
    edits["p2p_config"] = {0: {"cross_replace_steps": 0.2, "self_replace_steps": 0.6}}
    write(tmp_path / "a.yaml", {"dataset_config": {"path": "clip", "prompt": SOURCE}, "editing_config": edits})
    own = {"config": "a.yaml", "checkpoint": "x"}
    said = [own, {**own, "edit": "style"}, {**own, "edit": "style", "self-replace": 0.4}, {**own, "fast": True}]
    found = [job.settings(tmp_path) for job in read_jobs(str(write(tmp_path / "jobs.yaml", {"jobs": said})))]
    shares = [(s.edits[0].cross_replace[1], s.edits[0].self_replace[1]) for s in found]
    assert shares == [(0.2, 0.6), (0.7, 0.8), (0.7, 0.4), (0.2, 0.6)] and [s.steps for s in found] == [30, 30, 30, 12]
    for_all = read_jobs(str(tmp_path / "jobs.yaml"), ["--edit", "style"])[0].settings(tmp_path)
    assert for_all.edits == found[1].edits


def test_every_flag_that_help_lists_is_a_jobs_or_the_batchs(tmp_path, capsys):
    """And its defaults are those of its jobs, which are the miniature's unless they name a checkpoint."""
    assert batch.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert not re.search(r"--(config|sweep|list-words|shard)\b", text)
    assert "(default: 50; with the bundled miniature 20)" in " ".join(text.split())
    listed = {found[1] for found in re.finditer(r"^  --([a-z-]+)", text, re.MULTILINE)} - {"edit-masks", "version"}
    assert len(listed) > 60
    for name in listed - set(KEYS):
        with pytest.raises(FzError, match="which the batch decides"):
            check_key(name)


# ---- doing them ------------------------------------------------------------------------------------------------

SMALL = ["--steps", "2", "--frames", "2", "--size", "64", "--threads", "1"]


def content(out):
    """Every file of a batch's folder but what tells the time."""
    found = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.name == "run.json":
            run = json.loads(data)
            for key in ("started", "finished", "stages", "inputs"):
                run.pop(key, None)
            data = json.dumps(run, sort_keys=True).replace(str(out), "OUT").encode()
        found[str(path.relative_to(out))] = data.replace(str(out).encode(), b"OUT")
    return found


def test_two_processes_begin_no_clip_at_once_while_there_are_others(tmp_path, example):
    """Both would invert it; where nothing else is left, they do."""
    own = {"clip": str(example), "source": SOURCE}
    jobs = [
        {"name": "first", "target": TARGET, **own},
        {"name": "second", "target": "a green car", **own},
        {"name": "later", "target": TARGET, "start": 4, **own},
        {"name": "broken", "target": TARGET, "reweight": {"gone": 2}, **own},
    ]
    found = read_jobs(str(write(tmp_path / "jobs.yaml", {"jobs": jobs})), SMALL)
    queue, done = Queue(found, tmp_path / "out", Place(), Progress()), []
    queue.start(overwrite=False)
    other = Lock(queue.out, name=claim("first"))

    def do(job):
        done.append(job.name)
        if len(done) == 3:
            other.release()

    queue.do, queue.finished = do, lambda job: job.name in done
    queue.work()
    assert done == ["later", "broken", "second", "first"]


def test_a_failing_job_leaves_its_line_and_the_others_run(tmp_path, example, capsys, monkeypatch):
    hashed = []
    monkeypatch.setattr(inversions, "digest_of", lambda state, of=inversions.digest_of: hashed.append(1) or of(state))
    masks = frames(tmp_path / "masks", 8, (128, 128), (255, 255, 255))
    Image.new("RGB", (128, 128)).save(masks / "00000.png")
    jobs = [
        {"name": "one", "clip": str(example), "source": SOURCE, "target": TARGET, "masks": str(masks)},
        {"name": "gone", "clip": "gone.mp4", "source": SOURCE, "target": TARGET},
        {"name": "word", "clip": str(example), "source": SOURCE, "target": TARGET, "reweight": {"green": 2}},
        {"name": "two", "clip": str(example), "source": SOURCE, "target": "=a green car on sand", "report": True},
    ]
    path, out = write(tmp_path / "jobs.yaml", {"jobs": jobs}), tmp_path / "out"
    flags = [str(path), *SMALL, "--out", str(out), "--cache", str(tmp_path / "cache")]
    assert batch.main([*flags, "--dry-run"]) == 2 and not out.exists()
    said = capsys.readouterr().out
    assert "one: fine" in said and "gone: video: gone.mp4 does not exist" in said and "'green' is not in" in said
    assert batch.main(flags) == 2
    said, err = capsys.readouterr()
    assert "2 of 4 jobs failed" in err and "word: failed. reweight: 'green'" in said
    assert len(hashed) == 2, "the UNet's and the VAE's weights, once for all jobs"
    rows = list(csv.DictReader((out / "batch.csv").open(encoding="utf-8")))
    assert [(row["job"], row["status"]) for row in rows] == [
        ("one", "done"), ("gone", "failed"), ("word", "failed"), ("two", "done")]  # fmt: skip
    assert rows[0]["psnr_background"] and rows[0]["masks"] == "given" and not rows[3]["psnr_background"]
    assert rows[3]["target"] == "'=a green car on sand" and (out / "two" / "report.html").is_file()
    page = (out / "batch.html").read_text()
    assert 'src="one/edit-0.gif"' in page and "gone.mp4 does not exist" in page
    # once more: what is done stays, what failed is tried again, and now succeeds
    before = {p: p.stat().st_mtime_ns for p in (out / "one").rglob("*")}
    jobs[1]["clip"] = str(example)
    write(path, {"jobs": jobs[:2]})
    assert batch.main(flags) == 0
    assert before == {p: p.stat().st_mtime_ns for p in (out / "one").rglob("*")}
    assert not (out / "failed" / "gone.json").exists() and "failed" not in (out / "batch.csv").read_text()
    # another's folder is not written into
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    assert batch.main([*flags, "--out", str(tmp_path / "other")]) == 2
    assert "holds other files" in capsys.readouterr().err


def test_a_start_that_cannot_end_well_is_refused_first(tmp_path, example, capsys):
    """By the run and by the dry run, before anything is computed."""
    job = {"name": "mine", "clip": str(example), "source": SOURCE, "target": TARGET}
    path, out = write(tmp_path / "jobs.yaml", {"jobs": [job]}), tmp_path / "out"

    def refused(*flags):
        said = []
        for more in ([], ["--dry-run"]):
            before = sorted(out.rglob("*"))
            assert batch.main([str(path), *SMALL, "--out", str(out), *flags, *more]) == 2
            assert before == sorted(out.rglob("*"))
            said.append(capsys.readouterr().err)
        assert said[0] == said[1]
        return said[0]

    assert "clip: nowhere does not exist" in refused("--clip-model", "nowhere")
    write(out / "mine.txt", "mine")
    assert "holds other files" in refused()
    (out / "mine.txt").unlink()
    write(out / "jobs.json", {"jobs": [{"name": "other", "argv": []}]})
    assert "holds another batch's results (other), none of these jobs" in refused()
    write(out / "jobs.json", {"jobs": [{"name": "mine", "argv": []}, {"name": "other", "argv": []}]})
    write(out / "failed", "mine")
    assert "failed is a file" in refused()


@pytest.mark.parametrize("name", ["jobs.json", "batch.csv", "batch.html", "a/evaluation.csv", "a/report.html"])
def test_files_of_the_users_with_a_batchs_names_stay(name, tmp_path, example, capsys):
    """Also where everything may be overwritten, and before anything is computed."""
    job = {"name": "a", "clip": str(example), "source": SOURCE, "target": TARGET, "report": True}
    path, out = write(tmp_path / "jobs.yaml", {"jobs": [job]}), tmp_path / "out"
    write(out / name, "mine")
    for more in (["--dry-run"], []):
        assert batch.main([str(path), *SMALL, "--overwrite", "--out", str(out), *more]) == 2
        said = capsys.readouterr()
        assert f"{out / name} is " in said.out + said.err and (out / name).read_text() == "mine"
        assert not (out / "a/run.json").exists()


DAMAGED = {
    "cut short": '[{"re',
    "empty": "[]",
    "a number that is text": '[{"result": "a", "edit": 0, "source": "s", "target": "t", "tem_con": "abc"}]',
    "no number": '[{"result": "a", "edit": 0, "source": "s", "target": "t", "tem_con": NaN}]',
    "a list for a name": '[{"result": "a", "edit": 0, "source": "s", "target": "t", "clip": [1]}]',
}


def test_a_damaged_measurement_is_made_again(tmp_path, example, capsys):
    job = {"name": "a", "clip": str(example), "source": SOURCE, "target": TARGET}
    bad = {"name": "b", "clip": "\udcff.mp4", "source": SOURCE, "target": TARGET}
    path, out = write(tmp_path / "jobs.yaml", {"jobs": [job]}), tmp_path / "out"
    flags = [str(path), *SMALL, "--out", str(out), "--cache", str(tmp_path / "cache")]
    assert batch.main(flags) == 0
    file, edited = out / "a" / "evaluation.json", out / "a" / "edit-0.mp4"
    whole, when = file.read_bytes(), edited.stat().st_mtime_ns
    for case, text in DAMAGED.items():
        file.write_text(text)
        assert batch.main(flags) == 0 and "bug" not in capsys.readouterr().err, case
        assert file.read_bytes() == whole and edited.stat().st_mtime_ns == when, case
    # a name that is no text, as of a file of another system, leaves the tables whole
    write(path, {"jobs": [job, bad]})
    assert batch.main(flags) == 2 and "1 of 2 jobs failed" in capsys.readouterr().err
    assert r"\udcff.mp4" in (out / "batch.csv").read_text(encoding="utf-8")


def test_what_is_asked_of_a_done_job_is_measured_again_and_not_run_again(tmp_path, example, capsys):
    masks = frames(tmp_path / "masks", 8, (128, 128), (255, 255, 255))
    Image.new("RGB", (128, 128)).save(masks / "00000.png")
    job = {"name": "a", "clip": str(example), "source": SOURCE, "target": TARGET}
    path, out = write(tmp_path / "jobs.yaml", {"jobs": [job]}), tmp_path / "out"
    flags = [str(path), *SMALL, "--out", str(out), "--cache", str(tmp_path / "cache")]

    def row(*more):
        assert batch.main([*flags, *more]) == 0
        return json.loads((out / "batch.json").read_text())[0]

    assert (row()["clip"], row()["masks"]) == ("clip", None)
    when = (out / "a" / "edit-0.mp4").stat().st_mtime_ns
    measured = (out / "a" / "evaluation.json").stat().st_mtime_ns
    assert row()["masks"] is None and (out / "a" / "evaluation.json").stat().st_mtime_ns == measured
    write(path, {"jobs": [{**job, "masks": str(masks)}]})
    assert (found := row())["masks"] == "given" and found["psnr_background"] is not None
    assert row("--clip-model", "none")["clip"] is None
    assert not (out / "a" / "report.html").exists()
    row("--report")
    assert (out / "a" / "report.html").is_file()
    write(path, {"jobs": [job]})
    assert (found := row())["masks"] is None and found["psnr_background"] is None and found["clip"] == "clip"
    assert (out / "a" / "edit-0.mp4").stat().st_mtime_ns == when, "nothing was run again"


def twelve(tmp_path, example):
    """12 jobs of three clips: some share an inversion."""
    sources = {8: "a red car moving on the sand", 4: "a red car on the sand"}
    jobs = []
    for i in range(12):
        clip = (0, 4)[i % 2]
        source = list(sources.values())[i % 2]
        target = source.replace("red", ("blue", "green", "yellow", "purple", "white", "black")[i // 2])
        jobs.append({"name": f"job-{i:02d}", "clip": str(example), "start": clip, "source": source, "target": target})
    return write(tmp_path / "jobs.yaml", {"jobs": jobs})


def environment(cache):
    return os.environ | {"OMP_NUM_THREADS": "1", "FZ_CACHE": str(cache)}


def torchrun(path, out, cache):
    """The batch by two processes, each of one thread."""
    flags = [str(path), *SMALL, "--out", str(out)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29617"]
    return subprocess.Popen(
        [*command, "-m", "fz.batch", *flags], env=environment(cache), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ranks(group):
    """The batch's own processes, by rank."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_bytes().split(b"\0")
            environment = dict(e.partition(b"=")[::2] for e in (place / "environ").read_bytes().split(b"\0"))
        except OSError:
            continue
        of = int(environment.get(b"RANK", b"-1"))
        if b"fz.batch" in command and of >= 0 and os.getpgid(int(place.name)) in (group, int(place.name)):
            found[of] = int(place.name)
    return found


@pytest.mark.slow
def test_two_ranks_one_killed_and_restarted_give_one_processs_bytes(tmp_path, example):
    path = twelve(tmp_path, example)
    alone = tmp_path / "alone"
    flags = [str(path), *SMALL, "--out", str(alone)]
    done = subprocess.run([sys.executable, "-m", "fz.batch", *flags], env=environment(tmp_path / "cache-1"),
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    out, cache = tmp_path / "ranks", tmp_path / "cache-2"
    first = torchrun(path, out, cache)
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and len(list(out.glob("job-*/evaluation.json"))) < 3:
        time.sleep(0.05)
    there = ranks(first.pid)
    assert set(there) == {0, 1}
    os.kill(there[1], signal.SIGKILL)
    assert first.wait(timeout=120) != 0
    finished = len(list(out.glob("job-*/evaluation.json")))
    assert 3 <= finished < 12, "killed too late to show anything"
    again = torchrun(path, out, cache)
    said, _ = again.communicate(timeout=900)
    assert again.returncode == 0, said
    one, two = content(alone), content(out)
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
    assert len(list(csv.DictReader((out / "batch.csv").open(encoding="utf-8")))) == 12
    assert not [p.name for p in out.iterdir() if p.name.startswith(".")]


@pytest.mark.slow
def test_a_dead_ranks_job_is_taken_over_by_one_that_runs(tmp_path, example):
    """Two processes of their own, without torchrun, which would end the other."""
    path, out = twelve(tmp_path, example), tmp_path / "out"
    flags = [sys.executable, "-m", "fz.batch", str(path), *SMALL, "--out", str(out), "--cache", str(tmp_path / "cache")]
    both = [
        subprocess.Popen(flags, env=os.environ | {"OMP_NUM_THREADS": "1", "RANK": str(rank), "WORLD_SIZE": "2"},
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in (0, 1)
    ]  # fmt: skip
    while len(list(out.glob("job-*/evaluation.json"))) < 2:
        assert all(process.poll() is None for process in both)
        time.sleep(0.05)
    both[0].kill()
    both[0].wait()
    said, _ = both[1].communicate(timeout=900)
    assert both[1].returncode == 0, said
    rows = list(csv.DictReader((out / "batch.csv").open(encoding="utf-8")))
    assert len(rows) == 12 and {row["status"] for row in rows} == {"done"}
