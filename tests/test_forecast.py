"""How long a run will take is said before its first step, from a short trial, and changes nothing that it computes."""

import dataclasses
import re
import tempfile

import pytest
import torch

import fz
from fz import forecast as f
from fz import pipeline
from fz.ddim import Schedule
from fz.denoiser import Denoiser
from fz.forecast import Course, Pace, course_of, trial, with_fast
from fz.inverted import InvertedClip
from fz.memory import budget
from fz.model.deep import Reuse
from fz.model.vae import VAE, VAEConfig
from fz.run import main
from fz.settings.config import build
from fz.settings.fast import FAST
from fz.settings.parse import parse
from fz.source import Source

STEPS = 10
EXACT = Course(8, STEPS, STEPS, 1, Reuse(), range(STEPS), ())


class Clock:
    """A clock that only work moves on."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Machine:
    """A UNet that takes 0.25 s a pass and 0.5 s a frame, a quarter of that where it is shallow, and counts passes."""

    eager = None

    def __init__(self, clock):
        self.clock, self.frames, self.eager = clock, [], self

    def __call__(self, z, t, text, attend, deep=None):
        frames = z.shape[0] * z.shape[1]
        self.frames.append(frames)
        self.clock.now += (0.25 + 0.5 * frames) * (0.25 if deep and deep.shallow else 1)
        return torch.zeros_like(z)


class SlowVAE(VAE):
    """Encodes 1 000 pixels a second, and decodes 500."""

    def encode(self, frames):
        self.clock.now += frames[0, 0].numel() / 1000
        return super().encode(frames)

    def decode(self, z):
        frames = super().decode(z)
        self.clock.now += frames[0, 0].numel() / 500
        return frames


def test_a_trial_finds_what_a_pass_costs():
    clock = Clock()
    machine, vae = Machine(clock), SlowVAE(VAEConfig(block_out_channels=(32,) * 4)).eval()
    vae.clock = clock
    before = torch.random.get_rng_state()
    pace = trial(Denoiser(machine, Schedule.from_config({}, STEPS)), vae, (128, 64), torch.zeros(77, 8), clock)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (pace.each, pace.frame, pace.shallow) == pytest.approx((0.25, 0.5, 0.25))
    assert (pace.encode, pace.decode) == pytest.approx((8.192, 16.384))
    # 16 x 8 latents: the longer pass has as many frames as any, as have warming up and the shallow one
    assert machine.frames == [f.MOST, 1, f.MOST, f.MOST]


def test_a_busy_machine_gives_no_absurd_pace():
    clock = Clock()
    machine, vae = Machine(clock), SlowVAE(VAEConfig(block_out_channels=(32,) * 4)).eval()
    vae.clock = clock
    plain = machine.__class__.__call__

    class Busy(Machine):
        def __call__(self, z, *rest, **extra):
            clock.now += 100 if z.shape[1] == f.MOST else 0
            return plain(self, z, *rest, **extra)

    pace = trial(Denoiser(Busy(clock), Schedule.from_config({}, 5)), vae, (64, 64), torch.zeros(77, 8), clock)
    assert pace.each == 0 and pace.frame == pytest.approx(0.75)


PACE = Pace(0.0, 1.0, 0.5, 0.0, 2.0)


def test_a_run_is_the_sum_of_its_passes():
    expected = STEPS * 8 * (f.INVERTING + 2 * f.FUSED) + 8 * 2.0
    assert EXACT.seconds(PACE) == pytest.approx(expected)
    recomputed = dataclasses.replace(EXACT, again=range(4))
    assert recomputed.seconds(PACE) == pytest.approx(expected + 4 * 8 * f.AGAIN)
    kept_then = dataclasses.replace(EXACT, edits=3, once=range(4))
    assert kept_then.seconds(PACE) - dataclasses.replace(EXACT, edits=3).seconds(PACE) == pytest.approx(4 * 8 * f.AGAIN)
    passed = dataclasses.replace(EXACT, reconstructed=2)
    assert passed.seconds(PACE) == pytest.approx(expected + STEPS * 16 * f.INVERTING)
    passed_again = dataclasses.replace(passed, again=range(4))
    assert passed_again.seconds(PACE) - passed.seconds(PACE) == pytest.approx(4 * 16 * f.AGAIN)
    assert dataclasses.replace(EXACT, left=0).seconds(PACE) == pytest.approx(expected - STEPS * 8 * f.INVERTING)
    window = dataclasses.replace(EXACT, guided=range(6))
    assert window.seconds(PACE) == pytest.approx(expected - 4 * 8 * f.FUSED)
    # full are 0, 3, 6, 8 and 9, and the source is passed again at 0 and 3 of them
    shallow = dataclasses.replace(EXACT, reuse=Reuse(3), again=range(4))
    steps = (5 + 5 / 2) * 8 * (f.INVERTING + 2 * f.FUSED) + 2 * 8 * f.AGAIN
    assert shallow.seconds(PACE) == pytest.approx(steps + 16)


@pytest.mark.parametrize(("name", "value"), [("frames", 16), ("steps", 2 * STEPS), ("edits", 2)])
def test_it_scales_with_frames_steps_and_edits(name, value):
    pace = dataclasses.replace(PACE, decode=0.0)
    changes = {"left": value, "guided": range(value)} if name == "steps" else {}
    longer = dataclasses.replace(EXACT, **{name: value}, **changes)
    inverting = STEPS * 8 * f.INVERTING
    once = EXACT.seconds(pace)
    assert longer.seconds(pace) == pytest.approx(2 * once - inverting if name == "edits" else 2 * once)


def test_a_trial_is_a_small_share_of_a_run():
    longer = dataclasses.replace(EXACT, steps=20, left=20, guided=range(20))
    assert [f.tried_frames(size) for size in ((16, 16), (32, 32), (64, 64))] == [4, 4, 2]
    assert longer.affords(2 * f.tried_frames((16, 16)) + 1), "the miniature's usual run"
    assert not dataclasses.replace(EXACT, frames=1, steps=4, left=4).affords(5)
    passes = sum(count * frames for count, frames, _ in EXACT.passes())
    assert EXACT.affords(f.SHARE * passes) and not EXACT.affords(1.01 * f.SHARE * passes)


def settings(**changes):
    overlay = {"clip.path": "a.mp4", "source": "a car", "edits.0.target": "a boat", "checkpoint": "x"}
    return build(overlay, changes)


def test_what_fast_would_change():
    fast = with_fast(settings())
    assert fast.steps == 18 and all(getattr(fast, name) == value for name, value in FAST.items())
    assert with_fast(settings(steps=30)) is None
    assert with_fast(fast) is None and with_fast(settings(method="pnp")) is None
    course = course_of(fast, 8, 25, ())
    assert (course.reuse, set(course.guided), course.edits) == (Reuse(2, True), set(range(9)), 1)
    assert course_of(settings(guidance=1.0), 8, 50, ()).guided == ()
    for changes, branches in (
        ({}, 2),
        ({"guidance": 1.0}, 1),
        ({"method": "ddim"}, 0),
        ({"attention": "inversion"}, 0),
    ):
        fuses = settings(**{"attention": "reconstruction", **changes})
        assert course_of(fuses, 8, 50, ()).reconstructed == branches


@pytest.fixture
def told(models, tmp_path, monkeypatch, capsys):
    def run(*more):
        monkeypatch.chdir(tmp_path)
        argv = ["--checkpoint", str(models / "tiny_sd"), "--video", str(models / "clips/car128"), "--size", "64"]
        argv += ["--frames", "4", "--device", "cpu", "--threads", "1", "--cache", "none", "--save-latents"]
        argv += ["--source", "a silver jeep, on a road", "--target", "a red jeep, on a road", *more]
        assert main(argv) == 0
        return capsys.readouterr().out.splitlines()

    return run


def test_it_is_said_before_the_first_step_and_changes_nothing(told, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    said = []
    record = Source.record
    monkeypatch.setattr(Source, "record", lambda self, *rest: said.append("step") or record(self, *rest))
    original = f.trial
    monkeypatch.setattr("fz.forecast.SHARE", 0.5)
    monkeypatch.setattr("fz.forecast.trial", lambda *rest: said.append("trial") or original(*rest))
    lines = told("--steps", "6", "--out", "with")
    assert said[:2] == ["trial", "step"] and said.count("trial") == 1
    (line,) = (line for line in lines if "to go" in line)
    assert line.startswith("about ") and "--fast" not in line, "it is not known whether these steps would stay"
    monkeypatch.setattr("fz.forecast.SHARE", 0.0)
    lines = told("--steps", "6", "--out", "without")
    assert said.count("trial") == 1 and any("to go: a step of inversion takes" in line for line in lines)
    a, b = (load_file(tmp_path / name / "latents.safetensors") for name in ("with", "without"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_dry_run_says_seconds_memory_and_fast(told):
    lines = told("--dry-run")
    assert any("needs about" in line and "of memory" in line for line in lines)
    assert any("to go, with --fast" in line for line in lines)
    assert not any("to go" in line for line in told("--steps", "2", "--dry-run", "--method", "sdedit"))


def test_a_dry_run_counts_the_steps_of_a_cached_inversion(told, tmp_path, monkeypatch):
    left, told_of = [], f.Ahead.told
    monkeypatch.setattr(f.Ahead, "told", lambda self, n, free=False: left.append(n) or told_of(self, n, free))
    asked = ["--steps", "4", "--cache", "cache"]
    told(*asked, "--dry-run")
    told(*asked)
    files = sorted((tmp_path / "cache").glob("*/steps/*"))
    assert any("inversion: 4 of 4 steps are in" in line for line in told(*asked, "--dry-run"))
    told(*asked, "--dry-run", "--solver", "dpm++2m")
    next(file for file in files if file.name == "0003.safetensors").unlink()
    told(*asked, "--dry-run")
    assert left == [4, 4, 0, 4, 2]
    assert len(list((tmp_path / "cache").glob("*"))) == 1, "a dry run makes no folder there"


@pytest.mark.parametrize("cache", ["named", "usual", "none"])
def test_a_dry_run_looks_at_the_disk_of_the_cache(cache, models, monkeypatch, tmp_path, capsys):
    """Where queries and keys would be kept: it looked at the current folder's, and called it 'nowhere'."""
    place, here = tmp_path / "place", tmp_path / "here"
    place.mkdir(), here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("FZ_CACHE", str(place / "usual"))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    flags = ["--checkpoint", str(models / "tiny_sd"), "--video", str(models / "clips/car128"), "--size", "64"]
    flags += ["--frames", "2", "--source", "a jeep", "--target", "a red jeep", "--device", "cpu", "--dry-run"]
    flags += ["--steps", "2", "--edit", "style", "--store", "disk"]
    flags += {"named": ["--cache", str(place / "c")], "usual": [], "none": ["--cache", "none"]}[cache]
    for room, code in ((10**12, 0), (0, 2)):
        monkeypatch.setattr(
            budget, "free_disk", lambda folder, room=room: room if place in (folder, *folder.parents) else 10**12 - room
        )
        assert main(flags) == code
    said = capsys.readouterr()
    assert "of disk; store: disk" in said.out
    assert re.search(f"'disk' needs .* in {re.escape(str(place))}.*, where 0.0 MB are free", said.err)


