"""Clips and masks that are damaged, of odd sizes, of other kinds than their names say, or no files at all."""

import io
import os
import shutil
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from random import Random

from .checks import Input
from .damage import damaged, odd_file
from .ground import Ground, joined

# text that decoders follow to other files, or that other programs draw
TEXTS = {
    "neighbour.mp4": "ffconcat version 1.0\nfile clip.mp4\n",
    "playlist.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.mp4\n#EXT-X-ENDLIST\n",
    "session.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "drawn.png": "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n0 0 64 64 rectfill\nshowpage\n",
    "drawn.jpg": '<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><image href="mask.png"/></svg>',
    "page.png": "<html>404</html>",
    "subtitles.mkv": "1\n00:00:00,000 --> 00:00:02,000\nhello\n",
    "art.gif": "\x1b[31mred\x1b[0m" * 200,
    "raw.mov": "P6\n64 64\n255\n" + "x" * 500,
    "script.avi": 'AviSource("clip.mp4")\n',
}
CONTAINERS = {
    "mp4": "mpeg4",
    "mkv": "mpeg4",
    "avi": "mpeg4",
    "mov": "mjpeg",
    "webm": "libvpx",
    "gif": "gif",
    "m4v": "mpeg4",
}
NAMES = ("clip", "a b", "ünï", "\x1b[31mred", "x\ny", "-rf", "名", "a" * 200, "\udcff", "[x]", "*", "100%", "${a}", "~")


