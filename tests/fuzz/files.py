"""Inputs by files that somebody else wrote: released configs, a checkpoint's JSON, its weights."""

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from .checks import Input
from .damage import SCALARS, changed, damaged, json_damaged, odd_file, yaml_damaged
from .ground import SOURCE, TARGET, Ground, joined

KEYS = (
    "seed", "dataset_config.path", "dataset_config.n_sample_frame", "editing_config.num_inference_steps", "train_steps",
    "editing_config.guidance_scale", "editing_config.editing_prompts", "editing_config.p2p_config.0.self_replace_steps",
    "editing_config.p2p_config.0.blend_words", "editing_config.p2p_config.0.eq_params.values", "a", "a.b[0].c", "",
    ".", "model_config", "editing_config.p2p_config.0.cross_replace_steps.default_", "dataset_config.offset.left",
    "editing_config.p2p_config[1]", "editing_config.editing_prompts.0", "editing_config.editing_prompts[99]",
    "pretrained_model_path", "learning_rate",
)  # fmt: skip


def yaml(chance: Random, ground: Ground, work: Path) -> Input:
    """A released config, damaged, or with --set that makes no sense; for editing and for tuning."""
    text = ground.config.read_text().replace(" model\n", f" {ground.model}\n").replace(" clip\n", f" {ground.clip}\n")
    damage = chance.random() < 0.8
    (work / "c.yaml").write_bytes(yaml_damaged(chance, text) if damage else text.encode())
    if chance.random() < 0.04:
        odd_file(chance, work / "c.yaml")
    command = chance.choice(("fz.run", "fz.run", "fz.prompt", "fz.tune"))
    argv = ["--config", "c.yaml"]
    for _ in range(chance.choice((0, 0, 1, 3)) if damage else 2):
        argv += ["--set", f"{chance.choice(KEYS)}{chance.choice(('=', '=', '=', ''))}{chance.choice(SCALARS)}"]
    if command == "fz.run":
        argv += ["--out", "o", "--cache", "cache", "--device", "cpu", "--threads", "1", "--size", "64", "--dry-run"]
    elif command == "fz.tune":
        argv += ["--out", "o", "--size", "64", "--device", "cpu", "--dry-run"]
    return Input("yaml", command, [a.replace("\0", "") for a in argv], work, keep=[work / "c.yaml"])


def model_copy(ground: Ground, work: Path) -> Path:
    return Path(shutil.copytree(ground.model, work / "model"))


def using(chance: Random, ground: Ground, work: Path, kind: str, about: str) -> Input:
    """A command line that reads the model in the input's folder."""
    command = chance.choice(("fz.run", "fz.run", "fz.run", "fz.tune", "fz.prompt"))
    dry = (command != "fz.prompt" and chance.random() < 0.5) or None
    video = str(ground.clip) if command != "fz.prompt" or chance.random() < 0.5 else None
    make = ground.tuning if command == "fz.tune" else ground.flags
    argv = joined(make(checkpoint="model", dry_run=dry, video=video))
    return Input(kind, command, argv, work, about, keep=[work / "model"])


def configs(chance: Random, ground: Ground, work: Path) -> Input:
    """The JSON of a checkpoint, or its tokenizer."""
    model = model_copy(ground, work)
    files = [p for p in sorted(model.rglob("*")) if p.suffix in (".json", ".txt")]
    file = chance.choice([p for p in files if p.name == "config.json"] * 3 + files)
    if chance.random() < 0.06:
        what = odd_file(chance, file)
    elif file.suffix == ".txt":
        file.write_bytes(damaged(chance, file.read_bytes()))
        what = "bytes"
    else:
        file.write_bytes(json_damaged(chance, file.read_text()))
        what = "JSON"
    if chance.random() < 0.15:
        shutil.copytree(ground.model, work / "sound")
        flags = ground.flags(checkpoint="sound", model_config="model", tokenizer="model/tokenizer", dry_run=True)
        return Input("configs", "fz.run", joined(flags), work, f"{file.parent.name}/{file.name} {what}", keep=[model])
    return using(chance, ground, work, "configs", f"{file.parent.name}/{file.name} {what}")


