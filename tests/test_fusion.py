"""Algorithm 2: the fused functions equal fusing dense maps in float64, and the identities that must hold."""

import dataclasses

import pytest
import torch

from fz.attention import Keep, Plain, Recorder
from fz.errors import FzError
from fz.frames import FrameIndex
from fz.fusion import Fuser, Fusion
from fz.masks import LatentBlend, blend_mask
from fz.model.layers import Attention, Operands, Site, TextContext

FRAMES, SIDE, CHANNELS, HEADS, WORDS, CONTEXT = 3, 4, 16, 2, 77, 8
STEPS, STEP = 10, 4
SELF = Site("mid.attn1", "self", 2, CHANNELS)
FULL_SIZE = Site("down.attn1", "self", 1, CHANNELS)
CROSS = Site("mid.attn2", "cross", 4, CHANNELS)
INDEX = FrameIndex((-1, "first"))


def layer(site):
    torch.manual_seed(0)
    return Attention(site, HEADS, CONTEXT if site.kind == "cross" else None).double()


def tokens(branches):
    return torch.randn(
        branches, FRAMES, SIDE * SIDE, CHANNELS, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


def prompts(branches):
    return TextContext(
        torch.randn(branches, WORDS, CONTEXT, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    )


def heads(x):
    return x.unflatten(-1, (HEADS, -1))


def dense_self(layer, x, table):
    """s and V of one branch: (F, Nh, N, R·N), (F, R·N, Nh, D)."""
    q, k, v = heads(layer.to_q(x)), heads(layer.to_k(x)), heads(layer.to_v(x))
    k, v = k[table].flatten(1, 2), v[table].flatten(1, 2)
    return torch.einsum("fqhd,fkhd->fhqk", q, k).div((CHANNELS // HEADS) ** 0.5).softmax(-1), v


def dense_cross(layer, x, text):
    """c and V of one branch: (F, Nh, N, 77), (77, Nh, D)."""
    q, k, v = heads(layer.to_q(x)), heads(layer.to_k(text)), heads(layer.to_v(text))
    return torch.einsum("fqhd,khd->fhqk", q, k).div((CHANNELS // HEADS) ** 0.5).softmax(-1), v


def fusion(kind="refine", windows="mixed", equalizer=True):
    generator = torch.Generator().manual_seed(3)
    if kind == "replace":
        mapper, alpha = (
            torch.rand(WORDS, WORDS, generator=generator, dtype=torch.float64),
            torch.ones(WORDS, dtype=torch.float64),
        )
    else:
        alpha = (torch.rand(WORDS, generator=generator) > 0.4).double()
        mapper = torch.zeros(WORDS, WORDS, dtype=torch.float64)
        mapper[torch.randint(WORDS, (WORDS,), generator=generator), torch.arange(WORDS)] = alpha
    r = (
        1 + 3 * torch.rand(WORDS, generator=generator, dtype=torch.float64)
        if equalizer
        else torch.ones(WORDS, dtype=torch.float64)
    )
    beta = {
        "mixed": (torch.rand(STEPS + 1, WORDS, generator=generator) > 0.5).double(),
        "on": torch.ones(STEPS + 1, WORDS).double(),
    }
    beta["off"] = torch.zeros(STEPS + 1, WORDS).double()
    return Fusion(mapper, alpha, r, beta[windows], (0, 8))


def fuser(numbers, attention, x, text=None, masks=None, **options):
    """The Fuser of a batch whose branch 0 is the source's; it gets the others."""
    source_text = text and TextContext(text.embedding[:1])
    kept = kept_operands(attention, x, source_text, numbers.least_stride)
    return Fuser(INDEX, numbers.at(STEP), kept, source_text, masks, **options)


def call(attend, layer, x, text=None):
    return attend(layer.site, Operands(layer, x, text))


def kept_operands(layer, x, text, least_stride):
    """What a Recorder keeps of the source, run alone as inversion runs it."""
    seen = Recorder(INDEX, keep=Keep(True, True, least_stride=least_stride))
    call(seen, layer, x[:1], text)
    return seen.qk


@pytest.mark.parametrize("site", [SELF, FULL_SIZE], ids=["half", "full size"])
@pytest.mark.parametrize("mask", ["none", "random", "all"])
def test_self_blending_equals_blending_dense_maps(mask, site):
    attention, x = layer(site), tokens(3)
    m = {"none": None, "all": torch.ones(FRAMES, SIDE, SIDE).bool()}.get(mask, torch.rand(FRAMES, SIDE, SIDE) > 0.5)
    table = INDEX.table(SELF, FRAMES)
    (s_src, _), (s_uncond, v_uncond), (s_edit, v_edit) = (dense_self(attention, branch, table) for branch in x)
    weight = torch.zeros(FRAMES, 1, SIDE * SIDE, 1) if m is None else m.flatten(1)[:, None, :, None].double()
    expected = torch.einsum("fhqk,fkhd->fqhd", weight * s_edit + (1 - weight) * s_src, v_edit)

    masks = None if m is None else {site.stride: m}
    numbers = dataclasses.replace(fusion(), least_stride=site.stride)
    out = call(fuser(numbers, attention, x, masks=masks), attention, x[1:])
    assert torch.allclose(out[-1], expected, atol=1e-12)
    assert torch.allclose(out[-2], torch.einsum("fhqk,fkhd->fqhd", s_uncond, v_uncond), atol=1e-12)


def test_all_edited_is_plain_editing_and_none_is_the_source_s_attention():
    attention, x = layer(SELF), tokens(3)
    plain = call(Plain(INDEX), attention, x)
    everything = {SELF.stride: torch.ones(FRAMES, SIDE, SIDE).bool()}
    assert torch.allclose(call(fuser(fusion(), attention, x, masks=everything), attention, x), plain, atol=1e-12)
    same = x[:1].expand(3, -1, -1, -1)
    assert torch.allclose(call(fuser(fusion(), attention, same), attention, same)[-1], plain[0], atol=1e-12)


@pytest.mark.parametrize("windows", ["mixed", "on", "off"])
@pytest.mark.parametrize("kind", ["refine", "replace"])
def test_cross_fusion_equals_fusing_dense_maps(kind, windows):
    attention, x, text, numbers = layer(CROSS), tokens(3), prompts(3), fusion(kind, windows=windows)
    c_src, _ = dense_cross(attention, x[0], text.embedding[0])
    c_edit, v = dense_cross(attention, x[2], text.embedding[2])
    # prompt-to-prompt, map by map: replace or refine, re-weight, then the window
    replaced = c_src @ numbers.mapper + (0 if kind == "replace" else (1 - numbers.alpha) * c_edit)
    beta = numbers.cross_window[STEP]
    fused = beta * numbers.equalizer * replaced + (1 - beta) * c_edit
    expected = torch.einsum("fhqk,khd->fqhd", fused, v)

    attend = fuser(numbers, attention, x, text, record_target=True)
    out = call(attend, attention, x[1:], TextContext(text.embedding[1:]))
    assert torch.allclose(out[-1], expected, atol=1e-12)
    c_uncond, v_uncond = dense_cross(attention, x[1], text.embedding[1])
    assert torch.allclose(out[-2], torch.einsum("fhqk,khd->fqhd", c_uncond, v_uncond), atol=1e-12)
    # latent blending sees the fused map
    assert torch.allclose(attend.fused_target_map(c_src.mean(1).float()).double(), fused.mean(1), atol=1e-5)


def test_the_full_size_level_is_not_fused_unless_asked():
    attention, x = layer(FULL_SIZE), tokens(3)
    assert torch.allclose(
        call(fuser(fusion(), attention, x), attention, x), call(Plain(INDEX), attention, x), atol=1e-12
    )


def test_recorder_averages_maps_and_refuses_a_site_twice():
    attention, x, text = layer(CROSS), tokens(1), prompts(1)
    seen = Recorder(INDEX)
    out = call(seen, attention, x, text)
    c, v = dense_cross(attention, x[0], text.embedding[0])
    assert torch.allclose(seen.average().double(), c.mean(1), atol=1e-6)
    assert torch.allclose(out[0], torch.einsum("fhqk,khd->fqhd", c, v), atol=1e-12)
    with pytest.raises(RuntimeError, match="twice"):
        call(seen, attention, x, text)


@pytest.mark.parametrize(
    "entries, expected",
    [
        ((0, "mid"), [[0, 2], [1, 2], [2, 2], [3, 2], [4, 2]]),
        ((-1, "first"), [[0, 0], [0, 0], [1, 0], [2, 0], [3, 0]]),
        ((1, "last"), [[1, 4], [2, 4], [3, 4], [4, 4], [4, 4]]),
        ((), [[0], [1], [2], [3], [4]]),
    ],
)
def test_frame_index(entries, expected):
    assert FrameIndex(entries).table(SELF, 5).tolist() == expected
    assert FrameIndex(list(entries)).table(SELF, 5).tolist() == expected


def test_narrow_layers_attend_to_their_own_frame():
    assert FrameIndex(("mid",), least_channels=CHANNELS + 1).table(SELF, 3).tolist() == [[0], [1], [2]]
    assert FrameIndex(("mid",), least_channels=CHANNELS).table(SELF, 3).tolist() == [[1], [1], [1]]


@pytest.mark.parametrize("entry", ["midle", 1.5, True, None])
def test_frame_index_refuses(entry):
    with pytest.raises(FzError, match="frame index"):
        FrameIndex((entry,))


def test_blend_mask_by_hand():
    cross_map = torch.zeros(2, 16, WORDS)
    cross_map[0, 5, 3] = 1.0  # row 1, column 1 of 4 x 4
    cross_map[0, 15, 3] = 0.2
    cross_map[1, 0, 4] = 1e-3  # another word, and another frame with its own maximum
    words = torch.zeros(WORDS)
    words[[3, 4]] = 1
    mask = blend_mask(cross_map, words, 0.3, (4, 4), (8, 8))
    expected = torch.zeros(2, 4, 4).bool()
    expected[0, :3, :3] = True
    expected[1, :2, :2] = True
    assert torch.equal(mask, expected.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert not blend_mask(cross_map, words, 1.0, (4, 4), (8, 8)).any(), "tau = 1 edits no pixel"
    assert not blend_mask(cross_map, torch.zeros(WORDS), 0.3, (4, 4), (8, 8)).any(), "no word, no pixel"


@pytest.mark.parametrize("steps, first, last", [(50, 11, 39), (10, 3, 7), (4, 1, 3), (6, 2, 4), (1, None, None)])
def test_latents_are_blended_between_a_fifth_and_four_fifths(steps, first, last):
    blend = LatentBlend(torch.ones(WORDS), torch.ones(WORDS))
    active = [k for k in range(1, steps + 1) if blend.active(k, steps)]
    assert active == (list(range(first, last + 1)) if first else [])
