"""How is the miniature's CLIP trained, whose features the metrics compare?

Contrastive (Radford et al. 2021) with neighbours that differ in one word: batches are groups of stories alike but for
one of colour, kind, scene and style, and each picture also meets its caption with one of these changed. Then the share
of held-out pictures that prefer their own caption.
"""

import dataclasses
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextModelWithProjection

from fz.mini.data import held_out
from fz.mini.stage import Stage
from fz.mini.training import SHORT
from fz.mini.words import new_tokenizer
from fz.mini.world import COLOURS, KINDS, SCENES, STYLES, VERB, Story, caption, counterfactual, draw_frame, sample_story
from fz.model.clip_vision import MEAN, STD, ClipModel, ImageTower, Preprocess, ViTConfig
from fz.prompts.tokenizer import ClipTokenizer
from fz.weights.clip import fill, folder_shape, text_tower

SIDE = 64
SHAPE = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "hidden_act": "quick_gelu"}
VISION = {**SHAPE, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": 8}
TEXT = {**SHAPE, "num_hidden_layers": 2, "max_position_embeddings": 77}
PROJECTION = 64
CHOICES = {"colour": COLOURS, "kind": KINDS, "scene": SCENES, "style": STYLES}
CHANGED = (*CHOICES, "kind", "kind")  # of each caption, in turn; kinds are what is hardest to tell
GROUPS, GROUP = 32, 4  # a batch: so many groups of so many pictures


def configuration(tokenizer: ClipTokenizer) -> dict:
    """config.json."""
    words = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.start,
        "eos_token_id": tokenizer.end,
        "pad_token_id": tokenizer.padding,
    }
    vision, text = ({**tower, "projection_dim": PROJECTION} for tower in (VISION, TEXT | words))
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": PROJECTION,
        "logit_scale_init_value": 2.6592,
        "vision_config": vision,
        "text_config": text,
    }


def new_clip(tokenizer: ClipTokenizer) -> CLIPModel:
    # eager: with gradients and as few tokens as here, faster than the flash kernel
    return CLIPModel(CLIPConfig(**configuration(tokenizer), attn_implementation="eager"))


def as_clip(model: CLIPModel, tokenizer: ClipTokenizer) -> ClipModel:
    """The trained model as the metrics use it, by way of the hand-written tower."""
    vision, text = folder_shape(configuration(tokenizer), Path("config.json"))
    tower, text_model = ImageTower(ViTConfig(**vision)), text_tower(text, PROJECTION)
    state = {k: t.detach().clone() for k, t in model.state_dict().items() if k != "logit_scale"}
    fill(tower, {k: t for k, t in state.items() if k.startswith("vis")}, "clip", "Expected CLIP.")
    fill(text_model, {k: t for k, t in state.items() if k.startswith("text")}, "clip", "Expected CLIP.")
    return ClipModel(tower, text_model, tokenizer, Preprocess(SIDE), "miniature")


def stories_of(captions: list[str]) -> list[Story]:
    """The stories of `fz.mini.train_vae.pictures`, by their seeds. Raises ValueError if their captions are others."""
    stories = [sample_story(seed) for seed in range(len(captions))]
    found = [
        s if caption(s) == c else dataclasses.replace(s, things=()) for s, c in zip(stories, captions, strict=True)
    ]
    if wrong := [i for i, (s, c) in enumerate(zip(found, captions, strict=True)) if caption(s) != c]:
        raise ValueError(
            f"pictures: {len(wrong)} captions are not of their seeds' stories, first {wrong[0]}. Draw them anew."
        )
    return found


def attributes(story: Story) -> tuple:
    """What its caption names: (colours, kinds, scene, style)."""
    return tuple(t.colour for t in story.things), tuple(t.kind for t in story.things), story.scene, story.style


def otherwise(story: Story, what: str, rng: random.Random) -> Story:
    """The same story with another colour, kind (of a thing at random), scene or style; of an empty scene, another scene
    or style.
    """
    if what in ("colour", "kind") and not story.things:
        what = rng.choice(["scene", "style"])
    if what in ("scene", "style"):
        new = rng.choice([v for v in CHOICES[what] if v != getattr(story, what)])
        return dataclasses.replace(story, **{what: new})
    thing = rng.randrange(len(story.things))
    taken = getattr(story.things[thing], what)
    return counterfactual(story, thing, **{what: rng.choice([v for v in CHOICES[what] if v != taken])})


class Neighbours:
    """Groups of stories that are alike in all but one attribute."""

    def __init__(self, stories: list[Story]):
        self.named = [attributes(story) for story in stories]
        self.alike: list[dict[tuple, list[int]]] = [defaultdict(list) for _ in range(4)]
        for i, named in enumerate(self.named):
            for k in range(4):
                self.alike[k][named[:k] + named[k + 1 :]].append(i)

    def group(self, rng: random.Random, size: int) -> list[int]:
        """A story at random and others that differ in one attribute only, the same again where there are too few."""
        i, k = rng.randrange(len(self.named)), rng.randrange(4)
        near = self.alike[k][self.named[i][:k] + self.named[i][k + 1 :]]
        return [i, *rng.choices(near, k=size - 1)]


