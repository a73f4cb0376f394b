"""The paper's baselines and ablations: each by an identity that no other method has."""

import dataclasses
import functools
import json

import pytest
import torch
from random_weights import numbers, randomize, relative
from safetensors.torch import load_file

from fz import mini
from fz.attention import Plain
from fz.baselines import METHODS, editor_of
from fz.baselines.ddim import ddim
from fz.baselines.null_p2p import Frames, NullTextP2P, null_p2p, null_text, optimise_frames
from fz.baselines.pnp import Injected, InjectedResidual, PnP, injected_block, injected_sites
from fz.baselines.sdedit import SDEdit, add_noise
from fz.clips.video import read_clip
from fz.ddim import CLEAN, Schedule, ddim_inverse_step, ddim_step
from fz.denoiser import Denoiser
from fz.edit import Edit, edit, ignore, invert, reconstruct
from fz.frames import FrameIndex
from fz.fusion import Fusion
from fz.guidance import Guidance, guided
from fz.masks import EditRegion, LatentBlend
from fz.memory.budget import Footprint
from fz.model.layers import TextContext
from fz.model.unet import UNet, UNetConfig
from fz.model.vae import encode_clip
from fz.run import main
from fz.settings import config
from fz.settings.config import ABLATIONS, ClipSettings, EditSettings, Settings
from fz.settings.parse import parse
from fz.source import Source
from fz.weights.load import load_checkpoint

STEPS, FRAMES, WORDS = 4, 2, 77
CONFIG = UNetConfig(
    block_out_channels=(16, 32, 32, 32),
    layers_per_block=1,
    heads=(2, 2, 2, 2),
    cross_attention_dim=24,
    norm_num_groups=8,
)
INDEX = FrameIndex((0, "mid"))
SCHEDULE = Schedule.from_config({}, STEPS)
NOISIEST = SCHEDULE.timesteps[0]
Z0, SOURCE, TARGET, NEGATIVE = (
    numbers(1, FRAMES, 4, 16, 16),
    numbers(2, WORDS, 24),
    numbers(3, WORDS, 24),
    numbers(4, WORDS, 24),
)


@pytest.fixture(scope="module")
def unet():
    torch.set_num_threads(1)
    return randomize(UNet(CONFIG)).to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def source(unet):
    return invert(model_of(unet), Source(SOURCE, latents={CLEAN: Z0}))


def model_of(unet, index=INDEX, schedule=SCHEDULE):
    return Denoiser(unet, schedule, index)


def scale(s):
    return Guidance(NEGATIVE, s)


TO_TARGET, TO_SOURCE = Edit(TARGET), Edit(SOURCE)


def fusion(**changes):
    """Identity mapper, everything replaced at every step."""
    fields = dict(
        mapper=torch.eye(WORDS),
        alpha=torch.ones(WORDS),
        equalizer=torch.ones(WORDS),
        cross_window=torch.ones(STEPS + 1, WORDS),
        self_window=(0, STEPS),
    )
    return Fusion(**(fields | changes))


@functools.cache
def nulls(unet):
    """Frames with their null text, at guidance 3: they depend on z_0 alone, not on the clip's inversion."""
    return optimise_frames(model_of(unet), Source(SOURCE, {CLEAN: Z0}), scale(3.0))


def result(name, unet, source, *, plan=None, strength=0.75, seed=0, callback=ignore):
    """z_0 of a method, as a run would have it."""
    editor = NullTextP2P(nulls(unet)) if METHODS[name].prepare else editor_of(name, strength, seed)
    return editor(model_of(unet), source, Edit(TARGET, plan or fusion()), scale(3.0), callback)


@pytest.fixture(scope="module")
def results(unet, source):
    return {name: result(name, unet, source) for name in METHODS}


def test_the_table_has_the_methods_of_the_settings():
    assert tuple(METHODS) == config.METHOD_NAMES


