"""What is the user's stays: a canary folder beside and inside every output, refusals that change nothing, two writers.

Each test is of a fault that lost data.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
import torch

from fz import locks, pipeline
from fz.clips import media
from fz.errors import FzError
from fz.memory import inversions
from fz.memory.inversions import MARKER, Inversion, default_folder, prune
from fz.results import claim, own
from fz.results.beside import beside, check_beside, completed
from fz.results.folder import ResultFolder, read_run
from fz.results.lock import Lock
from fz.run import main
from fz.settings.config import build
from fz.settings.place import default_path, expanded, slug

GB = 10**9


@pytest.fixture(autouse=True)
def _own_cache_and_threads(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FZ_CACHE", str(tmp_path_factory.mktemp("cache")))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, a canary in it."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "canary/photo.png", b"mine")
    return tmp_path


def write(path, content=b"mine"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def content(folder):
    """Every file's digest and every link's target, by name."""
    return {
        str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_symlink() or p.is_file()
    }


@pytest.fixture
def flags(golden):
    def made(*more, steps="1", out="out"):
        base = ["--checkpoint", str(golden / "tiny_sd"), "--video", str(golden / "clips/car128"), "--size", "64"]
        base += ["--frames", "1", "--steps", steps, "--device", "cpu", "--threads", "1"]
        words = ["--source", "a silver jeep on a road", "--target", "a red jeep on a road"]
        return [*base, *words, *(["--out", out] if out else []), *more]

    return made


def settings_of(**more):
    edits = {f"edits.{i}.target": target for i, target in enumerate(more.pop("targets", ["a boat"]))}
    return build({"clip.path": "clip.mp4", "source": "a car"} | edits | more)


class Nothing:
    """Stands for a result that `finish` takes its record from."""

    notes, stages = [], {}
    video = type("Video", (), {"indices": (0,), "fps": 8.0})()


def fake_run(settings, files=("source.mp4", "frames/source/00000.png"), text=b"new"):
    """A run that writes these files, without computing them."""
    with ResultFolder.claim(settings) as folder:
        folder.start(settings)
        for place in folder.reserve(*files):
            write(place, text)
        folder.finish(Nothing(), {})
    return folder.path


# ---- A1: the cache ------------------------------------------------------------------------------------------


def test_a_cache_among_other_folders_leaves_them(here):
    cache, said = here / "mine", []
    foreign = [write(cache / name / "film.mov", b"x" * 5000) for name in ("holiday", "a" * 32, "steps")]
    old = Inversion(cache, "0" * 32, said.append)
    old.log.put(0, {"z": torch.zeros(1000)})
    old.close()
    os.utime(old.folder, (1, 1))
    link = cache / ("b" * 32)
    link.symlink_to(here / "canary")
    write(here / "canary/.fz-inversion", b"")
    part = write(cache / "holiday/.film.mov.1.part")
    os.utime(part, (1, 1))
    prune(cache, limit=10, say=said.append)
    assert not old.folder.exists() and len(said) == 1 and str(old.folder) in said[0]
    assert all(file.exists() for file in (*foreign, part, here / "canary/photo.png")) and link.is_symlink()


def filled(inversion):
    """As a run leaves it that is not done: 4 kB of steps, an edit's and operands."""
    for log in (inversion.log, inversion.edit_log("a")):
        log.put(0, {"z": torch.zeros(500)})
    write(inversion.operands / "inversion" / "0001.safetensors")
    return sorted(inversion.folder.rglob("*"))


def test_no_more_goes_than_has_to(here, system):
    """One of six, the oldest that nobody has open, also where open files cannot be removed."""
    folders = []
    for age in range(6):
        with_files = Inversion(here / "cache", f"{age:032x}", pytest.fail)
        folders.append((with_files.folder, filled(with_files)))
        with_files.close()
        os.utime(with_files.folder, (1e9 + age, 1e9 + age))
    used = Inversion(here / "cache", "0" * 32, pytest.fail)
    os.utime(used.folder, (1e9, 1e9))
    said = []
    size = sum(p.stat().st_size for p in used.folder.rglob("*") if p.is_file())
    prune(here / "cache", limit=5 * size, say=said.append)
    assert len(said) == 1 and str(folders[1][0]) in said[0] and not folders[1][0].exists()
    for folder, files in (folders[0], *folders[2:]):
        assert sorted(folder.rglob("*")) == files
    used.close()


def test_what_could_not_be_removed_is_not_counted_as_gone_nor_the_rest_removed(here, monkeypatch):
    """A file that another program has open, as a virus scanner on Windows."""
    for age in range(3):
        filled(inversion := Inversion(here / "cache", f"{age:032x}", pytest.fail))
        inversion.close()
        os.utime(inversion.folder, (1e9 + age, 1e9 + age))
    held, unlink = here / "cache" / ("0" * 32) / "edit-a" / "0000.safetensors", os.unlink

    def unlinked(path, **options):
        if Path(path).name == held.name and "edit-a" in os.readlink(f"/proc/self/fd/{options['dir_fd']}"):
            raise PermissionError(13, "in use", path)
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", unlinked)
    size = sum(p.stat().st_size for p in (here / "cache").rglob("*") if p.is_file())
    prune(here / "cache", limit=size - 100, say=pytest.fail)
    assert held.exists() and not held.parent.with_name("steps").exists()
    assert all((here / "cache" / f"{age:032x}" / "steps").exists() for age in (1, 2))


