"""CLIP's towers against transformers' CLIPModel on random weights, in every layout, and what is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from fz.errors import FzError
from fz.mini.words import new_tokenizer
from fz.model.clip_text import TextConfig, TextTower
from fz.model.clip_vision import Preprocess
from fz.weights.clip import clip_name, load_clip, translate

SHAPES = {
    # patch sizes and odd grids as ViT-B/32 and L/14 have them, narrow
    "patch 32": dict(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=224,
        patch_size=32,
    ),
    "patch 14": dict(
        hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    ),
}


@pytest.fixture(scope="module", params=SHAPES, ids=SHAPES)
def written(request, tmp_path_factory):
    """(folder in transformers' layout, transformers' model)."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = new_tokenizer(folder)
    torch.manual_seed(0)
    text = dict(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=1,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.start,
        eos_token_id=tokenizer.end,
    )
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=SHAPES[request.param], projection_dim=48)).eval()
    with torch.no_grad():
        for p in model.parameters():  # biases and class token too, which begin at 0
            p.copy_(torch.randn_like(p) * (0.1 if p.ndim > 1 else 0.3))
    model.save_pretrained(folder)
    return folder, model


def frames(n=3, h=90, w=70):
    return np.random.default_rng(0).integers(0, 256, (n, h, w, 3), dtype=np.uint8)


def reference(model, pictures):
    with torch.no_grad():
        state = model.vision_model(pixel_values=pictures).pooler_output
        return torch.nn.functional.normalize(model.visual_projection(state), dim=-1)


def original(model):
    """The model's weights under OpenAI's names, fused and turned as there."""
    out = {}
    state = model.state_dict()
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    names["self_attn.out_proj"] = "attn.out_proj"
    for tower, prefix in (("vision_model", "visual."), ("text_model", "")):
        for key, t in state.items():
            if not key.startswith(f"{tower}.encoder.layers."):
                continue
            n, rest = key.removeprefix(f"{tower}.encoder.layers.").split(".", 1)
            part, kind = rest.rsplit(".", 1)
            block = f"{prefix}transformer.resblocks.{n}."
            if part == "self_attn.q_proj":
                parts = [state[key.replace("q_proj", f"{c}_proj")] for c in "qkv"]
                out[f"{block}attn.in_proj_{kind}"] = torch.cat(parts)
            elif part in names:
                out[f"{block}{names[part]}.{kind}"] = t
    vision, text = "vision_model.", "text_model."
    out["visual.class_embedding"] = state[vision + "embeddings.class_embedding"]
    out["visual.conv1.weight"] = state[vision + "embeddings.patch_embedding.weight"]
    out["visual.positional_embedding"] = state[vision + "embeddings.position_embedding.weight"]
    out["positional_embedding"] = state[text + "embeddings.position_embedding.weight"]
    out["token_embedding.weight"] = state[text + "embeddings.token_embedding.weight"]
    for theirs, ours in (
        ("visual.ln_pre", "vision_model.pre_layrnorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
        ("ln_final", "text_model.final_layer_norm"),
    ):
        for kind in ("weight", "bias"):
            out[f"{theirs}.{kind}"] = state[f"{ours}.{kind}"]
    out["visual.proj"] = state["visual_projection.weight"].T.contiguous()
    out["text_projection"] = state["text_projection.weight"].T.contiguous()
    out["logit_scale"] = state["logit_scale"]
    return out


def test_images_equal_transformers(written):
    folder, model = written
    clip = load_clip(folder)
    expected = reference(model, clip.preprocess(frames()))
    assert (clip.images(frames()) - expected).abs().max() < 1e-5


def test_texts_equal_transformers(written):
    folder, model = written
    clip = load_clip(folder)
    prompts = ["a red car moving on the sand", "a ball", "a ball " * 50]
    theirs = CLIPTokenizer.from_pretrained(folder)
    ids = theirs(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = torch.nn.functional.normalize(
            model.text_projection(model.text_model(input_ids=ids).pooler_output), dim=-1
        )
    assert (clip.texts(prompts) - expected).abs().max() < 1e-5


def test_original_state_dict_is_the_same_model(written, tmp_path):
    folder, model = written
    torch.save(original(model), tmp_path / "clip.pt")
    clip = load_clip(tmp_path / "clip.pt", tokenizer=folder)
    expected = load_clip(folder)
    assert (clip.images(frames()) - expected.images(frames())).abs().max() < 1e-6
    # heads are 64 wide there; the text tower here is 64 wide with one head
    assert (clip.texts(["a red ball"]) - expected.texts(["a red ball"])).abs().max() < 1e-6
    assert translate(original(model)).keys() - {"logit_scale"} == model.state_dict().keys() - {"logit_scale"}


@pytest.mark.parametrize("h, w", [(90, 70), (64, 64), (31, 200), (224, 224), (300, 225)])
def test_preprocessing_equals_transformers(h, w):
    pictures = frames(2, h, w)
    theirs = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    expected = theirs(images=list(pictures), return_tensors="pt")["pixel_values"]
    got = Preprocess(56)(pictures)
    # one level of 255: transformers may resize in floating point
    assert got.shape == expected.shape and (got - expected).abs().max() < 1.01 / 255 / 0.26


def test_a_clip_of_the_hubs_cache_is_called_by_its_name(written, tmp_path, monkeypatch):
    folder = written[0]
    snapshot = tmp_path / "models--owner--clip/snapshots/0123456789abcdef"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(folder)
    assert load_clip(snapshot).name == clip_name(snapshot) == "owner/clip"
    with pytest.raises(FzError, match="^clip: .*gone does not exist"):
        clip_name(tmp_path / "gone")
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "config.json").write_text("{}")
    (bad / "model.safetensors").symlink_to("../blobs/0123abcd")
    with pytest.raises(FzError, match="model.safetensors: is a link to ../blobs/0123abcd, which does not exist"):
        load_clip(bad)


def test_refused_in_one_line(written, tmp_path):
    folder, model = written
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(FzError, match="has none of"):
        load_clip(tmp_path, folder)
    save_file({k: v for k, v in state.items() if "post_layernorm.bias" not in k}, tmp_path / "model.safetensors")
    with pytest.raises(FzError, match="missing.*post_layernorm.bias"):
        load_clip(tmp_path, folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "quick_gelus"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FzError, match="Did you mean 'quick_gelu'"):
        load_clip(tmp_path, folder)
    with pytest.raises(FzError, match="does not exist"):
        load_clip(tmp_path / "nowhere")
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "ViT-B-32.pt"))
    with pytest.raises(FzError, match=r"TorchScript.*torch\.jit\.load"):
        load_clip(tmp_path / "ViT-B-32.pt")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(FzError, match="Is it CLIP"):
        load_clip(tmp_path / "other.safetensors")


