"""The stages of a run that are more than one call: what is planned, read, embedded, encoded and decoded, and what is
checked on the way.

Each gets the few values that it needs. What a run is, from top to bottom, is `fz.pipeline.run`.
"""

import dataclasses
import platform
from collections.abc import Callable

import torch
from torch import Tensor

import fz
from fz import kernels, mini
from fz.baselines import METHODS
from fz.clips.control_video import check_control_video, read_control_video
from fz.clips.user_mask import read_mask
from fz.clips.video import ClipPlan, Video, plan_clip
from fz.denoiser import Denoiser
from fz.edit import Edit, masks_of
from fz.errors import FzError
from fz.loaded import Loaded
from fz.memory.budget import check_vae, pictures_at_once
from fz.model.finite import NotFinite
from fz.model.vae import VAE, decode_clip, encode_clip
from fz.prompts.emphasis import notes_on
from fz.prompts.plan import Plan, plan_edit
from fz.prompts.text import TextEncoder
from fz.results.result import Edited
from fz.settings.config import Settings
from fz.settings.effect import fused_sentence
from fz.source import Source

Note = Callable[[str], None]


def plan_edits(settings: Settings, text: TextEncoder, note: Note) -> list[Plan]:
    """What each edit fuses; what was decided for the user is noted. Raises FzError for a prompt that is too long."""
    source = text.tokens(fused_sentence(settings))
    for prompt in (settings.source, settings.negative, settings.reconstruction_prompt or ""):
        # one that is too long is an error now, not after encoding
        text.tokens(prompt)
    for line in (*emphasis(settings), *mini.strange_words(settings, text.learned)):
        if line not in settings.notes:  # a command says some before it loads a model
            note(line)
    plans = []
    for i, edit in enumerate(settings.edits):
        target = text.tokens(edit.target)
        if METHODS[settings.method].fuses:
            plans.append(plan_edit(edit, source, target, settings.steps, f"edit {i}", settings.fuses_full(edit)))
        else:
            plans.append(Plan(None))
    for line in (line for plan in plans for line in plan.notes):
        note(line)
    return plans


def emphasis(settings: Settings) -> list[str]:
    """What is said of A1111's emphasis in the prompts."""
    lines = [line for name in ("source", "negative") for line in notes_on(getattr(settings, name), name, False)]
    fuses = METHODS[settings.method].fuses
    for i, edit in enumerate(settings.edits):
        lines += notes_on(edit.target, f"target {i}", fuses and edit.align != "plain")
    return lines


def idle_embeddings(settings: Settings, text: TextEncoder) -> list[str]:
    """A line for each embedding whose word no prompt has."""
    targets = (edit.target for edit in settings.edits)
    prompts = (settings.source, *targets, settings.negative, settings.reconstruction_prompt or "")
    return [
        f"embedding: no prompt has its word {' or '.join(map(repr, words))}, so that it changes nothing. Write it in a "
        "prompt, or leave the embedding out."
        for words in text.unused(prompts)
    ]


def plan_video(settings: Settings, multiple: int, note: Note) -> ClipPlan | None:
    """The clip, its choice of frames and its size checked, no picture decoded. A dry run says what is wrong with a clip
    that is too short for its settings, and goes on.
    """
    try:
        return plan_clip(settings.clip, multiple)
    except FzError as error:
        if settings.dry_run and str(error).startswith(("frames:", "start:")):
            note(str(error))
            return None
        raise


def check_clip(settings: Settings) -> None:
    """Raises FzError for a clip, or a video of control, that cannot be read, before models are."""
    if plan_video(settings, 1, lambda line: None) is not None:
        check_control_video(settings.control_video, settings.clip)


def read_video(settings: Settings, loaded: Loaded, note: Note) -> Video | None:
    """The clip's frames, if the VAE can take them; None for what only a dry run allows."""
    plan = plan_video(settings, loaded.multiple, note)
    if plan is None:
        return None
    check_vae(loaded.checkpoint.vae, *plan.size, loaded.device)
    video = plan.read()
    for line in video.notes:
        note(line)
    return video


def read_control(settings: Settings, video: Video | None) -> Tensor | None:
    """What the ControlNet is shown, (F, 3, H, W) in [-1, 1]; None without one."""
    if settings.control is None or video is None:
        return None
    return read_control_video(settings.control_video, settings.canny, settings.clip, video)


def with_masks(plans: list[Plan], settings: Settings, video: Video | None) -> list[Plan]:
    """The plans with the user's masks, where edits have one."""
    out = []
    for plan, edit in zip(plans, settings.edits, strict=True):
        masked = plan.fusion is not None or plan.region.background is not None
        if edit.mask is not None and masked and video is not None:
            mask = read_mask(edit.mask, settings.clip, video)
            plan = dataclasses.replace(plan, region=dataclasses.replace(plan.region, user_mask=mask))
        out.append(plan)
    return out


def encode(vae: VAE, frames: Tensor, device: torch.device, note: Note) -> Tensor:
    """z0 (F, 4, h, w), scaled; in float32 if a half-precision VAE overflows."""
    at_once = pictures_at_once(vae, *frames.shape[-2:], device)
    return finite(vae, "encoding the clip", note, lambda: encode_clip(vae, frames, at_once))


def decode(vae: VAE, z: Tensor, device: torch.device, note: Note) -> Tensor:
    """Frames (F, 3, H, W), not clamped; in float32 if a half-precision VAE overflows."""
    at_once = pictures_at_once(vae, *(side * vae.config.stride for side in z.shape[-2:]), device)
    return finite(vae, "decoding", note, lambda: decode_clip(vae, z, at_once))


@torch.no_grad()
def finite(vae: VAE, what: str, note: Note, compute: Callable[[], Tensor]) -> Tensor:
    out = compute()
    if not torch.isfinite(out).all() and vae.quant_conv.weight.dtype != torch.float32:
        note(f"{what}: NaN or infinity in {vae.quant_conv.weight.dtype}; the VAE goes on in float32")
        vae.float()
        out = compute()
    bad = ~torch.isfinite(out.flatten(1)).all(1)
    if bad.any():
        where = f"{what}: NaN or infinity in frame {int(bad.nonzero()[0])} from the VAE"
        raise NotFinite(f"{where}; expected finite values. Pass another --vae.")
    return out


def edit_tensors(i: int, edited: Edited) -> dict[str, Tensor]:
    """`edited.i.k` after k steps, and `mask.i.HxW.SSS` of step SSS."""
    tensors = {f"edited.{i}.{k:03d}": z for k, z in enumerate(edited.latents, start=1)}
    for k, masks in edited.masks.items():
        tensors |= {f"mask.{i}.{h}x{w}.{k:03d}": m.to(torch.uint8) for (h, w), m in masks.items()}
    return tensors


def masks_by_size(model: Denoiser, source: Source, task: Edit) -> dict[int, dict[tuple[int, int], Tensor]]:
    """The masks of an edit's self-attention: edit step -> (h, w) -> (F, h, w) bool."""
    masks = {k: masks_of(model, source, task, k) for k in range(model.schedule.steps)}
    return {k: {tuple(m.shape[-2:]): m for m in of.values()} for k, of in masks.items() if of}


def versions(device: torch.device, processes: int = 1) -> dict[str, str]:
    """What a run's results may depend on, beside its settings. processes: that share the clip."""
    import numpy
    import tokenizers

    return {
        "fz": fz.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tokenizers": tokenizers.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "kernels": kernels.choose(device),
        "threads": str(torch.get_num_threads()),
        **({"processes": str(processes)} if processes > 1 else {}),
    }
