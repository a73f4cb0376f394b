"""Fixtures that all tests share: where the shared reference data is, and one thread for repeatable sums."""

import os
import signal
import sys
from pathlib import Path

# before anything imports triton, whose own library is made for one or the other at import: here kernels are interpreted
os.environ["TRITON_INTERPRET"] = "1"
# threads that wait for work sleep, here and in the commands that tests start: on a busy machine spinning takes the
# cores from those that have some, and the models of tests take up to fifty times as long
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# no test asks the Hub; those that do have a server of their own
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items):
    """Mutations last: there are many, and time for the slow tests may run out."""
    items.sort(key=lambda item: item.path.name == "test_mutations.py")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data beside the checkout (../shared): golden runs, released configs, a real clip."""
    path = Path(os.environ.get("FZ_SHARED", ROOT.parent / "shared"))
    if not (path / "golden").is_dir():
        pytest.skip(f"needs the reference data at {path} (set FZ_SHARED to its folder)")
    return path


@pytest.fixture(scope="session")
def golden(shared) -> Path:
    return shared / "golden"


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """tiny_sd, tiny_tuned and clips/car128: the reference data's, or, without it, of the same shapes with random
    weights.
    """
    path = Path(os.environ.get("FZ_SHARED", ROOT.parent / "shared")) / "golden"
    if path.is_dir():
        return path
    from tiny_model import write_reference

    return write_reference(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True, scope="session")
def _interrupts():
    """A program that a shell starts in the background ignores Ctrl-C, and so would every command that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# models of tests are too small to be shared among threads
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread():
    """A test that takes more threads gives them back."""
    yield
    torch.set_num_threads(1)


@pytest.fixture
def poisoned(monkeypatch):
    """New tensors begin as NaN, so that what a kernel leaves unwritten is seen."""
    empty, empty_like = torch.empty, torch.empty_like

    def fill(x):
        return x.fill_(float("nan")) if x.is_floating_point() else x

    monkeypatch.setattr(torch, "empty", lambda *a, **k: fill(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: fill(empty_like(*a, **k)))


@pytest.fixture(params=["posix", "windows"])
def system(request, monkeypatch):
    """This one, and, where it is Linux, as much of Windows as locks meet."""
    if request.param == "windows":
        if sys.platform != "linux":
            pytest.skip("Windows is played with locks of Linux")
        import windows  # which is of Linux alone

        windows.pretend(monkeypatch)
