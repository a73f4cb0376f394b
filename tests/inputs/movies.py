"""Makers of video files: twelve containers, each codec that PyAV's own FFmpeg can write there, whole and cut.

Frame k of `numbered` has its number in its mean grey level, so a decoded picture says which frame it is; noise on it
fills the files, so that a cut by bytes falls between and into pictures.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

STEP = 4  # grey levels from one frame to the next
FIRST = 28


def numbered(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """(count, H, W, 3) uint8 grey, frame k of mean level STEP k + FIRST; at most 50 frames."""
    noise = np.random.default_rng(0).integers(-20, 21, (count, height // 2, width, 1))
    levels = STEP * np.arange(count).reshape(-1, 1, 1, 1) + FIRST
    # noise and its opposite: the mean stays
    return np.concatenate([levels + noise, levels - noise], axis=1).astype(np.uint8).repeat(3, axis=3)


def number(picture: np.ndarray) -> int:
    """Which frame of `numbered` this picture is."""
    return round((float(picture.mean()) - FIRST) / STEP)


def make(
    path: Path,
    frames: np.ndarray,
    codec: str,
    times: Sequence[int] | None = None,
    unit: Fraction = Fraction(1, 25),
    pix_fmt: str = "yuv420p",
    container: str | None = None,
    gop: int = 12,
    **options: str,
) -> Path:
    """A video file of frames (F, H, W, 3 or 4) at times, counted in units of so many seconds."""
    of_file = {name: options.pop(name) for name in ("movflags", "live", "mpegts_m2ts_mode") if name in options}
    with av.open(f"file:{path}", "w", format=container, options=of_file) as box:
        stream = box.add_stream(codec, rate=1 / unit if times is None else 25, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.gop_size = gop
        stream.codec_context.time_base = unit
        if pix_fmt == "yuva420p":
            stream.metadata["alpha_mode"] = "1"
        for picture, pts in zip(frames, times or range(len(frames)), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgba" if picture.shape[2] == 4 else "rgb24")
            frame.pts, frame.time_base = pts, unit
            box.mux(stream.encode(frame))
        box.mux(stream.encode())
    return path


def without_start(source: Path, target: Path, packets: int, container: str | None = None) -> Path:
    """A copy of the stream without its first packets: what a cut by packets leaves."""
    with av.open(f"file:{source}") as box, av.open(f"file:{target}", "w", format=container) as out:
        stream = box.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for number, packet in enumerate(box.demux(stream)):
            if packet.dts is not None and number >= packets:
                packet.stream = copy
                out.mux(packet)
    return target


def cut_bytes(source: Path, target: Path, start: float = 0.0, end: float = 1.0) -> Path:
    """A part of a file's bytes, as a recording begins and ends."""
    data = source.read_bytes()
    target.write_bytes(data[int(len(data) * start) : int(len(data) * end)])
    return target


