"""--solver: DPM-Solver++(2M) is of second order where DDIM is of first, up and down, and the UNet sees each timestep
once in both; nothing that keeps, cuts or resumes a run changes a bit.
"""

import dataclasses
import math

import pytest
import torch
from test_edit import (
    CONFIG,
    CPU,
    FRAMES,
    INDEX,
    NEGATIVE,
    SOURCE,
    STEPS,
    TARGET,
    Z0,
    equal,
    fusion,
    half_inverted,
    numbers,
    region,
)

from fz.attention import Plain
from fz.chunks import Chunks
from fz.ddim import CLEAN, Schedule, ddim_inverse_step
from fz.denoiser import Denoiser
from fz.edit import Edit, edit, invert, reconstruct
from fz.errors import FzError
from fz.guidance import Guidance
from fz.memory.inversions import Inversion, leading
from fz.memory.kept import KeptInMemory, KeptOnDisk
from fz.model.deep import Reuse
from fz.model.layers import TextContext
from fz.model.unet import UNet
from fz.settings.config import Settings, build
from fz.settings.parse import parse
from fz.solver import DDIM, Multistep, solver_of
from fz.source import Source

SCHEDULE = Schedule.from_config({}, STEPS)
NAMES = ("ddim", "dpm++2m")


# ---- on data of which the noise is known -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Data of independent normal numbers: what the best model would predict of z, and where z's path leads."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def eps(self, z, alpha_bar):
        variance = alpha_bar * self.deviation**2 + 1 - alpha_bar
        return (1 - alpha_bar) ** 0.5 / variance * (z - alpha_bar**0.5 * self.mean)

    def moved(self, z, alpha_bar, to):
        """Along the ODE's path: as many deviations from the mean as before."""
        at, then = ((a * self.deviation**2 + 1 - a) ** 0.5 for a in (alpha_bar, to))
        return to**0.5 * self.mean + then / at * (z - alpha_bar**0.5 * self.mean)


def gaussian():
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.rand(256, generator=generator, dtype=torch.float64)  # noqa: E731
    return Gaussian(2 * draw() - 1, 0.3 + 0.7 * draw()), 2 * draw() - 1


def even(steps):
    """A schedule of steps that are even in log-SNR, as the order of a method is stated: from -1.5 to 2.5."""
    levels = [1 / (1 + math.exp(-2 * x)) for x in torch.linspace(2.5, -1.5, steps + 1, dtype=torch.float64).tolist()]
    return Schedule(tuple(reversed(range(1, steps + 1))), tuple(levels), levels[0])


def up(name, schedule, data, z):
    solver = solver_of(name, schedule, {})
    for t_prev, t in schedule.upward():
        shown = solver.shown(z, t_prev, t)
        z = solver.up(shown, data.eps(shown, schedule.alpha_bar(t)), t_prev, t)
    return z


def down(name, schedule, data, z):
    solver = solver_of(name, schedule, {})
    for _, t, t_prev in schedule.downward():
        z = solver.down(z, data.eps(z, schedule.alpha_bar(t)), t, t_prev)
    return z


def errors(name, way, schedules):
    data, z = gaussian()
    out = []
    for schedule in schedules:
        clean, noisy = schedule.alpha_bar(CLEAN), schedule.alpha_bar(schedule.timesteps[0])
        if way == "down":
            found, expected = down(name, schedule, data, data.moved(z, clean, noisy)), z
        elif way == "up":
            found, expected = up(name, schedule, data, z), data.moved(z, clean, noisy)
        else:
            found, expected = down(name, schedule, data, up(name, schedule, data, z)), z
        out.append(float((found - expected).norm() / expected.norm()))
    return out


@pytest.mark.parametrize("way", ["down", "up", "there and back"])
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpm++2m", 2)])
def test_order_of_convergence(name, order, way):
    found = errors(name, way, [even(steps) for steps in (40, 80, 160)])
    orders = [math.log2(a / b) for a, b in zip(found, found[1:], strict=False)]
    assert all(abs(o - order) < 0.25 for o in orders), (found, orders)


@pytest.mark.parametrize("way", ["down", "there and back"])
@pytest.mark.parametrize("steps", [10, 20, 50])
def test_less_error_than_ddim_at_stable_diffusions_timesteps(steps, way):
    (ddim,), (ours,) = (errors(name, way, [Schedule.from_config({}, steps)]) for name in NAMES)
    assert ours < 0.6 * ddim


def test_extrapolation_has_an_end(monkeypatch):
    """At SD's timesteps the last step is several times as long in log-SNR as the one before it."""
    schedules = [Schedule.from_config({}, steps) for steps in (10, 20)]
    bounded = errors("dpm++2m", "down", schedules)
    monkeypatch.setattr("fz.solver.FURTHEST", math.inf)
    assert all(ours < 0.6 * free for ours, free in zip(bounded, errors("dpm++2m", "down", schedules), strict=True))


