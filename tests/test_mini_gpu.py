"""Training the miniature on a GPU, as far as tensors without data can tell: the meta device stands for the GPU."""

import pytest
import torch

from fz import mini
from fz.ddim import Schedule
from fz.mini.shape import SCHEDULER
from fz.mini.state import Training
from fz.mini.training import Batch, losses, start_from

META = torch.device("meta")


@pytest.mark.parametrize("frames", (1, 3), ids=("pictures", "clips"))
def test_a_step_mixes_no_devices(tmp_path, monkeypatch, frames):
    """What is drawn by chance on the CPU goes there; all else begins there."""
    start = start_from(str(mini.checkpoint()))
    unet, text = start.unet.to(memory_format=torch.channels_last), start.text.model.requires_grad_(True).train()
    # fused on CPUs and GPUs alone
    adam = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *args, fused, **options: adam(*args, **options))
    training = Training(tmp_path, {"unet": unet, "text": text}, "meta")
    n, side, cells = 4, 16, 16
    batch = Batch(
        torch.zeros(n, frames, 4, side, side),
        torch.zeros(n, 77, dtype=torch.int64),
        torch.zeros(n, 2, 77, dtype=torch.bool),
        torch.zeros(n, frames, 2, cells),
        torch.ones(n, dtype=torch.bool),
    ).to(META)
    alpha_bar = torch.tensor(Schedule.from_config(SCHEDULER, 1000).alpha_bars).float().to(META)
    # autocast knows no meta device; its dtypes are a CPU's test
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: torch.enable_grad())
    loss, placing = losses(unet, text, batch, alpha_bar)
    training.step(loss + placing)
    assert loss.device == placing.device == META and training.steps == 1
    assert all(p.grad is not None and p.grad.device == META for p in unet.parameters())
