"""Where do results go unless a run says so, and which names may files have?"""

import re
from pathlib import Path

from fz.settings.config import Settings


def default_path(settings: Settings) -> Path:
    """results/CLIP-FIRST-TARGET in the current folder."""
    return (
        Path("results")
        / f"{slug(Path(settings.clip.path).stem, 32) or 'clip'}-{slug(settings.edits[0].target, 60) or 'edit'}"
    )


def slug(text: str, longest: int) -> str:
    """Lower-case words joined by '-', safe as a file name on any system."""
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-_")[:longest].rstrip("-_")
