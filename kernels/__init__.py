"""Attention with fusion: three versions of the same two functions, and the one place that chooses."""
