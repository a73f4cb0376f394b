"""Tuning a checkpoint on one clip."""
