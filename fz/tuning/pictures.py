"""What is a tuning's dataset: the clip's frames under their captions, and pictures of its kind, as they are read and as
they are learned.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fz.clips.video import Video, read_clip
from fz.memory.inversions import digest, model_digest
from fz.model.vae import encode_clip
from fz.tuning import lora
from fz.tuning.settings import TuneSettings
from fz.tuning.trainer import Lesson
from fz.weights.load import Checkpoint


@dataclass(frozen=True)
class TuningPictures:
    """The clip, a caption for each of its frames, or one for all; and pictures of its kind, each of its own size."""

    video: Video
    captions: tuple[str, ...]
    kinds: Video | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of both."""
        return tuple(dict.fromkeys((*self.video.notes, *(self.kinds.notes if self.kinds else ()))))


def read(settings: TuneSettings, checkpoint: Checkpoint) -> TuningPictures:
    """Raises FzError for what cannot be read, and for a caption that is too long for the checkpoint."""
    multiple = checkpoint.vae.config.stride * checkpoint.unet.config.stride
    # pictures, not a clip: each has its own size
    video = read_clip(settings.clip, multiple, alike=not settings.lora_rank)
    captions = [settings.prompt]
    if settings.lora_rank:
        captions = lora.captions(settings.clip, video.indices, settings.prompt)
    for sentence in dict.fromkeys(captions):
        checkpoint.text.tokens(sentence)
    kinds = read_clip(settings.every_class_image(), multiple, alike=False) if settings.class_images else None
    return TuningPictures(video, tuple(captions), kinds)


def digests(settings: TuneSettings, checkpoint: Checkpoint, pictures: TuningPictures) -> dict[str, str]:
    """Of what is learned, and of what makes latents and embeddings of it: another training has others. Pixels and
    tokens are hashed, not latents, whose last bits go by the machine.
    """
    sentences = (*pictures.captions, *([settings.class_prompt] if pictures.kinds else []))
    tokens = [checkpoint.text.tokens(sentence).ids for sentence in sentences]
    frames = [video.frames for video in (pictures.video, pictures.kinds) if video is not None]
    parts = [model_digest(model) for model in (checkpoint.vae, checkpoint.text.model)]
    return {"dataset": digest(tokens, *frames), "encoding": digest(*parts, checkpoint.scheduler)}


@torch.no_grad()
def lessons(
    settings: TuneSettings, checkpoint: Checkpoint, pictures: TuningPictures, device: torch.device
) -> tuple[Lesson, list[Lesson]]:
    """The clip's lesson, and one for each picture of its kind."""

    def embedded(prompt: str) -> Tensor:
        return checkpoint.text.encode([prompt])[0].to(device)

    def latents(frames: Tensor) -> Tensor:
        return encode_clip(checkpoint.vae, frames.to(device)).float()

    different = {sentence: embedded(sentence) for sentence in dict.fromkeys(pictures.captions)}
    embeddings = [different[sentence] for sentence in pictures.captions]
    lesson = Lesson(latents(pictures.video.frames), torch.stack(embeddings) if settings.lora_rank else embeddings[0])
    if pictures.kinds is None:
        return lesson, []
    kind = embedded(settings.class_prompt)
    if settings.lora_rank:
        kind = kind[None]
    return lesson, [Lesson(z[None], kind, settings.class_weight) for z in latents(pictures.kinds.frames)]
