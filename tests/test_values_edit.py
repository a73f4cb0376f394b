"""Values of an edit against plain formulas, on a small random model: guidance, windows, masks, blended latents, what a
reconstruction records, hidden keys.
"""

import dataclasses

import pytest
import torch
from random_weights import numbers, randomize, relative

from fz import kernels, mini
from fz.attention import Keep, Recorder
from fz.ddim import CLEAN, Schedule, ddim_step
from fz.denoiser import Denoiser
from fz.edit import Edit, edit, invert, masks_of, reconstruct
from fz.frames import FrameIndex
from fz.fusion import Fuser, Fusion
from fz.guidance import Guidance, Guide, guided
from fz.masks import EditRegion, LatentBlend, blend_latents, edit_mask, foreground
from fz.memory.kept import KeptInMemory
from fz.model.finite import NotFinite
from fz.model.layers import TextContext
from fz.model.unet import UNet, UNetConfig
from fz.pipeline import Progress, run
from fz.prompts.plan import plan_edit
from fz.prompts.text import TextEncoder
from fz.settings.config import EditSettings, build
from fz.source import Source
from fz.weights.tokenizer import find_tokenizer, load_tokenizer

WORDS, STEPS, FRAMES, SIDE = 77, 10, 2, 16
SCHEDULE = Schedule.from_config({}, STEPS)
INDEX = FrameIndex((0, "mid"))
CONFIG = UNetConfig(
    block_out_channels=(16, 32, 32, 32),
    layers_per_block=1,
    heads=(2, 2, 2, 2),
    cross_attention_dim=24,
    norm_num_groups=8,
)
Z0, SOURCE, TARGET, NEGATIVE = numbers(1, FRAMES, 4, SIDE, SIDE), *(numbers(i, WORDS, 24) for i in (2, 3, 4))
WORD = 3


@pytest.fixture(scope="module")
def unet():
    torch.set_num_threads(1)
    return randomize(UNet(CONFIG)).to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def model(unet):
    return Denoiser(unet, SCHEDULE, INDEX)


