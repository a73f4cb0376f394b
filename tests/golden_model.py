"""Fixtures (a pytest plugin): the golden models, and copies of them for tests of checkpoints to change."""

import shutil

import pytest
import torch
from checkpoints import TEXT_FILE, compvis, schedule

from fz.weights.load import load_checkpoint
from fz.weights.source import text_names


@pytest.fixture(scope="module")
def tiny(golden):
    """The golden untuned model."""
    return load_checkpoint(golden / "tiny_sd")


@pytest.fixture(scope="module")
def flat(golden, tiny):
    """The golden model as one flat CompVis state dict, with what real files hold beside the weights."""
    text = text_names(torch.load(golden / "tiny_sd" / f"{TEXT_FILE}.bin", weights_only=True))
    state = compvis(tiny.unet.state_dict(), tiny.vae.state_dict(), text)
    position_ids = {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}
    return {k: t.contiguous() for k, t in (state | schedule() | position_ids).items()}


@pytest.fixture
def folder(golden, tmp_path):
    """A copy of the golden untuned model's folder, to be changed."""
    return shutil.copytree(golden / "tiny_sd", tmp_path / "model", copy_function=shutil.copyfile)


@pytest.fixture
def tuned_folder(golden, tmp_path):
    """A copy of the golden tuned model's folder, to be changed."""
    return shutil.copytree(golden / "tiny_tuned", tmp_path / "tuned", copy_function=shutil.copyfile)


@pytest.fixture
def single(golden):
    """load_checkpoint for single files of the golden model, whose shape has other groups and heads than the weights
    alone tell.
    """
    return lambda path, **options: load_checkpoint(path, **{"model_config": golden / "tiny_sd"} | options)
