"""Benchmarks: `python -m bench.attention`, `python -m bench.edit`. Results are in LOG.md."""

import sys

# `python -m bench.NAME` imports this first, and then for seconds what the bench needs
if sys.argv[:1] == ["-m"]:
    from fz.shell import guard_imports

    guard_imports()
