"""Where the source's queries and keys stay: what an edit gives never depends on it, and nothing is kept or computed
twice.
"""

import contextlib
import dataclasses
import gc

import pytest
import torch

import fz
from fz import inverted, mini, source
from fz.attention import Keep
from fz.chunks import Chunks
from fz.ddim import CLEAN, Schedule
from fz.denoiser import Denoiser
from fz.edit import Edit, edit, invert
from fz.errors import FzError
from fz.frames import FrameIndex
from fz.fusion import Fusion
from fz.guidance import Guidance
from fz.masks import EditRegion
from fz.memory import budget, kept
from fz.memory.budget import keep_for
from fz.memory.kept import KeptInMemory, KeptOnDisk, write_tensors
from fz.memory.offload import Copier, KeptInRam
from fz.model.unet import UNet, UNetConfig
from fz.pipeline import run
from fz.progress import Progress
from fz.settings.config import build
from fz.source import Source, Store

WORDS, STEPS, FRAMES = 77, 4, 3
CPU = torch.device("cpu")
SCHEDULE = Schedule.from_config({}, STEPS)
CONFIG = UNetConfig((16, 32, 32, 32), layers_per_block=1, heads=(2,) * 4, cross_attention_dim=24, norm_num_groups=8)
FUSION = Fusion(
    mapper=torch.eye(WORDS), alpha=torch.ones(WORDS), equalizer=torch.ones(WORDS),
    cross_window=torch.ones(STEPS + 1, WORDS), self_window=(0, STEPS),
)  # fmt: skip


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unet_of(clip_norm=True):
    torch.manual_seed(0)
    unet = UNet(dataclasses.replace(CONFIG), clip_norm=clip_norm).eval()
    return unet.to(memory_format=torch.channels_last)


STORES = {
    "recompute": lambda folder: Store(),
    "memory": lambda folder: KeptInMemory(),
    "ram": lambda folder: KeptInRam(SCHEDULE.timesteps, Copier(CPU)),
    "disk": lambda folder: KeptOnDisk(folder, SCHEDULE.timesteps, CPU, pytest.fail),
}


@pytest.fixture
def passes(monkeypatch):
    """The timesteps at which the source was passed again."""
    seen = []
    original = source.qk_of

    def counted(unet, recorder, z, t, *rest, **options):
        seen.append(t)
        return original(unet, recorder, z, t, *rest, **options)

    monkeypatch.setattr(source, "qk_of", counted)
    return seen


def edited(model, of):
    latents = []
    edit(
        model, of, Edit(numbers(3, WORDS, 24), FUSION, EditRegion()), Guidance(numbers(4, WORDS, 24), 7.5),
        lambda k, z: latents.append(z),
    )  # fmt: skip
    return torch.stack(latents)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("chunk", [None, 2], ids=["whole", "chunks"])
def test_a_restored_inversion_gives_the_same_bits_and_is_passed_once(tmp_path, passes, chunk, dtype):
    """Kept by inversion or computed again, rounded or not; chunks that run alone, too."""
    unet = unet_of(clip_norm=chunk is None)
    model = Denoiser(Chunks(unet, chunk) if chunk else unet, SCHEDULE, FrameIndex((0, "mid")))
    whole = invert(model, Source(numbers(2, WORDS, 24), {CLEAN: numbers(1, FRAMES, 4, 16, 16)}))
    exact, found = edited(model, whole), {}
    for name, make in STORES.items():
        keep = keep_for(name, lambda k: Keep(True, True, dtype))
        fresh = Source(whole.embedding, {CLEAN: whole.latents[CLEAN]}, store=make(tmp_path / "fresh"), keep=keep)
        passes.clear()
        found[name] = edited(model, invert(model, fresh))
        assert passes == (list(SCHEDULE.timesteps) if name == "recompute" else [])
        restored = Source(whole.embedding, {CLEAN: whole.latents[CLEAN]}, store=make(tmp_path / "again"), keep=keep)
        for t_prev, t in SCHEDULE.upward():
            restored.restore(t_prev, t, whole.left(t))
        passes.clear()
        found[f"{name}, restored"] = edited(model, restored)
        assert passes == list(SCHEDULE.timesteps)
        passes.clear()
        found[f"{name}, a second edit"] = edited(model, restored)
        assert passes == (list(SCHEDULE.timesteps) if name == "recompute" else [])
    assert [name for name, z in found.items() if not torch.equal(z, found["recompute"])] == []
    assert torch.equal(exact, found["recompute"]) == (dtype is None)


def settings(tmp_path, **changes):
    overlay = {
        **mini.example(), "clip.frames": 2, "clip.size": 64, "steps": 4, "cache": str(tmp_path / "cache"),
        "save_latents": True, "report": False, "threads": 1, "store": "memory",
    }  # fmt: skip
    overlay["edits.1.target"] = overlay["edits.0.target"].replace("red", "blue")
    return build(overlay | changes)


def latents(result):
    return [torch.stack(edit.latents) for edit in result.edits]


