"""What can follow on the command line? Completion of commands and flags by the shell, where argcomplete is installed:
`eval "$(register-python-argcomplete fz)"`.
"""

import argparse

from fz import batch, evaluate, prompt, report, sweep, web
from fz.settings import flags
from fz.tuning import settings as tuning


def complete() -> None:
    """Answer the shell that asked (argcomplete's protocol), and end the program; nothing where it is not installed."""
    try:
        import argcomplete
    except ImportError:
        return
    argcomplete.autocomplete(build_parser())


def build_parser() -> argparse.ArgumentParser:
    """All commands as one parser."""
    parser = argparse.ArgumentParser(prog="fz")
    commands = parser.add_subparsers(dest="command")
    parsers = {
        "run": flags.build_parser(),
        "tune": tuning.parser(),
        "prompt": prompt.build_parser(),
        "sweep": sweep.build_parser(),
        "web": web.build_parser(),
        "batch": batch.build_parser(),
        "evaluate": evaluate.build_parser(),
        "report": report.build_parser(),
    }
    for name, of_command in parsers.items():
        commands.add_parser(name, parents=[of_command], add_help=False)
    return parser
