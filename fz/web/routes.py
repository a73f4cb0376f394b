"""Which addresses has the page beside Gradio's? Uploads, what jobs are doing, and the files of a visitor's results."""

import re
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from fz.checkpoint import choose_clip
from fz.clips.media import atomic
from fz.errors import FzError
from fz.results.beside import beside
from fz.results.claim import finished
from fz.results.report import write_report
from fz.shell import explain
from fz.web.again import file_name
from fz.web.desk import Desk
from fz.web.folder import ABOUT, Visitor, part_of, read_json

# a result's files by their names on the page
FILES = {
    "edit.mp4": "edit-0.mp4",
    "edit.gif": "edit-0.gif",
    "side-by-side.mp4": "side-by-side-0.mp4",
    "report.html": "report.html",
    "frames.zip": "frames.zip",
}
SHOWN = (".gif", ".png")
BLOCK = 2**16  # bytes of an archive that are sent at once
# after a page said that it goes, and after it was last heard of: browsers slow hidden pages down to a minute
GRACE, SILENCE = 6.0, 150.0


class Presence:
    """Which visitors have a page open? Those who leave are told of once."""

    def __init__(self, left: Callable[[str], None]):
        self.left, self.lock = left, threading.Lock()
        self.pages: dict[tuple[str, str], float] = {}  # (visitor, page) -> until when it counts

    def heard(self, visitor: str, page: str) -> None:
        with self.lock:
            self.pages[visitor, page[:32]] = time.monotonic() + SILENCE

    def closed(self, visitor: str, page: str) -> None:
        """A page goes; it may be loading again."""
        with self.lock:
            if (visitor, page[:32]) in self.pages:
                self.pages[visitor, page[:32]] = time.monotonic() + GRACE

    def look(self) -> None:
        now = time.monotonic()
        with self.lock:
            gone = [at for at, until in self.pages.items() if until < now]
            for at in gone:
                del self.pages[at]
            there = {visitor for visitor, _ in self.pages}
        for visitor in {visitor for visitor, _ in gone} - there:
            self.left(visitor)


class Routes:
    """Handlers; each serves the visitor whose cookie came, and him alone."""

    def __init__(self, desk: Desk):
        self.desk, self.presence = desk, Presence(desk.queue.left_alone)
        self.making = threading.Lock()

    def listed(self) -> list[Route]:
        return [
            Route("/fz/upload/{batch}/{name}", self.answering(self.upload), methods=["PUT"]),
            Route("/fz/state", self.answering(self.state)),
            Route("/fz/closed", self.answering(self.closed), methods=["POST"]),
            Route("/fz/cancel/{job}", self.answering(self.cancel), methods=["POST"]),
            Route("/fz/clip/{clip}", self.answering(self.clip)),
            Route("/fz/result/{clip}/{result}/{name}", self.answering(self.result)),
        ]

    def answering(self, handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        return answering(handler, self.desk.folder.told)

    def visitor(self, request: Request) -> Visitor:
        return self.desk.folder.visitor(request.scope.get("fz_secret"))

    async def upload(self, request: Request) -> Response:
        """A file, as the request's body; under another name until all of it is there."""
        place = self.desk.folder.batch(self.visitor(request), request.path_params["batch"])
        path, left = self.desk.folder.room(place, request.path_params["name"])
        part, whole = part_of(path), False
        try:
            with open(part, "wb") as out:
                async for chunk in request.stream():
                    left -= len(chunk)
                    if left < 0:
                        megabytes = self.desk.folder.upload_limit // 10**6
                        raise FzError(f"This is larger than {megabytes} MB. Make it shorter or smaller.")
                    await run_in_threadpool(out.write, chunk)
            part.replace(path)
            whole = True
        finally:
            if not whole:
                part.unlink(missing_ok=True)
        return JSONResponse({"name": path.name})

    async def state(self, request: Request) -> Response:
        visitor = self.visitor(request)
        self.presence.heard(visitor.name, request.query_params.get("page", ""))
        return JSONResponse({"jobs": self.desk.queue.told(visitor.name)}, headers={"cache-control": "no-store"})

    async def closed(self, request: Request) -> Response:
        self.presence.closed(self.visitor(request).name, request.query_params.get("page", ""))
        return Response(status_code=204)

    async def cancel(self, request: Request) -> Response:
        there = self.desk.queue.cancel(self.visitor(request).name, request.path_params["job"])
        return JSONResponse({"cancelled": there})

    async def clip(self, request: Request) -> Response:
        """A clip under the name that commands have for it: its file, or its pictures as an archive of a folder."""
        clip = self.visitor(request).clip(request.path_params["clip"])
        if not clip.here:
            raise FzError("This clip is not here any more.")
        place, name = Path(clip.path), file_name(clip)
        if place.is_file():
            return FileResponse(place, filename=name)
        archive = await run_in_threadpool(archived, place, name)
        headers = {"content-disposition": f'attachment; filename="{name}.zip"'}
        blocks = iter(lambda: archive.read(BLOCK), b"")
        return StreamingResponse(blocks, headers=headers, media_type="application/zip")

    async def result(self, request: Request) -> Response:
        clip, result, name = (request.path_params[part] for part in ("clip", "result", "name"))
        place = self.visitor(request).result(clip, result)
        path = await run_in_threadpool(self.file, place, name)
        kept = {"cache-control": "private, max-age=3600"}
        if path.suffix in SHOWN:
            return FileResponse(path, headers=kept)
        return FileResponse(path, filename=name, headers=kept)

    def file(self, place: Path, name: str) -> Path:
        """A file of a result; the report and the pictures' archive are made when they are asked for first."""
        run = place / "run"
        if found := re.fullmatch(r"(source|edit)-(\d{5})\.png", name):
            path = run / "frames" / ("source" if found[1] == "source" else "edit-0") / f"{found[2]}.png"
        elif name == "mask.png":
            mask = str(read_json(place / "about.json", ABOUT).get("form", {}).get("mask", ""))
            path = place.parent.parent / "masks" / f"{mask if mask.isalnum() else 'none'}.png"
        elif name in FILES:
            path = run / FILES[name]
            if name in ("report.html", "frames.zip") and not path.is_file():
                with self.making:
                    self.make(run, name)
        else:
            raise FzError("There is no such file.")
        if not path.is_file():
            raise FzError("This file is not here any more.")
        return path

    def make(self, run: Path, name: str) -> None:
        if (run / name).is_file():
            return
        if name == "report.html":
            write_report(run, choose_clip(None, miniature=finished(run)["settings"].get("checkpoint") is None))
        else:
            with beside(run, name), atomic(run / name) as part, zipfile.ZipFile(part, "w") as archive:
                for picture in sorted((run / "frames" / "edit-0").glob("*.png")):
                    archive.write(picture, picture.name)


def archived(folder: Path, name: str) -> IO[bytes]:
    """A folder's files as an archive that is gone when it has been read."""
    out = tempfile.TemporaryFile()
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
            archive.write(path, f"{name}/{path.name}")
    out.seek(0)
    return out


def answering(handler: Callable[[Request], Any], told: Callable[[str], str] = str) -> Callable[[Request], Any]:
    """A mistake becomes its one line, as `told` to visitors."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except FzError as error:
            status = 404 if request.method == "GET" else 400
            return JSONResponse({"line": told(str(error))}, status_code=status)
        except ClientDisconnect:
            return Response(status_code=400)  # to nobody
        except OSError as error:
            print(f"fz web: {explain(error)[0]}", flush=True)
            line = f"The server could not do this ({error.strerror or 'an error of its disk'}). Try again later."
            return JSONResponse({"line": line}, status_code=507)

    return answer
