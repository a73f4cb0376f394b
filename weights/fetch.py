"""How do files of the Hub come into its cache? Each verified before it becomes a file there, and a half kept.

huggingface_hub lists, transfers and links them; it keeps no half of a file and compares no hash, so both are done here.
HF_ENDPOINT is read when it is needed.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fz.errors import FzError
from fz.weights.names import COMMIT, Name, Unreachable, hub_cache, listing
from fz.weights.needed import Needed, choose, refuse
from fz.whole import write_text

HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's of a small file, SHA-256 of a large one
TIMEOUT = 10  # seconds without an answer


def fetched(name: Name, what: str, needs: Sequence[Needed]) -> Path:
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
        choice = choose(files, needs, name.file)
        refuse(choice, name, files, what, " on the Hub")
        if not COMMIT.fullmatch(about.sha or ""):
            raise FzError(f"{what}: {endpoint()} names no commit of {name}. Expected the Hub; see HF_ENDPOINT.")
        folder = name.folder / "snapshots" / about.sha
        with contextlib.suppress(FzError):
            write_text(listing(folder), json.dumps(sorted(files)))
        missing = [file for file in choice.files if not (folder / file).is_file()]
        check_space(name, what, sum(files[file].size or 0 for file in missing))
        for file in missing:
            fetch(name, what, about.sha, files[file])
        if choice.files:
            link(name, choice.files[-1], name.revision)
    except FzError:
        raise
    except Exception as error:  # of its own kinds, its HTTP library's, and the system's
        raise explained(error, name, what) from None
    return choice.place(folder)


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
