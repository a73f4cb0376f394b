"""Algorithm 1: every way of keeping what inversion saw gives the same bits, an interrupted run the same as a whole
one.
"""

import pytest
import torch

from fz.attention import Plain
from fz.ddim import CLEAN, Schedule
from fz.denoiser import Denoiser
from fz.edit import Edit, edit, invert, masks_of, reconstruct
from fz.frames import FrameIndex
from fz.fusion import Fusion
from fz.guidance import Guidance, guided
from fz.masks import EditRegion, LatentBlend
from fz.memory.budget import wanted
from fz.memory.inversions import Inversion, digest, leading, prune
from fz.memory.kept import KeptInMemory, KeptOnDisk, StepLog
from fz.model.layers import TextContext
from fz.model.unet import UNet, UNetConfig
from fz.source import Source

WORDS, STEPS, FRAMES = 77, 5, 3
CONFIG = UNetConfig(
    block_out_channels=(16, 32, 32, 32),
    layers_per_block=1,
    heads=(2, 2, 2, 2),
    cross_attention_dim=24,
    norm_num_groups=8,
)
INDEX = FrameIndex((0, "mid"))
SCHEDULE = Schedule.from_config({}, STEPS)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet(CONFIG).eval().to(memory_format=torch.channels_last)


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


Z0, SOURCE, TARGET, NEGATIVE = (
    numbers(1, FRAMES, 4, 16, 16),
    numbers(2, WORDS, 24),
    numbers(3, WORDS, 24),
    numbers(4, WORDS, 24),
)


WORD_WEIGHTS = torch.zeros(WORDS)
WORD_WEIGHTS[[2, 5]] = 1


def fusion(**changes):
    beta = torch.zeros(STEPS + 1, WORDS)
    beta[:4] = 1
    alpha = torch.ones(WORDS)
    alpha[5] = 0
    settings = dict(
        mapper=torch.diag(alpha), alpha=alpha, equalizer=torch.ones(WORDS), cross_window=beta, self_window=(0, 3)
    )
    return Fusion(**(settings | changes))


def region(**changes):
    settings = dict(mask_words=WORD_WEIGHTS, latent_blend=LatentBlend(WORD_WEIGHTS, WORD_WEIGHTS))
    return EditRegion(**(settings | changes))


def model_of(unet):
    return Denoiser(unet, SCHEDULE, INDEX)


def inverted(unet, store=None, numbers=None, done=None):
    source = done or Source(SOURCE, latents={CLEAN: Z0})
    if store:
        source.store, source.keep = store, (numbers or fusion()).keeps
    return invert(model_of(unet), source)


def edited(unet, source, numbers=None, guidance=7.5, where=None, **options):
    """The latents after each step of an edit by a fusion, or of plain sampling."""
    task = Edit(TARGET, numbers, where or region(), options.pop("done", ()))
    latents = list(task.done)
    z = edit(model_of(unet), source, task, Guidance(NEGATIVE, guidance, **options), lambda k, z: latents.append(z))
    assert torch.equal(z, latents[-1])
    return latents


def half_inverted(folder, whole, schedule, done):
    """A source as a run that goes on finds it: so many steps of a whole inversion were kept in the folder."""
    with Inversion.open(str(folder), "key", pytest.fail) as inversion:
        for i in range(done + 1):
            inversion.save(i, whole, schedule)
    with Inversion.open(str(folder), "key", pytest.fail) as inversion:
        source = Source(SOURCE, latents={CLEAN: inversion.z0()})
        assert inversion.restore(source, schedule) == done
    return source


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("least_stride", [2, 1])
@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_every_store_gives_the_same_bits(unet, tmp_path, guidance, least_stride):
    numbers = fusion(least_stride=least_stride)
    recomputed = edited(unet, inverted(unet), numbers, guidance)
    kept = inverted(unet, KeptInMemory(), numbers)
    assert equal(edited(unet, kept, numbers, guidance), recomputed)
    sites = {s.name for s in unet.sites() if s.fusible and s.stride >= least_stride}
    assert all(set(qk) == sites for qk in list(kept.store.steps.values())[-3:])
    disk = KeptOnDisk(tmp_path / "operands", SCHEDULE.timesteps, CPU, say=pytest.fail)
    assert equal(edited(unet, inverted(unet, disk, numbers), numbers, guidance), recomputed)
    assert list((tmp_path / "operands").iterdir())
    disk.close()