@pytest.fixture(scope="module")
def source(model):
    """An inversion whose maps are seen in one cell a frame, another at every step."""
    source = invert(model, Source(SOURCE, {CLEAN: Z0}))
    for i, t in enumerate(source.maps):
        source.maps[t] = torch.zeros(FRAMES, (SIDE // 4) ** 2, WORDS)
        source.maps[t][0, i, WORD] = source.maps[t][1, 15 - i, WORD] = 1.0
    return source


def fusion(self_window=(0, STEPS), cross=1.0):
    beta = torch.full((STEPS + 1, WORDS), cross)
    return Fusion(torch.eye(WORDS), torch.ones(WORDS), torch.ones(WORDS), beta, self_window)


def word(i=WORD):
    return torch.eye(WORDS)[i]


def cells(on):
    """The blend mask of one seen cell a frame at the latent's size: 3x3 cells, cut at the border."""
    mask = torch.zeros(FRAMES, SIDE, SIDE, dtype=torch.bool)
    for frame, cell in enumerate(on):
        y, x = divmod(cell, SIDE // 4)
        mask[frame, max(0, 4 * (y - 1)) : 4 * (y + 2), max(0, 4 * (x - 1)) : 4 * (x + 2)] = True
    return mask


def steps_of(model, source, task, guidance=None):
    latents = []
    edit(model, source, task, guidance or Guidance(NEGATIVE, 3.0), lambda k, z: latents.append(z))
    return latents


# ---- guidance ----------------------------------------------------------------------------------------------


def test_guidance_is_its_formula():
    null, cond, other = numbers(5, 3), numbers(6, 3), numbers(7, 3)
    assert torch.equal(guided(torch.stack([null, cond]), 7.5), null + 7.5 * (cond - null))
    assert torch.equal(guided(torch.stack([other, null, cond]), 2.0), null + 2.0 * (cond - null)), (
        "the last two branches"
    )
    assert torch.equal(guided(torch.stack([null, cond]), 1.0), cond) and torch.equal(guided(cond[None], 0.5), cond)


@pytest.mark.parametrize(
    ("window", "steps"),
    [((0.0, 1.0), range(10)), ((0.15, 0.35), (2, 3)), ((0.2, 0.6), (2, 3, 4, 5)), ((0.0, 0.0), ()), ((0.95, 1.0), ())],
    ids=str,
)
def test_steps_inside_the_window_are_guided(window, steps):
    """By a model whose noise is the mean of its prompt: the guided noise tells which branches it had."""
    calls = []

    def noise(z, t, text, attend):
        calls.append((t, len(z)))
        return text.embedding.mean((1, 2))[:, None, None, None, None].expand(z.shape)

    guide = Guide(TARGET, Guidance(NEGATIVE, 4.0, window), SCHEDULE)
    for k, t, _ in SCHEDULE.downward():
        eps = guide(Denoiser(noise, SCHEDULE, INDEX), Z0, t)
        null, cond = NEGATIVE.mean(), TARGET.mean()
        expected = null + 4.0 * (cond - null) if k in steps else cond
        assert eps.shape == Z0.shape and torch.allclose(eps, expected.expand(Z0.shape), atol=1e-6)
    assert calls == [(t, 2 if k in steps else 1) for k, t, _ in SCHEDULE.downward()]


def test_the_batch_has_an_unconditional_branch_only_where_there_is_guidance():
    for scale, prompts in ((7.5, [NEGATIVE, TARGET]), (1.01, [NEGATIVE, TARGET]), (1.0, [TARGET]), (0.0, [TARGET])):
        assert torch.equal(Guidance(NEGATIVE, scale).prompts(TARGET), torch.stack(prompts)), scale


# ---- windows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "steps", "self_steps", "cross_steps"),
    [(0.7, 10, 7, 7), (0.35, 10, 3, 3), (0.29, 7, 2, 2), (0.8, 5, 4, 4), (0.5, 5, 2, 3), (0.99, 4, 3, 4)],
)
def test_windows_of_fractional_products(share, steps, self_steps, cross_steps):
    """Self-attention is fused at k < int(share T), cross-attention at k < int(share (T + 1)), as released."""
    text = TextEncoder(load_tokenizer(find_tokenizer(mini.FOLDER), 2**31), None)
    tokens = [text.tokens(sentence) for sentence in ("a red car", "a blue car")]
    settings = EditSettings("a blue car", self_replace=(0.0, share), cross_replace=(0.0, share), align="replace")
    plan = plan_edit(settings, *tokens, steps).fusion
    assert [k for k in range(steps) if plan.replaces_self(k)] == list(range(self_steps))
    assert [k for k in range(steps + 1) if plan.replaces_cross(k)] == list(range(cross_steps))


# ---- masks -------------------------------------------------------------------------------------------------


def test_masks_are_of_the_step_s_own_timestep(model, source, unet):
    """Edit step k sees the source's map at t, and so does the attention that the UNet is given."""
    task, given = Edit(TARGET, fusion(), EditRegion(word())), {}

    def spy(z, t, text, attend):
        if isinstance(attend, Fuser):
            given[t] = attend.masks
        return unet(z, t, text, attend)

    spy.sites = unet.sites
    edit(dataclasses.replace(model, unet=spy), source, task, Guidance(NEGATIVE, 1.0))
    for k, t in enumerate(SCHEDULE.timesteps):
        seen = STEPS - 1 - k  # the inversion step that reached t
        expected = cells((seen, 15 - seen))
        masks = masks_of(model, source, task, k)
        assert set(masks) == set(given[t]) == {2, 4, 8}
        for of in (masks, given[t]):
            assert torch.equal(of[2], expected[:, ::2, ::2]) and torch.equal(of[4], expected[:, ::4, ::4])


def test_masks_of_a_clip_that_is_wider_than_high():
    """Maps are read row by row: (h / 4, w / 4) cells of the latent."""
    maps = torch.zeros(1, 2 * 6, WORDS)
    maps[0, 6 + 4, WORD] = 1.0  # row 1 of 2, column 4 of 6
    expected = torch.zeros(1, 8, 24, dtype=torch.bool)
    expected[:, :, 12:24] = True
    assert torch.equal(edit_mask(EditRegion(word()), maps, (8, 24), (8, 24)), expected)
    region = EditRegion(latent_blend=LatentBlend(word(), word()))
    z, background = numbers(1, 1, 4, 8, 24), numbers(2, 1, 4, 8, 24)
    blended = blend_latents(z, background, region, maps, torch.zeros_like(maps))
    assert torch.equal(blended, torch.where(expected[:, None], z, background))


def test_each_mask_has_its_own_threshold():
    """tau of the blend mask is not that of the latents' masks."""
    maps = torch.zeros(1, 16, WORDS)
    maps[0, 0, WORD], maps[0, 15, WORD] = 1.0, 0.5
    z, background = numbers(1, 1, 4, 16, 16), numbers(2, 1, 4, 16, 16)
    for tau, latents_tau in ((0.3, 0.7), (0.7, 0.3)):
        region = EditRegion(word(), tau, latent_blend=LatentBlend(word(), word(), latents_tau))
        corners = {0.7: cells((0, 0))[:1], 0.3: (cells((0, 0)) | cells((15, 15)))[:1]}
        assert torch.equal(edit_mask(region, maps, (16, 16), (16, 16)), corners[tau])
        blended = blend_latents(z, background, region, maps, maps)
        assert torch.equal(blended, torch.where(corners[latents_tau][:, None], z, background))


def test_a_mask_is_used_while_self_attention_is_fused(model, source):
    task = Edit(TARGET, fusion(self_window=(1, 3)), EditRegion(word()))
    assert [k for k in range(STEPS) if masks_of(model, source, task, k)] == [1, 2]
    assert not any(masks_of(model, source, dataclasses.replace(task, fusion=None), k) for k in range(STEPS))


# ---- hidden keys -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("self_window", [(0, 0), (2, 5), (0, STEPS)], ids=str)
def test_no_pixel_attends_to_what_is_removed_at_any_step(model, source, self_window, monkeypatch):
    """The keys under the mask of the step are hidden at every self-attention of every edit step."""
    calls, attention = [], kernels.self_attention

    def spy(q, k, v, table, **options):
        calls.append((k.shape[2], options.get("key_mask")))
        return attention(q, k, v, table, **options)

    source = dataclasses.replace(source, store=KeptInMemory(), keep=lambda k: Keep(True, True))
    invert(model, kept := Source(SOURCE, {CLEAN: Z0}, store=source.store, keep=source.keep))
    assert kept.store.steps
    monkeypatch.setattr("fz.fusion.kernels.self_attention", spy)
    task = Edit(TARGET, fusion(self_window), EditRegion(word(), hides_object=True))
    edit(model, source, task, Guidance(NEGATIVE, 3.0))
    sites = [s for s in model.unet.sites() if s.kind == "self"]
    assert len(calls) == STEPS * len(sites)
    for i, (tokens, key_mask) in enumerate(calls):
        seen, side = STEPS - 1 - i // len(sites), int(tokens**0.5)
        hidden = cells((seen, 15 - seen))[:, :: SIDE // side, :: SIDE // side].flatten(1)
        if side >= 4:  # at the deepest level a cell of the map is larger than the picture's
            assert torch.equal(key_mask, ~hidden.expand(2, -1, -1)), (i // len(sites), side)
        assert key_mask is not None


# ---- latents of the background -----------------------------------------------------------------------------


def blended(latents, source, edited):
    """The steps after which every latent outside `edited` is the source's of the same noise level, to the bit."""
    times = [*SCHEDULE.timesteps[1:], CLEAN]
    outside = ~edited[:, None].expand_as(Z0)
    return [
        k
        for k, (z, t) in enumerate(zip(latents, times, strict=True))
        if torch.equal(z[outside], source.latents[t][outside])
    ]


@pytest.mark.parametrize("inverted", [False, True], ids=["mask", "inverted mask"])
def test_the_background_s_latents_are_the_source_s_of_the_same_level(model, source, inverted):
    """Of T = 10 after 3 to 7 steps; inside the mask they are the edit's at every step."""
    shares = torch.zeros(FRAMES, SIDE, SIDE)
    shares[:, 4:12, 2:9] = 1
    shares = 1 - shares if inverted else shares
    region = EditRegion(user_mask=shares, latent_blend=LatentBlend(word(), word()))
    latents, inside = steps_of(model, source, Edit(TARGET, fusion(), region)), shares.bool()
    assert blended(latents, source, inside) == [2, 3, 4, 5, 6]
    assert blended(latents, source, ~inside) == []


def test_words_of_both_prompts_are_edited(model, source):
    """Outside the union of the source word's mask and the target word's, whose fused map is the source's here."""
    for i, t in enumerate(source.maps):
        source.maps[t][0, (i + 8) % 16, WORD + 1] = source.maps[t][1, i, WORD + 1] = 1.0
    region = EditRegion(latent_blend=LatentBlend(word(), word(WORD + 1)))
    latents = steps_of(model, source, Edit(TARGET, fusion(), region))
    for k in range(2, 7):
        i, t_prev = STEPS - 1 - k, SCHEDULE.timesteps[k + 1]
        edited = cells((i, 15 - i)) | cells(((i + 8) % 16, i))
        outside = ~edited[:, None].expand_as(Z0)
        assert torch.equal(latents[k][outside], source.latents[t_prev][outside]), k
        assert (latents[k] != source.latents[t_prev])[~outside].float().mean() > 0.99, "either mask is the edit's"


def seen_in(source, cell_of, word=WORD):
    """The source, its word seen in cell_of(i, frame) at the i-th inversion step."""
    maps = {t: torch.zeros_like(m) for t, m in source.maps.items()}
    for i, m in enumerate(maps.values()):
        for frame in range(FRAMES):
            m[frame, cell_of(i, frame), word] = 1.0
    return dataclasses.replace(source, maps=maps)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
def test_a_kept_background_is_the_source_s_of_the_same_level_after_every_step(model, source, fused):
    """Without fusion, too: the mask is of the source's maps alone."""
    source = seen_in(source, lambda i, frame: (5, 2)[frame])
    task = Edit(TARGET, fusion() if fused else None, EditRegion(background=word()))
    latents, edited = steps_of(model, source, task), cells((5, 2))
    assert blended(latents, source, edited) == list(range(STEPS))
    assert blended(latents, source, ~edited) == []


def test_the_background_is_outside_the_mask_of_the_mean_map(source):
    """What four of ten steps see is the foreground, what one sees is not (tau 0.3 of the most that is seen)."""
    seen = seen_in(source, lambda i, frame: [15] if i < 5 else [0] if i < 9 else [12])
    steady = foreground(EditRegion(background=word()), seen.maps, (SIDE, SIDE))
    assert torch.equal(steady, cells((15, 15)) | cells((0, 0)))


# ---- one step ----------------------------------------------------------------------------------------------


def test_a_plain_step_is_its_formula(model, source):
    z, (k, t, t_prev) = source.latents[SCHEDULE.timesteps[0]], next(SCHEDULE.downward())
    with torch.no_grad():
        null, cond = model(torch.stack([z, z]), t, TextContext(torch.stack([NEGATIVE, TARGET])))
    eps = null + 3.0 * (cond - null)
    a, b = SCHEDULE.alpha_bars[t], SCHEDULE.alpha_bars[t_prev]
    expected = b**0.5 * (z - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps
    assert relative(steps_of(model, source, Edit(TARGET))[0], expected) < 1e-5
    assert k == 0 and SCHEDULE.timesteps == tuple(range(901, 0, -100))


def test_an_inversion_is_its_formula(model):
    """z_t out of z_{t-1} with the noise that the source prompt, alone and unguided, predicts at t (eq. 3)."""
    inverted, z = invert(model, Source(SOURCE, {CLEAN: Z0})), Z0
    for t_prev, t in zip((CLEAN, *range(1, 802, 100)), range(1, 902, 100), strict=True):
        recorder = Recorder(INDEX)
        with torch.no_grad():
            eps = model(z[None], t, TextContext(SOURCE[None]), recorder)[0]
        assert torch.equal(inverted.inputs[t], z) and torch.equal(inverted.maps[t], recorder.average())
        a, b = SCHEDULE.alpha_bars[max(t_prev, 0)], SCHEDULE.alpha_bars[t]
        expected = b**0.5 * (z - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps
        z = inverted.latents[t]
        assert relative(z, expected) < 1e-5, t


def test_what_edit_step_k_needs_is_kept_at_its_timestep(model):
    """Self-attention's of the first three steps, cross-attention's of the sixth, nothing else."""

    def keep(k):
        return Keep(k < 3, k == 5)

    source = invert(model, Source(SOURCE, {CLEAN: Z0}, store=KeptInMemory(), keep=keep))
    for k, t in enumerate(SCHEDULE.timesteps):
        wanted = {site.name for site in model.unet.sites() if keep(k).wants(site)}
        assert set(source.store.get(t) or {}) == wanted and bool(wanted) == (k in (0, 1, 2, 5)), k


def test_a_reconstruction_records_its_conditional_branch(model):
    """At every step the maps, queries and latents are those of the guided pass's last branch."""
    inverted = invert(model, Source(SOURCE, {CLEAN: Z0}))
    again = Source(TARGET, inverted.latents, store=KeptInMemory(), keep=lambda k: Keep(True, True))
    reconstruct(model, again, Guidance(NEGATIVE, 3.0))
    z, text = inverted.latents[SCHEDULE.timesteps[0]], TextContext(torch.stack([NEGATIVE, TARGET]))
    for _, t, t_prev in SCHEDULE.downward():
        seen = {b: Recorder(INDEX, b, Keep(True, True)) for b in (0, 1)}
        with torch.no_grad():
            both = [model(torch.stack([z, z]), t, text, recorder) for recorder in seen.values()]
        assert torch.equal(again.inputs[t], z) and torch.equal(again.maps[t], seen[1].average())
        assert not torch.allclose(again.maps[t], seen[0].average(), atol=1e-4)
        for name, operands in seen[1].qk.items():
            assert all(torch.equal(a, b) for a, b in zip(again.store.get(t)[name], operands, strict=True))
            assert not any(torch.allclose(a, b) for a, b in zip(seen[0].qk[name], operands, strict=True)), name
        z = ddim_step(z, guided(both[1], 3.0), SCHEDULE.alpha_bar(t), SCHEDULE.alpha_bar(t_prev))


@pytest.mark.parametrize("cross", [0.0, 0.5], ids=["plain", "fused"])
@torch.no_grad()
def test_the_target_s_map_is_the_conditional_branch_s(model, source, cross):
    """At every 1/4-level site. Fused layers before the first one have changed its queries, but not to the other's."""
    sites = [s.name for s in model.unet.sites() if s.kind == "cross" and s.stride == 4]
    z, text = source.latents[801], TextContext(torch.stack([NEGATIVE, TARGET]))
    maps = []
    for branch in (0, 1):
        model.unet(z.expand(2, *z.shape), 801, text, seen := Recorder(INDEX, branch))
        maps.append(seen)
    kept = source.queries_and_keys(model, 801, Keep(False, cross > 0), TextContext(SOURCE[None])) if cross else {}
    attend = Fuser(INDEX, fusion((0, 0), cross).at(1), kept, TextContext(SOURCE[None]), record_target=True)
    model.unet(z.expand(2, *z.shape), 801, text, attend)
    assert list(attend.target_maps) == sites
    null, conditional = (seen.maps[sites[0]] for seen in maps)
    ours = attend.target_maps[sites[0]]
    assert relative(ours, conditional) < (0.25 * relative(ours, null) if cross else 1e-5)
    if not cross:
        assert relative(attend.fused_target_map(null), maps[1].average()) < 1e-5


def test_columns_weights_are_placed_once_a_step():
    step, like = fusion().at(0), torch.zeros(1)
    assert all(a is b for a, b in zip(step.weights(like), step.weights(like), strict=True))
    assert step.weights(like.double())[0].dtype == torch.float64


def test_nan_of_the_fused_attention_is_found_where_it_is(model):
    """The second pass is the fused one: plain attention of the same step has no NaN to find."""
    source = invert(model, Source(SOURCE, {CLEAN: Z0}, store=KeptInMemory(), keep=lambda k: Keep(True, True)))
    name = [s.name for s in model.unet.sites() if s.kind == "self" and s.stride == 4][0]
    bad = source.store.get(SCHEDULE.timesteps[3])
    bad[name] = tuple(torch.full_like(x, float("nan")) for x in bad[name])
    with pytest.raises(
        NotFinite, match=f"timestep {SCHEDULE.timesteps[3]}: .*first in layer {name}.to_out.0; expected"
    ):
        edit(model, source, Edit(TARGET, fusion()), Guidance(NEGATIVE, 1.0))


# ---- an interrupted edit -----------------------------------------------------------------------------------


class Killed(Exception):
    pass


class KillAfter(Progress):
    """Ends a run after so many edit steps, as a kill would."""

    def __init__(self, steps):
        self.left = steps

    def stage(self, name, steps):
        stage = super().stage(name, steps)
        if not name.startswith("editing"):
            return stage
        return dataclasses.replace(Counting(self), stage=stage)


@dataclasses.dataclass
class Counting:
    owner: KillAfter
    stage: object = None

    def __enter__(self):
        self.stage.__enter__()
        return self.step

    def __exit__(self, *error):
        return self.stage.__exit__(*error)

    def step(self):
        self.owner.left -= 1
        if self.owner.left < 0:
            raise Killed


def test_an_exact_edit_does_not_go_on_from_steps_with_rounded_operands(tmp_path):
    """The log of an edit whose operands are fp16 is not that of one that has them as they were computed."""

    def go(out, cache, dtype, progress=None):
        overlay = {
            **mini.example(),
            "clip.frames": 2,
            "clip.size": 64,
            "steps": 4,
            "cache": str(tmp_path / cache),
            "out": str(tmp_path / out),
            "store": "recompute",
            "store_dtype": dtype,
            "report": False,
            "threads": 1,
        }
        return run(build(overlay), progress)

    clean = go("clean", "one", "same").edits[0].latents
    with pytest.raises(Killed):
        go("killed", "two", "float16", KillAfter(2))
    resumed = go("resumed", "two", "same").edits[0].latents
    assert len(resumed) == len(clean) == 4
    assert all(torch.equal(a, b) for a, b in zip(resumed, clean, strict=True))
