"""Weight files to dictionaries of CPU tensors, never running code that a file brings.

Reads safetensors, PyTorch's files (`unpickle.py`) and shards with an index. What a file is, is seen in its first bytes,
not in its name. Tensors are mapped from the file, so that reading costs no memory until they are used. What their names
mean is not known here.
"""

import json
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fz.errors import FzError
from fz.weights.layouts import some, unwrapped
from fz.weights.texts import LFS, read_json, refuse_gone
from fz.weights.unpickle import first_line, read_old_pickle, read_zip, refuse_packed

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


def read_weights(path: Path) -> Weights:
    """Read one file, or the shards of an index (.json). Raises FzError, naming the file, for whatever is no weights."""
    if path.suffix == ".json":
        return read_shards(path)
    form = sniff(path)
    reader = {"safetensors": read_safetensors, "zip": read_zip, "pickle": read_old_pickle}[form]
    tensors = unwrapped(reader(path))
    if not tensors:
        raise FzError(f"{path}: holds no weights. Is it a Stable Diffusion v1.x checkpoint?")
    ending = path.suffix.lstrip(".")
    known = form == "safetensors" or ending in ("", "safetensors")
    return Weights(tensors, ("safetensors" if form == "safetensors" else "pickle") if known else ending, path)


def read_any(path: Path) -> Any:
    """All that a PyTorch file holds, tensors or not; the tensors of a safetensors file. Raises FzError, naming the
    file.
    """
    form = sniff(path)
    if form == "safetensors":
        return read_safetensors(path)
    return {"zip": read_zip, "pickle": read_old_pickle}[form](path, whole=True)


def about(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; {} of any other."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, RuntimeError, ValueError):
        return {}


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
            raise FzError(f"{index}: names {name!r}, an index, expected weights. Download it again.")
        if not (index.parent / name).exists():
            refuse_gone(index.parent, [name])
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
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FzError(f"{path}: is a pipe or a device, expected a file of weights. Download it again.")
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
    if head.startswith(LFS.encode()):
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
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # not a mapping itself
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        tensors = read_before_more(path)
        if tensors is None:
            raise FzError(f"{path}: damaged or cut short ({first_line(error)}). Download it again.") from None
    refuse_packed(path, {str(t.dtype).removeprefix("torch.") for t in tensors.values()})
    return tensors


# of a safetensors header
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_before_more(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a safetensors file that is whole and has more bytes after them, as some downloads do; None for any
    other. Mapped from the file.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        begin = 8 + int.from_bytes(mapped[:8], "little")
        header = json.loads(mapped[8:begin])
        header.pop("__metadata__", None)
        tensors, covered = {}, []
        for name, about in header.items():
            (start, end), dtype, shape = about["data_offsets"], DTYPES[about["dtype"]], about["shape"]
            count = (end - start) // dtype.itemsize
            if not 0 <= start <= end or torch.Size(shape).numel() != count or count * dtype.itemsize != end - start:
                return None
            flat = torch.frombuffer(mapped, dtype=dtype, count=count, offset=begin + start) if count else torch.empty(0)
            tensors[name] = flat.to(dtype).reshape(shape)
            covered.append((start, end))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, RecursionError, OverflowError):
        return None
    at = 0
    for start, end in sorted(covered):
        if start != at:
            return None
        at = end
    return tensors if begin + at < len(mapped) else None
