"""--reuse N: the same steps are full in both loops, a shallow one is the full-size level over the last full one's deep
features, and no way of keeping, cutting or resuming changes a bit.
"""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from test_edit import (
    CONFIG,
    CPU,
    FRAMES,
    INDEX,
    NEGATIVE,
    SCHEDULE,
    SOURCE,
    STEPS,
    TARGET,
    Z0,
    count_calls,
    equal,
    fusion,
    half_inverted,
    numbers,
    region,
)

from fz.attention import Plain
from fz.chunks import Chunks
from fz.ddim import CLEAN, ddim_inverse_step
from fz.denoiser import Denoiser
from fz.edit import Edit, Fuse, edit, invert, reconstruct
from fz.errors import FzError
from fz.guidance import Guidance
from fz.memory.kept import KeptInMemory, KeptOnDisk
from fz.model.deep import Deep, Reuse
from fz.model.layers import TextContext
from fz.model.unet import UNet, UNetConfig
from fz.settings.config import build
from fz.settings.fast import fast_steps
from fz.settings.parse import parse
from fz.source import Source

WAYS = [Reuse(2), Reuse(3), Reuse(3, outer=True)]


def model(config=CONFIG, clip_norm=True):
    torch.manual_seed(0)
    return UNet(config, clip_norm).eval().to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def unet():
    return model()


def denoiser(unet, reuse):
    return Denoiser(unet, SCHEDULE, INDEX, reuse)


def inverted(unet, reuse, store=None, done=None):
    source = done or Source(SOURCE, latents={CLEAN: Z0})
    if store:
        source.store, source.keep = store, fusion().keeps
    return invert(denoiser(unet, reuse), source)


def edited(unet, reuse, source, where=None, done=(), window=(0.0, 1.0)):
    latents = list(done)
    task, guidance = Edit(TARGET, fusion(), where or region(), done), Guidance(NEGATIVE, 7.5, window)
    edit(denoiser(unet, reuse), source, task, guidance, lambda k, z: latents.append(z))
    return latents


