"""How is a small ControlNet on outlines trained for the miniature, on one core?

It begins as a copy of the checkpoint's encoder, without attention but in the middle (`fz.mini.shape.CONTROL`: half of
the time), and with zero convolutions, so that nothing changes at first; the checkpoint stays as it is. Data are
`fz.mini.shards`' clips with the Canny edges of the drawn frames, prompts left out more often than the UNet's training
does, for then only the edges tell what there is. It goes on, to the bit, from its folder.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from fz.clips.canny import edges
from fz.clips.media import atomic
from fz.ddim import Schedule
from fz.errors import FzError
from fz.frames import FrameIndex
from fz.mini.attend import TrainingAttention
from fz.mini.data import to_unit
from fz.mini.folder import write_part
from fz.mini.shape import CONTROL, SCHEDULER
from fz.mini.shards import SIDE, Shard, Shards, draw_pair, seeds_of
from fz.mini.state import Training, read_averages, undamaged
from fz.mini.training import (
    LOG_EVERY,
    MOST_SHARDS,
    NEW_SHARD,
    ON_GPU,
    Batch,
    Chosen,
    Noised,
    autocast,
    batch_of,
    choose,
)
from fz.model.control import Control, ControlConfig, ControlNet
from fz.model.layers import TextContext
from fz.model.unet import UNet, UNetConfig
from fz.tensors import write_pt
from fz.weights.layouts import under
from fz.weights.load import Checkpoint

EMPTY = 0.3  # share of prompts left empty
BATCHES = {128: 8}  # pictures of a batch, by their side: the size at which the miniature runs
RATE = 1e-3  # larger than the UNet's: what begins at zero has far to go
EVERY_STEP = frozenset(range(1000))


class OutlinedShards(Shards):
    """Shards with the edges of their pictures, (PAIRS, 2, FRAMES, size, size) bool, in files beside them."""

    def of(self, size: int, count: int) -> list[Shard]:
        """The first `count` shards of pictures of that size; their edges are there, too."""
        for number in range(len(self.open[size]), count):
            if not self.edges_path(size, number).exists():
                self.make(number)
        return super().of(size, count)

    def make(self, number: int) -> None:
        drawn = list(self.next[1] if self.next and self.next[0] == number else self.each(draw_pair, seeds_of(number)))
        for size in self.sizes:
            edges = torch.stack([outlines(torch.from_numpy(pictures), size) for pictures, _ in drawn])
            write_pt(self.edges_path(size, number), edges, "state")
        # a training of the UNet may have left the shard itself
        if not all(self.path(size, number).exists() for size in self.sizes):
            self.next = number, drawn
            super().make(number)

    def edges_path(self, size: int, number: int) -> Path:
        return self.folder / f"edges-{size}-{number:04d}.pt"

    def edges(self, size: int, chosen: Chosen) -> Tensor:
        """Of a batch, (n·F, 3, size, size), 0 and 1, in the order of its latents."""
        found = [self._edges_of(size, s)[r][:, at] for s, r, at, _ in chosen.rows]
        return torch.cat(found).flatten(0, 1)[:, None].expand(-1, 3, -1, -1).float()

    def _edges_of(self, size: int, number: int) -> Tensor:
        with undamaged(self.edges_path(size, number)):
            return torch.load(self.edges_path(size, number), weights_only=True, mmap=True)


def outlines(pictures: Tensor, size: int) -> Tensor:
    """The edges of pictures (2, FRAMES, 3, SIDE, SIDE) uint8 at another size, (2, FRAMES, size, size) bool."""
    x = to_unit(pictures.flatten(0, 1))
    x = nn.functional.interpolate(x, size=(size, size), mode="area") if size != SIDE else x
    return edges(x).unflatten(0, pictures.shape[:2])


def control_of(unet: UNet) -> ControlNet:
    """A ControlNet with the UNet's encoder and middle, what it adds being zero."""
    hints = tuple(CONTROL["conditioning_embedding_out_channels"])
    control = ControlNet(ControlConfig(UNetConfig.from_json(CONTROL | {"up_block_types": []}), hints))
    own = control.state_dict()
    own |= {key: t.float() for key, t in unet.state_dict().items() if key in own}
    control.load_state_dict(own)
    zeros = (*control.controlnet_down_blocks, control.controlnet_mid_block, control.controlnet_cond_embedding.conv_out)
    for layer in zeros:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return control.to(memory_format=torch.channels_last)


