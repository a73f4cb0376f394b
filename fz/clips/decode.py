"""How files become pictures: mp4, webm and gif through PyAV, folders, globs and single images through Pillow.

A source knows its number of frames, its rate and its timeline before anything is decoded; it then decodes only what is
asked for, one picture at a time. Pictures come out upright, (H, W, 3) uint8, transparency on white. Which frames a clip
takes, and at what size, is `fz.clips.video`'s question."""

import glob
import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fz.clips.pyav import av, need_av
from fz.errors import FzError, suggest

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
MOVIES = (".mp4", ".webm", ".gif", ".mov", ".mkv", ".avi", ".m4v")
KINDS = "a video (mp4, webm, gif), an image, a folder of images or a glob"
IMAGE_FPS = 8.0
# Transfer functions PQ and HLG.
HDR = (16, 18)
# FFmpeg draws plain text files as pictures of text.
TEXT_ART = ("ansi", "bintext", "xbin", "idf")


def open_source(path: str):
    """Images or Movie for a path or glob. Raises FzError where there is nothing to read."""
    if not str(path).strip():
        raise FzError(f"video: got an empty path, expected {KINDS}")
    place = Path(path).expanduser()
    try:
        if place.is_dir():
            return Images(_images_in(place), str(path))
        if place.exists():
            return Images([place], place.name) if place.suffix.lower() in IMAGES else Movie(place)
    except PermissionError as error:
        raise FzError(f"video: {path} may not be read (permission denied)") from error
    if re.search(r"[*?\[]", str(place)):
        found = [Path(name) for name in glob.glob(str(place)) if os.path.isfile(name)]
        pictures = [p for p in found if p.suffix.lower() in IMAGES]
        if pictures:
            return Images(_in_order(pictures), str(path))
        if len(found) == 1:
            return Movie(found[0])
        got = f"matches {len(found)} files, none of them an image" if found else "matches no file"
        raise FzError(
            f"video: {path} {got}. Expected images (png, jpg, webp, bmp) or one video; put the glob in quotes"
        )
    raise FzError(_missing(path, place))


def _missing(path, place: Path) -> str:
    if "://" in str(path):
        return f"video: {path} is an address, expected {KINDS} on this machine; download it first"
    if not place.parent.is_dir():
        return f"video: {path} does not exist, nor does the folder {place.parent}. Expected {KINDS}"
    try:
        names = os.listdir(place.parent)
    except PermissionError:
        names = []
    hint = suggest(place.name, names) or suggest(
        place.stem, [name for name in names if Path(name).suffix.lower() in IMAGES + MOVIES]
    )
    return f"video: {path} does not exist.{hint} Expected {KINDS}"


# ---------------------------------------------------------------- images


def _in_order(paths: list[Path]) -> list[Path]:
    """By name with numbers as numbers: 2.png before 10.png. Zero-padded names keep plain order."""
    return sorted(
        paths, key=lambda p: ([(int(x), "") if x.isdigit() else (-1, x) for x in re.split(r"([0-9]+)", p.name)], p.name)
    )


def _images_in(folder: Path) -> list[Path]:
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    pictures = [folder / name for name in names if name.lower().endswith(IMAGES)]
    if not pictures:
        movie = next((name for name in names if name.lower().endswith(MOVIES)), None)
        do = (
            f"It holds {movie}: pass that file"
            if movie
            else f"It holds {len(names)} other files or folders"
            if names
            else "It is empty"
        )
        raise FzError(f"video: no images (png, jpg, webp, bmp) in the folder {folder}. {do}")
    return _in_order(pictures)


