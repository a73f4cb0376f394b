"""A model that was loaded: its parts on their device, made fast for a size of clips, and there when they are used.

What is done with one is `fz.editor`'s and `fz.inverted`'s question.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fz.checkpoint import choose_frame_index, load, load_beside, place, settled
from fz.chunks import Chunks
from fz.clips.video import Video
from fz.graphs import Graphs, graphed
from fz.memory.budget import Footprint
from fz.memory.machine import pick_device
from fz.memory.offload import resident
from fz.model import fast_cpu, fast_vae
from fz.model.compiled import compile_step
from fz.model.control import ControlNet
from fz.model.deep import Reuse
from fz.model.some_frames import some_frames_at_once
from fz.model.unet import UNet
from fz.model.vae import VAE
from fz.progress import Journal
from fz.ranks import Alone
from fz.settings.config import Settings
from fz.settings.control import OF_CONTROL
from fz.shard import Shard
from fz.weights.load import Checkpoint

FastUNet = UNet | Chunks | Shard | Graphs
# settings that change nothing of a loaded model; whatever else there is may
NOT_OF_MODELS = (
    "clip", "source", "edits", "negative", "method", "strength", "steps", "solver", "guidance", "guidance_window",
    "attention", "reconstruction_prompt", "frame_index", "least_channels", "chunk", "store", "store_dtype", "cache",
    "seed", "out", "overwrite", "save_latents", "report", "dry_run", "notes", "shard", "fuse", "reuse", *OF_CONTROL,
)  # fmt: skip


@dataclasses.dataclass
class Models:
    """What was loaded last, for runs that follow each other in one process: models are read once.

    fitted: the UNet and the ControlNet made fast for a size of clips, and what was noted of them.
    """

    of: dict[str, Any] = dataclasses.field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    control: ControlNet | None = None
    vae_dtype: torch.dtype | None = None
    fitted: dict[tuple[Any, ...], tuple[FastUNet, ControlNet | None, list[str]]] = dataclasses.field(
        default_factory=dict
    )

    def get(self, settings: Settings, device: torch.device) -> tuple[Checkpoint, ControlNet | None]:
        """The settings' checkpoint on its device, and the ControlNet beside it, if there is one."""
        fields = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
        of = {name: value for name, value in fields.items() if name not in NOT_OF_MODELS}
        # a run whose VAE overflowed left it in float32: others begin as they would alone
        if self.checkpoint is None or self.of != of or self.vae_dtype != dtype_of(self.checkpoint):
            # the old one goes before the new one comes
            self.checkpoint = self.control = None
            self.fitted.clear()
            control = load_beside(settings)  # a wrong file is refused before the checkpoint is read
            checkpoint = load(settings, device)
            self.control = None if control is None else place(control, checkpoint, settings, device)
            self.checkpoint, self.of, self.vae_dtype = checkpoint, of, dtype_of(checkpoint)
        return self.checkpoint, self.control


def dtype_of(checkpoint: Checkpoint) -> torch.dtype:
    return checkpoint.vae.quant_conv.weight.dtype