@pytest.mark.parametrize("set_alpha_to_one", [False, True])
def test_a_known_clip_is_reached_up_and_down(set_alpha_to_one):
    """Where every prediction is the same x, each step is exact, however many there are; also from and to no noise."""
    schedule = Schedule.from_config({"set_alpha_to_one": set_alpha_to_one}, 7)
    z, noise = (numbers(seed, 2, 4, 8, 8).double() for seed in (1, 2))
    x = (z - (1 - schedule.alpha_bar(CLEAN)) ** 0.5 * noise) / schedule.alpha_bar(CLEAN) ** 0.5
    at = lambda t: schedule.alpha_bar(t) ** 0.5 * x + (1 - schedule.alpha_bar(t)) ** 0.5 * noise  # noqa: E731
    solver, z = solver_of("dpm++2m", schedule, {}), at(CLEAN)
    for t_prev, t in schedule.upward():
        shown = solver.shown(z, t_prev, t)
        z = solver.up(shown, noise, t_prev, t)
        torch.testing.assert_close(z, at(t))
    solver = solver_of("dpm++2m", schedule, {})
    for _, t, t_prev in schedule.downward():
        z = solver.down(z, noise, t, t_prev)
        torch.testing.assert_close(z, at(t_prev))


def test_algorithm_2_by_hand():
    """D_i = (1 + 1 / 2r) x_i - 1 / 2r x_{i-1}, z = sigma_i / sigma_{i-1} z - alpha_i (exp(-h_i) - 1) D_i."""
    schedule = even(4)
    z, x_r, x_s = (numbers(seed, 3).double() for seed in (1, 2, 3))
    level = lambda t: (schedule.alpha_bar(t) ** 0.5, (1 - schedule.alpha_bar(t)) ** 0.5)  # noqa: E731
    snr = lambda t: math.log(level(t)[0] / level(t)[1])  # noqa: E731
    for r, s, t in ((3, 2, 1), (1, 2, 3)):
        h, before = snr(t) - snr(s), snr(s) - snr(r)
        w = 1 / (2 * before / h)
        expected = level(t)[1] / level(s)[1] * z - level(t)[0] * (math.exp(-h) - 1) * ((1 + w) * x_s - w * x_r)
        torch.testing.assert_close(Multistep(schedule, {r: x_r, s: x_s}).step(z, s, t), expected)


# ---- on the UNet -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet(CONFIG).eval().to(memory_format=torch.channels_last)


def denoiser(unet, reuse=Reuse(), name="dpm++2m"):  # noqa: B008 (frozen)
    return Denoiser(unet, SCHEDULE, INDEX, reuse, solver=name)


def inverted(unet, reuse=Reuse(), store=None, source=None, callback=lambda k, z: None):  # noqa: B008 (frozen)
    source = source or Source(SOURCE, latents={CLEAN: Z0})
    if store:
        source.store, source.keep = store, fusion().keeps
    return invert(denoiser(unet, reuse), source, callback)


def edited(unet, source, reuse=Reuse(), task=None):  # noqa: B008 (frozen)
    """The latents after each step."""
    task = task or Edit(TARGET, fusion(), region())
    latents = list(task.done)
    edit(denoiser(unet, reuse), source, task, Guidance(NEGATIVE), lambda k, z: latents.append(z))
    return latents


def test_both_loops_see_the_same_timesteps_once(unet, monkeypatch):
    seen = []
    monkeypatch.setattr(UNet, "forward", lambda self, z, t, *rest, **more: seen.append(t) or torch.zeros_like(z))
    model = denoiser(unet)
    source = Source(SOURCE, latents={CLEAN: Z0})
    monkeypatch.setattr(Source, "recorder", lambda self, model, t: Plain(INDEX))
    monkeypatch.setattr(Source, "record", lambda self, t, z, seen: self.maps.update({t: None}))
    invert(model, source)
    assert seen == list(reversed(SCHEDULE.timesteps))
    seen.clear()
    edit(model, source, Edit(TARGET), Guidance(NEGATIVE))
    assert seen == list(SCHEDULE.timesteps)


@torch.no_grad()
def test_inversion_shows_the_unet_its_own_latents(unet):
    """Step by step by hand; the first is DDIM's, and at the others the UNet sees z at its own noise level."""
    source, text = inverted(unet), TextContext(SOURCE[None])
    times = list(SCHEDULE.upward())
    t_prev, t = times[0]
    eps = unet(Z0[None], t, text, Plain(INDEX))[0]
    z = ddim_inverse_step(Z0, eps, SCHEDULE.alpha_bar(t_prev), SCHEDULE.alpha_bar(t))
    torch.testing.assert_close(source.latents[t], z)
    clean = {t: (z - (1 - SCHEDULE.alpha_bar(t)) ** 0.5 * eps) / SCHEDULE.alpha_bar(t) ** 0.5}
    for t_prev, t in times[1:]:
        z = Multistep(SCHEDULE, clean).step(z, t_prev, t)
        eps = unet(z[None], t, text, Plain(INDEX))[0]
        clean[t] = (z - (1 - SCHEDULE.alpha_bar(t)) ** 0.5 * eps) / SCHEDULE.alpha_bar(t) ** 0.5
        torch.testing.assert_close(source.latents[t], z, atol=1e-5, rtol=1e-5)
        assert torch.equal(source.inputs[t], source.latents[t])


