"""A whole run, from settings to a folder of results: load, plan, read, encode, invert, edit, decode, write.

`run(settings)` is what the command line calls. It says and shows nothing itself: a `Progress` is told what happens.
"""

import contextlib
import dataclasses
from collections.abc import Callable

import torch

from fz.attention import Keep
from fz.baselines import METHODS
from fz.checkpoint import settled
from fz.editor import Editor
from fz.inverted import InvertedClip
from fz.loaded import Models
from fz.memory.budget import wanted
from fz.memory.inversions import Inversion, folder_of
from fz.memory.machine import pick_device
from fz.memory.uncached import Uncached
from fz.progress import Journal, Progress
from fz.prompts.plan import Plan
from fz.ranks import Alone, Ranks
from fz.results import reuse
from fz.results.folder import NoFolder, ResultFolder
from fz.results.result import Edited, Result
from fz.settings.config import Settings
from fz.settings.effect import fused_sentence
from fz.settings.place import check_cache
from fz.stages import (
    check_clip,
    edit_tensors,
    idle_embeddings,
    plan_edits,
    read_control,
    read_video,
    versions,
    with_masks,
)


def run(settings: Settings, progress: Progress | None = None, models: Models | None = None) -> Result:
    """Do what the settings say. Raises FzError for anything that the user can put right; what was finished by then is
    on disk. models: of runs before this one, taken where they are the same.
    """
    journal, method = Journal(progress or Progress()), METHODS[settings.method]
    settings, of_dtype = settled(settings)
    for line in (*settings.notes, *of_dtype, *([f"method {settings.method}: {method.note}"] if method.note else [])):
        journal.note(line)
    result = Result(settings, journal.notes, stages=journal.stages)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    check_cache(settings.cache)
    device = pick_device(settings.device)  # a wrong device or FZ_KERNELS is an error now
    with contextlib.closing(Ranks(device) if settings.shard else Alone()) as ranks, results(settings, ranks) as folder:
        made_by = versions(device, ranks.world)
        before = reuse.found(folder.path, settings, made_by) if ranks.leads else None
        if ranks.agree(before is not None):
            if ranks.leads:
                journal.say(f"{whereabouts(folder)}: this very run was done before, nothing was computed")
            return before or result

        # load
        check_clip(settings)
        editor = Editor(settings, journal, models, ranks)

        # plan
        plans = plan_edits(settings, editor.checkpoint.text, journal.note)
        for line in idle_embeddings(settings, editor.checkpoint.text):
            journal.note(line)
        result.video = read_video(settings, editor, journal.note)
        plans = with_masks(plans, settings, result.video)
        shown = read_control(settings, result.video)
        editor.check_chunks(settings, result.video)
        if settings.dry_run:
            if result.video is not None and journal.heard:
                foretell(InvertedClip(editor, settings, result.video, journal, shown), wanted_by(plans, settings))
            journal.note("dry run: settings, words, checkpoint and clip are fine; nothing was computed")
            return result
        folder.start(settings)
        inversion = InvertedClip(editor, settings, result.video, journal, shown)
        with opened(settings, inversion, ranks) as cached, contextlib.closing(inversion):
            inversion.choose_store(cached, wanted_by(plans, settings))

            # encode
            inversion.encode()

            # invert
            if method.inverts:
                inversion.invert()
            result.source, result.schedule = inversion.source, inversion.schedule
            attended = inversion.attending(settings, journal)
            tokens = inversion.tokens
            if attended is not inversion.source:
                tokens = editor.checkpoint.text.tokens(fused_sentence(settings))
            folder.write_source(result.video, attended, tokens, inversion.schedule)
            if settings.save_latents:
                folder.add_latents(inversion.source.tensors(inversion.schedule))

            # edit, decode, write
            for i, (edit, plan) in enumerate(zip(settings.edits, plans, strict=True)):
                edited = inversion.apply(dataclasses.replace(settings, edits=(edit,)), plan, journal, i, len(plans))
                result.edits.append(edited)
                folder.write_edit(i, result.video, edited)
                if settings.save_latents:
                    folder.add_latents(edit_tensors(i, edited))
            inversion.finished()
        result.out = str(folder.path) if ranks.leads else None
        # the command writes the report once all else is complete, and then says that it is done
        folder.finish(result, versions(editor.device, ranks.world), awaits=["report.html"] if settings.report else [])
    if ranks.leads:
        journal.say(whereabouts(folder))
    return result


def wanted_by(plans: list[Plan], settings: Settings) -> Callable[[int], Keep]:
    """Which of the source's queries and keys all edits together need of edit step k."""
    fusions = [plan.fusion for plan in plans if plan.fusion and METHODS[settings.method].keeps]
    return wanted(fusions, settings.store_dtype)


def foretell(inversion: InvertedClip, keep: Callable[[int], Keep]) -> None:
    """Say how much memory and how long the run would take."""
    cache, steps = inversion.settings.cache, inversion.schedule.steps
    inversion.choose_store(Uncached(folder_of(cache)), keep)
    # hashing a model takes seconds
    done = Inversion.steps_in(cache, inversion.key(), steps) if cache != "none" and folder_of(cache).is_dir() else 0
    if done:
        inversion.journal.say(f"inversion: {done} of {steps} steps are in {folder_of(cache)}")
    if line := inversion.ahead(steps - done).told(steps - done, free=True):
        inversion.journal.say(line)


def whereabouts(folder: ResultFolder) -> str:
    """Where the results are, and which of them to open."""
    return f"results in {folder.path}; open {folder.path / 'side-by-side-0.mp4'}"


def results(settings: Settings, ranks: Alone) -> ResultFolder | NoFolder:
    """The run's folder, claimed; of several processes, the first one's."""
    return ranks.first(lambda: ResultFolder.claim(settings)) or NoFolder()


def opened(settings: Settings, inversion: InvertedClip, ranks: Alone) -> contextlib.AbstractContextManager:
    """The inversion's folder in the cache; of several processes, the first one's."""
    if not ranks.leads:
        return contextlib.nullcontext(Uncached())
    return Inversion.open(settings.cache, inversion.key(), inversion.journal.say)


__all__ = ["Edited", "Progress", "Result", "run"]