@pytest.mark.parametrize("every", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("steps", [1, 2, 9, 10])
def test_both_loops_begin_with_a_full_step_and_take_from_one_that_was_done(every, steps):
    reuse = Reuse(every)
    full = [k for k in range(steps) if reuse.is_full(k, steps)]
    assert full[0] == 0 and full[-2:] == list(range(max(steps - 2, 0), steps)), "at t = 1 there is little to be seen"
    assert all(reuse.before(k, steps) == max(f for f in full if f <= k) for k in range(steps))
    assert all(reuse.after(k, steps) == min(f for f in full if f >= k) for k in range(steps))
    assert [j for f in full for j in reuse.served_by(f, steps)] == list(range(steps))


def by_hand(unet, z, t, text, deep, outer):
    """The layers of a shallow pass, written out for one layer a block; norms see all frames."""
    frames = z.shape[1]
    time = unet.time(t, len(z), CPU, torch.float32).repeat_interleave(frames, 0)
    first = unet.conv_in(z.flatten(0, 1).contiguous(memory_format=torch.channels_last), frames)
    block, attend = unet.up_blocks[-1], Plain(INDEX)
    x = deep
    if not outer:
        inner = unet.down_blocks[0].resnets[0](first, time, frames, frames)
        inner = unet.down_blocks[0].attentions[0](inner, frames, text, attend)
        x = block.resnets[0](torch.cat([x, inner], 1), time, frames, frames)
        x = block.attentions[0](x, frames, text, attend)
    x = block.resnets[1](torch.cat([x, first], 1), time, frames, frames)
    x = block.attentions[1](x, frames, text, attend)
    norm = unet.conv_norm_out
    mean, var = (f(x.unflatten(0, (-1, frames)).unflatten(2, (8, -1)), (1, 3, 4, 5)) for f in (mean_of, variance_of))
    y = (x.unflatten(0, (-1, frames)).unflatten(2, (8, -1)) - mean) / (var + norm.eps) ** 0.5
    y = y.flatten(2, 3).flatten(0, 1) * norm.weight[:, None, None] + norm.bias[:, None, None]
    return unet.conv_out(F.silu(y), frames).unflatten(0, z.shape[:2])


def mean_of(x, dims):
    return x.mean(dims, keepdim=True)


def variance_of(x, dims):
    return x.var(dims, unbiased=False, keepdim=True)


@pytest.mark.parametrize("outer", [False, True], ids=["level", "outer"])
@torch.no_grad()
def test_a_shallow_step_is_the_full_size_level_over_deep_features(unet, outer):
    z, later = (numbers(seed, 2, FRAMES, 4, 16, 16) for seed in (5, 6))
    text, deep = TextContext(torch.stack([NEGATIVE, TARGET])), Deep(outer)
    whole = unet(z, 500, text, Plain(INDEX), deep=deep)
    assert torch.equal(whole, unet(z, 500, text, Plain(INDEX))), "leaving features changes nothing"
    deep.shallow = True
    torch.testing.assert_close(unet(z, 500, text, Plain(INDEX), deep=deep), whole)
    ours = unet(later, 300, text, Plain(INDEX), deep=deep)
    torch.testing.assert_close(ours, by_hand(unet, later, 300, text, deep.features, outer), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours, unet(later, 300, text, Plain(INDEX)), atol=1e-3)
    with pytest.raises(RuntimeError, match="no full step before"):
        unet(later[:1], 300, TextContext(TARGET[None]), Plain(INDEX), deep=deep)


def test_a_level_of_several_layers_is_cut_before_its_first(unet):
    deeper = model(dataclasses.replace(CONFIG, layers_per_block=2))
    assert [len(x) for x in (deeper.encoder(), deeper.decoder())] == [11, 12]
    seen = []
    for name, module in deeper.named_modules():
        if name.count(".") == 3 and "resnets" in name or name.endswith("attn2"):
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    deep = Deep()
    with torch.no_grad():
        deeper(Z0[None], 500, TextContext(TARGET[None]), deep=deep)
        seen.clear()
        deep.shallow = True
        deeper(Z0[None], 300, TextContext(TARGET[None]), deep=deep)
    assert deep.features.shape[1] == 32 and {name[:11] for name in seen} == {"down_blocks", "up_blocks.3"}
    assert not [name for name in seen if name.startswith("down_blocks") and name[12] != "0"]


@pytest.mark.parametrize("reuse", WAYS, ids=str)
def test_stores_keep_full_steps_and_give_the_same_bits(unet, tmp_path, reuse):
    recomputed = edited(unet, reuse, inverted(unet, reuse))
    kept = inverted(unet, reuse, KeptInMemory())
    full = {t for k, t in enumerate(SCHEDULE.timesteps) if reuse.is_full(k, STEPS)}
    assert set(kept.store.steps) <= full and len(kept.store.steps) >= 2
    assert equal(edited(unet, reuse, kept), recomputed)
    disk = KeptOnDisk(tmp_path / "operands", SCHEDULE.timesteps, CPU, say=pytest.fail)
    assert equal(edited(unet, reuse, inverted(unet, reuse, disk)), recomputed)
    disk.close()
    exact = edited(unet, Reuse(), inverted(unet, Reuse()))
    assert not torch.allclose(recomputed[-1], exact[-1], atol=1e-4)


def test_no_source_pass_at_shallow_steps(unet):
    """Recomputing: five edit steps, and the source's pass at full ones that fuse."""
    source = inverted(unet, Reuse(3))
    calls = count_calls(unet)
    edited(unet, Reuse(3), source)
    assert calls() == 5 + 2


@pytest.mark.parametrize("reuse", WAYS, ids=str)
@pytest.mark.parametrize("done", range(1, STEPS))
def test_an_inversion_goes_on_from_any_step(unet, tmp_path, reuse, done):
    whole = inverted(unet, reuse)
    source = half_inverted(tmp_path, whole, SCHEDULE, done)
    inverted(unet, reuse, done=source)
    for ours, theirs in ((source.latents, whole.latents), (source.maps, whole.maps), (source.inputs, whole.inputs)):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[t], theirs[t]) for t in theirs)


@pytest.mark.parametrize("reuse", WAYS, ids=str)
def test_an_edit_goes_on_from_any_full_step(unet, reuse):
    source = inverted(unet, reuse)
    whole = edited(unet, reuse, source)
    for done in range(1, STEPS + 1):
        from_there = done if done == STEPS else reuse.before(done, STEPS)
        assert equal(edited(unet, reuse, source, done=whole[:from_there]), whole)
    with pytest.raises(RuntimeError, match="no full step before"):
        edited(unet, Reuse(3), source, done=whole[:1])


