"""One-shot tuning: a UNet of pictures is given temporal layers and learns the motion of one clip (Tune-A-Video, arXiv
2212.11565).

The temporal layers begin as the identity, so that training starts from the very model that it was given. Queries and
temporal layers are trained, nothing else. Step n draws from (seed, n): a training that was stopped goes on to the same
bits. Files are the question of `fz.tuning.run` and `fz.weights.write`.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fz.attention import Plain
from fz.errors import FzError
from fz.frames import FrameIndex
from fz.model.layers import ResnetBlock, TextContext, Transformer
from fz.model.unet import Temporal, UNet, UNetConfig
from fz.records import Each, fits

ANCHORS = FrameIndex((-1, "first"))  # what a frame attends to while it is tuned: the one before it, and the first
DRAWS = 64  # fixed draws of noise and timestep that tell what was learned
FIXED = 2**40  # their seed begins here, out of the reach of any step
# what `Tuner.state` has, as a file may give it back
MOMENTS = {"step": Tensor, "exp_avg": Tensor, "exp_avg_sq": Tensor}
STATE = {
    "steps": int,
    "losses": [float],
    "weights": Each(Tensor),
    "optimiser": {"state": Each(MOMENTS)},
    "scaler": dict,
}


@dataclass(frozen=True)
class Recipe:
    """What is trained and how fast. conv: low-rank convolutions over time are added and trained beside temporal
    attention. low_rank: changes of the layers that are there, and nothing else (`fz.tuning.lora`).
    """

    rate: float
    conv: bool
    low_rank: bool = False


RECIPES = {"tune-a-video": Recipe(3e-5, conv=False), "fatezero": Recipe(1e-5, conv=True)}


def rank_of(channels: int, rank: int) -> int:
    """The rank of a layer so wide: what is asked for, or half of the channels where there are fewer than that."""
    return rank if rank <= channels else channels // 2


def inflate(unet: UNet, recipe: Recipe, rank: int = 160, seed: int = 0) -> UNet:
    """The UNet with temporal layers that change nothing yet; its other weights are shared. One that has them is
    returned as it is.
    """
    if unet.config.temporal:
        return unet
    ranks = {c: rank_of(c, rank) for c in {*unet.config.block_out_channels, unet.config.out_channels}}
    temporal = Temporal(True, "low_rank" if recipe.conv else None, tuple(sorted(ranks.items())) if recipe.conv else ())
    config: UNetConfig = dataclasses.replace(unet.config, temporal=temporal)
    with torch.device("meta"):
        tuned = UNet(config, unet.clip_norm)
    state, generator = dict(unet.state_dict()), torch.Generator().manual_seed(seed)
    like = unet.conv_in.weight
    for name, parameter in tuned.state_dict().items():
        if name not in state:
            state[name] = beginning(name, parameter.shape, generator).to(like.device, like.dtype)
    tuned.load_state_dict(state, assign=True)
    return tuned.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def beginning(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A new temporal layer's tensor: what writes into the residual is zero, the rest is random, so that gradients find
    a way.
    """
    if name.endswith("norm_temporal.weight"):
        return torch.ones(shape)
    if name.endswith(("norm_temporal.bias", "to_out.0.weight", "to_out.0.bias", "conv_temporal.up.weight")):
        return torch.zeros(shape)
    if name.endswith("conv_temporal.down.weight"):
        return torch.randn(shape, generator=generator) / shape[0]
    return (torch.rand(shape, generator=generator) * 2 - 1) * shape[1] ** -0.5


def trained(unet: UNet, recipe: Recipe) -> dict[str, nn.Parameter]:
    """What the recipe trains, by name: every query, temporal attention, and low-rank temporal convolutions where it has
    them.

    These, and nothing else, require gradients from then on.
    """
    unet.requires_grad_(False)
    chosen = {}
    for name, parameter in unet.named_parameters():
        if recipe.low_rank:
            if name.endswith((".parametrizations.weight.0.up", ".parametrizations.weight.0.down")):
                chosen[name] = parameter.requires_grad_(True)
        elif name.endswith("to_q.weight") or ".attn_temporal." in name or (recipe.conv and ".conv_temporal." in name):
            chosen[name] = parameter.requires_grad_(True)
    return chosen


@contextlib.contextmanager
def checkpointed(unet: UNet) -> Iterator[None]:
    """Gradient checkpointing, for the time of a block: activations within a ResNet or a transformer are computed again,
    not kept.
    """
    layers = [m for m in unet.modules() if isinstance(m, (ResnetBlock, Transformer))]
    for layer in layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@dataclass(frozen=True)
class Lesson:
    """What is learned: latents (F, 4, h, w), scaled, and the sentence's embedding (77, Cx). weight: of its loss."""

    z: Tensor
    embedding: Tensor
    weight: float = 1.0


