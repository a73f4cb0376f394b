"""Makers of files that are not what their names say, do not end, or are larger than they look."""

import os
import struct
import zlib
from pathlib import Path

POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 64 64
%%EndComments
(ran) (w) file closefile
showpage
"""


def postscript(path: Path) -> Path:
    """An EPS picture, which Pillow gives to Ghostscript to run."""
    path.write_bytes(POSTSCRIPT)
    return path


def playlist(path: Path, names: str) -> Path:
    """Text by which FFmpeg plays other files."""
    path.write_text("ffconcat version 1.0\n" + "".join(f"file {name}\n" for name in names.split()))
    return path


def hls(path: Path, name: str) -> Path:
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1.0,\n{name}\n#EXT-X-ENDLIST\n")
    return path


def sdp(path: Path) -> Path:
    path.write_text("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 26\n")
    return path


def png(path: Path, width: int, height: int) -> Path:
    """A black grey PNG of that size, a thousandth as large as its pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows, row = zlib.compressobj(9), bytes(1 + width)
    data = b"".join(rows.compress(row) for _ in range(height)) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


def huge_gif(path: Path, side: int = 50000) -> Path:
    """Few bytes that say they are a picture of side x side."""
    screen = struct.pack("<HH", side, side)
    path.write_bytes(
        b"GIF89a" + screen + b"\x80\x00\x00" + bytes(3) + b"\xff" * 3 + b"\x2c" + bytes(4) + screen + b"\x00"
        b"\x02\x02\x44\x01\x00\x3b"
    )
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path