@pytest.mark.parametrize("reuse", [Reuse(), Reuse(3), Reuse(3, outer=True)], ids=str)
def test_stores_give_the_same_bits(unet, tmp_path, reuse):
    recomputed = edited(unet, inverted(unet, reuse), reuse)
    assert equal(edited(unet, inverted(unet, reuse, KeptInMemory()), reuse), recomputed)
    disk = KeptOnDisk(tmp_path / "operands", SCHEDULE.timesteps, CPU, say=pytest.fail)
    assert equal(edited(unet, inverted(unet, reuse, disk), reuse), recomputed)
    disk.close()


@pytest.mark.parametrize("reuse", [Reuse(), Reuse(2), Reuse(3, outer=True)], ids=str)
@pytest.mark.parametrize("done", range(STEPS + 1))
def test_an_inversion_goes_on_from_any_step(unet, tmp_path, reuse, done):
    whole = inverted(unet, reuse)
    source = half_inverted(tmp_path, whole, SCHEDULE, done)
    inverted(unet, reuse, source=source)
    for name in ("latents", "inputs", "maps", "clean"):
        ours, theirs = getattr(source, name), getattr(whole, name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[t], theirs[t]) for t in theirs)


@pytest.mark.parametrize("reuse", [Reuse(), Reuse(2), Reuse(3, outer=True)], ids=str)
@pytest.mark.parametrize("done", range(STEPS + 1))
def test_an_edit_goes_on_from_any_step(unet, tmp_path, reuse, done):
    source, task = inverted(unet, reuse), Edit(TARGET, fusion(), region())
    whole = edited(unet, source, reuse, task)
    with Inversion.open(str(tmp_path), "key", pytest.fail) as inversion:
        log = inversion.edit_log("edit")
        for k in range(1, done + 1):
            log.put(k, task.left(k, whole[k - 1], SCHEDULE))
        steps = leading(log, STEPS)
    full = done if done == STEPS else reuse.before(done, STEPS)
    again = Edit(TARGET, fusion(), region()).after(steps[:full], SCHEDULE)
    assert len(steps) == done and equal(edited(unet, source, reuse, again), whole)


def test_blended_latents_removed_objects_and_reconstruction(unet):
    source = inverted(unet)
    for t in SCHEDULE.timesteps:
        source.maps[t] = torch.zeros(FRAMES, 16, 77)
        source.maps[t][:, 5, 2] = source.maps[t][:, 5, 5] = 1.0
    mask = torch.zeros(FRAMES, 128, 128)
    mask[:, :64] = 1.0
    free, blended, hidden = (
        edited(unet, source, task=Edit(TARGET, fusion(), where))
        for where in (
            region(latent_blend=None),
            region(latent_blend=dataclasses.replace(region().latent_blend, target_words=torch.zeros(77))),
            region(latent_blend=None, hides_object=True, user_mask=mask),
        )
    )
    kept = (blended[2] == source.latents[SCHEDULE.timesteps[3]]).all(1)
    assert 0.3 < kept.float().mean() < 1
    assert not torch.allclose(hidden[-1], free[-1], atol=1e-4)
    again = Source(SOURCE, latents=source.latents)
    reconstruct(denoiser(unet), again, Guidance(NEGATIVE))
    assert set(again.maps) == set(SCHEDULE.timesteps) and len(edited(unet, again)) == STEPS


@pytest.mark.parametrize("clip_norm", [True, False], ids=["clip-norm", "per-frame-norm"])
def test_chunks(clip_norm):
    torch.manual_seed(0)
    whole = UNet(CONFIG, clip_norm).eval().to(memory_format=torch.channels_last)
    expected, chunks = edited(whole, inverted(whole))[-1], Chunks(whole, 2)
    ours = edited(chunks, inverted(chunks))
    assert (ours[-1] - expected).norm() / expected.norm() < 1e-3
    assert equal(edited(chunks, inverted(chunks, store=KeptInMemory())), ours)


# ---- as a setting ------------------------------------------------------------------------------------------


def test_the_setting():
    line = ["--video", "a.mp4", "--source", "a car", "--target", "a boat", "--checkpoint", "x"]
    assert parse(line).settings.solver == Settings.solver == "ddim"
    assert parse([*line, "--solver", "dpm++2m"]).settings.solver == "dpm++2m"
    with pytest.raises(FzError, match="expected one of ddim, dpm"):
        parse([*line, "--solver", "dpm"])
    overlay = {"clip.path": "a.mp4", "source": "a car", "edits.0.target": "a boat", "solver": "dpm++2m"}
    assert build(overlay, {"method": "ddim"}).solver == "dpm++2m"
    for method in ("sdedit", "null-p2p", "pnp"):
        with pytest.raises(FzError, match=r"solver: got dpm\+\+2m with method .*, expected"):
            build(overlay, {"method": method})


def test_the_usual_one_is_ddim():
    assert isinstance(denoiser(None, name=Settings.solver).steps({}), DDIM)
    assert Denoiser(None, SCHEDULE).solver == Settings.solver
