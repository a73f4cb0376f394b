"""For the tests of Hub names: a server on the loopback interface that speaks the Hub's file endpoints.

GET /api/models/OWNER/NAME/revision/REVISION lists a model's files with sizes and hashes; HEAD and GET
/OWNER/NAME/resolve/REVISION/FILE give one, with ranges. Small files have git's hash, others SHA-256, as there. Every
request is written down.
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 5000  # bytes from which a file is kept by its SHA-256


class Hub:
    """models: {'owner/name': {file: bytes}}. status: what every request is answered with instead, as 401. cut: the
    files that break off after half their bytes, and how often. hashes, sizes: of files, in place of the true ones.
    """

    def __init__(self, models, status=None, cut=None, hashes=None, sizes=None):
        self.models, self.status, self.cut = models, status, dict(cut or {})
        self.hashes, self.sizes = dict(hashes or {}), dict(sizes or {})
        self.requests = []

    def __enter__(self):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self, True)

            def do_HEAD(self):
                hub.answer(self, False)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def count(self, method, part=""):
        return sum(m == method and part in path for m, path, _ in self.requests)

    def fetched(self):
        """Files whose bytes were asked for."""
        return [
            path.split("/resolve/")[1].partition("/")[2]
            for m, path, _ in self.requests
            if m == "GET" and "/resolve/" in path
        ]

    def hash_of(self, file, content):
        if file in self.hashes:
            return self.hashes[file]
        if len(content) >= LARGE:
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def answer(self, request, body):
        path = unquote(request.path.partition("?")[0])
        self.requests.append(("GET" if body else "HEAD", path, request.headers.get("Range")))
        if self.status:
            return self.send(request, self.status, b'{"error": "no"}', body)
        api = path.startswith("/api/models/")
        owner, name, kind, rest = (
            path.removeprefix("/api/models" if api else "").lstrip("/").split("/", 3) + [""] * 4
        )[:4]
        files = self.models.get(f"{owner}/{name}")
        if files is None:
            return self.send(request, 404, b'{"error": "Repository not found"}', body, {"X-Error-Code": "RepoNotFound"})
        revision, _, file = rest.partition("/")
        if revision not in ("main", "fp16", COMMIT):
            code = {"X-Error-Code": "RevisionNotFound"}
            return self.send(request, 404, b'{"error": "Invalid rev id"}', body, code)
        if api:
            listed = [self.listed(f, content) for f, content in files.items()]
            about = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": listed}
            return self.send(request, 200, json.dumps(about).encode(), body)
        if file not in files:
            return self.send(
                request, 404, b'{"error": "no"}', body, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            )
        content, start = files[file], 0
        headers = {"ETag": f'"{self.hash_of(file, content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if asked := request.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send(request, 206 if asked else 200, content[start:], body, headers, file)

    def listed(self, file, content):
        size, identity = self.sizes.get(file, len(content)), self.hash_of(file, content)
        entry = {"rfilename": file, "size": size, "blobId": identity if len(identity) == 40 else "f" * 40}
        if len(identity) == 64:
            entry["lfs"] = {"sha256": identity, "size": size, "pointerSize": 134}
        return entry

    def send(self, request, status, content, body, headers=None, file=None):
        request.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        if not body:
            return
        if self.cut.get(file, 0) > 0:
            self.cut[file] -= 1
            request.wfile.write(content[: len(content) // 2])
            request.wfile.flush()
            request.close_connection = True
            request.connection.close()
            return
        request.wfile.write(content)
