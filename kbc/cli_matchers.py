"""`kbc matchers`: what `--matcher` may be."""

from __future__ import annotations

import argparse
import inspect
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from kbc.errors import InputError, must_be
from kbc.files import write_json

HELP = "List the matchers, what each needs, and its options (`--option KEY=VALUE` in other commands)."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kbc matchers`."""
    parser.add_argument("name", nargs="*", metavar="NAME", help="only these")
    parser.add_argument("--json", metavar="FILE", help="write the list as JSON; - for standard output")


def run(args: argparse.Namespace) -> int:
    """Print one paragraph per matcher."""
    from kbc.registry import GROUP, available_matchers, nearest

    known = available_matchers()
    for name in args.name:
        if name not in known:
            raise InputError(must_be("name", "a known matcher", repr(name), nearest(name, known)))
    found = [about(point) for point in sorted(entry_points(group=GROUP), key=lambda p: p.name)
             if not args.name or point.name in args.name]  # fmt: skip
    if args.json:
        write_json(found, args.json, "--json")
    if args.json != "-":
        for entry in found:
            print(f"{entry['name']}\n    {entry['about']}")
            if entry["options"]:
                print("    options: " + ", ".join(f"{key} ({value})" for key, value in entry["options"].items()))
    return 0


def about(point: EntryPoint) -> dict[str, Any]:
    """Name, first paragraph of the docstring and options of a matcher; why not, when it cannot be imported here."""
    try:
        builder = point.load()
    except Exception as error:  # a third party's module may raise anything, and the others must still be listed
        return {"name": point.name, "about": f"not usable here: {type(error).__name__}: {error}", "options": {}}
    options = {
        key: "required" if p.default is p.empty else f"default {p.default!r}"
        for key, p in inspect.signature(builder).parameters.items()
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }
    first = " ".join((inspect.getdoc(builder) or "no description").split("\n\n")[0].split())
    return {"name": point.name, "about": first, "options": options}
