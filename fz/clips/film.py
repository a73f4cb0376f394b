"""What does a source have beside its pictures that results keep: its sound, for the time of the frames taken, and its
colour tags.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fz.clips.pyav import av
from fz.clips.stream import opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from av.container import InputContainer, OutputContainer

# of AAC; others are resampled to the last
RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
# seconds: nearer than this to where it is due, a frame's time is only rounded, or a little late
JUMP = 0.05
BT709 = 1
# H.273 codes whose matrix swscale converts to: BT.709, FCC, BT.601 in its two names, SMPTE 240M, BT.2020
MATRICES = (1, 4, 5, 6, 7, 9)


@dataclass(frozen=True)
class Sound:
    """samples (channels, n) float32, of one or two channels, at `rate` a second; 0 is the first frame's time."""

    samples: np.ndarray
    rate: int

    @property
    def layout(self) -> str:
        return "mono" if len(self.samples) == 1 else "stereo"


@dataclass(frozen=True)
class Colours:
    """H.273 codes: of the matrix from RGB, of primaries and of the transfer function."""

    matrix: int = BT709
    primaries: int = BT709
    transfer: int = BT709


def colours_of(context: "av.VideoCodecContext") -> Colours:
    """A stream's own where they say how its RGB is had, else BT.709's."""
    if context.colorspace not in MATRICES:
        return Colours()
    return Colours(int(context.colorspace), int(context.color_primaries), int(context.color_trc))


def read_sound(path: Path, start: float, seconds: float) -> Sound | None:
    """The first sound of a file, from `start` seconds of its clock on, as long as it goes within `seconds`, each part
    at its own time; None where it has none then, or none that can be decoded.
    """
    try:
        with opened(path) as (box, _):
            if not box.streams.audio:
                return None
            stream = box.streams.audio[0]
            rate = stream.codec_context.sample_rate
            rate = rate if rate in RATES else RATES[-1]
            layout = "mono" if stream.codec_context.channels == 1 else "stereo"
            samples = np.zeros((1 if layout == "mono" else 2, round(seconds * rate)), np.float32)
            track = Track(samples, rate, layout, start)
            for frame in decodable(box, stream):
                track.take(frame)
                if track.place >= samples.shape[1]:
                    break
            track.flush()
    except (av.FFmpegError, ValueError, OSError):
        return None
    return Sound(samples[:, : track.filled], rate) if track.filled else None


def decodable(box: "InputContainer", stream: "av.AudioStream") -> "Iterator[av.AudioFrame]":
    """A stream's frames but for those of packets that cannot be decoded."""
    for packet in box.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            continue
        yield from frames


@dataclass
class Track:
    """Fills samples (channels, n), whose first is at `start` seconds, with decoded frames at their times.

    filled: up to where; place: of the next sample; due: when the next frame is to come, in seconds.
    """

    samples: np.ndarray
    rate: int
    layout: str
    start: float
    filled: int = 0
    place: int = 0
    due: float | None = None
    resampler: "av.AudioResampler | None" = None

    def take(self, frame: "av.AudioFrame") -> None:
        """Put a frame after the one before or, where a gap or an overlap is between them, at its own time."""
        at = None if frame.pts is None else float(frame.pts * frame.time_base)
        if self.due is None or (at is not None and abs(at - self.due) > JUMP):
            self.flush()
            self.due = at or 0.0
            self.place = round((self.due - self.start) * self.rate)
            self.resampler = av.AudioResampler("fltp", self.layout, self.rate)
        self.due += frame.samples / frame.sample_rate
        self.put(self.resampler.resample(frame))

    def flush(self) -> None:
        """Put what the resampler still holds."""
        if self.resampler is not None:
            self.put(self.resampler.resample(None))

    def put(self, parts: "list[av.AudioFrame]") -> None:
        for part in parts:
            wave, place = part.to_ndarray(), self.place
            self.place += wave.shape[1]
            low, high = max(place, 0), min(self.place, self.samples.shape[1])
            if low < high:
                self.samples[:, low:high] = wave[:, low - place : high - place]
                self.filled = max(self.filled, high)


def add_sound(box: "OutputContainer", sound: Sound) -> "av.AudioStream":
    """A stream of AAC for a sound: all streams have to be there before anything is muxed."""
    return box.add_stream("aac", rate=sound.rate, layout=sound.layout)


def encode_sound(box: "OutputContainer", stream: "av.AudioStream", sound: Sound) -> None:
    """All of the sound, into its stream."""
    size = stream.codec_context.frame_size or 1024
    for begin in range(0, sound.samples.shape[1], size):
        part = np.ascontiguousarray(sound.samples[:, begin : begin + size])
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=sound.layout)
        frame.sample_rate, frame.pts, frame.time_base = sound.rate, begin, Fraction(1, sound.rate)
        box.mux(stream.encode(frame))
    box.mux(stream.encode(None))