def test_no_trial_is_made_where_nobody_listens(models, monkeypatch):
    monkeypatch.setattr(f, "trial", pytest.fail)
    monkeypatch.setattr(f, "SHARE", 10.0)
    editor = fz.load(models / "tiny_sd", device="cpu")
    editor.invert(torch.zeros(2, 3, 64, 64), "a jeep", steps=2)
    flags = ["--checkpoint", str(models / "tiny_sd"), "--video", str(models / "clips/car128"), "--size", "64"]
    flags += ["--frames", "2", "--source", "a jeep", "--target", "a red jeep", "--device", "cpu", "--dry-run"]
    assert pipeline.run(parse(flags).settings).out is None


def test_recomputing_is_counted_where_it_is_done(told, monkeypatch):
    """Of the steps that want queries and keys of the source, and of none where they are kept."""
    seen = []
    seconds = Course.seconds
    monkeypatch.setattr(Course, "seconds", lambda self, pace: seen.append(list(self.again)) or seconds(self, pace))
    for store, expected in (("recompute", [0, 1, 2, 3]), ("memory", [])):
        told("--steps", "5", "--dry-run", "--store", store, "--self-replace", "0.8", "--cross-replace", "0.4")
        assert seen[-1] == expected


def test_what_a_cached_inversion_lacks_is_counted_once(told, tmp_path, monkeypatch):
    """Not by each edit, and not where another pass is kept in its place."""
    made, seconds = [], []
    ahead = InvertedClip.ahead
    monkeypatch.setattr(InvertedClip, "ahead", lambda self, left: made.append(ahead(self, left)) or made[-1])
    cached = ["--steps", "4", "--cache", "cache", "--self-replace", "0.5", "--cross-replace", "0.5"]

    def counted(*more):
        told(*cached, *more, "--out", str(len(made)))
        return [list(steps) for steps in (made[-1].again, made[-1].once)]

    assert counted("--store", "memory") == [[], []]
    assert counted("--store", "memory") == counted("--store", "disk") == [[], [0, 1]]
    assert counted("--store", "recompute") == [[0, 1], []]
    assert counted("--store", "memory", "--attention", "reconstruction") == [[], []]
    reconstruction = made[-1]
    (inversion,) = (tmp_path / "cache").iterdir()
    (inversion / "steps" / "0004.safetensors").unlink()
    monkeypatch.setattr(f, "shown", lambda s: seconds.append(s) or "")
    assert counted("--store", "memory") == [[], [1]]
    # once the first step is done, it is counted by it
    assert made[-1].by_first_step(1.0, 0) and seconds[-1] == f.EDIT_STEP * 4 + 1
    assert reconstruction.by_first_step(1.0, 0) and seconds[-1] == (2 + f.EDIT_STEP) * 4
    again = dataclasses.replace(reconstruction, again=[0, 1])
    assert again.by_first_step(1.0, 0) and seconds[-1] == (2 + f.EDIT_STEP + 2) * 4
