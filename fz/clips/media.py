"""What a run leaves to look at: mp4, gif and png files, side by side clips, sheets of masks and attention maps.

Pictures are numpy (F, H, W, 3) uint8 throughout. Every file is written under a temporary name beside its place and
moved there when complete (`fz.whole.atomic`), so an interrupted run leaves no half file. Reading is `fz.clips.decode`'s
question."""

import json
import math
import os
import platform
import re
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch.nn.functional import interpolate

from fz.clips.files import check_rate
from fz.clips.film import Colours, Sound, add_sound, encode_sound
from fz.clips.images import opened_image
from fz.clips.pyav import av, need_av
from fz.errors import FzError
from fz.whole import atomic

# Colours from cold to hot at equal steps, dark to bright in grey as well.
HEAT = (
    (0, 0, 4),
    (40, 11, 84),
    (101, 21, 110),
    (159, 42, 99),
    (212, 72, 66),
    (245, 125, 21),
    (250, 193, 39),
    (252, 255, 164),
)
COLOURS = Colours()
LIMITED = 1
# swscale calls both codes of BT.601 by one
SWSCALE = {6: 5}
# a text in each picture of a folder: the sum of the pixels that were written
MARK = "fz"


def write_json(path: str | Path, content: Any) -> None:
    """Whole or not at all."""
    with atomic(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def to_uint8(frames: torch.Tensor) -> np.ndarray:
    """(F, 3, H, W) in [-1, 1], clamped -> (F, H, W, 3) uint8, rounded to the nearest."""
    return (
        (frames.detach().float() / 2 + 0.5)
        .clamp(0, 1)
        .mul(255)
        .round()
        .to(torch.uint8)
        .permute(0, 2, 3, 1)
        .cpu()
        .contiguous()
        .numpy()
    )


# x264's AVX-512 code gives other bytes for the same frames once in a while
SAME_BYTES = {"x264-params": "asm=avx2"} if platform.machine().lower() in ("x86_64", "amd64") else {}


def write_mp4(path, frames: np.ndarray, fps: float, sound: Sound | None = None, colours: Colours = COLOURS):
    """H.264, yuv420p, index at the front: plays in a browser. frames (F, H, W, 3); odd sides gain one repeated row or
    column. sound: beside the pictures, from the first one's time on; colours: tags, and the matrix from RGB.
    """
    need_av(path)
    frames = _even(_checked(frames, path, colour=True))
    # 29.97 and 30000/1001 stay what they are, 24.000001 becomes 24.
    rate = Fraction(check_rate(fps)).limit_denominator(1001)
    with atomic(path) as part, av.open(f"file:{part}", "w", format="mp4", options={"movflags": "+faststart"}) as box:
        stream = box.add_stream("libx264", rate=rate, options={"crf": "16", "preset": "medium"} | SAME_BYTES)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.colorspace, codec.color_primaries = colours.matrix, colours.primaries
        codec.color_trc, codec.color_range = colours.transfer, LIMITED
        voice = add_sound(box, sound) if sound is not None else None
        for number, picture in enumerate(frames):
            frame = _yuv_frame(picture, colours)
            frame.pts, frame.time_base = number, 1 / rate
            box.mux(stream.encode(frame))
        box.mux(stream.encode())
        if voice is not None:
            encode_sound(box, voice, sound)


def _yuv_frame(picture: np.ndarray, colours: Colours) -> "av.VideoFrame":
    return av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
        format="yuv420p", dst_colorspace=SWSCALE.get(colours.matrix, colours.matrix)
    )


def write_gif(path, frames: np.ndarray, fps: float):
    """An endless gif, 255 colours a frame. Delays are multiples of 1/100 s: they alternate to keep the rate on average,
    up to 50 fps.
    """
    frames = _checked(frames, path, colour=True)
    step = max(100 / check_rate(fps), 2)  # browsers slow delays under 2 ticks down to 10
    ticks = [round((k + 1) * step) - round(k * step) for k in range(len(frames))]
    pictures = [
        Image.fromarray(f).quantize(255, Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG) for f in frames
    ]
    with atomic(path) as part:
        durations = [10 * t for t in ticks]
        pictures[0].save(
            part, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, disposal=1
        )


