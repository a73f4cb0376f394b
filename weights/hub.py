"""From what a setting names to files: a path, or a Hub name, as CompVis/stable-diffusion-v1-4 or owner/name@revision.

A path that is there is no name. A cached snapshot that has what is needed is used without a request; else its missing
files are fetched. Imports no torch: mistakes are answered before that.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fz.errors import FzError
from fz.settings.place import absent, expanded
from fz.weights.fetch import fetched
from fz.weights.layouts import some
from fz.weights.names import (
    Name,
    Unreachable,
    cached,
    files_in,
    followed,
    hub_cache,
    links_in,
    listed,
    offline,
    parsed,
    shaped,
)
from fz.weights.needed import (
    A_MODEL,
    EXPECTED,
    OF_CLIP,
    OF_CONTROLNET,
    OF_EMBEDDING,
    OF_LORA,
    OF_TOKENIZER,
    OF_VAE,
    Choice,
    Needed,
    choose,
    of_any_name,
    of_checkpoint,
    refuse,
)
from fz.weights.texts import refuse_gone


def located(given: str | Path, what: str, needs: Sequence[Needed]) -> Path:
    """The folder or file that a setting names: a path that is there, else a snapshot of the Hub's cache that has what
    is needed, fetched where it has to be. Raises FzError, beginning with the setting's name `what`.
    """
    if not str(given).strip():
        raise FzError(f"{what}: got an empty path, expected {EXPECTED.get(what, A_MODEL)}.")
    path = expanded(given, what)
    if path.exists():
        return file_in(followed(path), what, needs)
    name = parsed(str(given))
    if name is None or path.is_symlink():
        begins = Path(str(given).partition("/")[0])
        read = (
            f" (read as a path, since {begins} is a folder here)"
            if shaped(str(given)) and not path.is_symlink()
            else ""
        )
        raise FzError(f"{what}: {path} {absent(path)}{read}. Expected {EXPECTED.get(what, A_MODEL)}.")
    return snapshot(name, what, needs)


def file_in(path: Path, what: str, needs: Sequence[Needed]) -> Path:
    """path; of a folder, where one file is what is needed, that file. Raises FzError for none or several."""
    if not path.is_dir() or not any(need.alone for need in needs):
        return path
    files = files_in(path)
    choice = choose(files, needs)
    if choice.lacking:
        try:
            refuse_gone(path, of_any_name(links_in(path)))
        except FzError as error:
            raise FzError(f"{what}: {error}") from None
    refuse(choice, path, files, what)
    return choice.place(path)


def snapshot(name: Name, what: str, needs: Sequence[Needed]) -> Path:
    """A folder, or the single file in it, that has what is needed."""
    there = cached(name)
    files = files_in(there) if there else set()
    choice = choose(files, needs, name.file) if there else Choice(lacking=["all"])
    if there and not choice.lacking:
        refuse(choice, name, files, what)
        # which of several was fetched once says nothing of which is meant now
        known = listed(there) if choice.alone and name.file is None else ()
        if (of_all := choose(known, needs)).either:
            refuse(of_all, name, known, what, " on the Hub")
        if not choice.optional:
            return choice.place(there)
    try:
        if variable := offline():
            kept = f"{there.parent.parent} has no {some(choice.lacking or choice.optional)}" if there else ""
            raise Unreachable(
                f"{what}: {name} is to come from the Hub's cache, since {variable} is set, and "
                f"{kept or f'{hub_cache()} has none of it'}. Fetch it with a network, or pass a folder or a file."
            )
        return fetched(name, what, needs)
    except Unreachable:
        # a model may be without these; what fetches them does it before it fetches weights
        if there and not choice.lacking:
            return choice.place(there)
        raise


def models_of(settings: Mapping[str, Any]) -> None:
    """Find, or fetch, all that settings name (lora, embedding, checkpoint, vae, tokenizer, ema, control, clip_model)
    before torch is imported. Raises FzError.
    """
    for what, needs in (("lora", OF_LORA), ("embedding", OF_EMBEDDING)):
        for given, _ in settings.get(what) or ():
            located(given, what, needs)
    vae, tokenizer = settings.get("vae"), settings.get("tokenizer")
    if checkpoint := settings.get("checkpoint"):
        located(checkpoint, "checkpoint", of_checkpoint(settings.get("ema") or "auto", not vae, not tokenizer))
    if vae:
        located(vae, "vae", OF_VAE)
    if tokenizer:
        located(tokenizer, "tokenizer", OF_TOKENIZER)
    if control := settings.get("control"):
        located(control, "control", OF_CONTROLNET)
    if settings.get("clip_model") not in (None, "none"):
        located(settings["clip_model"], "clip", OF_CLIP)