X264 = {"preset": "veryfast", "crf": "12"}
OPEN = {"x264-params": "open-gop=1:scenecut=0", "bf": "3", **X264}
VP9 = {"cpu-used": "8", "deadline": "realtime", "b": "2000000"}
VP8 = {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "2000000"}
MPEG = {"b": "4000000"}
# name of the file: (codec, options of make); 48 frames each at 25 a second
WHOLE: dict[str, tuple[str, dict]] = {
    "h264.mp4": ("libx264", X264),
    "h264-open.mp4": ("libx264", OPEN),
    "h264-no-b.mp4": ("libx264", {"bf": "0", **X264}),
    "h264-444.mp4": ("libx264", {"pix_fmt": "yuv444p", **X264}),
    "h264-10bit.mp4": ("libx264", {"pix_fmt": "yuv420p10le", **X264}),
    "h264-25th.mp4": ("libx264", {"unit": Fraction(1001, 30000), **X264}),
    "h264-fragments.mp4": ("libx264", {"movflags": "frag_keyframe+empty_moov", **OPEN}),
    "h264-live.mkv": ("libx264", {"live": "1", **OPEN}),
    "hevc.mp4": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none:crf=10"}),
    "hevc-open.mp4": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none:crf=10:open-gop=1:keyint=8"}),
    "mpeg4.mp4": ("mpeg4", {"bf": "2", **MPEG}),
    "vp9.mp4": ("libvpx-vp9", VP9),
    "av1.mp4": ("libsvtav1", {"preset": "12", "crf": "10"}),
    "mjpeg.mov": ("mjpeg", {"pix_fmt": "yuvj420p"}),
    "h264.mov": ("libx264", OPEN),
    "prores.mov": ("prores_ks", {"pix_fmt": "yuv422p10le"}),
    "qtrle.mov": ("qtrle", {"pix_fmt": "rgb24"}),
    "png.mov": ("png", {"pix_fmt": "rgb24"}),
    "h264.m4v": ("libx264", {"container": "mp4", **X264}),
    "h264.3gp": ("libx264", X264),
    "h264.mkv": ("libx264", OPEN),
    "hevc.mkv": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none:crf=10:open-gop=1:keyint=8"}),
    "mpeg2.mkv": ("mpeg2video", {"bf": "2", **MPEG}),
    "ffv1.mkv": ("ffv1", {}),
    "vp8.mkv": ("libvpx", VP8),
    "av1.mkv": ("libsvtav1", {"preset": "12", "crf": "10"}),
    "vp8.webm": ("libvpx", VP8),
    "vp9.webm": ("libvpx-vp9", VP9),
    "vp9-hidden.webm": ("libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8", "b": "2000000"}),
    "mpeg4.avi": ("mpeg4", MPEG),
    "mpeg4-b.avi": ("mpeg4", {"bf": "2", **MPEG}),
    "h264.avi": ("libx264", {"bf": "0", **X264}),
    "h264-b.avi": ("libx264", {"bf": "2", **X264}),
    "mjpeg.avi": ("mjpeg", {"pix_fmt": "yuvj420p"}),
    "huffyuv.avi": ("huffyuv", {"pix_fmt": "yuv422p"}),
    "ffv1.avi": ("ffv1", {}),
    "raw.avi": ("rawvideo", {"pix_fmt": "yuv420p"}),
    "mpeg1.mpg": ("mpeg1video", {"bf": "2", "container": "mpeg", **MPEG}),
    "mpeg1-no-b.mpg": ("mpeg1video", {"container": "mpeg", **MPEG}),
    "mpeg2.mpg": ("mpeg2video", {"bf": "2", "container": "vob", **MPEG}),
    "mpeg2-no-b.mpg": ("mpeg2video", {"container": "vob", **MPEG}),
    "mpeg2.vob": ("mpeg2video", {"bf": "2", "container": "dvd", "gop": 15, **MPEG}),
    "h264.mpg": ("libx264", {"container": "vob", **X264}),
    "mpeg2.ts": ("mpeg2video", {"bf": "2", **MPEG}),
    "h264.ts": ("libx264", X264),
    "h264-open.ts": ("libx264", OPEN),
    "hevc.ts": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none:crf=10:open-gop=1:keyint=8"}),
    "h264.m2ts": ("libx264", {"container": "mpegts", "mpegts_m2ts_mode": "1", **X264}),
    "flv1.flv": ("flv", MPEG),
    "h264.flv": ("libx264", {"bf": "2", **X264}),
    "hevc.flv": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none:crf=10"}),
    "wmv2.wmv": ("wmv2", {"container": "asf", **MPEG}),
    "msmpeg4.asf": ("msmpeg4", MPEG),
    "vp8.ogv": ("libvpx", VP8),
    "mpeg2.mxf": ("mpeg2video", {"bf": "2", "pix_fmt": "yuv422p", **MPEG}),
    "h264.nut": ("libx264", OPEN),
    "vp9.ivf": ("libvpx-vp9", VP9),
    "h264.h264": ("libx264", OPEN),
    "hevc.hevc": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none:crf=10"}),
    "mpeg2.m2v": ("mpeg2video", {"bf": "2", "container": "mpeg2video", **MPEG}),
    "mpeg4.m4v": ("mpeg4", {"container": "m4v", **MPEG}),
    "gif.gif": ("gif", {"pix_fmt": "gray"}),
    "apng.apng": ("apng", {"pix_fmt": "rgb24"}),
}


