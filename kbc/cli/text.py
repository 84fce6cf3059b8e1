"""How commands talk: paragraphs and columns of the terminal's width, notes, and complaints about options."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from kbc.errors import InputError, counted, must_be, nearest


def fitted(text: str, indent: int = 0, hanging: int | None = None) -> str:
    """A paragraph broken at the terminal's width, indented; its further lines by `hanging` when that is given."""
    first, others = " " * indent, " " * (indent if hanging is None else hanging)
    wrap = textwrap.TextWrapper(max(shutil.get_terminal_size().columns, 40), first, others)
    wrap.break_long_words = wrap.break_on_hyphens = False
    return wrap.fill(text)


def two_columns(rows: Sequence[tuple[str, str]], indent: int = 0) -> str:
    """Names on the left, what is said of each on the right, broken at the terminal's width."""
    second = indent + 2 + max((len(name) for name, _ in rows), default=0)
    return "\n".join(fitted(name.ljust(second - indent) + text, indent, second).rstrip() for name, text in rows)


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows))


def say_problems(problems: Iterable[object]) -> None:
    """Say on standard error what was passed over, a line each; those after the twentieth by their number."""
    found = list(problems)
    for problem in found[:20]:
        print(f"note: {problem}", file=sys.stderr)
    if len(found) > 20:
        print(f"note: and {counted(len(found) - 20)} more", file=sys.stderr)


def turned_note(found: Sequence[Path], images: int) -> list[str]:
    """What to know of pictures that their EXIF tag turns; nothing where there is none."""
    if not found:
        return []
    return [
        f"{len(found)} of {counted(images, 'image')} turned by their EXIF tag when opened, e.g. {found[0].name}: "
        "points and boxes are read in the turned picture, as OpenCV and browsers show it"
    ]


class _Once(argparse.Action):
    """An option with one value: given twice it is refused, where argparse would take the last in silence."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        given = namespace.__dict__.setdefault("given", set())
        if option is not None and self.dest in given:
            received = f"{getattr(namespace, self.dest)!r} and {values!r}"
            parser.error(must_be(option, "given once", received, "several values, where it takes them, go with commas"))
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """An argument parser that complains as the rest of kbc does: what it must be, what was received, what to do."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in (None, "store"):
            self.register("action", name, _Once)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found as an `InputError`."""
        raise InputError(f"{self._reworded(message)}; see `{self.prog} --help`")

    def _reworded(self, message: str) -> str:
        if found := re.search(r"^argument (\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)", message):
            argument, received, known = found.groups()
            choices = [choice.strip(" '") for choice in known.split(",")]
            hint = nearest(received, choices)
            near = hint if hint.startswith("did you mean") else ""
            return must_be(argument, f"one of {', '.join(choices)}", repr(received), near)
        if found := re.search(r"^argument (\S+): invalid (int|float) value: (.*)", message):
            return must_be(found[1], "a whole number" if found[2] == "int" else "a number", found[3])
        if found := re.search(r"^argument (\S+): expected (one|at least one) argument", message):
            hint = f"a value that begins with - is given as {found[1].split('/')[-1]}=-5,10"
            return must_be(found[1], "followed by a value", "none", hint)
        if found := re.search(r"^the following arguments are required: (.*)", message):
            return must_be(found[1], "given", "nothing")
        if found := re.search(r"^unrecognized arguments: (.*)", message):
            hint = nearest(found[1].split()[0], self._option_string_actions)
            return must_be("OPTION", f"one that {self.prog} has", repr(found[1]), hint)
        return message