def test_only_the_last_run_of_an_inversion_removes_what_runs_need(here, system):
    one, other = (Inversion(here, "0" * 32, pytest.fail) for _ in range(2))
    files = filled(one)
    one.finished()
    assert [p for p in sorted(one.folder.rglob("*")) if p.name != "done"] == files
    # and has not lost its own share by asking
    other.finished()
    assert [p for p in sorted(one.folder.rglob("*")) if p.name != "done"] == files
    one.close()
    # also what was of use to the one that ended before
    other.finished()
    assert not one.operands.exists() and not list(one.folder.glob("edit-*")) and other.z0() is not None
    other.close()


def test_a_killed_runs_temporary_inversion_goes_and_a_running_ones_stays(here, system, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(here))
    (here / "fz-killed").mkdir()
    filled(killed := Inversion(here / "fz-killed", "0" * 32, pytest.fail))
    killed.close()
    said = []
    with Inversion.open("none", "1" * 32, said.append) as running:
        files = filled(running)
        with Inversion.open("none", "2" * 32, pytest.fail):
            assert sorted(running.folder.rglob("*")) == files
    assert len(said) == 1 and "fz-killed" in said[0] and not list(here.glob("fz-*"))


def test_a_run_that_meets_a_removal_waits_and_makes_it_anew(here, system, monkeypatch):
    """It had the marker of a folder that was gone: no lock on the one that it then wrote."""
    filled(old := Inversion(here, "0" * 32, pytest.fail))
    old.close()
    marker = os.open(old.folder / MARKER, os.O_RDWR)
    assert locks.lock(marker)
    looks = []

    def gone(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            for name in ("steps", "edit-a", "operands"):
                shutil.rmtree(old.folder / name)
            locks.remove(old.folder / MARKER, marker)
            old.folder.rmdir()

    monkeypatch.setattr(inversions.time, "sleep", gone)
    new = Inversion(here, "0" * 32, pytest.fail)
    assert len(looks) == 2 and new.marker is not None and new.z0() is None
    prune(here, limit=0, say=pytest.fail)
    assert (new.folder / MARKER).is_file()
    new.close()


def test_an_inversion_in_use_stays(here, system):
    used = Inversion(here, "0" * 32, pytest.fail)
    used.log.put(0, {"z": torch.zeros(1000)})
    prune(here, limit=10, say=pytest.fail)
    assert used.z0() is not None
    used.close()
    prune(here, limit=10)
    assert not used.folder.exists()


@pytest.mark.parametrize("value", ["", None])
def test_an_empty_cache_variable_is_the_default_and_not_the_current_folder(value, here, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "user"))
    monkeypatch.setenv("FZ_CACHE", value) if value is not None else monkeypatch.delenv("FZ_CACHE")
    assert default_folder() == here / "user/fz/inversions"


# ---- A2: refused runs ---------------------------------------------------------------------------------------


@pytest.fixture
def done(here, flags, capsys):
    assert main(flags()) == 0
    write(here / "out/thesis.tex")
    write(here / "out/frames/source/.DS_Store")
    capsys.readouterr()
    return here / "out"


def no_memory(monkeypatch):
    from fz.memory import budget

    monkeypatch.setattr(budget, "free_memory", lambda device: 1)


def nan(monkeypatch):
    from fz import inverted

    monkeypatch.setattr(inverted, "decode", lambda *_: (_ for _ in ()).throw(FzError("decoding: NaN")))


