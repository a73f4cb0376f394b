"""Training data: pictures of chance stories, drawn by several processes, with their captions. Held-out stories are
never drawn here.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fz.memory.workers import workers
from fz.mini.world import Drawn, Story, caption, draw, draw_frame, flow_between, sample_story

# stories of seeds from here on are for measuring only
HELD_OUT = 10_000_000
TIMES = 2  # pictures of one story


@dataclass(frozen=True)
class Pictures:
    """frames (n, TIMES, 3, H, W) uint8 of n stories; captions of them."""

    frames: Tensor
    captions: list[str]


def picture_pair(seed: int, size: int, empty: bool = False) -> tuple[np.ndarray, str]:
    """Two moments of a training story, (TIMES, 3, H, W), and its caption. empty: without its things."""
    story = sample_story(seed)
    if empty:
        story = replace(story, things=())
    times = np.random.default_rng([seed, 1]).uniform(0, 1, TIMES)
    return np.stack([draw_frame(story, float(t), size) for t in times]).transpose(0, 3, 1, 2), caption(story)


def draw_many(first: int, count: int, size: int = 128, processes: int = 2, empty: bool = False) -> Pictures:
    """Stories of seeds first … first + count - 1; of their scenes alone if empty."""
    seeds = range(first, first + count)
    if first + count > HELD_OUT:
        raise ValueError(f"seeds from {HELD_OUT} on are held out, got {first} … {first + count - 1}")
    with workers(processes) as pool:
        frames, captions = zip(
            *pool.map(partial(picture_pair, size=size, empty=empty), seeds, chunksize=32), strict=True
        )
    return Pictures(torch.from_numpy(np.stack(frames)), list(captions))


def held_out(i: int, **options) -> Story:
    """The i-th story for measuring."""
    return sample_story(HELD_OUT + i, **options)


def as_given(story: Story, frames: int, size: int, full: int = 128) -> Drawn:
    """The clip as an editor gets it: drawn at `full` and, where `size` divides that, shrunk by areas, as training's
    pictures are.
    """
    if full % size or size == full:
        return draw(story, frames, size)
    drawn, k = draw(story, frames, full), full // size
    blocks = drawn.frames.reshape(frames, size, k, size, k, 3).mean((2, 4))
    masks = drawn.masks.reshape(len(drawn.masks), frames, size, k, size, k).mean((3, 5)) >= 0.5
    times = np.linspace(0, 1, frames)
    flow = [
        flow_between(story, a, b, masks[:, i], size) for i, (a, b) in enumerate(zip(times, times[1:], strict=False))
    ]
    return Drawn(
        blocks.round().astype(np.uint8), masks, np.stack(flow) if flow else np.zeros((0, size, size, 2), np.float32)
    )


def to_unit(frames: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return frames.float() / 127.5 - 1
