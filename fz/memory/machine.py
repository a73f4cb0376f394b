"""What the machine offers: the device of a run, and how much memory it took at most."""

import sys
from pathlib import Path

import torch

from fz.errors import FzError


def pick_device(name: str) -> torch.device:
    """The device called so; 'auto' is cuda, else mps, else cpu; 'cuda:1' is a GPU of several, made the current one.

    A GPU multiplies float32 without rounding it to TF32 from then on: who asks for float32 there wants its digits.
    Raises FzError for one that this machine does not have.
    """
    kind, _, number = name.partition(":")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = kind = next(d for d in ("cuda", "mps", "cpu") if there[d])
    of_several = kind == "cuda" and number.isdigit()
    if not there.get(kind if of_several else name):
        devices = ", ".join(d for d, ok in there.items() if ok)
        raise FzError(f"device: got {name}, which this machine or this PyTorch does not have. There is: {devices}.")
    if of_several:
        if int(number) >= torch.cuda.device_count():
            last = torch.cuda.device_count() - 1
            raise FzError(f"device: got {name}, expected cuda:0 to cuda:{last}, the GPUs of this machine.")
        # kernels are launched on the current device, wherever their operands are
        torch.cuda.set_device(int(number))
    if kind == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)


def settle_dtype(name: str, device: torch.device) -> tuple[str, str | None]:
    """The dtype of a run's models, 'auto' being float16 on CUDA and float32 elsewhere; and what to tell of it, or
    None.
    """
    if device.type != "cuda":
        return ("float32" if name == "auto" else name), None
    if name == "auto":
        return (
            "float16",
            "dtype: float16, as on every GPU; the VAE in bfloat16. --dtype float32 is several times slower",
        )
    return name, "dtype: float32, TF32 is off" if name == "float32" else None


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
