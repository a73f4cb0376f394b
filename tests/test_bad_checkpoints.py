"""What is no Stable Diffusion v1 checkpoint is refused in one line that names what it is."""

import pickle
import shutil
import zipfile

import pytest
import torch
from checkpoints import UNET_FILE, drop, edit_json, shard
from safetensors.torch import load_file, save_file

from fz.errors import FzError
from fz.weights.changes import Changes
from fz.weights.load import fill, load_checkpoint, of_sd
from fz.weights.read import Weights

pytest_plugins = ["golden_model"]


def put(name, content):
    def write(tmp_path, flat):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


def saved(change, writer=save_file, name="model.safetensors"):
    def write(tmp_path, flat):
        writer({k: t.contiguous() for k, t in change(dict(flat)).items()}, tmp_path / name)
        return tmp_path / name

    return write


def cut(writer, name, share):
    def write(tmp_path, flat):
        writer(flat, tmp_path / name)
        size = int(share * (tmp_path / name).stat().st_size)
        with (tmp_path / name).open("r+b") as file:
            file.truncate(size)
        return tmp_path / name

    return write


def not_pytorchs_zip(tmp_path, flat):
    with zipfile.ZipFile(tmp_path / "model.ckpt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    return tmp_path / "model.ckpt"


def torchscript(tmp_path, flat):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def only_keys(prefix, strip=False):
    return lambda s: {k.removeprefix(prefix) if strip else k: t for k, t in s.items() if k.startswith(prefix)}


UNET = "model.diffusion_model."
CONV_IN, OUT = UNET + "input_blocks.0.0.weight", UNET + "out.2.weight"
PROJ_IN, TO_K = (
    UNET + "input_blocks.1.1.proj_in.weight",
    UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n"
ONE = torch.zeros(1)

BAD_FILES = {
    "empty": (put("model.ckpt", b""), "is empty"),
    "git-lfs pointer": (put("model.ckpt", LFS), "git-lfs pointer.*git lfs pull"),
    "html": (put("model.safetensors", b"<!DOCTYPE html><html><body>Log in</body></html>"), "is an HTML page"),
    "text": (put("model.ckpt", b"hello, this is no checkpoint\n"), "is a text file.*hello"),
    "json": (put("model.safetensors", b'{"error": "not found"}'), "is a text file"),
    "noise": (put("model.ckpt", bytes(range(200, 256)) * 40), "neither safetensors nor a PyTorch file"),
    "gguf": (put("model.ckpt", b"GGUF\x03\x00\x00\x00"), "is a GGUF file"),
    "safetensors cut in the header": (cut(save_file, "model.safetensors", 0.001), "cut short"),
    "safetensors cut in the data": (cut(save_file, "model.safetensors", 0.7), "damaged or cut short"),
    "ckpt cut": (cut(torch.save, "model.ckpt", 0.7), "damaged or cut short"),
    "old ckpt cut": (
        cut(lambda s, f: torch.save(s, f, _use_new_zipfile_serialization=False), "model.ckpt", 0.7),
        "damaged or cut short",
    ),
    "old ckpt cut in the pickle": (
        cut(lambda s, f: torch.save(s, f, _use_new_zipfile_serialization=False), "m.ckpt", 0.0005),
        "cut short",
    ),
    "safetensors header that is no JSON": (
        put("model.safetensors", (9).to_bytes(8, "little") + b"{not json"),
        "damaged or cut short",
    ),
    "zip": (not_pytorchs_zip, "without PyTorch's data.pkl"),
    "torchscript": (torchscript, "TorchScript program"),
    "plain pickle": (put("model.ckpt", pickle.dumps([1, 2, 3], protocol=2)), "no PyTorch file, or cut short"),
    "list": (lambda p, s: torch.save([ONE], p / "m.ckpt") or p / "m.ckpt", "holds a list, expected a dictionary"),
    "no tensors": (lambda p, s: torch.save({"state_dict": {}}, p / "m.ckpt") or p / "m.ckpt", "holds no weights"),
    "entries that are no tensors": (
        lambda p, s: torch.save({"model": dict(s)}, p / "m.ckpt") or p / "m.ckpt",
        "no tensors under model",
    ),
    "textual inversion": (
        lambda p, s: torch.save({"string_to_param": {"*": ONE}}, p / "e.pt") or p / "e.pt",
        "a textual inversion",
    ),
    "lone VAE": (saved(only_keys("first_stage_model.", strip=True)), "is a VAE alone.*--vae"),
    "lone prefixed VAE": (saved(only_keys("first_stage_model.")), "is a VAE alone"),
    "lone UNet": (saved(only_keys("model.diffusion_model.", strip=True)), "is a UNet alone"),
    "lone text encoder": (saved(only_keys("cond_stage_model.transformer.", strip=True)), "is a text encoder alone"),
    "lone diffusers UNet": (
        saved(lambda s: {"down_blocks.0.resnets.0.conv1.weight": ONE}),
        "UNet alone, in diffusers' layout",
    ),
    "lora": (saved(lambda s: {"lora_unet_down_blocks_0.lora_up.weight": ONE}), "is a LoRA file"),
    "diffusers lora": (
        saved(lambda s: {"unet.down_blocks.0.attn1.processor.to_q_lora.up.weight": ONE}),
        "is a LoRA file",
    ),
    "peft lora": (saved(lambda s: {"unet.down_blocks.0.attn1.to_q.lora_A.weight": ONE}), "is a LoRA file"),
    "controlnet": (saved(lambda s: s | {"control_model.input_blocks.0.0.weight": ONE}), "is a ControlNet"),
    "sd2": (saved(lambda s: s | {"cond_stage_model.model.ln_final.weight": ONE}), "is a Stable Diffusion 2 checkpoint"),
    "sdxl": (saved(lambda s: s | {"conditioner.embedders.0.x": ONE}), "is a Stable Diffusion XL checkpoint"),
    "another model": (
        saved(lambda s: {"bert.layer.weight": ONE}),
        "has no model.diffusion_model. keys .*bert.layer.weight",
    ),
    "inpainting": (saved(lambda s: s | {CONV_IN: torch.zeros(32, 9, 3, 3)}), "conv_in takes 9 channels.*inpainting"),
    "cross width 1024": (
        saved(lambda s: s | {TO_K: torch.zeros(32, 1024)}),
        "1024 wide, which is Stable Diffusion 2's",
    ),
    "linear projection": (
        saved(lambda s: s | {PROJ_IN: torch.zeros(32, 32)}),
        "proj_in is linear, which is Stable Diffusion 2's",
    ),
    "no VAE": (saved(drop("first_stage_model.")), "has no VAE.*--vae"),
    "unknown keys": (
        saved(lambda s: s | {"model.extra.weight": ONE, "b.c": ONE.clone()}),
        "2 keys are no part of .*model.extra.weight",
    ),
    "small model without config": (
        saved(lambda s: s),
        "VAE widths .* do not divide into v1's 32 groups.*--model-config",
    ),
}
WITH_CONFIG = {
    "no text encoder": (saved(drop("cond_stage_model.")), "has no text encoder"),
    "unet key missing": (saved(drop("out.2.bias")), r"unet: 1 key missing \(conv_out.bias\).*Stable Diffusion v1.x"),
    "unet key unexpected": (saved(lambda s: s | {"model.diffusion_model.x.y": ONE}), r"unet: 1 key unexpected \(x.y\)"),
    "unet key of another shape": (
        saved(lambda s: s | {OUT: torch.zeros(4, 8, 3, 3)}),
        r"1 key of the wrong shape .*4, 8, 3, 3",
    ),
    "many keys missing": (
        saved(drop("output_blocks.3.")),
        r"keys missing \(up_blocks.1.*, up_blocks.1.*, up_blocks.1.*, …\)",
    ),
    "whole numbers": (
        saved(lambda s: s | {OUT: torch.zeros(4, 32, 3, 3, dtype=torch.int8)}),
        "no floating-point numbers",
    ),
    "vae key missing": (
        saved(drop("decoder.up.3.block.0.conv1.bias")),
        "vae: 1 key missing .*up_blocks.0.resnets.0.conv1.bias",
    ),
    "text key missing": (saved(drop("final_layer_norm.bias")), "text encoder: 1 key missing .*final_layer_norm.bias"),
    "other noise schedule": (
        saved(lambda s: s | {"alphas_cumprod": torch.linspace(1, 0, 1000)}),
        "alphas_cumprod is another noise",
    ),
}


def refused(said, load, *args, **options):
    with pytest.raises(FzError, match=said) as error:
        load(*args, **options)
    message = str(error.value)
    assert "\n" not in message and len(message) < 600, message


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(case, flat, tmp_path, models):
    write, said = BAD_FILES[case]
    refused(said, load_checkpoint, write(tmp_path, flat), tokenizer=models / "tiny_sd" / "tokenizer")


@pytest.mark.parametrize("case", WITH_CONFIG)
def test_bad_keys(case, flat, tmp_path, single):
    write, said = WITH_CONFIG[case]
    refused(said, single, write(tmp_path, flat))


UNET_CONFIGS = {
    "sd 2": ({"cross_attention_dim": 1024}, "1024, which is Stable Diffusion 2's"),
    "sd 2's projection": (
        {"use_linear_projection": True},
        "use_linear_projection is true, which is Stable Diffusion 2's",
    ),
    "sdxl": ({"cross_attention_dim": 2048}, "2048, which is Stable Diffusion XL's"),
    "inpainting": ({"in_channels": 9}, "in_channels is 9.*an inpainting model"),
    "instruct-pix2pix": ({"in_channels": 8}, "in_channels is 8.*an InstructPix2Pix model"),
    "class embedding": ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
    "only cross": ({"only_cross_attention": True}, "only_cross_attention is True"),
    "dual cross": ({"dual_cross_attention": True}, "dual_cross_attention is True"),
    "time scale shift": ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift is 'scale_shift'"),
    "activation": ({"act_fn": "gelu"}, "act_fn is 'gelu'"),
    "added conditioning": ({"addition_embed_type": "text_time"}, "addition_embed_type is 'text_time'"),
    "blocks": ({"down_block_types": ["AttnDownBlock2D"] * 4}, "down_block_types has 'AttnDownBlock2D'"),
    "middle block": ({"mid_block_type": "UNetMidBlock2D"}, "mid_block_type is 'UNetMidBlock2D'"),
    "attention type": ({"attention_type": "gated"}, "attention_type is 'gated'"),
    "layers a level": ({"layers_per_block": [2, 2, 2, 1]}, "layers_per_block is .*expected one number"),
    "no widths": ({"block_out_channels": None}, "block_out_channels is None, expected a list"),
    "lengths": ({"up_block_types": ["UpBlock2D"]}, "up_block_types has 1 entries"),
    "a word": ({"norm_num_groups": "many"}, "norm_num_groups is 'many', expected a whole number"),
    "groups": ({"norm_num_groups": 7}, "does not divide into 7 groups"),
    "heads": ({"attention_head_dim": [5, 10]}, "attention_head_dim has 2 entries"),
    "another cross width": ({"cross_attention_dim": 48}, "wrong shape .*attn2.to_k|cross-attention 48"),
    "another depth": ({"layers_per_block": 3}, "unet: .* keys missing"),
    "unknown field": ({"motion_strength": 3}, "motion_strength"),
}


@pytest.mark.parametrize("case", UNET_CONFIGS)
def test_bad_unet_config(case, folder):
    changes, said = UNET_CONFIGS[case]
    edit_json(folder / "unet" / "config.json", **changes)
    refused(said, load_checkpoint, folder)


OTHER_CONFIGS = {
    "v-prediction": (
        "scheduler/scheduler_config.json",
        {"prediction_type": "v_prediction"},
        "prediction_type is 'v_prediction'",
    ),
    "betas": (
        "scheduler/scheduler_config.json",
        {"beta_schedule": "squaredcos_cap_v2"},
        "beta_schedule is 'squaredcos_cap_v2'",
    ),
    "trained betas": ("scheduler/scheduler_config.json", {"trained_betas": [0.1]}, "trained_betas is"),
    "zero snr": ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True"),
    "vae channels": ("vae/config.json", {"latent_channels": 16}, "latent_channels is 16, expected 4"),
    "vae scale": ("vae/config.json", {"scaling_factor": 0.13025}, "scaling_factor is 0.13025, expected 0.18215"),
    "vae blocks": ("vae/config.json", {"down_block_types": ["AttnDownEncoderBlock2D"] * 4}, "AttnDownEncoderBlock2D"),
    "vae depth": ("vae/config.json", {"layers_per_block": 1}, "vae: .* keys unexpected"),
    "text tokens": (
        "text_encoder/config.json",
        {"max_position_embeddings": 248},
        "max_position_embeddings is 248, expected 77",
    ),
    "text kind": ("text_encoder/config.json", {"model_type": "t5"}, "model_type is 't5'"),
    "text depth": ("text_encoder/config.json", {"num_hidden_layers": 3}, "text encoder: 16 keys missing"),
    "text heads": ("text_encoder/config.json", {"num_attention_heads": 5}, "hidden_size is not a multiple"),
    "text activation": ("text_encoder/config.json", {"hidden_act": "bogus"}, "hidden_act is 'bogus'"),
}


@pytest.mark.parametrize("case", OTHER_CONFIGS)
def test_bad_other_config(case, folder):
    file, changes, said = OTHER_CONFIGS[case]
    edit_json(folder / file, **changes)
    refused(said, load_checkpoint, folder)


def remove(name):
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def index(text):
    def change(folder):
        (folder / f"{UNET_FILE}.safetensors").unlink()
        (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(text)

    return change


FOLDERS = {
    "no unet": (remove("unet"), "has no unet/ folder"),
    "no vae": (remove("vae"), "vae: no such folder"),
    "no text encoder": (remove("text_encoder"), "text_encoder: no such folder"),
    "no weights": (
        remove(f"{UNET_FILE}.safetensors"),
        "has no weights .there: config.json.*diffusion_pytorch_model.safetensors",
    ),
    "no config": (remove("unet/config.json"), "config.json: no such file"),
    "config is no json": (write("vae/config.json", "{"), "no valid JSON"),
    "config is a list": (write("vae/config.json", "[]"), "got a JSON list"),
    "config is an lfs pointer": (write("unet/config.json", LFS.decode()), "git-lfs pointer"),
    "weights are an lfs pointer": (write(f"{UNET_FILE}.safetensors", LFS.decode()), "git-lfs pointer"),
    "index without map": (index("{}"), "has no weight_map"),
    "index out of the folder": (
        index('{"weight_map": {"conv_in.weight": "../../secret.bin"}}'),
        "expected a file beside it",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_bad_folder(case, folder):
    change, said = FOLDERS[case]
    change(folder)
    refused(said, load_checkpoint, folder)


ORIGINAL = {
    "predicts v": ('model: {params: {parameterization: "v"}}', "parameterization is 'v', expected 'eps'"),
    "predicts the picture": ("model: {params: {parameterization: x0}}", "parameterization is 'x0', expected 'eps'"),
    "another start": (
        "model: {params: {linear_start: 0.001}}",
        "linear_start is 0.001, and 0.00085 would be used. Pass",
    ),
    "another end": ("model: {params: {linear_end: 0.0195}}", "linear_end is 0.0195, and 0.012 would be used"),
    "fewer timesteps": ("model: {params: {timesteps: 500}}", "timesteps is 500, and 1000 would be used"),
    "another scale": (
        "model: {params: {scale_factor: 0.13025}}",
        "scale_factor is 0.13025, and 0.18215 would be used. Use",
    ),
    "no YAML": ("model: [", "^checkpoint: .*model.yaml is no YAML"),
}


@pytest.mark.parametrize("case", ORIGINAL)
def test_an_original_config_beside_a_file(case, flat, single, tmp_path):
    """NAME.yaml beside NAME.safetensors says what weights do not; these bring no schedule of their own."""
    text, said = ORIGINAL[case]
    save_file(drop("alphas_cumprod")(flat), tmp_path / "model.safetensors")
    (tmp_path / "model.yaml").write_text(text)
    refused(said, single, tmp_path / "model.safetensors")


SOUND = (
    "model: {params: {parameterization: eps, linear_start: 0.00085, linear_end: 0.0120, timesteps: 1000, "
    "scale_factor: 0.18215, unet_config: {target: ldm.UNetModel}}}"
)


@pytest.mark.parametrize("text", [SOUND, "model: {params: }", "model: sd", "- a\n- b", "", "dataset_config: {path: a}"])
def test_a_config_beside_a_file_that_says_nothing_else(text, flat, single, tmp_path):
    save_file(flat, tmp_path / "model.safetensors")
    (tmp_path / "model.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text('model: {params: {parameterization: "v"}}')
    assert "CompVis single file" in single(tmp_path / "model.safetensors").report


@pytest.mark.parametrize("mark", ["v_pred", "edm_vpred.sigma_max", "ztsnr"])
def test_a_mark_of_another_prediction(mark, flat, single, tmp_path):
    save_file(flat | {mark: torch.zeros(0)}, tmp_path / "model.safetensors")
    refused("is a model that predicts v|is a model of another noise schedule", single, tmp_path / "model.safetensors")


def test_a_description_of_another_prediction(flat, single, tmp_path):
    save_file(flat, tmp_path / "model.safetensors", metadata={"modelspec.prediction_type": "v"})
    refused("its modelspec.prediction_type is 'v', expected 'epsilon'", single, tmp_path / "model.safetensors")
    save_file(flat, tmp_path / "model.safetensors", metadata={"modelspec.prediction_type": "epsilon"})
    single(tmp_path / "model.safetensors")


GONE = {
    "unet": f"{UNET_FILE}.safetensors",
    "a config": "vae/config.json",
    "text encoder": "text_encoder/pytorch_model.bin",
    "tokenizer": "tokenizer/vocab.json",
}


@pytest.mark.parametrize("case", GONE)
def test_a_link_to_a_file_that_is_gone(case, folder):
    """As in a Hub's cache whose blobs were removed: the file's name is there, the file is not."""
    file = folder / GONE[case]
    file.unlink()
    file.symlink_to("../../../blobs/0123abcd")
    refused(
        f"{file.name}: is a link to ../../../blobs/0123abcd, which does not exist. Download", load_checkpoint, folder
    )


def test_a_shard_that_is_gone(folder):
    file = folder / f"{UNET_FILE}.safetensors"
    gone = folder / "unet" / shard(load_file(file), folder / "unet", ".safetensors")[1]
    file.unlink()
    gone.unlink()
    gone.symlink_to("blob")
    refused(f"{gone.name}: is a link to blob, which does not exist", load_checkpoint, folder)


@pytest.mark.parametrize("what", ["lora", "embedding"])
def test_a_folder_whose_file_is_gone(what, tmp_path):
    (tmp_path / "style.safetensors").symlink_to("../blobs/0123abcd")
    changes = Changes(**{what: ((str(tmp_path), 1.0 if what == "lora" else None),)})
    refused(f"^{what}: .*style.safetensors: is a link to ../blobs/0123abcd", load_checkpoint, "none", changes=changes)


def test_shard_with_other_keys(folder):
    file = folder / f"{UNET_FILE}.safetensors"
    names = shard(load_file(file), folder / "unet", ".safetensors")
    file.unlink()
    save_file({"conv_in.weight": ONE}, folder / "unet" / names[2])
    refused("keys differ from diffusion_pytorch_model.safetensors.index.json", load_checkpoint, folder)


def test_wrong_paths(models, folder, flat, tmp_path):
    refused("does not exist", load_checkpoint, tmp_path / "absent")
    refused("one part of a checkpoint. Pass the folder above", load_checkpoint, models / "tiny_sd" / "unet")
    (tmp_path / "models").mkdir()
    refused("has no unet/ folder. Expected a diffusers folder", load_checkpoint, tmp_path / "models")
    save_file({"a": ONE}, tmp_path / "models" / "v1.safetensors")
    refused("Did you mean the file .*v1.safetensors", load_checkpoint, tmp_path / "models")
    (tmp_path / "flux" / "transformer").mkdir(parents=True)
    refused("but a transformer/", load_checkpoint, tmp_path / "flux")
    refused("model_config: .* has no unet/config.json", load_checkpoint, models / "tiny_sd", model_config=tmp_path)
    refused("vae: .* does not exist", load_checkpoint, models / "tiny_sd", vae=tmp_path / "absent.pt")
    save_file({"a.b": ONE}, tmp_path / "no-vae.safetensors")
    refused("vae: .* is no VAE .it has a.b", load_checkpoint, models / "tiny_sd", vae=tmp_path / "no-vae.safetensors")


def test_one_layer_in_two_layouts(models, tiny, tmp_path):
    state = tiny.vae.state_dict()
    key = "encoder.mid_block.attentions.0.to_q.weight"
    save_file(state | {key.replace("to_q", "query"): state[key].clone()}, tmp_path / "vae.safetensors")
    refused("is there twice, under two names", load_checkpoint, models / "tiny_sd", vae=tmp_path / "vae.safetensors")


def test_fill_names_three_keys():
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 2, device="meta") for _ in range(4)))
    with pytest.raises(
        FzError, match=r"unet: 8 keys missing \(0.weight, 0.bias, 1.weight, …\). Is .*x.bin of a Stable Diffusion v1.x"
    ):
        fill(model, {}, "unet", of_sd(Weights({}, "bin", "x.bin")))