class Images:
    """Image files as a clip: one frame each, in order of their names.

    count; fps (files have no rate: 8, rated is False); order: timeline position -> frame, here 0, 1, 2 ...; still: a
    single image; notes.
    """

    rated = False

    def __init__(self, paths: list[Path], name: str):
        self.paths, self.name = paths, name
        self.count, self.fps, self.still = len(paths), IMAGE_FPS, len(paths) == 1
        self.order: Sequence[int] = range(len(paths))
        self.notes: list[str] = []
        plain = sorted(paths)
        if plain != paths:
            at = next(i for i, (a, b) in enumerate(zip(plain, paths, strict=True)) if a != b)
            self.notes.append(
                f"{name}: files are taken in order of their numbers ({paths[at].name} before {plain[at].name})"
            )

    def read(self, wanted: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """(index, picture) for each of the ascending frame numbers. All must have one size."""
        first = None
        for index in wanted:
            path = self.paths[index]
            picture, clear = _picture(path)
            shape = picture.shape[1], picture.shape[0]
            first = first or (path.name, shape)
            if shape != first[1]:
                raise FzError(
                    f"video: the images of {self.name} differ in size: {first[0]} is {first[1][0]}x{first[1][1]}, "
                    f"{path.name} is {shape[0]}x{shape[1]}. Frames of one clip need one size"
                )
            if clear:
                self._note(f"{self.name}: transparent pixels are shown on white")
            yield index, picture

    def _note(self, text: str):
        if text not in self.notes:
            self.notes.append(text)


def _picture(path: Path) -> tuple[np.ndarray, bool]:
    """An image file as (H, W, 3) uint8, upright (EXIF), and whether transparency was put on white."""
    try:
        with Image.open(path) as image:
            # Not for jpegs: phones store a second view or a depth map there.
            moving = getattr(image, "n_frames", 1) if image.format in ("WEBP", "PNG") else 1
            image.load()
            upright = ImageOps.exif_transpose(image)
    except PermissionError as error:
        raise FzError(f"video: {path} may not be read (permission denied)") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise FzError(f"video: {path} is no readable image ({_short(error)}). Is it complete?") from error
    if moving > 1:
        raise FzError(
            f"video: {path} is an animation of {moving} frames in an image format, expected mp4, webm or gif; "
            "convert it first"
        )
    if upright.mode == "F":
        raise FzError(f"video: {path} has floating-point pixels, expected 8 or 16 bits a channel; convert it first")
    if upright.mode.startswith("I"):
        # 16 bit grey; 257 takes 65535 to 255.
        grey = (np.asarray(upright).astype(np.float64).clip(0, 65535) / 257).round().astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2), False
    if "A" in upright.mode or upright.mode == "La" or "transparency" in upright.info:
        rgba = np.array(upright.convert("RGBA"))
        return on_white(rgba), bool((rgba[..., 3] < 255).any())
    return np.array(upright.convert("RGB")), False


