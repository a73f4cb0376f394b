"""How long will a run take, and how long with `--fast`? Told before its first step; nothing that is computed depends on
it.

A few short passes of the run's own layers are timed: over one frame and over some, a shallow one, the VAE over a small
picture. The run is the sum of the passes that it will make, each as long as its frames and branches have it.
"""

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fz import mini
from fz.attention import Plain
from fz.baselines import reconstructs
from fz.denoiser import Denoiser
from fz.kernels.int8 import has_int8
from fz.loaded import Loaded
from fz.model.deep import Deep, Reuse
from fz.model.layers import TextContext
from fz.model.reduced_cpu import takes_int8
from fz.model.unet import UNet
from fz.model.vae import VAE, decode_clip, encode_clip
from fz.settings.config import REUSING, Settings
from fz.settings.fast import FAST, fast_steps

# what a step costs, in passes over as many frames and branches (bench/LOG.md, SD's shapes): of inversion with what it
# leaves; fused; the source's pass as far as the last fused layer; with a ControlNet; of eight bits
INVERTING, FUSED, AGAIN, CONTROLLED, INT8 = 1.1, 1.05, 0.8, 1.3, 0.65
# an edit's step in steps of inversion: two branches, fused; the source's once more to recompute
EDIT_STEP = 2
# of the longer pass that is tried, frames at least and at most, and pixels of latents: small frames cost less each in a
# pass of many. SHARE: of the run's passes over a frame, what a trial's may be; of its time that is 3 % at most
FEWEST, MOST, PIXELS, SHARE = 2, 4, 4096, 0.02
# a side of the picture that the VAE is tried on, of the clip's
SMALLER = 4


@dataclass(frozen=True)
class Pace:
    """Seconds. A pass over n frames of all branches takes `each` + n · `frame`, a shallow one `shallow` of that;
    encode, decode: of the VAE, a frame.
    """

    each: float
    frame: float
    shallow: float = 1.0
    encode: float = 0.0
    decode: float = 0.0

    def passing(self, frames: int, shallow: bool) -> float:
        return (self.each + frames * self.frame) * (self.shallow if shallow else 1.0)


@dataclass(frozen=True)
class Course:
    """The passes of a run. left: inversion's steps that are not done; guided: edit steps of two branches; again: those
    at which the source is passed again by every edit; once: by the first alone; fuses: edits fuse; reconstructed:
    branches of the reconstruction that is passed in place of inversion, 0 without; cost: of a pass of this run, of one
    that was tried.
    """

    frames: int
    steps: int
    left: int
    edits: int
    reuse: Reuse
    guided: Collection[int]
    again: Collection[int]
    once: Collection[int] = ()
    fuses: bool = True
    reconstructed: int = 0
    cost: float = 1.0

    def passes(self) -> Iterator[tuple[float, int, bool]]:
        """(how many, over how many frames of all branches, shallow or not)."""
        for k in range(self.steps):
            shallow = not self.reuse.is_full(k, self.steps)
            if k < self.left:
                yield INVERTING, self.frames, shallow
            branches = 2 if self.reuse.before(k, self.steps) in self.guided else 1
            yield self.edits * (FUSED if self.fuses else 1.0), branches * self.frames, shallow
            if self.reconstructed:
                yield INVERTING, self.reconstructed * self.frames, shallow
            if not shallow:
                count = self.edits * (k in self.again) + (k in self.once)
                yield count * AGAIN, max(self.reconstructed, 1) * self.frames, False

    def seconds(self, pace: Pace) -> float:
        """From where inversion begins to the last picture that is decoded."""
        passes = sum(count * pace.passing(frames, shallow) for count, frames, shallow in self.passes())
        return self.cost * passes + self.edits * self.frames * pace.decode

    def affords(self, trial: float) -> bool:
        """Are so many passes over a frame a small share of the run? Counted, not timed."""
        return trial <= SHARE * sum(count * frames for count, frames, shallow in self.passes() if not shallow)


