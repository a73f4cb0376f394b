"""PyTorch's own files to dictionaries of CPU tensors, never running code that a file brings.

`torch.load(weights_only=True)`, always. Training checkpoints (Lightning's) hold objects of other classes beside the
weights: those of a few named packages become inert stand-ins, any other is refused by name before the file is loaded.
"""

import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fz.errors import FzError
from fz.weights.layouts import other_model, some

# What Lightning checkpoints hold beside weights: callbacks, settings, metric values. Their classes become inert
# stand-ins. Any other class or function that a pickle asks for, but for PyTorch's own, is refused.
INERT_PACKAGES = (
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "omegaconf",
    "numpy",
    "argparse",
    "pathlib",
    "typing",
    "ldm",
)
INERT_BUILTINS = ("dict", "list", "tuple", "set", "int", "float", "bool", "str", "bytes", "object", "complex")
PYTORCHS = (("collections", "OrderedDict"), ("_codecs", "encode"))

# instructions that put more into what is there
GROWING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
# a checkpoint of Stable Diffusion has some 10,000 parts, with its optimiser's states a few times that
LARGEST_OBJECT = 5_000_000
LARGEST_PICKLE = 100_000_000  # bytes

# what a damaged length leads to: more bytes than a machine or a number has
SIZES = (MemoryError, OverflowError)

# beside the weights, in the same dictionary
TRAINING_LOG = (
    "epoch",
    "global_step",
    "pytorch-lightning_version",
    "callbacks",
    "optimizer_states",
    "lr_schedulers",
    "loops",
    "hparams_name",
    "hparams_type",
    "hyper_parameters",
    "native_amp_scaling_state",
)


class Inert:
    """Stands for an object of a class that is not wanted: accepts whatever a pickle gives it, keeps and runs
    nothing.
    """

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


class Parameters(Inert):
    """Stands for the dictionary of parameters that textual inversion's first code wrote; a mapping, as it was."""

    def __setstate__(self, state):
        found = state.get("_parameters") if isinstance(state, Mapping) else None
        self.parameters = dict(found) if isinstance(found, Mapping) else {}


# PyTorch finds it by these names
PARAMETERS = ("torch.nn.modules.container", "ParameterDict")
Parameters.__module__, Parameters.__qualname__ = PARAMETERS


