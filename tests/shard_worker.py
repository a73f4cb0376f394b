"""One process of a clip that is split over several: inverts and edits random latents in every case of `CASES`, and
writes what came out, and what was given, to a file. Alone (WORLD_SIZE 1), what it should be.

python tests/shard_worker.py OUT [all]
"""

import os
import sys
from pathlib import Path

import torch
from random_weights import numbers, randomize

from fz.attention import Keep, Recorder, StopForward
from fz.ddim import CLEAN, Schedule
from fz.denoiser import Denoiser
from fz.edit import Edit, edit, invert
from fz.frames import FrameIndex
from fz.fusion import Fusion
from fz.guidance import Guidance
from fz.masks import EditRegion, LatentBlend
from fz.memory.kept import KeptInMemory
from fz.model.layers import TextContext
from fz.model.unet import Temporal, UNet, UNetConfig
from fz.ranks import Alone, Ranks
from fz.shard import Shard
from fz.source import Source

WORDS, FRAMES, SIDE = 77, 8, 16
SHAPE = dict(block_out_channels=(16, 32, 32, 32), layers_per_block=1, heads=(2, 2, 2, 2), cross_attention_dim=24,
             norm_num_groups=8)  # fmt: skip
RANKS = ((4, 2), (16, 8), (32, 16))
MODELS = {
    "untuned": (None, True), "per-frame-norm": (None, False), "tuned": (Temporal(True, "low_rank", RANKS), True),
    "tuned-full": (Temporal(True, "full"), True), "tuned-per-frame-norm": (Temporal(True, "low_rank", RANKS), False),
}  # fmt: skip
INDEXES = {"0,mid": (0, "mid"), "-1,first": (-1, "first"), "-1,1,first,last": (-1, 1, "first", "last")}
STEPS = 2
SCHEDULE = Schedule.from_config({}, STEPS)
SOME = ("untuned", "tuned")  # of the models, where not all are asked for
TEXT = numbers(2, 2, WORDS, 24)


def model(name):
    temporal, clip_norm = MODELS[name]
    unet = randomize(UNet(UNetConfig(**SHAPE, temporal=temporal), clip_norm), 1)
    return unet.to(memory_format=torch.channels_last)


def fusion():
    beta, alpha = torch.ones(SCHEDULE.steps + 1, WORDS), torch.ones(WORDS)
    alpha[5] = 0
    return Fusion(torch.diag(alpha), alpha, torch.ones(WORDS), beta, (0, 1))


def region(masked):
    words = torch.zeros(WORDS)
    words[[2, 5]] = 1
    return EditRegion(words, threshold=0.5, latent_blend=LatentBlend(words, words)) if masked else EditRegion()


@torch.no_grad()
def steps(unet, index, masked, keep_in_memory, ranks):
    """Latents of an inversion and an edit, and the bytes that each step gave."""
    frame_index, given = FrameIndex(index, 32 if "last" in index else 0), []

    def count(_, z):
        given.append(ranks.total(ranks.given) - sum(given))

    kept = lambda k: Keep(True, True)  # noqa: E731
    store = {"store": KeptInMemory()} if keep_in_memory else {}
    source = Source(TEXT[0], latents={CLEAN: numbers(4, FRAMES, 4, SIDE, SIDE)}, keep=kept, **store)
    denoiser = Denoiser(unet, SCHEDULE, frame_index)
    invert(denoiser, source, count)
    out = [source.latents[t] for t in SCHEDULE.timesteps]
    task = Edit(TEXT[1], fusion(), region(masked))
    edit(denoiser, source, task, Guidance(TEXT[0], 3.0), lambda k, z: (out.append(z), count(k, z)))
    return out, given


def main(out, everything=False):
    torch.set_num_threads(1)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    ranks = Ranks(torch.device("cpu")) if world > 1 else Alone()
    found = {}
    for name in MODELS if everything else SOME:
        for i, index in enumerate(INDEXES):
            # queries and keys kept where there is no mask, computed again where there is one
            for masked in (False, True) if everything else [bool(i % 2)]:
                ranks.given = 0
                unet = model(name)
                found[f"{name} {index} {'masked' if masked else 'plain'}"] = steps(
                    Shard(unet, ranks) if world > 1 else unet, INDEXES[index], masked, not masked, ranks
                )
    # all stop where the last site that was asked for is
    unet = model("untuned")
    shard = Shard(unet, ranks) if world > 1 else unet
    seen = Recorder(FrameIndex((0, "mid")), keep=Keep(True, True), last=shard.sites()[4].name)
    try:
        shard(numbers(4, 1, FRAMES, 4, SIDE, SIDE), 300, TextContext(TEXT[:1]), seen)
    except StopForward:
        found["stopped"] = sorted(seen.qk)
    if ranks.leads:
        torch.save(found, Path(out))
    ranks.close()


if __name__ == "__main__":
    main(sys.argv[1], everything="all" in sys.argv)
