"""A loaded model, a clip that it inverted, and the edits that start from there: what `import fz` gives to Python
programs, and what `fz.pipeline.run` is made of.

    editor = fz.load("sd-v1-4.ckpt")
    inversion = editor.invert(fz.read("jeep.mp4"), "a silver jeep on a road")
    result = inversion.edit("a red jeep on a road", kind="attribute")
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fz import mini
from fz.arguments import OF_AN_EDIT, OF_INVERTING, OF_LOADING, called, edit_of, named, path_of
from fz.attention import Keep
from fz.checkpoint import choose_frame_index, load_beside, place, settled
from fz.checkpoint import load as load_checkpoint
from fz.chunks import Chunks
from fz.clips.arrays import ClipLike, as_video
from fz.clips.canny import outlines
from fz.clips.control_video import CANNY
from fz.clips.video import Video
from fz.edit import Callback
from fz.errors import FzError
from fz.graphs import Graphs, graphed
from fz.inverted import InvertedClip
from fz.memory.budget import Footprint, Prediction, prediction
from fz.memory.inversions import Inversion
from fz.memory.machine import pick_device
from fz.memory.offload import resident
from fz.memory.uncached import Uncached
from fz.model import fast_cpu
from fz.model.compiled import compile_step
from fz.model.control import ControlNet
from fz.model.some_frames import some_frames_at_once
from fz.model.unet import UNet
from fz.progress import Journal, Progress, bars
from fz.prompts.describe import Explained, explained
from fz.ranks import Alone
from fz.settings.checks import check_one_of, check_whole
from fz.settings.config import ClipSettings, EditSettings, Settings
from fz.settings.control import OF_CONTROL
from fz.shard import Shard
from fz.stages import plan_edits
from fz.weights.load import Checkpoint


def load(
    checkpoint: str | Path | None = None, *, device: Any = "auto", dtype: Any = "auto", **settings: Any
) -> "Editor":
    """Load a Stable Diffusion v1 checkpoint: a diffusers folder, a single file, or a Hub name as
    "CompVis/stable-diffusion-v1-4", which is fetched unless it is cached; nothing: the bundled miniature.

    device: auto, cpu, cuda or mps. dtype: float32, float16, bfloat16, or auto: float16 on CUDA, else float32. settings:
    others of the model, by their names on the command line: vae, tokenizer, model_config, ema, lora (files, or pairs of
    a file and a strength), embedding (files, or pairs of a file and a word), clip_skip, control, clip_norm, offload,
    compile, graph, threads, conv, conv_memory. Raises FzError for a checkpoint that is none and for settings that
    cannot be.
    """
    usual = {name: value for name, value in mini.DEFAULTS.items() if "." not in name} if checkpoint is None else {}
    unknown = Settings(ClipSettings("a clip"), "a clip", (EditSettings("a clip"),), cache="none")
    return Editor(
        dataclasses.replace(
            unknown,
            checkpoint=path_of(checkpoint, "checkpoint"),
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            **usual | named(settings, OF_LOADING, "load"),
        )
    )


FastUNet = UNet | Chunks | Shard | Graphs
# settings that change nothing of a loaded model; whatever else there is may
NOT_OF_MODELS = (
    "clip", "source", "edits", "negative", "method", "strength", "steps", "solver", "guidance", "guidance_window",
    "attention", "reconstruction_prompt", "frame_index", "least_channels", "chunk", "store", "store_dtype", "cache",
    "seed", "out", "overwrite", "save_latents", "report", "dry_run", "notes", "shard", "reuse", *OF_CONTROL,
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
            checkpoint = load_checkpoint(settings, device)
            self.control = None if control is None else place(control, checkpoint, settings, device)
            self.checkpoint, self.of, self.vae_dtype = checkpoint, of, dtype_of(checkpoint)
        return self.checkpoint, self.control


def dtype_of(checkpoint: Checkpoint) -> torch.dtype:
    return checkpoint.vae.quant_conv.weight.dtype


class Editor:
    """A loaded model. One serves many clips and prompts; made by `fz.load`.

    checkpoint: its parts; control: the ControlNet beside it, or None. device: where it runs. multiple: what the sides
    of a clip are multiples of, in pixels.
    """

    def __init__(
        self,
        settings: Settings,
        journal: Journal | None = None,
        models: "Models | None" = None,
        ranks: Alone | None = None,
    ):
        """models: what an earlier editor has loaded, taken where it is what these settings name. ranks: the processes
        that have the clip's frames; one, unless given.
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

    def invert(
        self,
        clip: ClipLike,
        source: str,
        *,
        callback: Callback | None = None,
        progress: bool = False,
        cache: str | Path | None = None,
        control_video: ClipLike | str | None = None,
        **settings: Any,
    ) -> InvertedClip:
        """Invert a clip under a sentence that describes it: once, for any number of edits.

        clip: of `fz.read`, or (F, H, W, 3) uint8, or (F, 3, H, W) in [-1, 1], or a list of PIL images. callback(step,
        latents): after each step. progress: print lines and bars. cache: a folder in which the inversion is kept, and
        found again; None writes no file. control_video: what the ControlNet of `fz.load` is shown, a clip of the same
        frames and size or of one frame; None or "canny": the clip's own edges. settings: steps, solver, reuse,
        chunk, store, store_dtype, control_scale, control_window, control_inverts, canny.
        Raises FzError for what cannot be.
        """
        given, callback = named(settings, OF_INVERTING, "invert"), called(callback)
        if not isinstance(progress, bool):
            raise FzError(f"progress: got {progress!r}, expected True or False. A callback is callback=.")
        if given.get("store") == "disk":
            raise FzError("store: got 'disk', expected auto, memory or recompute; 'disk' is the command line's.")
        video = as_video(clip, self.multiple)
        about = video.clip or ClipSettings("a clip", len(video.frames), size=tuple(video.frames.shape[-2:]))
        cache = path_of(cache, "cache")
        chosen = dataclasses.replace(self.settings, clip=about, source=source, cache=cache or "none", **given)
        journal = Journal(bars() if progress else Progress())
        for line in video.notes:
            journal.note(line)
        inversion = InvertedClip(self, chosen, video, journal, self.shown(control_video, video, chosen.canny))
        # which edits will follow is not known yet: whatever any of them could need
        dtype = None if chosen.store_dtype == "same" else getattr(torch, chosen.store_dtype)
        open_folder = Inversion.open(cache, inversion.key(), journal.say) if cache else None
        with open_folder or contextlib.nullcontext(Uncached()) as cached:
            inversion.choose_store(cached, lambda k: Keep(True, True, dtype))
            inversion.encode()
            inversion.invert(callback)
            cached.finished()
        # edits of a Python program are not resumed
        inversion.cached = Uncached()
        return inversion

    def explain(
        self, source: str, target: str | None = None, *, kind: str | None = None, steps: int | None = None, **edit: Any
    ) -> Explained:
        """What an edit will do to each word, before anything is inverted. edit: an edit's settings, as in
        `InvertedClip.edit`. Raises FzError for what cannot be, as prompts that are too long.
        """
        asked = edit_of(source, target, kind, named(edit, OF_AN_EDIT, "explain"))
        chosen = dataclasses.replace(self.settings, source=source, edits=(asked,), steps=steps or self.settings.steps)
        (plan,) = plan_edits(chosen, self.checkpoint.text, lambda line: None)
        tokens = [self.checkpoint.text.tokens(prompt) for prompt in (source, asked.target)]
        return explained(asked, plan, *tokens, chosen.steps)

    def predicted(self, frames: int, size: tuple[int, int], steps: int | None = None) -> Prediction:
        """How much memory will inverting and editing so many frames of (H, W) take? Counted, not measured. Raises
        FzError for what are no frames, no size and no steps.
        """
        for name, value in (("frames", frames), ("steps", 1 if steps is None else steps)):
            check_whole(name, value, 1, 10**6)
        if not isinstance(size, (list, tuple)) or len(size) != 2:
            raise FzError(f"size: got {size!r}, expected height and width in pixels, as (512, 512).")
        for side in size:
            check_whole("size", side, self.multiple, 10**6)
        stride, settings = self.checkpoint.vae.config.stride, self.settings
        latent_size, branches = tuple(side // stride for side in size), 2 if settings.guidance > 1 else 1
        unet, vae = self.checkpoint.unet, self.checkpoint.vae
        footprint = Footprint(unet, latent_size, frames, settings.chunk, branches, settings.offload, vae)
        return prediction(footprint, steps or settings.steps, self.device)

    def check_chunks(self, settings: Settings, video: Video | None) -> None:
        """Raise FzError now for a clip that cannot be done so many frames at a time."""
        if settings.chunk is not None:
            chunks = Chunks(self.checkpoint.unet, settings.chunk)
            if video is not None:
                chunks.cut(self.frame_index, len(video.frames))

    def shown(self, pictures: ClipLike | str | None, video: Video, canny: tuple[float, float]) -> Tensor | None:
        """What the ControlNet is shown, (F, 3, H, W) in [-1, 1]; None without one. Raises FzError."""
        if self.control is None:
            if pictures is not None:
                raise FzError("control_video: got one without a ControlNet, expected fz.load(…, control=PATH).")
            return None
        if pictures is None or isinstance(pictures, str):
            check_one_of("control_video", pictures or CANNY, (CANNY,))
            return outlines(video.frames, *canny)
        frames, expected = as_video(pictures, self.multiple).frames, video.frames.shape
        if len(frames) not in (1, expected[0]) or frames.shape[1:] != expected[1:]:
            got = f"{len(frames)} of {frames.shape[-1]}x{frames.shape[-2]}"
            wanted = f"{expected[0]} of {expected[-1]}x{expected[-2]} (width x height), as the clip has"
            raise FzError(f"control_video: got frames {got}, expected {wanted}. Read it as the clip was read.")
        return frames.expand(expected).contiguous()

    def fit(
        self, latent_size: tuple[int, int], frames: int, chunk: int | None, journal: Journal
    ) -> tuple[FastUNet, ControlNet | None]:
        """The UNet made fast for clips of that size and that many frames here, `chunk` at a time or all of them, and
        the ControlNet likewise. The last ones are kept: clips of one size share them.
        """
        settings, unet, wanted = self.settings, self.checkpoint.unet, (latent_size, frames, chunk)
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
            fast, said = graphed(fast, graph, self.device, settings.offload, journal.note)
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

    def denoising(self) -> contextlib.AbstractContextManager:
        """What predicts noise on the run's device, for the time of a block if models are offloaded."""
        stack = contextlib.ExitStack()
        for module in (self.checkpoint.unet, self.control):
            if module is not None:
                stack.enter_context(self.resident(module))
        return stack

    def embed(self, prompt: str) -> Tensor:
        """(77, Cx), on the device."""
        return self.checkpoint.text.encode([prompt])[0].to(self.device)

    def resident(self, module: torch.nn.Module) -> contextlib.AbstractContextManager:
        """The module on the run's device, for the time of a block if models are offloaded."""
        return resident(module, self.device, self.settings.offload)
