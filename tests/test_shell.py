"""The one shell of all commands: exit codes, lines, signals, and what may reach a terminal."""

import importlib
import io
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from processes import COMMANDS

from fz.errors import FzError
from fz.shell import Plain, answered, encodable, first_sentence, printable


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_a_wrong_flag_in_one_line(name, capsys):
    assert importlib.import_module(name).main(["--nonsense", "1"]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and said.err.startswith("fz: ") and said.out == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_no_error(name, capsys):
    main = importlib.import_module(name).main
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    usage, about = said.split("\n\n")[:2]
    assert usage.startswith("usage: ") and re.search(r"[.?!]$", about), "no sentence that ends"
    assert name.removesuffix(".__main__") in usage
    assert main(["-h"]) == 0 and capsys.readouterr().out == said


@pytest.mark.parametrize("more", [[], ["--clip-model", "none"]], ids=["no CLIP", "none"])
@pytest.mark.parametrize("name", ["fz.evaluate", "fz.report"])
def test_a_tokenizer_of_no_clip_is_refused(name, more, capsys):
    assert importlib.import_module(name).main(["folder", "--tokenizer", "words", *more]) == 2
    assert "tokenizer: changes nothing by itself, expected --clip-model with it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("doc", "sentence"),
    [
        ("Measures a\nresult: `python -m fz.x`, by v1.4's\nfigures.\n\nMore. Still more.", "Measures a result: `python "
         "-m fz.x`, by v1.4's figures."),
        ("How fast? `python -m x`", "How fast?"),
        ("no end", "no end"),
        (None, ""),
    ],
)  # fmt: skip
def test_help_begins_with_a_whole_sentence(doc, sentence):
    assert first_sentence(doc) == sentence


def test_names_of_files_cannot_write_to_the_terminal(capsys):
    def work():
        print("clip \x1b[2J\x07.mp4\u202e")
        raise FzError("video: \x1b]0;title\x07.mp4\nsecond line\r")

    assert answered(work) == 2
    said = capsys.readouterr()
    assert said.out == "clip \\x1b[2J\\x07.mp4\\u202e\n"
    assert said.err == "fz: video: \\x1b]0;title\\x07.mp4 second line\n"


def test_printable_leaves_words_alone():
    text = "Ein Röck, 雪 … → é\tx\n"
    assert printable(text) == text and printable("\x9b31m\x00") == "\\x9b31m\\x00"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_output_in_any_encoding(encoding):
    bytes_out = io.BytesIO()
    stream = io.TextIOWrapper(bytes_out, encoding=encoding)
    print("a → b … 雪 \udcff", file=Plain(stream), flush=True)
    assert bytes_out.getvalue().decode(encoding).startswith("a ")
    assert "\\udcff" in encodable("\udcff", encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_command_in_a_terminal_of_few_letters(encoding):
    code = "from fz.shell import answered; import sys; sys.exit(answered(lambda: print('a → … 雪')))"
    done = run(code, env=os.environ | {"PYTHONIOENCODING": encoding})
    assert done.returncode == 0 and done.stderr == b"" and b"\\u96ea" in done.stdout


def run(code, **options):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, **options)