def test_operands_that_another_edit_lacks_are_computed(unet):
    """A second edit whose windows are wider than what was kept."""
    narrow, wide = fusion(self_window=(0, 1), cross_window=torch.zeros(STEPS + 1, WORDS)), fusion(self_window=(0, 5))
    source = inverted(unet, KeptInMemory(), numbers=narrow)
    assert set(source.store.steps) == {SCHEDULE.timesteps[0]}
    assert equal(edited(unet, source, wide), edited(unet, inverted(unet), wide))


def test_the_full_size_level_too(unet):
    """What was kept for edits without it lacks it: computed again. Everything fused, the mask everywhere: plain."""
    full = fusion(least_stride=1)
    assert wanted([fusion(), full])(0).least_stride == wanted([full])(0).least_stride == 1
    assert wanted([fusion()])(0).least_stride == 2
    ours = edited(unet, inverted(unet, KeptInMemory(), fusion()), full)
    assert equal(ours, edited(unet, inverted(unet), full))
    half = edited(unet, inverted(unet), fusion())
    assert not torch.equal(ours[0], half[0])
    source = inverted(unet)
    masks = masks_of(model_of(unet), source, Edit(TARGET, full, region()), 0)
    assert set(masks) == {1, 2, 4, 8} and masks[1].shape[-2:] == Z0.shape[-2:]
    assert set(masks_of(model_of(unet), source, Edit(TARGET, fusion(), region()), 0)) == {2, 4, 8}


def test_half_precision_operands_are_close(unet):
    source = Source(SOURCE, latents={CLEAN: Z0}, store=KeptInMemory(), keep=wanted([fusion()], "float16"))
    invert(model_of(unet), source)
    assert all(x.dtype == torch.float16 for kept in source.store.steps.values() for site in kept.values() for x in site)
    ours, exact = edited(unet, source, fusion())[-1], edited(unet, inverted(unet), fusion())[-1]
    assert 0 < (ours - exact).norm() / exact.norm() < 5e-3


def test_an_edit_goes_on_from_its_last_step(unet):
    source = inverted(unet)
    whole = edited(unet, source, fusion())
    calls = count_calls(unet)
    assert equal(edited(unet, source, fusion(), done=whole[:3]), whole)
    assert calls() == 2 + 1, "the fifth step's cross-attention is not fused: it needs no pass over the source"
    assert equal(edited(unet, source, fusion(), done=whole), whole)


def test_an_inversion_goes_on_from_its_last_step(unet, tmp_path):
    whole = inverted(unet)
    with Inversion.open(str(tmp_path), "key", pytest.fail) as inversion:
        for done in range(4):
            inversion.save(done, whole, SCHEDULE)
    said = []
    with Inversion.open(str(tmp_path), "key", said.append) as inversion:
        assert torch.equal(inversion.z0(), Z0)
        source = Source(SOURCE, latents={CLEAN: Z0})
        assert inversion.restore(source, SCHEDULE) == 3 and len(source.latents) == 4
        calls = count_calls(unet)
        inverted(unet, done=source)
        assert calls() == 2
        assert all(torch.equal(source.latents[t], whole.latents[t]) for t in whole.latents)
        assert all(torch.equal(source.maps[t], whole.maps[t]) for t in whole.maps)
        assert all(torch.equal(source.inputs[t], whole.inputs[t]) for t in whole.inputs)
    assert not said