def write_png(path, picture: np.ndarray):
    """One (H, W, 3) or (H, W) uint8 picture."""
    with atomic(path) as part:
        Image.fromarray(np.ascontiguousarray(picture)).save(part, format="PNG")


def write_pngs(folder, frames: np.ndarray):
    """00000.png, 00001.png ... for (F, H, W, 3) or (F, H, W) uint8. The whole folder appears at once; one that was
    written so is replaced.

    Raises FzError for the current folder, and for one that holds anything else.
    """
    # what a link leads to is replaced, not the link
    folder = Path(os.path.realpath(folder))
    frames = _checked(frames, folder)
    _check_replaceable(folder, frames)
    with atomic(folder) as part:
        part.mkdir()
        for number, picture in enumerate(frames):
            mark = PngInfo()
            mark.add_text(MARK, _sum(picture))
            Image.fromarray(picture).save(part / f"{number:05d}.png", format="PNG", pnginfo=mark)
        # what came there meanwhile
        _check_replaceable(folder, frames)


def _check_replaceable(folder: Path, frames: np.ndarray) -> None:
    """Raises FzError unless nothing that is there is lost, once these frames are written in its place."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FzError(f"out: {folder} is a file, expected a folder of pictures; choose another name")
    if folder.samefile(os.curdir):
        raise FzError(f"out: {folder} is the current folder, which cannot be replaced; name one within it, as 'red'")
    for name in sorted(os.listdir(folder)):
        if not _is_kept(folder / name, frames):
            raise FzError(
                f"out: {folder} holds {name}, expected nothing but pictures that were saved there before, unchanged; "
                "choose another folder"
            )


def _is_kept(place: Path, frames: np.ndarray) -> bool:
    """Is it a picture that `write_pngs` wrote, and that nobody changed since, or one of these frames?"""
    if place.is_symlink() or not re.fullmatch(r"[0-9]{5,}\.png", place.name):
        return False
    try:
        with opened_image(place) as image:
            image.load()
            picture, mark, number = np.asarray(image), image.info.get(MARK), int(place.stem)
    except FzError:
        return False
    return mark == _sum(picture) or (number < len(frames) and np.array_equal(picture, frames[number]))


def _sum(picture: np.ndarray) -> str:
    return f"{picture.shape} {zlib.crc32(np.ascontiguousarray(picture)):08x}"


def enlarged(pictures: np.ndarray, width: int) -> np.ndarray:
    """(F, H, W, 3) with each pixel as a square, as many times larger as fit into that width."""
    times = max(1, width // pictures.shape[2])
    return pictures.repeat(times, axis=1).repeat(times, axis=2)


def side_by_side(clips: Sequence[np.ndarray], labels: Sequence[str] | None = None, gap: int = 4) -> np.ndarray:
    """Clips (F, H, W, 3) of one shape next to each other, white between them, labels (wrapped to the width) above: (F,
    H', W', 3).
    """
    clips = _same_shape(clips, "side by side")
    frames, height, width = clips[0].shape[:3]
    line = np.full((frames, height, gap, 3), 255, np.uint8)
    row = np.concatenate([part for clip in clips for part in (line, clip)][1:], axis=2)
    if labels is None:
        return row
    head = _headings(_one_each(labels, clips), width, gap)
    return np.concatenate([np.broadcast_to(head, (frames, *head.shape)), row], axis=1)


def contact_sheet(
    clips: Sequence[np.ndarray], labels: Sequence[str] | None = None, tile: int = 192, gap: int = 4
) -> np.ndarray:
    """One picture (H', W', 3) of clips (F, H, W, 3): a row each, label above, frames from left to right, none larger
    than `tile`.
    """
    clips = _same_shape(clips, "contact sheet")
    frames, height, width = clips[0].shape[:3]
    shrink = min(1, tile / max(height, width))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    rows = []
    for number, clip in enumerate(clips):
        cells = [
            np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BOX))
            for picture in clip
        ]
        row = side_by_side([cell[None] for cell in cells], None, gap)[0]
        if labels is not None:
            rows.append(_headings([_one_each(labels, clips)[number]], row.shape[1], gap))
        rows.append(row)
        rows.append(np.full((gap, row.shape[1], 3), 255, np.uint8))
    return np.concatenate(rows[:-1], axis=0)


def heat(maps: torch.Tensor, peak: float | None = None) -> np.ndarray:
    """maps (F, h, w), 0 to peak (None = their largest value; more is clipped) -> (F, h, w, 3) uint8, dark to bright."""
    maps = maps.detach().float().cpu()
    top = float(maps.max()) if peak is None else float(peak)
    # A map of zeros (or of NaN) is dark all over.
    place = (maps / top if top > 0 else torch.zeros_like(maps)).nan_to_num(0).clamp(0, 1) * (len(HEAT) - 1)
    low = place.long().clamp(max=len(HEAT) - 2)
    table = torch.tensor(HEAT, dtype=torch.float32)
    part = (place - low)[..., None]
    return (table[low] * (1 - part) + table[low + 1] * part).round().to(torch.uint8).numpy()


def overlay(frames: np.ndarray, maps: torch.Tensor, peak: float | None = None, opacity: float = 0.6) -> np.ndarray:
    """Heat (0 to peak) of maps (F, h, w) over frames (F, H, W, 3): (F, H, W, 3) uint8.

    Boolean and integer maps are masks: their edges stay hard, and peak is 1. Others are smoothed.
    """
    size = frames.shape[1:3]
    if maps.shape[0] != frames.shape[0]:
        raise FzError(f"overlay: got maps of {maps.shape[0]} frames over {frames.shape[0]} frames, expected as many")
    hard = not maps.is_floating_point()
    if hard:
        large = interpolate(maps[:, None].float().cpu(), size=size, mode="nearest-exact")[:, 0]
    else:
        large = interpolate(maps[:, None].detach().float().cpu(), size=size, mode="bilinear", antialias=True)[:, 0]
    top = peak if peak is not None else 1.0 if hard else None
    return (frames * (1 - opacity) + heat(large, top) * opacity).round().astype(np.uint8)


def _headings(labels: Sequence[str], width: int, gap: int) -> np.ndarray:
    """(h, len(labels) * (width + gap) - gap, 3): each label black on white over its column, wrapped, at most four
    lines.
    """
    size = max(10, min(20, width // 20))
    font = ImageFont.load_default(size)
    columns = [_wrapped(label, font, width - 4) for label in labels]
    tall = max(len(lines) for lines in columns)
    image = Image.new("RGB", (len(labels) * (width + gap) - gap, math.ceil(tall * size * 1.3) + 4), "white")
    draw = ImageDraw.Draw(image)
    for column, lines in enumerate(columns):
        for row, line in enumerate(lines):
            draw.text((column * (width + gap) + 2, 2 + row * size * 1.3), line, fill="black", font=font)
    return np.array(image)


def _wrapped(text: str, font, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    lines = lines if len(lines) <= 4 else [*lines[:3], f"{lines[3]} …"]
    for number, line in enumerate(lines):
        while len(line) > 1 and font.getlength(line) > width:
            line = line.rstrip("…")[:-1] + "…"
        lines[number] = line
    return lines


def _checked(frames: np.ndarray, path, colour: bool = False) -> np.ndarray:
    grey = frames.ndim == 3 and not colour
    if frames.dtype != np.uint8 or not frames.size or not (grey or (frames.ndim == 4 and frames.shape[3] == 3)):
        raise FzError(
            f"{path}: got frames of shape {tuple(frames.shape)}, {frames.dtype}; expected at least one, (F, H, W, "
            "3) uint8"
        )
    return np.ascontiguousarray(frames)


def _same_shape(clips: Sequence[np.ndarray], what: str) -> list[np.ndarray]:
    shapes = sorted({tuple(clip.shape) for clip in clips})
    if len(shapes) != 1:
        raise FzError(f"{what}: got clips of shapes {shapes}, expected one or more of one shape")
    return list(clips)


def _one_each(labels: Sequence[str], clips: Sequence) -> Sequence[str]:
    if len(labels) != len(clips):
        raise FzError(f"labels: got {len(labels)} for {len(clips)} clips, expected one each")
    return labels


def _even(frames: np.ndarray) -> np.ndarray:
    # 4:2:0 colour needs even sides.
    return np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
