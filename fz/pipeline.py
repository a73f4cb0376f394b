"""A whole run, from settings to a folder of results: load, read, plan, encode, invert, edit, decode, write.

`run(settings)` is what the command line calls, and what a Python program calls to get the same. It says and shows
nothing itself: a `Progress` is told what happens.
"""

import contextlib
import dataclasses
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import fz
from fz import kernels
from fz.baselines import METHODS, Method, Task
from fz.chunks import Chunks
from fz.clips.user_mask import read_mask
from fz.clips.video import Video, read_clip
from fz.ddim import CLEAN, Schedule
from fz.edit import Kept, Source, invert, keep_nothing, reconstruct
from fz.errors import FzError
from fz.frames import FrameIndex
from fz.fusion import Keep
from fz.masks import foreground, paste_background
from fz.memory.budget import choose_store, keep_for, kept_for, pictures_at_once, wanted
from fz.memory.inversions import Inversion, digest, leading, model_digest
from fz.memory.machine import peak_memory, pick_device, settle_dtype
from fz.memory.offload import resident
from fz.model import fast_cpu
from fz.model.compiled import compile_step
from fz.model.finite import NotFinite
from fz.model.unet import UNet
from fz.model.vae import VAE, decode_clip, encode_clip
from fz.prompts.plan import Plan, plan_edit
from fz.prompts.text import TextEncoder, Tokens
from fz.results.folder import ResultFolder
from fz.settings.config import ClipSettings, EditSettings, Settings
from fz.weights.load import Checkpoint, load_checkpoint


class Progress:
    """What a run tells while it goes. This one keeps silent; the command line has one that prints."""

    def say(self, line: str) -> None:
        """One line: what was loaded, what was decided for the user, where the results are."""

    @contextlib.contextmanager
    def stage(self, name: str, steps: int) -> Iterator[Callable[[], None]]:
        """A stage of so many steps; the function given is called after each."""
        yield lambda: None


@dataclass
class Edited:
    """One edit's result. frames: (F, 3, H, W) in [-1, 1]; latents[k]: after k + 1 steps; masks[k]: by size, of edit
    step k.
    """

    settings: EditSettings
    frames: Tensor
    latents: list[Tensor]
    masks: dict[int, dict[tuple[int, int], Tensor]]


@dataclass
class Result:
    """All of a run. Empty but for settings and notes after a dry run."""

    settings: Settings
    notes: list[str]
    out: str | None = None
    video: Video | None = None
    source: Source | None = None
    schedule: Schedule | None = None
    edits: list[Edited] = field(default_factory=list)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)


