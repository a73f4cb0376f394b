"""What all commands share: a parser whose mistakes are one line, how an error becomes a line and an exit code, and what
may reach a terminal.

Exit codes: 0 done, 1 a bug, 2 something that the user can put right, 130 interrupted, 143 terminated.
"""

import argparse
import contextlib
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TextIO

from fz.errors import FzError, suggest

MEMORY = (
    "out of memory. Use fewer --frames, a smaller --size, --chunk 8, --store recompute, or --dtype float16 on a GPU."
)


class Parser(argparse.ArgumentParser):
    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        # read by `answered`
        self.add_argument("--debug", action="store_true", help="show an error's traceback")

    def error(self, message: str) -> NoReturn:
        raise FzError(message.removeprefix("argument "))

    def print_help(self, file: Any = None) -> None:
        # argparse's own passes over a disk that is full
        (file or sys.stdout).write(self.format_help())


def first_sentence(doc: str | None) -> str:
    """With which sentence a command's --help begins: that with which its file does."""
    text = " ".join((doc or "").split())
    found = re.match(r".+?[.?!](?=\s|$)", text)
    return found[0] if found else text


def unknown(rest: list[str], parser: argparse.ArgumentParser) -> str:
    for arg in rest:
        if arg.startswith("-"):
            name = arg.partition("=")[0]
            known = list(parser._option_string_actions)  # argparse has no public list
            return f"unknown flag {name}.{suggest(name, known)} --help lists all."
    advice = "Put sentences in quotes."
    if any(arg.endswith("'") for arg in rest):
        # single quotes are no quotes to cmd.exe, and come along
        advice = "Put sentences in double quotes here."
    elif all(map(os.path.exists, rest)):
        advice = "Put a pattern of files in quotes, as 'frames/*.png'."
    return f"got {rest[0]!r} without a flag, expected flags only. {advice}"


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP: as Ctrl-C, so that whatever cleans up after itself does."""


def answered(work: Callable[[], object], goes_on: str = "", argv: Sequence[str] | None = None) -> int:
    """Do a command's work and return its exit code; what stops it is said in one line, or raised where the command's
    words have --debug.

    goes_on: what 'interrupted.' is followed by. argv: those words; None: the process's.
    """
    with plain_output(), signals() as came:
        try:
            if came:  # while the command was imported, by a library that goes on without what it was importing
                raise KeyboardInterrupt
            code = 0
            try:
                work()
            except SystemExit as stop:  # argparse's --help and --version
                code = stop.code if isinstance(stop.code, int) else 0
            # a full disk is noticed here, also by --help
            sys.stdout.flush()
            return code
        except (KeyboardInterrupt, Exception) as error:
            # libraries turn an interrupt in their imports into errors of their own
            if came or isinstance(error, KeyboardInterrupt):
                stopped = isinstance(error, Stopped) or (came and came[0] != signal.SIGINT)
                say_error(f"{'terminated' if stopped else 'interrupted'}. {goes_on}".rstrip())
                return 143 if stopped else 130
            if "--debug" in (sys.argv[1:] if argv is None else argv):
                raise
            line, code = explain(error)
            say_error(f"{line.removesuffix('.')}; --debug shows the traceback." if code == 1 else line)
            return code


def leave(code: int) -> NoReturn:
    """End the process; an interrupt that comes while Python takes itself down changes nothing any more."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if code == 130:
        end_now(code)
    sys.exit(code)


def end_now(code: int) -> NoReturn:
    """End the process with this code, whatever Python would make of it: of an interrupt that reached a library's own
    `PyRun_String`, it makes an end by the signal.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


early: list[int] = []  # interrupts that came before a command's `answered`


def early_interrupt(number: int, frame: Any) -> NoReturn:
    early.append(number)
    raise KeyboardInterrupt


def guard_imports() -> None:
    """Answer an interrupt in one line also before a command's `answered`, while `python -m` imports what the command's
    file begins with. To be called first.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        # libraries turn an interrupt in their imports into errors of their own
        if not early and not issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
            return
        say_error("interrupted.")
        end_now(130)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, early_interrupt)
        sys.excepthook = hook