def whole(name: str, folder: Path, count: int = 48) -> Path:
    codec, options = WHOLE[name]
    return make(folder / name, numbered(count), codec, **options)


# files that begin in the middle of a group of pictures
CUT: dict[str, Callable[[Path], Path]] = {
    "open-gop.ts": lambda at: without_start(whole("h264-open.ts", at), at / "open-gop.ts", 12),
    "open-gop-mpeg2.ts": lambda at: without_start(whole("mpeg2.ts", at), at / "open-gop-mpeg2.ts", 12),
    "open-gop.mkv": lambda at: without_start(whole("h264.mkv", at), at / "open-gop.mkv", 12),
    "open-gop.mp4": lambda at: without_start(whole("h264-open.mp4", at), at / "open-gop.mp4", 12),
    "open-gop-hevc.mkv": lambda at: without_start(whole("hevc.mkv", at), at / "open-gop-hevc.mkv", 8),
    "mid-gop.ts": lambda at: without_start(whole("h264.ts", at), at / "mid-gop.ts", 5),
    "mid-gop-mpeg2.ts": lambda at: without_start(whole("mpeg2.ts", at), at / "mid-gop-mpeg2.ts", 5),
    "mid-gop-hevc.ts": lambda at: without_start(whole("hevc.ts", at), at / "mid-gop-hevc.ts", 3),
    "mid-gop.mkv": lambda at: without_start(whole("h264.mkv", at), at / "mid-gop.mkv", 5),
    "mid-gop.mpg": lambda at: without_start(whole("mpeg2.mpg", at), at / "mid-gop.mpg", 5),
    "recording.ts": lambda at: cut_bytes(whole("h264.ts", at), at / "recording.ts", 0.3, 0.8),
    "recording-mpeg2.ts": lambda at: cut_bytes(whole("mpeg2.ts", at), at / "recording-mpeg2.ts", 0.31, 0.83),
    "recording.mpg": lambda at: cut_bytes(whole("mpeg2.mpg", at), at / "recording.mpg", 0.3, 0.8),
    "recording.h264": lambda at: cut_bytes(whole("h264.h264", at), at / "recording.h264", 0.3, 1.0),
}


def gif(path: Path, delays: Sequence[int]) -> Path:
    """A gif of as many frames as delays (hundredths of a second), written byte by byte: encoders change delays."""
    data = bytearray(b"GIF89a" + bytes([8, 0, 8, 0, 0x80, 0, 0, 0, 0, 0, 255, 255, 255]))
    for number, delay in enumerate(delays):
        data += b"\x21\xf9\x04\x04" + delay.to_bytes(2, "little") + b"\x00\x00"
        palette = bytes([STEP * number + FIRST] * 3 + [0] * 3)
        data += b"\x2c" + bytes([0, 0, 0, 0, 8, 0, 8, 0, 0x80]) + palette
        # LZW: a clear code before every second pixel keeps codes at three bits
        codes = [code for _ in range(32) for code in (4, 0, 0)] + [5]
        bits = sum(code << (3 * place) for place, code in enumerate(codes))
        block = bits.to_bytes((3 * len(codes) + 7) // 8, "little")
        data += b"\x02" + bytes([len(block)]) + block + b"\x00"
    path.write_bytes(data + b"\x3b")
    return path


def see_through(count: int = 6, height: int = 48, width: int = 64) -> np.ndarray:
    """(count, H, W, 4) uint8: grey frames of `numbered` whose right half is transparent."""
    rgba = np.full((count, height, width, 4), 255, np.uint8)
    rgba[..., :3] = numbered(count, height, width) // 2
    rgba[:, :, width // 2 :, 3] = 0
    return rgba
