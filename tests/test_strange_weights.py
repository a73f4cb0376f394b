"""Checkpoints as the world has them: wrapped, mixed, padded, clip-skipped, renamed; and those made to do harm."""

import copy
import json
import pickle
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from checkpoints import UNET_FILE, edit_json
from safetensors.torch import load_file, save_file

from fz.errors import FzError
from fz.model.finite import NotFinite, Watch
from fz.model.unet_config import UNetConfig
from fz.settings.place import expanded
from fz.weights import architecture as arch
from fz.weights import layouts
from fz.weights.load import load_checkpoint
from fz.weights.read import read_json, read_weights
from fz.weights.tokenizer import load_tokenizer

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4).half(), "e": torch.empty(0, 3)}


def same(tensors, expected=STATE):
    return tensors.keys() == expected.keys() and all(torch.equal(tensors[k], t) for k, t in expected.items())


# ---- what is fine -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", [True, False])
def test_a_pickle_named_safetensors(new, tmp_path):
    torch.save({"state_dict": STATE}, tmp_path / "m.safetensors", _use_new_zipfile_serialization=new)
    weights = read_weights(tmp_path / "m.safetensors")
    assert same(weights.tensors) and weights.form == "pickle"


def test_bytes_after_the_last_tensor(tmp_path):
    save_file(STATE, tmp_path / "m.safetensors")
    whole = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "m.safetensors").write_bytes(whole + b"\n<!-- -->")
    assert same(read_weights(tmp_path / "m.safetensors").tensors)
    (tmp_path / "m.safetensors").write_bytes(whole[:-1])
    with pytest.raises(FzError, match="damaged or cut short"):
        read_weights(tmp_path / "m.safetensors")


@pytest.mark.parametrize("wrapper", ["module.", "state_dict.", "state_dict.module.", "_orig_mod."])
def test_wrapped_keys(wrapper, tmp_path):
    save_file({wrapper + key: t for key, t in STATE.items()}, tmp_path / "m.safetensors")
    assert same(read_weights(tmp_path / "m.safetensors").tensors)


def test_a_layer_called_module_is_no_wrapper():
    assert layouts.unwrapped({"module.a": 1, "b": 2}) == {"module.a": 1, "b": 2}


def test_the_vaes_attention_by_todays_names_in_the_original_layout(golden, tmp_path):
    """`mid.attn_1.to_q`, as converters of today write it."""
    from fz.weights.source import vae_file

    folder = golden / "tiny_sd/vae"
    ours = load_checkpoint(golden / "tiny_sd").vae.state_dict()
    config = json.loads((folder / "config.json").read_text())
    table = layouts.vae_table(len(config["block_out_channels"]), config["layers_per_block"])
    back = {v: k for k, v in table.items() if ".attentions." not in v}
    state = layouts.rename(ours, back, "test")
    state = {key.replace(".mid_block.attentions.0.", ".mid.attn_1."): t for key, t in state.items()}
    assert any(".mid.attn_1.to_q." in key for key in state) and any("to_out.0" in key for key in state)
    save_file(state, tmp_path / "vae.safetensors")
    part = vae_file(state, read_weights(tmp_path / "vae.safetensors"), folder / "config.json", tmp_path)
    assert same(part.weights.tensors, ours)


def test_what_textual_inversions_training_leaves_is_no_part():
    assert "embedding_manager.string_to_param_dict.*".startswith(layouts.LEFT_OUT)


@pytest.fixture
def copied(golden, tmp_path):
    import shutil

    shutil.copytree(golden / "tiny_sd", tmp_path / "model")
    return tmp_path / "model"


def test_a_clip_skipped_text_encoder(copied):
    config = copied / "text_encoder/config.json"
    layers = json.loads(config.read_text())["num_hidden_layers"]
    edit_json(config, num_hidden_layers=layers - 1)
    text = load_checkpoint(copied).text.model
    assert text.config.num_hidden_layers == layers - 1
    edit_json(config, num_hidden_layers=layers + 1)
    with pytest.raises(FzError, match="missing"):
        load_checkpoint(copied)


# ---- what is said better ------------------------------------------------------------------------------------