REFUSALS = {
    "kernels": (lambda m: m.setenv("FZ_KERNELS", "fast"), ["--steps", "1"]),
    "kernels, overwrite": (lambda m: m.setenv("FZ_KERNELS", "fast"), ["--overwrite"]),
    "memory": (no_memory, ["--overwrite"]),
    "NaN": (nan, ["--overwrite"]),
    "a word that is not there": (lambda m: None, ["--overwrite", "--blend-words", "lorry", "--threshold", "0.3"]),
    "settings": (lambda m: None, ["--guidance", "3"]),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refused_run_changes_nothing(case, done, here, flags, monkeypatch):
    before = content(here)
    change, more = REFUSALS[case]
    change(monkeypatch)
    assert main(flags(*more)) == 2
    after = content(here)
    # what an overwriting run had finished may be beside, hidden
    assert {name: v for name, v in after.items() if claim.STAGE not in name} == before


def test_overwriting_replaces_all_of_the_old_and_nothing_of_the_users(done, here, flags):
    assert main(flags("--overwrite", "--target", "a blue jeep on a road")) == 0
    assert (done / "thesis.tex").read_bytes() == (done / "frames/source/.DS_Store").read_bytes() == b"mine"
    run = read_run(done)
    listed = {*run["files"], "run.json", "thesis.tex", "frames/source/.DS_Store"}
    assert set(content(done)) == listed and run["status"] == "done" and len(run["settings"]["edits"]) == 2
    assert (here / "canary/photo.png").read_bytes() == b"mine"


def test_a_refusal_leaves_no_empty_folder(here, flags, monkeypatch):
    no_memory(monkeypatch)
    assert main(flags(out="new/deep/out")) == 2
    assert main(flags(out=None)) == 2
    assert [p.name for p in here.iterdir()] == ["canary"]


def test_the_old_run_is_whole_until_the_new_one_is(here):
    out = fake_run(settings_of(out="o"), text=b"old")
    other = settings_of(out="o", steps=7, overwrite=True)
    with ResultFolder.claim(other) as folder:
        folder.start(other)
        write(folder.reserve("source.mp4")[0], b"new")
        assert (out / "source.mp4").read_bytes() == b"old" and read_run(out)["settings"]["steps"] == 50
    # it was killed there: nothing is lost, and the next one is as if it had never been
    assert (out / "source.mp4").read_bytes() == b"old" and read_run(out)["status"] == "done"
    assert fake_run(other) == out and set(content(out)) == {"run.json", "source.mp4", "frames/source/00000.png"}


@pytest.mark.parametrize("stop", range(6))
def test_a_swap_that_is_cut_short_is_finished_by_the_next_run(here, stop, monkeypatch):
    """Killed before the record, each of the two files, the removal of the old one, the new record, or not at all."""
    out = fake_run(settings_of(out="o"), ("edit-0.mp4", "source.mp4", "frames/source/00001.png"), b"old")
    write(out / "thesis.tex")
    calls, real_swap = [], claim.Claim.swap

    def cut(real):
        def call(*arguments):
            calls.append(real)
            if len(calls) > stop:
                raise KeyboardInterrupt
            return real(*arguments)

        return call

    def swap(self, work):
        with monkeypatch.context() as patched:
            patched.setattr(own.os, "replace", cut(os.replace))
            patched.setattr(own, "remove", cut(own.remove))
            real_swap(self, work)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(claim.Claim, "swap", swap)
        with pytest.raises(KeyboardInterrupt):
            fake_run(settings_of(out="o", steps=7, overwrite=True))
    # this one neither overwrites nor computes
    with ResultFolder.claim(settings_of(out="o", steps=7)):
        pass
    run = read_run(out)
    assert run["settings"]["steps"] == 7 and run["status"] == "done"
    assert set(content(out)) == {"run.json", "source.mp4", "frames/source/00000.png", "thesis.tex"}
    assert (out / "source.mp4").read_bytes() == b"new" and (out / "thesis.tex").read_bytes() == b"mine"


# ---- A3: overwriting in a folder with more ------------------------------------------------------------------


def test_overwriting_at_home(here):
    home = here / "home"
    theirs = [
        write(home / name)
        for name in (".movie.mkv.part", "downloads/.x.iso.12.part", "frames/notes.txt", ".fz-new.txt", "edit-0.txt")
    ]
    fake_run(settings_of(out="home", overwrite=True))
    assert all(file.read_bytes() == b"mine" for file in theirs)


OF_A_RUN = (
    *("source.mp4", "frames/source/00009.png", "run.json", "edit-0.gif", "side-by-side-0.mp4", "report.html"),
    *("attention/all-words.png", "attention/01-car.png", "masks/edit-0-step-000.png", "latents.safetensors"),
)


@pytest.mark.parametrize("name", OF_A_RUN)
def test_a_file_of_the_users_with_a_runs_name_is_not_written_over(name, here):
    write(here / "home" / name)
    with pytest.raises(FzError, match="Move it"):
        ResultFolder.claim(settings_of(out="home", overwrite=True))
    assert content(here / "home").keys() == {name} and (here / "home" / name).read_bytes() == b"mine"


def test_what_appears_while_a_run_computes_is_not_written_over(here):
    """Also of a name that no check before the run could foresee."""
    out = fake_run(settings_of(out="o"), ("source.mp4",), b"old")
    for name, more in (("strange.png", {}), ("masks/strange.png", {"steps": 7, "overwrite": True})):
        settings = settings_of(out="o", **more)
        with pytest.raises(FzError, match="Move it"), ResultFolder.claim(settings) as folder:
            folder.start(settings)
            write(out / name)
            folder.reserve("source.mp4", name)
        assert (out / name).read_bytes() == b"mine" and name not in read_run(out)["files"]
        assert (out / "source.mp4").read_bytes() == b"old"


SWEEP = ("sweep.png", "sweep.json", "sweep.csv")


@pytest.mark.parametrize("name", SWEEP)
def test_a_file_of_the_users_with_a_sweeps_name_stays(name, here, flags, monkeypatch):
    swept = [*flags(), "--sweep", "self_replace=0.5", "--clip-model", "none"]
    write(here / "out" / name)
    assert main([*swept, "--overwrite"]) == 2
    assert content(here / "out").keys() == {name} and (here / "out" / name).read_bytes() == b"mine"
    # one that comes while the sweep is computed: what was finished stays, too
    (here / "out" / name).unlink()
    real = pipeline.run
    monkeypatch.setattr(pipeline, "run", lambda *given: (real(*given), write(here / "out" / name))[0])
    assert main(swept) == 2
    assert [file for file in SWEEP if (here / "out" / file).exists()] == [name]
    assert (here / "out" / name).read_bytes() == b"mine" and read_run(here / "out")["status"] == "done"
    (here / "out" / name).unlink()
    monkeypatch.setattr(pipeline, "run", real)
    assert main(swept) == main(swept) == 0 and {*SWEEP} <= {*read_run(here / "out")["files"]}


def test_what_is_written_beside_a_run_is_listed_before(here):
    """Killed between the two, a run's own report was taken for the user's by the next."""
    out = fake_run(settings_of(out="o", report=True))
    with pytest.raises(KeyboardInterrupt), beside(out, "report.html"):
        write(out / "report.html", b"half")
        raise KeyboardInterrupt
    assert "report.html" in read_run(out)["files"]
    with ResultFolder.claim(settings_of(out="o", steps=3, overwrite=True)):
        pass
    with pytest.raises(FzError, match="is no file of a run.*Move it"):
        write(out / "sweep.csv")
        check_beside(out, "sweep.png", "sweep.csv")


@pytest.mark.parametrize("name", ["frames", "frames/source", "masks", "attention", "source.mp4", ".fz-new"])
def test_links_lead_nowhere(name, here):
    out = fake_run(settings_of(out="o"))
    write(here / "canary/source/00000.png")
    write(here / "canary/00000.png")
    before = content(here / "canary")
    own.remove(out, ["frames/source/00000.png", "source.mp4"])
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).symlink_to(here / "canary", target_is_directory=True)
    with pytest.raises(FzError, match="Move it"):
        ResultFolder.claim(settings_of(out="o", overwrite=True, steps=3))
    assert content(here / "canary") == before and (out / name).is_symlink()


