"""What the machine offers: memory as it is reported to a person."""

import ctypes
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from processes import alive

from fz.errors import FzError
from fz.memory import budget, free
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
from fz.memory.workers import start_alone
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


# ---- what is free, on other systems ------------------------------------------------------------------------

PAGE, GB = 4096, 10**9
# what `sysconf` tells there, in pages
SYSTEMS = {
    "mac": {"SC_PHYS_PAGES": 64 * GB // PAGE},
    "mac that does not tell": {"SC_PHYS_PAGES": 64 * GB // PAGE},
    "bsd": {"SC_PHYS_PAGES": 64 * GB // PAGE, "SC_AVPHYS_PAGES": 20 * GB // PAGE},
    "windows": None,
    "unknown": {},
}


MAC_PAGE = 16384
VM_STAT = f"""Mach Virtual Memory Statistics: (page size of {MAC_PAGE} bytes)
Pages free:                              {4 * GB // MAC_PAGE}.
Pages active:                            {30 * GB // MAC_PAGE}.
Pages inactive:                          {20 * GB // MAC_PAGE}.
Pages speculative:                       {1 * GB // MAC_PAGE}.
Pages wired down:                        {9 * GB // MAC_PAGE}.
"Translation faults":                    123.
"""
MAC_FREE = sum(n * GB // MAC_PAGE for n in (4, 20, 1)) * MAC_PAGE


class Kernel32:
    """Of a Windows with 64 GB, of which 48 are available."""

    def GlobalMemoryStatusEx(self, status):
        found = status._obj
        if found[0] != ctypes.sizeof(found) == 64:
            return 0
        found[1:3] = 64 * GB, 48 * GB
        return 1


@pytest.fixture
def elsewhere(request, monkeypatch, tmp_path):
    """Another system than Linux."""
    told = SYSTEMS[request.param]

    def sysconf(name):
        if name not in ("SC_PAGE_SIZE", *told):
            raise ValueError("unrecognized configuration name")
        return PAGE if name == "SC_PAGE_SIZE" else told[name]

    for name in ("MEMINFO", "CGROUPS", "OWN_CGROUPS"):
        monkeypatch.setattr(free, name, tmp_path / "none")
    if request.param.startswith("mac"):
        tool = tmp_path / "vm_stat"
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setattr(free, "VM_STAT", str(tool))
        if request.param == "mac":
            tool.write_text(f"#!/bin/sh\ncat <<'END'\n{VM_STAT}END\n")
            tool.chmod(0o755)
    if told is None:
        monkeypatch.delattr(os, "sysconf", raising=False)
        monkeypatch.setattr(ctypes, "windll", type("windll", (), {"kernel32": Kernel32()}), raising=False)
    else:
        monkeypatch.setattr(os, "sysconf", sysconf, raising=False)
        monkeypatch.delattr(ctypes, "windll", raising=False)


@pytest.mark.parametrize(
    ("elsewhere", "available", "whole"),
    [
        ("mac", MAC_FREE, 64 * GB),
        ("mac that does not tell", 64 * GB, 64 * GB),
        ("bsd", 20 * GB, 64 * GB),
        ("windows", 48 * GB, 64 * GB),
        ("unknown", None, None),
    ],
    indirect=["elsewhere"],
)
def test_memory_of_other_systems_is_what_they_have(elsewhere, available, whole):
    """It was 8 GB on each of them, and what took more was refused."""
    for device in (None, torch.device("cpu"), torch.device("mps")):
        assert free.free_memory(device) == (available and available // PAGE * PAGE), device
    assert free.physical_memory() == (whole and whole // PAGE * PAGE)


class Footprint:
    """Of an edit that needs a little and keeps a lot."""

    offload, control, unet = False, None, torch.nn.Linear(1, 1)

    def kept(self, step):
        return step

    def working(self, kept, device):
        return 9 * GB


@pytest.mark.parametrize(
    ("elsewhere", "asked", "mode", "said"),
    [
        ("mac", "auto", "recompute", "about 9.00 GB of 25.00 GB of memory; store: recompute"),
        ("mac that does not tell", "auto", "memory", "about 29.00 GB of 64.00 GB of memory; store: memory"),
        ("unknown", "auto", "recompute", "about 9.00 GB of memory (what is free is unknown here); store: recompute"),
        ("unknown", "memory", "memory", "about 29.00 GB of memory (what is free is unknown here); store: memory"),
    ],
    indirect=["elsewhere"],
)
def test_what_is_unknown_refuses_nothing(elsewhere, asked, mode, said, tmp_path):
    lines = []
    keep = [10 * GB, 10 * GB]
    assert budget.choose_store(asked, Footprint(), keep, tmp_path, torch.device("cpu"), lines.append) == mode
    assert lines == [f"this edit needs {said}"]


@pytest.mark.parametrize("elsewhere", ["unknown"], indirect=True)
def test_nothing_else_is_refused_either(elsewhere, models):
    import fz
    from fz.clips.video import check_memory
    from fz.model.vae import VAE, VAEConfig
    from fz.tuning import run as tuning
    from fz.tuning.settings import parse

    check_memory(10**6, 4096, 4096)
    editor = fz.load(models / "tiny_sd", device="cpu")
    predicted = editor.predicted(10**6, (4096, 4096))
    assert predicted.free is None and predicted.fits
    with torch.device("meta"):
        vae = VAE(VAEConfig())
    budget.check_vae(vae, 8192, 8192, torch.device("cpu"))
    said = []
    settings, _ = parse(["--video", "clip", "--prompt", "a car", "--out", "o"])
    shape = (10**6, 3, 4096, 4096)
    tuning.check_memory(settings, editor.checkpoint, editor.checkpoint.unet, shape, torch.device("cpu"), said.append)
    assert len(said) == 1 and said[0].endswith(" beside the weights, what is free is unknown here")


# ---- within a container's limit ----------------------------------------------------------------------------

# the files of a control group, and the line of a process's groups
VERSIONS = {
    "v1": (
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        "3:cpu,cpuacct:/other\n2:memory:{}\n1:name=systemd:/other\n0::/other\n",
    ),
    "v2": (("memory.max", "memory.current", "inactive_file"), "0::{}\n"),
}


@pytest.fixture(params=["v1", "v2"])
def group(request, monkeypatch, tmp_path):
    """Writes a control group: its path below the top, limit, bytes used, and of them files that were read once."""
    names, own = VERSIONS[request.param]
    monkeypatch.setattr(free, "MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {64 * GB // 1024} kB\n")
    monkeypatch.setattr(free, "CGROUPS", tmp_path)
    monkeypatch.setattr(free, "OWN_CGROUPS", tmp_path / "cgroup")

    def write(path, limit, used, files):
        folder = tmp_path / ("memory" if request.param == "v1" else "") / path.strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\nfile {2 * files}\n{names[2]} {files}\nactive_file 7\n")

    def process(path):
        (tmp_path / "cgroup").write_text(own.format(path))

    process("/")
    write.process, write.none = process, 2**63 - 4096 if request.param == "v1" else "max"
    return write


def test_files_that_were_read_once_are_room(group):
    """A container of 16 GB in which files of 14.8 were read had 0.20 GB free."""
    group("", 16 * GB, 15_800_000_000, 14_800_000_000)
    assert free.free_memory() == 15 * GB
    group("", 16 * GB, 17 * GB, 0)
    assert free.free_memory() == 0
    group("", 16 * GB, 1 * GB, 3 * GB)
    assert free.free_memory() == 16 * GB
    group("", group.none, 1 * GB, 0)
    assert free.free_memory() == 64 * GB // 1024 * 1024


def test_the_limit_of_a_job_counts_where_the_machine_has_none(group):
    """A batch system's, on the machine itself: of a process's own group or of one above."""
    group.process("/jobs/12/step")
    group("jobs/12", 8 * GB, 3 * GB, 1 * GB)
    assert free.free_memory() == 6 * GB
    group("jobs/12/step", 4 * GB, 3 * GB, 0)
    assert free.free_memory() == 1 * GB


@pytest.mark.parametrize("path", ["/docker/of/the/host", "/../elsewhere", "no line"])
def test_a_container_sees_its_own_group_at_the_top(group, path):
    group.process(path)
    group("", 16 * GB, 1 * GB, 0)
    assert free.free_memory() == 15 * GB
