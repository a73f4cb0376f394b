"""One clip on several processes: what one process gives, and as many bytes as on paper."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_weights import relative
from safetensors.torch import load_file
from shard_worker import FRAMES, INDEXES, MODELS, SHAPE, SIDE, SOME, STEPS

from bench.shard_bytes import Split, Step, parts, table
from fz.errors import FzError
from fz.frames import FrameIndex
from fz.model.unet import UNetConfig
from fz.ranks import Alone, Ranks
from fz.run import main
from fz.settings.config import build

WORKER = Path(__file__).parent / "shard_worker.py"


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def run_ranks(world, command, **more):
    """The command by so many processes, as torchrun would start them; their outputs."""
    shared = {
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, *command], env=os.environ | shared | {"RANK": str(r), "LOCAL_RANK": str(r)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more,
        )
        for r in range(world)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=1800)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said


def compute(folder, *more):
    """Worlds of one, two and three processes: case -> (latents after each step, bytes of each step)."""
    found = {}
    for world in (1, 2, 3):
        codes, said = run_ranks(world, [str(WORKER), str(folder / f"{world}.pt"), *more])
        assert codes == [0] * world, said
        found[world] = torch.load(folder / f"{world}.pt", weights_only=True)
    return found


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    return compute(tmp_path_factory.mktemp("shard"))


def check(found, names, kinds):
    """Latents within 1e-4 of one process's, bytes as on paper, in every case."""
    for world in (2, 3):
        assert found[world]["stopped"] == found[1]["stopped"]
        for name in names:
            for i, index in enumerate(INDEXES):
                for kind in kinds or [("plain", "masked")[i % 2]]:
                    case = f"{name} {index} {kind}"
                    assert_same(found[world][case][0], found[1][case][0])
                    if kind == "plain":
                        assert found[world][case][1] == on_paper(world, index, name)


def assert_same(several, one):
    assert len(one) == len(several) == 2 * STEPS
    for z, expected in zip(several, one, strict=True):
        assert z.shape == expected.shape and float((z - expected).abs().max()) < 1e-4
    # it says something: what is edited differs from the source
    assert relative(one[-1], one[0]) > 0.1


def on_paper(world, index, name):
    """Bytes of each step of inversion, then of editing: the first has the source's self-attention."""
    temporal, clip_norm = MODELS[name]
    config, entries = UNetConfig(**SHAPE, temporal=temporal), INDEXES[index]
    read = FrameIndex(entries, 32 if "last" in entries else 0)
    split = Split(FRAMES, world, (SIDE, SIDE), element=4)
    steps = [*[Step(1, maps=True)] * STEPS, Step(2, fused=True), Step(2)]
    return [sum(parts(config, clip_norm, read, split, step).values()) for step in steps]


def test_latents_are_one_processs_and_bytes_as_on_paper(computed):
    check(computed, SOME, None)


@pytest.mark.slow
def test_every_model_and_mask(tmp_path):
    check(compute(tmp_path, "all"), MODELS, ("plain", "masked"))


def test_one_process_gives_nothing(computed):
    alone = [case for name, case in computed[1].items() if name != "stopped"]
    assert len(alone) == 6 and all(given == [0] * 2 * STEPS for _, given in alone)


def test_blocks_are_even_and_in_order():
    ranks = Alone()
    for world in (1, 2, 3, 4):
        ranks.world = world
        for frames in range(world, 12):
            blocks = ranks.blocks(frames)
            assert [f for block in blocks for f in block] == list(range(frames))
            assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
    ranks.world = 5
    with pytest.raises(FzError, match="got 4 frames for 5 processes"):
        ranks.blocks(4)


def test_without_torchrun_it_says_how(monkeypatch, tmp_path, capsys):
    for name in ("RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(FzError, match="torchrun --nproc-per-node N -m fz.run"):
        Ranks(torch.device("cpu"))
    assert main(["--shard", "--out", str(tmp_path / "out")]) == 2
    assert "Start several by torchrun" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "more",
    [{"chunk": 2}, {"method": "pnp"}, {"compile": True}, {"store": "disk"}, {"edits.0.remove": "car"}],
    ids=lambda more: next(iter(more)),
)
def test_what_cannot_be_shared_is_refused(more):
    about = {"clip.path": "clip", "source": "a red car", "edits.0.target": "a blue car", "shard": True}
    with pytest.raises(FzError, match="shard: got it with"):
        build(about, more)


FLAGS = ["-m", "fz.run", "--shard", "--steps", "1", "--frames", "2", "--size", "64", "--save-latents"]


def test_a_run_on_two_processes(tmp_path):
    """The command: one folder, a line of what was exchanged, one process's latents."""
    flags = [*FLAGS, "--cache", str(tmp_path / "cache")]
    codes, said = run_ranks(2, [*flags, "--out", str(tmp_path / "two")])
    assert codes == [0, 0], said
    assert "2 processes gave each other" in said[0] and "MB a step of editing" in said[0] and said[1] == ""
    alone = [a for a in flags if a != "--shard"] + ["--out", str(tmp_path / "one")]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, *alone], env=env, capture_output=True).returncode == 0
    one, two = (load_file(tmp_path / name / "latents.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(relative(two[k].float(), one[k].float()) < 1e-4 for k in one)


@pytest.mark.slow
def test_a_run_goes_on_and_a_folder_is_refused_once(tmp_path):
    flags = [*FLAGS, "--cache", str(tmp_path / "cache")]
    assert run_ranks(2, [*flags, "--out", str(tmp_path / "two")])[0] == [0, 0]
    codes, again = run_ranks(2, [*flags, "--out", str(tmp_path / "two")])
    assert codes == [0, 0] and "was done before" in again[0]
    codes, resumed = run_ranks(2, [*flags, "--out", str(tmp_path / "more")])
    assert codes == [0, 0] and "inversion: 1 of 1 steps are in" in resumed[0]
    # a folder of another: the first process says so, the other ends too
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("mine")
    codes, refused = run_ranks(2, [*flags, "--out", str(tmp_path / "mine")])
    assert codes == [2, 2] and "holds other files" in refused[0] and refused[1] == ""


def test_the_table_of_the_docs(root):
    assert table(Split(32, 4, (64, 64))) in (root / "docs/batch.md").read_text(encoding="utf-8")
