"""What the machine offers: the device of a run, how much memory it took at most, and processes beside others."""

import multiprocessing
import os
import sys
import threading
from pathlib import Path

import torch

from fz.errors import FzError


def pick_device(name: str) -> torch.device:
    """The device called so; 'auto' is cuda, else mps, else cpu. Raises FzError for one that this machine does not
    have.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(d for d in ("cuda", "mps", "cpu") if there[d])
    if not there[name]:
        devices = ", ".join(d for d, ok in there.items() if ok)
        raise FzError(f"device: got {name}, which this machine or this PyTorch does not have. There is: {devices}.")
    return torch.device(name)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that PyTorch held on a GPU, or that this process held in RAM, up to now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # of this program alone: ru_maxrss begins with what the process that started it held
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def start_alone() -> None:
    """Of a process beside others: on one thread, and gone when the process that started it is, even killed."""
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
