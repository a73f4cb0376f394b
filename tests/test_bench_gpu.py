"""`bench.gpu` without a GPU: every stage in small, so that it does not fail on the day for a reason that is here."""

import json
import subprocess
import sys
import time

import pytest
import torch

from fz.errors import FzError
from fz.results.lock import Lock

pytest.importorskip("triton")

from bench import gpu, gpu_kernels, gpu_stages, gpu_steps  # noqa: E402
from bench.gpu_record import Record  # noqa: E402
from bench.gpu_run import HOST, Run  # noqa: E402

# the machine to expect has none of these
BARE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("av", "diffusers", "xformers", "imageio", "PIL", "transformers", "tokenizers"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
from bench import gpu
sys.exit(gpu.main(sys.argv[1:]))
"""


CPU = torch.device("cpu")
RIGHT = [{"case": "self", "right": True}]


def dry(root, out, *more):
    command = [sys.executable, "-c", BARE, "--dry", "--out", str(out), *more]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=900)


def rows_in(path):
    return json.loads(path.read_text())["rows"]


def checked(folder, rows=RIGHT, done=True, **about):
    """As if stage 2 had been run in small here."""
    record = Record.of(folder, CPU, dry=True)
    record.about.update(about)
    record.write("2-check", rows, done)
    return record


@pytest.fixture
def stages(monkeypatch):
    """STAGES with others in the place of some; the rest have no rows. Names of those that ran."""
    ran = []

    def put(**others):
        def stage(name):
            def run(run):
                ran.append(name)
                return others.get(name, lambda run: RIGHT if name == "check" else [])(run)

            run.__name__ = name
            return run

        monkeypatch.setattr(gpu_stages, "STAGES", tuple(stage(name) for name in gpu.STAGES))
        return ran

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return put


def test_a_stage_in_small_without_av_and_diffusers(root, tmp_path):
    checked(tmp_path)
    done = dry(root, tmp_path, "--only", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_in(tmp_path / "4-layers.json")
    assert {row["way"] for row in rows} == {"this", "torch"} and all(row["ms"] > 0 for row in rows)


@pytest.mark.slow
def test_every_stage_in_small(root, tmp_path):
    done = dry(root, tmp_path)
    assert done.returncode == 0 and "failed" not in done.stdout, done.stdout + done.stderr
    assert len(list(tmp_path.glob("*.json"))) == len(gpu.STAGES)
    found = rows_in(tmp_path / "2-check.json")
    assert len(found) > 20 and all(row["right"] for row in found)
    ways = {row["way"] for row in rows_in(tmp_path / "5-whole_steps.json") if "ms" in row}
    assert {"forward, float32", "edit, memory, compiled", "edit, in a run"} <= ways


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu.main([]) == 2
    assert "--dry runs every stage" in capsys.readouterr().err


def test_a_wrong_kernel_ends_the_run(stages, tmp_path, capsys):
    ran = stages(check=lambda run: [{"case": "self", "right": False}])
    assert gpu.main(["--dry", "--out", str(tmp_path)]) == 1 and ran[-1] == "check"
    assert "1 wrong, first self" in capsys.readouterr().out
    for number in range(3, len(gpu.STAGES)):
        assert gpu.main(["--dry", "--out", str(tmp_path), "--only", str(number)]) == 2 and ran[-1] == "check"
    assert "1 wrong, first self. Run --only 2 first." in capsys.readouterr().err


def test_a_case_that_raises_is_wrong_and_no_other_is_lost(stages, monkeypatch, tmp_path, capsys):
    def illegal():
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with …")

    made = [("first", lambda: {"case": "first", "right": True}), ("second", lambda: {"case": "second", "right": False}),
            ("third", illegal), ("fourth", lambda: {"case": "fourth", "right": True})]  # fmt: skip
    monkeypatch.setattr(gpu_kernels, "cases", lambda small, device: iter(made))
    monkeypatch.setattr(gpu_steps, "watched", lambda *a: [])
    ran = stages(check=gpu_stages.check)
    assert gpu.main(["--dry", "--out", str(tmp_path)]) == 1 and ran[-1] == "check"
    rows = rows_in(tmp_path / "2-check.json")
    assert [row["right"] for row in rows] == [True, False, False, True]
    assert rows[2]["raised"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert "2 wrong, first second" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "done", "about", "why"),
    [
        (RIGHT, True, {"kernels": "other"}, "not checked on"),
        (RIGHT, False, {}, "not all kernels were checked"),
        ([], True, {}, "not all kernels were checked"),
        ([*RIGHT, {"case": "the rest", "skipped": True, "right": None}], True, {}, "not all kernels were checked"),
        ([*RIGHT, {"failed": "OSError: …"}], True, {}, "not all kernels were checked"),
        ([*RIGHT, {"case": "cross", "right": False}], True, {}, "1 wrong, first cross"),
    ],
)
def test_a_stage_is_timed_only_where_all_kernels_were_right(stages, tmp_path, capsys, rows, done, about, why):
    ran = stages()
    line = ["--dry", "--out", str(tmp_path), "--only", "3"]
    assert gpu.main(line) == 2 and not ran
    assert "not checked on" in capsys.readouterr().err
    checked(tmp_path, rows, done, **about)
    assert gpu.main(line) == 2 and not ran
    assert why in capsys.readouterr().err
    checked(tmp_path)
    assert gpu.main(line) == 0 and ran == ["attention"]


def test_what_was_not_checked_for_want_of_time_is_not_timed(stages, tmp_path, capsys):
    ran = stages(check=lambda run: [*RIGHT, {"case": "the rest", "skipped": True, "right": None}])
    assert gpu.main(["--dry", "--out", str(tmp_path)]) == 1 and ran[-1] == "check"
    assert "stage 3 attention: not timed, not all kernels were checked" in capsys.readouterr().out


def test_rows_before_a_failure_are_kept(stages, tmp_path, capsys):
    def layers(run):
        yield {"site": "norm 8x8 C32", "way": "this", "ms": 1.0}
        raise RuntimeError("out of registers")

    ran = stages(layers=layers)
    assert gpu.main(["--dry", "--out", str(tmp_path)]) == 1 and ran[-1] == "profile"
    rows = rows_in(tmp_path / "4-layers.json")
    assert rows == [{"site": "norm 8x8 C32", "way": "this", "ms": 1.0}, {"failed": "RuntimeError: out of registers"}]


def test_one_way_of_a_step_that_fails_costs_no_other(stages, monkeypatch, tmp_path):
    def broken(*_):
        raise RuntimeError("another version of it")

    def out_of_memory(run, size, frames, dtype=torch.float16, at=gpu_steps.steps_on):
        if dtype == torch.float32:
            raise torch.cuda.OutOfMemoryError("tried to allocate")
        return at(run, size, frames, dtype)

    monkeypatch.setattr(gpu_steps, "diffusers_unet", broken)
    monkeypatch.setattr(gpu_steps, "compile_layers", broken)
    monkeypatch.setattr(gpu_steps, "steps_on", out_of_memory)
    monkeypatch.setattr(Run, "clock", lambda self, f, repeat=7: 1.0)
    stages(whole_steps=gpu_steps.whole_steps)
    checked(tmp_path)
    assert gpu.main(["--dry", "--out", str(tmp_path), "--only", "5"]) == 1
    rows = {row["way"]: row for row in rows_in(tmp_path / "5-whole_steps.json")}
    failed = {way for way, row in rows.items() if "failed" in row}
    assert failed == {"forward, diffusers", "edit, memory, compiled"}
    assert rows["forward, float32"]["cannot"] == "out of memory"
    assert rows["edit, memory, maps"]["ms"] == 1.0 and rows["edit, in a run"]["ms"] > 0


def test_a_site_that_fails_costs_no_other(monkeypatch):
    def steps_of(run, size, frames, site):
        yield {"site": site, "way": "forward", "ms": 1.0}
        raise RuntimeError("no") if size == 256 else torch.cuda.OutOfMemoryError("no")

    monkeypatch.setattr(gpu_steps, "steps_of", steps_of)
    monkeypatch.setattr(gpu_steps, "compiled", lambda *a: iter([{"way": "compiled"}]))
    rows = list(gpu_steps.whole_steps(Run(CPU, False, time.monotonic(), 1000.0)))
    assert [row.get("failed", row.get("cannot")) for row in rows[1:-1:2]] == [
        "out of memory", "RuntimeError: no", "out of memory", "RuntimeError: no", "out of memory",
    ]  # fmt: skip
    assert len(rows) == 11 and rows[-1] == {"way": "compiled"}


def test_a_folder_is_one_devices_and_one_processes(stages, tmp_path, monkeypatch, capsys):
    ran = stages()
    monkeypatch.chdir(tmp_path)
    assert gpu.main(["--dry", "--only", "0"]) == 0 and ran == ["card"]
    assert [p.name for p in tmp_path.iterdir()] == ["gpu-run-dry"]
    with Lock(tmp_path / "gpu-run-dry"):
        assert gpu.main(["--dry", "--only", "0"]) == 2 and ran == ["card"]
    assert "is being written by" in capsys.readouterr().err
    file = tmp_path / "gpu-run-dry/0-card.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps(about | {"device": "NVIDIA H100", "dry": False}))
    before = file.read_bytes()
    assert gpu.main(["--dry", "--only", "0"]) == 2 and ran == ["card"] and file.read_bytes() == before
    assert "is of NVIDIA H100; this run is of" in capsys.readouterr().err
    # what an earlier bench.gpu wrote says no device
    file.write_text("[]")
    with pytest.raises(FzError, match="another version of this bench"):
        Record.of(tmp_path / "gpu-run-dry", CPU, dry=True)


def test_each_pass_over_attention_has_half_of_the_time(monkeypatch):
    """And what the second one had no time for keeps the first one's milliseconds."""
    untils = []

    def attention(device, small, until, clock):
        untils.append(until)
        for way, ms in (("plain, this (table)", 2.0), ("plain, CUDNN_ATTENTION", 1.0)):
            row = {"site": "D40 N4096", "way": way}
            yield row | ({"skipped": True} if len(untils) == 2 and ms == 1.0 else {"ms": ms - 0.5 * (len(untils) - 1)})

    monkeypatch.setattr(gpu_kernels, "attention", attention)
    run = Run(torch.device("cuda"), False, time.monotonic(), 460.0)
    rows = list(gpu_stages.attention(run))
    assert untils[1] == run.until(3) and untils[0] - run.start == pytest.approx(125, abs=2)
    assert [(row.get("ms"), row[HOST]) for row in rows] == [(1.5, 2.0), (None, 1.0)]
    # one clock for both: 2.0 against 1.0, not 1.5
    assert gpu_stages.decisions({3: rows})[0] == (
        "D40 N4096 plain: plain, this (table), 0.50 x as fast as plain, CUDNN_ATTENTION"
    )


@pytest.mark.parametrize(
    ("code", "said", "right"),
    [
        (0, "22 cases, wrong: none", True),
        (1, "22 cases, wrong: self D40", False),
        (9, "22 cases, wrong: none", False),
        (1, "Traceback …\nImportError: libcuda.so.1 is missing", None),
        (0, "", None),
    ],
)
def test_a_watched_process_that_checked_nothing_is_not_called_right(monkeypatch, code, said, right):
    done = subprocess.CompletedProcess([], code, stdout=said, stderr="")
    monkeypatch.setattr(gpu_steps.subprocess, "run", lambda *a, **k: done)
    (row,) = gpu_steps.watched(Run(CPU, True, 0.0, 1.0), "compute-sanitizer", gpu_steps.MEMCHECK, 30)
    assert row["right"] is right


def test_predictions_stand_beside_measurements():
    rows = [{"site": "D40 N4096", "way": "cross, this", "ms": 0.05}, {"site": "D40 N4096", "way": "other", "ms": 1.0}]
    gpu_stages.predicted(3, rows)
    assert rows[0]["predicted"] == gpu_stages.PREDICTIONS[3, "D40 N4096", "cross, this"] and "predicted" not in rows[1]


def test_measurements_decide():
    def rows(site, **ms):
        return [
            {"site": site, "way": way.replace("_", ", ").replace("THIS", "this (table)"), "ms": t}
            for way, t in ms.items()
        ]

    found = {
        3: rows(
            "D40 N4096", plain_THIS=2.0, plain_CUDNN=1.0, fused_THIS=1.0, fused_two=3.0, cross_this=3.0, cross_SDPA=2.0
        ),
        4: rows("norm 8x8", this=1.0, torch=3.5),
        5: rows("512, 8 frames", edit_graph=9.0) + [{"site": "512, 8 frames", "way": "edit, in a run", "ms": 10.0}],
    }
    assert gpu_stages.decisions(found) == [
        "D40 N4096 plain: plain, this (table), 0.50 x as fast as plain, CUDNN",
        "D40 N4096 plain: take plain, CUDNN",
        "D40 N4096 fused: fused, this (table), 3.00 x as fast as fused, two",
        "D40 N4096 cross, plain: take SDPA",
        "the norm kernel saves 2.500 ms in one norm of each level; from 2 ms a step on it stays",
        "512, 8 frames: graphs stay, 1.11 x as fast",
    ]
    assert gpu_stages.decisions({}) and gpu_stages.decisions({3: rows("D40 N4096", plain_THIS=2.0)})[0] == (
        "D40 N4096 plain: undecided, not both were timed"
    )
