"""What the machine offers: memory as it is reported to a person."""

import subprocess
import sys

import pytest
import torch

from fz.machine import peak_memory

PEAK = "import torch; from fz.machine import peak_memory; print(peak_memory(torch.device('cpu')))"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system's own figure is taken")
def test_peak_memory_is_the_programs_own_and_not_its_starters():
    held = torch.ones(300_000_000)  # 1.2 GB, more than a program that imports torch
    peak = int(subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True).stdout)
    assert 5e7 < peak < held.nbytes < peak_memory(torch.device("cpu"))


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(before // 4 + 50_000_000)
    assert peak_memory(torch.device("cpu")) >= held.nbytes > before
