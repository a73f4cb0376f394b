"""`--graph` without a GPU: a tape stands for the CUDA graph.

It computes again what a pass computed, in the same memory, and nothing of the pass's Python runs.
"""

import pytest
import torch
from random_weights import randomize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton")

from attention_cases import self_case  # noqa: E402
from test_gpu_path import CONFIG, INDEX, NEGATIVE, SCHEDULE, SOURCE, TARGET, WORDS, Z0  # noqa: E402
from test_host import is_view  # noqa: E402

from bench import aot_binaries as aot  # noqa: E402
from fz import graphs, kernels  # noqa: E402
from fz.attention import Keep, Plain  # noqa: E402
from fz.chunks import Chunks  # noqa: E402
from fz.ddim import CLEAN  # noqa: E402
from fz.denoiser import Denoiser  # noqa: E402
from fz.edit import Edit, edit, invert  # noqa: E402
from fz.fusion import Fusion  # noqa: E402
from fz.graphs import OWN, Graphs, graphed  # noqa: E402
from fz.guidance import Guidance  # noqa: E402
from fz.masks import EditRegion, LatentBlend  # noqa: E402
from fz.memory.kept import KeptInMemory  # noqa: E402
from fz.model.finite import NotFinite  # noqa: E402
from fz.model.unet import UNet  # noqa: E402
from fz.source import Source, Store  # noqa: E402

CPU = torch.device("cpu")


class Tape(TorchDispatchMode):
    """Records operators and launches of interpreted kernels. As on a GPU, no value can be asked for meanwhile."""

    def __init__(self):
        super().__init__()
        self.done, self.paused = [], False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self.paused and func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise RuntimeError("operation not permitted when stream is capturing")
        out = func(*args, **kwargs)
        if not self.paused and not is_view(func):
            self.done.append((func, args, kwargs, out))
        return out

    def launch(self, kernel, grid):
        def run(*args, **options):
            self.paused = True
            kernel[grid](*args, **options)
            self.paused = False
            self.done.append((kernel[grid], args, options, None))

        return run

    def replay(self):
        for func, args, kwargs, out in self.done:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Launched:
    def __init__(self, kernel, tape):
        self.kernel, self.tape = kernel, tape

    def __getitem__(self, grid):
        return self.tape.launch(self.kernel, grid)


@pytest.fixture
def captures(monkeypatch):
    """Passes are captured by tapes; they are these."""
    tapes = []

    def capture(run):
        tape = Tape()
        with monkeypatch.context() as patch:
            for module, name in aot.KERNELS:
                patch.setattr(module, name, Launched(getattr(module, name), tape))
            with tape:
                out = run()
        # a graph's results are there when it is replayed, not before
        for leaf in tree_leaves([out, [x for _, _, _, x in tape.done]]):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                leaf.fill_(float("nan"))
        tapes.append(tape)
        return tape.replay, out

    monkeypatch.setattr(graphs, "capture", capture)
    return tapes


def run(unet, stored=True, region=None, negative=NEGATIVE):
    """Latents of an inversion and an edit whose first two steps fuse, the third none."""
    model = Denoiser(unet, SCHEDULE, INDEX)
    store = KeptInMemory() if stored else Store()
    source = Source(SOURCE, latents={CLEAN: Z0}, store=store, keep=lambda k: Keep(stored, stored))
    invert(model, source)
    generator = torch.Generator().manual_seed(1)
    # masks that differ from step to step
    source.maps = {t: torch.rand(m.shape, generator=generator) for t, m in source.maps.items()}
    words, alpha = torch.zeros(WORDS), torch.ones(WORDS)
    words[[2, 5]] = 1
    alpha[5] = 0
    fusion = Fusion(torch.diag(alpha), alpha, torch.ones(WORDS), torch.ones(SCHEDULE.steps + 1, WORDS), (0, 3))
    region = EditRegion(words, latent_blend=LatentBlend(words, words)) if region is None else region
    latents = []
    edit(model, source, Edit(TARGET, fusion, region), Guidance(negative), lambda k, z: latents.append(z))
    return [*source.latents.values(), *latents]


@pytest.fixture(scope="module")
def unet():
    return randomize(UNet(CONFIG)).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("stored", (True, False), ids=("memory", "recompute"))
def test_replayed_passes_are_the_passes(monkeypatch, captures, unet, stored):
    monkeypatch.setenv("FZ_KERNELS", "reference")
    expected = run(unet, stored)
    got = run(Graphs(unet, pytest.fail), stored)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    # inversion's pass, the edit's with a map that blends latents or without, and the source's again
    assert len(captures) == (2 if stored else 3)