@pytest.mark.parametrize("clip_norm", [True, False], ids=["clip-norm", "per-frame-norm"])
def test_chunks_keep_their_own_features(clip_norm):
    whole = model(clip_norm=clip_norm)
    chunks = Chunks(whole, 2)
    expected = edited(whole, Reuse(3), inverted(whole, Reuse(3)))[-1]
    source = inverted(chunks, Reuse(3))
    ours = edited(chunks, Reuse(3), source)
    assert (ours[-1] - expected).norm() / expected.norm() < 1e-3
    assert equal(edited(chunks, Reuse(3), inverted(chunks, Reuse(3), KeptInMemory())), ours)


@pytest.mark.parametrize("store", [None, KeptInMemory])
def test_shallow_steps_fuse_nothing_of_the_full_size_level(unet, store):
    """With `--fuse full` the whole steps fuse it."""
    numbers = dataclasses.replace(fusion(), least_stride=1)
    source = Source(SOURCE, latents={CLEAN: Z0}, **({"store": store(), "keep": numbers.keeps} if store else {}))
    invert(denoiser(unet, Reuse(3)), source)
    model, task, fused = denoiser(unet, Reuse(3)), Edit(TARGET, numbers, region()), []
    make = Fuse(model, source, task)
    for step in SCHEDULE.downward():
        attend = make(step)
        fused.append((attend.fusion.least_stride, any(name.startswith("down_blocks.0") for name in attend.qk)))
    assert fused == [(1, True), (2, False), (2, False), *((1, numbers.keeps(k).anything) for k in (3, 4))]
    latents = []
    edit(model, source, task, Guidance(NEGATIVE, 7.5), lambda k, z: latents.append(z))
    assert torch.isfinite(latents[-1]).all() and not torch.equal(latents[0], edited(unet, Reuse(3), source)[0])


def test_a_shallow_step_has_the_branches_and_the_masks_of_its_full_step(unet):
    seen = []
    handle = unet.conv_in.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0]) // FRAMES))
    source = inverted(unet, Reuse(3), KeptInMemory())
    seen.clear()
    edited(unet, Reuse(3), source, window=(0.0, 0.4))
    # 0, 1 and 2 go together, as do 3 and 4 each alone
    assert seen == [2, 2, 2, 1, 1]
    seen.clear()
    edited(unet, Reuse(3), source, window=(0.2, 1.0))
    assert seen == [1, 1, 1, 2, 2]
    handle.remove()


def test_latents_are_blended_at_shallow_steps_by_the_full_ones_maps(unet):
    source = inverted(unet, Reuse(4))
    for t in SCHEDULE.timesteps:
        source.maps[t] = torch.zeros(FRAMES, 16, 77)
        source.maps[t][:, 5, 2] = source.maps[t][:, 5, 5] = 1.0
    # what a shallow step's own map would say: everything
    source.maps[SCHEDULE.timesteps[2]] = torch.ones(FRAMES, 16, 77)
    where = region()
    where = dataclasses.replace(
        where, latent_blend=dataclasses.replace(where.latent_blend, target_words=torch.zeros(77))
    )
    blended, free = edited(unet, Reuse(4), source, where), edited(unet, Reuse(4), source, region(latent_blend=None))
    # after step 2 of 5, a shallow one
    after = source.latents[SCHEDULE.timesteps[3]]
    inside = (blended[2] != after).any(1)
    assert 0 < inside.float().mean() < 0.6
    assert not torch.allclose(free[2], blended[2])


def test_removal_hides_keys_at_shallow_steps(unet):
    hidden = dict(hides_object=True, user_mask=torch.zeros(FRAMES, 128, 128), latent_blend=None)
    hidden["user_mask"][:, :64] = 1.0
    source = inverted(unet, Reuse(4))
    removed, kept = (
        edited(unet, Reuse(4), source, region(**(hidden | {"hides_object": hides}))) for hides in (True, False)
    )
    # from the same latent, one shallow step: only the full-size level tells them apart
    again = []
    for hides in (True, False):
        task = Edit(TARGET, fusion(), region(**(hidden | {"hides_object": hides})))
        denoise = denoiser(unet, Reuse(4)).remembering()
        fuse, text, steps = Fuse(denoise, source, task), TextContext(TARGET[None]), list(SCHEDULE.downward())
        with torch.no_grad():
            denoise(Z0[None], steps[0].t, text, Plain(INDEX))
            again.append(denoise(Z0[None], steps[1].t, text, fuse(steps[1])))
    assert not torch.allclose(*again, atol=1e-4)
    assert not torch.allclose(removed[-1], kept[-1], atol=1e-4)


