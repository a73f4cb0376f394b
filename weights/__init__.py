"""Checkpoint layouts as tables of names, and how they are read."""