def test_no_two_methods_agree(results):
    names = list(results)
    for i, a in enumerate(names):
        assert results[a].shape == Z0.shape and results[a].isfinite().all()
        for b in names[:i]:
            assert relative(results[a], results[b]) > 1e-2, (a, b)


@pytest.mark.parametrize("name", METHODS)
def test_every_step_is_watched(name, unet, source):
    seen = []
    z = result(name, unet, source, callback=lambda k, z: seen.append((k, z)))
    assert [k for k, _ in seen] == list(range(1, STEPS + 1))
    assert torch.equal(seen[-1][1], z)


@pytest.mark.parametrize("name", METHODS)
def test_what_each_reads(name, unet, source, results):
    """Of inversion, words and seed exactly what the table says."""
    other_noise = dataclasses.replace(source, latents={**source.latents, NOISIEST: numbers(9, *Z0.shape)})
    assert torch.equal(result(name, unet, other_noise), results[name]) == (not METHODS[name].inverts)
    unlike = fusion(equalizer=torch.full((WORDS,), 2.0))
    assert torch.equal(result(name, unet, source, plan=unlike), results[name]) == (not METHODS[name].fuses)
    assert torch.equal(result(name, unet, source, seed=1), results[name]) == (name != "sdedit")
    assert torch.equal(result(name, unet, source, strength=0.5), results[name]) == (name != "sdedit")


# ---- ddim --------------------------------------------------------------------------------------------------


def still(unet, eps):
    """The UNet with a noise that depends on nothing."""
    return lambda z, t, text, attend=None, alter=None: eps.expand(len(z), *eps.shape)


def test_ddim_of_a_fixed_noise_returns_the_clip(unet):
    eps = numbers(5, *Z0.shape)
    inverted = invert_with(still(unet, eps))
    assert relative(ddim(model_of(still(unet, eps)), inverted, TO_SOURCE, scale(1.0)), Z0) < 1e-5


def invert_with(model):
    latents = {CLEAN: Z0}
    for t_prev, t in SCHEDULE.upward():
        eps = model(latents[t_prev][None], t, None)[0]
        latents[t] = ddim_inverse_step(latents[t_prev], eps, SCHEDULE.alpha_bar(t_prev), SCHEDULE.alpha_bar(t))
    return Source(SOURCE, latents=latents)


def test_ddim_with_the_source_prompt_is_reconstruction_without_guidance(unet, source):
    steps = []
    model = model_of(unet)
    reconstruct(model, Source(SOURCE, source.latents), scale(1.0), lambda k, z: steps.append(z))
    z = ddim(model, source, TO_SOURCE, scale(1.0))
    assert torch.equal(z, steps[-1])
    assert relative(ddim(model, source, TO_TARGET, scale(1.0)), z) > 0.1


# ---- sdedit ------------------------------------------------------------------------------------------------


def test_sdedit_frames_know_nothing_of_each_other(unet):

    def sdedit(z_0):
        return SDEdit(0.5)(model_of(unet), Source(SOURCE, {CLEAN: z_0}), TO_TARGET, scale(3.0))

    whole, changed = sdedit(Z0), Z0.clone()
    changed[1] = 7
    assert relative(sdedit(changed)[0], whole[0]) < 1e-5
    assert relative(sdedit(Z0[:1]), whole[:1]) < 1e-5


