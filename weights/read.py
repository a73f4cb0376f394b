"""Weight files to dictionaries of CPU tensors, never running code that a file brings.

Reads safetensors, PyTorch's files (`unpickle.py`) and shards with an index. What a file is, is seen in its first bytes,
not in its name. Tensors are mapped from the file, so that reading costs no memory until they are used. What their names
mean is not known here.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fz.errors import FzError
from fz.weights.layouts import some
from fz.weights.unpickle import first_line, read_old_pickle, read_zip

DTYPE_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}


@dataclass(frozen=True)
class Weights:
    """The tensors of one part of a model. form: what they were read from, such as 'safetensors'; file: where."""

    tensors: dict[str, Tensor]
    form: str
    file: Path

    def with_tensors(self, tensors: dict[str, Tensor]) -> "Weights":
        return Weights(tensors, self.form, self.file)

    @property
    def precision(self) -> str:
        """'fp16', or 'fp16/fp32' where a file mixes them."""
        found = {t.dtype for t in self.tensors.values()}
        return "/".join(sorted(DTYPE_NAMES.get(d, str(d).removeprefix("torch.")) for d in found))


def read_json(path: Path) -> dict:
    """A JSON object. Raises FzError if the file is absent, no JSON, or something else than an object."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
    except FileNotFoundError:
        raise FzError(f"{path}: no such file. Expected a diffusers config there.") from None
    except OSError as error:
        raise FzError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        said = (
            " (it is a git-lfs pointer: run `git lfs pull`)"
            if text_of(path).startswith("version https://git-lfs")
            else ""
        )
        raise FzError(f"{path}: no valid JSON{said or f' ({error})'}. Download it again.") from None
    if not isinstance(value, dict):
        raise FzError(f"{path}: got a JSON {type(value).__name__}, expected an object.")
    return value


def text_of(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(512).decode("utf-8", "replace")


def read_weights(path: Path) -> Weights:
    """Read one file, or the shards of an index (.json). Raises FzError, naming the file, for whatever is no weights."""
    if path.suffix == ".json":
        return read_shards(path)
    form = sniff(path)
    reader = {"safetensors": read_safetensors, "zip": read_zip, "pickle": read_old_pickle}[form]
    tensors = reader(path)
    if not tensors:
        raise FzError(f"{path}: holds no weights. Is it a Stable Diffusion v1.x checkpoint?")
    return Weights(tensors, "safetensors" if form == "safetensors" else path.suffix.lstrip(".") or "pickle", path)


def read_shards(index: Path) -> Weights:
    """All shards that a diffusers index lists. Raises FzError for a missing shard or one whose keys are not those of
    the index.
    """
    weight_map = read_json(index).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        raise FzError(f"{index}: has no weight_map. Expected the index of a sharded checkpoint.")
    tensors, forms = {}, set()
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise FzError(f"{index}: names the shard {name!r}, expected a file beside it.")
        if name.endswith(".json"):
            # itself, or one that names this
            raise FzError(f"{index}: names the shard {name!r}, an index again, expected weights.")
        if not (index.parent / name).exists():
            raise FzError(
                f"{index.parent / name}: no such file, but {index.name} lists it. Download the missing shard."
            )
        shard = read_weights(index.parent / name)
        listed = {key for key, file in weight_map.items() if file == name}
        if odd := listed ^ shard.tensors.keys():
            raise FzError(
                f"{shard.file}: {len(odd)} keys differ from {index.name} ({some(sorted(odd))}). Download both again."
            )
        tensors.update(shard.tensors)
        forms.add(shard.form)
    return Weights(tensors, "sharded " + "/".join(sorted(forms)), index)


def sniff(path: Path) -> str:
    """'safetensors', 'zip' (PyTorch since 1.6) or 'pickle' (before), by the first bytes. Raises FzError for anything
    else.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise FzError(f"{path}: cannot be read ({error.strerror}).") from None
    if size == 0:
        raise FzError(f"{path}: is empty. Download it again.")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(b"version https://git-lfs"):
        raise FzError(
            f"{path}: is a git-lfs pointer ({size} bytes), not the weights. Run `git lfs pull`, or download the "
            "file itself."
        )
    if head.lstrip()[:1] == b"<":
        raise FzError(
            f"{path}: is an HTML page, not weights. The download was refused, perhaps for want of a login; download "
            "it again."
        )
    if head.startswith(b"GGUF"):
        raise FzError(f"{path}: is a GGUF file, which is not read. Use .safetensors or .ckpt.")
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header >= 2:
        if size < 8 + header:
            raise FzError(
                f"{path}: is cut short: {size} bytes, but its header alone has {8 + header}. Download it again."
            )
        return "safetensors"
    if head.startswith(b"\x80") and len(head) > 2:
        return "pickle"
    if not head.translate(None, bytes(range(32, 127)) + b"\t\r\n"):
        raise FzError(f"{path}: is a text file, not weights (it begins {head[:40].decode()!r}).")
    raise FzError(
        f"{path}: is neither safetensors nor a PyTorch file. Download it again, or convert it to .safetensors."
    )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # not a mapping itself
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise FzError(f"{path}: damaged or cut short ({first_line(error)}). Download it again.") from None
