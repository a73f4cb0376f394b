"""Training's data: pairs of clips that differ in one word, drawn and encoded once, a shard at a time, as training comes
to need them.

A pair is a chance story and a counterfactual of it (another colour, kind, scene or style, or the scene without its
things), both at the same moments: what differs in the pictures is what differs in the words. A shard's file holds its
latents, its captions' tokens, and where each thing is. The same number gives the same shard; held-out stories are in
none.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fz.memory.workers import workers
from fz.mini.data import HELD_OUT, to_unit
from fz.mini.state import undamaged
from fz.mini.world import COLOURS, KINDS, SCENES, STYLES, VERB, Story, caption, counterfactual, render, sample_story
from fz.model.vae import SCALE, VAE
from fz.prompts.text import TextEncoder
from fz.tensors import write_pt

PAIRS = 250  # of a shard: 500 stories
FRAMES = 4  # moments of a story
CELLS = 8  # places are known on a grid of so many cells a side
SIDE = 128
TWO_THINGS = 1 / 2  # share of stories with two things
# what a counterfactual changes, and how often; 'nothing there' is the scene without its things, and two things that
# 'swap' exchange their colours or their kinds: which word belongs to which thing is all that differs
CHANGES = {"kind": 0.3, "colour": 0.25, "style": 0.1, "scene": 0.1, "nothing there": 0.05, "swap": 0.2}


@dataclass(frozen=True)
class Shard:
    """n pairs of stories, each at FRAMES moments.

    latents (n, 2, FRAMES, 4, h, w) float16, scaled; ids (n, 2, 2, 77), of each story's caption and of it without its
    verb; columns (n, 2, 2, 2, 77) bool, the tokens that name each of the (at most two) things; cells (n, 2, FRAMES, 2,
    CELLS, CELLS) float16, the share of each cell that is the thing's.
    """

    latents: Tensor
    ids: Tensor
    columns: Tensor
    cells: Tensor

    @property
    def of_two(self) -> list[int]:
        """The pairs whose captions both name two things."""
        return self.columns[:, :, 0, 1].any(-1).all(-1).nonzero().flatten().tolist()


def pair_of(seed: int) -> tuple[Story, Story]:
    """The training story of a seed and one that differs in a word, in either order. Raises ValueError for a held-out
    seed.
    """
    if seed >= HELD_OUT:
        raise ValueError(f"seeds from {HELD_OUT} on are held out, got {seed}")
    rng = np.random.default_rng([seed, 4])
    story = sample_story(seed, two=bool(rng.random() < TWO_THINGS))
    other = changed(story, str(rng.choice(list(CHANGES), p=list(CHANGES.values()))), rng)
    return (story, other) if rng.random() < 0.5 else (other, story)


def changed(story: Story, what: str, rng: np.random.Generator) -> Story:
    """The story with another of `what` (a name of CHANGES); one thing alone has a new colour for a swap. Two things
    never share a kind or a colour.
    """
    if what == "swap":
        if len(story.things) == 2:
            return swapped(story, str(rng.choice(["kind", "colour"])))
        what = "colour"
    i = int(rng.integers(len(story.things)))
    taken = {value for thing in story.things for value in (thing.kind, thing.colour)}
    if what == "nothing there":
        return dataclasses.replace(story, things=())
    choices = {"kind": KINDS, "colour": COLOURS, "scene": SCENES, "style": STYLES}[what]
    left = [choice for choice in choices if choice not in taken | {story.scene, story.style}]
    return counterfactual(story, i, **{what: str(rng.choice(left))})


def swapped(story: Story, name: str) -> Story:
    """The story of two things with their colours or kinds (`name`) exchanged."""
    first, second = (getattr(thing, name) for thing in story.things)
    return counterfactual(counterfactual(story, 0, **{name: second}), 1, **{name: first})


def moments(seed: int) -> np.ndarray:
    """The times at which a pair is drawn, (FRAMES,) rising from 0 to 1."""
    return np.sort(np.random.default_rng([seed, 5]).uniform(0, 1, FRAMES))


def draw_pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (2, FRAMES, 3, SIDE, SIDE) uint8 of a pair, and its things' places (2, FRAMES, 2, CELLS, CELLS)
    float16.
    """
    pictures = np.empty((2, FRAMES, SIDE, SIDE, 3), np.uint8)
    cells = np.zeros((2, FRAMES, 2, CELLS, CELLS), np.float16)
    block = SIDE // CELLS
    for i, story in enumerate(pair_of(seed)):
        for j, t in enumerate(moments(seed)):
            pictures[i, j], masks = render(story, float(t), SIDE)
            for k, mask in enumerate(masks):
                cells[i, j, k] = mask.reshape(CELLS, block, CELLS, block).mean((1, 3))
    return pictures.transpose(0, 1, 4, 2, 3), cells


