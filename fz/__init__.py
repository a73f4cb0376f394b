"""fz: FateZero (arXiv 2303.09535) in pure PyTorch. `python -m fz.run` edits a clip; `fz.pipeline.run` does it from
Python.
"""

__version__ = "0.1.0"