@pytest.mark.parametrize("end", [61, 2], ids=["end by its number", "end by the largest"])
@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@torch.no_grad()
def test_the_text_tower_is_transformers(end, act):
    shape = dict(
        vocab_size=64, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=20, projection_dim=24, hidden_act=act, layer_norm_eps=1e-4, bos_token_id=60,
        eos_token_id=end, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = CLIPTextModelWithProjection(CLIPTextConfig(**shape)).eval()
    for p in theirs.parameters():
        p.copy_(torch.randn_like(p) * 0.2)
    ours = TextTower(TextConfig(**shape)).eval()
    ours.load_state_dict({k: t for k, t in theirs.state_dict().items() if not k.endswith("position_ids")})
    ids = torch.randint(3, 60, (4, 17))
    # padded after its end, at its end, and by the end token itself
    ids[0, 9:], ids[1, 16], ids[2, 5:], ids[3, 7] = 0, 61, 61, 61
    ids[0, 8] = 61
    expected = theirs(input_ids=ids)
    states = ours.text_model(ids)
    torch.testing.assert_close(states.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours(ids), expected.text_embeds, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours(ids)[0], ours(ids.flip(1))[0], atol=1e-2)


def test_the_usual_text_shape_is_transformers():
    usual = CLIPTextConfig()
    assert {name: getattr(usual, name) for name in TextConfig.__dataclass_fields__} == vars(TextConfig())
    for wrong, said in (({"hidden_act": "gelo"}, "Did you mean 'gelu'"), ({"num_attention_heads": 7}, "divide")):
        with pytest.raises(FzError, match=said):
            TextConfig(**wrong)
