"""How is the server told to start: flags, and which of them may not be?"""

import errno
import ipaddress
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fz.errors import FzError
from fz.settings.checks import check_whole
from fz.settings.limits import WHOLE
from fz.settings.place import absent, expanded
from fz.settings.texts import device, whole
from fz.shell import Parser, unknown

PASSWORD = "FZ_WEB_PASSWORD"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class Options:
    """How the server was started. folder: where clips, inversions and results are kept. password None: anybody may."""

    checkpoints: tuple[str | None, ...]
    device: str
    threads: int | None
    host: str
    port: int
    password: str | None
    share: bool
    folder: Path
    upload_limit: int  # bytes of one upload

    @property
    def local(self) -> bool:
        """Does only this machine reach it?"""
        return is_loopback(self.host) and not self.share


def build_parser() -> Parser:
    parser = Parser(prog="python -m fz.web", description="A page to edit with, on this machine.", allow_abbrev=False)
    add = parser.add_argument
    add("--checkpoint", action="append", metavar="PATH", help="as of fz.run; again for more, which the page lists")
    add("--device", type=device, default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps")
    add("--threads", type=whole(1), metavar="N", help="CPU threads")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="listen there, as 0.0.0.0 for all networks; needs a "
        "password")  # fmt: skip
    add("--port", type=whole(1), default=7860, metavar="N", help="default 7860")
    add("--password", metavar="TEXT", help=f"what visitors have to know; or in the environment, {PASSWORD}")
    add("--no-password", action="store_true", help="let anybody use it who reaches it")
    add("--share", action="store_true", help="also a public address by Gradio's servers; needs a password, too")
    add("--folder", metavar="DIR", help="where uploads, inversions and results are kept; default: the user's cache")
    add("--upload-limit", type=whole(1), default=200, metavar="MB", help="of one upload, default 200")
    return parser


def options_of(argv: Sequence[str]) -> Options:
    """Raises FzError for what cannot be."""
    parser = build_parser()
    given, rest = parser.parse_known_args(list(argv))
    if rest:
        raise FzError(unknown(rest, parser))
    password = given.password or os.environ.get(PASSWORD) or None
    if given.port > 65535:
        raise FzError(f"port: got {given.port}, expected 1 to 65535.")
    if not given.host.strip() or given.host != given.host.strip("[]"):
        raise FzError(f"host: got {given.host!r}, expected an address of this machine, as 127.0.0.1, ::1 or 0.0.0.0.")
    check_whole("threads", given.threads or 1, *WHOLE["threads"])
    if not is_loopback(given.host) or given.share:
        if password is None and not given.no_password:
            what = "--share" if given.share else f"--host {given.host}"
            raise FzError(f"{what}: others would reach the page. Pass --password TEXT, or --no-password to let them.")
    for checkpoint in given.checkpoint or ():
        # what has the form of a Hub name is looked for when it is loaded
        place = expanded(checkpoint, "checkpoint")
        if not (HUB_NAME.fullmatch(checkpoint) or place.exists()):
            raise FzError(f"checkpoint: {checkpoint} {absent(place)}. Expected a folder, a file or a Hub name.")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Options(
        checkpoints=tuple(given.checkpoint or (None,)),
        device=given.device,
        threads=given.threads,
        host=given.host,
        port=given.port,
        password=password,
        share=given.share,
        folder=expanded(given.folder, "folder").absolute() if given.folder is not None else cache / "fz" / "web",
        upload_limit=given.upload_limit * 10**6,
    )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_port(options: Options) -> None:
    """Raises FzError for an address that this machine has not, or a port that another program has."""
    try:
        socket.getaddrinfo(options.host, options.port)
    # of names that are none, each Python has an error of its own
    except (OSError, ValueError, TypeError) as error:
        why = getattr(error, "strerror", None) or "it is no name of a machine"
        raise FzError(
            f"host: got {options.host[:80]!r} ({why}). Expected an address of this machine, as 127.0.0.1 or 0.0.0.0."
        ) from None
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, options.port))
        except OSError as error:
            why = error.strerror or error
            if error.errno == errno.EADDRNOTAVAIL:
                raise FzError(
                    f"host: {options.host} is no address of this machine ({why}). Pass another --host."
                ) from None
            raise FzError(f"port: {options.host}:{options.port} cannot be had ({why}). Pass another --port.") from None
