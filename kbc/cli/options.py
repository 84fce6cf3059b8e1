"""Option values as people type them: boxes, key=value."""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import sys
from collections.abc import Iterable
from typing import Any

from kbc.errors import InputError, must_be
from kbc.geometry import Box


def add_matcher_options(parser: argparse.ArgumentParser, default: str | None = "hog") -> None:
    """--matcher NAME and --option KEY=VALUE."""
    shown = f" (default: {default}, which needs no weights and finds little on photographs)" if default else ""
    parser.add_argument(
        "--matcher", default=default, type=matcher_reference, metavar="NAME",
        help=f"see `kbc matchers`, or your own as package.module:function{shown}",
    )  # fmt: skip
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE",
        help="an option of the matcher, e.g. weights=resnet18.pth or size=320; may be repeated",
    )  # fmt: skip


def matcher_reference(text: str) -> str:
    """A matcher's name as given; for package.module:function the working directory is searched too, last.

    (`python -m` searches it always; an installed command such as `kbc` does not.)
    """
    if ":" in text and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return text


def add_kbc_options(parser: argparse.ArgumentParser) -> None:
    """--localizer, --budget and --set KEY=VALUE."""
    from kbc.config import KBCConfig

    def allowed(field: str) -> list[str]:
        values: list[str] = KBCConfig.model_json_schema()["properties"][field]["enum"]
        return values

    parser.add_argument("--localizer", choices=allowed("localizer"), help="how the target window is found")
    parser.add_argument("--budget", choices=allowed("budget"), help="how much a pair may cost")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help="a field of kbc.KBCConfig, e.g. margin=0.4; may be repeated",
    )  # fmt: skip


def kbc_options(args: argparse.Namespace) -> dict[str, Any]:
    """The KBCConfig fields that were given."""
    chosen = {name: getattr(args, name) for name in ("localizer", "budget") if getattr(args, name) is not None}
    return chosen | set_fields(args, chosen)


def set_fields(args: argparse.Namespace, said: Iterable[str]) -> dict[str, Any]:
    """The fields of --set.

    Args:
        said: those that options of their own name already.

    Raises:
        InputError: one of these, or as `key_values`.
    """
    found = key_values(args.settings, "--set")
    for name in said:
        if name in found:
            raise InputError(must_be("--set", f"without {name}, which --{name} names", f"{name}={found[name]}"))
    return found


def key_values(given: list[str], argument: str = "--option") -> dict[str, Any]:
    """key=value pairs; values are read as JSON (numbers, true, [1, 2]) or as Python (True, 2,3) and else kept as text.

    Raises:
        InputError: no "=", an empty key, or a key given twice.

    >>> key_values(["size=320", "weights=a.pth", "votes=false", "download=False", "layers=2,3"])
    {'size': 320, 'weights': 'a.pth', 'votes': False, 'download': False, 'layers': (2, 3)}
    """
    found: dict[str, Any] = {}
    for entry in given:
        key, equals, text = entry.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise InputError(must_be(argument, "KEY=VALUE", repr(entry), "for instance size=320"))
        if key in found:
            raise InputError(must_be(argument, f"given once per key, and {key!r} is given twice", repr(entry)))
        found[key] = _value(text)
    return found


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """--option of a command that has a matcher of its own where --matcher names none.

    Raises:
        InputError: as `key_values`, or options for no matcher.
    """
    options = key_values(args.option)
    if options and args.matcher is None:
        raise InputError(must_be("--option", "given together with --matcher", ", ".join(options)))
    return options


def _value(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # whatever a path may provoke
            continue
    return text


def as_typed(value: object) -> str:
    """A value as one types it: what `key_values` reads back.

    >>> print(*map(as_typed, (False, None, "cpu", (2, 3), 0.5)))
    false null cpu 2,3 0.5
    """
    if isinstance(value, (list, tuple)) and len(value) > 1:
        return ",".join(map(as_typed, value))
    return value if isinstance(value, str) else json.dumps(value, default=str)


def parse_box(text: str | None, argument: str) -> Box | None:
    """ "x0,y0,x1,y1" (pixel edges) as a box; None stays None.

    Raises:
        InputError: not four numbers, or not in xyxy order.
    """
    if text is None:
        return None
    parts = [part for part in re.split(r"[,\s]+", text.strip()) if part]
    try:
        return Box.of([float(part) for part in parts], argument)
    except ValueError as error:
        hint = "x,y,width,height is x,y,x+width,y+height"
        raise InputError(must_be(argument, "four numbers x0,y0,x1,y1 in that order", repr(text), hint)) from error
