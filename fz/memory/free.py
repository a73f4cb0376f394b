"""How much memory and disk is free now, for this process, on any system?"""

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MEMINFO, CGROUPS, OWN_CGROUPS = Path("/proc/meminfo"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# cgroup's two versions: its folder of memory, the limit, what is used, and what of that is files that were read once
VERSIONS = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)

VM_STAT = "/usr/bin/vm_stat"
# pages that `vm_stat` counts which can be had at once: free, read ahead, and not used lately
IDLE = ("free", "speculative", "inactive")


def gb(amount: float) -> str:
    return f"{amount / 1e9:.2f} GB" if amount >= 5e6 else f"{amount / 1e6:.1f} MB"


def free_memory(device: "torch.device | None" = None) -> int | None:
    """Bytes that this process may still take: of the GPU, with what PyTorch has of it and does not use, or, also for
    None, of RAM without swapping, within the container's limit. None where the system does not tell.
    """
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0] + cached_memory(device)
    return least_of([system_memory(), cgroup_room()])


def cached_memory(device: "torch.device") -> int:
    """Bytes of a GPU that PyTorch's allocator has from the driver and that no tensor uses."""
    if device.type != "cuda":
        return 0
    import torch

    return torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def lacks(need: int, free: int | None) -> bool:
    """Is it certain that so much is not free?"""
    return free is not None and need > free


def least_of(bounds: Iterable[int | None]) -> int | None:
    return min((bound for bound in bounds if bound is not None), default=None)


def system_memory() -> int | None:
    """MemAvailable of Linux, what Windows calls available, a Mac's pages that are free or only kept in case, free pages
    elsewhere; all that there is where no more is told.
    """
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = MEMINFO.read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    if windows := windows_memory():
        return windows[1]
    return mac_memory() or pages("SC_AVPHYS_PAGES") or physical_memory()


def physical_memory() -> int | None:
    """Bytes of RAM that this machine has."""
    windows = windows_memory()
    return windows[0] if windows else pages("SC_PHYS_PAGES")


def pages(name: str) -> int | None:
    """Bytes of that many pages."""
    try:
        count = os.sysconf(name)
        return count * os.sysconf("SC_PAGE_SIZE") if count > 0 else None
    except (AttributeError, ValueError, OSError):
        return None


def windows_memory() -> tuple[int, int] | None:
    """Bytes of RAM that Windows has and calls available; None elsewhere."""
    if not hasattr(ctypes, "windll"):
        return None
    # MEMORYSTATUSEX: its length and the load in percent, 32 bits each, then physical memory in all and available, …
    status = (ctypes.c_uint64 * 8)(64)
    done = ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return (status[1], status[2]) if done else None


def mac_memory() -> int | None:
    """Bytes of RAM that a Mac can give without swapping; None elsewhere."""
    if sys.platform != "darwin":
        return None
    try:
        told = subprocess.run([VM_STAT], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    size = re.search(r"page size of (\d+) bytes", told)
    counts = dict(re.findall(r"^Pages ([a-z]+):\s+(\d+)\.", told, re.MULTILINE))
    if size is None or "free" not in counts:
        return None
    return int(size[1]) * sum(int(counts.get(name, 0)) for name in IDLE)


def cgroup_room() -> int | None:
    """What the limits of the container, or of the job, leave that this process is in. Files that were read once count
    as used there, and go when their memory is wanted.
    """
    return least_of(room_in(group, *names) for folder, *names in VERSIONS for group in groups(folder))


def groups(controller: str) -> list[Path]:
    """The control groups of this process, from its own to the top; of a container, as far as it sees them."""
    own = ""
    with contextlib.suppress(OSError, ValueError):
        for line in OWN_CGROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                own = path.strip("/")
    below = [] if ".." in Path(own).parts else [Path(own), *Path(own).parents][:-1]
    return [CGROUPS / controller / group for group in (*below, "")]


def room_in(group: Path, limit: str, used: str, files: str) -> int | None:
    try:
        # 'max' is no number
        most, taken = (int((group / name).read_text()) for name in (limit, used))
    except (OSError, ValueError):
        return None
    idle = 0
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        idle = next(int(value) for name, value in lines if name == files)
    return min(max(most - max(taken - idle, 0), 0), most)


def free_disk(folder: Path) -> int:
    """Bytes free where that folder is or will be."""
    for existing in (folder, *folder.parents):
        if existing.is_dir():
            return shutil.disk_usage(existing).free
    return 0
