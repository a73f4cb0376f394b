"""Fixtures (a pytest plugin): the golden models, and copies of them for tests of checkpoints to change."""

import shutil

import pytest
import torch
from checkpoints import TEXT_FILE, compvis, schedule

from fz.weights.load import load_checkpoint
from fz.weights.source import text_names


@pytest.fixture(scope="module")
def tiny(models):
    """The golden untuned model."""
    return load_checkpoint(models / "tiny_sd")


@pytest.fixture(scope="module")
def flat(models, tiny):
    """The golden model as one flat CompVis state dict, with what real files hold beside the weights."""
    text = text_names(torch.load(models / "tiny_sd" / f"{TEXT_FILE}.bin", weights_only=True))
    state = compvis(tiny.unet.state_dict(), tiny.vae.state_dict(), text)
    position_ids = {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}
    return {k: t.contiguous() for k, t in (state | schedule() | position_ids).items()}


@pytest.fixture
def folder(models, tmp_path):
    """A copy of the golden untuned model's folder, to be changed."""
    return shutil.copytree(models / "tiny_sd", tmp_path / "model", copy_function=shutil.copyfile)


@pytest.fixture
def tuned_folder(models, tmp_path):
    """A copy of the golden tuned model's folder, to be changed."""
    return shutil.copytree(models / "tiny_tuned", tmp_path / "tuned", copy_function=shutil.copyfile)


@pytest.fixture
def single(models):
    """load_checkpoint for single files of the golden model, whose shape has other groups and heads than the weights
    alone tell.
    """
    return lambda path, **options: load_checkpoint(path, **{"model_config": models / "tiny_sd"} | options)
