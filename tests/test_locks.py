"""One writer a folder: a second is told who has it, a dead one keeps nothing."""

import os
import signal
import subprocess
import sys
import time

import pytest

from fz.locks import lock, remove
from fz.results.lock import NAME, Busy, Lock

HOLD = "import sys, time; from pathlib import Path; from fz.results.lock import Lock; lock = Lock(Path(sys.argv[1])); "


def holder(folder, then="print('held', flush=True); time.sleep(60)"):
    process = subprocess.Popen([sys.executable, "-c", HOLD + then, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def opened(path):
    return os.open(path, os.O_RDWR | os.O_CREAT)


def test_many_share_or_one_is_alone(tmp_path, system):
    """Whoever asks again lets go of what it had, also where it then gets nothing."""
    a, b, c = (opened(tmp_path / "file") for _ in range(3))
    assert lock(a, alone=False) and lock(b, alone=False) and not lock(c, alone=True)
    assert lock(c, alone=False) and not lock(a, alone=True)
    os.close(c)
    assert lock(b, alone=True) and lock(b, alone=True), "a has none any more"
    assert not lock(a, alone=False) and not lock(a, alone=True)
    assert lock(b, alone=False) and lock(a, alone=False)
    os.write(a, b"text")
    assert os.pread(b, 10, 0) == b"text", "written from the beginning"
    os.close(a)
    os.close(b)


def test_a_locked_file_goes_with_its_lock(tmp_path, system):
    file = opened(tmp_path / "file")
    assert lock(file)
    remove(tmp_path / "file", file)
    assert not list(tmp_path.iterdir())
    again = opened(tmp_path / "file")
    assert lock(again)
    os.close(again)


def test_a_second_process_is_told_who_has_it(tmp_path):
    process = holder(tmp_path)
    try:
        with pytest.raises(Busy, match=rf"out: .* is being written by process {process.pid} on .+ since 20\d\d-"):
            Lock(tmp_path)
    finally:
        process.kill()
        process.wait()
    # the file of a killed process is still there, and keeps nobody out
    assert (tmp_path / NAME).exists()
    with Lock(tmp_path):
        assert str(os.getpid()) in (tmp_path / NAME).read_text()
    assert not (tmp_path / NAME).exists()


@pytest.mark.skipif(sys.platform == "win32", reason="the holder locks by fcntl")
def test_who_has_just_got_it_is_named(tmp_path):
    """Between locking the file and writing into it who one is there is a moment: it said 'another process'."""
    slow = """import fcntl, json, os, sys, time
file = open(os.path.join(sys.argv[1], sys.argv[2]), "w")
fcntl.flock(file, fcntl.LOCK_EX)
print('held', flush=True)
time.sleep(0.2)
json.dump({"process": os.getpid(), "machine": "here", "since": "2026"}, file)
file.flush()
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", slow, tmp_path, NAME], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=f"written by process {process.pid} on here since 2026"):
            Lock(tmp_path)
    finally:
        process.kill()
        process.wait()


def test_a_second_thread_of_the_same_program_is_refused_too(tmp_path, system):
    with Lock(tmp_path), pytest.raises(Busy, match="this program itself"):
        Lock(tmp_path)
    Lock(tmp_path).release()


def test_release_twice_is_once(tmp_path, system):
    lock = Lock(tmp_path)
    lock.release()
    with Lock(tmp_path):
        lock.release()
        with pytest.raises(Busy):
            Lock(tmp_path)


def test_a_file_that_says_nonsense_does_not_matter(tmp_path, system):
    (tmp_path / NAME).write_text("[" * 5000)
    Lock(tmp_path).release()


def test_one_of_many_at_a_time(tmp_path):
    """Each process takes the lock 40 times, and fails if another is between the two lines."""
    work = """
from fz.results.lock import Busy
lock.release()
mark, taken = Path(sys.argv[1]) / "mark", 0
print('held', flush=True)
end = time.monotonic() + 60
while taken < 40 and time.monotonic() < end:
    try:
        lock = Lock(Path(sys.argv[1]))
    except Busy:
        continue
    mark.touch(exist_ok=False)
    mark.unlink()
    lock.release()
    taken += 1
sys.exit(taken != 40)
"""
    first = [
        sys.executable,
        "-c",
        HOLD.replace("lock = Lock(Path(sys.argv[1])); ", "") + "\n" + work.replace("lock.release()\nmark", "mark"),
    ]
    processes = [subprocess.Popen([*first, str(tmp_path)], stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [p.wait(120) for p in processes] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == []


def test_a_terminated_holder_frees_it(tmp_path):
    process = holder(tmp_path)
    process.send_signal(signal.SIGTERM)
    process.wait()
    start = time.monotonic()
    Lock(tmp_path).release()
    assert time.monotonic() - start < 5


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_two_tables_into_one_folder(tmp_path, root):
    """One does the cells, the other says who has the folder; together they leave what one alone does."""
    few = "--clips 1 --frames 2 --size 64 --steps 1 --methods fatezero ddim --clip none --threads 1 --out"
    command = [sys.executable, "-m", "bench.table1", *few.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def started(name):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*command, str(tmp_path / name)], cwd=root, env=environment, **pipes)

    both = [started("o"), started("o")]
    said = [process.communicate(timeout=900) for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], said
    done, refused = codes.index(0), codes.index(2)
    out, err = said[refused]
    assert out == "" and err.startswith(f"fz: out: {tmp_path / 'o'} is being written by process {both[done].pid} on ")
    assert err.count("\n") == 1 and "| FateZero |" in said[done][0]
    alone, again = started("alone"), started("o")
    assert again.communicate(timeout=900)[0] == said[done][0] and again.returncode == 0
    assert alone.communicate(timeout=900)[0] == said[done][0]
    assert contents(tmp_path / "o") == contents(tmp_path / "alone")
