"""`kbc matchers`: what `--matcher` may be."""

from __future__ import annotations

import argparse
import inspect
import json
import re
from importlib.metadata import EntryPoint
from typing import Any

from kbc.cli.options import as_typed, matcher_reference
from kbc.cli.text import fitted, two_columns
from kbc.files import write_json
from kbc.matchers.registry import available_matchers, find_matcher, is_matcher

HELP = "List the matchers, what each needs, and its options (`--option KEY=VALUE` in other commands)."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kbc matchers`."""
    add = parser.add_argument
    add("name", nargs="*", type=matcher_reference, metavar="NAME", help="only these, with what each option means")
    add("--json", metavar="FILE", help="write the list as JSON; - for standard output")


def run(args: argparse.Namespace) -> int:
    """Print one paragraph per matcher, or all about those that were named."""
    found = [details(find_matcher(name)) for name in args.name or available_matchers()]
    if args.json:
        write_json(found, args.json, "--json")
    if args.json != "-":
        for entry in found:
            print(f"{entry['name']}\n{fitted(entry['about'], 4)}")
            print(_explained(entry["options"]) if args.name else _listed(entry["options"]), end="")
        if not args.name:
            print("`kbc matchers NAME` says what its options mean. Yours: MODULE:FUNCTION.")
    return 0


def details(point: EntryPoint) -> dict[str, Any]:
    """A matcher's name, the first paragraph of its docstring, and its options: JSON-ready.

    An option has a `help` (of the docstring's Args) and a `default`, or is `required`. Why not, when the matcher cannot
    be imported here.
    """
    try:
        builder = point.load()
    except Exception as error:  # a third party's module may raise anything, and the others must still be listed
        return {"name": point.name, "about": f"not usable here: {type(error).__name__}: {error}", "options": {}}
    text = inspect.getdoc(builder) or "no description"
    said, options = arguments(text), {}
    if not (":" in point.name and is_matcher(builder)):  # a matcher that is there already takes none
        options = {
            key: {"help": said.get(key, "")}
            | ({"required": True} if p.default is p.empty else {"default": _plain(p.default)})
            for key, p in inspect.signature(builder).parameters.items()
            if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        }
    return {"name": point.name, "about": " ".join(text.split("\n\n")[0].split()), "options": options}


def arguments(docstring: str) -> dict[str, str]:
    """What the Args of a docstring (Google's form, unindented) say of each argument, each in one line.

    >>> arguments("Do it.\\n\\nArgs:\\n    size, side: how\\n        large, pixels.\\n    fast: or not.")
    {'size': 'how large, pixels.', 'side': 'how large, pixels.', 'fast': 'or not.'}
    """
    section = re.search(r"^Args:\n((?: .*\n?|\n)*)", docstring, re.MULTILINE)
    entries = re.findall(r"^    (\w[\w, ]*): ((?:.*\n?)(?:     .*\n?)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}


def _plain(value: object) -> Any:
    return json.loads(json.dumps(value, default=str))


def _word(option: dict[str, Any]) -> str:
    """An option in a word: "required", "optional", or "default" and its value as one types it."""
    if option.get("required"):
        return "required"
    return "optional" if option["default"] is None else f"default {as_typed(option['default'])}"


def _listed(options: dict[str, dict[str, Any]]) -> str:
    """The names of the options with their defaults, those without which nothing goes first."""
    kinds: dict[str, list[str]] = {"needs": [], "options": []}
    for key, option in options.items():
        shown = key if option.get("default") is None else f"{key}={as_typed(option['default'])}"
        kinds["needs" if option.get("required") else "options"].append(shown)
    return "".join(fitted(f"{kind}: {'  '.join(keys)}", 4, 8) + "\n" for kind, keys in kinds.items() if keys)


def _explained(options: dict[str, dict[str, Any]]) -> str:
    """An entry per option: what it means, and its default."""
    rows = [(key, f"{option['help'].rstrip('.')} ({_word(option)})".strip()) for key, option in options.items()]
    return f"\n{two_columns(rows, 4)}\n" if rows else ""