@pytest.mark.parametrize("how", ["head", "closed", "closed both"])
def test_nobody_reads(how):
    """`| head -1` and `>&-`: the work is done all the same, and nothing is said."""
    code = (
        "import sys; from fz.shell import answered; sys.exit(answered(lambda: [print('x' * 99) for _ in range(9999)]))"
    )
    ends = {"head": "| head -1; exit ${PIPESTATUS[0]}", "closed": ">&-", "closed both": ">&- 2>&-"}
    done = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {ends[how]}', sys.executable, code], capture_output=True, timeout=60
    )
    assert done.returncode == 0 and done.stderr == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_to_a_full_disk_is_one_line():
    code = "import sys; from fz.shell import answered; sys.exit(answered(lambda: print('x')))"
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" > /dev/full', sys.executable, code], capture_output=True, timeout=60
    )
    assert done.returncode == 2 and done.stderr.startswith(b"fz: ") and done.stderr.count(b"\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("command", [["fz", "--help"], ["fz", "--version"], ["fz.report", "--help"]])
def test_help_that_finds_no_room_or_no_reader(command, root):
    """One line and 2 where the disk is full; silence and 0 where nobody reads."""
    for end, code, lines in (("> /dev/full", 2, 1), (">&-", 0, 0), ("| head -0", 0, 0)):
        script = f'"$0" -m "$@" {end}; exit ${{PIPESTATUS[0]}}'
        done = subprocess.run(
            ["bash", "-c", script, sys.executable, *command], cwd=root, capture_output=True, timeout=60
        )
        assert done.returncode == code and done.stderr.count(b"\n") == lines, (end, done)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_cleans_up_and_is_one_line(number, code, word, tmp_path):
    program = """
import sys, tempfile, time
from fz.shell import answered
from fz.memory.inversions import Inversion
def work():
    with Inversion.open("none", "0" * 32, print) as inversion:
        import torch
        inversion.log.put(0, {"z": torch.zeros(9)})
        print("ready", flush=True)
        time.sleep(60)
sys.exit(answered(work, "The same command goes on."))
"""
    env = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    assert process.stdout.readline() == "ready\n" and list(tmp_path.iterdir())
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code and said == f"fz: {word}. The same command goes on.\n"
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_of_a_temporary_cache_goes_with_the_next(tmp_path, monkeypatch):
    from fz.memory.inversions import Inversion

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = Inversion(tmp_path / "fz-abc", "0" * 32, pytest.fail)
    left.log.put(0, {})
    (tmp_path / "fz-mine").mkdir()
    (tmp_path / "fz-mine/notes.txt").write_text("mine")
    said = []
    with Inversion.open("none", "1" * 32, said.append):
        assert left.folder.exists(), "in use"
    left.close()
    with Inversion.open("none", "1" * 32, said.append):
        assert not (tmp_path / "fz-abc").exists()
    assert (tmp_path / "fz-mine/notes.txt").exists() and len(said) == 1 and "fz-abc" in said[0]


def rest_of(process: subprocess.Popen) -> tuple[str, list[str]]:
    """What it still says, and of that the lines that are not of -X importtime. To be read where the first lines were:
    what that reader holds already, `communicate` would leave out, from the middle of a line on.
    """
    said = process.stderr.read()
    process.wait(timeout=60)
    return said, [line for line in said.splitlines() if not line.startswith("import time:")]


@pytest.mark.parametrize("module", ["fz.run", "fz.prompt", "fz.tune", "fz.evaluate", "fz.report"])
def test_an_interrupt_while_torch_is_imported_is_answered(module):
    """At several moments of the first seconds: 130 and one line, never a traceback."""
    flags = {
        name: ["--source", "a car", "--target", "a boat", "--checkpoint", "nowhere"] for name in ("fz.run", "fz.prompt")
    }
    flags["fz.tune"] = ["--checkpoint", "nowhere", "--video", "v", "--prompt", "p", "--out", "o"]
    argv = [sys.executable, "-X", "importtime", "-m", module, *flags.get(module, ["nowhere"])]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # the first line of an import that `answer` asks for
    for line in process.stderr:
        if line.rstrip().endswith(("| argparse", "fz.shell")) and "fz.shell" in line:
            break
    time.sleep(0.4)
    process.send_signal(signal.SIGINT)
    said, lines = rest_of(process)
    assert process.returncode in (0, 2, 130) and "Traceback" not in said
    assert process.returncode != 130 or (len(lines) == 1 and lines[0].startswith("fz: interrupted."))


@pytest.mark.parametrize("command", ["fz.mini.evaluate", "fz.mini.sample car", "bench.attention", "bench.table1"])
@pytest.mark.parametrize("moment", ["numpy", "torch"])
def test_an_interrupt_while_a_command_imports_is_answered(command, moment, root, tmp_path):
    """Of a library a part is there, and the rest is not."""
    module, *flags = command.split()
    argv = [sys.executable, "-X", "importtime", "-m", module, *flags]
    env = os.environ | {"PYTHONPATH": str(root)}
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=env)
    begins = "numpy._utils" if moment == "numpy" else "torch._utils"
    for line in process.stderr:
        if begins in line:
            break
    process.send_signal(signal.SIGINT)
    said, lines = rest_of(process)
    assert process.returncode == 130 and len(lines) == 1 and lines[0].startswith("fz: interrupted.")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_in_a_library_s_own_interpreter_is_130_too():
    """Python ends by the signal, whatever the code, once code that C ran by itself was interrupted."""
    code = (
        "import ctypes, os, signal, sys, threading\n"
        "from fz.shell import answered, leave\n"
        "def work():\n"
        "    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "    ctypes.pythonapi.PyRun_SimpleString(b'import time\\ntime.sleep(9)')\n"
        "    raise KeyboardInterrupt\n"
        "leave(answered(work))"
    )
    done = run(code)
    assert done.returncode == 130 and b"fz: interrupted." in done.stderr


def test_an_interrupt_that_a_library_swallows_is_still_one(capsys):
    def work():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise ImportError("numpy.core.multiarray failed to import") from None

    assert answered(work) == 130 and "interrupted" in capsys.readouterr().err


def test_a_value_that_nobody_could_read_is_shortened(capsys):
    """Beginning and end stay: what is wrong, and what to do."""
    long = "x" * 100_000
    assert importlib.import_module("fz.run").main(["--edit", long]) == 2
    said = capsys.readouterr().err
    assert len(said) < 1500 and said.startswith("fz: --edit: got 'xxx") and "expected one of style" in said


def test_handlers_are_put_back():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    out = sys.stdout
    answered(lambda: None)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before and sys.stdout is out


@pytest.mark.parametrize("name", [name for name in COMMANDS if not name.endswith("__main__")])
def test_every_command_shows_a_bugs_traceback_where_it_says_so(name, monkeypatch, capsys):
    command = importlib.import_module(name)
    assert command.main(["--help"]) == 0
    assert "--debug" in capsys.readouterr().out

    def broken(*_):
        raise ZeroDivisionError("once")

    # a sweep is answered as a run is
    where = importlib.import_module("fz.run") if name == "fz.sweep" else command
    monkeypatch.setattr(where, "answer", broken)
    words = ["--sweep", "steps=1,2"] if name == "fz.sweep" else ["word"]
    assert command.main(words) == 1
    said = capsys.readouterr().err
    assert said == "fz: ZeroDivisionError: once - this is a bug; --debug shows the traceback.\n"
    with pytest.raises(ZeroDivisionError):
        command.main([*words, "--debug"])
