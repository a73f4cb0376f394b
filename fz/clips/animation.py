"""How does one image file of many pictures become a clip? By Pillow: an animation (webp, avif, png) on the timeline of
its delays, the pages of a TIFF one after the other."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fz.clips.files import check_pixels
from fz.clips.images import IMAGE_FPS, Flatten, as_pixels, on_white, opened_image, pages_of
from fz.clips.movie import timeline
from fz.errors import FzError

SHORTEST, USUAL = 0.02, 0.1  # seconds; browsers show shorter delays as the usual one


def frames_in(path: Path) -> int:
    """How many frames an image file has."""
    with opened_image(path) as image:
        return len(pages_of(image))


class Animation:
    """An animated image file, or a TIFF of several pages, as a clip.

    frames; count, fps, order: as a movie's, the last frame repeated for as long as it stands; rated: pages have no
    rate; still, audio: never; notes.
    """

    still = audio = False

    def __init__(self, path: Path, flatten: Flatten = on_white):
        self.path, self.name, self.flatten, self.notes = path, path.name, flatten, []
        with opened_image(path) as image:
            self.pages, self.rated = pages_of(image), image.format != "TIFF"
            self.frames = len(self.pages)
            if self.rated:
                self._time([self._delay(image, index) for index in range(self.frames)])
            else:
                self.fps, self.count, self.order = IMAGE_FPS, self.frames, range(self.frames)

    def _time(self, delays: list[float]) -> None:
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

    def _delay(self, image, index: int) -> float:
        self._seek(image, index)
        delay = image.info.get("duration", 0) / 1000
        return delay if delay >= SHORTEST else USUAL

    def _seek(self, image, index: int) -> None:
        try:
            image.seek(self.pages[index])
            check_pixels(self.path, *image.size)
            image.load()
        except FzError:
            raise
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
