"""How are the miniature's UNet and text encoder trained?

It starts from a checkpoint (the one that ships) and goes on, to the bit, from a folder, where it was stopped. The rate
is constant after a warm-up and the weights that count are averages: it may be stopped at any time and go on later.
Batches of 16x16 and 32x32 latents take turns at random; half of them are clips, attending and normalising as the editor
does. Cross-attention is taught where a story's things are all along. Some batches teach nothing but which of two things
is where (`LAYOUT`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from fz.attention import MAP_STRIDE
from fz.ddim import Schedule
from fz.errors import FzError
from fz.frames import FrameIndex
from fz.kernels.gemm import multiplies_bfloat16
from fz.mini.attend import TrainingAttention
from fz.mini.shape import SCHEDULER, TEXT, UNET, VAE_JSON
from fz.mini.shards import CELLS, FRAMES, PAIRS, Shard, Shards
from fz.mini.state import Training, undamaged
from fz.mini.words import new_tokenizer
from fz.model.layers import TextContext
from fz.model.unet import UNet, UNetConfig
from fz.model.vae import VAE, VAEConfig
from fz.prompts.text import TextEncoder
from fz.tensors import write_pt
from fz.weights.load import load_checkpoint

EMPTY = 0.1  # share of prompts left empty, for guidance
SHORT = 0.2  # share of prompts without the verb: 'a blue star on the grass'
PLACING = 0.03  # weight of the loss of words' places
BATCHES = {64: 32, 128: 16}  # pictures of a batch, by their side
ON_GPU = 8  # times as many on a GPU
NEW_SHARD = 6_000  # pictures after which training gets one shard more
MOST_SHARDS = 120  # 60 000 stories
LOG_EVERY = 25  # batches of a size
LAYOUTS = 0.25  # share of batches whose focus is LAYOUT


@dataclass(frozen=True)
class Focus:
    """What a batch teaches. large: how often it is of the larger size, at which edits are made; clips: how often its
    pictures are clips of two to four frames, as editing has them; first: the timestep with least noise; two: of pairs
    of two things alone; gamma, most: the loss of a step weighs min(gamma / SNR, most).
    """

    large: float
    clips: float
    first: int
    two: bool
    gamma: float
    most: float


# steps with less noise weigh less (min-SNR, arXiv 2303.09556): they hold most of the loss and little of the shapes
ALL = Focus(large=0.75, clips=0.5, first=0, two=False, gamma=5.0, most=8.0)
# which of two things is where, and which colour is whose: a sampler decides it in its first steps, where hardly
# anything is seen and an error of the noise is next to nothing. Weighted as above, colours were never learned: a
# picture's loss was the same under a caption with the two exchanged. Small pictures show it as well, and more pairs fit
# into a batch without clips
LAYOUT = Focus(large=0.25, clips=0.0, first=600, two=True, gamma=0.6, most=100.0)


def placing_loss(maps: list[Tensor], cells: Tensor, columns: Tensor, told: Tensor) -> Tensor:
    """Cross-entropy of the words' attention over a picture's cells to the thing's own place; of the prompts that were
    told.

    maps: (n, F, N, L) each; cells (n, F, 2, N) shares; columns (n, 2, L) bool; told (n,) bool.
    """
    words = columns.float()
    seen = torch.einsum("bfnl,bkl->bfkn", torch.stack(maps).mean(0), words)
    there = told[:, None, None] & (cells.sum(-1) > 0) & (words.sum(-1) > 0)[:, None]
    log = (seen / seen.sum(-1, keepdim=True).clamp(min=1e-6)).clamp(min=1e-6).log()
    entropy = -(cells / cells.sum(-1, keepdim=True).clamp(min=1e-6) * log).sum(-1)
    return (entropy * there).sum() / there.sum().clamp(min=1)


@dataclass(frozen=True)
class Batch:
    """latents (n, F, 4, h, w), prompts' ids (n, 77), columns (n, 2, 77), cells (n, F, 2, N), told (n,): is the prompt
    not empty?

    Rows 2i and 2i + 1 are a pair.
    """

    latents: Tensor
    ids: Tensor
    columns: Tensor
    cells: Tensor
    told: Tensor

    def to(self, device: str) -> "Batch":
        return Batch(*(part.to(device, non_blocking=True) for part in vars(self).values()))


@dataclass(frozen=True)
class Chosen:
    """Which pairs of which shards a batch has. rows: (shard, row, moments, 0 for a caption or 1 for its short form) of
    each pair; told (2n,): whether a story has its prompt.
    """

    rows: list[tuple[int, int, list[int], int]]
    told: Tensor


def choose(shards: list[Shard], pictures: int, focus: Focus = ALL) -> Chosen:
    """At random: pairs of pictures or of clips of two to four frames, in their order; at most so many pictures."""
    frames = int(torch.randint(2, FRAMES + 1, ())) if torch.rand(()) < focus.clips else 1
    n = pictures // frames // 2
    which, rows = torch.randint(len(shards), (n,)).tolist(), torch.randint(PAIRS, (n,)).tolist()
    if focus.two:
        of_two = {s: shards[s].of_two for s in set(which)}
        rows = [of_two[s][row % len(of_two[s])] for s, row in zip(which, rows, strict=True)]
    at = [sorted(torch.randperm(FRAMES)[:frames].tolist()) for _ in range(n)]
    told, short = (torch.rand(n) >= EMPTY).repeat_interleave(2), (torch.rand(n) < SHORT).long()
    return Chosen(list(zip(which, rows, at, short.tolist(), strict=True)), told)


def batch_of(shards: list[Shard], chosen: Chosen, nothing: Tensor) -> Batch:
    """The batch of these pairs; nothing (77,): the empty prompt."""
    told, rows = chosen.told, chosen.rows
    latents = torch.cat([shards[s].latents[r][:, a] for s, r, a, _ in rows]).float()
    cells = torch.cat([shards[s].cells[r][:, a] for s, r, a, _ in rows]).float()
    ids = torch.cat([shards[s].ids[r][:, v] for s, r, _, v in rows])
    columns = torch.cat([shards[s].columns[r][:, v] for s, r, _, v in rows])
    grid = latents.shape[-1] // MAP_STRIDE
    cells = F.avg_pool2d(cells.flatten(0, 2), CELLS // grid).flatten(1).unflatten(0, cells.shape[:3])
    return Batch(latents, torch.where(told[:, None], ids, nothing), columns, cells, told)


@dataclass(frozen=True)
class Noised:
    """Latents with noise: z at timesteps t (n,), eps and its error's weight (n, 1, 1, 1, 1)."""

    z: Tensor
    t: Tensor
    eps: Tensor
    weight: Tensor

    @classmethod
    def of(cls, x: Tensor, alpha_bar: Tensor, focus: Focus = ALL) -> "Noised":
        """Of latents (n, F, 4, h, w), two in a row being a pair, of one timestep and one noise. alpha_bar: (1000,)."""
        t = torch.randint(focus.first, 1000, (len(x) // 2,)).repeat_interleave(2).to(x.device)
        eps = torch.randn(len(x) // 2, *x.shape[1:]).repeat_interleave(2, 0).to(x.device)
        a = alpha_bar[t].view(-1, 1, 1, 1, 1)
        weight = (focus.gamma * (1 - a) / a).clamp(max=focus.most)  # SNR = alpha_bar / (1 - alpha_bar)
        return cls(a.sqrt() * x + (1 - a).sqrt() * eps, t, eps, weight)

    def error(self, predicted: Tensor) -> Tensor:
        """The weighted mean squared error of the noise that was predicted."""
        return (self.weight * (predicted.float() - self.eps).square()).mean()


def losses(unet: UNet, text: nn.Module, batch: Batch, alpha_bar: Tensor, focus: Focus = ALL) -> tuple[Tensor, Tensor]:
    """The weighted epsilon loss of a batch, and the loss of its words' places. A pair has one timestep and one noise.

    alpha_bar: (1000,). In bfloat16 on a GPU, and on a CPU that multiplies it natively.
    """
    noised = Noised.of(batch.latents, alpha_bar, focus)
    attend = TrainingAttention(FrameIndex((0, "mid")))
    with autocast(batch.latents.device):
        embedding = text(input_ids=batch.ids).last_hidden_state
        out = unet(noised.z, noised.t, TextContext(embedding), attend)
    return noised.error(out), placing_loss(attend.maps, batch.cells, batch.columns, batch.told)


def autocast(device: torch.device) -> torch.autocast:
    """To bfloat16 where the device has instructions for it; elsewhere float32 is faster."""
    native = device.type == "cuda" or (device.type == "cpu" and multiplies_bfloat16())
    return torch.autocast(device.type, torch.bfloat16, enabled=native)


@dataclass(frozen=True)
class Start:
    """What a training begins with. `vae` stays as it is."""

    unet: UNet
    vae: VAE
    text: TextEncoder


def start_from(checkpoint: str) -> Start:
    """A checkpoint of the miniature's shape; its number of heads may be another."""
    loaded = load_checkpoint(checkpoint)
    unet = UNet(UNetConfig.from_json(UNET))
    unet.load_state_dict({key: t.float() for key, t in loaded.unet.state_dict().items()})
    return Start(unet, loaded.vae.float(), TextEncoder(loaded.text.tokenizer, loaded.text.model.float()))


def start_anew(state: Path) -> Start:
    """Random weights and the VAE that `fz.mini.train_vae` left in the state's folder. Raises FzError for no VAE."""
    if not (state / "vae-final.pt").exists():
        raise FzError(f"state: {state} has no vae-final.pt. Run python -m fz.mini.train_vae --state {state} first.")
    torch.manual_seed(0)
    vae = VAE(VAEConfig.from_json(VAE_JSON))
    with undamaged(state / "vae-final.pt"):
        vae.load_state_dict(torch.load(state / "vae-final.pt", weights_only=True))
    tokenizer = new_tokenizer(state / "tokenizer")
    text = new_text_model(len(tokenizer), tokenizer.start, tokenizer.end)
    return Start(UNet(UNetConfig.from_json(UNET)), vae.requires_grad_(False), TextEncoder(tokenizer, text))


def new_text_model(vocabulary: int, start: int, end: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(vocab_size=vocabulary, bos_token_id=start, eos_token_id=end, pad_token_id=end, **TEXT)
    )


def train(
    state: Path,
    start: Start,
    device: str,
    wanted: Callable[[Training], bool],
    each: Callable = map,
    layouts: float = LAYOUTS,
) -> Training:
    """Train, or go on, while it is `wanted`; then save. Saves on the way, too. each: what shards are drawn with
    (`make_shard`); layouts: the share of batches that teach LAYOUT.
    """
    torch.manual_seed(0)
    unet, text = start.unet.to(memory_format=torch.channels_last), start.text.model.requires_grad_(True).train()
    training = Training(state, {"unet": unet, "text": text}, device)
    if not (state / "vae-final.pt").exists():
        write_pt(state / "vae-final.pt", start.vae.state_dict(), "state")
    shards = Shards(state, start.vae.to(device, memory_format=torch.channels_last), start.text, tuple(BATCHES), each)
    nothing = torch.tensor(start.text.tokens("").ids)
    alpha_bar = torch.tensor(Schedule.from_config(SCHEDULER, 1000).alpha_bars).float().to(device)
    many = ON_GPU if device == "cuda" else 1
    recent: dict[int, list[Tensor]] = {size: [] for size in BATCHES}
    for _ in training.rounds(wanted):
        focus = LAYOUT if torch.rand(()) < layouts else ALL
        size = max(BATCHES) if torch.rand(()) < focus.large else min(BATCHES)
        there = shards.of(size, min(1 + training.pictures // NEW_SHARD, MOST_SHARDS))
        chosen = choose(there, many * BATCHES[size], focus)
        batch = batch_of(there, chosen, nothing).to(device)
        loss, placing = losses(unet, text, batch, alpha_bar, focus)
        training.step(loss + PLACING * placing)
        training.pictures += batch.latents.shape[:2].numel()
        recent[size].append(torch.stack([loss, placing]).detach())
        if len(recent[size]) == LOG_EVERY:
            training.write_log(size, *torch.stack(recent[size]).mean(0).tolist())
            recent[size] = []
    return training