def blurred_and_tinted(x: Tensor) -> Tensor:
    """What a generator does to pictures and drawing does not: blur, noise, a tint, and a shift of up to three
    pixels.
    """
    if torch.rand(()) < 0.3:
        x = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0, mode="bilinear")
    x = x + 0.06 * torch.rand(()) * torch.randn_like(x) + 0.03 * torch.randn(len(x), 3, 1, 1)
    dy, dx = (int(v) for v in torch.randint(0, 7, (2,)))
    return F.pad(x, (3, 3, 3, 3), mode="replicate")[..., dy : dy + x.shape[-2], dx : dx + x.shape[-1]]


def normalised(frames: Tensor) -> Tensor:
    """(n, 3, S, S) uint8 -> as `Preprocess` does it."""
    return (frames.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def shrunk(frames: Tensor) -> Tensor:
    """(n, 2, 3, 128, 128) uint8 -> (n, 2, 3, SIDE, SIDE) uint8."""
    small = [
        F.interpolate(part.flatten(0, 1).float(), size=(SIDE, SIDE), mode="area").round().to(torch.uint8)
        for part in frames.split(64)
    ]
    return torch.cat(small).unflatten(0, (-1, 2))


def contrast(images: Tensor, texts: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """images (n, D), texts (m, D), m >= n, unit length; same (n, m): which texts are the picture's caption, the i-th
    among them.

    Cross entropy both ways; a caption that several pictures have is right for each. Texts from n on are wrong for all
    of them.
    """
    n, logits = len(images), scale * images @ texts.T
    right = same / same.sum(1, keepdim=True)
    back = same[:, :n] / same[:, :n].sum(0, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, right) + F.cross_entropy(logits[:, :n].T, back.T))


def train(state: Path, frames: Tensor, captions: list[str], minutes: float, rate: float = 1e-3) -> ClipModel:
    """Train, or go on, until the minutes are over."""
    tokenizer = new_tokenizer(state / "tokenizer-clip")
    model, rng = new_clip(tokenizer), random.Random(0)
    stage = Stage(state, "clip", {"clip": model}, rate, minutes)
    if stage.seconds < 60 * minutes:
        rng.seed(stage.steps)
        stories, small = stories_of(captions), shrunk(frames)
        near = Neighbours(stories)
        bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()

        def loss(step: int) -> Tensor:
            chosen = [i for _ in range(GROUPS) for i in near.group(rng, GROUP)]
            x = blurred_and_tinted(normalised(small[chosen, torch.randint(2, (len(chosen),))]))
            mirrored = torch.rand(len(x), 1, 1, 1) < 0.5
            x = torch.where(mirrored, x.flip(-1), x)
            own = [said(stories[i], rng) for i in chosen]
            others = [said(otherwise(stories[i], what, rng), rng) for i in chosen for what in CHANGED]
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                images = model.visual_projection(model.vision_model(pixel_values=x).pooler_output)
                texts = texts_of(model, tokenizer, own + others)
            # with and without its verb a caption says the same
            meant = [c.replace(f" {VERB}", "") for c in own + others]
            same = torch.tensor([[float(a == b) for b in meant] for a in meant[: len(own)]])
            scale = model.logit_scale.exp().clamp(max=100)
            return contrast(F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1), scale, same)

        stage.run(loss)
    return as_clip(stage.finished()["clip"], tokenizer)


def said(story: Story, rng: random.Random) -> str:
    """Its caption, now and then without the verb."""
    return caption(story).replace(f" {VERB}", "") if rng.random() < SHORT else caption(story)


def texts_of(model: CLIPModel | CLIPTextModelWithProjection, tokenizer: ClipTokenizer, sentences: list[str]) -> Tensor:
    """Features with gradients. The text tower looks back only: padding can end where the longest sentence does."""
    ids = torch.tensor(tokenizer.rows(sentences, TEXT["max_position_embeddings"]))
    return model.text_projection(model.text_model(input_ids=ids).pooler_output)


def retrieval(clip: ClipModel, count: int = 512, size: int = 128, seed: int = 0) -> dict[str, float]:
    """Share of held-out pictures nearer to their caption than to it with one word changed; 'all': than to any with one
    word changed.

    Pictures are drawn at 128 and shrunk by areas to `size`, which divides that.
    """
    rng = random.Random(seed)
    stories = [held_out(2000 + i, two=False) for i in range(count)]
    moments = np.random.default_rng(seed).uniform(0, 1, count)
    large = np.stack([draw_frame(s, float(t)) for s, t in zip(stories, moments, strict=True)])
    small = large.reshape(count, size, 128 // size, size, 128 // size, 3).mean((2, 4)).round().astype(np.uint8)
    images = clip.images(small, batch=64)
    own = (images * clip.texts([caption(s) for s in stories])).sum(-1)
    right, every = {}, torch.ones(count, dtype=torch.bool)
    for what, choices in CHOICES.items():
        right[what] = float(
            (own > (images * clip.texts([caption(otherwise(s, what, rng)) for s in stories])).sum(-1)).float().mean()
        )
        for value in choices:
            changed = [s if named(s, what) == value else counterfactual(s, **{what: value}) for s in stories]
            scores = (images * clip.texts([caption(s) for s in changed])).sum(-1)
            every &= (own > scores) | torch.tensor([named(s, what) == value for s in stories])
    return {**right, "all": float(every.float().mean())}


def named(story: Story, what: str) -> str:
    return getattr(story if what in ("scene", "style") else story.things[0], what)
