"""How does an animated picture file (webp, avif, png) become pictures? By Pillow, on the timeline of its delays."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fz.clips.images import Flatten, as_pixels, on_white, opened_image
from fz.clips.movie import timeline
from fz.errors import FzError

KINDS = ("WEBP", "PNG", "AVIF")
SHORTEST, USUAL = 0.02, 0.1  # seconds; browsers show shorter delays as the usual one


def frames_in(path: Path) -> int:
    """How many frames an image file has; 1 for kinds that are not animated. Phones store a second view in jpegs."""
    with opened_image(path) as image:
        return getattr(image, "n_frames", 1) if image.format in KINDS else 1


class Animation:
    """An animated image file as a clip.

    count, fps, order: as a movie's, the last frame repeated for as long as it stands; still, audio: never; notes.
    """

    rated = True
    still = audio = False

    def __init__(self, path: Path, flatten: Flatten = on_white):
        self.path, self.name, self.flatten, self.notes = path, path.name, flatten, []
        delays = []
        with opened_image(path) as image:
            for index in range(image.n_frames):
                self._seek(image, index)
                delay = image.info.get("duration", 0) / 1000
                delays.append(delay if delay >= SHORTEST else USUAL)
        seconds = [sum(delays[:k]) for k in range(len(delays))]
        self.fps, self.order = timeline(seconds, None, delays[-1])
        self.count = len(self.order)
        held = self.count - len(delays)
        if held > 0:
            self.notes.append(
                f"{self.name} rests on its last frame for {delays[-1]:.3g} s: that is taken {held + 1} times"
            )
        if list(self.order[: len(delays)]) != list(range(len(delays))):
            self.notes.append(
                f"{self.name} has a variable frame rate: resampled to {self.fps:.4g} fps, by nearest time"
            )

    def _seek(self, image, index: int) -> None:
        try:
            image.seek(index)
            image.load()
        except Exception as error:
            raise FzError(
                f"video: frame {index} of {self.path} cannot be decoded: the file is truncated or corrupt. Take frames "
                "before it"
            ) from error

    def read(self, wanted: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """(index, picture) for each of the ascending frame numbers."""
        with opened_image(self.path) as image:
            for index in wanted:
                self._seek(image, index)
                picture, clear = as_pixels(image, self.path, self.flatten)
                note = f"{self.name}: transparent pixels are shown on white"
                if clear and self.flatten is on_white and note not in self.notes:
                    self.notes.append(note)
                yield index, picture