def run(settings: Settings, progress: Progress | None = None) -> Result:
    """Do what the settings say. Raises FzError for anything that the user can put right; what was finished by then is
    on disk.
    """
    progress = progress or Progress()
    device = pick_device(settings.device)
    dtype, of_dtype = settle_dtype(settings.dtype, device)
    settings = dataclasses.replace(settings, dtype=dtype)
    result = Result(settings, [])

    def note(line: str) -> None:
        result.notes.append(line)
        progress.say(line)

    for line in (*settings.notes, *([of_dtype] if of_dtype else [])):
        note(line)
    method = METHODS[settings.method]
    if method.note:
        note(f"method {settings.method}: {method.note}")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    folder = ResultFolder.claim(settings)

    with timed(result, "load", device):
        checkpoint = load(settings, device)
    note(checkpoint.report)
    frame_index = choose_frame_index(settings, checkpoint.tuned, note)
    schedule = Schedule.of(checkpoint.scheduler, settings.steps)
    source_tokens = checkpoint.text.tokens(settings.source)
    for prompt in (settings.negative, settings.reconstruction_prompt or ""):
        checkpoint.text.tokens(prompt)  # one that is too long is an error now, not after encoding
    target_tokens = [checkpoint.text.tokens(e.target) for e in settings.edits]
    plans = [
        plan_edit(e, source_tokens, target, schedule.steps, name=f"edit {i}") if method.fuses else Plan(None)
        for i, (e, target) in enumerate(zip(settings.edits, target_tokens, strict=True))
    ]
    for plan in plans:
        for line in plan.notes:
            note(line)
    multiple = checkpoint.vae.config.stride * checkpoint.unet.config.stride
    result.video = read_video(settings, multiple, note)
    plans = [with_mask(plan, e, settings.clip, result.video) for plan, e in zip(plans, settings.edits, strict=True)]
    unet = in_chunks(checkpoint.unet, settings.chunk, frame_index, result.video)
    if settings.dry_run:
        note("dry run: settings, words, checkpoint and clip are fine; nothing was computed")
        return result

    folder.start(settings)
    latent_size = tuple(side // checkpoint.vae.config.stride for side in result.video.frames.shape[-2:])
    budget = None if settings.conv_memory is None else int(settings.conv_memory * 1e9)
    with timed(result, "prepare", device), resident(checkpoint.unet, device, settings.offload):
        note(
            fast_cpu.prepare(
                checkpoint.unet, latent_size, settings.chunk or len(result.video.frames), settings.conv, budget
            )
        )
    if settings.compile:
        note(compile_step(checkpoint.unet, device))
    embeddings = embed(checkpoint.text, settings, device)
    job = Job(settings, checkpoint, unet, schedule, frame_index, embeddings, device, progress, result)
    keep = wanted([plan.fusion for plan in plans if plan.fusion and method.keeps], settings.store_dtype)
    with Inversion.open(settings.cache, inversion_key(job), progress.say) as inversion:
        # what is free differs from run to run: said, not noted
        mode = choose_store(
            settings.store,
            checkpoint.unet,
            settings.chunk,
            latent_size,
            len(result.video.frames),
            2 if settings.guidance > 1 else 1,
            schedule.steps,
            keep,
            inversion.operands,
            device,
            progress.say,
            settings.offload,
        )
        job.keep = keep_for(mode, keep)
        result.schedule, result.source = schedule, encoded(job, inversion)
        if method.inverts:
            invert_clip(job, mode, inversion)
        prepared = prepare(job, method) if method.prepare else None
        attention = result.source
        if method.keeps and settings.attention == "reconstruction":
            attention = reconstruct_clip(job, mode, inversion)
        folder.write_source(result.video, attention, source_tokens, schedule)
        if settings.save_latents:
            if method.inverts:
                folder.add_latents({f"inverted.{i:03d}": z for i, z in enumerate(inverted(result.source, schedule))})
            folder.add_latents({"z0": result.source.latents[CLEAN]})
        for i, plan in enumerate(plans):
            edited = edit_clip(job, i, plan, attention, prepared, inversion)
            result.edits.append(edited)
            folder.write_edit(i, result.video, edited)
            if settings.save_latents:
                folder.add_latents(edit_tensors(i, edited))
        inversion.finished()
    result.out = str(folder.path)
    if settings.report:
        folder.files.append("report.html")
    folder.finish(result, versions(job.device))
    if settings.report:
        # it reads the finished run's folder
        from fz.report import clip_for, write_report

        write_report(folder.path, clip_for(folder.path, None))
    progress.say(f"results in {folder.path}")
    return result


@dataclass
class Job:
    """What the stages of a run share."""

    settings: Settings
    checkpoint: Checkpoint
    unet: UNet | Chunks  # the checkpoint's, or it in chunks
    schedule: Schedule
    frame_index: FrameIndex
    embeddings: "Embeddings"
    device: torch.device
    progress: Progress
    result: Result
    keep: Callable[[int], Keep] = keep_nothing

    def note(self, line: str) -> None:
        self.result.notes.append(line)
        self.progress.say(line)

    def resident(self, module: nn.Module) -> contextlib.AbstractContextManager:
        """The module on the run's device, for the time of a block if models are offloaded."""
        return resident(module, self.device, self.settings.offload)

    def kept(self, mode: str, inversion: Inversion, of: str) -> Kept:
        """Where queries and keys of that pass are kept."""
        folder = inversion.operands / f"{of}-{self.settings.store_dtype}"
        return kept_for(mode, folder, self.schedule.timesteps, self.device, self.progress.say, self.settings.offload)


def encoded(job: Job, inversion: Inversion) -> Source:
    """The clip's z_0, from the inversion's folder if it is there."""
    z0 = inversion.z0()
    if z0 is not None:
        return Source(job.embeddings.source, latents={CLEAN: z0.to(job.device)})
    with timed(job.result, "encode", job.device):
        frames, vae = job.result.video.frames, job.checkpoint.vae
        with job.resident(vae):
            z0 = encode(vae, frames, job.note, pictures_at_once(vae, *frames.shape[-2:], job.device))
    source = Source(job.embeddings.source, latents={CLEAN: z0.to(job.device)})
    inversion.save(0, source, job.schedule)
    return source


def invert_clip(job: Job, mode: str, inversion: Inversion) -> None:
    """Invert the result's source: as much as the inversion's folder has of it, and the rest."""
    source, steps = job.result.source, job.schedule.steps
    source.kept = job.kept(mode, inversion, "inversion")
    restored = inversion.restore(source, job.schedule, job.device)
    if restored:
        job.progress.say(f"inversion: {restored} of {steps} steps are in {inversion.folder}")
    with timed(job.result, "invert", job.device), job.progress.stage("inverting", steps) as advance:

        def watch(done: int, z: Tensor) -> None:
            if done > restored:
                inversion.save(done, source, job.schedule)
            advance()

        with job.resident(job.checkpoint.unet):
            invert(job.unet, source, job.schedule, job.frame_index, job.keep, watch)


def reconstruct_clip(job: Job, mode: str, inversion: Inversion) -> Source:
    """A sampling pass of the reconstruction prompt, whose attention takes inversion's place."""
    kept = job.kept(mode, inversion, "reconstruction")
    steps = job.schedule.steps
    on_device = job.resident(job.checkpoint.unet)
    with (
        timed(job.result, "reconstruct", job.device),
        job.progress.stage("reconstructing", steps) as advance,
        on_device,
    ):
        return reconstruct(
            job.unet,
            job.result.source,
            job.embeddings.reconstruction,
            job.embeddings.negative,
            job.schedule,
            job.settings.guidance,
            job.frame_index,
            job.keep,
            kept,
            watch=lambda k, z: advance(),
        )


def prepare(job: Job, method: Method) -> Any:
    """What the method needs once for all edits."""
    z0, settings = job.result.source.latents[CLEAN], job.settings
    with (
        timed(job.result, "prepare method", job.device),
        job.progress.stage("preparing", len(z0) * job.schedule.steps) as advance,
    ):
        with job.resident(job.checkpoint.unet):
            return method.prepare(
                job.checkpoint.unet,
                z0,
                job.embeddings.source,
                job.embeddings.negative,
                job.schedule,
                settings.guidance,
                lambda k, z: advance(),
            )


def edit_clip(job: Job, i: int, plan: Plan, attention: Source, prepared: Any, inversion: Inversion) -> Edited:
    """Edit i, from its last step if it was interrupted and its method can, and its frames."""
    latents: list[Tensor] = []
    masks: dict[int, dict[tuple[int, int], Tensor]] = {}
    target, negative, settings = job.embeddings.targets[i], job.embeddings.negative, job.settings
    method = METHODS[settings.method]
    log = inversion.edit_log(
        digest(
            settings.method,
            target,
            negative,
            settings.guidance,
            settings.guidance_window,
            settings.attention,
            job.embeddings.reconstruction,
            settings.store_dtype,
            plan.fusion,
        )
    )
    done = leading(log, job.schedule.steps, job.device) if method.resumes else []
    if done:
        job.progress.say(f"edit {i}: {len(done)} of {job.schedule.steps} steps are in {log.folder}")
    name = f"editing {i + 1}/{len(settings.edits)}"
    with timed(job.result, f"edit.{i}", job.device), job.progress.stage(name, job.schedule.steps) as advance:

        def watch(k: int, z: Tensor) -> None:
            latents.append(z)
            if method.resumes and k > len(done):
                log.put(k, {"z": z})
            advance()

        task = Task(
            job.unet,
            attention,
            target,
            negative,
            job.schedule,
            settings.guidance,
            job.frame_index,
            plan.fusion,
            settings.strength,
            settings.seed,
            prepared,
            done,
            watch,
            masks.__setitem__,
            settings.guidance_window,
        )
        with job.resident(job.checkpoint.unet):
            z = method.edit(task)
        if not torch.isfinite(z).all():
            where = f"edit {i}: latents of method {settings.method} hold NaN or infinity"
            raise NotFinite(f"{where}; expected finite values. Try --dtype float32.")
    with timed(job.result, f"decode.{i}", job.device):
        vae = job.checkpoint.vae
        with job.resident(vae):
            frames = decode(vae, z, job.note, pictures_at_once(vae, *job.result.video.frames.shape[-2:], job.device))
    if (
        plan.fusion
        and method.keeps
        and (changes := foreground(plan.fusion, attention.maps, tuple(z.shape[-2:]))) is not None
    ):
        frames = paste_background(frames, job.result.video.frames, changes)
    return Edited(settings.edits[i], frames, latents, masks)


def inversion_key(job: Job) -> str:
    """A hash of all that the inverted latents depend on."""
    settings, unet = job.settings, job.checkpoint.unet
    return digest(
        job.result.video.frames,
        job.embeddings.source,
        model_digest(unet),
        model_digest(job.checkpoint.vae),
        [job.schedule.timesteps, [job.schedule.alpha_bar(t) for t in (CLEAN, *job.schedule.timesteps)]],
        dataclasses.asdict(job.frame_index),
        [settings.clip_norm, settings.chunk, settings.dtype, str(job.device), settings.compile],
        [kernels.choose(job.device), fast_cpu.signature(unet), torch.get_num_threads()],
        [fz.__version__, torch.__version__],
    )


def load(settings: Settings, device: torch.device) -> Checkpoint:
    """The checkpoint on its device, in its dtype, laid out for speed."""
    path = settings.checkpoint
    if path is None:
        from fz import mini

        path = mini.checkpoint()
    checkpoint = load_checkpoint(
        path, vae=settings.vae, tokenizer=settings.tokenizer, model_config=settings.model_config, ema=settings.ema
    )
    dtype = getattr(torch, settings.dtype)
    # offloaded models come to the device when they are used
    home = torch.device("cpu") if settings.offload else device
    checkpoint.unet.to(home, dtype, memory_format=torch.channels_last)
    checkpoint.unet.clip_norm = settings.clip_norm
    # fp16 VAEs overflow on some checkpoints: bfloat16 has float32's range
    checkpoint.vae.to(home, torch.bfloat16 if dtype == torch.float16 else dtype, memory_format=torch.channels_last)
    return checkpoint


def in_chunks(unet: UNet, size: int | None, frame_index: FrameIndex, video: Video | None) -> UNet | Chunks:
    """The UNet, taking so many frames of the clip at a time. Raises FzError now for what cannot be done so."""
    if size is None:
        return unet
    chunks = Chunks(unet, size)
    if video is not None:
        chunks.parts(frame_index, len(video.frames))
    return chunks


def choose_frame_index(settings: Settings, tuned: bool, note: Callable[[str], None]) -> FrameIndex:
    """The paper's [own, mid] for an untuned checkpoint, Tune-A-Video's [-1, first] for a tuned one, unless the settings
    say.
    """
    entries = settings.frame_index
    if entries is None:
        entries = (-1, "first") if tuned else (0, "mid")
        note(f"frames attend to {list(entries)}: the usual for {'a tuned' if tuned else 'an untuned'} checkpoint")
    return FrameIndex(entries, settings.least_channels)


def read_video(settings: Settings, multiple: int, note: Callable[[str], None]) -> Video | None:
    """The clip's frames. A dry run says what is wrong with a clip that is too short for its settings, and goes on."""
    try:
        video = read_clip(settings.clip, multiple)
    except FzError as error:
        if settings.dry_run and str(error).startswith(("frames:", "start:")):
            note(str(error))
            return None
        raise
    for line in video.notes:
        note(line)
    return video


def with_mask(plan: Plan, edit: EditSettings, clip: ClipSettings, video: Video | None) -> Plan:
    """The plan with the user's mask, if the edit has one."""
    if edit.mask is None or plan.fusion is None or video is None:
        return plan
    return dataclasses.replace(
        plan, fusion=dataclasses.replace(plan.fusion, user_mask=read_mask(edit.mask, clip, video))
    )


@dataclass(frozen=True)
class Embeddings:
    """(77, Cx) each."""

    source: Tensor
    negative: Tensor
    reconstruction: Tensor
    targets: list[Tensor]


def embed(text: TextEncoder, settings: Settings, device: torch.device) -> Embeddings:
    prompts = [
        settings.source,
        settings.negative,
        settings.reconstruction_prompt or settings.source,
        *(e.target for e in settings.edits),
    ]
    source, negative, reconstruction, *targets = text.encode(prompts).to(device)
    return Embeddings(source, negative, reconstruction, targets)


def encode(vae: VAE, frames: Tensor, note: Callable[[str], None], at_once: int = 1) -> Tensor:
    """z0, scaled; in float32 if a half-precision VAE overflows."""
    return finite(vae, "encoding the clip", note, lambda: encode_clip(vae, frames, at_once))


def decode(vae: VAE, z: Tensor, note: Callable[[str], None], at_once: int = 1) -> Tensor:
    return finite(vae, "decoding", note, lambda: decode_clip(vae, z, at_once))


@torch.no_grad()
def finite(vae: VAE, what: str, note: Callable[[str], None], compute: Callable[[], Tensor]) -> Tensor:
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


def inverted(source: Source, schedule: Schedule) -> list[Tensor]:
    """inverted.0 (= z0) … inverted.T."""
    return [source.latents[t] for t in (CLEAN, *reversed(schedule.timesteps))]


def edit_tensors(i: int, edited: Edited) -> dict[str, Tensor]:
    """`edited.i.k` after k steps, and `mask.i.HxW.SSS` of step SSS."""
    tensors = {f"edited.{i}.{k:03d}": z for k, z in enumerate(edited.latents, start=1)}
    for k, masks in edited.masks.items():
        tensors |= {f"mask.{i}.{h}x{w}.{k:03d}": m.to(torch.uint8) for (h, w), m in masks.items()}
    return tensors


@contextlib.contextmanager
def timed(result: Result, stage: str, device: torch.device) -> Iterator[None]:
    """Seconds and peak memory of a stage, into the result."""
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    result.stages[stage] = {"seconds": round(time.perf_counter() - start, 3), "peak_memory_bytes": peak_memory(device)}


def versions(device: torch.device) -> dict[str, str]:
    import numpy
    import transformers

    return {
        "fz": fz.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "kernels": kernels.choose(device),
        "threads": str(torch.get_num_threads()),
    }


__all__ = ["Edited", "Progress", "Result", "Tokens", "run"]
