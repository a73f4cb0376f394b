"""Files as they come: animated pictures, the clip's own size, its sound beside results, its rate and colour tags."""

import av
import numpy as np
import pytest
from PIL import Image

from fz.clips.media import write_mp4
from fz.clips.video import plan_clip, read_clip
from fz.errors import FzError
from fz.run import main
from fz.settings.config import ClipSettings
from fz.settings.parse import parse

FPS, RATE = 10, 16000


def colours(count, size=(48, 64)):
    """Frames of one grey each, which says their number."""
    return [np.full((*size, 3), 20 + 20 * k, np.uint8) for k in range(count)]


def film(path, count=12, beeps=(), tags=(1, 1, 1), offset=0.0):
    """mp4 with sound: silence but for 1 kHz during the frames of `beeps`. offset: seconds by which it begins late."""
    with av.open(str(path), "w") as box:
        video = box.add_stream("libx264", rate=FPS, options={"crf": "1", "bf": "0"})
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        codec = video.codec_context
        codec.colorspace, codec.color_primaries, codec.color_trc = tags
        sound = box.add_stream("aac", rate=RATE, layout="mono")
        for k, picture in enumerate(colours(count)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = k
            box.mux(video.encode(frame))
        box.mux(video.encode())
        wave = np.sin(2 * np.pi * 1000 * np.arange(count * RATE // FPS) / RATE).astype(np.float32)
        for k in range(count):
            if k not in beeps:
                wave[k * RATE // FPS : (k + 1) * RATE // FPS] = 0
        for begin in range(0, len(wave), 1024):
            frame = av.AudioFrame.from_ndarray(wave[None, begin : begin + 1024].copy(), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = RATE, begin + round(offset * RATE)
            box.mux(sound.encode(frame))
        box.mux(sound.encode())
    return path


def heard(path):
    """The sound of a file, (n,), from its first picture's time on; None without."""
    with av.open(str(path)) as box:
        if not box.streams.audio:
            return None
        parts, begin = [], None
        for frame in box.decode(audio=0):
            begin = frame.time if begin is None else begin
            parts.append(frame.to_ndarray().mean(0))
    wave = np.concatenate(parts)
    cut = round(begin * RATE)
    return wave[-cut:] if cut < 0 else np.concatenate([np.zeros(cut, wave.dtype), wave])


def loud(wave, k):
    """How loud is it during frame k of a result?"""
    middle = wave[int((k + 0.25) * RATE / FPS) : int((k + 0.75) * RATE / FPS)]
    return float(np.sqrt(np.mean(middle**2))) if len(middle) else 0.0


@pytest.mark.parametrize("ending", ["webp", "avif", "png", "apng"])
def test_animated_pictures(tmp_path, ending):
    path = tmp_path / f"clip.{ending}"
    pictures = [Image.fromarray(p) for p in colours(6)]
    options = {"lossless": True} if ending == "webp" else {"quality": 100} if ending == "avif" else {}
    kind = {"apng": "PNG"}.get(ending)
    pictures[0].save(path, kind, save_all=True, append_images=pictures[1:], duration=100, loop=0, **options)
    clip = read_clip(ClipSettings(str(path), frames=3, start=1, every=2, size=64), multiple=8)
    grey = ((clip.frames.mean((1, 2, 3)) + 1) * 127.5).round().tolist()
    assert clip.indices == (1, 3, 5) and clip.fps == pytest.approx(5, rel=0.01)
    assert grey == pytest.approx([40, 80, 120], abs=3)
    with pytest.raises(FzError, match="has 6 frames, too few"):
        read_clip(ClipSettings(str(path), frames=7, size=64))


def test_delays_of_animated_pictures(tmp_path):
    """The last frame stands longer, and is taken as often."""
    path = tmp_path / "clip.webp"
    pictures = [Image.fromarray(p) for p in colours(3)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[100, 100, 300], lossless=True)
    plan = plan_clip(ClipSettings(str(path), frames=None, size=64))
    assert plan.indices == (0, 1, 2, 2, 2) and "rests on its last frame" in plan.source.notes[0]
    # one picture is one still
    pictures[0].save(tmp_path / "one.webp", lossless=True)
    assert plan_clip(ClipSettings(str(tmp_path / "one.webp"), frames=1, size=64)).source.still


def test_a_cut_animation_is_one_line(tmp_path):
    path = tmp_path / "clip.webp"
    noise = [Image.fromarray(np.random.default_rng(k).integers(0, 255, (64, 64, 3), np.uint8)) for k in range(4)]
    noise[0].save(path, save_all=True, append_images=noise[1:], lossless=True)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(FzError, match="no readable image|cannot be decoded"):
        read_clip(ClipSettings(str(path), frames=2, size=64))


def test_size_original(tmp_path):
    path = film(tmp_path / "clip.mp4")
    clip = read_clip(ClipSettings(str(path), frames=2, size="original"), multiple=16)
    assert tuple(clip.frames.shape[-2:]) == (48, 64)
    rounded = read_clip(ClipSettings(str(path), frames=2, size="original"), multiple=64)
    assert tuple(rounded.frames.shape[-2:]) == (64, 64) and "rounded to 64x64" in " ".join(rounded.notes)
    assert parse(["--size", "original"]).settings.clip.size == "original"
    tiny = tmp_path / "tiny.png"
    Image.new("RGB", (8, 8)).save(tiny)
    with pytest.raises(FzError, match="too small for the model"):
        read_clip(ClipSettings(str(tiny), frames=1, size="original"))


@pytest.mark.parametrize(("start", "every", "frames"), [(0, 1, 6), (3, 1, 4), (2, 2, 4)])
def test_sound_of_exactly_the_frames_taken(tmp_path, start, every, frames):
    path = film(tmp_path / "clip.mp4", beeps=(4, 5))
    clip = read_clip(ClipSettings(str(path), frames=frames, start=start, every=every, size=64))
    write_mp4(tmp_path / "out.mp4", np.stack(colours(frames)), clip.fps, clip.sound, clip.colours)
    wave = heard(tmp_path / "out.mp4")
    assert clip.sound.samples.shape[1] == pytest.approx(frames * every * RATE / FPS, abs=RATE // 100)
    for k in range(frames * every):
        assert (loud(wave, k) > 0.3) == (start + k in (4, 5)), k
    assert not any("audio" in note for note in clip.notes)


def test_sound_that_begins_late(tmp_path):
    """The container's own times count, not the first sample."""
    path = film(tmp_path / "clip.mp4", beeps=(0,), offset=0.3)
    clip = read_clip(ClipSettings(str(path), frames=8, size=64))
    write_mp4(tmp_path / "out.mp4", np.stack(colours(8)), clip.fps, clip.sound)
    wave = heard(tmp_path / "out.mp4")
    assert [loud(wave, k) > 0.3 for k in range(8)] == [k == 3 for k in range(8)]


def gapped(path, codec, rate, parts, jitter=0.0):
    """12 frames (1.2 s) with 1 kHz in these parts (seconds) and no samples elsewhere. jitter: seconds by which every
    other packet is late.
    """
    with av.open(str(path), "w") as box:
        video = box.add_stream("libx264", rate=FPS, options={"bf": "0"})
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        sound = box.add_stream(codec, rate=rate, layout="mono")
        for picture in colours(12):
            box.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        box.mux(video.encode())
        kind = sound.codec_context.format.name
        for start, end in parts:
            wave = np.sin(2 * np.pi * 1000 * np.arange(round((end - start) * rate)) / rate)[None]
            wave = (wave * 30000).astype(np.int16) if kind == "s16" else wave.astype(np.float32)
            for number, begin in enumerate(range(0, wave.shape[1], 1024)):
                frame = av.AudioFrame.from_ndarray(wave[:, begin : begin + 1024].copy(), format=kind, layout="mono")
                late = round(jitter * rate) * (number % 2)
                frame.sample_rate, frame.pts = rate, round(start * rate) + begin + late
                box.mux(sound.encode(frame))
        box.mux(sound.encode())
    return path


def loud_parts(sound, count):
    """Whether it is loud in the middle of each tenth of a second."""
    wave, step = sound.samples.mean(0), sound.rate / FPS
    middles = (wave[int((k + 0.25) * step) : int((k + 0.75) * step)] for k in range(count))
    return [bool(len(m) and np.sqrt(np.mean(m**2)) > 0.3) for m in middles]


@pytest.mark.parametrize(
    "codec, rate", [("pcm_s16le", RATE), ("pcm_s16le", 96000), ("aac", 48000)], ids=["PCM", "resampled PCM", "AAC"]
)
def test_sound_after_a_gap_stays_where_it_was(tmp_path, codec, rate):
    path = gapped(tmp_path / "clip.mkv", codec, rate, [(0.0, 0.3), (0.6, 0.8), (1.0, 1.2)])
    for start in (0, 1, 7):
        clip = read_clip(ClipSettings(str(path), frames=12 - start, start=start, size=64))
        loud = [k in (0, 1, 2, 6, 7, 10, 11) for k in range(start, 12)]
        assert loud_parts(clip.sound, 12 - start) == loud


def test_a_packet_that_cannot_be_decoded_is_silent_alone(tmp_path):
    path = gapped(tmp_path / "clip.mkv", "flac", RATE, [(0.0, 1.2)])
    with av.open(str(path)) as box:
        packets = [bytes(packet) for packet in box.demux(box.streams.audio[0]) if packet.size]
    data, hurt = path.read_bytes(), packets[len(packets) // 2]
    # no frame of FLAC begins so
    path.write_bytes(data.replace(hurt, bytes(len(hurt))))
    sound = read_clip(ClipSettings(str(path), frames=12, size=64)).sound
    loud = loud_parts(sound, 12)
    assert loud[0] and loud[11] and sum(loud) >= 9
    quiet = np.abs(sound.samples[0]) < 1e-3
    assert quiet.sum() > RATE / 100


def test_times_that_are_a_little_off_tear_no_sound(tmp_path):
    """A container's times are rounded, or a few milliseconds late: its samples are still one sound."""
    path = gapped(tmp_path / "clip.mkv", "pcm_s16le", RATE, [(0.0, 1.2)], jitter=0.012)
    wave = read_clip(ClipSettings(str(path), frames=12, size=64)).sound.samples[0]
    expected = np.sin(2 * np.pi * 1000 * np.arange(len(wave)) / RATE) * 30000 / 32768
    assert len(wave) == pytest.approx(1.2 * RATE, abs=RATE / 100) and np.abs(wave - expected).max() < 1e-3


def test_sound_that_is_not_kept_is_said(tmp_path):
    path = str(film(tmp_path / "clip.mp4", beeps=(1,)))
    silent = read_clip(ClipSettings(path, frames=4, size=64, audio=False))
    assert silent.sound is None and "no audio (--no-audio)" in silent.notes[-1]
    slow = read_clip(ClipSettings(path, frames=4, size=64, fps=5.0))
    assert slow.sound is None and slow.fps == 5 and "no audio (--fps changes the time)" in slow.notes[-1]
    same = read_clip(ClipSettings(path, frames=4, size=64, fps=float(FPS)))
    assert same.sound is not None
    with pytest.raises(FzError, match="fps: got 5000"):
        read_clip(ClipSettings(path, frames=4, size=64, fps=5000.0))


@pytest.mark.parametrize(("tags", "kept"), [((6, 6, 6), (6, 6, 6)), ((5, 5, 6), (5, 5, 6)), ((1, 1, 1), (1, 1, 1)),
                                            ((2, 2, 2), (1, 1, 1))])  # fmt: skip
def test_colour_tags_are_the_sources(tmp_path, tags, kept):
    clip = read_clip(ClipSettings(str(film(tmp_path / "clip.mp4", tags=tags)), frames=2, size=64))
    red = np.zeros((2, 64, 64, 3), np.uint8)
    red[..., 0], red[..., 1] = 200, 60
    write_mp4(tmp_path / "out.mp4", red, clip.fps, colours=clip.colours)
    with av.open(str(tmp_path / "out.mp4")) as box:
        codec = box.streams.video[0].codec_context
        assert (codec.colorspace, codec.color_primaries, codec.color_trc) == kept
        frame = next(box.decode(video=0))
        # read by its tags, it is what was written
        assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - red[0]).max() <= 4


def test_a_run_keeps_sound_in_all_its_films(tmp_path):
    path = film(tmp_path / "clip.mp4", beeps=(2,))
    flags = ["--video", str(path), "--source", "a red car moving on the sand", "--target", "a blue car on the sand",
             "--frames", "4", "--steps", "1", "--size", "64", "--cache", "none"]  # fmt: skip
    assert main([*flags, "--out", str(tmp_path / "out")]) == 0
    for name in ("source", "edit-0", "side-by-side-0"):
        assert [loud(heard(tmp_path / "out" / f"{name}.mp4"), k) > 0.3 for k in range(4)] == [k == 2 for k in range(4)]
    assert main([*flags, "--no-audio", "--fps", "5", "--out", str(tmp_path / "silent")]) == 0
    assert heard(tmp_path / "silent" / "edit-0.mp4") is None
    with av.open(str(tmp_path / "silent" / "edit-0.mp4")) as box:
        assert box.streams.video[0].average_rate == 5
