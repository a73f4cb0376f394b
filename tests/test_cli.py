"""The command line: each flag sets what it says, sources come in their order, and `main` runs, stops and answers as it
should.
"""

import argparse
import dataclasses
import json
import shlex
import sys

import pytest
import torch

import fz
from fz import kernels, run
from fz.errors import FzError
from fz.run import main
from fz.settings import flags
from fz.settings.command import command
from fz.settings.config import ClipSettings, Crop, EditSettings, Settings
from fz.settings.parse import parse

BASE = ["--checkpoint", "model", "--video", "clip.mp4", "--source", "a silver jeep", "--target", "a red jeep"]
YAML = """
pretrained_model_path: ckpt
dataset_config: {path: frames, prompt: a silver jeep, n_sample_frame: 4}
editing_config:
  guidance_scale: 9
  editing_prompts: [a red jeep, watercolor painting of a silver jeep]
  prompt2prompt_edit: true
  p2p_config:
    0: {cross_replace_steps: {default_: 0.5}, self_replace_steps: 0.4}
    1: {is_replace_controller: false, cross_replace_steps: {default_: 0.6}, self_replace_steps: 0.7}
"""


@pytest.fixture(autouse=True)
def _own_cache_and_threads(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FZ_CACHE", str(tmp_path_factory.mktemp("cache")))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def settings_of(*argv):
    return parse([*BASE, *argv]).settings


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(YAML)
    return ["--config", str(path)]


def test_flags_alone_are_the_defaults():
    expected = Settings(ClipSettings("clip.mp4"), "a silver jeep", (EditSettings("a red jeep"),), checkpoint="model")
    assert settings_of() == expected


@pytest.mark.parametrize(
    ("line", "path", "value"),
    [
        ("--size 384x640", "clip.size", (384, 640)),
        ("--size 256", "clip.size", 256),
        ("--frames all", "clip.frames", None),
        ("--frames 16", "clip.frames", 16),
        ("--start 3", "clip.start", 3),
        ("--every 2", "clip.every", 2),
        ("--crop 1,2,3,4", "clip.crop", Crop(1, 2, 3, 4)),
        ("--negative blurry", "negative", "blurry"),
        ("--steps 10", "steps", 10),
        ("--guidance 1", "guidance", 1.0),
        ("--attention reconstruction", "attention", "reconstruction"),
        ("--reconstruction-prompt x --attention reconstruction", "reconstruction_prompt", "x"),
        ("--frame-index -1,first", "frame_index", (-1, "first")),
        ("--frame-index=-1,1,mid,last", "frame_index", (-1, 1, "mid", "last")),
        ("--frame-index [mid]", "frame_index", ("mid",)),
        ("--least-sc-channel 640", "least_channels", 640),
        ("--per-frame-norm", "clip_norm", False),
        ("--vae v", "vae", "v"),
        ("--tokenizer t", "tokenizer", "t"),
        ("--model-config m", "model_config", "m"),
        ("--ema plain", "ema", "plain"),
        ("--store memory", "store", "memory"),
        ("--seed 5", "seed", 5),
        ("--device cpu", "device", "cpu"),
        ("--dtype bfloat16", "dtype", "bfloat16"),
        ("--store disk", "store", "disk"),
        ("--store-dtype float16", "store_dtype", "float16"),
        ("--cache none", "cache", "none"),
        ("--conv direct", "conv", "direct"),
        ("--graph off", "graph", "off"),
        ("--weights int8", "weights", "int8"),
        ("--reuse 3:outer", "reuse", "3:outer"),
        ("--conv-memory 2.5", "conv_memory", 2.5),
        ("--threads 2", "threads", 2),
        ("--out o", "out", "o"),
        ("--overwrite", "overwrite", True),
        ("--save-latents", "save_latents", True),
        ("--report", "report", True),
        ("--dry-run", "dry_run", True),
        ("--replace", "edits.0.align", "replace"),
        ("--refine", "edits.0.align", "refine"),
        ("--align plain", "edits.0.align", "plain"),
        ("--method pnp", "method", "pnp"),
        ("--strength 0.5 --method sdedit", "strength", 0.5),
        ("--ablate no-self", "edits.0.self_replace", (0.0, 0.0)),
        ("--self-replace 0.5", "edits.0.self_replace", (0.0, 0.5)),
        ("--self-replace 0.1,0.5", "edits.0.self_replace", (0.1, 0.5)),
        ("--cross-replace 0.4", "edits.0.cross_replace", (0.0, 0.4)),
        ("--cross-replace 0.1,0.4", "edits.0.cross_replace", (0.1, 0.4)),
        (
            "--cross-replace red=0.2 --cross-replace jeep=0.1,0.3",
            "edits.0.cross_replace_words",
            (("red", (0.0, 0.2)), ("jeep", (0.1, 0.3))),
        ),
        ("--reweight red=10 --reweight jeep=-.5", "edits.0.reweight", (("red", 10.0), ("jeep", -0.5))),
        ("--threshold 0.3", "edits.0.threshold", 0.3),
        ("--threshold none", "edits.0.threshold", None),
        ("--blend-words jeep --threshold 0.3", "edits.0.blend_words", (("jeep",), ())),
        ("--blend-latents 0.2", "edits.0.blend_latents", 0.2),
        ("--edit shape", "edits.0.threshold", 0.3),
        ("--edit shape", "edits.0.self_replace", (0.0, 0.5)),
        ("--edit style", "edits.0.align", "refine"),
        ("--edit attribute", "edits.0.cross_replace", (0.0, 0.7)),
    ],
)
def test_every_flag(line, path, value):
    node = settings_of(*line.split())
    for part in path.split("."):
        node = node[int(part)] if part.isdigit() else getattr(node, part)
    assert node == value


def test_blend_words_of_source_and_target():
    edit = settings_of("--blend-words", "silver jeep", "red,jeep", "--threshold", "0.3").edits[0]
    assert edit.blend_words == (("silver", "jeep"), ("red", "jeep"))
    with pytest.raises(FzError, match="blend_words: 'zebra' is not in the prompt 'a red jeep'"):
        settings_of("--blend-words", "jeep", "zebra", "--threshold", "0.3")


def test_several_targets_and_flags_of_one():
    argv = [
        "--target",
        "a blue car",
        "--edit",
        "shape",
        "--threshold.1",
        "0.5",
        "--edit.0=style",
        "--self-replace",
        "0.2",
    ]
    edits = settings_of(*argv).edits
    assert [e.target for e in edits] == ["a red jeep", "a blue car"]
    assert [e.threshold for e in edits] == [None, 0.5]
    assert [e.align for e in edits] == ["refine", "auto"]
    assert [e.self_replace for e in edits] == [(0, 0.2), (0, 0.2)]


def test_every_setting_has_a_flag():
    settable = {flag.setting for group in flags.FLAGS.values() for flag in group}
    names = {f.name for f in dataclasses.fields(Settings)} - {"clip", "edits", "notes"}
    names |= {f"clip.{f.name}" for f in dataclasses.fields(ClipSettings)}
    names |= {f.name for f in dataclasses.fields(EditSettings)} - {"lenient", "cross_replace_words"}
    assert names <= settable


# ---- precedence: defaults < YAML < --fast < --edit < other flags < --set -----------------------------------


def test_edit_over_yaml_says_so(config):
    """As every flag is over the config; what the preset does not name stays the config's."""
    settings = parse([*config, "--edit", "shape"]).settings
    assert [e.align for e in settings.edits] == ["auto", "auto"] and settings.guidance == 9
    assert [e.threshold for e in settings.edits] == [0.3, 0.3]
    assert [e.cross_replace for e in settings.edits] == [(0, 0.5)] * 2 == [e.self_replace for e in settings.edits]
    # its cross_replace of edit 0 is the preset's already
    assert "--edit goes before the config's cross-replace, self-replace, align" in settings.notes
    assert not any(note.startswith("--edit") for note in parse(config).settings.notes)


def test_edit_of_one_target_over_yaml_beneath_flags(config):
    settings = parse([*config, "--edit.1", "style", "--self-replace.1", "0.7"]).settings
    assert [e.cross_replace for e in settings.edits] == [(0, 0.5), (0, 0.7)]
    assert [e.self_replace for e in settings.edits] == [(0, 0.4), (0, 0.7)]
    assert "--edit goes before the config's cross-replace" in settings.notes
    assigned = "editing_config.p2p_config.1.cross_replace_steps.default_=0.1"
    assert parse([*config, "--edit", "style", "--set", assigned]).settings.edits[1].cross_replace == (0, 0.1)


@pytest.mark.parametrize(
    ("more", "steps"),
    [([], 30), (["--fast"], 12), (["--fast", "--steps", "9"], 9)]
    + [(["--fast", "--set", "editing_config.num_inference_steps=7"], 7)],
)
def test_fast_takes_a_share_of_the_steps_of_a_config(more, steps, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(YAML.replace("guidance_scale: 9", "num_inference_steps: 30"))
    settings = parse(["--config", str(path), *more]).settings
    assert settings.steps == steps
    assert any(note.startswith("fast: steps ") for note in settings.notes) == ("--fast" in more)


def test_flags_over_yaml(config):
    settings = parse(
        [*config, "--guidance", "3", "--self-replace", "0.1", "--cross-replace.1", "0.2", "--frames", "2"]
    ).settings
    assert (settings.guidance, settings.clip.frames, settings.clip.path) == (3, 2, "frames")
    assert [e.self_replace for e in settings.edits] == [(0, 0.1), (0, 0.1)]
    assert [e.cross_replace for e in settings.edits] == [(0, 0.5), (0, 0.2)]
    assert all(e.lenient for e in settings.edits)


def test_set_over_flags(config):
    settings = parse(
        [
            *config,
            "--guidance",
            "3",
            "--steps",
            "9",
            "--self-replace",
            "0.1",
            "--set",
            "editing_config.guidance_scale=5",
            "--set",
            "editing_config.p2p_config.1.self_replace_steps=0.9",
        ]
    ).settings
    assert (settings.guidance, settings.steps) == (5, 9)
    assert [e.self_replace for e in settings.edits] == [(0, 0.1), (0, 0.9)]


def test_set_of_targets_over_target_flags(config):
    prompts = "editing_config.editing_prompts=[a green jeep, a black jeep]"
    settings = parse([*config, "--target", "a blue jeep", "--set", prompts]).settings
    assert [e.target for e in settings.edits] == ["a green jeep", "a black jeep"]
    settings = parse([*config, "--target", "a blue jeep"]).settings
    assert [(e.target, e.self_replace) for e in settings.edits] == [("a blue jeep", (0, 0.4))]


def test_set_without_config():
    settings = settings_of(
        "--set", "editing_config.num_inference_steps=7", "--set", "editing_config.p2p_config.0.self_replace_steps=0.3"
    )
    assert settings.steps == 7 and settings.guidance == 7.5
    assert settings.edits[0].self_replace == (0, 0.3) and not settings.edits[0].lenient


def test_same_settings_by_flags_and_by_config(config):
    by_flags = parse(
        [
            "--checkpoint",
            "ckpt",
            "--video",
            "frames",
            "--frames",
            "4",
            "--source",
            "a silver jeep",
            "--target",
            "a red jeep",
            "--target",
            "watercolor painting of a silver jeep",
            "--guidance",
            "9",
            "--steps",
            "20",
            "--frame-index",
            "-1,first",
            "--replace.0",
            "--refine.1",
            "--cross-replace.0",
            "0.5",
            "--cross-replace.1",
            "0.6",
            "--self-replace.0",
            "0.4",
            "--self-replace.1",
            "0.7",
        ]
    ).settings
    by_config = parse(config).settings
    strict = tuple(dataclasses.replace(e, lenient=False) for e in by_config.edits)
    assert dataclasses.replace(by_config, edits=strict) == by_flags


@pytest.mark.parametrize("name", ["checkpoint", "vae", "out", "cache"])
def test_a_path_of_nothing_is_refused(name):
    """As a shell makes it of a variable that is not set."""
    with pytest.raises(FzError, match=f"^{name}: got an empty path"):
        settings_of(f"--{name}", "")


def test_ablations_of_one_thing_are_refused():
    assert settings_of("--ablate", "no-self", "--ablate", "no-cross").edits[0].cross_replace == (0, 0)
    with pytest.raises(FzError, match="ablate: got no-self and full-self, which both say what self_replace is"):
        settings_of("--ablate", "no-self", "--ablate", "full-self")


# ---- flags that change nothing alone -----------------------------------------------------------------------

# a flag, what it counts with, and another way to that
PAIRS = {
    "--strength 0.5": ("--method sdedit", "--method=sdedit"),
    "--reconstruction-prompt x": ("--attention reconstruction", "--ablate reconstruction"),
    "--negative blurry": ("--guidance 3", "--guidance 3 --method null-p2p"),
    "--guidance-window 0.5": ("--guidance 3", "--guidance 1.5"),
    "--conv-memory 2": ("--conv auto", ""),
    "--enhance-factor 3": ("--enhance 8K", "--enhance.0 8K"),
    "--enhance-factor.0 3": ("--enhance 8K", "--enhance.0 8K"),
    "--blend-words jeep": ("--threshold 0.3", "--blend-latents 0.2"),
    "--blend-words.0 jeep": ("--keep-background", "--edit shape --ablate full-self"),
    "--blend-words.0 silver": ("--edit shape", "--sweep threshold=none,0.2"),
}
WITHOUT = {
    "--negative blurry": "--guidance 1",
    "--guidance-window 0.5": "--guidance 1",
    "--conv-memory 2": "--conv direct",
    "--blend-words jeep": "--threshold 1",
    "--blend-words.0 jeep": "--threshold 0.3 --mask m.png",
}


@pytest.mark.parametrize("flag", PAIRS)
def test_a_flag_that_changes_nothing_alone_is_refused(flag):
    name = flag.split()[0].strip("-").removesuffix(".0")
    with pytest.raises(FzError, match=f"^{name}: changes nothing by itself, expected .*--.* with it. Pass that"):
        settings_of(*flag.split(), *WITHOUT.get(flag, "").split())
    for needs in PAIRS[flag]:
        assert not any("changes nothing" in note for note in settings_of(*flag.split(), *needs.split()).notes)
    # a batch's flags count for all of its jobs
    (note,) = parse([*BASE, *flag.split(), *WITHOUT.get(flag, "").split()], notes_idle=True).settings.notes
    assert note.startswith(f"{name}: changes nothing by itself, expected ")


def test_a_flag_of_all_targets_has_to_count_in_one():
    two = ["--target", "a blue jeep", "--edit.1", "shape"]
    assert settings_of(*two, "--blend-words", "jeep").edits[1].blend_words == (("jeep",), ())
    assert settings_of(*two, "--blend-words.1", "jeep").edits[0].blend_words is None
    with pytest.raises(FzError, match="^blend-words: changes nothing"):
        settings_of(*two, "--blend-words.0", "jeep")
    # of another method the run tells that fusion does not count
    assert settings_of("--blend-words", "jeep", "--method", "ddim")


def test_absent_words_are_refused_in_a_sweep_too():
    swept = ["--sweep", "threshold=0.2,0.3"]
    assert len(settings_of("--blend-words", "jeep", *swept).edits) == 2
    with pytest.raises(FzError, match="'zebra' is not in"):
        settings_of("--blend-words", "zebra", *swept)
    with pytest.raises(FzError, match="'zebra' is not in"):
        settings_of("--sweep", "reweight.zebra=2,3")


def test_what_a_config_has_without_effect_is_read(tmp_path):
    """The released code passes over a mask's words without a mask, and over the numbers of what is switched off."""
    path = tmp_path / "config.yaml"
    path.write_text(YAML.replace("self_replace_steps: 0.4", "self_replace_steps: 0.4, blend_words: [[jeep], [jeep]]"))
    settings = parse(["--config", str(path)]).settings
    assert settings.edits[0].threshold is None and settings.edits[0].blend_words is not None
    # and the command line that a report shows for it has none of it
    said = command(json.loads(json.dumps(dataclasses.asdict(settings))))
    again = parse(shlex.split(said)[3:]).settings
    assert again.edits[0].blend_words is None and again.edits[0].self_replace == (0, 0.4)


# ---- main --------------------------------------------------------------------------------------------------


def test_help_and_version(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "default: 50" in text and "--blend-words" in text and "--threshold.1 0.3" in text
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"fz {fz.__version__}"


def test_help_names_every_flag(capsys):
    main(["--help"])
    text = capsys.readouterr().out
    for action in flags.build_parser()._actions:
        if action.help != argparse.SUPPRESS:
            assert all(option in text for option in action.option_strings)


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (FzError("got this,\n expected that"), 2, "fz: got this, expected that"),
        (KeyboardInterrupt(), 130, "fz: interrupted"),
        (MemoryError(), 2, "fz: out of memory. Use fewer --frames"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), 2, "fz: out of memory. Use fewer --frames"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            2,
            "fz: out of memory. Use fewer --frames",
        ),
        (OSError(28, "No space left on device", "f.png"), 2, "fz: f.png: No space left on device."),
        (
            RuntimeError("shapes\ndiffer"),
            1,
            "fz: RuntimeError: shapes differ - this is a bug; --debug shows the traceback.",
        ),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, BaseException) else None,
)
def test_one_line_for_every_end(error, code, expected, monkeypatch, capsys):
    def fail(argv):
        raise error

    monkeypatch.setattr(run, "answer", fail)
    assert main([]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(expected)


def test_debug_shows_the_traceback():
    with pytest.raises(FzError, match="unknown flag"):
        main(["--debug", "--nonsense"])


def test_interrupt_in_mid_run(shared, tmp_path, monkeypatch, capsys):
    from fz import inverted

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(inverted, "invert", interrupted)
    assert main([*real(shared), "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("fz: interrupted")
    assert json.loads((tmp_path / "out/run.json").read_text())["status"] == "running"
    assert not list(tmp_path.rglob("*.part*"))


def real(shared):
    golden = shared / "golden"
    return [
        "--checkpoint",
        str(golden / "tiny_sd"),
        "--video",
        str(golden / "clips/car128"),
        "--size",
        "64",
        "--frames",
        "2",
        "--steps",
        "2",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--source",
        "a silver jeep on a road",
        "--target",
        "a red jeep on a road",
    ]


def test_a_run_by_flags(shared, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    second = ["--target", "watercolor painting of a silver jeep on a road", "--reweight.1", "watercolor=3"]
    assert main([*real(shared), *second, "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "results in" in said.out and "inverting" in said.err and "editing 2/2" in said.err
    run = json.loads((out / "run.json").read_text())
    assert run["status"] == "done" and run["settings"]["steps"] == 2
    for name in ("source.mp4", "edit-0.mp4", "edit-1.mp4", "side-by-side-0.mp4", "frames/edit-1/00001.png"):
        assert (out / name).stat().st_size > 0
    # the same settings again are no conflict; nothing is left to compute, and the record is the same
    monkeypatch.setattr(kernels, "_last", None)
    assert main([*real(shared), *second, "--out", str(out)]) == 0
    assert json.loads((out / "run.json").read_text())["versions"] == run["versions"]
    capsys.readouterr()
    assert main([*real(shared), "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_python_does_what_the_command_line_does(shared, tmp_path):
    from safetensors.torch import load_file

    from fz.pipeline import run as run_settings

    argv = [*real(shared), "--save-latents", "--out"]
    assert main([*argv, str(tmp_path / "a")]) == 0
    result = run_settings(parse([*argv, str(tmp_path / "b")]).settings)
    ours, theirs = (load_file(tmp_path / side / "latents.safetensors") for side in "ab")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert torch.equal(result.edits[0].latents[-1], ours["edited.0.002"])


def test_released_editing_configs_pass_a_dry_run(shared, tmp_path, capsys, monkeypatch):
    from fz import checkpoint as loading
    from fz import forecast

    # how long each would take is not asked here
    monkeypatch.setattr(forecast, "trial", lambda *_: forecast.Pace(1.0, 1.0))
    golden = shared / "golden"
    checkpoint = loading.load_checkpoint(golden / "tiny_sd")
    monkeypatch.setattr(loading, "load_checkpoint", lambda *args, **kwargs: checkpoint)
    monkeypatch.chdir(tmp_path)
    configs = [p for p in sorted((shared / "fatezero_configs").rglob("*.yaml")) if p.parent.name != "tune"]
    assert len(configs) >= 20
    for path in configs:
        code = main(
            [
                "--config",
                str(path),
                "--dry-run",
                "--set",
                f"pretrained_model_path={golden / 'tiny_sd'}",
                "--set",
                f"dataset_config.path={shared / 'data/jeep'}",
            ]
        )
        said = capsys.readouterr()
        assert code == 0, f"{path}: {said.err}"
        assert "dry run" in said.out
    assert not list(tmp_path.iterdir())


def test_words_are_listed(shared, capsys):
    assert main(["--list-words", *real(shared)]) == 0
    said = capsys.readouterr().out
    assert "'a silver jeep on a road': 6 words" in said and "silver  (tokens 2)" in said


def test_words_that_the_miniature_knows(capsys):
    assert main(["--list-words"]) == 0
    said = capsys.readouterr().out
    assert "car" in said and "red" in said and "sand" in said and "watercolor" in said


def test_words_that_the_miniature_does_not_know_are_named():
    notes = parse(
        ["--source", "A red car, moving on the sand", "--target", "a blu car moving on the planet"]
    ).settings.notes
    assert notes == (
        "the miniature does not know 'blu'. Did you mean 'blue'? --list-words tells what it knows.",
        "the miniature does not know 'planet'. --list-words tells what it knows.",
    )
    assert not parse(["--target", "a “blue” car – moving on the sand…"]).settings.notes
    assert not parse([]).settings.notes and not settings_of().notes  # other checkpoints know more


def test_who_brings_an_own_clip_to_the_miniature_is_told_what_it_knows():
    (line,) = parse(["--video", "jeep.mp4", "--source", "a red car", "--target", "a blue car"]).settings.notes
    assert "its own drawn clips only" in line and "--checkpoint" in line
    other = ["--checkpoint", "sd", "--video", "jeep.mp4", "--source", "a red car", "--target", "a blue car"]
    assert not parse(other).settings.notes


def test_without_advice_the_example_of_the_miniature():
    from fz import mini

    settings = parse([]).settings
    assert settings.checkpoint is None and settings.clip.path == mini.example()["clip.path"]
    assert (
        settings.clip.size == mini.DEFAULTS["clip.size"]
        and settings.edits[0].target == mini.example()["edits.0.target"]
    )
    # its largest feature maps are as large as the largest that the released code fuses
    (plain,) = settings.edits
    assert settings.fuses_full() and settings.fuses_full(plain)
    shape = parse(["--threshold", "0.3"]).settings
    assert shape.fuses_full() and not shape.fuses_full(shape.edits[0])
    for fuse, expected in (("half", False), ("full", True)):
        said = parse(["--fuse", fuse, "--threshold", "0.3"]).settings
        assert said.fuses_full() == said.fuses_full(said.edits[0]) == expected
    assert not settings_of().fuses_full()
    # what is said is over the example, and another checkpoint has no part of it
    assert parse(["--target", "a green car"]).settings.edits[0].target == "a green car"
    assert settings_of().clip.size == 512


def test_interrupt_while_starting_is_answered_too():
    # torch takes seconds to import: main must have it inside
    import subprocess

    code = "import sys, fz.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