def movie(chance: Random, path: Path, codec: str) -> None:
    """A movie of a few small frames: any size, rate and pixel format that the codec takes."""
    import av
    import numpy as np

    rate = chance.choice((8, 8, 25, Fraction(30000, 1001), 1, 1000, Fraction(1, 5)))
    height, width = chance.choice(((64, 64), (64, 64), (2, 2), (16, 400), (90, 66), (64, 2)))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        formats = {"mjpeg": "yuvj420p", "gif": "rgb8"}
        stream.width, stream.height, stream.pix_fmt = width, height, formats.get(codec, "yuv420p")
        stream.codec_context.time_base = 1 / Fraction(rate)
        for i in range(chance.choice((0, 1, 2, 9))):
            pixels = np.full((height, width, 3), 20 * i + 10, np.uint8)
            pixels[:, : width // 2] = chance.randrange(256)
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts = i
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def png(width: int, height: int, depth: int, colour: int, rows: bytes, more: bytes = b"") -> bytes:
    """A PNG of raw rows, whatever they say."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def picture(chance: Random) -> tuple[str, bytes]:
    """(ending, bytes) of a picture of an odd kind."""
    from PIL import Image

    way = chance.randrange(8)
    if way == 0:
        width, height = chance.choice(((20000, 2), (65535, 1), (1, 65535), (1, 1), (2, 3), (3, 20000)))
        return "png", png(width, height, 1, 0, (b"\0" + bytes((width + 7) // 8)) * height)
    if way == 1:
        side = chance.choice((12000, 30000))
        return "png", png(side, side, 1, 0, b"\0" * ((side + 7) // 8 + 1) * min(side, 12000))
    if way == 2:
        width, height = chance.choice(((0, 64), (2**31 - 1, 2**31 - 1), (10**6, 10**6), (64, 0)))
        return "png", png(width, height, chance.choice((1, 8, 16, 3)), chance.choice((0, 2, 3, 6, 5)), b"\0" * 1000)
    if way == 3:
        text = struct.pack(">I", 2000) + b"zTXt" + b"a\0\0" + zlib.compress(b"x" * 50_000_000)[:1997]
        return "png", png(64, 64, 8, 0, (b"\0" + bytes(64)) * 64, text)
    mode = chance.choice(("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr"))
    ending = chance.choice(("png", "jpg", "bmp", "tif", "webp", "ppm", "gif"))
    form = {"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending.upper())
    image = Image.new("L", chance.choice(((64, 64), (100, 30), (1, 200)))).convert("RGB" if mode == "YCbCr" else "L")
    out, options = io.BytesIO(), {}
    if chance.random() < 0.3 and ending in ("jpg", "png", "webp", "tif"):
        options["exif"] = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes(
            [chance.randrange(12), 0, 0, 0, 0, 0, 0]
        )
    if ending in ("gif", "webp", "png", "tif") and chance.random() < 0.3:
        options |= {"save_all": True, "append_images": [image] * 3}
    try:
        (image.convert(mode) if mode != "I;16" else image.convert("I").convert("I;16")).save(out, form, **options)
    except (OSError, ValueError, KeyError):  # a format that has no such mode
        out = io.BytesIO()
        image.convert("RGB").save(out, form)
    return ending, out.getvalue()


def clip(chance: Random, ground: Ground, work: Path) -> tuple[str, str, tuple[int, ...]]:
    """(path, what it is, exit codes that are right) of a clip of an odd kind."""
    way = chance.randrange(9)
    shutil.copyfile(ground.movie, work / "clip.mp4")
    shutil.copyfile(ground.mask, work / "mask.png")
    if way == 0:
        name = chance.choice(list(TEXTS))
        (work / name).write_text(TEXTS[name])
        return name, "text", (2,)
    if way in (1, 2):
        ending = chance.choice(list(CONTAINERS))
        path = work / f"made.{ending}"
        try:
            movie(chance, path, CONTAINERS[ending])
        except Exception:  # sizes and rates that this container has not
            shutil.copyfile(ground.movie, path)
        if not path.exists():  # no frame, no file
            path.touch()
        if way == 2:
            path.write_bytes(damaged(chance, path.read_bytes()))
        if chance.random() < 0.15:
            path = path.rename(path.with_suffix("." + chance.choice(("png", "gif", "mp4", "txt", "webm"))))
        return path.name, f"movie {ending}", (0, 2)
    if way == 3:
        ending, data = picture(chance)
        ending = chance.choice((ending, ending, ending, "png", "mp4", "gif"))
        (work / f"one.{ending}").write_bytes(data if chance.random() < 0.7 else damaged(chance, data))
        return f"one.{ending}", "picture", (0, 2)
    if way == 4:
        name = "odd" + chance.choice((".mp4", ".png", ".gif", "", ".webm"))
        return name, odd_file(chance, work / name), (0, 2)
    if way == 5:
        name = chance.choice(NAMES)
        path = work / (name + ".mp4")
        if chance.random() < 0.6:
            shutil.copyfile(ground.movie, path)
        return str(path) if chance.random() < 0.5 else path.name, "name", (0, 2)
    if way == 6:
        path = work / "damaged.mp4"
        path.write_bytes(damaged(chance, ground.movie.read_bytes()))
        return path.name, "movie", (0, 2)
    shutil.copytree(ground.clip, work / "frames")
    files = sorted((work / "frames").iterdir())
    for _ in range(chance.choice((1, 1, 3))):
        file, what = chance.choice(files), chance.randrange(6)
        if what == 0 and file.is_file() and not file.is_symlink():
            file.write_bytes(damaged(chance, file.read_bytes()))
        elif what == 1:
            odd_file(chance, file) if not file.is_dir() else None
        elif what == 2:
            ending, data = picture(chance)
            (work / "frames" / f"{chance.choice(('00001', '9', '-1', NAMES[6]))}.{ending}").write_bytes(data)
        elif what == 3:
            (
                work / "frames" / chance.choice((".DS_Store", "notes.txt", "Thumbs.db", "x.mp4", "._00000.png"))
            ).write_bytes(b"\0\1")
        elif what == 4:
            os.symlink("..", work / "frames" / f"{chance.randrange(99)}.png")
        else:
            shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink(missing_ok=True)
    where = chance.choice(
        ("frames", "frames", "frames/*.png", "frames/*", "frames/0000[01].png", "frames/[", "frames/**")
    )
    return where, "folder", (0, 2)


def media(chance: Random, ground: Ground, work: Path) -> Input:
    path, about, codes = clip(chance, ground, work)
    command = chance.choice(("fz.run", "fz.run", "fz.run", "fz.tune", "fz.prompt"))
    dry = (command != "fz.prompt" and chance.random() < 0.6) or None
    if command == "fz.run" and chance.random() < 0.2:
        given, codes = ground.flags(mask=path, dry_run=dry), (0, 2)
    else:
        frames = chance.choice(("1", "2", "2", "all")) if about != "movie" else "2"
        given = (ground.tuning if command == "fz.tune" else ground.flags)(video=path, frames=frames, dry_run=dry)
        if chance.random() < 0.15:
            given.append(
                chance.choice((("--start", "1"), ("--every", "2"), ("--crop", "1,1,0,0"), ("--keep-background", None)))
            )
    if command != "fz.run":
        given = [pair for pair in given if pair[0] != "--keep-background"]
    keep = [p for p in work.iterdir() if p.is_dir() and p.name == "frames" or p.is_file() and not p.is_symlink()]
    keep = [p for p in keep if p.name not in ("stdout", "stderr")]
    return Input("media", command, joined([(n, v) for n, v in given]), work, about, codes=codes, keep=keep)
