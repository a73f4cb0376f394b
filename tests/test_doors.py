"""The doors: `fz COMMAND`, `python -m fz.COMMAND` and a checkout that is not installed, all to the same commands."""

import os
import subprocess
import sys
from importlib import import_module

import pytest

from fz.__main__ import COMMANDS, main
from fz.completion import build_parser


def run(*argv, cwd=None, **env):
    return subprocess.run(
        [sys.executable, *argv], cwd=cwd, capture_output=True, text=True, timeout=120, env=os.environ | env
    )


def test_help_lists_the_commands(capsys):
    assert main([]) == 0 and main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in COMMANDS)
    assert main(["--version"]) == 0 and capsys.readouterr().out.startswith("fz ")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_its_own_help(name, capsys):
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert import_module(f"fz.{name}").main(["--help"]) == 0 and capsys.readouterr().out == said
    assert "python -m fz." in said


@pytest.mark.parametrize(("typed", "meant"), [("rnu", "run"), ("evalute", "evaluate"), ("reprot", "report")])
def test_a_mistyped_command_is_answered(typed, meant, capsys):
    assert main([typed]) == 2
    said = capsys.readouterr().err
    assert f"unknown command '{typed}'" in said and f"Did you mean '{meant}'?" in said and said.count("\n") == 1


def test_mistakes_of_a_command_come_through(capsys):
    assert main(["run", "--guidence", "7"]) == 2 and "Did you mean '--guidance'" in capsys.readouterr().err
    assert main(["report"]) == 2 and "FOLDER" in capsys.readouterr().err


def test_a_checkout_that_is_not_installed(root, tmp_path):
    """-S: no site-packages, so nothing of an installed fz is there; what these need of others is put back."""
    code = "import sys; sys.path += sys.argv[1:]; import fz.weights, fz.kernels.reference, fz.weights.layouts\n"
    code += "from fz import mini; print(mini.checkpoint())"
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    done = run("-S", "-c", code, *packages, cwd=tmp_path, PYTHONPATH=str(root))
    assert done.returncode == 0 and done.stdout.strip() == str(root / "weights" / "mini"), done.stderr
    done = run("-S", "-m", "fz", "--help", cwd=root, PYTHONPATH=str(root))
    assert done.returncode == 0 and "evaluate" in done.stdout, done.stderr


def test_completion_knows_every_command_and_its_flags():
    commands = build_parser()._subparsers._group_actions[0].choices
    assert list(commands) == list(COMMANDS)
    assert all("--source" in commands[name]._option_string_actions for name in ("run", "sweep", "prompt"))
    assert "--recipe" in commands["tune"]._option_string_actions
    assert "--clip-model" in commands["evaluate"]._option_string_actions


def test_the_shell_completes(tmp_path):
    """As argcomplete's shell function asks it."""
    pytest.importorskip("argcomplete")
    for typed, found in (
        ("fz ru", {"run"}),
        ("fz run --thr", {"--threads", "--threshold"}),
        ("fz tune --reci", {"--recipe"}),
    ):
        out = tmp_path / "completions"
        asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(out), "_ARGCOMPLETE_IFS": "\n"}
        run("-m", "fz", COMP_LINE=typed, COMP_POINT=str(len(typed)), **asked)
        assert {word.strip() for word in out.read_text().split("\n")} == found
        out.unlink()
