"""Training a ControlNet for the miniature: it begins as nothing, goes on to the bit and leaves the checkpoint alone;
what it exports loads, and edits are measured with it.
"""

import pytest
import torch

from fz import mini
from fz.clips.canny import edges
from fz.errors import FzError
from fz.mini import control_training, controlled, shards, train_control, training
from fz.mini.control_training import Teacher, control_of
from fz.mini.data import as_given, to_unit
from fz.mini.evaluate import main as evaluate
from fz.mini.evaluation import ready
from fz.mini.figures import held_out_story
from fz.mini.setup import Setup
from fz.mini.training import Batch, Noised
from fz.weights.control import load_control
from fz.weights.load import load_checkpoint

pytestmark = pytest.mark.skipif(not (mini.FOLDER / "unet").is_dir(), reason="needs the bundled miniature")


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    """Shards of three pairs, batches of eight small pictures, one thread."""
    for module in (shards, training):
        monkeypatch.setattr(module, "PAIRS", 3)
    monkeypatch.setattr(control_training, "NEW_SHARD", 16)
    monkeypatch.setattr(control_training, "BATCHES", {64: 8})
    monkeypatch.setattr(control_training, "LOG_EVERY", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(folder, steps):
    folder.mkdir(exist_ok=True)
    checkpoint = load_checkpoint(mini.checkpoint())
    done = control_training.train(folder, checkpoint, "cpu", lambda training: training.steps < steps)
    return done, checkpoint


def test_it_goes_on_to_the_bit_and_is_exported(tmp_path):
    whole, checkpoint = trained(tmp_path / "whole", 4)
    trained(tmp_path / "parts", 2)
    parts, _ = trained(tmp_path / "parts", 4)
    for a, b in ((whole.modules.state_dict(), parts.modules.state_dict()), (whole.shadow, parts.shadow)):
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert whole.shadow["control.controlnet_mid_block.weight"].abs().max() > 0
    # the checkpoint is what it was
    fresh = load_checkpoint(mini.checkpoint())
    for name in ("unet", "vae"):
        now, before = getattr(checkpoint, name).state_dict(), getattr(fresh, name).state_dict()
        assert all(torch.equal(now[key], before[key]) for key in before)
    lines = (tmp_path / "parts/log.csv").read_text().splitlines()
    assert lines[0] == "step,seconds,pictures,size,loss,without control" and len(lines) == 5
    # edges lie beside the latents, in their order
    made = control_training.OutlinedShards(tmp_path / "whole", checkpoint.vae, checkpoint.text, (64,))
    chosen = training.Chosen([(1, 2, [0, 3], 0)], torch.ones(2, dtype=torch.bool))
    pictures = torch.from_numpy(shards.draw_pair(shards.seeds_of(1)[2])[0])[:, [0, 3]].flatten(0, 1)
    small = torch.nn.functional.interpolate(to_unit(pictures), size=(64, 64), mode="area")
    assert torch.equal(made.edges(64, chosen)[:, 1] > 0, edges(small))

    train_control.main(["--state", str(tmp_path / "whole"), "--export", str(tmp_path / "out")])
    loaded = load_control(tmp_path / "out").state_dict()
    assert all(torch.equal(loaded[key], whole.shadow[f"control.{key}"].half().float()) for key in loaded)
    assert sum(t.numel() for t in loaded.values()) * 2 <= 8e6
    with pytest.raises(FzError, match="no averages"):
        control_training.export(tmp_path, tmp_path / "none")


def test_it_begins_as_nothing_and_every_part_learns():
    checkpoint = load_checkpoint(mini.checkpoint())
    control, teacher = control_of(checkpoint.unet), Teacher(checkpoint, "cpu")
    own, theirs = control.state_dict(), checkpoint.unet.state_dict()
    assert torch.equal(own["down_blocks.1.resnets.0.conv1.weight"], theirs["down_blocks.1.resnets.0.conv1.weight"])
    torch.manual_seed(0)
    batch = Batch(torch.randn(2, 2, 4, 16, 16), torch.zeros(2, 77, dtype=torch.long), *[None] * 3)
    noised, pictures = Noised.of(batch.latents, teacher.alpha_bar), torch.rand(4, 3, 64, 64).round()
    loss = teacher.error(batch, noised, control, pictures)
    assert float(loss.detach()) == float(teacher.error(batch, noised, None, pictures))
    optimiser = torch.optim.SGD(control.parameters(), 1.0)
    for _ in range(3):  # zero convolutions first, then what is before them, then the pictures' own
        optimiser.zero_grad()
        teacher.error(batch, noised, control, pictures).backward()
        optimiser.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in control.parameters())
    assert all(p.grad is None for p in teacher.unet.parameters())


@pytest.mark.slow
def test_edits_are_measured_with_it(tmp_path, capsys):
    done, _ = trained(tmp_path / "state", 2)
    control_training.export(tmp_path / "state", tmp_path / "net")
    flags = [
        "--pictures",
        "0",
        "--two",
        "0",
        "--clips",
        "0",
        "--ablations",
        "0",
        "--removals",
        "0",
        "--one-of-two",
        "0",
    ]
    size = ["--frames", "2", "--size", "64", "--steps", "2", "--out", str(tmp_path / "out")]
    assert evaluate([*flags, *size, "--controlled", "1"]) == 2
    assert "without a ControlNet" in capsys.readouterr().err
    assert evaluate([*flags, *size, "--controlled", "1", "--control", str(tmp_path / "net")]) == 0
    said = capsys.readouterr().out
    for name, variants in controlled.VARIANTS.items():
        for variant in variants:
            assert f"{name}, {variant}: outline iou" in said


def test_what_a_bench_shows(tmp_path):
    """The edges of the frames that are given, at every step, to a key of its own."""
    trained(tmp_path / "state", 1)
    control_training.export(tmp_path / "state", tmp_path / "net")
    plain = ready(Setup(2, 64, 3), mini.checkpoint())
    bench = ready(Setup(2, 64, 3), mini.checkpoint(), str(tmp_path / "net"))
    assert plain.key() != bench.key() and bench.model.control is None
    frames = as_given(held_out_story(0), 2, 64).frames
    control = bench.shown(frames).model.control
    pictures = edges(to_unit(torch.from_numpy(frames).permute(0, 3, 1, 2)))[:, None].expand(-1, 3, -1, -1).float()
    assert torch.equal(control.hint, bench.net.hint(pictures))
    assert control.timesteps == set(bench.schedule.timesteps)
