"""Hub names, as CompVis/stable-diffusion-v1-4 or owner/name@revision: from a name to files in the Hub's cache.

A path that is there is no name. A cached snapshot that has what is needed is used without a request; else its missing
files are fetched, those of one precision, each verified before it becomes a file of the cache. huggingface_hub lists,
transfers and links them; it keeps no half of a file and compares no hash, so both are done here. HF_HUB_OFFLINE,
HF_ENDPOINT and HF_HOME are read when they are needed. Imports no torch: mistakes are answered before that.
"""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fz.errors import FzError
from fz.settings.place import absent, expanded
from fz.weights.layouts import some, weight_files

# what no model of the Hub is called, but files are
ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".onnx", ".json", ".yaml", ".yml", ".zip", ".git")
NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@(\w[\w./-]*))?", re.ASCII)
LONGEST = 96  # characters of a name
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's of a small file, SHA-256 of a large one
COMMIT = re.compile(r"[0-9a-f]{7,64}")
TIMEOUT = 10  # seconds without an answer
# the vocabulary last: where it is, the others are
TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json", "merges.txt",
             "vocab.json")  # fmt: skip
VOCABULARY = (("tokenizer.json",), ("vocab.json", "merges.txt"))
A_MODEL = "a folder, a file, or a Hub name as owner/name"
# what each setting expects, for the message about one that is neither path nor name
EXPECTED = {
    "checkpoint": "a diffusers folder, a single file, or a Hub name as CompVis/stable-diffusion-v1-4",
    "vae": "a diffusers VAE folder, a .pt, .ckpt or .safetensors file, or a Hub name as stabilityai/sd-vae-ft-mse",
    "tokenizer": "a folder with CLIP's vocab.json and merges.txt, or a Hub name as openai/clip-vit-large-patch14",
    "control": "a diffusers folder, a single file, or a Hub name as lllyasviel/control_v11p_sd15_canny",
    "clip": "a folder with config.json and weights, a file, or a Hub name as openai/clip-vit-base-patch32",
}


@dataclass(frozen=True)
class Name:
    """A model of the Hub; revision: a branch, a tag or a commit."""

    repo: str
    revision: str = "main"

    def __str__(self) -> str:
        return self.repo if self.revision == "main" else f"{self.repo}@{self.revision}"

    @property
    def folder(self) -> Path:
        """Of the cache."""
        return hub_cache() / f"models--{self.repo.replace('/', '--')}"


@dataclass(frozen=True)
class Part:
    """What is needed of a model's folder, or of the first of several that it has ('': the model's own).

    small: files that are taken where they are there. marks: groups of them of which one must be whole. weights: names
    of which the first that is there is taken. needed: whether a model without them is none.
    """

    folders: tuple[str, ...]
    small: tuple[str, ...] = ()
    marks: tuple[tuple[str, ...], ...] = ()
    weights: tuple[str, ...] = ()
    needed: bool = True


CONFIG = ("config.json",)
OF_TOKENIZER = (Part(("tokenizer", ""), TOKENIZER, VOCABULARY),)
# of a checkpoint nothing else; one that has none takes CLIP's
TOKENIZER_OF_CHECKPOINT = (Part(("tokenizer",), TOKENIZER, VOCABULARY, needed=False),)
OF_VAE = (Part(("vae", ""), CONFIG, (CONFIG,), tuple(weight_files("vae"))),)
OF_CONTROLNET = (Part(("controlnet", ""), CONFIG, (CONFIG,), tuple(weight_files("unet"))),)
OF_CLIP = (
    Part(("",), ("config.json", "preprocessor_config.json"), (CONFIG,), tuple(weight_files("text_encoder"))),
    Part(("", "tokenizer"), TOKENIZER, VOCABULARY, needed=False),
)


def of_checkpoint(ema: str = "auto", vae: bool = True, tokenizer: bool = True) -> tuple[Part, ...]:
    """A diffusers folder's parts; vae, tokenizer: whether its own are used."""
    plain = weight_files("unet", "non_ema") if ema == "plain" else []
    schedule = ("scheduler_config.json",)
    return (
        Part(("scheduler",), schedule, (schedule,), needed=False),
        *(TOKENIZER_OF_CHECKPOINT if tokenizer else ()),
        Part(("text_encoder",), CONFIG, (CONFIG,), tuple(weight_files("text_encoder"))),
        Part(("vae",), CONFIG, (CONFIG,), tuple(weight_files("vae")) if vae else ()),
        Part(("unet",), CONFIG, (CONFIG,), (*plain, *weight_files("unet"))),
    )