def draw(seed: int, number: int, shape: Sequence[int], timesteps: int) -> tuple[int, Tensor]:
    """The timestep and the noise of draw `number`, on the CPU, whatever was drawn before."""
    generator = torch.Generator().manual_seed((seed % 2**19 << 44) + number)
    return int(torch.randint(timesteps, (), generator=generator)), torch.randn(tuple(shape), generator=generator)


@dataclass(frozen=True)
class TrainingSettings:
    """How a training goes. rate: AdamW's. accumulate: draws a step. dtype: of the products, the weights stay float32.

    recompute: gradient checkpointing. snr_power: a draw's loss weighs SNR^-p; 0.5 is arXiv 2310.08442's, 1 makes it the
    loss of the clean picture.
    """

    rate: float
    seed: int = 0
    accumulate: int = 1
    dtype: torch.dtype = torch.float32
    recompute: bool = True
    snr_power: float = 0.0


class Tuner:
    """The training of one UNet: epsilon loss (eq. 1), AdamW. `steps` are done; `losses` has one each."""

    def __init__(self, unet: UNet, recipe: Recipe, alpha_bars: Sequence[float], training: TrainingSettings):
        """alpha_bars: of every training timestep."""
        self.unet, self.weights, self.alpha_bars = unet, trained(unet, recipe), alpha_bars
        self.seed, self.accumulate = training.seed, training.accumulate
        self.dtype, self.recompute, self.snr_power = training.dtype, training.recompute, training.snr_power
        self.optimiser = torch.optim.AdamW(self.weights.values(), lr=training.rate, weight_decay=1e-2)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=training.dtype == torch.float16)
        self.steps = 0
        self.losses: list[float] = []

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    def loss(self, lesson: Lesson, number: int) -> Tensor:
        """|eps - eps_theta|² of one draw, times its weight."""
        t, eps = draw(self.seed, number, lesson.z.shape, len(self.alpha_bars))
        a, eps = self.alpha_bars[t], eps.to(self.device)
        z = a**0.5 * lesson.z + (1 - a) ** 0.5 * eps
        text = TextContext(lesson.embedding[None])
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            out = self.unet(z[None], t, text, Plain(ANCHORS))[0]
        return self.error(out, eps, torch.tensor(a))

    def error(self, predicted: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
        """The mean squared error of the noise that was predicted, each draw's times SNR^-p, where SNR = alpha_bar /
        (1 - alpha_bar).

        alpha_bar: broadcasts against eps.
        """
        if self.snr_power == 0:
            return F.mse_loss(predicted.float(), eps)
        weight = ((1 - alpha_bar) / alpha_bar) ** self.snr_power
        return (weight * (predicted.float() - eps).square()).mean()

    def step(self, lessons: Sequence[Lesson]) -> float:
        """One step on all lessons; returns the first one's loss. Raises FzError if any is not finite: nothing is
        changed then.
        """
        total = first = 0.0
        with checkpointed(self.unet) if self.recompute else contextlib.nullcontext():
            for i in range(self.accumulate):
                for j, lesson in enumerate(lessons):
                    loss = self.loss(lesson, (self.steps * self.accumulate + i) * len(lessons) + j)
                    self.scaler.scale(lesson.weight * loss / self.accumulate).backward()
                    total += (value := loss.item() / self.accumulate)
                    first += value if j == 0 else 0.0
        if not total < float("inf"):
            self.optimiser.zero_grad(set_to_none=True)
            raise FzError(
                f"tuning: the loss of step {self.steps + 1} is {total}. Use --dtype float32 or a smaller --rate."
            )
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self.steps += 1
        self.losses.append(first)
        return first

    @torch.no_grad()
    def fixed_loss(self, lesson: Lesson) -> float:
        """The mean loss of DRAWS draws that are always the same ones and that no step has."""
        return sum(self.loss(lesson, FIXED + i).item() for i in range(DRAWS)) / DRAWS

    def state(self) -> dict:
        """All that a training needs to go on, for torch.save."""
        weights = {name: w.detach().clone() for name, w in self.weights.items()}
        return {
            "steps": self.steps,
            "losses": self.losses,
            "weights": weights,
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict) -> None:
        """Go on from there. Raises FzError if it is of another model or recipe, ValueError if it is no state at all."""
        if not fits(state, STATE) or len(state["losses"]) != state["steps"]:
            raise ValueError("its values are none of a tuning")
        shapes = {name: w.shape for name, w in state["weights"].items()}
        if shapes != {name: w.shape for name, w in self.weights.items()}:
            raise FzError("tuning: the state that is there trains other layers. Use another --out, or --overwrite.")
        moments = state["optimiser"]["state"]
        for i, w in enumerate(self.weights.values()):
            if not all(fits(m, Tensor) and m.shape in ((), w.shape) for m in moments.get(i, {}).values()):
                raise ValueError("its optimiser is of other weights")
        with torch.no_grad():
            for name, w in self.weights.items():
                w.copy_(state["weights"][name])
        # the recipe's rate and the like are this tuning's own, not what a file says
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": moments})
        self.scaler.load_state_dict(state["scaler"])
        self.steps, self.losses = state["steps"], list(state["losses"])
