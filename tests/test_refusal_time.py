"""How soon a mistake is answered: in less than 1.5 s of process time, before any weights are read."""

import os
import subprocess
import sys

import pytest
from processes import COMMANDS as ALL

# seconds of user and system time of a whole process; tests that run side by side take each other's caches, and the same
# work counts as a third more
LIMIT = 2.0 if "PYTEST_XDIST_WORKER" in os.environ else 1.5

LONG = "car," * 80

# of every command, what it has to find or write and cannot; None: it has neither
PATHS = {
    "fz.__main__": "rnu",
    "fz.run": "--video none.mp4",
    "fz.tune": "--checkpoint model --video none.mp4 --prompt car --out t",
    "fz.prompt": "--source car --target boat --config none.yaml",
    "fz.sweep": "--source car --target boat --video none.mp4 --sweep threshold=0.1,0.2",
    "fz.web.__main__": "--checkpoint nowhere",
    "fz.batch": "none.yaml",
    "fz.evaluate": "nowhere",
    "fz.report": "nowhere",
    "fz.mini.train": "--state t --start nowhere",
    "fz.mini.train_vae": "--state text.mp4",
    "fz.mini.train_clip": "--state text.mp4/t",
    "fz.mini.train_control": "--export t --state nowhere",
    "fz.mini.measure": "--out empty",
    "fz.mini.evaluate": "--checkpoint nowhere --out t",
    "fz.mini.average": "text.mp4/t",
    "fz.mini.export": "--state nowhere --out t",
    "fz.mini.sample": "car --checkpoint nowhere --out t/car.png",
    "bench.aot": "91",
    "bench.attention": "--csv empty",
    "bench.edit": "--csv text.mp4/rows.csv",
    "bench.gallery": "--only shapes --out t",
    "bench.gpu": "--out text.mp4",
    "bench.gpu_attention": None,
    "bench.lora_style": "--out text.mp4",
    "bench.pareto": "--out text.mp4",
    "bench.roofline": "--size 0",
    "bench.shard": None,
    "bench.table1": "--clips 1 --checkpoint nowhere --out t",
}