# ---- names and paths ---------------------------------------------------------------------------------------


def located(given: str | Path, what: str, parts: tuple[Part, ...]) -> Path:
    """The folder or file that a setting names: a path that is there, else a snapshot of the Hub's cache that has the
    parts, fetched where it has to be. Raises FzError, beginning with the setting's name `what`.
    """
    path = expanded(given, what)
    if not str(given).strip():
        raise FzError(f"{what}: got an empty path, expected {EXPECTED.get(what, A_MODEL)}.")
    if path.exists():
        return followed(path)
    name = parsed(str(given))
    if name is None or path.is_symlink():
        begins = Path(str(given).partition("/")[0])
        read = (
            f" (read as a path, since {begins} is a folder here)"
            if shaped(str(given)) and not path.is_symlink()
            else ""
        )
        raise FzError(f"{what}: {path} {absent(path)}{read}. Expected {EXPECTED.get(what, A_MODEL)}.")
    return snapshot(name, what, parts)


def shaped(given: str) -> Name | None:
    """The name that a text has the form of."""
    found = NAME.fullmatch(given)
    if not found or ".." in given or "--" in found[1] or len(found[1]) > LONGEST or found[1].lower().endswith(ENDINGS):
        return None
    return Name(found[1], found[2] or "main")


def parsed(given: str) -> Name | None:
    """The Hub name that a text is; None for a path, which is also what begins with a folder that is there."""
    name = shaped(given)
    return None if name is None or Path(given).exists() or Path(given.partition("/")[0]).is_dir() else name


def commit_of(given: str) -> str | None:
    """What a name's cached snapshot is of, for whoever asks whether the same files would be read again."""
    name = parsed(given)
    folder = cached(name) if name else None
    return folder.name if folder else None


def followed(path: Path) -> Path:
    """path; of a model's folder in the Hub's cache (models--X--Y) the snapshot of its main branch, or its newest."""
    if not path.is_dir() or not path.resolve().name.startswith("models--") or not (path / "snapshots").is_dir():
        return path
    found = cached_at(path, "main")
    snapshots = [p for p in (path / "snapshots").iterdir() if p.is_dir()]
    return found or max(snapshots, key=lambda p: p.stat().st_mtime, default=path)


