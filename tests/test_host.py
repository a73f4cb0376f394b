"""What the host does while a GPU works, counted on tensors without data: the meta device stands for the GPU.

A value that Python reads from there is a synchronisation, a tensor that goes there a copy; kernels are launched as on
sm_90, but for the launch. Tables are made once per clip, rows once per mask, weights once per edit.
"""

import collections
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from bench import aot_binaries as aot  # noqa: E402
from bench.steps import SMALL, Steps  # noqa: E402
from fz.attention import Keep  # noqa: E402
from fz.ddim import CLEAN  # noqa: E402
from fz.edit import Edit, Fuse, edit, invert  # noqa: E402
from fz.fusion import Fusion  # noqa: E402
from fz.guidance import Guide  # noqa: E402
from fz.masks import EditRegion, LatentBlend  # noqa: E402
from fz.model import finite  # noqa: E402
from fz.model.finite import NotFinite, Watch  # noqa: E402
from fz.model.unet import UNet  # noqa: E402
from fz.source import Source  # noqa: E402

META = torch.device("meta")
WORDS, FRAMES = 77, 8
# not in a schema: it is a view where that may be one
MORE_VIEWS = {"aten::_unsafe_view", "aten::_reshape_alias"}


def is_view(func):
    schema = func._schema
    alias = [r.alias_info for r in schema.returns]
    return schema.name in MORE_VIEWS or any(a is not None and not a.is_write for a in alias)


class Host(TorchDispatchMode):
    """Counts, of what reaches the dispatcher, operators that are no views, synchronisations and copies to the GPU.

    Within `Watch.settle`, between two steps, a GPU is asked too, but by an event: that is counted apart.
    """

    def __init__(self):
        super().__init__()
        self.calls, self.syncs, self.copies = collections.Counter(), [], []
        self.between = 0
        self.settling = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not is_view(func):
            self.calls[str(func)] += 1
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
        there = any(x.is_meta for x in given)
        if there and func is torch.ops.aten._local_scalar_dense.default:
            if self.settling:
                self.between += 1
            else:
                self.syncs.append(str(func))
            return True
        if there and func in (torch.ops.aten.nonzero.default, torch.ops.aten.masked_select.default):
            self.syncs.append(str(func))
        out = func(*args, **kwargs)
        if isinstance(out, torch.Tensor) and out.is_meta and any(not x.is_meta and x.dim() for x in given):
            self.copies.append(f"{func} {tuple(out.shape)}")
        # as cuDNN gives it; the meta device says otherwise
        if func is torch.ops.aten.convolution.default and args[0].is_contiguous(memory_format=torch.channels_last):
            out = out.new_empty(out.shape).contiguous(memory_format=torch.channels_last)
        return out


class Made(TorchFunctionMode):
    """Tensors of Python's numbers that are made for the GPU: each is a copy, which the dispatcher does not see."""

    def __init__(self, copies):
        super().__init__()
        self.copies = copies

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and out.is_meta and not isinstance(args[0], torch.Tensor):
            self.copies.append(func.__name__)
        return out


@pytest.fixture
def steps(monkeypatch):
    monkeypatch.setenv("FZ_KERNELS", "triton")
    with META:
        unet = UNet(SMALL).eval()
    steps = Steps(unet.half().to(memory_format=torch.channels_last), FRAMES, 128)
    for name in ("source_prompt", "target", "negative", "z", "maps"):
        setattr(steps, name, getattr(steps, name).to(META))
    steps.guidance = type(steps.guidance)(steps.negative)
    return steps


@contextmanager
def watched():
    """The host's doings within the block, and the kernels that it launches."""
    host, settle = Host(), Watch.settle

    def settling(self):
        host.settling = True
        settle(self)
        host.settling = False

    with (
        mock.patch.object(Watch, "settle", settling),
        torch.no_grad(),
        aot.recorded(90) as launched,
        Made(host.copies),
        host,
    ):
        yield host, launched


def counted(run):
    with watched() as seen:
        run()
    return seen


