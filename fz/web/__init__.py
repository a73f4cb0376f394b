"""The command line, `python -m fz.web`: a page to edit with, in the browser of whoever may reach this machine.

Which files there are: `options` are its flags, `server` starts it, `page` lays it out, `desk` answers it, `studio`
computes, `jobs` queues, `folder` keeps, `routes` and `guard` say what may be reached.
"""

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from fz.errors import FzError
from fz.settings.device import check_device
from fz.shell import answered, end_now, leave
from fz.web.options import build_parser, check_port, options_of

NEEDS = "web: Gradio is not installed. pip install 'fz[web]', in a checkout pip install -e '.[web]'."


def answer(argv: Sequence[str]) -> None:
    options = options_of(argv)
    if find_spec("gradio") is None:
        raise FzError(NEEDS)
    check_device(options.device)
    check_port(options)
    from fz.web.server import serve

    code = 0
    try:
        serve(options)
    except KeyboardInterrupt:  # once more, while it was ending
        code = 130
    # the thread that computes is not waited for: Python, which would take itself down under it, aborts
    end_now(code)


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    return answered(lambda: answer(argv), argv=argv)


__all__ = ["build_parser", "leave", "main"]
