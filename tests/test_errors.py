"""Bad input through the command line: each is answered by one line that says what is wrong and what to do, and by exit
code 2.
"""

import json
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fz import checkpoint, mini
from fz.clips import media
from fz.run import main

SOURCE, TARGET = "a silver jeep on a road", "a red jeep on a road"


@pytest.fixture(scope="session")
def tiny(models):
    return models / "tiny_sd"


@pytest.fixture(scope="session")
def loaded(tiny):
    return checkpoint.load_checkpoint(tiny)


@pytest.fixture(autouse=True)
def _own_cache_and_threads(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FZ_CACHE", str(tmp_path_factory.mktemp("cache")))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def here(tmp_path, monkeypatch, tiny, loaded):
    """An empty current folder; the sound checkpoint is loaded once for all tests, others really."""
    load = checkpoint.load_checkpoint

    def load_once(path, **options):
        return (
            loaded
            if str(path) == str(tiny) and not any(v for k, v in options.items() if k != "ema")
            else load(path, **options)
        )

    monkeypatch.setattr(checkpoint, "load_checkpoint", load_once)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def base(models):
    """Flags of a small run that is fine, as a dict: a test changes some and leaves others out (None)."""
    return {
        "checkpoint": str(models / "tiny_sd"),
        "video": str(models / "clips/car128"),
        "size": "64",
        "frames": "2",
        "steps": "2",
        "device": "cpu",
        "threads": "1",
        "source": SOURCE,
        "target": TARGET,
        "out": "out",
    }


def flags_of(base, changes):
    flags = []
    for name, value in {**base, **changes}.items():
        if value is not None:
            flags += [f"--{name}", *([] if value is True else value if isinstance(value, list) else [value])]
    return flags


def refused(argv, expected, capsys):
    """Run it and check the answer: exit code 2, one line on stderr with each expected text, nothing that looks like a
    traceback.
    """
    code = main(argv)
    said = capsys.readouterr()
    lines = [
        line for line in said.err.splitlines() if line and not re.search(r"\|.*\[.*step", line)
    ]  # but for progress bars
    assert code == 2, f"exit code {code}: {said.err}{said.out}"
    assert len(lines) == 1 and lines[0].startswith("fz: "), said.err
    assert "Traceback" not in said.err + said.out
    for text in [expected] if isinstance(expected, str) else expected:
        assert text in lines[0]


LONG = " ".join(["wheel"] * 80)
FLAGS = {
    # flags that are not there, or not whole
    "unknown flag": ({"guidence": "7"}, ["unknown flag --guidence", "Did you mean '--guidance'?"]),
    "unknown flag with =": ({"step=3": True}, "Did you mean '--steps'?"),
    "a word without a flag": ({"seed": ["0", "jeep"]}, ["got 'jeep' without a flag", "quotes"]),
    "single quotes in cmd.exe": ({"source": ["'a", "red", "car'"]}, "Put sentences in double quotes here"),
    "no cuda by another name": ({"device": "gpu"}, "Did you mean 'cuda'?"),
    "threshold in percent": ({"threshold": "30"}, "threshold: got 30.0, expected a number from 0 (all is edited) to 1"),
    "target empty": ({"target": ""}, "--target: got an empty sentence, expected words, as 'a red car on the sand'"),
    "no value": ({"threads": True}, "--threads: expected one argument"),
    "abbreviated": ({"over": True}, "unknown flag --over"),
    "flag of an edit that is not there": ({"threshold.3": "0.3"}, "there are 1 targets"),
    "unknown flag of an edit": ({"treshold.0": "0.3"}, "Did you mean '--threshold.0'?"),
    # numbers
    "steps text": ({"steps": "ten"}, "--steps: got 'ten', expected a whole number"),
    "steps zero": ({"steps": "0"}, "--steps: got '0', expected a whole number of at least 1"),
    "steps fraction": ({"steps": "2.5"}, "--steps: got '2.5'"),
    "steps negative": ({"steps": "-5"}, "--steps: got '-5'"),
    "steps absurd": ({"steps": "100000"}, "steps: got 100000, expected a whole number from 1 to 1000"),
    "steps beyond int64": ({"steps": "9" * 30}, "--steps: got"),
    "guidance text": ({"guidance": "much"}, "--guidance: got 'much', expected a number"),
    "guidance negative": ({"guidance": "-1"}, "guidance: got -1.0"),
    "guidance NaN": ({"guidance": "nan"}, "guidance: got nan"),
    "guidance infinite": ({"guidance": "inf"}, "guidance: got inf"),
    "seed negative": ({"seed": "-1"}, "--seed: got '-1'"),
    "threads zero": ({"threads": "0"}, "--threads: got '0'"),
    "threads absurd": ({"threads": "99999"}, "threads: got 99999"),
    "least channels negative": ({"least-sc-channel": "-640"}, "--least-sc-channel: got '-640'"),
    "self-replace above 1": ({"self-replace": "1.5"}, "--self-replace: got '1.5', expected a share of the steps"),
    "self-replace reversed": ({"self-replace": "0.8,0.2"}, "--self-replace: got '0.8,0.2'"),
    "self-replace three": ({"self-replace": "0,0.2,1"}, "--self-replace: got '0,0.2,1'"),
    "self-replace NaN": ({"self-replace": "nan"}, "--self-replace: got 'nan'"),
    "cross-replace text": ({"cross-replace": "jeep"}, "--cross-replace: got 'jeep'"),
    "cross-replace word without share": ({"cross-replace": "jeep="}, "--cross-replace: got ''"),
    "threshold text": ({"threshold": "low"}, "--threshold: got 'low', expected a number from 0 to 1, or none"),
    "threshold negative": ({"threshold": "-0.1"}, "threshold: got -0.1"),
    "threshold NaN": ({"threshold": "nan"}, "threshold: got nan"),
    "blend-latents negative": ({"blend-latents": "-1"}, "blend_latents: got -1.0"),
    "reweight without factor": ({"reweight": "red"}, "--reweight: got 'red', expected WORD=FACTOR"),
    "reweight text": ({"reweight": "red=very"}, "--reweight: got 'red=very'"),
    "reweight infinite": ({"reweight": "red=inf"}, "reweight: got inf for 'red'"),
    "frame index": ({"frame-index": "-1,frist"}, ["frame index: got 'frist'", "Did you mean 'first'?"]),
    # choices
    "edit": (
        {"edit": "shapes"},
        ["--edit: got 'shapes', expected one of style, attribute, shape", "Did you mean 'shape'?"],
    ),
    "device": ({"device": "gpu"}, "--device: got 'gpu', expected one of auto, cpu, cuda, mps"),
    "dtype": ({"dtype": "fp16"}, "--dtype: got 'fp16', expected one of float32"),
    "store": ({"store": "memroy"}, "Did you mean 'memory'?"),
    "store dtype": ({"store-dtype": "fp8"}, "--store-dtype: got 'fp8'"),
    "conv": ({"conv": "fast"}, "--conv: got 'fast', expected one of auto, direct"),
    "conv memory": ({"conv-memory": "-1"}, "conv_memory: got -1.0"),
    "method": ({"method": "plug"}, "--method: got 'plug', expected one of fatezero, ddim"),
    "strength": ({"strength": "0"}, "strength: got 0.0, expected a share of the steps above 0"),
    "ablate": ({"ablate": "self"}, "--ablate: got 'self', expected one of no-self"),
    "ablate a baseline": ({"ablate": "no-self", "method": "pnp"}, "ablate: got it with method 'pnp'"),
    "align": ({"align": "swap"}, "--align: got 'swap'"),
    "attention": ({"attention": "none"}, "--attention: got 'none'"),
    "ema": ({"ema": "yes"}, "--ema: got 'yes'"),
    # sizes and frames
    "size text": ({"size": "large"}, "--size: got 'large', expected a number (a square), HEIGHTxWIDTH or original"),
    "size zero": ({"size": "0"}, "size: got 0"),
    "size negative": ({"size": "-64"}, "--size: got '-64'"),
    "size with a zero side": ({"size": "0x64"}, "size: got 0x64"),
    "size three": ({"size": "64x64x3"}, "--size: got '64x64x3'"),
    "size tiny": ({"size": "3"}, "size: 3 is too small"),
    "size absurd": ({"size": "99999"}, "size: 99999 is too large"),
    "frames zero": ({"frames": "0"}, "--frames: got '0', expected a whole number of at least 1, or all"),
    "frames too many": ({"frames": "500"}, ["too few for 500 frames", "Use --frames"]),
    "start beyond the clip": ({"start": "500"}, "start: got 500, but"),
    "start negative": ({"start": "-1"}, "--start: got '-1'"),
    "every zero": ({"every": "0"}, "--every: got '0'"),
    "crop three": ({"crop": "1,2,3"}, "--crop: got '1,2,3', expected pixels to cut as LEFT,RIGHT,TOP,BOTTOM"),
    "crop of everything": ({"crop": "64,64,0,0"}, "leave nothing"),
    # sentences and words
    "no source": ({"source": None}, "source: got none"),
    "no target": ({"target": None}, "target: got none"),
    "empty source": ({"source": " "}, "--source: got an empty sentence"),
    "empty target": ({"target": ""}, "--target: got an empty sentence"),
    "no video": ({"video": None}, "video: got none"),
    "source too long": ({"source": LONG}, ["77", "wheel"]),
    "target too long": ({"target": LONG}, ["77", "wheel"]),
    "negative too long": ({"negative": LONG}, "77"),
    "blend word absent": ({"blend-words": "jeeep", "threshold": "0.3"}, ["'jeeep' is not in", "silver"]),
    "latent blend word absent": ({"blend-words": ["jeep", "lorry"], "blend-latents": "0.3"}, "'lorry' is not in"),
    "blend words in three groups": ({"blend-words": ["a", "silver", "jeep"], "threshold": "0.3"}, "each in quotes"),
    "reweighted word absent": ({"reweight": "watercolor=10"}, "'watercolor' is not in"),
    "a word reweighted twice": ({"reweight": ["red=2", "--reweight", "Red=3"]}, "reweight: got 'Red' twice"),
    "a word cross-replaced twice": (
        {"cross-replace": ["red=0.2", "--cross-replace", "red=0.3"]},
        "cross_replace_words: got 'red' twice",
    ),
    "two shares of all words": (
        {"cross-replace": ["0.2", "--cross-replace", "0.3"]},
        "--cross-replace: got two shares of all words",
    ),
    "bytes in the source": ({"source": "\udcff red"}, "has bytes that are no text"),
    "cross-replaced word absent": ({"cross-replace": "silver=0.5"}, "'silver' is not in"),
    "replacement at different word counts": (
        {"replace": True, "target": "a jeep on a road"},
        ["6 words", "5", "--refine"],
    ),
    # the released config's flags
    "config absent": ({"config": "none.yaml"}, ["config: none.yaml cannot be read", "No such file"]),
    "config a folder": ({"config": "/"}, "config: / cannot be read"),
    "set without =": ({"set": "seed"}, "--set: got 'seed', expected section.key=value"),
    "set unknown": ({"set": "editing_config.guidance=7"}, "Did you mean 'editing_config.guidance_scale'?"),
    "set wrong kind": ({"set": "seed=soon"}, "seed: got 'soon', expected a number"),
    "set out of range": ({"set": "editing_config.num_inference_steps=0"}, "steps: got 0"),
    "set zero frames": ({"set": "dataset_config.n_sample_frame=0"}, "frames: got 0"),
    # files
    "video absent": ({"video": "none.mp4"}, "video: none.mp4 does not exist"),
    "video address": ({"video": "https://example.org/a.mp4"}, "download it first"),
    "video glob of nothing": ({"video": "*.png"}, "matches no file"),
    "checkpoint absent": ({"checkpoint": "none"}, "checkpoint: none does not exist"),
    "vae absent": ({"vae": "none"}, "none"),
    "tokenizer absent": ({"tokenizer": "none"}, "tokenizer: none does not exist"),
    "model config absent": ({"model-config": "none"}, "none"),
    "out below a file": ({"out": "file/out"}, "out: file is a file, expected a folder"),
    "out where nothing can be": ({"out": "/proc/fz"}, "out: /proc/fz cannot be written"),
    "out is a file": ({"out": "file"}, "out: file is a file, expected a folder"),
}


@pytest.mark.parametrize("case", FLAGS)
def test_bad_flag(case, here, base, capsys):
    changes, expected = FLAGS[case]
    (here / "file").write_text("here")
    refused(flags_of(base, changes), expected, capsys)
    assert sorted(p.name for p in here.iterdir() if p.name != "out") == ["file"]
    # nothing half done: a run that was refused leaves no results
    assert not (here / "out").exists() or not any((here / "out").iterdir())


# ---- clips -------------------------------------------------------------------------------------------------


def random_bytes(path):
    path.write_bytes(bytes(range(256)) * 64)


def cut_mp4(path):
    media.write_mp4(path.with_name("whole.mp4"), torch.zeros(4, 64, 64, 3, dtype=torch.uint8).numpy(), 8.0)
    path.write_bytes(path.with_name("whole.mp4").read_bytes()[:300])


def no_images(path):
    path.mkdir()
    (path / "notes.txt").write_text("none")


def bad_image(path):
    path.mkdir()
    (path / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nnot quite")


def two_sizes(path):
    path.mkdir()
    for i, side in enumerate((64, 80)):
        media.write_png(path / f"{i}.png", torch.zeros(side, side, 3, dtype=torch.uint8).numpy())


CLIPS = {
    "random bytes.mp4": (random_bytes, "video"),
    "cut.mp4": (cut_mp4, "video"),
    "empty.mp4": (lambda path: path.write_bytes(b""), "video"),
    "text.txt": (lambda path: path.write_text("frames"), "video"),
    "no frames": (lambda path: path.mkdir(), "video"),
    "no images": (no_images, "video"),
    "bad image": (bad_image, "video"),
    "two sizes": (two_sizes, "differ in size"),
}


@pytest.mark.parametrize("name", CLIPS)
def test_bad_clip(name, here, base, capsys):
    make, expected = CLIPS[name]
    make(here / name)
    refused(flags_of(base, {"video": name}), expected, capsys)


# ---- checkpoints -------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tiny, here):
    """The small checkpoint in a folder of its own, its large files as links."""
    shutil.copytree(
        tiny,
        here / "model",
        copy_function=lambda a, b: shutil.copyfile(a, b) if str(a).endswith("json") else os.symlink(a, b),
    )
    for folder in (here / "model", *(p for p in (here / "model").iterdir() if p.is_dir())):
        folder.chmod(0o755)
    return here / "model"


UNET = "unet/diffusion_pytorch_model.safetensors"


def unet_config(**changes):
    def change(model):
        file = model / "unet/config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def replace_unet(content):
    def change(model):
        (model / UNET).unlink()
        if content is not None:
            (model / UNET).write_bytes(content)

    return change


def cut_unet(model):
    content = (model / UNET).read_bytes()
    replace_unet(content[: len(content) // 2])(model)


def unet_weights(change_state):
    def change(model):
        state = load_file(model / UNET)
        change_state(state)
        (model / UNET).unlink()
        save_file(state, model / UNET)

    return change


def poison(state):
    state["up_blocks.3.resnets.2.conv2.bias"][:] = float("nan")


CHECKPOINTS = {
    "truncated": (cut_unet, UNET.split("/")[1]),
    "no weights": (replace_unet(None), "unet"),
    "random bytes": (replace_unet(b"\xff" * 4096), "unet"),
    "a web page": (replace_unet(b"<html>404</html>"), "unet"),
    "no unet": (lambda model: shutil.rmtree(model / "unet"), "unet"),
    "no tokenizer and none cached": (lambda model: shutil.rmtree(model / "tokenizer"), "Pass --tokenizer"),
    "Stable Diffusion 2": (
        unet_config(cross_attention_dim=1024, use_linear_projection=True, attention_head_dim=[5, 10, 20, 20]),
        "2",
    ),
    "inpainting": (unet_config(in_channels=9), "inpainting"),
    "another width": (unet_config(block_out_channels=[32, 64, 96, 128]), "unet"),
    "a key too few": (unet_weights(lambda state: state.pop("conv_in.weight")), "conv_in.weight"),
    "a key too many": (unet_weights(lambda state: state.update(extra=torch.zeros(1))), "extra"),
    "NaN in a layer": (unet_weights(poison), ["NaN", "up_blocks.3.resnets.2.conv2"]),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_bad_checkpoint(case, copy, base, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    change, expected = CHECKPOINTS[case]
    change(copy)
    refused(flags_of(base, {"checkpoint": str(copy)}), expected, capsys)


def test_a_file_that_would_run_code(here, base, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, ("harm",)

    torch.save({"state_dict": Evil()}, here / "model.ckpt")
    refused(flags_of(base, {"checkpoint": "model.ckpt"}), "model.ckpt", capsys)
    assert not (here / "harm").exists()


# ---- folders of results ------------------------------------------------------------------------------------


def test_folder_with_other_files(here, base, capsys):
    (here / "out").mkdir()
    (here / "out/thesis.txt").write_text("mine")
    refused(flags_of(base, {}), ["holds other files", "--overwrite"], capsys)
    assert (here / "out/thesis.txt").read_text() == "mine"


def test_folder_of_another_run(here, base, capsys):
    assert main(flags_of(base, {"steps": "1", "frames": "1"})) == 0
    capsys.readouterr()
    before = (here / "out/run.json").read_bytes()
    refused(flags_of(base, {"steps": "2", "frames": "1"}), ["other settings", "--overwrite"], capsys)
    assert (here / "out/run.json").read_bytes() == before
    assert main(flags_of(base, {"steps": "2", "frames": "1", "overwrite": True})) == 0


CACHES = {"file": "cache: file is a file", "file/below": "cache: file is a file", "/proc/fz": "cache: /proc/fz cannot"}


@pytest.mark.parametrize("cache", CACHES)
def test_a_cache_that_was_named_and_cannot_be_written_is_refused(cache, here, base, capsys):
    """Who names one means to go on from there: it is no surprise for after hours."""
    (here / "file").write_text("here")
    refused(flags_of(base, {"cache": cache}), [CACHES[cache], "--cache"], capsys)
    if not cache.startswith("/proc"):  # which only a try to write tells from others
        refused(flags_of(base, {"cache": cache, "dry-run": True}), [CACHES[cache]], capsys)
    assert (here / "file").read_text() == "here"


@pytest.mark.parametrize("cache", ["file", "/proc/fz"])
def test_the_usual_cache_that_cannot_be_written_is_told_before_the_first_step(cache, here, base, capsys, monkeypatch):
    (here / "file").write_text("here")
    monkeypatch.setenv("FZ_CACHE", cache)
    assert main(flags_of(base, {})) == 0
    said = capsys.readouterr().out
    assert "cannot be written" in said and "The run goes on, but cannot be resumed." in said
    assert said.index("cannot be resumed") < said.index("results in")
    assert (here / "file").read_text() == "here"


# ---- what a released config may have, and flags not --------------------------------------------------------


def config_file(here, models, **entry):
    import yaml

    content = {
        "pretrained_model_path": str(models / "tiny_sd"),
        "dataset_config": {
            "path": str(models / "clips/car128"),
            "prompt": SOURCE,
            "n_sample_frame": 2,
            "image_size": 64,
        },
        "editing_config": {
            "editing_prompts": ["a Porsche on a long road"],
            "prompt2prompt_edit": True,
            "num_inference_steps": 2,
            "p2p_config": {0: {"cross_replace_steps": {"default_": 0.5}, "self_replace_steps": 0.5, **entry}},
        },
    }
    (here / "config.yaml").write_text(yaml.safe_dump(content))
    return ["--config", "config.yaml", "--dry-run", "--device", "cpu"]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"eq_params": {"words": ["watercolor"], "values": [10]}}, "'watercolor' is not in"),
        ({"blend_words": [["lorry"], ["car"]], "blend_self_attention": True}, "no blend mask"),
        ({"is_replace_controller": True, "eq_params": None}, None),
    ],
    ids=["equalizer", "blend word", "replacement"],
)
def test_lenient_with_a_config(entry, expected, here, models, capsys):
    argv = config_file(here, models, **entry)
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert expected is None or expected in said


def test_uneven_prompts_are_refined_with_a_config(here, models, capsys):
    argv = [*config_file(here, models), "--set", "editing_config.editing_prompts=[a Porsche]"]
    assert main(argv) == 0
    assert "refinement, not replacement: the source has 6 words, the target 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("dataset_config: [1", "is no YAML"),
        (
            "dataset_config: {pahts: 3}",
            "unknown config key 'dataset_config.pahts'. Did you mean 'dataset_config.path'?",
        ),
        (
            "editing_config: {p2p_config: {0: {self_replace_step: 1}}}",
            "Did you mean 'editing_config.p2p_config.0.self_replace_steps'?",
        ),
        ("dataset_config: {prompt: '${a.b}'}", "names nothing"),
        ("editing_config: {editing_prompts: [a], prompt2prompt_edit: true}", "no entry 0 for 'a'"),
        ("seed: 3", "video: got none"),
    ],
    ids=["broken", "unknown key", "unknown p2p key", "interpolation", "no p2p entry", "no clip"],
)
def test_bad_config(content, expected, here, tiny, capsys):
    (here / "config.yaml").write_text(content)
    refused(["--config", "config.yaml", "--checkpoint", str(tiny)], expected, capsys)


def test_there_are_enough():
    assert len(FLAGS) + len(CLIPS) + len(CHECKPOINTS) >= 45


def test_places_that_cannot_be_written_are_refused_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    """Also in a dry run, whether the file in the way is the folder's own or above it."""
    from fz import batch, prompt, tune

    monkeypatch.chdir(tmp_path)
    for name in ("letter.txt", "results"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "nowhere").symlink_to("gone")
    clip = str(mini.FOLDER / "example")
    (tmp_path / "jobs.yaml").write_text(f"jobs: [{{clip: {clip}, source: a red car, target: a blue car}}]")
    edit = ["--source", "a red car", "--target", "a blue car", "--dry-run"]
    lines = [
        *((main, [*edit, "--out", out]) for out in ("letter.txt", "letter.txt/a/b", "nowhere", "nowhere/a")),
        (main, edit),
        (tune.main, ["--video", clip, "--prompt", "a car", "--out", "letter.txt/a", "--dry-run"]),
        (batch.main, ["jobs.yaml", "--out", "letter.txt/a"]),
        (prompt.main, [*edit[:-1], "--video", clip, "--out", "letter.txt/a"]),
    ]
    for command, argv in lines:
        assert command(argv) == 2, argv
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1
        assert re.match(r"fz: out: \S+ is a (file|link to gone, which does not exist), expected", said.err)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["jobs.yaml", "letter.txt", "nowhere", "results"]


def test_a_folder_of_another_edit_says_what_differs():
    from fz.results.differing import differing

    one = {"steps": 2, "edits": [{"target": "a", "threshold": 0.3}], "clip": {"size": 64}}
    two = {"steps": 2, "edits": [{"target": "a", "threshold": None}], "clip": {"size": 96}}
    assert differing(one, two) == {"edits.0.threshold": (0.3, None), "clip.size": (64, 96)}
    three = {**one, "edits": [*one["edits"], {"target": "b"}]}
    assert differing(one, three) == {"edits": (one["edits"], three["edits"])}
