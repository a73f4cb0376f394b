"""What lies in a video file, through PyAV: its picture stream, the times that its packets claim, and its frames as the
decoder gives them, one after the other.

Only demuxers of FORMATS are asked: FFmpeg goes by content, and text named .mp4 could otherwise be a playlist that plays
its neighbours. Frames that cannot be decoded at the start of a recording, where the pictures they lean on were cut off,
and what is incomplete at its end, are left out and counted."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import EINVAL
from pathlib import Path

from fz.clips.files import KINDS, MAX_PIXELS, check_pixels, check_regular, denied, short
from fz.clips.pyav import av, need_av
from fz.errors import FzError

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,mpeg,mpegts,mpegvideo,flv,live_flv,ogg,asf,mxf,nut,ivf,h264,"
    "hevc,m4v,h263,av1,obu,dv,wtv,rm,yuv4mpegpipe,mjpeg,vc1,swf,dirac"
)
# an index that names every frame: seeking in these finds the frame that was meant
INDEXED = ("mov", "matroska")
# delays of frames are their own, the last one's too
DELAYED = ("gif", "apng")
OPTIONS = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
# decoders that know the second, grey picture in which VP8 and VP9 keep transparency
ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


@contextmanager
def opened(path: Path) -> Iterator[tuple["av.container.InputContainer", "av.VideoStream"]]:
    """(container, picture stream) of a file. Raises FzError where there is none, or one of too many pixels."""
    need_av(path)
    try:
        check_regular(path)
        # 'file:' keeps FFmpeg from reading a protocol into a name with a colon.
        box = av.open(f"file:{path}", options=OPTIONS)
    except FzError:
        raise
    except PermissionError as error:
        raise denied(path) from error
    except (av.FFmpegError, OSError, ValueError) as error:
        why = f"is no video, is truncated or is corrupt ({short(error)})"
        if path.stat().st_size == 0:
            why = "is empty (0 bytes)"
        elif getattr(error, "errno", None) == EINVAL:  # FFmpeg's answer to what is not on the list
            why = "is no video of a kind that is read"
        raise FzError(f"video: {path} {why}. Expected {KINDS}") from error
    with box:
        streams = [s for s in box.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams or streams[0].codec_context is None:
            raise FzError(f"video: {path} has no pictures in it. Expected {KINDS}")
        check_pixels(path, streams[0].codec_context.width, streams[0].codec_context.height)
        yield box, streams[0]


def kind_of(box: "av.container.InputContainer") -> str:
    """FFmpeg's first name for the container, as 'mov', 'matroska', 'mpegts'."""
    return box.format.name.split(",")[0]


def decoder(stream: "av.VideoStream") -> "av.CodecContext":
    """The stream's decoder; for VP8 and VP9 with transparency, one that knows it."""
    context = stream.codec_context
    # containers write the name in small or capital letters
    said = {name.lower(): value for name, value in stream.metadata.items()}
    if said.get("alpha_mode") == "1" and context.name in ALPHA:
        try:
            context = av.CodecContext.create(ALPHA[context.name], "r")
        except (av.FFmpegError, ValueError):  # an FFmpeg without libvpx
            pass
    else:
        # threads by frames tell of a packet's error packets later
        context.thread_type = "SLICE"
    context.options = {**context.options, "max_pixels": str(MAX_PIXELS)}
    return context


@dataclass
class Decoding:
    """Frames from where a file stands.

    started: whether an intact frame came; cut_start, cut_end: packets and frames at the start and at the end that could
    not be decoded.
    """

    path: Path
    started: bool = False
    cut_start: int = 0
    cut_end: int = 0
    # the error of the packet before, which is an end if none follows and damage if one does
    failed: Exception | None = field(default=None, repr=False)

    def frames(self, box: "av.container.InputContainer", stream: "av.VideoStream") -> Iterator["av.VideoFrame"]:
        """Frames in display order, the first of them intact. Raises FzError for damage between intact frames."""
        context, number = decoder(stream), 0
        try:
            for packet in box.demux(stream):
                if self.failed and packet.size and self.started:
                    raise self.failed
                for frame in self._decoded(context, packet):
                    self.started = self.started or not frame.is_corrupt
                    if self.started:
                        number += 1
                        yield frame
                    else:
                        self.cut_start += 1
        except av.FFmpegError as error:
            raise FzError(
                f"video: {self.path} breaks off or is corrupt near frame {number} ({short(error)}). Convert it again"
            ) from error
        if self.failed and not self.started:
            raise FzError(f"video: {self.path} is corrupt: no frame can be decoded ({short(self.failed)})")

    def _decoded(self, context, packet) -> list["av.VideoFrame"]:
        try:
            return context.decode(packet)
        except av.FFmpegError as error:
            self.failed = error
            if self.started:
                self.cut_end += 1
            else:
                self.cut_start += 1
            return []


@dataclass(frozen=True)
class Packets:
    """What packets claim, without decoding. times: each frame's, in ticks, rising; None where packets do not name the
    frames. keys: (pts, dts) of key frames. durations: each packet's, in ticks, in file order, 0 where unknown. last:
    the last frame's. whole: whether the last packet is.
    """

    times: list[int] | None
    keys: list[tuple[int, int]]
    durations: list[int]
    last: int
    whole: bool


def scan(box: "av.container.InputContainer", stream: "av.VideoStream") -> Packets:
    """Read all packets of the stream, decode none."""
    shown, keys, whole = [], [], True
    try:
        for packet in box.demux(stream):
            if packet.size and not packet.is_discard:
                shown.append((packet.pts, packet.duration or 0))
                whole = not packet.is_corrupt
                if packet.is_keyframe and packet.pts is not None and packet.dts is not None:
                    keys.append((packet.pts, packet.dts))
    except av.FFmpegError:
        whole = False
    named, durations = [pts for pts, _ in shown if pts is not None], [duration for _, duration in shown]
    if len(set(named)) < len(shown):
        return Packets(None, [], durations, 0, whole)
    return Packets(sorted(named), sorted(keys), durations, max(shown)[1] if shown else 0, whole)