@pytest.mark.parametrize(("strength", "steps"), [(1.0, 4), (0.5, 2), (0.01, 1)])
def test_sdedit_starts_from_its_share_of_the_steps(strength, steps, unet):
    """With a model whose noise is the one that was added, what was noised comes back."""
    calls = []
    alpha_bar = SCHEDULE.alpha_bar(SCHEDULE.timesteps[STEPS - steps])
    noise = (add_noise(Z0, alpha_bar, 3) - alpha_bar**0.5 * Z0) / (1 - alpha_bar) ** 0.5
    assert 0.9 < noise.std() < 1.1

    def model(z, t, text, attend):
        calls.append(t)
        return noise.repeat(len(z) // FRAMES, 1, 1, 1)[:, None]

    z = SDEdit(strength, 3)(model_of(model), Source(SOURCE, {CLEAN: Z0}), TO_TARGET, scale(3.0))
    assert calls == list(SCHEDULE.timesteps[-steps:])
    # what is left is the noise of z_0 itself: alpha_bar of CLEAN is not 1
    left = SCHEDULE.alpha_bar(CLEAN)
    assert relative(z, left**0.5 * Z0 + (1 - left) ** 0.5 * noise) < 1e-5


# ---- null-text optimisation and prompt-to-prompt -----------------------------------------------------------


def sampled(unet, group, guidance):
    """Guided sampling of the source prompt with the unconditional embedding of each step, frame by frame."""
    frames = []
    with torch.no_grad():
        for i, z in enumerate(group.source.latents[NOISIEST].split(1)):
            for k, t, t_prev in SCHEDULE.downward():
                text = TextContext(torch.stack([group.nulls[k][i], group.source.embedding]))
                eps = guided(unet(torch.stack([z, z]), t, text), guidance)
                z = ddim_step(z, eps, SCHEDULE.alpha_bar(t), SCHEDULE.alpha_bar(t_prev))
            frames.append(z)
    return torch.cat(frames)


@pytest.fixture(scope="module")
def miniature():
    """The bundled model, a frame of its example, the embeddings of its source and of an empty prompt."""
    checkpoint, words = load_checkpoint(mini.checkpoint()), mini.example()
    checkpoint.unet.requires_grad_(False)
    frame = read_clip(ClipSettings(words["clip.path"], frames=1, size=64), 64).frames
    with torch.no_grad():
        z_0 = encode_clip(checkpoint.vae.float(), frame)
    return checkpoint.unet.float(), z_0, *checkpoint.text.encode([words["source"], ""])


def test_null_text_reconstructs_where_ddim_does_not(miniature):
    unet, z_0, source, empty = miniature
    guidance, model = Guidance(empty, 4.0), model_of(unet, FrameIndex((0,)))
    (frame,) = optimise_frames(model, Source(source, {CLEAN: z_0}), guidance)
    own = sampled(unet, frame, 4.0)
    plain = ddim(model, frame.source, Edit(source), guidance)
    # 0.59 to 0.75 over frames, sizes and guidance of the example; without optimisation it is 1
    assert relative(own, z_0) < 0.85 * relative(plain, z_0)


def test_null_text_leaves_the_model_alone(unet):
    before = {name: p.clone() for name, p in unet.state_dict().items()}
    latents = {t: numbers(7, 1, 4, 16, 16) for t in (CLEAN, *SCHEDULE.timesteps)}
    inverted = Source(SOURCE, latents)
    found = null_text(model_of(unet), inverted, scale(7.5), inner=1)
    assert len({null.sum().item() for null in found}) == STEPS and all(not null.requires_grad for null in found)
    assert all(p.grad is None for p in unet.parameters())
    assert all(torch.equal(p, before[name]) for name, p in unet.state_dict().items())
    # at guidance 1 there is no unconditional branch
    assert all(torch.equal(null, NEGATIVE[None]) for null in null_text(model_of(unet), inverted, scale(1.0)))


@pytest.mark.parametrize("steps", [50, 5])
def test_null_text_steps_and_rates_are_the_published_ones(steps, monkeypatch):
    schedule, rates, stepped = Schedule.from_config({}, steps), [], []

    class Spy(torch.optim.Adam):
        def __init__(self, params, lr):
            rates.append(lr)
            super().__init__(params, lr)

        def step(self):
            stepped.append(len(rates) - 1)
            super().step()

    monkeypatch.setattr(torch.optim, "Adam", Spy)

    def model(z, t, text, attend):
        """Far from the latents whatever the embedding for t above a half, exact below."""
        away = 10.0 if t > 500 else 0.0
        return (0 * text.embedding.sum() + away) * torch.ones_like(z)

    latents = {t: torch.zeros(1, 4, 2, 2) for t in (CLEAN, *schedule.timesteps)}
    null_text(
        model_of(model, schedule=schedule), Source(torch.zeros(WORDS, 2), latents), Guidance(torch.zeros(WORDS, 2))
    )
    assert rates == pytest.approx([1e-2 * (1 - i * 50 / steps / 100) for i in range(steps)])
    assert [stepped.count(i) for i in range(steps // 2)] == [10] * (steps // 2)  # never below the threshold
    assert stepped.count(steps - 1) in (1, 10)


def test_null_text_of_a_batch_is_that_of_each_frame(unet):
    model, z_0 = model_of(unet), Source(SOURCE, {CLEAN: Z0})
    together, apart = (optimise_frames(model, z_0, scale(3.0), at_once=n) for n in (10**6, 1))
    assert (len(together), len(apart)) == (1, FRAMES) and unet.clip_norm
    for k in range(STEPS):
        assert relative(together[0].nulls[k], torch.cat([one.nulls[k] for one in apart])) < 1e-4
    task = Edit(TARGET, fusion(self_window=(0, 2)))
    edited = [null_p2p(model, groups, task, scale(3.0)) for groups in (together, apart)]
    assert relative(*edited) < 1e-4


def test_null_text_leaves_a_frame_that_is_near_alone(monkeypatch):
    stepped, schedule = [], Schedule.from_config({}, 5)

    class Spy(torch.optim.Adam):
        def step(self):
            stepped.append(None)
            super().step()

    monkeypatch.setattr(torch.optim, "Adam", Spy)

    def model(z, t, text, attend):
        return text.embedding.mean((1, 2))[:, None, None, None, None] * torch.ones_like(z)

    # the first frame's latents can be followed, the second's are out of reach
    latents = {
        t: torch.stack([torch.zeros(4, 2, 2), torch.full((4, 2, 2), 10.0 * i)])
        for i, t in enumerate((CLEAN, *schedule.timesteps))
    }
    guidance, denoiser = Guidance(torch.full((WORDS, 2), 0.02)), model_of(model, schedule=schedule)
    together = null_text(denoiser, Source(torch.zeros(WORDS, 2), latents), guidance)
    count = len(stepped)
    apart = [
        null_text(denoiser, Source(torch.zeros(WORDS, 2), {t: z[i : i + 1] for t, z in latents.items()}), guidance)
        for i in (0, 1)
    ]
    assert 55 <= count < 100 and len(stepped) == 2 * count
    for null, first, second in zip(together, *apart, strict=True):
        assert torch.allclose(null, torch.cat([first, second]), atol=1e-6)


class Faint(torch.autograd.Function):
    """Half-precision layers whose gradients are a millionth of what reaches them."""

    @staticmethod
    def forward(context, x):
        return x.half().float()

    @staticmethod
    def backward(context, gradient):
        return (gradient * 1e-6).half().float() * 1e6


def test_null_text_keeps_gradients_that_half_precision_loses():
    schedule, sought = Schedule.from_config({}, 2), []
    for layer in (Faint.apply, lambda x: x):

        def model(z, t, text, attend, layer=layer):
            return layer(text.embedding.mean((1, 2)))[:, None, None, None, None] * torch.ones_like(z)

        latents = {t: torch.full((1, 4, 64, 64), 0.05 * i) for i, t in enumerate((CLEAN, *schedule.timesteps))}
        source, guidance = Source(torch.zeros(WORDS, 2), latents), Guidance(torch.full((WORDS, 2), 0.02))
        sought.append(null_text(model_of(model, schedule=schedule), source, guidance)[-1])
    assert relative(*sought) < 0.05 and relative(sought[0], torch.full((1, WORDS, 2), 0.02)) > 0.1


def test_null_p2p_frames_know_nothing_of_each_other(unet):
    changed = Z0.clone()
    changed[1] = numbers(8, *Z0.shape[1:])
    model, task = model_of(unet), Edit(TARGET, fusion())
    frames = optimise_frames(model, Source(SOURCE, {CLEAN: changed}), scale(3.0))
    before, after = (null_p2p(model, f, task, scale(3.0)) for f in (nulls(unet), frames))
    assert torch.equal(after[0], before[0]) and not torch.equal(after[1], before[1])


def test_null_p2p_of_the_source_is_its_reconstruction(unet):
    own = torch.cat([sampled(unet, group, 3.0) for group in nulls(unet)])
    assert relative(null_p2p(model_of(unet), nulls(unet), Edit(SOURCE, fusion()), scale(3.0)), own) < 1e-4
    assert relative(null_p2p(model_of(unet), nulls(unet), Edit(TARGET, fusion()), scale(3.0)), own) > 0.05


def test_null_p2p_takes_the_attention_of_the_frames_own_reconstruction(unet):
    """Without optimised nulls it is FateZero's editing of one frame with reconstruction attention and no mask."""
    own = model_of(unet, FrameIndex((0,)))
    inverted = invert(own, Source(SOURCE, latents={CLEAN: Z0[:1]}))
    frame = Frames(inverted, (NEGATIVE[None],) * STEPS)
    sampled = reconstruct(own, Source(SOURCE, inverted.latents), scale(3.0))
    words = torch.zeros(WORDS)
    words[3] = 1
    for plan in (fusion(self_window=(0, 2)), fusion(cross_window=torch.zeros(STEPS + 1, WORDS))):
        masked = Edit(TARGET, plan, EditRegion(words, latent_blend=LatentBlend(words, words)))
        got = null_p2p(own, [frame], masked, scale(3.0))
        assert relative(got, edit(own, sampled, Edit(TARGET, plan), scale(3.0))) < 1e-4
        assert relative(got, edit(own, inverted, Edit(TARGET, plan), scale(3.0))) > 1e-2
    got = null_p2p(own, [frame], TO_TARGET, scale(3.0))
    assert relative(got, edit(own, inverted, TO_TARGET, scale(3.0))) < 1e-4


# ---- plug-and-play -----------------------------------------------------------------------------------------


def test_pnp_injects_in_stable_diffusions_decoder_layers_4_to_11():
    names = injected_sites(UNet(dataclasses.replace(CONFIG, layers_per_block=2)))
    expected = {(1, 1), (1, 2), *((i, j) for i in (2, 3) for j in range(3))}
    assert names == {f"up_blocks.{i}.attentions.{j}.transformer_blocks.0.attn1" for i, j in expected}


def test_pnp_branches_get_the_sources_features(unet):
    """Behind the injected block, branches of other latents and prompts have the source's residual; at injected sites
    its q and k.
    """
    batch, text = torch.stack([Z0, Z0 + 1, numbers(6, *Z0.shape)]), TextContext(torch.stack([SOURCE, NEGATIVE, TARGET]))
    block, sites, residuals, looked = injected_block(unet), injected_sites(unet), {}, []
    inject, attend = InjectedResidual(block, 3), Injected(Plain(INDEX), sites)

    def alter(resnet, h):
        out = inject(resnet, h)
        residuals[resnet] = (h.unflatten(0, (3, -1)), out.unflatten(0, (3, -1)))
        return out

    def spy(site, x):
        out = attend(site, x)
        if site.name in sites:
            looked.append(site.name)
            q, k, v = x.q(), x.k(), x.v()
            frames = INDEX.table(site, FRAMES)
            for b in range(3):
                maps = torch.einsum("fnhd,frmhd->fhnrm", q[0], k[0][frames]).flatten(-2) / q.shape[-1] ** 0.5
                expected = torch.einsum("fhnm,fmhd->fnhd", maps.softmax(-1), v[b][frames].flatten(1, 2))
                assert relative(out[b], expected) < 1e-4
            assert relative(q[1], q[0]) > 1e-2
        return out

    with torch.no_grad():
        unet(batch, NOISIEST, text, spy, alter)
    assert set(looked) == sites
    for resnet, (before, after) in residuals.items():
        assert relative(before[1], before[0]) > 1e-2
        assert torch.equal(after, before[:1].expand_as(before) if resnet is block else before)


def test_pnp_of_the_source_alone_follows_the_inversion_step(unet, source):
    """target = source, no guidance: at the first step both branches are the same, so eps is plain sampling's."""
    first = {}
    PnP()(model_of(unet), source, TO_SOURCE, scale(1.0), first.setdefault)
    plain = {}
    ddim(model_of(unet), source, TO_SOURCE, scale(1.0), plain.setdefault)
    assert relative(first[1], plain[1]) < 1e-4 and relative(first[2], plain[2]) > 1e-5


@pytest.mark.parametrize(("features", "attention"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.8, 0.5)])
def test_pnp_thresholds(features, attention, unet, source):
    """How many steps each injection lasts; without either it is plain sampling."""
    seen = []

    def model(z, t, text, attend, alter=None):
        seen.append((isinstance(attend, Injected), alter is not None))
        return unet(z, t, text, attend, alter)

    model.up_blocks = unet.up_blocks
    z = PnP(features, attention)(model_of(model), source, TO_TARGET, scale(3.0))
    assert [a for a, _ in seen] == [k < int(attention * STEPS) for k in range(STEPS)]
    assert [f for _, f in seen] == [k < int(features * STEPS) for k in range(STEPS)]
    plain = ddim(model_of(unet), source, TO_TARGET, scale(3.0))
    assert (relative(z, plain) < 1e-4) == (features == attention == 0)


def test_alter_is_nothing_unless_given(unet):
    with torch.no_grad():
        text = TextContext(SOURCE[None])
        plain = unet(Z0[None], NOISIEST, text, Plain(INDEX))
        assert torch.equal(unet(Z0[None], NOISIEST, text, Plain(INDEX), lambda resnet, h: h), plain)
        assert not torch.equal(unet(Z0[None], NOISIEST, text, Plain(INDEX), lambda resnet, h: 2 * h), plain)


# ---- memory ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint():
    torch.set_num_threads(1)
    return load_checkpoint(mini.checkpoint())


def footprint(checkpoint, method, frames, side=16, **more):
    settings = config.build({"clip.path": "a", "source": "a b", "edits.0.target": "a c", "method": method, **more})
    return Footprint.of(settings, checkpoint, None, (side, side), frames)


def saved_bytes(checkpoint, z, steps=1):
    """What autograd holds at once while null texts are optimised: storages that are alive, but for the weights."""
    weights = {p.untyped_storage().data_ptr() for p in checkpoint.unet.parameters()}
    alive, most = {}, 0

    def hold(t):
        nonlocal most
        storage = t.untyped_storage()
        if storage.data_ptr() not in weights:
            alive[storage.data_ptr()] = storage.nbytes()
        most = max(most, sum(alive.values()))
        return t

    model = model_of(checkpoint.unet, schedule=Schedule.from_config(checkpoint.scheduler, steps))
    size = checkpoint.unet.config.cross_attention_dim
    guidance = Guidance(numbers(4, WORDS, size), 3.0)
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda t: t):
        inverted = invert(model, Source(numbers(2, WORDS, size), latents={CLEAN: z}))
        null_text(model, inverted, guidance, inner=1)
    return most


@pytest.mark.parametrize("frames", [1, 3])
def test_what_null_text_differentiates_is_predicted(checkpoint, frames):
    saved = saved_bytes(checkpoint, numbers(1, frames, 4, 16, 16))
    without_vae = dataclasses.replace(footprint(checkpoint, "null-p2p", frames), vae=None)
    assert saved < without_vae.working(0, torch.device("cpu")) < 2 * saved


def test_memory_goes_by_the_methods_branches_and_by_the_frames_that_go_together(checkpoint):
    of = {name: footprint(checkpoint, name, 8) for name in METHODS}
    assert {name: f.branches for name, f in of.items()} == dict.fromkeys(METHODS, 2) | {"pnp": 3}
    assert footprint(checkpoint, "pnp", 8, guidance=1.0).branches == 2
    needs = {name: dataclasses.replace(f, vae=None).working(0, torch.device("cpu")) for name, f in of.items()}
    assert needs["fatezero"] == needs["ddim"] < needs["pnp"] < needs["null-p2p"] / 3
    # frames of 512² go one by one, however many there are; without guidance there is nothing to optimise
    assert [footprint(checkpoint, "null-p2p", n, 64).frames for n in (1, 8)] == [1, 1]
    assert footprint(checkpoint, "null-p2p", 8, guidance=1.0).differentiated == 0


# ---- one command -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("name", [*METHODS, "fatezero again"])
def test_every_method_runs_on_the_miniature_from_one_command(name, cache, tmp_path_factory, capsys):
    base = tmp_path_factory.getbasetemp()
    out = base / name.replace(" ", "-")
    argv = ["--method", name.partition(" ")[0], "--steps", "2", "--frames", "2", "--size", "64", "--threads", "1"]
    argv += ["--cache", cache, "--out", str(out)]
    assert main([*argv, "--save-latents"]) == 0, capsys.readouterr().err
    latents, written = load_file(out / "latents.safetensors"), json.loads((out / "run.json").read_text())
    assert written["status"] == "done" and written["settings"]["method"] == name.partition(" ")[0]
    assert ("inverted.002" in latents) == METHODS[name.partition(" ")[0]].inverts
    assert (out / "edit-0.mp4").is_file() and latents["edited.0.002"].shape[:2] == (2, 4)
    if name == "fatezero again":  # others' steps in the same cache are not taken for its own
        assert all(torch.equal(z, latents[key]) for key, z in load_file(base / "fatezero/latents.safetensors").items())


# ---- ablations ---------------------------------------------------------------------------------------------

RUN = [
    "--checkpoint",
    "model",
    "--video",
    "clip.mp4",
    "--source",
    "a silver jeep",
    "--target",
    "a red jeep",
    "--target",
    "a blue jeep",
    "--edit",
    "shape",
    "--cross-replace.0",
    "red=0.2",
]


@pytest.mark.parametrize(
    ("name", "changes", "edit"),
    [
        ("no-self", {}, {"self_replace": (0.0, 0.0)}),
        ("full-self", {}, {"self_replace": (0.0, 1.0), "threshold": None}),
        ("reconstruction", {"attention": "reconstruction"}, {}),
        ("no-cross", {}, {"cross_replace": (0.0, 0.0), "cross_replace_words": ()}),
    ],
)
def test_an_ablation_changes_its_settings_only(name, changes, edit):
    assert name in ABLATIONS
    plain = parse(RUN).settings
    edits = tuple(dataclasses.replace(e, **edit) for e in plain.edits)
    ablated = parse([*RUN, "--ablate", name]).settings
    assert ablated == dataclasses.replace(plain, **changes, edits=edits) and ablated != plain
    # over the other flags, whatever their order and number
    assert parse(["--ablate", name, *RUN, "--self-replace.0", "0.4", "--self-replace.1", "0.3"]).settings.edits[
        0
    ].self_replace == (edit.get("self_replace", (0.0, 0.4)))


def test_ablations_are_all_tested_and_defaults_are_none_of_them():
    assert set(ABLATIONS) == {"no-self", "full-self", "reconstruction", "no-cross"}
    assert Settings.method == "fatezero" and EditSettings("x").self_replace != (0.0, 0.0)
