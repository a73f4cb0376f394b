"""What the model sees of a clip: which frames, which part of the picture, at what size.

The choice of frames follows the released code's ImageSequenceDataset. How files are decoded is `fz.clips.decode`'s
question, how a picture gets its size `fz.clips.fit`'s. A plan is made without torch, which takes seconds to import."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fz.clips.decode import Flatten, Frames, on_white, open_source
from fz.clips.files import FASTEST, SLOWEST, check_rate
from fz.clips.film import Colours, Sound, read_sound
from fz.clips.fit import cut, cut_size, fitted, wide
from fz.clips.taken import left_out
from fz.errors import FzError
from fz.memory.free import free_memory, gb, lacks
from fz.settings.checks import plain
from fz.settings.config import ClipSettings, Size

if TYPE_CHECKING:
    import torch

LARGEST = 8192
# of a clip's frames in float32: as read, edited, and being written
COPIES = 3


# equal only to itself: tensors have no single answer
@dataclass(frozen=True, eq=False, repr=False)
class Video:
    """frames (F, 3, H, W) float32 in [-1, 1]; fps after `every`; indices: the source's frame numbers; notes: what the
    user should know; sound: the source's, while these frames are shown; colours: the source's tags.
    """

    frames: "torch.Tensor"
    fps: float
    indices: tuple[int, ...]
    notes: tuple[str, ...] = ()
    clip: ClipSettings | None = None
    picture: tuple[int, int] | None = None
    sound: Sound | None = None
    colours: Colours = Colours()

    def some(self, count: int) -> "Video":
        """`count` of its frames, or all if there are fewer, evenly apart from the first on: for a quick look at what an
        edit does. Raises FzError for fewer than one.
        """
        count = plain(count)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise FzError(f"some: got {count!r} frames, expected a whole number of at least 1.")
        count = min(count, len(self.frames))
        step = len(self.frames) // count
        places = slice(0, count * step, step)
        clip = self.clip and dataclasses.replace(self.clip, frames=count, every=self.clip.every * step)
        return Video(
            self.frames[places],
            self.fps / step,
            self.indices[places],
            self.notes,
            clip,
            self.picture,
            None,
            self.colours,
        )

    def __repr__(self) -> str:
        shape = tuple(getattr(self.frames, "shape", ()))
        frames = f"{_frames(shape[0])} of {shape[2]}x{shape[3]}" if len(shape) == 4 else f"frames of shape {shape}"
        return f"<Video: {frames}, {self.fps} a second>"

    def _repr_html_(self) -> str:
        from fz.clips.media import to_uint8
        from fz.clips.notebook import animation

        frames = to_uint8(self.frames)
        return animation(frames, self.fps, f"{len(frames)} frames of {frames.shape[2]}x{frames.shape[1]}")


@dataclass(frozen=True)
class ClipPlan:
    """A clip whose file is open and whose choice and size are checked, but of which no picture is decoded.

    positions: on the source's timeline; size (H, W); fps of the results; natural: the source's after `every`;
    multiple: of the model's sizes; notes.
    """

    clip: ClipSettings
    source: Frames
    positions: range
    size: tuple[int, int]
    fps: float
    multiple: int
    notes: tuple[str, ...]
    natural: float = 0.0

    @property
    def indices(self) -> tuple[int, ...]:
        """The source's frame numbers; some repeat at a variable rate."""
        return tuple(self.source.order[k] for k in self.positions)

    def read(self, alike: bool = True) -> Video:
        """Decode, crop and resize (`fz.clips.fit.fitted`)."""
        frames, shapes = fitted(self.source, self.indices, self.clip.crop, self.size, alike)
        notes = [*self.notes, *self._seen(shapes[0])]
        if len(shapes) > 1:
            notes.append(f"{self.source.name}: pictures of {len(shapes)} sizes, each scaled and cut on its own")
        sound = None if self.silent() else read_sound(self.source.path, *self.time())
        if sound is None and not self.silent() and self.source.audio:
            notes.append(f"{self.source.name}: none of its audio is in the time of these frames, or it cannot be read")
        colours = getattr(self.source, "colours", Colours())
        notes = (*self.source.notes, *notes)
        return Video(frames, self.fps, self.indices, notes, self.clip, shapes[0], sound, colours)

    def time(self) -> tuple[float, float]:
        """(when the first frame is shown on the source's clock, how long all of them are), in seconds."""
        return self.source.begins + self.positions[0] / self.source.fps, len(self.positions) / self.fps

    def silent(self) -> str | None:
        """Why there is no sound to keep, None where there is."""
        if not self.source.audio:
            return "there is none"
        if not self.clip.audio:
            return "--no-audio"
        return "--fps changes the time" if self.clip.fps and self.clip.fps != self.natural else None

    def _seen(self, picture: tuple[int, int]) -> list[str]:
        """What to tell of the part of a picture (h, w) that is seen, and of what is left out of the source."""
        part, (height, width), name, notes = cut_size(picture, self.clip.crop), self.size, self.source.name, []
        scale = max(height / part[0], width / part[1])
        if scale > 1.5:
            notes.append(
                f"{name} is {wide(part)} (width x height), enlarged {scale:.3g} times to cover {width}x{height}"
            )
        silent = self.silent() if self.source.audio else None
        line = left_out(self.positions, self.source, part, self.size, self.multiple, silent)
        return [*notes, line] if line else notes


