"""Who may ask for what? Before Gradio and the page's own routes: the host, the password, the visitor's cookie, which
addresses there are, how much may be sent, and what a browser may load.
"""

import asyncio
import base64
import binascii
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

from fz.shell import explain
from fz.web.options import Options

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

YEAR = 365 * 24 * 3600
MOST_SENT = 6_000_000  # bytes of what is no upload: a mask that was drawn, at most
# what Gradio's page asks for, and nothing that serves or takes files
OPEN = re.compile(
    r"/|/config/?|/theme\.css|/robots\.txt|/favicon\.ico|/pwa_icon|/manifest\.json|/(assets|static|svelte)/[\w./-]+"
    r"|/gradio_api/(queue/(join|data)|heartbeat/\w+|startup-events|app_id|theme\.css|info|run/predict|cancel|reset)/?"
    r"|/fz/.+"
)
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)


def cookie_name(port: int) -> str:
    """Cookies know no ports: two servers on one machine have two."""
    return f"fz_visitor_{port}"


class TooLarge(Exception):
    """More was sent than may be."""


class Guard:
    """ASGI middleware."""

    def __init__(self, app: Any, options: Options):
        self.app, self.options, self.cookie = app, options, cookie_name(options.port)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            # the page opens no sockets
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = await self.refused(scope, headers)
        if refusal:
            await answer(send, *refusal)
            return
        secret = secret_of(headers, self.cookie)
        fresh = secrets.token_urlsafe(24) if secret is None and scope["path"] == "/" else None
        scope["fz_secret"] = secret
        limit = self.options.upload_limit if scope["path"].startswith("/fz/upload/") else MOST_SENT
        started = False

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal limit
            message = await receive()
            limit -= len(message.get("body", b""))
            if limit < 0:
                raise TooLarge
            return message

        async def guarded(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message["headers"], *self.added(fresh)]}
            await send(message)

        try:
            await self.app(scope, bounded, guarded)
        except TooLarge:
            if not started:
                await answer(send, 413, "More was sent than may be.")
        except Exception as error:
            # of what no page of this server sends
            print(f"fz web: {scope['method']} {scope['path'][:80]}: {explain(error)[0]}", flush=True)
            if not started:
                await answer(send, 500, "This could not be answered. Load the page again.")

    async def refused(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "").rsplit(":", 1)[0].strip("[]")
        if self.options.local and host not in ("localhost", "127.0.0.1", "::1", self.options.host):
            # another site's name that leads to this machine
            return 403, "This page answers to 127.0.0.1 only."
        if not OPEN.fullmatch(scope["path"]) or ".." in scope["path"].split("/"):
            return 404, "There is nothing here."
        if not self.may(scope, headers):
            # so many guesses a second and no more
            await asyncio.sleep(1)
            return 401, "A password is needed."
        # Gradio lets every page of this machine read what it answers
        origin = headers.get("origin")
        if origin is not None and origin.split("//")[-1] != headers.get("host"):
            return 403, "Another page may not ask this."
        if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            upload = scope["path"].startswith("/fz/upload/")
            if int_of(headers.get("content-length")) > (self.options.upload_limit if upload else MOST_SENT):
                megabytes = self.options.upload_limit // 10**6
                return 413, f"This is larger than {megabytes} MB. Make it shorter or smaller."
        return None

    def may(self, scope: Scope, headers: dict[str, str]) -> bool:
        """Does the visitor know the password? Gradio itself asks whether it has started."""
        if self.options.password is None or scope["path"].startswith("/gradio_api/startup-events"):
            return True
        kind, _, text = headers.get("authorization", "").partition(" ")
        try:
            given = base64.b64decode(text, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return False
        return kind.lower() == "basic" and secrets.compare_digest(given, self.options.password.encode())

    def added(self, fresh: str | None) -> list[tuple[bytes, bytes]]:
        lines = {
            "content-security-policy": POLICY,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
        }
        if fresh:
            lines["set-cookie"] = f"{self.cookie}={fresh}; Path=/; Max-Age={YEAR}; HttpOnly; SameSite=Lax"
        return [(name.encode(), value.encode()) for name, value in lines.items()]


def secret_of(headers: dict[str, str], name: str) -> str | None:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return None
    return found.value if found else None


def int_of(text: str | None) -> int:
    return int(text) if text and re.fullmatch(r"\d{1,18}", text, re.ASCII) else 0


async def answer(send: Send, status: int, line: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="fz: any name, and the password", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": line.encode()})