FLAGS = {
    "unknown flag": ["--guidence", "7"],
    "number": ["--steps", "ten"],
    "choice": ["--edit", "shapes"],
    "setting": ["--strength", "0"],
    "word": ["--reweight", "watercolor=10"],
    "sweep": ["--sweep", "threshold=0:1"],
    "YAML that is none": ["--config", "broken.yaml"],
    "YAML of unknown keys": ["--config", "unknown.yaml"],
    "YAML absent": ["--config", "none.yaml"],
    "clip absent": ["--video", "none.mp4"],
    "clip of text": ["--video", "text.mp4"],
    "clip without frames": ["--video", "empty"],
    "clip that is cut": ["--video", "cut.png"],
    "clip too short": ["--frames", "99"],
    "mask absent": ["--mask", "none.png"],
    "mask of another size": ["--mask", "small.png"],
    "word of a mask": ["--blend-words", "jeep", "--threshold", "0.3"],
    "words removed": ["--remove", "boat"],
    "prompt too long": ["--target", "a blue car " * 40],
    "device": ["--device", "mps" if sys.platform != "darwin" else "cuda"],
    "checkpoint": ["--checkpoint", "nowhere"],
    "CLIP": ["--report", "--clip-model", "nowhere"],
    "out is a file": ["--out", "text.mp4"],
    "out of others": ["--out", "model"],
}
COMMANDS = {
    "tune: flag": ("fz.tune", "--rank nine"),
    "tune: number": ("fz.tune", "--checkpoint model --video EXAMPLE --prompt car --out t --guidance nan"),
    "tune: YAML": ("fz.tune", "--config broken.yaml"),
    "tune: clip": ("fz.tune", "--checkpoint model --video text.mp4 --prompt car --out t"),
    "tune: clip too short": ("fz.tune", "--checkpoint model --video EXAMPLE --frames 99 --prompt car --out t"),
    "tune: checkpoint": ("fz.tune", "--checkpoint nowhere --video EXAMPLE --prompt car --out t"),
    "tune: out": ("fz.tune", "--checkpoint model --video EXAMPLE --prompt car --out model"),
    "tune: sample prompt": (
        "fz.tune",
        f"--checkpoint model --video EXAMPLE --prompt car --out t --sample-prompt {LONG}",
    ),
    "prompt: flag": ("fz.prompt", "--json --sorce car"),
    "prompt: clip": ("fz.prompt", "--checkpoint model --source car --target boat --video text.mp4"),
    "prompt: word": ("fz.prompt", "--checkpoint model --source car --target boat --reweight jeep=2"),
    "prompt: YAML": ("fz.prompt", "--config unknown.yaml"),
    "sweep: axis": ("fz.sweep", "--checkpoint model --source car --target boat --sweep colour=1,2"),
    "sweep: clip": ("fz.sweep", "--source car --target boat --video none.mp4 --sweep threshold=0.1,0.2"),
    "evaluate: flag": ("fz.evaluate", "empty --truht empty"),
    "evaluate: folder": ("fz.evaluate", "empty"),
    "report: folder": ("fz.report", "nowhere"),
    "report: CLIP": ("fz.report", "empty --clip-model nowhere"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, root):
    """A folder with mistakes in it, and a checkpoint whose weights nobody could read without saying so."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "broken.yaml").write_text("a: [1\nb: }")
    (folder / "unknown.yaml").write_text("dataset_config: {path: clip, promt: a car}\n")
    (folder / "text.mp4").write_text("frames")
    (folder / "empty").mkdir()
    (folder / "small.png").write_bytes(
        bytes.fromhex(
            "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
            "0000000a49444154789c636000000002000148afa4710000000049454e44ae426082"
        )
    )
    example = root / "weights/mini/example/00000.png"
    (folder / "cut.png").write_bytes(example.read_bytes()[:500])
    for part in ("unet", "vae", "text_encoder"):
        (folder / "model" / part).mkdir(parents=True)
        name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        (folder / "model" / part / f"{name}.safetensors").write_bytes(b"no weights")
        (folder / "model" / part / "config.json").write_bytes(
            (root / "weights/mini" / part / "config.json").read_bytes()
        )
    (folder / "model/tokenizer").symlink_to(root / "weights/mini/tokenizer")
    return folder


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="measures a process by wait4")
@pytest.mark.parametrize("case", FLAGS)
def test_a_mistake_is_answered_before_weights_are_read(case, place, root):
    flags = {"--checkpoint": "model", "--video": str(root / "weights/mini/example"), "--source": "a red car",
             "--target": "a blue car", "--out": case, "--cache": "none"}  # fmt: skip
    for name in FLAGS[case][::2]:
        flags.pop(name, None)
    argv = [part for flag in flags.items() for part in flag] + FLAGS[case]
    if FLAGS[case][0] == "--config":
        argv = FLAGS[case]
    refused("fz.run", argv, place, root)
    assert not (place / case).exists()


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="measures a process by wait4")
@pytest.mark.parametrize("case", COMMANDS)
def test_of_every_command(case, place, root):
    command, line = COMMANDS[case]
    refused(command, line.replace("EXAMPLE", str(root / "weights/mini/example")).split(), place, root)
    assert not (place / "t").exists()


def test_no_command_is_forgotten():
    assert set(PATHS) == set(ALL)


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="measures a process by wait4")
@pytest.mark.parametrize("command", ALL)
@pytest.mark.parametrize("what", ["flag", "path", "help"])
def test_every_command_answers_before_torch(what, command, place, root):
    if what == "help":
        said, code = process(command, ["--help"], place, root)
        assert code == 0 and said == ""
        return
    line = {"flag": "--nonsense", "path": PATHS[command]}[what]
    if line is not None:
        refused(command, line.split(), place, root)
    assert not (place / "t").exists()


def refused(command, argv, place, root):
    said, code = process(command, argv, place, root)
    assert code == 2 and len(said.splitlines()) == 1, said
    assert "no weights" not in said and "safetensors" not in said, said


def process(command, argv, place, root):
    """(stderr, exit code) of a command whose process takes no time."""
    # a process of its own, whose time is its own
    started = subprocess.Popen(
        [sys.executable, "-m", command, *argv],
        cwd=place,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "FZ_CACHE": "cache", "HF_HUB_OFFLINE": "1"},
    )
    said = started.stderr.read().decode()
    _, status, usage = os.wait4(started.pid, 0)
    started.returncode = os.waitstatus_to_exitcode(status)
    assert usage.ru_utime + usage.ru_stime < LIMIT, said
    return said, started.returncode
