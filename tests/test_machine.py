"""What the machine offers: memory as it is reported to a person."""

import signal
import subprocess
import sys
import time

import pytest
import torch
from processes import alive

from fz.memory.machine import peak_memory

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
    time.sleep(8)  # they are at work by now, or about to begin: both must end
    pool.send_signal(signal.SIGKILL)
    pool.wait()
    deadline = time.monotonic() + 120
    while alive(pool.pid):
        assert time.monotonic() < deadline, "a killed program leaves processes at work"
        time.sleep(0.2)
