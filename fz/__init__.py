"""fz: FateZero (arXiv 2303.09535) in pure PyTorch. `python -m fz.run` edits a clip; `fz.pipeline.edit_clip` does it from Python."""

__version__ = "0.1.0"
