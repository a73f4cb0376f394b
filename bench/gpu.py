"""The one run on a GPU that settles what could only be estimated: `python -m bench.gpu --seconds 460 [--only STAGE]`.

Stages: 0 the card and its ceilings; 1 every binary compiled; 2 right against float64 (a wrong kernel is not timed);
3 attention alone, with its rivals; 4 norms, products and convolutions against the ceilings; 5 whole steps; 6 a profile.
Each prints, leaves a JSON file in --out, and is skipped when it is late; what follows from them is printed last. From
stage 3 on, stage 2 has to have been whole and right, in this run or in an earlier one of the same GPU and kernels.
Needs torch, triton, numpy and safetensors only. `--dry` does all of it in small on a CPU, its kernels interpreted, so
that it fails there and not on the day.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.gpus import need_triton
from fz.errors import FzError
from fz.results.lock import claimed
from fz.settings.device import cuda_of_torch
from fz.settings.place import writable
from fz.settings.texts import positive
from fz.shell import Parser, answered, first_sentence, leave

STAGES = ("card", "compile_all", "check", "attention", "layers", "whole_steps", "profile")
NO_GPU = "bench.gpu: this PyTorch sees no GPU; --dry runs every stage in small on the CPU."


def answer(argv: Sequence[str] | None) -> int:
    """The stages that are asked for; returns the exit code: 1 where one is wrong or failed."""
    parser = Parser(prog="python -m bench.gpu", description=first_sentence(__doc__))
    parser.add_argument("--seconds", type=positive, default=460)
    parser.add_argument("--only", type=int, choices=range(len(STAGES)), help="one stage")
    parser.add_argument("--dry", action="store_true", help="every stage in small on the CPU, kernels interpreted")
    parser.add_argument("--out", type=Path, help="folder of JSON files; default: gpu-run, with --dry gpu-run-dry")
    given = parser.parse_args(argv)
    out = writable(given.out or Path("gpu-run-dry" if given.dry else "gpu-run"), "out")
    need_triton()
    if given.dry and os.environ.get("TRITON_INTERPRET") != "1":
        # triton decides at its import whether it interprets
        words = sys.argv[1:] if argv is None else argv
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        return subprocess.run([sys.executable, "-m", "bench.gpu", *words], env=environment).returncode
    if not given.dry and cuda_of_torch() is False:
        raise FzError(NO_GPU)
    import torch

    from bench.gpu_stages import run_stages
    from fz.memory.machine import pick_device

    if not given.dry and not torch.cuda.is_available():
        raise FzError(NO_GPU)
    with claimed(out):
        return run_stages(pick_device("cpu" if given.dry else "cuda"), given.dry, given.seconds, out, given.only)


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: sys.exit(answer(argv)), argv=argv)


if __name__ == "__main__":
    leave(main())
