"""`kbc completion`: a shell's completion script, made by shtab from the parsers themselves."""

from __future__ import annotations

import argparse

from kbc.errors import require

HELP = "Print a completion script for your shell; it completes commands, options, choices, matchers and files."
SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kbc completion`."""
    parser.add_argument("shell", choices=SHELLS)


def run(args: argparse.Namespace) -> int:
    """Print the script.

    Raises:
        MissingDependencyError: without shtab.
    """
    shtab = require("shtab", "kbc completion needs shtab", "completion")
    print(shtab.complete(whole_parser(), args.shell))
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """One parser with every command below it."""
    from kbc.cli import COMMANDS

    parser = argparse.ArgumentParser("kbc")
    parser.add_argument("--version", action="version", version="", help="print the version and exit")
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        child = commands.add_parser(name, help=command.summary)
        command.load().configure(child)
        _say_what_values_are(child)
    return parser


def _say_what_values_are(parser: argparse.ArgumentParser) -> None:
    """Names are the matchers installed now; folders are folders; whatever else has no choices may be a file."""
    import shtab

    from kbc.matchers.registry import available_matchers

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                _say_what_values_are(child)
        elif action.metavar == "NAME":
            action.choices = available_matchers()
        elif action.nargs != 0 and not action.choices:
            action.complete = shtab.DIRECTORY if action.metavar in ("DIR", "FOLDER") else shtab.FILE  # type: ignore[attr-defined]