def plan_clip(clip: ClipSettings, multiple: int = 64, flatten: Flatten = on_white) -> ClipPlan:
    """Open a clip's file and check the choice of frames, the size, the rate and the memory they take; decode no picture
    of files with an index. H and W are rounded to `multiple` (see round_size). Raises FzError for what cannot be.
    """
    _check(clip)
    source = None
    if clip.size == "original":
        source = open_source(clip.path, flatten)
        size, note = round_size(original_size(clip, source), multiple)
    else:
        size, note = round_size(clip.size, multiple)
    height, width = (size, size) if isinstance(size, int) else size
    if clip.frames is not None:
        check_memory(clip.frames, height, width)
    source = source or open_source(clip.path, flatten)
    frames, notes = clip.frames, [note] if note else []
    if source.still and frames is not None and frames > 1:
        notes.append(f"{source.name} is one image: a clip of 1 frame, not {frames}")
        frames = 1
    positions = choose(source.count, frames, clip.start, clip.every, source.name)
    check_memory(len(positions), height, width)
    fps = source.fps
    if source.rated:
        fps = check_rate(source.fps / clip.every, _advice(source.fps, source.name))
    return ClipPlan(clip, source, positions, (height, width), clip.fps or fps, multiple, tuple(notes), fps)


def original_size(clip: ClipSettings, source: Frames) -> tuple[int, int]:
    """(H, W) of the source's picture within the crop; decodes one. Raises FzError for pictures that are too small."""
    first = source.order[min(clip.start, source.count - 1)]
    (_, picture), *_ = source.read([first])
    return cut(picture, clip.crop).shape[:2]


def read_clip(clip: ClipSettings, multiple: int = 64, alike: bool = True) -> Video:
    """Decode, crop and resize a clip. H and W are rounded to `multiple` (see round_size).

    A video's rate is divided by `every`; images count as 8 frames a second. At a variable rate, start and every count
    positions of a constant timeline (fz.clips.movie.Movie), so indices may repeat. Only the frames needed are decoded,
    one at a time is held at full size. alike: False for pictures that are no clip, which may differ in size. Raises
    FzError for a path, choice, crop or size that cannot be.
    """
    return plan_clip(clip, multiple).read(alike)


def check_memory(frames: int, height: int, width: int) -> None:
    """Raises FzError where so many frames do not fit in free memory."""
    need, free = COPIES * frames * 3 * height * width * 4, free_memory()
    if lacks(need, free):
        raise FzError(
            f"memory: {_frames(frames)} of {width}x{height} need about {gb(need)}, and {gb(free)} are free. Take fewer "
            "--frames or a smaller --size."
        )


def _advice(fps: float, name: str) -> str:
    if fps > FASTEST:
        return f" {name} is faster: use --every {math.ceil(fps / FASTEST)} or more"
    if fps >= SLOWEST:
        return f" {name} has {fps:.3g}: use --every {math.floor(fps / SLOWEST)} or less"
    return f" {name} is slower: convert it to a usual rate first"


def choose(count: int, frames: int | None, start: int, every: int, name: str = "the clip") -> range:
    """Frame numbers start, start + every, ... below count: `frames` of them, or all there are for None. FzError with
    what would fit.
    """
    if start >= count:
        raise FzError(f"start: got {start}, but {name} has {_frames(count)}: expected 0 to {count - 1}")
    there = (count - start - 1) // every + 1
    if frames is None:
        return range(start, count, every)
    if frames > there:
        fits = [f"--frames {there}"]
        if frames > 1 and (count - start - 1) // (frames - 1) >= 1:
            fits.append(f"--every {(count - start - 1) // (frames - 1)}")
        elif start and (frames - 1) * every < count:
            fits.append(f"--start {count - 1 - (frames - 1) * every}")
        asked = _frames(frames) + (f" from frame {start}" if start else "") + (f", every {every}" if every > 1 else "")
        need = start + (frames - 1) * every + 1
        raise FzError(
            f"frames: {name} has {_frames(count)}, too few for {asked} (needs {need}). Use {' or '.join(fits)}"
        )
    return range(start, start + (frames - 1) * every + 1, every)


def round_size(size: Size, multiple: int = 64) -> tuple[Size, str | None]:
    """(size rounded to the nearest multiple a side, at least one; what to tell the user, or None). FzError for no size
    at all.
    """
    pair = isinstance(size, Sequence) and not isinstance(size, str)
    sides = tuple(size) if pair else (size,)
    if len(sides) != 1 + pair or any(isinstance(n, bool) or not isinstance(n, int) for n in sides):
        raise FzError(f"size: got {size!r}, expected a number (a square) or height and width, such as 512 or 384x640")
    text = "x".join(map(str, sides))
    if min(sides) < 1:
        raise FzError(f"size: got {text}, expected sides of at least {multiple}")
    if min(sides) * 2 < multiple:
        raise FzError(f"size: {text} is too small for the model, expected sides of at least {multiple}")
    if max(sides) > LARGEST:
        raise FzError(f"size: {text} is too large, expected sides of at most {LARGEST}")
    rounded = tuple((n + multiple // 2) // multiple * multiple for n in sides)
    note = (
        None
        if rounded == sides
        else f"size {text} is rounded to {'x'.join(map(str, rounded))}: the model needs multiples of {multiple}"
    )
    return (rounded if pair else rounded[0]), note


def _check(clip: ClipSettings):
    if clip.fps is not None:
        check_rate(clip.fps)
    lowest = {"start": 0, "every": 1, "frames": 1}
    for name, low in lowest.items():
        value = getattr(clip, name)
        if value is None and name == "frames":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            more = " (or None for all)" if name == "frames" else ""
            raise FzError(f"{name}: got {value!r}, expected a whole number of at least {low}{more}")
    for side in ("left", "right", "top", "bottom"):
        value = getattr(clip.crop, side)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise FzError(f"crop: {side} is {value!r}, expected a whole number of pixels, 0 or more")


def _frames(n: int) -> str:
    return "1 frame" if n == 1 else f"{n} frames"
