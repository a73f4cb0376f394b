"""CLIP's tokenizer: where is it, and is it whole? No torch: prompts are checked before that is imported."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers.models import BPE

from fz.errors import FzError
from fz.prompts.tokenizer import END, START, ClipTokenizer
from fz.weights.hub import snapshot
from fz.weights.names import Name, hub_cache, offline
from fz.weights.needed import OF_TOKENIZER
from fz.weights.texts import LFS, read_json, refuse_gone, text_of

# what a config says of a token beside its number
OF_ADDED = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
OF_VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt")
ROLES = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
HUB_TOKENIZER = "openai/clip-vit-large-patch14"  # the text encoder of every Stable Diffusion v1


def find_tokenizer(tokenizer: Path | None, *folders: Path | None) -> Path:
    """The folder of CLIP's vocabulary: the one that was named, else tokenizer/ of one of the folders, else
    HUB_TOKENIZER's, in the Hub's cache or fetched.
    """
    if tokenizer:
        for folder in (tokenizer, tokenizer / "tokenizer"):
            if has_vocabulary(folder):
                return folder
            refuse_gone(folder, OF_VOCABULARY)
        raise FzError(
            f"tokenizer: {tokenizer} has no vocab.json and merges.txt. Expected the tokenizer/ of a diffusers folder."
        )
    for folder in folders:
        if folder and has_vocabulary(folder / "tokenizer"):
            return folder / "tokenizer"
        if folder:
            refuse_gone(folder / "tokenizer", OF_VOCABULARY)
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


def load_tokenizer(folder: Path, vocabulary: int) -> ClipTokenizer:
    """CLIP's tokenizer from a folder. Raises FzError if it is damaged, or has more tokens than the text encoder."""
    for file in (folder / name for name in OF_VOCABULARY):
        if file.is_file() and text_of(file).startswith(LFS):
            raise FzError(
                f"tokenizer: {file} is a git-lfs pointer, not the file. Run `git lfs pull`, or download the file."
            )
    tokenizer = read_tokenizer(folder)
    if len(tokenizer) > vocabulary:
        got = f"tokenizer: {folder} has {len(tokenizer)} tokens, the text encoder {vocabulary}"
        raise FzError(f"{got}. Expected CLIP's own; pass it with --tokenizer.")
    return tokenizer


def read_tokenizer(folder: Path) -> ClipTokenizer:
    """From tokenizer.json, or vocab.json and merges.txt, and what the configs say of single tokens. Raises FzError."""
    try:
        whole = read_json(folder / "tokenizer.json") if (folder / "tokenizer.json").is_file() else {}
        roles, numbered = tokens_said(folder, whole)
        if whole:
            vocabulary, merges = whole["model"]["vocab"], map(pair, whole["model"]["merges"])
        else:
            vocabulary, merges = BPE.read_file(*(str(folder / name) for name in ("vocab.json", "merges.txt")))
        check_ends(folder, roles, {*vocabulary, *(token.content for token in numbered.values() if whole)})
        added = [token for _, token in sorted(numbered.items())] + [token for token in roles.values() if token]
        padding = roles["pad_token"].content if roles["pad_token"] else END
        tokenizer = ClipTokenizer(vocabulary, list(merges), added, padding)
        for number, token in numbered.items():
            if (its := tokenizer.number(token.content)) != number:
                raise ValueError(f"{token.content!r} is said to have number {number}, and has {its}")
    except FzError:
        raise
    except Exception as error:  # tokenizers raises many kinds, a plain Exception among them
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise FzError(
            f"tokenizer: {folder} cannot be read ({reason}). Expected CLIP's vocab.json and merges.txt."
        ) from None
    return tokenizer


def tokens_said(folder: Path, whole: dict[str, Any]) -> tuple[dict[str, AddedToken | None], dict[int, AddedToken]]:
    """(the token of each of ROLES, the tokens beyond the vocabulary by number), out of the configs that are there."""
    said, legacy, added = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    )
    if "added_tokens_decoder" in said:
        numbered = {int(number): as_token(token) for number, token in said["added_tokens_decoder"].items()}
    else:
        said |= legacy
        numbered = {number: AddedToken(token) for token, number in added.items()}
        numbered |= {token["id"]: as_token(token) for token in whole.get("added_tokens") or ()}
    same = {token.content: token for token in numbered.values()}
    roles = {role: as_token(said.get(role, default)) for role, default in ROLES.items()}
    return {role: token and same.get(token.content, token) for role, token in roles.items()}, numbered


def as_token(said: str | dict[str, Any] | None) -> AddedToken | None:
    if not isinstance(said, dict):
        return None if said is None else AddedToken(said, special=True)
    return AddedToken(**{"special": True} | {name: said[name] for name in OF_ADDED if name in said})


def pair(merge: str | Iterable[str]) -> tuple[str, ...]:
    return tuple(merge.split(" ") if isinstance(merge, str) else merge)


def check_ends(folder: Path, roles: dict[str, AddedToken | None], known: set[str]) -> None:
    """A prompt's start and end are tokens of the vocabulary: added to one that lacks them they would have numbers that
    mean other tokens, or none, to the text encoder. Raises FzError.
    """
    for side, role in {"start": "bos_token", "end": "eos_token"}.items():
        token, expected = roles[role] and roles[role].content, ROLES[role]
        if token != expected or token not in known:
            got = f"tokenizer: {folder} has {token if token != expected else 'no token'!r} for a prompt's {side}"
            raise FzError(f"{got}, expected {expected!r} in its vocabulary. Pass CLIP's own with --tokenizer.")
