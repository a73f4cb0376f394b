"""What the machine offers: memory as it is reported to a person."""

import signal
import subprocess
import sys
import time

import pytest
import torch
from processes import alive

from fz.errors import FzError
from fz.memory.machine import peak_memory, pick_device, settle_dtype

PEAK = "import torch; from fz.memory.machine import peak_memory; print(peak_memory(torch.device('cpu')))"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system's own figure is taken")
def test_peak_memory_is_the_programs_own_and_not_its_starters():
    held = torch.ones(300_000_000)  # 1.2 GB, more than a program that imports torch
    peak = int(subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True).stdout)
    assert 5e7 < peak < held.nbytes < peak_memory(torch.device("cpu"))


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(before // 4 + 50_000_000)
    assert peak_memory(torch.device("cpu")) >= held.nbytes > before


POOL = """
import multiprocessing, time
from concurrent.futures import ProcessPoolExecutor
from fz.memory.machine import start_alone
if __name__ == "__main__":
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), initializer=start_alone) as pool:
        jobs = [pool.submit(time.sleep, 600) for _ in range(2)]
        pool.submit(time.sleep, 0)
        print(*(process.pid for process in multiprocessing.active_children()), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_processes_beside_others_leave_with_the_one_that_started_them(tmp_path):
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    pool = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert len(pool.stdout.readline().split()) == 2 and len(alive(pool.pid)) > 2
    time.sleep(3)  # they are at work by now, or about to begin: both must end
    pool.send_signal(signal.SIGKILL)
    pool.wait()
    deadline = time.monotonic() + 120
    while alive(pool.pid):
        assert time.monotonic() < deadline, "a killed program leaves processes at work"
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("device", "asked", "expected", "said"),
    [
        ("cuda", "auto", "float16", "float16"),
        ("cuda", "float32", "float32", "TF32 is off"),
        ("cuda", "bfloat16", "bfloat16", None),
        ("cpu", "auto", "float32", None),
        ("mps", "auto", "float32", None),
        ("cpu", "float16", "float16", None),
    ],
)
def test_half_precision_is_the_default_on_cuda_only(device, asked, expected, said):
    dtype, line = settle_dtype(asked, torch.device(device))
    assert dtype == expected and (line is None if said is None else said in line)


@pytest.fixture
def two_gpus(monkeypatch):
    """Numbers of the GPUs that were made the current one."""
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    yield current
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize(("name", "off"), [("cuda", True), ("cuda:1", True), ("auto", True), ("cpu", False)])
def test_a_gpu_that_is_picked_does_not_round_to_tf32(two_gpus, name, off):
    assert pick_device(name).type == ("cpu" if name == "cpu" else "cuda")
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (not off, not off)


class Picked(Exception):
    pass


def test_a_tuning_does_not_either(two_gpus, tmp_path, monkeypatch):
    from fz.tuning import run as tuning
    from fz.tuning.settings import parse

    def load(settings):
        assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
        raise Picked

    monkeypatch.setattr(tuning, "load", load)
    settings, _ = parse(["--video", "clip", "--prompt", "a car", "--out", str(tmp_path / "o"), "--device", "cuda"])
    with pytest.raises(Picked):
        tuning.tune(settings)


def test_one_of_several_gpus(two_gpus):
    assert pick_device("cuda:1") == torch.device("cuda", 1) and two_gpus == [1]
    with pytest.raises(FzError, match="got cuda:2, expected cuda:0 to cuda:1"):
        pick_device("cuda:2")
    with pytest.raises(FzError, match="got tpu:0"):
        pick_device("tpu:0")


BARE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("av", "diffusers", "xformers"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import fz.pipeline, fz.run, bench.edit, bench.attention
from fz.clips.decode import open_source
from fz.errors import FzError
try:
    open_source(sys.argv[1])
except FzError as error:
    print(error)
"""


def test_everything_but_videos_runs_without_pyav(tmp_path, root):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"1234")
    run = subprocess.run([sys.executable, "-c", BARE, str(path)], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "needs PyAV, which is not installed" in run.stdout