def on_white(rgba: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8 with straight alpha -> (H, W, 3) uint8 over white."""
    if rgba[..., 3].min() == 255:
        return np.ascontiguousarray(rgba[..., :3])
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return (rgba[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


# ---------------------------------------------------------------- video files


class Movie:
    """A video file, addressed by frame number in display order.

    count; fps (average rate); order: timeline position -> frame; notes. The timeline has `count` positions at a
    constant rate from the first frame's time to the last one's, each filled by the frame nearest in time. At a constant
    rate that is every frame once; where frames stand unevenly (variable rate) some are taken twice and some not at all,
    and a note says so.
    """

    rated = True
    still = False

    def __init__(self, path: Path):
        self.path, self.name, self.notes = path, path.name, []
        with _opened(path) as (box, stream):
            rate = stream.average_rate or stream.guessed_rate
            self.codec = stream.codec_context.name
            self.times, self.keys = _packet_times(box, stream, path)
            tick = stream.time_base
            if stream.codec_context.color_trc in HDR:
                self.notes.append(f"{self.name} is an HDR video: its colours are not tone mapped and come out pale")
            claim = box.duration / av.time_base if box.duration and len(box.streams) == 1 else 0
        # Frame number as key where packets do not name the frames: no time stamps, repeated ones, VP8's hidden packets.
        self.counted = self.times is None or self.codec in ("vp8", "libvpx")
        if self.counted:
            self.times, tick = self._frame_times(tick, rate)
        self.count = len(self.times)
        if not self.count:
            raise FzError(f"video: {path} holds no frames (0 could be read). Is it complete?")
        self.fps, self.order = timeline([float(t * tick) for t in self.times], float(rate) if rate else None)
        if self.order != list(range(self.count)):
            self.notes.append(
                f"{self.name} has a variable frame rate: resampled to its average, {self.fps:.4g} fps, by nearest time"
            )
        end = float(self.times[-1] * tick)
        if claim - end > 1 + 3 / self.fps:
            self.notes.append(
                f"{self.name} says it lasts {claim:.3g} s, but its last frame is at {end:.3g} s: it may be truncated"
            )

    def _frame_times(self, tick, rate) -> tuple[list[int], Fraction]:
        """Display times by decoding every frame, and their unit; evenly spaced where frames have none."""
        with _opened(self.path) as (box, stream):
            times = [frame.pts for frame, _ in self._decode(box, stream)]
        if None not in times and all(a < b for a, b in zip(times, times[1:], strict=False)):
            return times, tick
        return list(range(len(times))), 1 / Fraction(rate or 8)

    def _decode(self, box, stream) -> Iterator[tuple["av.VideoFrame", int]]:
        """Frames from where the file stands, with their number in this run."""
        number = 0
        try:
            for packet in box.demux(stream):
                for frame in packet.decode():
                    yield frame, number
                    number += 1
        except av.FFmpegError as error:
            raise FzError(
                f"video: {self.path} breaks off or is corrupt near frame {number} ({_short(error)}). Convert it again"
            ) from error

    def read(self, wanted: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """(index, picture) for each of the ascending frame numbers. Decodes from the key frame before the first to the
        last, no further.
        """
        number_of = {i if self.counted else self.times[i]: i for i in wanted}
        # A file whose seeking misses the first frame is read again from its start.
        for key in (self._key_before(wanted[0]), None):
            with _opened(self.path) as (box, stream):
                stream.thread_type = "AUTO"
                if key is not None:
                    box.seek(key, stream=stream, backward=True)
                for frame, number in self._decode(box, stream):
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

    def _note(self, text: str):
        if text not in self.notes:
            self.notes.append(text)

    def _upright(self, frame: "av.VideoFrame", stream) -> np.ndarray:
        shape = stream.sample_aspect_ratio
        if shape and shape != 1 and 0.1 < shape < 10:
            self._note(f"{self.name}: pixels are {shape.numerator}:{shape.denominator}, widened to square ones")
            frame = frame.reformat(
                width=max(1, round(frame.width * shape)), format="rgba" if _has_alpha(frame) else "rgb24"
            )
        if _has_alpha(frame):
            rgba = frame.to_ndarray(format="rgba")
            if rgba[..., 3].min() < 255:
                self._note(f"{self.name}: transparent pixels are shown on white")
            picture = on_white(rgba)
        else:
            picture = frame.to_ndarray(format="rgb24")
        matrix = frame.side_data.get("DISPLAYMATRIX")
        return picture if matrix is None else turned(picture, np.frombuffer(bytes(matrix), np.int32).reshape(3, 3))


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


def timeline(times: list[float], nominal: float | None) -> tuple[float, list[int]]:
    """(fps, order) of frames shown at `times` (seconds, rising): a constant timeline's rate, the frame nearest to each
    of its positions.

    nominal: the file's own average rate; taken where it agrees with the times to 1 %, as it is exact (30000/1001) and
    they are rounded.
    """
    n = len(times)
    span = times[-1] - times[0]
    if n < 2 or span <= 0:
        return nominal or IMAGE_FPS, list(range(n))
    fps = (n - 1) / span
    middles = [(s + t) / 2 for s, t in zip(times, times[1:], strict=False)]
    order = [bisect_right(middles, times[0] + k * span / (n - 1)) for k in range(n)]
    return nominal if nominal and abs(nominal / fps - 1) < 0.01 else fps, order


def _has_alpha(frame: "av.VideoFrame") -> bool:
    return any(component.is_alpha for component in frame.format.components)


def _packet_times(box, stream, path: Path) -> tuple[list[int] | None, list[tuple[int, int]]]:
    """Display times of all frames, from the packets, without decoding (None where they do not tell), and the key
    frames' (pts, dts).

    Raises FzError for a file that ends within a frame.
    """
    times, keys, whole = [], [], True
    try:
        for packet in box.demux(stream):
            if packet.size and not packet.is_discard:
                times.append(packet.pts)
                whole = not packet.is_corrupt
                if packet.is_keyframe and packet.pts is not None and packet.dts is not None:
                    keys.append((packet.pts, packet.dts))
    except av.FFmpegError:
        whole = False
    if not whole:
        of = f" of {stream.frames}" if stream.frames > len(times) else ""
        raise FzError(
            f"video: {path} is truncated: it breaks off after {len(times)}{of} frames. Copy it again, or convert it "
            "to keep them"
        )
    if None in times or len(set(times)) < len(times):
        return None, []
    return sorted(times), sorted(keys)


@contextmanager
def _opened(path: Path):
    """(container, video stream) of a file; FzError where there is none."""
    need_av(path)
    try:
        # 'file:' keeps FFmpeg from reading a protocol into a name with a colon.
        box = av.open(f"file:{path}")
    except PermissionError as error:
        raise FzError(f"video: {path} may not be read (permission denied)") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        why = (
            "is empty (0 bytes)"
            if path.stat().st_size == 0
            else f"is no video, is truncated or is corrupt ({_short(error)})"
        )
        raise FzError(f"video: {path} {why}. Expected {KINDS}") from error
    with box:
        streams = [s for s in box.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams or streams[0].codec_context is None or streams[0].codec_context.name in TEXT_ART:
            raise FzError(f"video: {path} has no pictures in it. Expected {KINDS}")
        yield box, streams[0]


def _short(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0][:120]