def tried_frames(size: tuple[int, ...]) -> int:
    """Frames of the longer pass that is tried, of latents of that (h, w)."""
    return min(max(PIXELS // (size[0] * size[1]), FEWEST), MOST)


def course_of(settings: Settings, frames: int, left: int, again: Collection[int], once: Collection[int] = ()) -> Course:
    """again, once: the edit steps at which queries and keys of the source are computed again, by every edit or one."""
    first, last = settings.guidance_window
    guided = {k for k in range(settings.steps) if first <= k / settings.steps < last} if settings.guidance > 1 else ()
    return Course(
        frames, settings.steps, left, len(settings.edits), Reuse.of(settings.reuse), guided, again, once,
        settings.method == "fatezero", reconstructed(settings), CONTROLLED if settings.control else 1.0,
    )  # fmt: skip


def reconstructed(settings: Settings) -> int:
    """Branches of the reconstruction whose attention is fused, 0 where it is inversion's."""
    if not reconstructs(settings):
        return 0
    return 2 if settings.guidance > 1 else 1


def with_fast(settings: Settings) -> Settings | None:
    """The settings as `--fast` would have them; None where it would change nothing, is not for them, or where it is not
    known whether it would take fewer steps: those of a flag stay, those of a config do not.
    """
    has_some = any(getattr(settings, name) == value for name, value in FAST.items())
    usual = mini.DEFAULTS["steps"] if settings.checkpoint is None else Settings.steps
    if settings.method not in REUSING or settings.control or has_some or settings.steps != usual:
        return None
    return replace(settings, **FAST, steps=fast_steps(usual), notes=())


@torch.no_grad()
def trial(
    model: Denoiser, vae: VAE, size: tuple[int, int], prompt: Tensor, clock: Callable[[], float] = time.perf_counter
) -> Pace:
    """The pace of a model on this machine, by some passes over frames of (H, W) pixels. prompt: (77, Cx). Nothing of it
    stays, and no random number is drawn from what a run draws from.
    """
    unet, device, stride = model.layers, prompt.device, vae.config.stride
    draw = torch.Generator().manual_seed(0)
    latent_size = tuple(side // stride for side in size)
    some = tried_frames(latent_size)
    z = torch.randn(1, some, 4, *latent_size, generator=draw).to(device)
    text, t = TextContext(prompt[None]), model.schedule.timesteps[0]
    deep = Deep((model.reuse if model.reuse.every > 1 else Reuse.of(FAST["reuse"])).outer)

    def took(run: Callable[[], object]) -> float:
        start = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - start

    def forward(frames: int, **extra: Deep) -> float:
        return took(lambda: unet(z[:, :frames], t, text, Plain(model.frame_index), **extra))

    # the first pass warms up: it asks for memory that later ones find
    forward(some, deep=deep)
    one, many, deep.shallow = forward(1), forward(some), True
    shallow = forward(some, deep=deep)
    # another frame takes what the first does at most, and on a busy machine may seem to take anything
    frame = min(max((many - one) / (some - 1), one / 8), one)
    height, width = (max(side // (SMALLER * stride), 1) * stride for side in size)
    small, share = torch.zeros(1, 3, height, width), size[0] * size[1] / (height * width)
    latent = encode_clip(vae, small)
    encode, decode = took(lambda: encode_clip(vae, small)), took(lambda: decode_clip(vae, latent))
    return Pace(one - frame, frame, min(shallow / many, 1.0) if many else 1.0, share * encode, share * decode)


@dataclass(frozen=True)
class Ahead:
    """A run that is about to invert its clip. prompt: (77, Cx), of its source; size: of its clip, (F, 3, H, W); again,
    once: the edit steps at which queries and keys of the source are computed again, by every edit or by the first.
    """

    loaded: Loaded
    settings: Settings
    model: Denoiser
    prompt: Tensor
    size: tuple[int, ...]
    again: Collection[int]
    once: Collection[int]

    def told(self, left: int, free: bool = False) -> str | None:
        """One line on a run of whose inversion so many steps are left: about how long it takes, and with `--fast`. None
        where a trial would take more than SHARE of the run (unless it is free to), and where several processes or
        compiled layers would have to take part in it.
        """
        settings, loaded, frames, pixels = self.settings, self.loaded, self.size[0], self.size[2:]
        if settings.method not in REUSING or loaded.ranks.world > 1 or settings.compile:
            return None
        course = course_of(settings, frames, left, self.again, self.once)
        latent_size = tuple(side // loaded.checkpoint.vae.config.stride for side in pixels)
        # the longer one twice, and one of a frame
        passes = 2 * tried_frames(latent_size) + 1
        if not (free or course.affords(passes)):
            return None
        with loaded.denoising(), loaded.coding("decoder", latent_size) as vae:
            pace = trial(self.model, vae, pixels, self.prompt)
        line = f"about {shown(course.seconds(pace))} to go"
        if fast := with_fast(settings):
            # of other timesteps, nothing is inverted yet
            again = [k * fast.steps // settings.steps for k in self.again]
            cost = INT8 if int8_counts(loaded.checkpoint.unet) else 1.0
            quick = replace(course_of(fast, frames, fast.steps, again), cost=cost)
            line += f", with --fast {shown(quick.seconds(pace))}"
        return line

    def by_first_step(self, seconds: float, left: int) -> str:
        """The same once the first step of inversion is done, a full one, in so many seconds; so many steps are left."""
        settings, branches = self.settings, reconstructed(self.settings)
        of_an_edit = EDIT_STEP + max(branches, 1) * bool(self.again)
        share = self.model.reuse.work(settings.steps)
        in_all = left + (branches + of_an_edit * len(settings.edits)) * settings.steps + len(self.once)
        to_go = shown(seconds * share * in_all)
        return f"about {to_go} to go: a step of inversion takes {seconds:.2g} s, one of an edit {of_an_edit:g}x"


def int8_counts(unet: UNet) -> bool:
    """Would `--weights int8` be taken?"""
    weight, text_channels = unet.conv_in.weight, unet.config.cross_attention_dim
    on_cpu = (weight.device.type, weight.dtype) == ("cpu", torch.float32)
    wide = any(takes_int8(name, layer, text_channels) for name, layer in unet.named_modules())
    return on_cpu and has_int8() and wide


def shown(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