def variants(text: str) -> tuple[str, str]:
    """A caption, and it without its verb."""
    return text, text.replace(f" {VERB}", "")


def told(encoder: TextEncoder, story: Story) -> tuple[Tensor, Tensor]:
    """A story's ids (2, 77) and columns (2, 2, 77): of the caption and of its short form."""
    ids, columns = [], torch.zeros(2, 2, 77, dtype=torch.bool)
    for i, text in enumerate(variants(caption(story))):
        tokens = encoder.tokens(text)
        ids.append(tokens.ids)
        for word in tokens.words:
            for j, thing in enumerate(story.things):
                if word.text in (thing.kind, thing.colour):
                    columns[i, j, list(word.positions)] = True
    return torch.tensor(ids), columns


@torch.no_grad()
def encoded(vae: VAE, pictures: Tensor, size: int) -> Tensor:
    """uint8 pictures (n, 3, SIDE, SIDE) shrunk to `size`, as scaled latents (n, 4, size/4, size/4) float16 on the
    CPU.
    """
    device = next(vae.parameters()).device
    out = []
    for part in pictures.split(16 if device.type == "cpu" else 256):
        x = to_unit(part.to(device))
        x = F.interpolate(x, size=(size, size), mode="area") if size != x.shape[-1] else x
        out.append((SCALE * vae.encode(x.contiguous(memory_format=torch.channels_last))).half().cpu())
    return torch.cat(out)


def make_shard(number: int, sizes: Iterable[int], vae: VAE, encoder: TextEncoder, drawn: Iterable) -> dict[int, Shard]:
    """The shard at each size of picture. drawn: `draw_pair` of its seeds, in order."""
    pictures, cells = (torch.from_numpy(np.stack(parts)) for parts in zip(*drawn, strict=True))
    ids, columns = zip(*(told(encoder, story) for seed in seeds_of(number) for story in pair_of(seed)), strict=True)
    said = [torch.stack(parts).unflatten(0, (-1, 2)) for parts in (ids, columns)]
    latents = {size: encoded(vae, pictures.flatten(0, 2), size).unflatten(0, pictures.shape[:3]) for size in sizes}
    return {size: Shard(z, *said, cells) for size, z in latents.items()}


def seeds_of(number: int) -> range:
    return range(number * PAIRS, (number + 1) * PAIRS)


class Shards:
    """A folder's shards, made when they are first asked for. each: `map`, or a pool's, which draws the next shard
    meanwhile.
    """

    def __init__(
        self, folder: Path, vae: VAE, encoder: TextEncoder, sizes: tuple[int, ...], each: Callable[..., Iterable] = map
    ):
        self.folder, self.vae, self.encoder, self.sizes, self.each = folder, vae, encoder, sizes, each
        self.open: dict[int, list[Shard]] = {size: [] for size in sizes}
        self.next: tuple[int, Iterable] | None = None

    def of(self, size: int, count: int) -> list[Shard]:
        """The first `count` shards of pictures of that size."""
        while len(self.open[size]) < count:
            number = len(self.open[size])
            if not self.path(size, number).exists():
                self.make(number)
            with undamaged(self.path(size, number)):
                self.open[size].append(Shard(**torch.load(self.path(size, number), weights_only=True, mmap=True)))
        return self.open[size][:count]

    def path(self, size: int, number: int) -> Path:
        return self.folder / f"shard-{size}-{number:04d}.pt"

    def make(self, number: int) -> None:
        drawn = self.next[1] if self.next and self.next[0] == number else self.each(draw_pair, seeds_of(number))
        for size, made in make_shard(number, self.sizes, self.vae, self.encoder, drawn).items():
            write_pt(self.path(size, number), vars(made), "state")
        # a pool begins with it at once, `map` when it is needed
        self.next = number + 1, self.each(draw_pair, seeds_of(number + 1))


@contextmanager
def drawing(processes: int) -> Iterator[Callable[..., Iterable]]:
    """`map`, over so many processes."""
    if processes == 1:
        yield map
        return
    with workers(processes) as pool:
        yield partial(pool.map, chunksize=4)
