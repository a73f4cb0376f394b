"""The folder of a run and what is drawn into it."""