@pytest.mark.parametrize(
    "name", ["frames/source/00000.png", "../canary/photo.png", "/etc/hostname", "a/../../canary/photo.png"]
)
def test_nothing_outside_is_removed_whatever_is_listed(name, here):
    out = here / "o"
    (out / "frames").mkdir(parents=True)
    write(here / "canary/00000.png")
    (out / "frames/source").symlink_to(here / "canary")
    before = content(here / "canary")
    own.remove(out, [name])
    assert content(here / "canary") == before


@pytest.mark.parametrize(
    "clip", ["o/source.mp4", "o/frames/source", "o/frames/source/*.png", "{}/o/frames/source/00000.png"]
)
def test_a_clip_among_the_results_is_not_written_over(clip, here):
    out = fake_run(settings_of(out="o"), text=b"old")
    before = content(out)
    given = {
        "clip.path": clip.format(here),
        "source": "a car",
        "edits.0.target": "a dog",
        "out": "o",
        "overwrite": True,
    }
    with pytest.raises(FzError, match="is among the results"):
        ResultFolder.claim(build(given))
    assert content(out) == before


INPUTS = {
    "a mask": ({"edits.0.mask": "o/edit-0.mp4"}, "mask"),
    "a video of control": ({"control": "net", "control_video": "o/edit-0.mp4"}, "control_video"),
    "a LoRA": ({"lora": (("o/latents.safetensors", 1.0),)}, "lora"),
    "a learned word": ({"embedding": (("o/latents.safetensors", "w"),)}, "embedding"),
    "a VAE": ({"vae": "o/latents.safetensors"}, "vae"),
    "a checkpoint": ({"checkpoint": "o/latents.safetensors"}, "checkpoint"),
}


@pytest.mark.parametrize("case", INPUTS)
def test_no_file_that_a_run_reads_is_written_over(case, here):
    out = fake_run(settings_of(out="o"), ("edit-0.mp4", "latents.safetensors"), b"old")
    before, (more, name) = content(out), INPUTS[case]
    with pytest.raises(FzError, match=f"^{name}: .* is among the results"):
        ResultFolder.claim(settings_of(out="o", overwrite=True, **more))
    assert content(out) == before
    # the clip's own edges are no file
    with ResultFolder.claim(settings_of(out="o", overwrite=True, control="net")):
        pass


def test_a_clip_of_the_users_inside_out_stays(here):
    write(here / "o/clip.mp4")
    fake_run(settings_of(out="o", overwrite=True, **{"clip.path": "o/clip.mp4"}))
    assert (here / "o/clip.mp4").read_bytes() == b"mine"


# ---- A4: files that were not asked for ----------------------------------------------------------------------


def test_an_evaluation_is_beside_its_results_and_replaces_only_evaluations(done, here, capsys):
    from fz import evaluate

    write(here / "evaluation.json")
    assert evaluate.main(["out", "--clip-model", "none"]) == 0
    assert (here / "evaluation.json").read_bytes() == b"mine"
    assert json.loads((here / "out/evaluation.json").read_text())[0]["result"] == "out"
    assert evaluate.main(["out", "--clip-model", "none"]) == 0  # its own it may replace
    assert {"evaluation.json", "evaluation.csv"} <= set(read_run(done)["files"])
    write(here / "mine.csv", b"a,b\n")
    capsys.readouterr()
    assert evaluate.main(["out", "--out", "mine", "--clip-model", "none"]) == 2
    assert "no evaluation" in capsys.readouterr().err and (here / "mine.csv").read_bytes() == b"a,b\n"
    assert evaluate.main(["out", "--out", "mine", "--overwrite", "--clip-model", "none"]) == 0