def count_calls(unet):
    calls = []
    handle = unet.conv_in.register_forward_hook(lambda *_: calls.append(1))

    def count():
        handle.remove()
        return len(calls)

    return count


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_step_is_named_and_done_again(unet, tmp_path, damage):
    whole = inverted(unet)
    said = []
    inversion = Inversion(tmp_path, "key", said.append)
    for done in range(STEPS + 1):
        inversion.save(done, whole, SCHEDULE)
    path = inversion.log.path(3)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes({"cut": content[: len(content) // 2], "flip": content, "empty": b""}[damage])
    source = Source(SOURCE, latents={CLEAN: Z0})
    assert inversion.restore(source, SCHEDULE) == 2
    assert len(said) == 1 and path.name in said[0] and "damaged" in said[0]
    inverted(unet, done=source)
    assert torch.equal(source.latents[SCHEDULE.timesteps[0]], whole.latents[SCHEDULE.timesteps[0]])


def test_a_damaged_operand_file_is_computed_again(unet, tmp_path):
    said = []
    disk = KeptOnDisk(tmp_path, SCHEDULE.timesteps, CPU, said.append)
    source = inverted(unet, disk)
    disk.flush()
    disk.path(SCHEDULE.timesteps[1]).write_bytes(b"nonsense")
    assert equal(edited(unet, source, fusion()), edited(unet, inverted(unet), fusion()))
    assert len(said) == 1


def test_a_full_disk_is_said_once_and_ends_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    said = []
    log = StepLog(tmp_path / "file" / "steps", said.append)
    log.put(1, {"z": Z0})
    log.put(2, {"z": Z0})
    assert len(said) == 1 and "cannot be resumed" in said[0]
    assert leading(log, 2) == []


def test_inversions_used_least_recently_go_first(tmp_path):
    import os

    names = {name: f"{number:032x}" for number, name in enumerate(("new", "old", "oldest", "kept"))}
    for age, name in enumerate(names.values()):
        inversion = Inversion(tmp_path, name, pytest.fail)
        inversion.log.put(0, {"z": torch.zeros(1000)})
        inversion.close()
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    said = []
    used = Inversion(tmp_path, names["oldest"], pytest.fail)  # in use, though the oldest
    os.utime(used.folder, (1e9 - 9, 1e9 - 9))
    prune(tmp_path, keep=[names["kept"]], limit=13000, say=said.append)
    used.close()
    assert {p.name for p in tmp_path.iterdir()} == {names["new"], names["oldest"], names["kept"]}
    assert len(said) == 1 and names["old"] in said[0]


def test_digest_tells_values_shapes_and_dtypes_apart():
    parts = [
        torch.zeros(4),
        torch.zeros(2, 2),
        torch.zeros(4).int(),
        torch.ones(4),
        fusion(),
        fusion(self_window=(0, 2)),
        region(),
        region(threshold=0.2),
        None,
        "a",
    ]
    assert len({digest(part) for part in parts}) == len(parts)
    assert digest(fusion()) == digest(fusion()) and digest(region()) == digest(region())


def test_without_fusion_editing_is_plain_sampling(unet):
    source = inverted(unet)
    z = source.latents[SCHEDULE.timesteps[0]]
    text = TextContext(torch.stack([NEGATIVE, TARGET]))
    with torch.no_grad():
        eps = guided(unet(torch.stack([z, z]), SCHEDULE.timesteps[0], text, Plain(INDEX)), 7.5)
    plain = edited(unet, source)
    a, b = SCHEDULE.alpha_bar(SCHEDULE.timesteps[0]), SCHEDULE.alpha_bar(SCHEDULE.timesteps[1])
    expected = b**0.5 * (z - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps
    assert torch.allclose(plain[0], expected, atol=1e-5)


def test_reconstruction_attention_is_another_source(unet):
    source = inverted(unet)
    other = reconstruct(model_of(unet), Source(SOURCE, source.latents), Guidance(NEGATIVE))
    t = SCHEDULE.timesteps[-1]
    assert other.latents is source.latents and not torch.equal(other.inputs[t], source.inputs[t])
    assert not torch.allclose(edited(unet, other, fusion())[-1], edited(unet, source, fusion())[-1], atol=1e-3)


def test_half_written_files_of_a_killed_run_are_removed(tmp_path):
    from fz.results.folder import ResultFolder
    from fz.settings.config import build

    settings = build(
        {"clip.path": "clip.mp4", "source": "a car", "edits.0.target": "a boat", "out": str(tmp_path / "out")}
    )
    with ResultFolder.claim(settings) as folder:
        folder.start(settings)
        folder.reserve("edit-0.mp4", "frames/edit-0/00000.png")
    (tmp_path / "out/frames/edit-0").mkdir(parents=True)
    halves = [tmp_path / "out" / name for name in (".edit-0.mp4.123.part", "frames/edit-0/.00000.png.123.part")]
    others = [tmp_path / "out" / name for name in (".thesis.tex.123.part", ".edit-0.mp4.part", "frames/.x.1.part")]
    for half in halves:
        half.mkdir(parents=True)
        (half / half.name[1:].removesuffix(".123.part")).write_bytes(b"half")
    for file in others:
        file.write_bytes(b"mine")
    with ResultFolder.claim(settings) as folder:
        folder.start(settings)
    assert not any(file.exists() for file in halves) and all(file.exists() for file in others)