def hub_cache() -> Path:
    """Where the Hub's files are kept, read now rather than when its client was imported."""
    env = os.environ
    home = Path(env.get("HF_HOME") or Path(env.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or home / "hub").expanduser()


def offline() -> str | None:
    """The variable that forbids a request."""
    variables = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next((v for v in variables if os.environ.get(v, "").upper() in ("1", "ON", "YES", "TRUE")), None)


# ---- snapshots ---------------------------------------------------------------------------------------------


def snapshot(name: Name, what: str, parts: tuple[Part, ...]) -> Path:
    """A folder, or the single file in it, that has what is needed."""
    there = cached(name)
    chosen, lacking, optional = choose(files_in(there), parts) if there else ([], [], ["all"])
    if there and not lacking and not optional:
        return where(there, chosen)
    try:
        if variable := offline():
            kept = f"{there.parent.parent} has no {some(lacking)}" if there else f"{hub_cache()} has none of it"
            raise Unreachable(
                f"{what}: {name} is to come from the Hub's cache, since {variable} is set, and {kept}. Fetch it with "
                "a network, or pass a folder or a file."
            )
        return fetched(name, what, parts)
    except Unreachable:
        # a model may be without these; what fetches them does it before it fetches weights
        if there and not lacking:
            return where(there, chosen)
        raise


class Unreachable(FzError):
    """The Hub gave no answer."""


def cached(name: Name) -> Path | None:
    return cached_at(name.folder, name.revision)


def cached_at(folder: Path, revision: str) -> Path | None:
    """The snapshot of a branch, tag or commit in a model's folder of the cache, whole or not."""
    try:
        commit = (folder / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision
    there = folder / "snapshots" / commit
    return there if COMMIT.fullmatch(commit) and there.is_dir() else None


def files_in(folder: Path) -> set[str]:
    """Names as the Hub has them; a link to a blob that is gone is no file."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def choose(files: Collection[str], parts: Iterable[Part]) -> tuple[list[str], list[str], list[str]]:
    """(files to have, small ones first; what is needed and not there; what may be absent and is)."""
    parts = tuple(parts)
    if single := single_file(files, parts):
        return [single], [], []
    small, weights, lacking, absent = [], [], [], []
    for part in parts:
        folder = next((f for f in part.folders if any(inside(f, part.small, files))), part.folders[0])
        small += inside(folder, part.small, files)
        whole = any(len(list(inside(folder, mark, files))) == len(mark) for mark in part.marks)
        if not whole:
            (lacking if part.needed else absent).append(under(folder, " and ".join(part.marks[-1])))
        if part.weights:
            found = next((w for name in part.weights if (w := whole_weights(under(folder, name), files))), [])
            weights += found
            lacking += [] if found else [under(folder, part.weights[0])]
    return [*small, *weights], lacking, absent


def under(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def inside(folder: str, names: Iterable[str], files: Collection[str]) -> Iterable[str]:
    return (path for name in names if (path := under(folder, name)) in files)


def whole_weights(name: str, files: Collection[str]) -> list[str]:
    """A file of weights, or an index with its shards, if all are there."""
    if name not in files:
        return []
    if not name.endswith(".json"):
        return [name]
    stem, ending, variant = re.fullmatch(r"(.*)(\.safetensors|\.bin)\.index((?:\.\w+)?)\.json", name).groups()
    pattern = re.compile(rf"{re.escape(stem + variant)}-(\d+)-of-(\d+){re.escape(ending)}")
    also = re.compile(rf"{re.escape(stem)}{re.escape(variant)}-(\d+)-of-(\d+){re.escape(variant + ending)}")
    shards = sorted(f for f in files if pattern.fullmatch(f) or also.fullmatch(f))
    count = {int((pattern.fullmatch(f) or also.fullmatch(f))[2]) for f in shards}
    return [name, *shards] if count == {len(shards)} else []


def single_file(files: Collection[str], parts: Iterable[Part]) -> str | None:
    """The one whole checkpoint that a model without unet/ consists of."""
    if not any(part.folders == ("unet",) for part in parts) or any(f.startswith("unet/") for f in files):
        return None
    for ending in (".safetensors", ".ckpt"):
        found = [f for f in files if re.fullmatch(rf"[^/\\]+\{ending}", f)]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def where(folder: Path, chosen: list[str]) -> Path:
    return folder / chosen[0] if len(chosen) == 1 and chosen[0].endswith((".safetensors", ".ckpt")) else folder


# ---- fetching ----------------------------------------------------------------------------------------------


def fetched(name: Name, what: str, parts: tuple[Part, ...]) -> Path:
    """The snapshot that the Hub has now, with what is needed of it in the cache. A file that was cut short goes on
    where it was.
    """
    # else it asks the Hub for more than was named
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # what goes wrong is said in one line
    try:
        about = HfApi(endpoint=endpoint()).model_info(
            name.repo, revision=name.revision, files_metadata=True, timeout=TIMEOUT
        )
        files = {sibling.rfilename: sibling for sibling in about.siblings or ()}
        chosen, lacking, _ = choose(files, parts)
        if lacking:
            there = some(sorted(files), 6) or "nothing"
            raise FzError(
                f"{what}: {name} on the Hub has no {some(lacking)} (there: {there}). Expected "
                f"{EXPECTED.get(what, A_MODEL)}."
            )
        if not COMMIT.fullmatch(about.sha or ""):
            raise FzError(f"{what}: {endpoint()} names no commit of {name}. Expected the Hub; see HF_ENDPOINT.")
        folder = name.folder / "snapshots" / about.sha
        missing = [file for file in chosen if not (folder / file).is_file()]
        check_space(name, what, sum(files[file].size or 0 for file in missing))
        for file in missing:
            fetch(name, what, about.sha, files[file])
        if chosen:
            link(name, chosen[-1], name.revision)
    except FzError:
        raise
    except Exception as error:  # of its own kinds, its HTTP library's, and the system's
        raise explained(error, name, what) from None
    return where(folder, chosen)


def endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def check_space(name: Name, what: str, size: int) -> None:
    """Raise FzError where the cache's disk has no room for so many bytes."""
    place = hub_cache()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if size > free:
        raise FzError(
            f"{what}: {name} takes {size / 1e9:.2f} GB, and {place} has {free / 1e9:.2f} GB free. Free space there, or "
            "set HF_HOME to a folder of another disk."
        )


def fetch(name: Name, what: str, commit: str, about: Any) -> None:
    """One file into the cache. about: its name, size and hash. Raises FzError for bytes that are not of that hash."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    expected = about.lfs.sha256 if about.lfs else about.blob_id
    if not HASH.fullmatch(expected or "") or about.size is None:
        raise FzError(f"{what}: {endpoint()} gives no hash of {name}'s {about.rfilename}. Expected the Hub.")
    blobs, lock = name.folder / "blobs", hub_cache() / ".locks" / name.folder.name / f"{expected}.lock"
    for folder in (blobs, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    # of several processes that want it, the first fetches
    with WeakFileLock(lock):
        if not (blobs / expected).exists():
            part = blobs / f"{expected}.incomplete"
            if part.exists() and part.stat().st_size > about.size:
                part.unlink()
            with part.open("ab") as file:
                http_get(
                    hf_hub_url(name.repo, about.rfilename, revision=commit, endpoint=endpoint()),
                    file,
                    resume_size=file.tell(),
                    headers=build_hf_headers(),
                    expected_size=about.size,
                    displayed_filename=about.rfilename,
                )
            if hash_of(part, len(expected)) != expected:
                part.unlink()
                raise FzError(
                    f"{what}: {name}'s {about.rfilename} came with other bytes than the Hub says (hash "
                    f"{expected[:12]}…), and was not kept. Run the same command again."
                )
            os.replace(part, blobs / expected)
    link(name, about.rfilename, commit)


def link(name: Name, file: str, revision: str) -> None:
    """Put a file that the cache has into its snapshot, and note which commit a branch is at."""
    from huggingface_hub import hf_hub_download

    hf_hub_download(
        name.repo, file, revision=revision, cache_dir=hub_cache(), endpoint=endpoint(), etag_timeout=TIMEOUT
    )


def hash_of(path: Path, digits: int) -> str:
    """SHA-256, or git's hash of a small file, by the number of hex digits."""
    sha = hashlib.sha256() if digits == 64 else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while chunk := file.read(2**22):
            sha.update(chunk)
    return sha.hexdigest()


def explained(error: Exception, name: Name, what: str) -> FzError:
    """What went wrong, in one line."""
    from huggingface_hub import errors

    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    status = getattr(getattr(error, "response", None), "status_code", None)
    login = "log in (`hf auth login`, or HF_TOKEN)"
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return FzError(
            f"{what}: the Hub gives {name} only to who has accepted its terms. Do that at {endpoint()}/{name.repo}, "
            f"and {login}."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return FzError(f"{what}: the Hub's {name.repo} has no revision {name.revision!r}. Check it, or leave it out.")
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return FzError(
            f"{what}: {name} is no path here, and the Hub shows no model of that name (HTTP {status}). Check it, or "
            f"{login} if it is private."
        )
    if status is not None:
        return Unreachable(f"{what}: the Hub answered HTTP {status} for {name}. Try again later, or pass a folder.")
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return FzError(
            f"{what}: no space left in {hub_cache()} for {name}. Free space, or set HF_HOME to a folder of another "
            "disk; the same command goes on where it was."
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return FzError(f"{what}: {hub_cache()} cannot be written ({reason}). Set HF_HOME to a folder of your own.")
    return Unreachable(
        f"{what}: {name} is no path here, and {endpoint()} cannot be reached, or stopped in the middle ({reason}). "
        "The same command goes on where it was; or pass a folder or a file."
    )


def models_of(settings: Mapping[str, Any]) -> None:
    """Find, or fetch, all models that settings name (checkpoint, vae, tokenizer, ema, control, clip_model), and find
    the files of lora and embedding: before torch is imported. Raises FzError.
    """
    for what in ("lora", "embedding"):
        for path, _ in settings.get(what) or ():
            place = expanded(path, what)
            if not place.exists():
                raise FzError(f"{what}: {path} {absent(place)}. Expected a .safetensors, .pt or .bin file.")
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