def test_cells_of_a_table_are_no_formulas():
    from fz.metrics.measure import as_csv

    rows = [{"target": text} for text in ("=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "a car", "\t=1")]
    lines = as_csv(rows).splitlines()[1:]
    assert all(line.lstrip('"')[0] == "'" for line in lines if "car" not in line) and "a car" in lines
    assert as_csv([{"psnr": -1.5}]).splitlines()[1] == "-1.5"


def test_prompts_pictures_ask_before_they_replace(here, flags, capsys):
    from fz import prompt

    words = flags("--map-steps", "1", out="pictures")
    write(here / "pictures/all-words.png")
    assert prompt.main(words) == 2
    assert "Pass another --out" in capsys.readouterr().err
    assert (here / "pictures/all-words.png").read_bytes() == b"mine"
    (here / "pictures/all-words.png").unlink()
    write(here / "pictures/notes.txt")
    assert prompt.main(words) == 0 and prompt.main(words) == 0
    assert (here / "pictures/notes.txt").read_bytes() == b"mine"


def test_a_tilde_is_the_home_folder(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    (here / "home").mkdir()
    with ResultFolder.claim(settings_of(out="~/x")) as folder:
        assert folder.path == here / "home/x"
    assert not (here / "~").exists()
    with pytest.raises(FzError, match="~nosuchuser is no user of this machine"):
        expanded("~nosuchuser/x", "out")


# ---- A5: two at once ----------------------------------------------------------------------------------------


def test_a_second_run_into_one_folder_is_told_who_has_it(here, flags, capsys):
    (here / "out").mkdir()
    with Lock(here / "out"):
        assert main(flags()) == 2
        assert f"is being written by this program itself, process {os.getpid()}" in capsys.readouterr().err
    assert main(flags()) == 0 and not (here / "out/.fz-lock").exists()


def test_a_run_without_a_name_takes_another_folder_than_one_that_is_being_written(here):
    first = settings_of()
    with ResultFolder.claim(first) as one:
        one.start(first)
        with ResultFolder.claim(settings_of(steps=7)) as two:
            assert two.path != one.path
        with pytest.raises(FzError, match="is being written by"):
            ResultFolder.claim(settings_of())


@pytest.mark.parametrize("started", [False, True], ids=["while it loads", "while it computes"])
def test_what_a_second_run_without_a_name_gets_does_not_depend_on_how_far_the_first_is(started, here):
    first = settings_of()
    with ResultFolder.claim(first) as one:
        if started:
            one.start(first)
        with ResultFolder.claim(settings_of(steps=7)) as two:
            assert two.path.name.startswith("clip-a-boat-")
            with ResultFolder.claim(settings_of(steps=9)) as three:
                assert len({one.path, two.path, three.path}) == 3
            with pytest.raises(FzError, match="is being written by"):
                ResultFolder.claim(settings_of(steps=7))
        with pytest.raises(FzError, match="is being written by"):
            ResultFolder.claim(settings_of())


def test_two_threads_one_folder(here):
    """Of many at once, one has the folder; all others are told."""
    refused, had, gate = [], [], threading.Barrier(6)

    def work():
        gate.wait()
        try:
            with ResultFolder.claim(settings_of(out="o")):
                had.append(1)
                gate.wait()
        except FzError as error:
            refused.append(str(error))
            gate.wait()

    threads = [threading.Thread(target=work) for _ in range(6)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert len(had) == 1 and len(refused) == 5 and all("is being written by" in line for line in refused)


# ---- B9, E: what run.json says, and names --------------------------------------------------------------------


def test_a_run_is_done_when_its_report_is(here):
    settings = settings_of(out="o", report=True)
    with ResultFolder.claim(settings) as folder:
        folder.start(settings)
        write(folder.reserve("source.mp4")[0])
        folder.finish(Nothing(), {}, awaits=["report.html"])
    assert read_run(here / "o")["status"] == "finishing" and "report.html" not in read_run(here / "o")["files"]
    completed(here / "o", "evaluation.json")
    assert read_run(here / "o")["status"] == "finishing"
    completed(here / "o", "report.html")
    assert read_run(here / "o")["status"] == "done" and "report.html" in read_run(here / "o")["files"]


def test_a_finished_run_is_reused_until_its_input_changes(done, here, flags, capsys, monkeypatch):
    from fz import loaded

    before = content(done)
    with monkeypatch.context() as patched:
        patched.setattr(loaded, "load", lambda *_, **__: pytest.fail("a model was loaded"))
        assert main(flags()) == 0
    assert "nothing was computed" in capsys.readouterr().out and content(done) == before
    (done / "edit-0.mp4").unlink()
    assert main(flags()) == 0 and content(done).keys() == before.keys()
    assert "nothing was computed" not in capsys.readouterr().out


def test_a_changed_clip_is_not_the_same_run(here, flags):
    pixels = torch.randint(0, 255, (1, 64, 64, 3), dtype=torch.uint8).numpy()
    media.write_pngs(here / "clip", pixels)
    argv = flags(*["--video", "clip"])
    assert main(argv) == 0
    first = (here / "out/frames/source/00000.png").read_bytes()
    media.write_pngs(here / "clip", 255 - pixels)
    assert main(argv) == 0
    assert (here / "out/frames/source/00000.png").read_bytes() != first


def test_another_miniature_is_not_the_same_run(here, monkeypatch):
    """Its path and its files' sizes are those of the one before."""
    from fz import mini
    from fz.results import inputs

    stamps = []
    for content in (b"first", b"first", b"other"):
        write(here / "mini/unet/model.safetensors", content)
        monkeypatch.setattr(mini, "FOLDER", here / "mini")
        inputs.weights_of_miniature.cache_clear()
        stamps.append([inputs.stamp_of(settings_of(checkpoint=path)) for path in (None, "canary")])
    inputs.weights_of_miniature.cache_clear()
    assert stamps[0] == stamps[1] and stamps[1][0] != stamps[2][0] and stamps[1][1] == stamps[2][1]


BESIDE = {
    "lora": ("adapter_model.safetensors", "adapter_config.json"),
    "vae": ("vae.pt", "config.json"),
    "control": ("control.safetensors", "config.json"),
    "checkpoint": ("sd.ckpt", "sd.yaml"),
}


@pytest.mark.parametrize("what", BESIDE)
def test_what_is_read_beside_a_file_is_input_too(what, here):
    from fz.results.inputs import stamp_of

    file, small = BESIDE[what]
    write(here / "model" / file)
    given = f"model/{file}"
    settings = settings_of(**{"checkpoint": "canary", what: ((given, 1.0),) if what == "lora" else given})
    stamps = [stamp_of(settings)]
    for content in (b"{}", b'{"lora_alpha": 8}'):
        write(here / "model" / small, content)
        stamps.append(stamp_of(settings))
    write(here / "model/notes.txt")
    assert len({*stamps}) == 3 and stamp_of(settings) == stamps[-1]


def test_a_lora_of_another_alpha_is_not_the_same_run(here, flags, golden, capsys):
    from safetensors.torch import load_file, save_file

    layer = "up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_v"
    rows, columns = load_file(golden / "tiny_sd/unet/diffusion_pytorch_model.safetensors")[f"{layer}.weight"].shape
    halves = {"A": torch.ones(1, columns), "B": torch.ones(rows, 1)}
    (here / "ad").mkdir()
    save_file(
        {f"base_model.model.{layer}.lora_{half}.weight": t for half, t in halves.items()},
        here / "ad/adapter_model.safetensors",
    )
    pictures, reused = [], []
    for alpha in (0, None, 4):
        if alpha is not None:
            write(here / "ad/adapter_config.json", json.dumps({"lora_alpha": alpha}).encode())
        assert main(flags("--lora", "ad/adapter_model.safetensors")) == 0
        reused.append("nothing was computed" in capsys.readouterr().out)
        pictures.append((here / "out/frames/edit-0/00000.png").read_bytes())
    assert reused == [False, True, False] and pictures[0] != pictures[2]


def test_what_is_read_back_is_what_was_written(here, flags):
    from fz.settings.parse import parse

    settings = parse(flags()).settings
    first, again = pipeline.run(settings), pipeline.run(settings)
    assert again.source is None and first.source is not None
    assert (media.to_uint8(first.video.frames) == media.to_uint8(again.video.frames)).all()
    assert (first.edits[0].uint8() == again.edits[0].uint8()).all() and again.edits[0].target == first.edits[0].target


def test_runs_of_other_settings_have_other_folders(here):
    names = [fake_run(settings_of(**more)).name for more in ({}, {"steps": 20}, {"steps": 20, "guidance": 3.0}, {})]
    assert names == ["clip-a-boat", "clip-a-boat-steps-20", "clip-a-boat-steps-20-guidance-3-0", "clip-a-boat"]
    two = [fake_run(settings_of(targets=["a boat", other])).name for other in ("a dog", "a cat", "a dog")]
    assert two == ["clip-a-boat-2", "clip-a-boat-3", "clip-a-boat-2"]


def test_a_refusal_says_what_differs(here):
    fake_run(settings_of(out="o"))
    with pytest.raises(FzError, match=r"steps 50 there, 20 now"):
        ResultFolder.claim(settings_of(out="o", steps=20))


@pytest.mark.parametrize(
    ("text", "longest", "expected"),
    [
        ("A silver jeep, driving!", 60, "a-silver-jeep-driving"),
        ("a silver jeep driving", 12, "a-silver"),
        ("a silver jeep driving", 13, "a-silver-jeep"),
        ("jeeeeeeeeeeeeeeep", 6, "jeeeee"),
        ("雪の中の車", 7, "雪の"),
        ("Cafe\u0301 au lait", 60, "café-au-lait"),
        ("...", 9, ""),
        # devices on Windows, with any ending
        ("Con", 60, "con_"),
        ("lpt1", 60, "lpt1_"),
        ("com port", 3, "com"),
        ("nul car", 4, "nul_"),
        ("a con", 60, "a-con"),
    ],
)
def test_names_are_cut_at_words_by_bytes(text, longest, expected):
    assert slug(text, longest) == expected


def test_no_name_is_too_long_for_a_file_system(here):
    settings = settings_of(targets=["雪" * 300], **{"clip.path": "車" * 80 + ".mp4"})
    assert len(default_path(settings).name.encode()) <= 255
    fake_run(settings)
    assert len(fake_run(settings_of(targets=["雪" * 300], steps=3, **{"clip.path": "車" * 80 + ".mp4"})).name) <= 255


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{}", '{"status": "done"}', "null", '{"status": [], "settings": {}}', "\x00"]
)
def test_a_strange_record_is_no_runs(text, here):
    write(here / "o/run.json", text.encode())
    assert read_run(here / "o") is None
    with pytest.raises(FzError, match="holds other files"):
        ResultFolder.claim(settings_of(out="o"))


# ---- tunings ------------------------------------------------------------------------------------------------


def tuning(out, **more):
    from fz.settings.config import ClipSettings
    from fz.tuning.settings import TuneSettings

    return TuneSettings(ClipSettings("clip.mp4"), "a car", str(out), **more)


def fake_tuning(settings, tuned=True, text=b"new"):
    from fz.tuning.folder import TuningFolder
    from fz.tuning.run import as_json

    with TuningFolder.claim(settings) as folder:
        about = {"model": "m", **as_json(settings)}
        folder.begin(about, settings.overwrite)
        for name in ("state.pt", "unet/config.json", f"samples/{settings.steps:05d}-0.gif"):
            write(folder.work / name, text)
        media.write_json(folder.work / "tuning.json", about | {"untuned": 0.5, **({"tuned": 0.4} if tuned else {})})
        if tuned:
            folder.finish()
    return folder


def test_an_overwriting_tuning_is_made_beside_the_old_and_goes_on_there(here):
    fake_tuning(tuning("t"), text=b"old")
    write(here / "t/notes.txt")
    other = tuning("t", rate=1e-4, steps=7, overwrite=True)
    assert fake_tuning(other, tuned=False).before == {}
    assert (here / "t/state.pt").read_bytes() == (here / "t/unet/config.json").read_bytes() == b"old"
    again = fake_tuning(other)
    assert again.before["rate"] == 1e-4, "it goes on from its own state"
    names = {"state.pt", "unet/config.json", "samples/00007-0.gif", "tuning.json", "notes.txt"}
    assert set(content(here / "t")) == names and (here / "t/state.pt").read_bytes() == b"new"


def test_a_tuning_is_refused_without_a_change(here, capsys):
    from fz.tuning.folder import TuningFolder

    fake_tuning(tuning("t"), text=b"old")
    before = content(here)
    with pytest.raises(FzError, match="another rate .*1e-05|another rate"):
        fake_tuning(tuning("t", rate=1e-5))
    with Lock(here / "t"), pytest.raises(FzError, match="is being written by"):
        TuningFolder.claim(tuning("t"))
    write(here / "u/unet/config.json")
    with pytest.raises(FzError, match="Move it"):
        TuningFolder.claim(tuning("u", overwrite=True))
    assert {k: v for k, v in content(here).items() if not k.startswith("u/")} == before


TUNED_FROM = {
    "its own checkpoint": ({"checkpoint": "t"}, "checkpoint"),
    "its own UNet": ({"checkpoint": "sd", "model_config": "t/unet"}, "model_config"),
    "its own samples": ({"class_images": "t/samples"}, "class_images"),
}


@pytest.mark.parametrize("case", TUNED_FROM)
def test_no_file_that_a_tuning_reads_is_written_over(case, here):
    from fz.tuning.folder import TuningFolder

    fake_tuning(tuning("t"), text=b"old")
    before, (more, name) = content(here), TUNED_FROM[case]
    with pytest.raises(FzError, match=f"^{name}: .* is among the results in t"):
        TuningFolder.claim(tuning("t", overwrite=True, **more))
    assert content(here) == before
    with TuningFolder.claim(tuning("u", **more)):
        pass


def test_an_overwriting_tuning_that_is_refused_for_memory_keeps_the_old(here, golden, monkeypatch):
    from fz import tune
    from fz.tuning import run

    flags = ["--checkpoint", str(golden / "tiny_sd"), "--video", str(golden / "clips/car128"), "--prompt", "a jeep"]
    flags += ["--size", "64", "--frames", "1", "--steps", "1", "--device", "cpu", "--threads", "1", "--out", "t"]
    assert tune.main(flags) == 0
    before = content(here)
    monkeypatch.setattr(run, "free_memory", lambda device: 1)
    assert tune.main([*flags, "--overwrite"]) == 2 and content(here) == before


def test_a_full_disk_is_one_line_in_tune_and_latents(here, capsys):
    from fz.memory.kept import write_tensors
    from fz.mini.eye import Eye, write_eye
    from fz.mini.state import write_averages
    from fz.shell import answered
    from fz.weights.write import write_lora, write_weights

    settings = settings_of(out="o")

    def latents():
        with ResultFolder.claim(settings) as folder:
            folder.start(settings)
            folder.add_latents({"z": torch.zeros(10)})

    zero = {"z": torch.zeros(10)}
    options = {
        "out": [
            latents,
            lambda: write_weights(here / "unet.bin", zero),
            lambda: write_lora(here / "lora.safetensors", {"mid": (torch.zeros(2, 1), torch.zeros(1, 2))}),
            lambda: write_eye(Eye(), here / "eye.safetensors"),
        ],
        "cache": [lambda: write_tensors(here / "z.safetensors", zero)],
        "state": [lambda: write_averages(here, zero)],
    }
    for option, works in options.items():
        for work in works:
            with pytest.MonkeyPatch.context() as patched:
                broken = RuntimeError("PytorchStreamWriter failed")
                patched.setattr(torch, "save", lambda *_, broken=broken: (_ for _ in ()).throw(broken))
                patched.setattr("fz.tensors.save_file", full)
                assert answered(work) == 2
            said = capsys.readouterr().err
            assert f"{option}: " in said and f"pass another --{option}" in said and said.count("\n") == 1
            assert "cannot be written" in said and "bug" not in said


def full(*_, **__):
    from safetensors import SafetensorError

    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_weights_have_the_same_bytes_whatever_process_wrote_them(here, monkeypatch):
    from fz.tensors import write_pt

    for number in (1, 22):
        monkeypatch.setattr(os, "getpid", lambda number=number: number)
        write_pt(here / f"{number}.bin", {"z": torch.arange(9.0)})
    assert (here / "1.bin").read_bytes() == (here / "22.bin").read_bytes()


# ---- B2: what an inversion depends on ------------------------------------------------------------------------


@pytest.fixture
def inversion(golden, here, flags):
    from fz.clips.video import read_clip
    from fz.editor import Editor
    from fz.inverted import InvertedClip
    from fz.progress import Journal
    from fz.settings.parse import parse

    def made(*more, change=lambda checkpoint: None):
        settings = parse(flags(*more)).settings
        editor = Editor(settings, Journal())
        change(editor.checkpoint)
        return InvertedClip(editor, settings, read_clip(settings.clip, editor.multiple), Journal())

    return made


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("unet", "heads", (1, 1, 1, 1)), ("unet", "norm_eps", 1e-3), ("unet", "norm_num_groups", 2),
        ("unet", "freq_shift", 1), ("unet", "flip_sin_to_cos", False), ("vae", "norm_num_groups", 2),
    ],
)  # fmt: skip
def test_another_architecture_of_the_same_weights_has_another_inversion(part, field, value, inversion):
    def change(checkpoint):
        model = getattr(checkpoint, part)
        assert getattr(model.config, field) != value
        model.config = dataclasses.replace(model.config, **{field: value})

    assert inversion().key() == inversion().key() != inversion(change=change).key()


def test_a_checksum_tells_shapes_and_dtypes():
    from fz.memory.kept import checksum

    kinds = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.zeros(8, dtype=torch.float16)]
    assert len({checksum({"x": t}) for t in kinds}) == len(kinds)


