"""Benchmarks: `python -m bench.attention`, `python -m bench.edit`. Results are in LOG.md."""