REGIONS = {
    "words": EditRegion(torch.ones(WORDS), latent_blend=LatentBlend(torch.ones(WORDS), torch.ones(WORDS))),
    "a user's mask": EditRegion(user_mask=torch.rand(FRAMES, 128, 128)),
    "an object hidden": EditRegion(torch.ones(WORDS), hides_object=True),
    "a background": EditRegion(torch.ones(WORDS), background=torch.ones(WORDS)),
    "no mask": EditRegion(),
}


@pytest.mark.parametrize(
    ("region", "stored"), [(name, name != "words") for name in REGIONS] + [("words", True)], ids=str
)
def test_an_edit_step_waits_for_nothing_and_copies_nothing(steps, region, stored):
    """The second of two steps: what an edit needs once is there by then."""
    alpha = torch.ones(WORDS)
    alpha[3:6] = 0
    fusion = Fusion(torch.diag(alpha), alpha, torch.ones(WORDS), torch.ones(3, WORDS), (0, 2))
    steps.one = type(steps.one)(steps.schedule.timesteps[:2], steps.schedule.alpha_bars, steps.schedule.clean_alpha_bar)
    task = Edit(steps.target, fusion, REGIONS[region])
    source = None

    def inversion():
        nonlocal source
        source = steps.source(Keep(stored, stored))
        source.maps = {t: steps.maps for t in steps.one.timesteps}

    counted(inversion)
    seen = []
    with watched() as (host, _):
        edit(steps.model, source, task, steps.guidance, lambda k, z: seen.append((len(host.copies), host.between)))
    (copies, between), (more_copies, more) = seen
    assert host.syncs == []
    # the words of masks, the columns' weights
    assert 0 < copies <= 7 and more_copies == copies
    assert (between, more) == (1, 2)


def test_an_inversion_step_waits_for_nothing_and_copies_nothing(steps):
    def inversion():
        invert(steps.model, Source(steps.source_prompt, latents={CLEAN: steps.z}))

    # tables of frames are made once for a clip, by whichever test comes first
    counted(inversion)
    host, _ = counted(inversion)
    assert host.syncs == [] and host.copies == [] and host.between == 1


def test_what_is_counted_can_be_found():
    x = torch.empty(3, device=META)
    host, _ = counted(lambda: (bool(x.any()), x.add(torch.ones(3).to(META)), torch.tensor([1.0], device=META)))
    assert len(host.syncs) == 1 and len(host.copies) == 2


def forward(steps, source):
    """An edit's forward pass alone, with what the steps before it have left."""
    model = steps.model
    step = next(iter(model.schedule.downward()))
    fuse, guide = Fuse(model, source, steps.task), Guide(steps.target, steps.guidance, model.schedule)
    return lambda: guide(model, steps.z, step.t, fuse(step))


def test_calls_of_an_edits_forward_pass(steps):
    """At most 700 operators that are no views (1059 before), and no small kernels for indices."""
    found = []
    counted(lambda: found.append(steps.source(Keep(True, True))))
    run = forward(steps, *found)
    counted(run)
    host, launched = counted(run)
    assert sum(host.calls.values()) <= 700
    # rows of three strides, once for each
    assert host.calls["aten.sort.stable"] == 3 and "aten.tril.default" not in host.calls
    assert len(launched) == 16 + 16 + 3 * 61


def test_noise_that_is_not_finite_is_refused_when_the_step_is_over(monkeypatch):
    answers = iter([False, False, True])
    monkeypatch.setattr(finite, "on_host", lambda flag: lambda: next(answers))
    watch, unet, eps = Watch(), torch.nn.Linear(1, 1), torch.empty(1, device=META)
    models = {"": unet}

    def again():
        unet(torch.tensor([float("inf")]))

    watch.look(eps, models, 7, again)
    with pytest.raises(NotFinite, match="timestep 7"):
        watch.settle()
    # said once; a loop that never asks hears of it from the next step
    watch.settle()
    watch.look(eps, models, 7, again)
    with pytest.raises(NotFinite, match="timestep 7"):
        watch.look(eps, models, 3, again)
    watch.look(eps, models, 3, again)
    watch.settle()


def test_noise_on_a_cpu_is_refused_at_once():
    with pytest.raises(NotFinite, match="timestep 5"):
        Watch().look(torch.tensor(float("inf")), {"": torch.nn.Linear(1, 1)}, 5, lambda: None)