def read_zip(path: Path, whole: bool = False) -> Any:
    """A file's tensors by name; all that it holds where it is asked for as a whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            objects = [name for name in names if name.endswith("data.pkl") and name.count("/") <= 1]
            if not objects or any(name.endswith("constants.pkl") for name in names):
                kind = "a TorchScript program" if objects else "a zip archive without PyTorch's data.pkl"
                raise FzError(f"{path}: is {kind}, not weights. Use .safetensors or .ckpt.")
            about = archive.getinfo(objects[0])
            if about.compress_type != zipfile.ZIP_STORED or about.file_size > LARGEST_PICKLE:
                raise FzError(
                    f"{path}: its data.pkl is compressed, or of {about.file_size / 1e6:.0f} MB, as PyTorch writes "
                    "none. Download it again, or use a .safetensors file."
                )
            with archive.open(objects[0]) as file:
                wanted = globals_of(file)
    except FzError:
        raise
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, LookupError, NotImplementedError, *SIZES) as error:
        raise FzError(f"{path}: damaged or cut short ({first_line(error)}). Download it again.") from None
    value = unpickle(path, wanted, mmap=True)
    return value if whole else state_of(path, value)


def read_old_pickle(path: Path, whole: bool = False) -> Any:
    try:
        with path.open("rb") as file:
            # magic number, protocol, machine; then the object
            wanted = [name for _ in range(4) for name in globals_of(file)]
    except (ValueError, EOFError, LookupError, *SIZES) as error:
        raise FzError(f"{path}: is no PyTorch file, or cut short ({first_line(error)}). Download it again.") from None
    value = unpickle(path, wanted, mmap=False)
    return value if whole else state_of(path, value)


def globals_of(file: BinaryIO) -> list[tuple[str, str]]:
    """(module, name) of every class or function that a pickle asks for. Reads to the pickle's end; runs nothing. Raises
    ValueError for one whose objects hold each other so often that they have no end.
    """
    found, strings, sizes = [], [], Sizes()
    for op, arg, _ in pickletools.genops(file):
        sizes.after(op, arg)
        if op.name in ("GLOBAL", "INST"):
            module, _, name = arg.partition(" ")
            found.append(("builtins" if module == "__builtin__" else module, name))
        elif op.name == "STACK_GLOBAL":
            found.append(tuple(strings[-2:]) if len(strings) > 1 else ("?", "?"))
        elif isinstance(arg, str):
            strings.append(arg)
    return found


class Sizes:
    """How large a pickle's objects are if what is shared counts every time: a few bytes can hold a pair of a pair of …,
    over which Python's hash takes hours.
    """

    def __init__(self):
        self.stack: list[list[int] | None] = []  # None: a mark
        self.memo: dict[int, list[int]] = {}

    def after(self, op: pickletools.OpcodeInfo, arg: object) -> None:
        """Take one instruction. Raises ValueError where an object has more than LARGEST_OBJECT parts."""
        stack = self.stack
        if op.name == "MARK":
            stack.append(None)
        elif op.name == "DUP":
            stack.append(stack[-1])
        elif op.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if op.name == "MEMOIZE" else int(arg)] = stack[-1]
        elif op.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[int(arg)])
        else:
            taken, before = [], op.stack_before
            if marked := pickletools.markobject in before:
                while (entry := stack.pop()) is not None:
                    taken.append(entry)
            for _ in range(before.index(pickletools.markobject) if marked else len(before)):
                taken.append(stack.pop())
            total = 1 + sum(entry[0] for entry in taken if entry)
            if total > LARGEST_OBJECT:
                raise ValueError("its objects hold each other without end")
            if op.stack_after:
                # the container that was there, if there was one, has grown: whoever shares it sees that
                grown = taken[-1] if op.name in GROWING else [0]
                grown[0] = total
                stack.append(grown)


def stand_in(module: str, name: str) -> Callable | None:
    """What to put for a class of a Lightning checkpoint; None for what is not to be stood in for."""
    if module == "collections" and name == "defaultdict":

        def body(*_):
            return OrderedDict()  # the safe reader fills in no other kind of mapping

    elif module.split(".")[0] in INERT_PACKAGES or (module == "builtins" and name in INERT_BUILTINS):
        body = type(name, (Inert,), {})
    else:
        return None
    # PyTorch finds a stand-in by these names
    body.__module__, body.__qualname__ = module, name
    return body


def unpickle(path: Path, wanted: list[tuple[str, str]], mmap: bool) -> Any:
    """What is in a PyTorch file whose pickle asks for the `wanted` globals."""
    stand_ins = {}
    refuse_packed(path, {name for module, name in wanted if module == "torch"})
    for module, name in wanted:
        if (module, name) == PARAMETERS:
            stand_ins[module, name] = Parameters
            continue
        if module.split(".")[0] == "torch" or (module, name) in PYTORCHS:
            continue  # PyTorch's own list decides
        body = stand_in(module, name)
        if body is None:
            got = f"{path}: its pickle asks for {module}.{name}, which weights do not need"
            raise FzError(f"{got}. Refused, since it could run code; use a .safetensors file.")
        stand_ins[module, name] = body
    try:
        with torch.serialization.safe_globals(list(stand_ins.values())):
            if path.suffix == ".safetensors":  # PyTorch goes by the name
                with path.open("rb") as file:
                    value = torch.load(file, map_location="cpu", weights_only=True)
            else:
                value = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise FzError(f"{path}: refused by PyTorch's safe reader ({reason(error)}). Use a .safetensors file.") from None
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        AssertionError,
        RecursionError,
        *SIZES,
    ) as error:
        raise FzError(f"{path}: damaged or cut short ({first_line(error)}). Download it again.") from None
    return value


def refuse_packed(path: Path, dtypes: Iterable[str]) -> None:
    """Raise FzError for numbers that PyTorch itself only keeps, by their types' names."""
    if packed := next((name for name in dtypes if name.endswith("_x2")), None):
        raise FzError(f"{path}: has numbers of {packed}, two a byte, which are not read. Use a file of 8 bits or more.")


def state_of(path: Path, value: object) -> dict[str, Tensor]:
    """The tensors by name: `value` itself, or its 'state_dict'. What else a training checkpoint holds is left
    behind.
    """
    nested = isinstance(value, Mapping) and isinstance(value.get("state_dict"), Mapping)
    state = value["state_dict"] if nested else value
    if not isinstance(state, Mapping):
        raise FzError(f"{path}: holds a {type(state).__name__}, expected a dictionary of weights.")
    odd = sorted(str(key) for key, entry in state.items() if not isinstance(entry, Tensor) and key not in TRAINING_LOG)
    if odd:
        if what := other_model(map(str, state)):
            raise FzError(f"{path}: is {what}. Expected a Stable Diffusion v1.x checkpoint.")
        raise FzError(
            f"{path}: no tensors under {some(odd)}. Expected a dictionary of weights, or one under state_dict."
        )
    return {str(key): entry.detach() for key, entry in state.items() if isinstance(entry, Tensor)}


def reason(error: Exception) -> str:
    """The useful line of PyTorch's long refusal."""
    lines = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "nsupported" in line]
    return lines[0].split(" was not an allowed")[0] if lines else first_line(error)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