def test_the_hubs_cache_itself_is_no_checkpoint(tmp_path):
    snapshot = tmp_path / "models--x--sd/snapshots/abc"
    (snapshot / "unet").mkdir(parents=True)
    with pytest.raises(FzError, match=r"Hub's cache. Pass the snapshot in it, .*snapshots/abc"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_lfs_pointers_of_a_tokenizer(name, golden, tmp_path):
    for other in (golden / "tiny_sd/tokenizer").iterdir():
        (tmp_path / other.name).write_bytes(other.read_bytes())
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n")
    with pytest.raises(FzError, match="git-lfs pointer.*git lfs pull"):
        load_tokenizer(tmp_path, 10**6)


@pytest.mark.parametrize(
    ("dtype", "hint"),
    [(torch.float16, "bfloat16, or float32"), (torch.bfloat16, "float32"), (torch.float32, "damaged")],
)
def test_what_to_do_about_an_overflow_goes_by_the_models_dtype(dtype, hint):
    unet = torch.nn.Linear(1, 1).to(dtype)
    with pytest.raises(NotFinite, match=hint):
        Watch().look(torch.tensor([float("inf")]), {"": unet}, 1, lambda: torch.zeros(1))


def test_a_user_that_there_is_not():
    for call in (lambda: load_checkpoint("~nosuchuser/sd"), lambda: expanded("~nosuchuser", "video")):
        with pytest.raises(FzError, match="~nosuchuser is no user of this machine"):
            call()


# ---- what would do harm -------------------------------------------------------------------------------------


def doubled(times):
    """A pair of a pair of …: as a key, its hash takes 2^times steps. The key's own dictionary is written by hand."""
    pair = ("x",)
    for _ in range(times):
        pair = (pair, pair)
    inner = pickle.dumps(pair, 2)
    return b"\x80\x02}" + inner[2:-1] + b"K\x01s."


@pytest.mark.parametrize("where", ["old", "zip"])
def test_a_small_pickle_that_would_take_hours(where, tmp_path):
    path = tmp_path / "m.ckpt"
    if where == "old":
        head = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        path.write_bytes(head + doubled(40) + pickle.dumps([], 2))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("m/data.pkl", doubled(40))
            archive.writestr("m/version", "3\n")
    assert path.stat().st_size < 20_000
    start = time.monotonic()
    with pytest.raises(FzError, match="m.ckpt"):
        read_weights(path)
    assert time.monotonic() - start < 5


def test_a_compressed_pickle(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"\x80\x02" + b"N0" * 5_000_000 + b"N.")
    start = time.monotonic()
    with pytest.raises(FzError, match="compressed"):
        read_weights(tmp_path / "m.ckpt")
    assert time.monotonic() - start < 5


UNET = {
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
ODD_CONFIGS = {
    "10^9 layers": (arch.check_unet, UNET | {"layers_per_block": 10**9}, "layers_per_block is 1000000000, expected at"),
    "wide": (arch.check_unet, UNET | {"block_out_channels": [32, 10**9]}, "at most"),
    "many levels": (arch.check_unet, {name: value * 10 for name, value in UNET.items()}, "at most 8 levels"),
    "eps a text": (arch.check_unet, UNET | {"norm_eps": "small"}, "norm_eps is 'small', expected a number"),
    "eps NaN": (arch.check_unet, UNET | {"norm_eps": float("nan")}, "norm_eps is nan"),
    "freq_shift a list": (arch.check_unet, UNET | {"freq_shift": [1]}, "freq_shift is"),
    "flip a number": (arch.check_unet, UNET | {"flip_sin_to_cos": 3}, "expected true or false"),
    "heads a dictionary": (arch.check_unet, UNET | {"attention_head_dim": {"a": 1}}, "attention_head_dim"),
    "heads a list of texts": (arch.check_unet, UNET | {"attention_head_dim": ["8", "8"]}, "attention_head_dim"),
    "vae blocks a number": (arch.check_vae, {"block_out_channels": [32], "down_block_types": 3}, "expected a list"),
    "vae layers": (arch.check_vae, {"block_out_channels": [32], "layers_per_block": 10**9}, "at most"),
    "text layers": (arch.check_text, {"num_hidden_layers": 10**9}, "at most"),
    "text_config a list": (arch.check_text, {"model_type": "clip", "text_config": [1]}, "expected an object"),
    "end token a text": (arch.check_text, {"eos_token_id": "end"}, "expected a token's number"),
    "text eps": (arch.check_text, {"layer_norm_eps": None}, "layer_norm_eps is None"),
    "3*10^8 timesteps": (arch.check_scheduler, {"num_train_timesteps": 3 * 10**8}, "at most 100000"),
    "steps_offset": (arch.check_scheduler, {"steps_offset": -1000}, "steps_offset is -1000, expected a whole"),
    "beta 0": (arch.check_scheduler, {"beta_start": 0}, "beta_start is 0, expected a number"),
    "beta a text": (arch.check_scheduler, {"beta_end": "0.012"}, "beta_end is '0.012'"),
    "betas reversed": (arch.check_scheduler, {"beta_start": 0.1, "beta_end": 0.01}, "is above beta_end"),
    "set_alpha": (arch.check_scheduler, {"set_alpha_to_one": "yes"}, "expected true or false"),
    "beyond digits": (arch.check_scheduler, {"num_train_timesteps": 10**5000}, "thousands of digits"),
}


@pytest.mark.parametrize("case", ODD_CONFIGS)
def test_odd_values_of_configs_are_one_line(case):
    check, config, expected = ODD_CONFIGS[case]
    start = time.monotonic()
    with pytest.raises(FzError) as error:
        check(copy.deepcopy(config), "config.json")
    assert expected in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400
    assert time.monotonic() - start < 1


SOUND_CONFIGS = {
    "diffusers' EMAModel": {"decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 37000,
                            "power": 0.6667, "update_after_step": 0, "use_ema_warmup": False},
    "nulls": dict.fromkeys(("upcast_attention", "use_linear_projection", "only_cross_attention", "act_fn",
                            "resnet_time_scale_shift", "attention_type", "class_embeddings_concat", "conv_in_kernel")),
}  # fmt: skip


@pytest.mark.parametrize("case", SOUND_CONFIGS)
def test_fields_that_change_nothing(case):
    config = UNET | {"attention_head_dim": 8} | SOUND_CONFIGS[case]
    arch.check_unet(config, "config.json")
    plain = UNetConfig.from_json(UNET | {"attention_head_dim": 8})
    assert UNetConfig.from_json(config) == plain


def test_a_null_is_no_value_where_another_is_the_default():
    for name in ("use_quant_conv", "mid_block_add_attention", "scaling_factor"):
        with pytest.raises(FzError, match=f"{name} is None, expected"):
            arch.check_vae({"block_out_channels": [32], name: None}, "config.json")
    with pytest.raises(FzError, match="prediction_type is None, expected 'epsilon'"):
        arch.check_scheduler({"prediction_type": None}, "scheduler_config.json")
    assert arch.check_scheduler({"thresholding": None}, "scheduler_config.json") == arch.SCHEDULE


def test_json_nested_without_end(tmp_path):
    (tmp_path / "config.json").write_text('{"a":' + "[" * 200_000)
    with pytest.raises(FzError, match="nested too deeply|no valid JSON"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("name", "value"),
    [("image_mean", 3), ("image_mean", "abc"), ("image_std", [0.1, True, 0.1]), ("image_std", [1e99, 1, 1])],
)
def test_odd_preprocessing(name, value, tmp_path):
    from fz.model.clip_vision import ViTConfig
    from fz.weights.clip import preprocessing

    (tmp_path / "preprocessor_config.json").write_text(json.dumps({name: value}))
    with pytest.raises(FzError, match="expected three numbers each"):
        preprocessing(tmp_path, ViTConfig())


def test_an_index_that_names_itself(copied):
    weights = load_file(copied / f"{UNET_FILE}.safetensors")
    (copied / f"{UNET_FILE}.safetensors").unlink()
    index = copied / f"{UNET_FILE}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, index.name)}))
    with pytest.raises(FzError, match="an index, expected weights"):
        load_checkpoint(copied)


def test_a_length_that_no_memory_holds_is_damage(tmp_path):
    """A text of 4 GB, says the pickle, of which 3 bytes follow; on a machine with less to give."""
    code = (
        "import resource, sys\n"
        "import torch\n"
        "from pathlib import Path\n"
        "from fz.errors import FzError\n"
        "from fz.weights.read import read_weights\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize() + 2**30\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size, size))\n"
        "try:\n    read_weights(Path(sys.argv[1]))\n"
        "except FzError as error:\n    print(error)"
    )
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    (tmp_path / "a.ckpt").write_bytes(magic + b"\x80\x02X\xff\xff\xff\xf0abc.")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.ckpt")], capture_output=True, text=True)
    assert done.returncode == 0 and "a.ckpt: " in done.stdout and "Download it again" in done.stdout, done.stderr
