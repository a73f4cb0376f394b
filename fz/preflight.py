"""What can be known of a run before torch is imported, which takes seconds: its device, its folder, its clip and masks,
its models' files, its prompts' tokens; and so of a tuning. What is wrong with them is answered at once.

All of it is checked again where it is used; how weights are read, and what fits in memory, is known only there.
"""

from collections.abc import Iterable
from typing import Any

from fz import mini
from fz.clips.user_mask import check_mask
from fz.clips.video import ClipPlan, plan_clip
from fz.errors import FzError
from fz.prompts.text import TextEncoder
from fz.results.claim import check_early
from fz.settings.config import ClipSettings, Settings
from fz.settings.device import check_device
from fz.settings.place import check_cache, expanded
from fz.tuning.folder import TuningFolder
from fz.tuning.settings import TuneSettings
from fz.weights.hub import located, models_of
from fz.weights.needed import OF_TOKENIZER, TOKENIZER_OF_CHECKPOINT
from fz.weights.tokenizer import find_tokenizer, load_tokenizer


def check_run(settings: Settings, clip_model: str | None = None) -> None:
    """Raises FzError for what a run of these settings would be refused for. clip_model: the CLIP that judges it."""
    check_device(settings.device)
    check_early(settings)
    check_cache(settings.cache)
    plan = check_clip(settings.clip, settings.dry_run)
    for edit in settings.edits:
        if edit.mask is not None and plan is not None:
            check_mask(edit.mask, settings.clip, plan.indices)
    models_of({**vars(settings), "clip_model": clip_model})
    targets = (edit.target for edit in settings.edits)
    check_prompts(settings, (settings.source, settings.negative, settings.reconstruction_prompt or "", *targets))


def check_tuning(settings: TuneSettings) -> None:
    """Raises FzError for what a tuning of these settings would be refused for."""
    check_device(settings.device)
    TuningFolder.look(settings)
    check_clip(settings.clip)
    if settings.class_images:
        try:
            check_clip(settings.every_class_image())
        except FzError as error:
            raise FzError(f"class_images: {str(error).removeprefix('video: ')}") from None
    # 'clip' is a tuning's clip here, and no model
    models_of({name: getattr(settings, name) for name in ("checkpoint", "vae", "tokenizer", "ema")})
    check_prompts(settings, (settings.prompt, settings.class_prompt or "", *settings.sample_prompts))


def check_clip(clip: ClipSettings, lenient: bool = False) -> ClipPlan | None:
    """The clip, its file open and its choice of frames checked, its first picture decoded. lenient: None for one that
    is too short, of which a dry run only tells.
    """
    try:
        plan = plan_clip(clip, 1)
    except FzError as error:
        if lenient and str(error).startswith(("frames:", "start:")):
            return None
        raise
    next(iter(plan.source.read([plan.indices[0]])))
    return plan


def check_prompts(settings: Any, prompts: Iterable[str]) -> None:
    """Raises FzError for a prompt of more than 77 tokens; with learned words, that is known only once they are read.
    settings: of a run or a tuning.
    """
    if getattr(settings, "embedding", ()):
        return
    try:
        text = text_of(settings)
    except FzError:
        if settings.tokenizer:
            raise
        return  # what is wrong with the checkpoint itself is said when it is loaded
    for prompt in prompts:
        text.tokens(prompt)


def text_of(settings: Any) -> TextEncoder:
    """A TextEncoder of the checkpoint's tokenizer and the learned words alone: it has tokens of prompts, no
    embeddings.
    """
    checkpoint, config = mini.checkpoint(settings.checkpoint), settings.model_config
    words = getattr(settings, "embedding", ())  # a tuning has none
    if words:
        # it takes torch to read them
        from fz.weights.changes import read_words, tokens_of

        words = read_words(words)
    if settings.tokenizer:
        found = find_tokenizer(located(settings.tokenizer, "tokenizer", OF_TOKENIZER))
    else:
        # of a Hub name no more than the tokenizer is fetched
        folder = located(checkpoint, "checkpoint", TOKENIZER_OF_CHECKPOINT)
        found = find_tokenizer(
            None, None if folder.is_file() else folder, expanded(config, "model_config") if config else None
        )
    tokenizer = load_tokenizer(found, 2**31)
    return TextEncoder(tokenizer, None, tokens_of(words, len(tokenizer)) if words else None)
