"""The command `kbc`: a table of commands, each a module that is imported when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from kbc import __version__
from kbc.cli.text import Parser, fitted, two_columns
from kbc.errors import KBCError, MissingDependencyError

FAILED, WRONG_INPUT, MISSING, INTERRUPTED, PIPE_CLOSED = 1, 2, 3, 130, 141

EXIT_CODES = {
    "0": "done",
    "1": "failed: a matcher raised or gave no answer, a file could not be written, a check found faults",
    "2": "wrong input: an option, a file or a value; the message says which and what it must be",
    "3": "an optional package is missing; the message gives the line to run",
    "130": "interrupted (Ctrl-C); no output file is left half-written",
    "141": "whoever read the output went away (kbc … | head)",
}


class CommandModule(Protocol):
    """What a command's module offers. `configure` may set an epilog: what stands above the examples."""

    HELP: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Do it; the exit code."""
        ...


@dataclass(frozen=True)
class Command:
    """A row of the table: where the command lives, one line about it, and examples for its --help."""

    module: str
    summary: str
    examples: tuple[str, ...]

    def load(self) -> CommandModule:
        """Import the command's module."""
        return cast(CommandModule, importlib.import_module(self.module))


COMMANDS = {
    "demo": Command(
        "kbc.cli.demo",
        "match drawn small-object scenes with and without KBC; no download",
        ("kbc demo", "kbc demo --pairs 40 --matcher hog --out demo", "kbc demo --json - --quiet"),
    ),
    "match": Command(
        "kbc.cli.match",
        "match the points of one photograph in another",
        (
            'kbc match a.jpg b.jpg --points "120,80 134,92" --plot out.png',
            "kbc match a.jpg b.jpg --points points.csv --matcher resnet18 --option weights=resnet18.pth",
            'kbc match a.jpg b.jpg --points "120,80" --target-box 300,200,420,330 --json -',
            'kbc match a.jpg b.jpg --points "120,80" --no-kbc',
        ),
    ),
    "transfer": Command(
        "kbc.cli.transfer",
        "carry the points of labelled pictures over to a folder of others",
        (
            "kbc transfer labels.json photos --out keypoints.json",
            'kbc transfer a.jpg photos --points "nose=120,80 tail=134,92" --out keypoints.csv',
            "kbc transfer labels.json photos --boxes detections.json --min-confidence 0.5 --out keypoints.json",
            "kbc transfer labels.json 'photos/**/*.jpg' --instances 5 --matcher kbcnet --out keypoints.json",
        ),
    ),
    "matchers": Command(
        "kbc.cli.matchers", "list the matchers and their options", ("kbc matchers", "kbc matchers hog")
    ),
    "eval": Command(
        "kbc.cli.eval",
        "measure a matcher with and without KBC on a data set",
        (
            "kbc eval --data pfwillow --root data/pf-willow --matcher hog --limit 100",
            "kbc eval --data coco --root mine --matcher resnet18 --option weights=resnet18.pth --strict --out runs/a",
            "kbc eval --suite data --matcher hog --localizer best --budget balanced",
        ),
    ),
    "data": Command(
        "kbc.cli.data",
        "check a data set on disk, or say where data sets come from",
        ("kbc data sources", "kbc data check data/pf-willow"),
    ),
    "train": Command(
        "kbc.cli.train",
        "train KBCNet",
        (
            "kbc train kbcnet --config kbcnet-tiny --set steps=10 --set validate_pairs=8 --out runs/short",
            "kbc train kbcnet --config kbcnet-tiny --out runs/tiny",
        ),
    ),
    "bench": Command(
        "kbc.cli.bench",
        "time the 4D convolutions, or KBC's own work, on this machine",
        (
            "kbc bench conv4d",
            "kbc bench conv4d --quick",
            "kbc bench pipeline --inputs 518/14/384 --batch 1,16",
            "kbc bench pipeline --matcher resnet18 --option weights=resnet18.pth --device cuda --json -",
        ),
    ),
    "ui": Command(
        "kbc.cli.ui",
        "a page to click points on",
        ("kbc ui", "kbc ui --port 8080 --option weights=resnet18.pth --matcher resnet18"),
    ),
    "env": Command("kbc.cli.env", "what is installed here, for bug reports", ("kbc env", "kbc env --json -")),
    "completion": Command(
        "kbc.cli.completion",
        "print a shell's completion script",
        (
            "kbc completion bash > ~/.local/share/bash-completion/completions/kbc",
            "kbc completion zsh > ~/.zfunc/_kbc",
            "kbc completion fish > ~/.config/fish/completions/kbc.fish",
        ),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `kbc` with these arguments (by default the process's) and give its exit code.

    Errors that kbc raises on purpose become one line on standard error; others keep their traceback.
    """
    given = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if argv is None and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal or pipe of few signs, as Windows has them
    try:
        try:
            name = overview().parse_args(given[:1]).command
            module = COMMANDS[name].load()
            args = command_parser(name, module).parse_args(given[1:])
        except SystemExit as stop:  # argparse, after --help
            return int(stop.code or 0)
        args.words = given  # as it was asked, for reports that name their command
        code = module.run(args)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # code that kbc called; whatever it says, the work is not done
        return _complain(f"a matcher or plug-in called sys.exit({stop.code!r})", FAILED)
    except MissingDependencyError as error:
        return _complain(error, MISSING)
    except KBCError as error:
        return _complain(error, WRONG_INPUT if isinstance(error, ValueError) else FAILED)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:  # `kbc … | head`: nobody reads on, and the interpreter must not complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        return _complain(error, FAILED)


def overview() -> argparse.ArgumentParser:
    """The parser of `kbc` itself: which command. Building it imports no command."""
    commands = two_columns([(name, command.summary) for name, command in COMMANDS.items()], 2)
    examples = "\n".join(f"  {COMMANDS[name].examples[0]}" for name in ("demo", "match", "env"))
    parser = Parser(
        prog="kbc",
        usage="kbc COMMAND [OPTION …]",
        description="Better keypoints on small objects, around any semantic matcher.",
        epilog=f"commands:\n{commands}\n\n`kbc COMMAND --help` shows a command's options and examples.\n\n"
        f"examples:\n{examples}\n\n{_exit_codes()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kbc {__version__}", help="print the version and exit")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    return parser


def command_parser(name: str, module: CommandModule) -> argparse.ArgumentParser:
    """The parser of one command, with its examples and the exit codes at the end of its help."""
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=f"kbc {name}", description=fitted(module.HELP), formatter_class=form)
    module.configure(parser)
    examples = "examples:\n" + "\n".join(f"  {example}" for example in COMMANDS[name].examples)
    parser.epilog = "\n\n".join(filter(None, (parser.epilog, examples, _exit_codes())))
    return parser


def _exit_codes() -> str:
    return "exit codes:\n" + two_columns(list(EXIT_CODES.items()), 2)


def _complain(error: object, code: int) -> int:
    print(f"kbc: {error}", file=sys.stderr)
    return code