def test_reconstruction_and_its_attention(unet):
    reuse = Reuse(3)
    source = inverted(unet, reuse)
    again = Source(SOURCE, latents=source.latents, store=KeptInMemory(), keep=fusion().keeps)
    reconstruct(denoiser(unet, reuse), again, Guidance(NEGATIVE, 3.0))
    maps = [again.maps[t] for t in SCHEDULE.timesteps]
    assert torch.equal(maps[0], maps[1]) and torch.equal(maps[0], maps[2]) and not torch.equal(maps[2], maps[3])
    assert set(again.store.steps) == {SCHEDULE.timesteps[0], SCHEDULE.timesteps[3]}
    assert len(edited(unet, reuse, again)) == STEPS


def test_inversion_takes_features_of_the_noisier_side(unet):
    """Step by step by hand: T-1 full, then those towards clean with its features, until the next full one."""
    reuse, text = Reuse(3), TextContext(SOURCE[None])
    source = inverted(unet, reuse)
    z, deep, times = Z0, Deep(), list(SCHEDULE.upward())
    with torch.no_grad():
        for i, (t_prev, t) in enumerate(times):
            deep.shallow = STEPS - 1 - i in (1, 2)
            eps = unet(z[None], t, text, Plain(INDEX), deep=deep)[0]
            z = ddim_inverse_step(z, eps, SCHEDULE.alpha_bar(t_prev), SCHEDULE.alpha_bar(t))
    torch.testing.assert_close(source.latents[SCHEDULE.timesteps[0]], z)


def test_the_setting():
    overlay = {"clip.path": "a.mp4", "source": "a car", "edits.0.target": "a boat"}
    assert build(overlay).reuse == 1 and build(overlay, {"reuse": "1:outer"}).reuse == 1
    line = ["--video", "a.mp4", "--source", "a car", "--target", "a boat", "--checkpoint", "x", "--reuse"]
    assert parse([*line, "3:outer"]).settings.reuse == "3:outer" and parse([*line, "3"]).settings.reuse == 3
    assert Reuse.of("3:outer") == Reuse(3, True) and Reuse.of(2) == Reuse(2)
    for wrong in ("0", "3:inner", "1.5", "-2"):
        with pytest.raises(FzError, match="reuse: got .*expected a whole number"):
            parse([*line, wrong])
    with pytest.raises(FzError, match="reuse: got 3 with method pnp, expected"):
        build(overlay, {"reuse": 3, "method": "pnp"})


def test_predicted_memory_counts_the_features():
    from fz.memory.budget import Footprint

    with torch.device("meta"):
        unet = UNet(UNetConfig())
    plain, level, outer = (
        Footprint(unet, (64, 64), 8, branches=2, reuse=r).working(0, CPU) for r in (Reuse(), Reuse(3), Reuse(3, True))
    )
    assert level - plain == 2 * 8 * 64 * 64 * 640 * 4 and outer - plain == 2 * 8 * 64 * 64 * 320 * 4


@pytest.mark.parametrize(
    "flags, expected",
    [
        ([], (18, "2:outer", (0.0, 0.5), "int8")),
        (["--steps", "7", "--reuse", "2", "--guidance-window", "1", "--weights", "same"], (7, 2, (0.0, 1.0), "same")),
        (["--method", "pnp"], (18, 1, (0.0, 1.0), "int8")),
    ],
    ids=["all", "flags go before", "what a method can"],
)
def test_fast_is_its_parts_and_says_so(flags, expected):
    line = ["--video", "a.mp4", "--source", "a car", "--target", "a boat", "--checkpoint", "x", "--fast", *flags]
    settings = parse(line).settings
    assert (settings.steps, settings.reuse, settings.guidance_window, settings.weights) == expected
    assert any(note.startswith("fast: steps 18, weights int8") for note in settings.notes)
    assert parse(["--fast"]).settings.steps == 8, "about three eighths of the miniature's own"
    assert [fast_steps(usual) for usual in (1, 4, 10, 20, 50, 1000)] == [1, 2, 4, 8, 18, 376]
    assert not [note for note in parse(["--steps", "3"]).settings.notes if note.startswith("fast")]
