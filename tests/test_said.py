"""What a run says at its start and at its end, and what it keeps to itself until it is asked."""

import html
import re

import numpy as np
import pytest
from PIL import Image

from fz import prompt, tune
from fz.clips.decode import check_source
from fz.clips.media import write_pngs
from fz.clips.user_mask import read_mask
from fz.clips.video import read_clip
from fz.errors import FzError
from fz.metrics import measure
from fz.results import report
from fz.run import main
from fz.settings.config import ClipSettings
from fz.tuning import run

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123456\n"


@pytest.fixture
def said(models, tmp_path, monkeypatch, capsys):
    def run(*more):
        monkeypatch.chdir(tmp_path)
        argv = ["--checkpoint", str(models / "tiny_sd"), "--video", str(models / "clips/car128"), "--size", "64"]
        argv += ["--frames", "1", "--steps", "2", "--device", "cpu", "--threads", "1", "--cache", "none"]
        argv += ["--source", "a silver jeep, on a road", "--target", "a red jeep, on a road", "--out", "o", *more]
        assert main(argv) == 0
        return capsys.readouterr().out.splitlines()

    return run


def test_memory_and_seconds_at_the_start_and_the_file_to_open_at_the_end(said):
    lines = said()
    memory = r"needs about [\d.]+ [MG]B of [\d.]+ GB of memory"
    needs = next(i for i, line in enumerate(lines) if re.search(memory, line))
    seconds = next(i for i, line in enumerate(lines) if re.match(r"about \d+ (s|min) to go: ", line))
    assert needs < seconds < len(lines) - 1
    assert lines[-1] == "results in o; open o/side-by-side-0.mp4"
    # found, not computed again
    assert said() == ["results in o; open o/side-by-side-0.mp4: this very run was done before, nothing was computed"]


def test_how_it_is_computed_is_said_on_demand(said):
    assert not any("convolutions:" in line for line in said())
    assert any("convolutions:" in line for line in said("--overwrite", "--verbose"))


def test_a_word_is_drawn_without_the_comma_after_it(said, tmp_path, monkeypatch):
    """As masks and fz.prompt have it: the attention of 'jeep,' is that of 'jeep'."""
    drawn, summed = [], []
    from fz.results import folder

    overlay = folder.overlay

    def spy(frames, values):
        drawn.append(values)
        return overlay(frames, values)

    def remember(self, video, source, tokens, schedule):
        maps = [source.maps[t] for t in schedule.timesteps]
        mean = sum(maps).cpu() / len(maps)
        word = next(word for word in tokens.words if word.text == "jeep,")
        assert len(word.core) < len(word.positions)
        summed.append((word.index, mean[..., list(word.core)].sum(-1)))
        return write_source(self, video, source, tokens, schedule)

    write_source = folder.ResultFolder.write_source
    monkeypatch.setattr(folder, "overlay", spy)
    monkeypatch.setattr(folder.ResultFolder, "write_source", remember)
    said()
    ((index, expected),) = summed
    assert np.allclose(drawn[index].flatten(1), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.png", "frames", "*.webp"])
def test_a_git_lfs_pointer_is_told_from_a_damaged_file(tmp_path, name):
    place = tmp_path / {"frames": "frames/1.png", "*.webp": "1.webp"}.get(name, name)
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(POINTER)
    for read in (check_source, lambda path: read_clip(ClipSettings(path, size=64))):
        with pytest.raises(FzError, match=r"^video: .* is a git-lfs pointer, .*`git lfs pull`"):
            read(str(tmp_path / name))


def test_a_mask_that_is_a_git_lfs_pointer(tmp_path):
    write_pngs(tmp_path / "clip", np.zeros((1, 64, 64, 3), np.uint8))
    (tmp_path / "m.png").write_bytes(POINTER)
    clip = ClipSettings(str(tmp_path / "clip"), frames=1, size=64)
    with pytest.raises(FzError, match=r"^mask: .*git-lfs pointer"):
        read_mask(str(tmp_path / "m.png"), clip, read_clip(clip))


def test_help_of_a_mask_says_what_transparency_does(capsys):
    main(["--help"])
    mask = capsys.readouterr().out.partition("--mask PATH")[2].partition("--keep-background")[0]
    assert "opaque" in mask


def test_help_shows_the_defaults_of_the_miniature_too(capsys):
    main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for default in ("(default: 512; with the bundled miniature 128)", "(default: 50; with the bundled miniature 20)"):
        assert default in text
    assert "(default: 7.5; with the bundled miniature 3)" in text


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_prompt_lists_its_flags(flag, capsys):
    assert prompt.main([flag]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m fz.prompt [flags]\n\nShow what an edit will do to each word")
    for name in ("--source", "--target", "--reweight", "--json", "--map-steps", "--config"):
        assert f"  {name} " in text


def test_help_of_tune_begins_with_what_it_does(capsys):
    assert tune.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m fz.tune [flags]\n\nTune a Stable Diffusion v1 checkpoint on one clip")


def test_the_losses_have_axes(tmp_path):
    """A line to the left of the dots and one below, and numbers beside both."""
    run.draw_losses(tmp_path / "loss.png", [0.3, 0.1, 0.2])
    dark = np.asarray(Image.open(tmp_path / "loss.png").convert("L")) < 60
    down, across = dark.mean(0).argmax(), dark.mean(1).argmax()
    assert dark[:, down].sum() > 0.7 * dark.shape[0] and dark[across].sum() > 0.8 * dark.shape[1]
    assert dark[30:, : down - 5].sum() > 50 and dark[across + 5 :, down:].sum() > 20


def test_sample_prompts_are_read_before_anything_is_trained(models, tmp_path, capsys):
    """All of them: after hours of training, 77 tokens are too late."""
    argv = ["--checkpoint", str(models / "tiny_sd"), "--video", str(models / "clips/car128"), "--size", "64"]
    argv += ["--frames", "1", "--steps", "1", "--device", "cpu", "--prompt", "a jeep", "--out", str(tmp_path / "t")]
    long = "a jeep " * 50
    images = ["--class-images", str(models / "clips/car128"), "--class-prompt", long]
    for more in (["--sample-prompt", "a car", "--sample-prompt", long], images):
        assert tune.main([*argv, *more]) == 2
        assert "expected at most 77" in capsys.readouterr().err and not (tmp_path / "t").exists()


def test_numbers_are_explained_where_they_stand():
    rows = [{"target": "a boat", "tem_con": 0.9, "warp_error": 0.001, "flow": "estimated", "masks": None, "clip": None}]
    assert set(measure.MEANINGS) == set(measure.TITLES)
    lines = measure.explained(rows)
    assert [line.split(":")[0] for line in lines] == ["Tem-Con", "warp err x1000"]
    page = report.metrics_table(rows, ["a boat"])
    assert all(html.escape(line) in page for line in lines)


def test_a_report_names_the_folder_as_it_was_named(said, tmp_path):
    """results/x, not x: the command goes where the run went."""
    said("--out", "results/x", "--report", "--clip-model", "none")
    page = (tmp_path / "results/x/report.html").read_text(encoding="utf-8")
    assert re.search(r"python -m fz\.run [^<]*--out results/x", page)
