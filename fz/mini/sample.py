"""Pictures from sentences, by the miniature or any other checkpoint: `python -m fz.mini.sample 'a blue star on the
grass'`.

Plain DDIM sampling with guidance; nothing here knows of editing.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fz import mini
from fz.clips.media import contact_sheet, to_uint8, write_png
from fz.ddim import Schedule
from fz.denoiser import Denoiser
from fz.edit import Edit, edit
from fz.frames import FrameIndex
from fz.guidance import Guidance
from fz.model.vae import decode_clip
from fz.results.folder import slug
from fz.shell import Parser, answered, leave
from fz.source import Source
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
    schedule = Schedule.from_config(checkpoint.scheduler, steps)
    model = Denoiser(checkpoint.unet, schedule, FrameIndex(()))
    guided = Guidance(checkpoint.text.encode([""])[0], guidance)
    latent = size // checkpoint.vae.config.stride
    pictures = []
    for i, embedding in enumerate(checkpoint.text.encode(prompts)):
        noise = torch.randn(1, 4, latent, latent, generator=torch.Generator().manual_seed(seed + i))
        source = Source(embedding, {schedule.timesteps[0]: noise})
        z = edit(model, source, Edit(embedding), guided)
        pictures.append(decode_clip(checkpoint.vae, z))
    return torch.cat(pictures)


def answer(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m fz.mini.sample", description=__doc__.splitlines()[0])
    parser.add_argument("prompt", nargs="+", help="sentences, each in quotes")
    parser.add_argument("--count", type=int, default=4, help="pictures of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=mini.DEFAULTS["guidance"])
    parser.add_argument("--size", type=int, default=mini.SIZE, help="side of a picture, a multiple of 32")
    parser.add_argument("--checkpoint", default=None, help="another folder; default: the bundled miniature")
    parser.add_argument("--out", type=Path, default=None, help="png file; default: results/SENTENCE.png")
    arguments = parser.parse_args(argv)
    checkpoint = load_checkpoint(arguments.checkpoint or mini.checkpoint())
    prompts = [p for p in arguments.prompt for _ in range(arguments.count)]
    frames = to_uint8(sample(checkpoint, prompts, arguments.seed, arguments.steps, arguments.guidance, arguments.size))
    out = arguments.out or Path("results") / f"{slug(arguments.prompt[0], 60)}.png"
    rows = [frames[i : i + arguments.count] for i in range(0, len(frames), arguments.count)]
    write_png(out, contact_sheet(rows, arguments.prompt))
    print(out)


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv))


if __name__ == "__main__":
    leave(main())