class Loaded:
    """A checkpoint ready for any number of clips.

    checkpoint: its parts; control: the ControlNet beside it, or None. device: where it runs. multiple: what the sides
    of a clip are multiples of, in pixels. ranks: the processes that have the clip's frames.
    """

    def __init__(
        self,
        settings: Settings,
        journal: Journal | None = None,
        models: Models | None = None,
        ranks: Alone | None = None,
    ):
        """models: what was loaded before, taken where it is what these settings name. ranks: this process, unless
        given.
        """
        self.ranks = ranks or Alone()
        journal, models = journal or Journal(), models or Models()
        settings, _ = settled(settings)
        self.settings, self.device = settings, pick_device(settings.device)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        with journal.timed("load", self.device):
            self.checkpoint, self.control = models.get(settings, self.device)
        journal.note(self.checkpoint.report)
        self.frame_index = choose_frame_index(settings, self.checkpoint.tuned, journal.note)
        self.multiple = self.checkpoint.vae.config.stride * self.checkpoint.unet.config.stride
        self.fitted = models.fitted

    def check_chunks(self, settings: Settings, video: Video | None) -> None:
        """Raise FzError now for a clip that cannot be done so many frames at a time."""
        if settings.chunk is not None:
            chunks = Chunks(self.checkpoint.unet, settings.chunk)
            if video is not None:
                chunks.cut(self.frame_index, len(video.frames))

    def fit(
        self, latent_size: tuple[int, int], frames: int, run: Settings, journal: Journal
    ) -> tuple[FastUNet, ControlNet | None]:
        """The UNet made fast for clips of that size and that many frames here, all of them or as many at a time as the
        run says, and the ControlNet likewise. The last ones are kept: clips of one size share them.
        """
        settings, unet, chunk = self.settings, self.checkpoint.unet, run.chunk
        reuses = self.device.type == "cuda" and Reuse.of(run.reuse).every > 1
        wanted = latent_size, frames, chunk, reuses
        if wanted not in self.fitted:
            budget = None if settings.conv_memory is None else int(settings.conv_memory * 1e9)
            with journal.timed("prepare", self.device), self.resident(unet):
                unet, line = fast_cpu.prepare(
                    unet, latent_size, chunk or frames, settings.conv, budget, settings.weights
                )
            fast = Chunks(unet, chunk) if chunk else Shard(unet, self.ranks) if self.ranks.world > 1 else unet
            lines = [line, *([compile_step(fast, self.device)] if settings.compile else [])]
            control, lines_of_control = self.fit_control(latent_size, frames, chunk, journal)
            # a graph is replayed on inputs of its own, and a ControlNet brings others
            graph = settings.graph if control is None else "off"
            fast, said = graphed(fast, graph, self.device, settings.offload, reuses, journal.note)
            lines += said
            self.fitted.clear()
            self.fitted[wanted] = fast, control, lines + lines_of_control
        fast, control, lines = self.fitted[wanted]
        for line in lines:
            # what was asked for and is not done is told
            (journal.note if "left out" in line else journal.detail)(line)
        return fast, control

    def fit_control(
        self, latent_size: tuple[int, int], frames: int, chunk: int | None, journal: Journal
    ) -> tuple[ControlNet | None, list[str]]:
        """The ControlNet made fast likewise, and what to note of it."""
        settings, control = self.settings, self.control
        if control is None:
            return None, []
        # half of what the UNet's weights may take: it is half of a UNet
        budget = None if settings.conv_memory is None else int(settings.conv_memory * 1e9 / 2)
        with journal.timed("prepare", self.device), self.resident(control):
            control, line = fast_cpu.prepare(control, latent_size, chunk or frames, settings.conv, budget)
        if chunk and control.clip_norm:
            control = some_frames_at_once(control, chunk)
        if settings.compile:
            compile_step(control, self.device)
        return control, [f"ControlNet: {line}"]

    def footprint(self, settings: Settings, latent_size: tuple[int, int], frames: int) -> Footprint:
        """What memory editing so many frames takes depends on."""
        return Footprint.of(settings, self.checkpoint, self.control, latent_size, frames)

    def denoising(self) -> contextlib.AbstractContextManager:
        """What predicts noise on the run's device, for the time of a block if models are offloaded."""
        stack = contextlib.ExitStack()
        for module in (self.checkpoint.unet, self.control):
            if module is not None:
                stack.enter_context(self.resident(module))
        return stack

    @contextlib.contextmanager
    def coding(self, part: str, latent_size: tuple[int, int]) -> Iterator[VAE]:
        """The VAE on the run's device for the time of a block, its part, 'encoder' or 'decoder', made fast for latents
        of that (h, w).
        """
        with self.resident(self.checkpoint.vae):
            yield fast_vae.prepare(self.checkpoint.vae, part, latent_size, self.settings.conv)

    def embed(self, prompt: str) -> Tensor:
        """(77, Cx), on the device."""
        return self.checkpoint.text.encode([prompt])[0].to(self.device)

    def resident(self, module: torch.nn.Module) -> contextlib.AbstractContextManager:
        """The module on the run's device, for the time of a block if models are offloaded."""
        return resident(module, self.device, self.settings.offload)
