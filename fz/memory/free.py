"""How much memory and disk is free now, for this process."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def gb(amount: float) -> str:
    return f"{amount / 1e9:.2f} GB" if amount >= 5e6 else f"{amount / 1e6:.1f} MB"


def free_memory(device: "torch.device | None" = None) -> int:
    """Bytes that this process may still take: of the GPU, or, also for None, of RAM without swapping, within the
    container's limit.
    """
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    bounds = [meminfo(), cgroup_room()]
    known = [b for b in bounds if b is not None]
    return min(known) if known else 8 * 10**9


def meminfo() -> int | None:
    """MemAvailable of Linux; elsewhere free pages."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def cgroup_room() -> int | None:
    """What a container's limit leaves."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text().strip()
        return None if limit == "max" else max(int(limit) - int(used), 0)
    except (OSError, ValueError):
        return None


def free_disk(folder: Path) -> int:
    """Bytes free where that folder is or will be."""
    for existing in (folder, *folder.parents):
        if existing.is_dir():
            return shutil.disk_usage(existing).free
    return 0