def test_queries_of_another_guidance_are_kept_elsewhere(inversion, monkeypatch):
    """`--ablate reconstruction --store disk` of two guidances at once shared one folder."""
    from fz import inverted as module
    from fz.progress import Journal

    folders = []
    monkeypatch.setattr(module.InvertedClip, "store", lambda self, of: folders.append(of))
    monkeypatch.setattr(module, "reconstruct", lambda model, source, *_: source)
    for guidance in ("3", "7.5", "3"):
        one = inversion("--ablate", "reconstruction", "--guidance", guidance)
        one.attending(one.settings, Journal())
    assert len(folders) == 3 and folders[0] == folders[2] != folders[1]


# ---- records -------------------------------------------------------------------------------------------------


SOUND = {
    "status": "done", "settings": {"source": "a car", "edits": [{"target": "a boat"}], "clip": {"path": "c.mp4"}},
    "files": ["source.mp4"], "notes": ["x"], "frames": [0, 1], "fps": 8, "stages": {"load": {"seconds": 1.5}},
}  # fmt: skip
ODD = (0, -1, 1.5, True, None, "", "x", [], [1], [[]], {}, {"a": 1}, 10**400, float("nan"), float("inf"))
PATHS = (
    ("status",), ("settings",), ("settings", "source"), ("settings", "edits"), ("settings", "edits", 0),
    ("settings", "edits", 0, "target"), ("settings", "clip"), ("settings", "clip", "path"), ("files",), ("files", 0),
    ("notes",), ("frames",), ("frames", 1), ("fps",), ("stages",), ("stages", "load"), ("stages", "load", "seconds"),
)  # fmt: skip


