"""A desk of the page on the CPU, with nothing in its folder yet, for tests without a browser."""

from contextlib import contextmanager

from fz.web.desk import Desk
from fz.web.examples import Examples
from fz.web.folder import Folder
from fz.web.jobs import Queue
from fz.web.studio import Models, Studio

SECRET = "a" * 32
MODELS = Models([None], {"device": "cpu"})


@contextmanager
def desk_in(path):
    folder = Folder(path / "root", 10**6)
    studio = Studio(MODELS, folder)
    yield Desk(folder, MODELS, studio, Queue(folder, studio.do), Examples(folder))
    folder.lock.release()