class Teacher:
    """The frozen checkpoint, and the error of what it predicts with a ControlNet's help or without."""

    def __init__(self, checkpoint: Checkpoint, device: str):
        self.unet = checkpoint.unet.float().to(device, memory_format=torch.channels_last).requires_grad_(False)
        self.text = checkpoint.text.model.float().to(device).requires_grad_(False)
        self.alpha_bar = torch.tensor(Schedule.from_config(SCHEDULER, 1000).alpha_bars).float().to(device)

    def error(self, batch: Batch, noised: Noised, control: ControlNet | None, pictures: Tensor) -> Tensor:
        device = batch.latents.device
        with autocast(device):
            with torch.no_grad():
                text = TextContext(self.text(input_ids=batch.ids).last_hidden_state)
            attend = TrainingAttention(FrameIndex((0, "mid")))
            # gradients go through the embedding of the pictures, too, which `ControlNet.hint` leaves out
            added = control and Control(control, control.controlnet_cond_embedding(pictures), 1.0, EVERY_STEP)
            return noised.error(self.unet(noised.z, noised.t, text, attend, control=added))


class ControlTraining(Training):
    """Training whose log has the loss of the same batch without control beside the loss."""

    columns = ("loss", "without control")
    rate = RATE


def train(
    state: Path, checkpoint: Checkpoint, device: str, wanted: Callable[[Training], bool], each: Callable = map
) -> Training:
    """Train, or go on, while it is `wanted`; then save. Saves on the way, too. each: what shards are drawn with."""
    torch.manual_seed(0)
    control = control_of(checkpoint.unet)
    training, teacher = ControlTraining(state, {"control": control}, device), Teacher(checkpoint, device)
    vae = checkpoint.vae.float().to(device, memory_format=torch.channels_last)
    shards = OutlinedShards(state, vae, checkpoint.text, tuple(BATCHES), each)
    nothing, many = torch.tensor(checkpoint.text.tokens("").ids), ON_GPU if device == "cuda" else 1
    recent: dict[int, list[float]] = {size: [] for size in BATCHES}
    for _ in training.rounds(wanted):
        size = list(BATCHES)[int(torch.randint(len(BATCHES), ()))]
        there = shards.of(size, min(1 + training.pictures // NEW_SHARD, MOST_SHARDS))
        chosen = choose(there, many * BATCHES[size])
        batch, pictures = batch_of(there, chosen, nothing).to(device), shards.edges(size, chosen).to(device)
        noised = Noised.of(batch.latents, teacher.alpha_bar)
        loss = teacher.error(batch, noised, control, pictures)
        training.step(loss)
        training.pictures += batch.latents.shape[:2].numel()
        recent[size].append(float(loss.detach()))
        if len(recent[size]) == LOG_EVERY:
            with torch.no_grad():
                alone = float(teacher.error(batch, noised, None, pictures)) / recent[size][-1]
            mean = math.fsum(recent[size]) / LOG_EVERY
            # by how much the last batch's loss is larger without, of the mean
            training.write_log(size, mean, mean * alone)
            recent[size] = []
    return training


def export(state: Path, out: Path) -> None:
    """Write the averaged weights, fp16, as a folder of diffusers' layout. Raises FzError if there are none yet."""
    averages = under(read_averages(state), "control.")
    if not averages:
        raise FzError(f"state: {state} has no averages of a training yet. Run fz.mini.train_control --state {state}.")
    write_part(out, CONTROL, averages, "diffusion_pytorch_model")
    with atomic(out / "log.csv") as part:
        part.write_bytes((state / "log.csv").read_bytes() if (state / "log.csv").exists() else b"")