class Harm:
    """Unpickles to a call that makes a folder, as a pickle of an attacker would."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, ("pwned",)


def pickled(chance: Random, state: dict[str, Any]) -> bytes:
    """A file of torch.save, of pickle, or one that is made to be costly or to run something."""
    import torch

    def saved(content: Any, **options: Any) -> bytes:
        out = io.BytesIO()
        torch.save(content, out, **options)
        return out.getvalue()

    first = next(iter(state))
    way = chance.randrange(9)
    if way == 0:
        return saved(state)
    if way == 1:
        return saved(state, _use_new_zipfile_serialization=False)
    if way == 2:
        return saved({"state_dict": state, "extra": Harm()})
    if way == 3:
        return pickle.dumps(chance.choice((Harm(), [1], {"a": 1}, {first: [0.5]}, None)))
    if way == 4:
        return saved(
            chance.choice(([1, 2], {1: 2}, {first: 1}, {first: "x"}, "x", None, {first: None}, torch.zeros(3)))
        )
    if way == 5:  # lists of lists, each twice: exponential for whoever follows them
        nested: Any = []
        for _ in range(chance.choice((30, 3000))):
            nested = (
                pickle.dumps(nested) if not nested else b"(" + nested[:-1] + b"2l." if len(nested) < 5000 else nested
            )
        return nested
    if way == 6:
        return b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b"."
    if way == 7:
        return b"\x80\x02" + b"(" * 1000 + b"\x8e" + (10**12).to_bytes(8, "little") + b"."
    data = saved(state)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = chance.choice(list(parts))
    parts[name] = damaged(chance, parts[name])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for key, value in parts.items():
            archive.writestr(key, value)
    return out.getvalue()


def tensors_changed(chance: Random, state: dict[str, Any]) -> dict[str, Any]:
    import torch

    for _ in range(chance.choice((1, 1, 2, 5))):
        key, way = chance.choice(list(state)), chance.randrange(8)
        tensor = state[key]
        if way == 0 and len(state) > 1:
            del state[key]
        elif way == 1:
            state[key + chance.choice(("x", ".weight", ""))] = torch.zeros(chance.choice(((), (0,), (3,), (2, 2))))
        elif way == 2:
            shape = chance.choice(
                ((), (0,), (1,), (*tensor.shape, 1), tensor.shape[::-1], (tensor.numel(),), (3, 3, 3))
            )
            state[key] = torch.zeros(shape)
        elif way == 3:
            kinds = (
                torch.int64,
                torch.bool,
                torch.float16,
                torch.bfloat16,
                torch.float64,
                torch.uint8,
                torch.float8_e4m3fn,
            )
            state[key] = tensor.to(chance.choice(kinds))
        elif way == 4:
            state[key] = torch.full_like(tensor, chance.choice((float("nan"), float("inf"), 1e30, -1e38, 0.0, 1e-40)))
        elif way == 5:
            prefix = chance.choice(("module.", "state_dict.", "model.", "unet.", "first_stage_model."))
            state = {prefix + name: value for name, value in state.items()}
        elif way == 6 and tensor.ndim:
            state[key] = chance.choice((torch.cat([tensor, tensor]), tensor[:0], tensor[:1], tensor[None]))
        else:
            state[chance.choice(("embedding_manager.x", "\x1b[31m", "ü", "a" * 500, "position_ids"))] = state[
                key
            ].clone()
    return state


def head_changed(chance: Random, data: bytes) -> bytes:
    """A safetensors file whose header lies."""
    length = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + length])
    way = chance.randrange(6)
    if way == 0:
        return chance.choice((0, 1, 2**63, 10**12, length - 1, length + 1, 10**8)).to_bytes(8, "little") + data[8:]
    if way == 1:
        text = json_damaged(chance, json.dumps(head))
    else:
        name = chance.choice([n for n in head if n != "__metadata__"])
        entry = head[name]
        if way == 2:
            entry["shape"] = chance.choice(([10**9, 10**9], [-1], [0], entry["shape"] * 2, [2**62, 4], ["a"], None))
        elif way == 3:
            entry["data_offsets"] = chance.choice(
                ([0, 10**15], [5, 3], [-1, 4], [0, 0], entry["data_offsets"][::-1], [0])
            )
        elif way == 4:
            entry["dtype"] = chance.choice(("F64", "I64", "BOOL", "F8_E5M2", "X", "", None, "C64", "U16"))
        else:
            head = changed(chance, head)
        text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def weights(chance: Random, ground: Ground, work: Path) -> Input:
    """The weights of a checkpoint."""
    from safetensors.torch import load_file, save

    model = model_copy(ground, work)
    file = chance.choice(sorted(model.rglob("*.safetensors")))
    data, way = (
        file.read_bytes(),
        chance.choice(("bytes", "tensors", "tensors", "head", "pickle", "shards", "odd", "single")),
    )
    if way == "bytes":
        file.write_bytes(damaged(chance, data))
    elif way == "tensors":
        state = tensors_changed(chance, load_file(file))
        file.write_bytes(save({k: t.contiguous() for k, t in state.items()}))
    elif way == "head":
        file.write_bytes(head_changed(chance, data))
    elif way == "pickle":
        content = pickled(chance, load_file(file))
        if chance.random() < 0.6:
            file.unlink()
            file = file.with_name("pytorch_model.bin" if file.name == "model.safetensors" else file.stem + ".bin")
        file.write_bytes(content if chance.random() < 0.7 else damaged(chance, content))
    elif way == "shards":
        index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(file), file.name.replace(".s", "-1.s"))}
        name = chance.choice(
            (file.name.replace(".s", "-1.s"), f"{file.name}.index.json", "../../x.safetensors", "", "/dev/zero")
        )
        if chance.random() < 0.5:
            index["weight_map"][chance.choice(list(index["weight_map"]))] = name
        file.rename(file.with_name(file.name.replace(".s", "-1.s")))
        text = json.dumps(index)
        file.with_name(f"{file.name}.index.json").write_bytes(
            text.encode() if chance.random() < 0.4 else json_damaged(chance, text)
        )
    elif way == "odd":
        way = odd_file(chance, file)
    else:
        return single(chance, ground, work)
    return using(chance, ground, work, "weights", f"{file.parent.name}/{file.name} {way}")


def single(chance: Random, ground: Ground, work: Path) -> Input:
    """A single file of the original layout, damaged; or another VAE."""
    from safetensors.torch import load_file, save

    from ..checkpoints import compvis

    parts = {
        name: load_file(next((ground.model / name).glob("*.safetensors"))) for name in ("unet", "vae", "text_encoder")
    }
    text = {k.removeprefix("text_model."): t for k, t in parts["text_encoder"].items()}
    state = {k: t.contiguous() for k, t in compvis(parts["unet"], parts["vae"], text, levels=3, layers=1).items()}
    way = chance.randrange(4)
    name, content = "one.safetensors", None
    if way == 0:
        content = damaged(chance, save(state))
    elif way == 1:
        name, content = chance.choice(("one.ckpt", "one.pt", "one.safetensors", "one.bin")), pickled(chance, state)
    elif way == 2:
        content = head_changed(chance, save(state))
    else:
        content = save({k: t.contiguous() for k, t in tensors_changed(chance, state).items()})
    (work / name).write_bytes(content)
    shutil.rmtree(work / "model", ignore_errors=True)
    flags = {"checkpoint": name, "model_config": str(ground.model), "tokenizer": str(ground.model / "tokenizer")}
    if chance.random() < 0.2:
        flags = {"vae": name}
    given = ground.flags(**flags, dry_run=chance.random() < 0.5 or None, ema=chance.choice((None, "plain", "ema")))
    return Input("weights", "fz.run", joined(given), work, f"single file {way}", keep=[work / name])


def batches(chance: Random, ground: Ground, work: Path) -> Input:
    """Many clips: a YAML or CSV of jobs, whole or damaged, and flags over it."""
    jobs = [
        {"clip": str(ground.clip), "source": SOURCE, "target": TARGET, "size": 64, "frames": 2, "steps": 2},
        {"name": "second", "clip": str(ground.movie), "source": SOURCE, "targets": [TARGET, SOURCE], "edit": "shape"},
    ]
    if chance.random() < 0.6:
        text, name = json.dumps({"jobs": jobs} if chance.random() < 0.5 else jobs, indent=1), "jobs.yaml"
        data = yaml_damaged(chance, text)
    else:
        text = (
            f"name,clip,source,target\na,{ground.clip},{SOURCE},{TARGET}\n=1+1,{ground.movie},{SOURCE},a boat|a car\n"
        )
        data, name = damaged(chance, text.encode()), "jobs.csv"
    (work / name).write_bytes(data if chance.random() < 0.8 else text.encode())
    if chance.random() < 0.04:
        odd_file(chance, work / name)
    flags = ground.flags(video=None, source=None, target=None, dry_run=True)
    return Input("batches", "fz.batch", [name, *joined(flags)], work, keep=[work / name])
