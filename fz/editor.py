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
from fz.attention import Keep, least_stride
from fz.clips.arrays import ClipLike, as_video
from fz.clips.canny import outlines
from fz.clips.control_video import CANNY
from fz.clips.video import Video
from fz.edit import Callback
from fz.errors import FzError
from fz.inverted import InvertedClip
from fz.loaded import Loaded
from fz.memory.budget import Prediction, prediction
from fz.memory.inversions import Inversion, digest
from fz.memory.uncached import Uncached
from fz.progress import journal_of
from fz.prompts.describe import Explained, explained
from fz.settings.checks import check_one_of, check_whole, plain
from fz.settings.config import ClipSettings, EditSettings, Settings
from fz.settings.spoken import spoken
from fz.stages import plan_edits


@spoken()
def load(
    checkpoint: str | Path | None = None, *, device: Any = "auto", dtype: Any = "auto", **settings: Any
) -> "Editor":
    """Load a Stable Diffusion v1 checkpoint: a diffusers folder, a single file, or a Hub name as
    "CompVis/stable-diffusion-v1-4", which is fetched unless it is cached; nothing: the bundled miniature.

    device: auto, cpu, cuda or mps. dtype: float32, float16, bfloat16, or auto: float16 on CUDA, else float32. settings:
    others of the model: vae, tokenizer, model_config, ema, lora (files, or pairs of a file and a strength), embedding
    (files, or pairs of a file and a word), clip_skip, control, frame_index, least_channels (--least-sc-channel),
    clip_norm (False is --per-frame-norm), offload, compile, graph, threads, conv, conv_memory, weights. Raises FzError
    for a checkpoint that is none and for settings that cannot be.
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


def named_by_pixels(what: str, frames: Tensor) -> str:
    """What is of no file, for run.json: other pixels have another name."""
    return f"{what} {digest(frames)[:8]}"


class Editor(Loaded):
    """A loaded model. One serves many clips and prompts; made by `fz.load`."""

    def __repr__(self) -> str:
        model = "the miniature" if self.settings.checkpoint is None else repr(self.settings.checkpoint)
        return f"<Editor of {model}: {self.settings.dtype} on {self.device}>"

    @spoken()
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
        frames and size or of one frame; None or "canny": the clip's own edges. settings: steps, solver, fuse,
        reuse, chunk, store, store_dtype, control_scale, control_window, control_inverts, canny.
        Raises FzError for what cannot be.
        """
        given, callback = named(settings, OF_INVERTING, "invert"), called(callback)
        journal = journal_of(progress)
        if given.get("store") == "disk":
            raise FzError("store: got 'disk', expected auto, memory or recompute; 'disk' is the command line's.")
        video = as_video(clip, self.multiple)
        about = video.clip or ClipSettings(
            named_by_pixels("a clip", video.frames), len(video.frames), size=tuple(video.frames.shape[-2:])
        )
        cache = path_of(cache, "cache")
        chosen = dataclasses.replace(self.settings, clip=about, source=source, cache=cache or "none", **given)
        shown = self.shown(control_video, video, chosen.canny)
        if not (control_video is None or isinstance(control_video, str)):
            chosen = dataclasses.replace(chosen, control_video=named_by_pixels("pictures", shown))
        for line in video.notes:
            journal.note(line)
        inversion = InvertedClip(self, chosen, video, journal, shown)
        # which edits will follow is not known yet: whatever any of them could need
        dtype = None if chosen.store_dtype == "same" else getattr(torch, chosen.store_dtype)
        open_folder = Inversion.open(cache, inversion.key(), journal.say) if cache else None
        with open_folder or contextlib.nullcontext(Uncached()) as cached:
            everything = Keep(True, True, dtype, least_stride=least_stride(chosen.fuses_full()))
            inversion.choose_store(cached, lambda k: everything)
            inversion.encode()
            inversion.invert(callback)
            inversion.finished()
        # edits of a Python program are not resumed
        inversion.cached = Uncached()
        return inversion

    @spoken()
    def explain(
        self, source: str, target: str | None = None, *, kind: str | None = None, steps: int | None = None, **edit: Any
    ) -> Explained:
        """What an edit will do to each word, before anything is inverted. edit: an edit's settings, as in
        `InvertedClip.edit`. Raises FzError for what cannot be, as prompts that are too long.
        """
        asked = edit_of(source, target, kind, named(edit, OF_AN_EDIT, "explain"))
        chosen = dataclasses.replace(
            self.settings, source=source, edits=(asked,), steps=self.settings.steps if steps is None else steps
        )
        (plan,) = plan_edits(chosen, self.checkpoint.text, lambda line: None)
        tokens = [self.checkpoint.text.tokens(prompt) for prompt in (source, asked.target)]
        return explained(asked, plan, *tokens, chosen.steps)

    @spoken()
    def predicted(self, frames: int, size: tuple[int, int], steps: int | None = None) -> Prediction:
        """How much memory will inverting and editing so many frames of (H, W) take? Counted, not measured. Raises
        FzError for what are no frames, no size and no steps.
        """
        frames, size, steps = plain(frames), plain(size), plain(steps)
        for name, value in (("frames", frames), ("steps", 1 if steps is None else steps)):
            check_whole(name, value, 1, 10**6)
        if not isinstance(size, (list, tuple)) or len(size) != 2:
            raise FzError(f"size: got {size!r}, expected height and width in pixels, as (512, 512).")
        for side in size:
            check_whole("size", side, self.multiple, 10**6)
        stride, settings = self.checkpoint.vae.config.stride, self.settings
        footprint = self.footprint(settings, tuple(side // stride for side in size), frames)
        return prediction(footprint, steps or settings.steps, self.device, settings.fuses_full())

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
