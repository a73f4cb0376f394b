"""Clips and pictures: which frames, how files are read and written."""