@pytest.mark.slow
def test_replayed_kernels_are_the_kernels(monkeypatch, captures, unet):
    monkeypatch.setenv("FZ_KERNELS", "triton")
    expected, got = run(unet), run(Graphs(unet, pytest.fail))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)) and captures


def test_rows_of_a_mask_are_packed_within_the_graph(monkeypatch, captures):
    """They are kept as long as the mask is not written to, and a replay comes after the writing."""
    monkeypatch.setenv("FZ_KERNELS", "triton")
    (q, k, v, frames), options = self_case(18, 40)
    masks = [options["mask"], torch.rand(options["mask"].shape) > 0.5]
    place = masks[0].clone()
    replay, out = graphs.capture(lambda: kernels.self_attention(q, k, v, frames, **{**options, "mask": place}))
    for mask in masks:
        place.copy_(mask)
        replay()
        assert torch.equal(out, kernels.self_attention(q, k, v, frames, **{**options, "mask": mask.clone()}))


def test_what_cannot_be_captured_runs_as_it_is_and_is_said(monkeypatch, captures, unet):
    """The torch version asks the GPU which rows are edited."""
    monkeypatch.setenv("FZ_KERNELS", "torch")
    notes = []
    got, expected = run(Graphs(unet, notes.append)), run(unet)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert notes == ["graph: left out, operation not permitted when stream is capturing"]


def test_other_passes_are_other_graphs_and_the_oldest_goes(monkeypatch, captures, unet):
    monkeypatch.setenv("FZ_KERNELS", "reference")
    monkeypatch.setattr(graphs, "MOST", 2)
    twice = Graphs(unet, pytest.fail)
    with torch.no_grad():
        for prompt in (SOURCE, TARGET, NEGATIVE):
            text = graphs.TextContext(prompt[None])
            for scale, t in ((1, 5), (2, 7), (3, 9)):
                assert torch.equal(twice(Z0[None] * scale, t, text), unet(Z0[None] * scale, t, text, Plain(OWN)))
    assert len(captures) == 3 and len(twice.passes) == 2
    # of other sizes, and what is not known: as it is
    with torch.no_grad():
        twice(Z0[None, :2], 5, text)
        twice(Z0[None], 5, text, alter=lambda block, h: h)
        twice(Z0[None], 5, text, alter=lambda block, h: h)
    assert len(captures) == 3


def test_a_layer_that_overflows_is_named(monkeypatch, captures):
    """Though a replay calls no layer."""
    monkeypatch.setenv("FZ_KERNELS", "reference")
    unet = randomize(UNet(CONFIG))
    model = Denoiser(Graphs(unet, pytest.fail), SCHEDULE, INDEX)
    text = graphs.TextContext(SOURCE[None])
    with torch.no_grad():
        model(Z0[None], 5, text)
        model(Z0[None], 5, text)
        unet.mid_block.resnets[0].conv1.bias.fill_(float("inf"))
        with pytest.raises(NotFinite, match="first in layer mid_block.resnets.0.conv1"):
            model(Z0[None], 5, text)
    assert len(captures) == 1


@pytest.mark.parametrize(
    ("wanted", "device", "kernel", "but", "said"),
    [
        ("auto", "cpu", "", "", None),
        ("on", "cpu", "", "", "on cpu there are no CUDA graphs"),
        ("on", "mps", "", "", "on mps there are no CUDA graphs"),
        ("on", "cuda", "torch", "", "asks the GPU"),
        ("on", "cuda", "triton", "offload", "offload"),
        ("on", "cuda", "triton", "chunk", "chunk"),
        ("on", "cuda", "triton", "reuse", "--reuse"),
        ("auto", "cuda", "triton", "reuse", None),
        ("off", "cuda", "triton", "", None),
        ("auto", "cuda", "triton", "", "replayed"),
        ("on", "cuda", "triton", "", "replayed"),
    ],
)
def test_where_there_are_graphs(monkeypatch, unet, wanted, device, kernel, but, said):
    monkeypatch.setenv("FZ_KERNELS", kernel)
    given = Chunks(unet, 2) if but == "chunk" else unet
    got, lines = graphed(given, wanted, torch.device(device), but == "offload", but == "reuse", pytest.fail)
    if said is None:
        assert got is given and lines == []
    elif said == "replayed":
        assert isinstance(got, Graphs) and got.eager is unet and said in lines[0]
    else:
        assert got is given and lines[0].startswith("graph: left out, ") and said in lines[0]
