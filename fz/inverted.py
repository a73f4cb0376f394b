"""An inverted clip: what any number of edits start from, and the stages from frames to frames.

`edit` and `attention` are for Python programs; `fz.pipeline.run` calls the stages themselves, so that both do the same.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fz.agreement import given_is_told, same_inversion, same_steps
from fz.arguments import OF_AN_EDIT, OF_EDITING, called, edit_of, listed_words, named, one_phrase
from fz.attention import MAP_STRIDE, Keep
from fz.baselines import METHODS, EditFunction, editor_of, reconstructs
from fz.clips.media import to_uint8
from fz.clips.notebook import animation
from fz.clips.video import Video
from fz.control import controlled, parts_of
from fz.ddim import CLEAN, Schedule
from fz.denoiser import Denoiser
from fz.edit import Callback, Edit, invert, reconstruct
from fz.forecast import Ahead
from fz.guidance import Guidance
from fz.keys import key_of_edit, key_of_inversion, key_of_source
from fz.loaded import Loaded
from fz.masks import EditRegion, changed_pixels, edit_mask, paste_background, with_edge
from fz.memory.budget import Footprint, check_unforeseen, choose_store, keep_for, store_for
from fz.memory.inversions import Inversion, digest, leading
from fz.memory.uncached import Uncached
from fz.model.deep import Reuse
from fz.model.finite import NotFinite
from fz.progress import Journal, journal_of
from fz.prompts import align
from fz.prompts.align import word_positions
from fz.prompts.plan import Plan
from fz.results.result import Edited, Result
from fz.saved import save_run
from fz.settings.checks import check_number, plain
from fz.settings.config import Settings
from fz.settings.spoken import spoken
from fz.source import Source, Store, keep_nothing
from fz.stages import decode, encode, masks_by_size, plan_edits, with_masks


class InvertedClip:
    """A clip under its own sentence, on its way through a loaded model; made by `Editor.invert`.

    settings: of the run. video: its frames. hint: shown to the ControlNet, (F, 3, H, W) in [-1, 1]. source: what
    inversion left, by timestep (`fz.source.Source`). keep: of each edit step, what all edits need of the source.
    holder: that pass, or a reconstruction's, whose queries and keys are kept.
    """

    def __init__(self, editor: Loaded, settings: Settings, video: Video, journal: Journal, hint: Tensor | None = None):
        self.editor, self.settings, self.video, self.journal = editor, settings, video, journal
        checkpoint = editor.checkpoint
        schedule = Schedule.from_config(checkpoint.scheduler, settings.steps)
        self.tokens = checkpoint.text.tokens(settings.source)
        editor.check_chunks(settings, video)
        self.latent_size = tuple(side // checkpoint.vae.config.stride for side in video.frames.shape[-2:])
        self.ranks = editor.ranks
        self.own = self.ranks.own(len(video.frames))
        unet, net = editor.fit(self.latent_size, self.own.stop - self.own.start, settings, journal)
        reuse = Reuse.of(settings.reuse)
        model = Denoiser(unet, schedule, editor.frame_index, reuse, solver=settings.solver)
        self.model, self.inverting = controlled(model, editor, net, hint, settings)
        self.source = self.holder = Source(editor.embed(settings.source))
        self.cached: Inversion | Uncached = Uncached()
        self.keep: Callable[[int], Keep] = keep_nothing
        self.mode = "recompute"
        self.once: dict[str, Any] = {}  # what several edits need, by what it depends on

    @property
    def schedule(self) -> Schedule:
        return self.model.schedule

    def __repr__(self) -> str:
        (frames, _, height, width), steps = self.video.frames.shape, self.settings.steps
        return f"<InvertedClip {self.settings.source!r}: {frames} frames of {height}x{width}, {steps} steps>"

    # ---- for Python programs -------------------------------------------------------------------------------

    @spoken()
    def edit(
        self,
        target: str | None = None,
        *,
        kind: str | None = None,
        callback: Callback | None = None,
        progress: bool = False,
        **settings: Any,
    ) -> Edited:
        """Edit the clip to a sentence; as often as one likes.

        kind: 'style', 'attribute' or 'shape', the paper's settings for it. callback(step, latents): after each step.
        settings: an edit's, as `fz.run --help` explains them, pairs also as dicts, as reweight={"red": 2},
        self_replace=0.5, threshold=0.3, blend_words=("jeep", "car"), guidance=7.5, method="ddim". Raises FzError for
        what cannot be.
        """
        given = named(settings, (*OF_AN_EDIT, *OF_EDITING), "edit")
        of_run = {name: given.pop(name) for name in OF_EDITING if name in given}
        edit = edit_of(self.settings.source, target, kind, given)
        chosen = dataclasses.replace(self.settings, edits=(edit,), **of_run)
        journal = journal_of(progress)
        check_unforeseen(self.footprint(chosen), self.footprint(self.settings), self.editor.device)
        plans = plan_edits(chosen, self.editor.checkpoint.text, journal.note)
        (plan,) = with_masks(plans, chosen, self.video)
        return self.apply(chosen, plan, journal, callback=called(callback))

    @spoken()
    def attention(self, word: str) -> Tensor:
        """Where a word of the source is, or several in a row: (F, h, w) float32, its cross-attention averaged over
        heads, layers and steps. Raises FzError for one that is not in the source.
        """
        positions = word_positions(self.tokens, one_phrase(word, "attention"), "attention")
        size = tuple(side // MAP_STRIDE for side in self.latent_size)
        return self.averaged_maps()[..., positions].sum(-1).unflatten(1, size)

    @spoken()
    def mask(self, words: str | Sequence[str], threshold: float = 0.3, *, edge: bool = False) -> Tensor:
        """Where an edit of these words of the source may change the clip: (F, H, W) bool at the clip's size, the steady
        mask of `keep_background` (eq. 6 of the mean of the steps' maps). edge: with its edge, outside of which such an
        edit leaves the clip's pixels. Raises FzError for a word that the source has not and for no threshold.
        """
        threshold = plain(threshold)
        check_number("threshold", threshold, 0, 1, "0 is all of the clip, 1 nothing.")
        positions = [p for word in listed_words(words) for p in word_positions(self.tokens, word, "mask")]
        region, pixels = EditRegion(align.weights(positions), threshold), tuple(self.video.frames.shape[-2:])
        mask = edit_mask(region, self.averaged_maps(), self.latent_size, self.latent_size if edge else pixels)
        return with_edge(mask, pixels)[:, 0] > 0 if edge else mask

    @spoken()
    def save(self, out: str | Path, *edits: Edited, overwrite: bool = False) -> Path:
        """Write the folder that `fz run` writes, of these edits: clips, frames, masks, attention, run.json. Returns its
        path. overwrite: another run's results there are replaced, other files stay. Raises FzError for a folder that
        holds something else, for edits of another inversion, and for edits that cannot be of one run.
        """
        about = Result(self.settings, self.journal.notes, None, self.video, self.source, self.schedule, list(edits))
        about = dataclasses.replace(about, stages=self.journal.stages)
        return save_run(about, self.tokens, self.editor.device, out, overwrite)

    def averaged_maps(self) -> Tensor:
        """The source's cross-attention averaged over heads, layers and steps, (F, N, 77) on the CPU."""
        return torch.stack([self.source.maps[t] for t in self.schedule.timesteps]).mean(0).cpu()

    def _repr_html_(self) -> str:
        return animation(to_uint8(self.video.frames), self.video.fps, self.settings.source)

    # ---- stages --------------------------------------------------------------------------------------------

    def key(self) -> str:
        """A hash of all that the inverted latents depend on."""
        return key_of_inversion(self.editor, self.settings, self.video.frames, self.source.embedding, self.inverting)

    def footprint(self, settings: Settings) -> Footprint:
        # processes on a CPU share its memory
        frames = len(self.video.frames) if self.editor.device.type == "cpu" else self.own.stop - self.own.start
        return self.editor.footprint(settings, self.latent_size, frames)

    def choose_store(self, cached: Inversion | Uncached, keep: Callable[[int], Keep]) -> None:
        """Decide where the source's queries and keys stay, of which `keep` says those that edits need. Raises FzError
        where the run cannot fit.
        """
        settings, editor, reuse, steps = self.settings, self.editor, self.model.reuse, self.schedule.steps
        footprint = self.footprint(settings)
        # shallow steps fuse nothing
        per_step = [keep(k) if reuse.is_full(k, steps) else Keep() for k in range(steps)]
        # what is free differs from run to run: said, not noted
        self.mode = choose_store(settings.store, footprint, per_step, cached.operands, editor.device, self.journal.say)
        # passes are made together: what is computed again has to be so in all
        self.mode = self.ranks.agree(self.mode)
        self.cached, self.keep = cached, per_step.__getitem__

    def ahead(self, left: int) -> Ahead:
        """What is said of the time that all takes, once it is known what is kept; so many steps of inversion are left,
        and those that were done have left no queries and keys but in files.
        """
        source, steps = self.source, list(enumerate(self.schedule.timesteps))
        again = [k for k, _ in steps if self.keep(k).anything] if self.mode == "recompute" else ()
        keep = self.keep_of_source()
        once = [k for k, t in steps if k >= left and keep(k).anything and not source.store.has(t)]
        size = tuple(self.video.frames.shape)
        return Ahead(self.editor, self.settings, self.model, source.embedding, size, again, once)

    def keep_of_source(self) -> Callable[[int], Keep]:
        """What inversion keeps of each step: nothing where a reconstruction's is kept in its place."""
        return keep_for("recompute" if reconstructs(self.settings) else self.mode, self.keep)

    def encode(self) -> None:
        """The clip's z_0, from the inversion's folder if it is there."""
        z0, device = self.ranks.agree(self.cached.z0()), self.editor.device
        found = z0 is not None
        if not found:
            with self.journal.timed("encode", device), self.editor.coding("encoder", self.latent_size) as vae:
                z0 = encode(vae, self.video.frames[self.own], device, self.journal.note)
            z0 = self.ranks.gather(z0, len(self.video.frames))
        self.source.latents[CLEAN] = z0.to(device)
        if not found:
            self.cached.save(0, self.source, self.schedule)

    def invert(self, callback: Callback | None = None) -> None:
        """Invert z_0: as much as the inversion's folder has of it, and the rest."""
        source, schedule, editor = self.source, self.schedule, self.editor
        source.store, source.keep = self.store("inversion"), self.keep_of_source()
        restored = same_inversion(self.ranks, source, schedule, self.cached.restore(source, schedule))
        if restored:
            self.journal.say(f"inversion: {restored} of {schedule.steps} steps are in {self.cached.folder}")
        ahead = self.ahead(schedule.steps - restored)
        if told := self.journal.heard and ahead.told(schedule.steps - restored):
            self.journal.say(told)
        with self.journal.steps("invert", "inverting", schedule.steps, editor.device) as advance:
            start = time.monotonic()

            def after_step(done: int, z: Tensor) -> None:
                # a full step may be done again, for what shallow ones take from it
                if done <= restored:
                    return
                if done == restored + 1 and not told and self.settings.method == "fatezero":
                    self.journal.say(ahead.by_first_step(time.monotonic() - start, schedule.steps - done))
                self.cached.save(done, source, schedule)
                advance()
                if callback:
                    callback(done, z)

            for _ in range(restored):
                advance()
            left = schedule.steps - restored
            with given_is_told(self.ranks, left, "inversion", self.journal.say), editor.denoising():
                invert(self.inverting, source, after_step)

    def attending(self, settings: Settings, journal: Journal) -> Source:
        """Whose attention is fused: inversion's, or that of a sampling pass of the reconstruction prompt."""
        if not reconstructs(settings):
            return self.holding(self.source, "inversion")
        prompt, editor = settings.reconstruction_prompt or settings.source, self.editor
        key = digest("reconstruction", prompt, settings.negative, settings.guidance, *parts_of(self.model.control))
        if key not in self.once:
            keep = keep_for(self.mode, self.keep)
            # another guidance has other queries and keys
            source = self.holding(Source(editor.embed(prompt), self.source.latents, keep=keep), f"reconstruction-{key}")
            # the whole clip is guided, whatever the window of the edits
            guidance = Guidance(editor.embed(settings.negative), settings.guidance)
            with (
                journal.steps("reconstruct", "reconstructing", self.schedule.steps, editor.device) as advance,
                editor.denoising(),
            ):
                self.once[key] = reconstruct(self.model, source, guidance, lambda k, z: advance())
        return self.holding(self.once[key], f"reconstruction-{key}")

    def holding(self, source: Source, of: str) -> Source:
        """That source, whose queries and keys take the place of those that are kept; memory was counted for one."""
        if source is not self.holder:
            self.close()
            self.holder.store, source.store, self.holder = Store(), self.store(of), source
        return source

    def close(self) -> None:
        """Nothing more is written or read of queries and keys in files; those in memory stay."""
        self.holder.store.close()

    def finished(self) -> None:
        """Remove what only a run in progress needs."""
        self.close()
        self.cached.finished()

    def method_of(self, settings: Settings, guidance: Guidance, journal: Journal) -> EditFunction:
        """The method's editing function, prepared once for all edits where it has to be."""
        method, editor = METHODS[settings.method], self.editor
        if method.prepare is None:
            return editor_of(settings.method, settings.strength, settings.seed)
        key = digest(settings.method, settings.negative, settings.guidance)
        if key not in self.once:
            steps = len(self.source.latents[CLEAN]) * self.schedule.steps
            with (
                journal.steps("prepare method", "preparing", steps, editor.device) as advance,
                editor.denoising(),
            ):
                self.once[key] = method.prepare(self.model, self.source, guidance, lambda k, z: advance())
        return self.once[key]

    def apply(
        self,
        settings: Settings,
        plan: Plan,
        journal: Journal,
        number: int = 0,
        of: int = 1,
        callback: Callback | None = None,
    ) -> Edited:
        """One planned edit of `of` such, from its last step if it was interrupted and its method can, and its frames.
        settings: the run's, with this edit alone.
        """
        editor, method, steps = self.editor, METHODS[settings.method], self.schedule.steps
        attending = self.attending(settings, journal)
        guidance = Guidance(editor.embed(settings.negative), settings.guidance, settings.guidance_window)
        edit = self.method_of(settings, guidance, journal)
        target = editor.embed(settings.edits[0].target)
        log = self.cached.edit_log(self.edit_key(settings, plan, target, guidance.negative))
        done = same_steps(self.ranks, leading(log, steps) if method.resumes else [])
        # shallow steps want the deep features of their full step, which is done again
        done = done[: self.model.full_step(len(done))] if len(done) < steps else done
        if done:
            journal.say(f"edit {number}: {len(done)} of {steps} steps are in {log.folder}")
        task = Edit(target, plan.fusion, plan.region).after(done, self.schedule)
        latents = list(task.done)
        with journal.steps(f"edit.{number}", f"editing {number + 1}/{of}", steps, editor.device) as advance:

            def after_step(k: int, z: Tensor) -> None:
                latents.append(z)
                if method.resumes:
                    log.put(k, task.left(k, z, self.schedule))
                advance()
                if callback:
                    callback(k, z)

            for _ in done:
                advance()
            with given_is_told(self.ranks, steps - len(done), "editing", journal.say), editor.denoising():
                z = edit(self.model, attending, task, guidance, after_step)
            if not torch.isfinite(z).all():
                where = f"edit {number}: latents of method {settings.method} hold NaN or infinity"
                raise NotFinite(f"{where}; expected finite values. Try --dtype float32.")
        changes = changed_pixels(plan.region, attending.maps, self.latent_size) if method.keeps else None
        with journal.timed(f"decode.{number}", editor.device):
            frames = self.frames_of(z, changes, journal)
        masks = masks_by_size(self.model, attending, task) if method.keeps else {}
        notes, inversion = tuple(journal.notes), key_of_source(self.source)
        return Edited(settings, frames, latents, masks, self.video.fps, notes, inversion)

    def edit_key(self, settings: Settings, plan: Plan, target: Tensor, negative: Tensor) -> str:
        """A hash of all that an edit of this inversion depends on."""
        reconstruction = self.editor.embed(settings.reconstruction_prompt or settings.source)
        return key_of_edit(settings, plan, (target, negative, reconstruction), self.model.control)

    def frames_of(self, z: Tensor, changes: Tensor | None, journal: Journal) -> Tensor:
        """Decode z_0; outside of `changes` (`changed_pixels`) the clip's pixels. (F, 3, H, W) float32 in [-1, 1]."""
        with self.editor.coding("decoder", self.latent_size) as vae:
            frames = decode(vae, z[self.own], self.editor.device, journal.note)
        frames = self.ranks.gather(frames, len(z))
        if changes is not None:
            frames = paste_background(frames, self.video.frames, changes)
        return frames.float().clamp(-1, 1)

    def store(self, of: str) -> Store:
        """Where queries and keys of that pass stay."""
        folder, times = self.cached.operands / f"{of}-{self.settings.store_dtype}", self.model.full_timesteps
        return store_for(self.mode, folder, times, self.editor.device, self.journal.say, self.settings.offload)
