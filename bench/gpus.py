"""GPUs that are not here: which does `bench.aot` compile for, and what does each have?"""

from importlib.util import find_spec

from fz.errors import FzError

NVIDIA = (80, 86, 89, 90, 100)
# bytes of shared memory that one block may have (CUDA C programming guide, technical specifications per capability)
SHARED = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# threads of a multiprocessor
THREADS = {80: 2048, 86: 1536, 89: 1536, 90: 2048, 100: 2048}


def need_triton() -> None:
    """Raises FzError where triton is not installed."""
    if find_spec("triton") is None:
        raise FzError("triton: it is not installed, and its kernels are what is measured. Run: pip install triton")