class Again:
    """A finder of modules that finds none: it raises an interrupt again that a library passed over in its imports, as
    torch does while it looks for numpy, at the next import. came: the signals that there were.
    """

    def __init__(self, came: list[int]):
        self.came = came

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if self.came and threading.current_thread() is threading.main_thread() and not self.on_its_way():
            raise KeyboardInterrupt

    @staticmethod
    def on_its_way() -> bool:
        """Is it being handled? Then whatever cleans up may import."""
        error = sys.exc_info()[1]
        while error is not None and not isinstance(error, KeyboardInterrupt):
            error = error.__context__
        return error is not None


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """In the block, SIGTERM and SIGHUP are raised as Stopped, as SIGINT is as KeyboardInterrupt; which came is in the
    list. In the main thread only: others get no signals.
    """
    came = early.copy()
    early.clear()

    def stop(number: int, frame: Any) -> None:
        came.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    kinds = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {}
    for kind in kinds:
        # one that is ignored, as SIGHUP under nohup, stays so
        if signal.getsignal(kind) in (signal.SIG_DFL, signal.default_int_handler, early_interrupt):
            before[kind] = signal.signal(kind, stop)
    again = Again(came)
    sys.meta_path.insert(0, again)
    try:
        yield came
    finally:
        sys.meta_path.remove(again)
        for kind, handler in before.items():
            signal.signal(kind, handler)


class Plain(io.TextIOBase):
    """A stream whose lines can do nothing to a terminal: control characters, as of a file's name, are shown, not sent;
    letters that its encoding lacks are written as \\u2026. When nobody reads any more (`| head`), it falls silent.
    """

    def __init__(self, stream: TextIO):
        self.stream, self.silent = stream, False

    def write(self, text: str) -> int:
        self._send(lambda: self.stream.write(encodable(printable(text), getattr(self.stream, "encoding", None))))
        return len(text)

    def flush(self) -> None:
        self._send(self.stream.flush)

    def _send(self, send: Callable[[], object]) -> None:
        if self.silent:
            return
        try:
            send()
        except BrokenPipeError:
            self.silent = True
            # else Python says at its end that it could not flush
            with contextlib.suppress(OSError, ValueError, io.UnsupportedOperation):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def fileno(self) -> int:
        return self.stream.fileno()

    def isatty(self) -> bool:
        return self.stream.isatty()

    @property
    def encoding(self) -> str:
        return self.stream.encoding


@contextlib.contextmanager
def plain_output() -> Iterator[None]:
    """sys.stdout as a Plain stream in the block; streams that were closed before the start lead nowhere."""
    out, err = sys.stdout, sys.stderr
    with contextlib.ExitStack() as opened:

        def stream(given: TextIO | None) -> TextIO:
            if given is None:
                return opened.enter_context(open(os.devnull, "w", encoding="utf-8"))
            return given

        sys.stdout, sys.stderr = Plain(stream(out)), stream(err)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = out, err


def printable(text: str) -> str:
    """text with control characters, and those that turn a line's direction, as \\x1b and \\u202e."""
    return re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]",
        lambda found: found[0].encode("unicode_escape").decode("ascii"),
        text,
    )


def encodable(text: str, encoding: str | None) -> str:
    """text with what the encoding does not have as \\u2026."""
    try:
        return text.encode(encoding or "utf-8", "backslashreplace").decode(encoding or "utf-8")
    except (LookupError, UnicodeError):
        return text.encode("ascii", "backslashreplace").decode("ascii")


def shortened(text: str, most: int = 1200) -> str:
    """The text; of one that is too long to be read, its beginning and its end."""
    return text if len(text) <= most else f"{text[: most // 2]} […] {text[-most // 2 :]}"


def explain(error: Exception) -> tuple[str, int]:
    """(one line for the user, exit code)."""
    text = shortened(" ".join(str(error).split()))
    if isinstance(error, FzError):
        return text, 2
    # torch: OutOfMemoryError on GPUs, a RuntimeError of the allocator on the CPU
    signs = (
        "out of memory",
        "not enough memory",
        "can't allocate memory",
        "cannot allocate memory",
        "storage size calculation overflowed",
    )
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in text.lower() for sign in signs)
    ):
        return MEMORY, 2
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}. Expected a file or folder that can be used, and space on the disk.", 2
    return f"{type(error).__name__}: {text[:300]} - this is a bug.", 1


def say_error(line: str) -> None:
    """One line on stderr; where that is closed or full, nowhere."""
    with contextlib.suppress(OSError, ValueError):
        line = printable(line.replace("\r", " ").replace("\n", " "))
        print(encodable(f"fz: {line}", getattr(sys.stderr, "encoding", None)), file=sys.stderr, flush=True)
