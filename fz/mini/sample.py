"""Pictures from sentences, by the miniature or any other checkpoint: `python -m fz.mini.sample 'a blue star on the
grass'`.

Plain DDIM sampling with guidance; nothing here knows of editing.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fz import mini
from fz.clips.media import contact_sheet, to_uint8, write_png
from fz.ddim import Schedule
from fz.edit import KeptNowhere, Source, edit
from fz.frames import FrameIndex
from fz.model.vae import decode_clip
from fz.results.folder import slug
from fz.weights.load import Checkpoint, load_checkpoint


@torch.no_grad()
def sample(
    checkpoint: Checkpoint,
    prompts: Sequence[str],
    seed: int = 0,
    steps: int = 50,
    guidance: float = mini.DEFAULTS["guidance"],
    size: int = mini.SIZE,
) -> Tensor:
    """One picture of each prompt, (n, 3, size, size) in [-1, 1]. Prompt i starts from the noise of seed + i, whatever
    the others are.
    """
    schedule = Schedule.of(checkpoint.scheduler, steps)
    negative = checkpoint.text.encode([""])[0]
    latent = size // checkpoint.vae.config.stride
    pictures = []
    for i, embedding in enumerate(checkpoint.text.encode(prompts)):
        noise = torch.randn(1, 4, latent, latent, generator=torch.Generator().manual_seed(seed + i))
        source = Source(embedding, {schedule.timesteps[0]: noise}, kept=KeptNowhere())
        z = edit(checkpoint.unet, source, embedding, negative, schedule, guidance, FrameIndex(()), None)
        pictures.append(decode_clip(checkpoint.vae, z))
    return torch.cat(pictures)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fz.mini.sample", description=__doc__.splitlines()[0])
    parser.add_argument("prompt", nargs="+", help="sentences, each in quotes")
    parser.add_argument("--count", type=int, default=4, help="pictures of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=mini.DEFAULTS["guidance"])
    parser.add_argument("--size", type=int, default=mini.SIZE, help="side of a picture, a multiple of 32")
    parser.add_argument("--checkpoint", default=None, help="another folder; default: the bundled miniature")
    parser.add_argument("--out", type=Path, default=None, help="png file; default: results/SENTENCE.png")
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.checkpoint or mini.checkpoint())
    prompts = [p for p in arguments.prompt for _ in range(arguments.count)]
    frames = to_uint8(sample(checkpoint, prompts, arguments.seed, arguments.steps, arguments.guidance, arguments.size))
    out = arguments.out or Path("results") / f"{slug(arguments.prompt[0], 60)}.png"
    rows = [frames[i : i + arguments.count] for i in range(0, len(frames), arguments.count)]
    write_png(out, contact_sheet(rows, arguments.prompt))
    print(out)


if __name__ == "__main__":
    main()