@pytest.mark.parametrize("attention", ["inversion", "reconstruction"])
def test_a_run_with_rounded_queries_and_keys_gives_the_same_again(tmp_path, passes, attention):
    """From a cached inversion, and where none are kept, which free memory decides; a reconstruction is guided, too."""
    rounded = {"store_dtype": "bfloat16", "attention": attention}
    first = latents(run(settings(tmp_path, out=str(tmp_path / "a"), **rounded)))
    assert passes == []
    second = latents(run(settings(tmp_path, out=str(tmp_path / "b"), **rounded)))
    # of two edits, the first one's steps that fuse
    assert len(passes) == len(set(passes)) == (3 if attention == "inversion" else 0)
    third = latents(run(settings(tmp_path, out=str(tmp_path / "c"), **rounded | {"store": "recompute"})))
    exact = latents(run(settings(tmp_path, out=str(tmp_path / "d"), **rounded | {"store_dtype": "same"})))
    for a, b, c, d in zip(first, second, third, exact, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c) and not torch.equal(a, d)


def test_nothing_is_left_on_disk_of_what_was_computed_again(tmp_path, passes):
    for name in ("a", "b"):
        run(settings(tmp_path, out=str(tmp_path / name), store="disk"))
    assert len(passes) == len(set(passes)) == 3
    assert not list((tmp_path / "cache").rglob("operands"))


@pytest.fixture
def disks(monkeypatch):
    """The stores on disk that there were; alive, so that none ends because it is forgotten."""
    made = []
    monkeypatch.setattr(budget, "KeptOnDisk", lambda *given: made.append(KeptOnDisk(*given)) or made[-1])
    return made


def threads_of(disks):
    return [t for disk in disks for pool in (disk.writer, disk.reader) for t in pool._threads if t.is_alive()]


@pytest.mark.parametrize("stop", [None, FzError, KeyboardInterrupt], ids=["done", "an error", "an interrupt"])
@pytest.mark.parametrize("attention", ["inversion", "reconstruction"])
def test_what_writes_and_reads_files_ends_with_its_run(attention, stop, tmp_path, disks, monkeypatch):
    before = len(disks)

    def stopped(*given):
        raise stop("stopped")

    if stop:
        monkeypatch.setattr(inverted, "decode", stopped)
    chosen = settings(tmp_path, out=str(tmp_path / "a"), store="disk", attention=attention)
    with pytest.raises(stop) if stop else contextlib.nullcontext():
        run(chosen)
    assert len(disks) > before and threads_of(disks) == []


@pytest.mark.parametrize("fails", [1, 4], ids=["the first write", "the last write"])
def test_a_write_that_fails_is_said(fails, tmp_path, disks, monkeypatch):
    """Also the last one, which no edit waits for, and where the run itself ends with an error."""
    writes, said = [], []

    def write(path, tensors):
        if "operands" in str(path):
            writes.append(path)
            if len(writes) == fails:
                raise FzError(f"cache: {path} cannot be written (full).")
        write_tensors(path, tensors)

    monkeypatch.setattr(kept, "write_tensors", write)
    progress = Progress()
    progress.say = said.append
    monkeypatch.setattr(inverted.InvertedClip, "attending", lambda *given: (_ for _ in ()).throw(FzError("stopped")))
    with pytest.raises(FzError, match="stopped"):
        run(settings(tmp_path, out=str(tmp_path / "a"), store="disk", **{"edits.0.self_replace": 1.0}), progress)
    assert len(writes) == 4 and sum("cannot be written (full)" in line for line in said) == 1


def kept_now():
    """Bytes of queries and keys in memory."""
    gc.collect()
    stores = [x for x in gc.get_objects() if type(x) is KeptInMemory]
    return sum(x.nbytes for store in stores for qk in store.steps.values() for of in qk.values() for x in of)


def test_a_reconstruction_is_kept_in_inversions_place(tmp_path, monkeypatch):
    most = []
    put = KeptInMemory.put
    monkeypatch.setattr(KeptInMemory, "put", lambda self, t, qk: (put(self, t, qk), most.append(kept_now())))
    run(settings(tmp_path, out=str(tmp_path / "a"), cache="none"))
    alone = max(most)
    most.clear()
    run(settings(tmp_path, out=str(tmp_path / "b"), cache="none", attention="reconstruction"))
    assert len(most) == 3 and max(most) == alone


def test_edits_of_a_program_keep_one_pass_at_a_time(monkeypatch, passes):
    """Inversion's, then two reconstructions', then inversion's again."""
    most = []
    put = KeptInMemory.put
    monkeypatch.setattr(KeptInMemory, "put", lambda self, t, qk: (put(self, t, qk), most.append(kept_now())))
    clip = fz.load(device="cpu", threads=1).invert(
        torch.rand(2, 3, 64, 64) * 2 - 1, "a red car on a road", steps=4, store="memory"
    )
    alone = max(most)
    target = "a blue car on a road"
    first = clip.edit(target).latents
    again = clip.edit(target, attention="reconstruction", guidance=5.0).latents
    clip.edit(target, attention="reconstruction", guidance=3.0)
    assert passes == []
    assert all(map(torch.equal, clip.edit(target).latents, first)) and max(most) == alone
    other = clip.edit(target, attention="reconstruction", guidance=5.0).latents
    assert all(map(torch.equal, other, again)) and max(most) == alone
    assert len(passes) == 2 * 3
