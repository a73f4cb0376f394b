"""A run that is killed at any moment and started again gives the same bytes, and does no step again that it had
done.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

TIMINGS = ("started", "finished", "stages")


def command(shared, out, store, *more):
    return [
        sys.executable,
        "-m",
        "fz.run",
        "--video",
        str(shared / "data/jeep"),
        "--checkpoint",
        str(shared / "golden/tiny_sd"),
        "--source",
        "a silver jeep driving down a road",
        "--target",
        "a red jeep driving down a road",
        "--target",
        "a silver car on a road",
        "--size",
        "128",
        "--frames",
        "4",
        "--steps",
        "12",
        "--store",
        store,
        "--threads",
        "1",
        "--device",
        "cpu",
        "--save-latents",
        "--out",
        str(out),
        *more,
    ]


def content(folder):
    """Digest of every file of a result folder; of run.json without its timings."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.name == "run.json":
            run = json.loads(data)
            data = json.dumps({k: v for k, v in run.items() if k not in TIMINGS}).encode()
        files[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return files


def steps_on_disk(cache):
    return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in cache.rglob("steps/*.safetensors")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("store", "more"),
    [
        ("recompute", ()),
        ("disk", ()),
        ("recompute", ("--solver", "dpm++2m")),
        ("disk", ("--solver", "dpm++2m", "--reuse", "3")),
    ],
)
def test_a_run_killed_ten_times_gives_the_same_bytes(shared, tmp_path, store, more):
    def run(name):
        environment = os.environ | {"FZ_CACHE": str(tmp_path / f"cache-{name}"), "OMP_NUM_THREADS": "1"}
        environment |= {"PYTHONUNBUFFERED": "1"}  # what a killed run has said is read
        arguments = command(shared, tmp_path / name, store, *more)
        return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    start = time.monotonic()
    whole = run("whole")
    assert whole.communicate()[0] is not None and whole.returncode == 0
    seconds = time.monotonic() - start

    chance = random.Random(0)
    seen, said = {}, ""
    for kill in range(10):
        process = run("killed")
        try:
            # later kills later, so that every stage is met
            process.wait(chance.uniform(0.3, 1.0) * seconds * (0.4 + 0.05 * kill))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        now = steps_on_disk(tmp_path / "cache-killed")
        assert all(now[path] == before for path, before in seen.items()), "a step that was done was done again"
        seen, said = now, said + process.stdout.read()
    last = run("killed")
    output = last.communicate()[0]
    assert last.returncode == 0, output
    assert "steps are in" in said + output, "nothing was gone on from"
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert not list((tmp_path / "cache-killed").rglob("operands")), "queries and keys are removed when done"
    assert not list((tmp_path / "cache-killed").rglob("edit-*"))


@pytest.mark.slow
def test_two_runs_at_once_on_one_inversion(shared, tmp_path):
    environment = os.environ | {"FZ_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    runs = [subprocess.Popen(command(shared, tmp_path / name, "disk"), env=environment, **pipes) for name in ("a", "b")]
    for process in runs:
        output = process.communicate()[0]
        assert process.returncode == 0, output
        assert "damaged" not in output
    a, b = (content(tmp_path / name) for name in ("a", "b"))
    assert a == b