def test_a_sound_record_is_read(here):
    write(here / "o/run.json", json.dumps(SOUND).encode())
    assert read_run(here / "o") == SOUND


@pytest.mark.parametrize("path", PATHS, ids=lambda p: ".".join(map(str, p)))
def test_any_odd_value_in_a_record_is_answered_in_one_line(path, here, capsys):
    """By every command that reads it: 2 and one line, or done."""
    from fz import evaluate, report

    for value in ODD:
        run = json.loads(json.dumps(SOUND))
        node = run
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value
        write(here / "o/run.json", json.dumps(run).encode())
        for command in (evaluate, report):
            assert command.main(["o", *(["--clip-model", "none"])]) == 2
            said = capsys.readouterr().err
            assert said.count("\n") == 1 and "bug" not in said, (value, said)


def test_a_record_without_its_clip_is_none(here, capsys):
    """Nor is one without edits: evaluate and report answer both in one line."""
    from fz import evaluate, report

    for missing in ("clip", "source", "edits"):
        settings = {name: value for name, value in SOUND["settings"].items() if name != missing}
        write(here / "o/run.json", json.dumps({**SOUND, "settings": settings}).encode())
        for command in (evaluate, report):
            assert command.main(["o", "--clip-model", "none"]) == 2
            assert "has no run.json of a run" in capsys.readouterr().err
    write(here / "o/run.json", json.dumps({**SOUND, "settings": {**SOUND["settings"], "edits": []}}).encode())
    assert read_run(here / "o") is None


def test_damaged_cells_of_a_table_are_done_again(here):
    from bench.table1_cells import CELL
    from fz.metrics.measure import TITLES
    from fz.results.cells import read_cell

    row = {"clip": "c", "kind": "style", "target": "t", "seed": 0, **dict.fromkeys(TITLES, 1.0)}
    cell = {"key": "k", "commit": "c", "rows": [row]}
    write(here / "c.json", json.dumps(cell).encode())
    assert read_cell(here / "c.json", CELL) == cell
    for odd in ({**cell, "rows": {}}, {**cell, "rows": [{**row, "psnr_background": "1"}]}, {**cell, "key": 3}, [], 3):
        write(here / "c.json", json.dumps(odd).encode())
        assert read_cell(here / "c.json", CELL) is None


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_state_of_a_tuning_is_one_line(damage, here):
    from fz.tuning.run import restore

    if damage is None:
        torch.save({"weights": 3}, here / "state.pt")
    else:
        write(here / "state.pt", damage)

    class Tuner:
        def restore(self, state):
            return state["weights"].items()

    with pytest.raises(FzError, match="state.pt is damaged"):
        restore(Tuner(), here / "state.pt", torch.device("cpu"))
