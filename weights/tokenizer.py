"""CLIP's tokenizer: where is it, and is it whole? No torch: prompts are checked before that is imported."""

from pathlib import Path
from typing import TYPE_CHECKING

from fz.errors import FzError
from fz.weights.hub import snapshot
from fz.weights.names import Name, hub_cache, offline
from fz.weights.needed import OF_TOKENIZER
from fz.weights.texts import LFS, read_json, text_of

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

HUB_TOKENIZER = "openai/clip-vit-large-patch14"  # the text encoder of every Stable Diffusion v1


def find_tokenizer(tokenizer: Path | None, *folders: Path | None) -> Path:
    """The folder of CLIP's vocabulary: the one that was named, else tokenizer/ of one of the folders, else
    HUB_TOKENIZER's, in the Hub's cache or fetched.
    """
    if tokenizer:
        for folder in (tokenizer, tokenizer / "tokenizer"):
            if has_vocabulary(folder):
                return folder
        raise FzError(
            f"tokenizer: {tokenizer} has no vocab.json and merges.txt. Expected the tokenizer/ of a diffusers folder."
        )
    for folder in folders:
        if folder and has_vocabulary(folder / "tokenizer"):
            return folder / "tokenizer"
    if cached := hub_tokenizer():
        return cached
    try:
        return snapshot(Name(HUB_TOKENIZER), "tokenizer", OF_TOKENIZER)
    except FzError:
        why = f"{variable} is set" if (variable := offline()) else "the Hub did not give it"
        got = f"tokenizer: the checkpoint has none, and {HUB_TOKENIZER} is not in the Hub cache {hub_cache()} ({why})"
        raise FzError(
            f"{got}. Pass --tokenizer DIR with CLIP's vocab.json and merges.txt, such as the tokenizer/ of a "
            "diffusers folder."
        ) from None


def has_vocabulary(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() or all(
        (folder / name).is_file() for name in ("vocab.json", "merges.txt")
    )


def hub_tokenizer() -> Path | None:
    """The newest complete tokenizer of HUB_TOKENIZER in the Hub's cache."""
    snapshots = (Name(HUB_TOKENIZER).folder / "snapshots").glob("*")
    return max((s for s in snapshots if has_vocabulary(s)), key=lambda s: s.stat().st_mtime, default=None)


def load_tokenizer(folder: Path, vocabulary: int) -> "CLIPTokenizer":
    """CLIP's tokenizer from a folder. Raises FzError if it is damaged, or has more tokens than the text encoder."""
    for file in (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt")):
        if file.is_file() and text_of(file).startswith(LFS):
            raise FzError(
                f"tokenizer: {file} is a git-lfs pointer, not the file. Run `git lfs pull`, or download the file."
            )
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise many kinds, a plain Exception among them
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise FzError(
            f"tokenizer: {folder} cannot be read ({reason}). Expected CLIP's vocab.json and merges.txt."
        ) from None
    check_ends(folder, tokenizer)
    if len(tokenizer) > vocabulary:
        got = f"tokenizer: {folder} has {len(tokenizer)} tokens, the text encoder {vocabulary}"
        raise FzError(f"{got}. Expected CLIP's own; pass it with --tokenizer.")
    return tokenizer


def check_ends(folder: Path, tokenizer: "CLIPTokenizer") -> None:
    """A prompt's start and end are tokens of the vocabulary. transformers adds them to one that lacks them, under
    numbers that mean other tokens, or none, to the text encoder. Raises FzError.
    """
    ends = {"start": (tokenizer.bos_token, "<|startoftext|>"), "end": (tokenizer.eos_token, "<|endoftext|>")}
    if (folder / "vocab.json").is_file():
        known = read_json(folder / "vocab.json")
    else:
        content = read_json(folder / "tokenizer.json")
        model, added = content.get("model"), content.get("added_tokens")
        known = {token.get("content") for token in added or () if isinstance(token, dict)}
        known |= set((model.get("vocab") or ()) if isinstance(model, dict) else ())
    for side, (token, expected) in ends.items():
        if token != expected or token not in known:
            got = f"tokenizer: {folder} has {token if token != expected else 'no token'!r} for a prompt's {side}"
            raise FzError(f"{got}, expected {expected!r} in its vocabulary. Pass CLIP's own with --tokenizer.")
