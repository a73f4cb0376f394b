"""How a video file becomes pictures, addressed by frame number in display order.

In files with an index (mp4, mov, mkv, webm) packets say which frames there are, and reading seeks to them. In all
others every frame is counted by decoding: there packets do not name the frames, or seeking changes their times."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import numpy as np

from fz.clips.files import check_pixels
from fz.clips.film import colours_of
from fz.clips.images import IMAGE_FPS, Flatten, on_white
from fz.clips.pyav import av
from fz.clips.stream import DELAYED, INDEXED, Decoding, Packets, kind_of, opened, scan
from fz.errors import FzError

# Transfer functions PQ and HLG.
HDR = (16, 18)
# No codec shows more frames than this before one that comes ahead of them in the file.
REORDERED = 16


class Movie:
    """A video file.

    frames: in the file; count: positions of the timeline; fps (average rate); order: timeline position -> frame; audio:
    whether it has sound; begins: seconds of its clock at the first frame; colours: its tags; notes. The timeline has a
    constant rate from the first frame's time on, each position filled by the frame nearest in time. At a constant rate
    that is every frame once; where frames stand unevenly (variable rate) some are taken twice and some not at all, and
    a note says so; the last frame of a gif is repeated for as long as it rests there.
    """

    rated = True
    still = False

    def __init__(self, path: Path, flatten: Flatten = on_white):
        self.path, self.name, self.flatten, self.notes = path, path.name, flatten, []
        with opened(path) as (box, stream):
            rate, tick, kind = stream.average_rate or stream.guessed_rate, stream.time_base, kind_of(box)
            self.audio, self.colours = bool(box.streams.audio), colours_of(stream.codec_context)
            if stream.codec_context.color_trc in HDR:
                self.notes.append(f"{self.name} is an HDR video: its colours are not tone mapped and come out pale")
            claim = box.duration / av.time_base if box.duration and len(box.streams) == 1 else 0
            claimed_frames, codec = stream.frames, stream.codec_context.name
            packets = scan(box, stream)
        if not packets.whole and kind in INDEXED + DELAYED:
            found = len(packets.durations)
            of = f" of {claimed_frames}" if claimed_frames > found else ""
            raise FzError(
                f"video: {path} is truncated: it breaks off after {found}{of} frames. Copy it again, or convert it to "
                "keep them"
            )
        # VP8's hidden packets are no frames
        self.counted = packets.times is None or kind not in INDEXED or codec in ("vp8", "libvpx")
        self.keys, last = packets.keys, float(packets.last * tick)
        if kind in DELAYED and packets.durations:
            delays = shown_delays(packets.durations, tick)
            seconds, last = [0.0, *accumulate(delays[:-1])][: len(self._counted_times(packets))], delays[-1]
        elif self.counted:
            seconds = self._counted(packets, tick, rate)
        else:
            self.times = self._decodable(packets.times)
            seconds = [float(t * tick) for t in self.times]
        if not seconds:
            raise FzError(f"video: {path} holds no frames (0 could be read). Is it complete?")
        self.fps, self.order = timeline(seconds, float(rate) if rate else None, last if kind in DELAYED else None)
        self.frames, self.count, self.begins = len(seconds), len(self.order), seconds[0]
        self._note_times(seconds, last, claim)

    def _note_times(self, seconds: list[float], last: float, claim: float) -> None:
        frames = len(seconds)
        held = self.count - frames
        if held:
            self._note(f"{self.name} rests on its last frame for {last:.3g} s: that is taken {held + 1} times")
        if list(self.order[:frames]) != list(range(frames)):
            self._note(
                f"{self.name} has a variable frame rate: resampled to its average, {self.fps:.4g} fps, by nearest time"
            )
        end = seconds[-1] + last
        if claim - end > 1 + 3 / self.fps:
            self._note(
                f"{self.name} says it lasts {claim:.3g} s, but its last frame is at {seconds[-1]:.3g} s: it may be "
                "truncated"
            )

    def _counted(self, packets: Packets, tick: Fraction, rate: Fraction | None) -> list[float]:
        """Seconds of every frame; evenly spaced where frames have no rising times."""
        times = self._counted_times(packets)
        if None not in times and all(a < b for a, b in zip(times, times[1:], strict=False)):
            return [float(t * tick) for t in times]
        return [k / float(rate or IMAGE_FPS) for k in range(len(times))]

    def _counted_times(self, packets: Packets) -> list[int | None]:
        """Times of all frames, by decoding them."""
        decoding = Decoding(self.path)
        with opened(self.path) as (box, stream):
            frames = [(frame.pts, frame.is_corrupt) for frame in decoding.frames(box, stream)]
        # the last packet of a recording, which is not whole, may be shown before others
        start = max(0, len(frames) - REORDERED)
        whole = next((i for i in range(start, len(frames)) if frames[i][1]), len(frames))
        times = [pts for pts, _ in frames[:whole]]
        first = times[0] if times and times[0] is not None else None
        before = bisect_left(packets.times, first) if packets.times and first is not None else 0
        self._note_cuts(max(before, decoding.cut_start), decoding.cut_end + len(frames) - whole)
        return times

    def _decodable(self, times: list[int]) -> list[int]:
        """The packets' times from the first frame on that can be decoded."""
        decoding = Decoding(self.path)
        with opened(self.path) as (box, stream):
            first = next((frame.pts for frame in decoding.frames(box, stream)), None)
        if first is None:
            return []
        there = times[bisect_right(times, first) - 1 :]
        self._note_cuts(len(times) - len(there), 0)
        return there

    def _note_cuts(self, start: int, end: int) -> None:
        for count, where, why in (
            (start, "start", "it begins within a group of pictures"),
            (end, "end", "it ends within a picture"),
        ):
            if count:
                frames = "1 frame" if count == 1 else f"{count} frames"
                self._note(f"{self.name}: {frames} at its {where} cannot be decoded ({why}): left out")

    def read(self, wanted: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """(index, picture) for each of the ascending frame numbers. Decodes from the key frame before the first to the
        last, no further.
        """
        number_of = {i if self.counted else self.times[i]: i for i in wanted}
        # A file whose seeking misses the first frame is read again from its start.
        for key in (self._key_before(wanted[0]), None):
            with opened(self.path) as (box, stream):
                if key is not None:
                    box.seek(key, stream=stream, backward=True)
                for number, frame in enumerate(Decoding(self.path).frames(box, stream)):
                    index = number_of.pop(number if self.counted else frame.pts, None)
                    if index is None:
                        continue
                    if frame.is_corrupt:
                        raise self._damaged(index)
                    yield index, self._upright(frame, stream)
                    if not number_of:
                        return
            if key is None or len(number_of) < len(wanted):
                raise self._damaged(min(number_of.values()))

    def _key_before(self, index: int) -> int | None:
        """Where to start decoding for a frame: dts of a key frame, None = at the start of the file."""
        # One key frame more than needed: in an open group, frames around a key frame lean on the group before.
        before = [] if self.counted else [dts for pts, dts in self.keys if pts <= self.times[index]][1:-1]
        return before[-1] if before else None

    def _damaged(self, index: int) -> FzError:
        return FzError(
            f"video: frame {index} of {self.path} cannot be decoded: the file is truncated or corrupt. Take frames "
            "before it"
        )

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _upright(self, frame: "av.VideoFrame", stream) -> np.ndarray:
        shape = stream.sample_aspect_ratio
        if shape and shape != 1 and 0.1 < shape < 10:
            self._note(f"{self.name}: pixels are {shape.numerator}:{shape.denominator}, widened to square ones")
            width = max(1, round(frame.width * shape))
            check_pixels(self.path, width, frame.height)
            frame = frame.reformat(width=width, format="rgba" if has_alpha(frame) else "rgb24")
        if has_alpha(frame):
            rgba = frame.to_ndarray(format="rgba")
            if rgba[..., 3].min() < 255 and self.flatten is on_white:
                self._note(f"{self.name}: transparent pixels are shown on white")
            picture = self.flatten(rgba)
        else:
            picture = frame.to_ndarray(format="rgb24")
        matrix = frame.side_data.get("DISPLAYMATRIX")
        return picture if matrix is None else turned(picture, np.frombuffer(bytes(matrix), np.int32).reshape(3, 3))


def shown_delays(ticks: list[int], tick: Fraction) -> list[float]:
    """Seconds that frames of a gif stand; browsers show delays under 2 hundredths as 10."""
    return [float(d * tick) if d * tick >= Fraction(2, 100) else 0.1 for d in ticks]


def turned(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """picture (H, W, 3) as a display matrix with rows (a, b), (c, d) shows it: x' = a x + c y, y' = b x + d y. Quarter
    turns, mirrors.
    """
    (a, b), (c, d) = matrix[:2, :2].tolist()
    if abs(b) > abs(a):
        picture = picture.swapaxes(0, 1)
        down, right = b, c
    else:
        down, right = d, a
    return np.ascontiguousarray(picture[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1])


def timeline(times: list[float], nominal: float | None, last: float | None = None) -> tuple[float, list[int]]:
    """(fps, order) of frames shown at `times` (seconds, rising): a constant timeline's rate, the frame nearest to each
    of its positions.

    nominal: the file's own average rate; taken where it agrees with the times to 1 %, as it is exact (30000/1001) and
    they are rounded. last: how long the last frame stands, where that is known: longer than the others it takes more
    positions, shorter it raises the rate, so that count / fps is the clip's length.
    """
    n = len(times)
    span = times[-1] - times[0]
    if n < 2 or span <= 0:
        return nominal or IMAGE_FPS, list(range(n))
    gap, held = span / (n - 1), 0
    if last and last > gap:
        held = round(last / gap) - 1
    elif last:
        gap = (span + last) / n
    middles = [(s + t) / 2 for s, t in zip(times, times[1:], strict=False)]
    order = [bisect_right(middles, times[0] + k * gap) for k in range(n)] + [n - 1] * held
    return nominal if nominal and abs(nominal * gap - 1) < 0.01 else 1 / gap, order


def has_alpha(frame: "av.VideoFrame") -> bool:
    return any(component.is_alpha for component in frame.format.components)
