"""The fuzz and the strikes of `tests/fuzz`, a few by default, all as slow tests: they find nothing that is wrong."""

import subprocess
import sys

import pytest


def passes(root, *argv):
    done = subprocess.run(
        [sys.executable, "-m", *argv], cwd=root, capture_output=True, text=True, check=False, timeout=3600
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and looks into /proc")
class TestOnLinux:
    def test_a_few_inputs_of_all_kinds(self, root):
        passes(root, "tests.fuzz", "--seed", "0", "--count", "12")

    @pytest.mark.slow
    def test_two_kills_of_a_run(self, root):
        passes(root, "tests.fuzz.signals", "--only", "run", "--kills", "2", "--interrupts", "0")

    @pytest.mark.slow
    def test_ten_minutes_of_inputs(self, root):
        passes(root, "tests.fuzz", "--seed", "1", "--minutes", "10")

    @pytest.mark.slow
    def test_a_hundred_strikes(self, root):
        passes(root, "tests.fuzz.signals", "--kills", "50", "--interrupts", "50", "--starts", "6")
