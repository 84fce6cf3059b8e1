"""Docstrings as the site shows them: examples as code, and an entry for each name where one line documents several."""

from __future__ import annotations

import re
from typing import Any

import griffe

_SEVERAL = re.compile(r"^    (\w+(?:, \w+)+):(.*(?:\n {5,}.*)*)", flags=re.MULTILINE)


class Shown(griffe.Extension):
    """Rewrites each docstring while mkdocstrings reads the package."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(each_name(obj.docstring.value))


def fenced(text: str) -> str:
    """A docstring with a fence around each paragraph that begins with `>>>`, which Markdown takes for nested quotes."""
    paragraphs = text.split("\n\n")
    shown = [f"```pycon\n{part.rstrip()}\n```" if part.startswith(">>> ") else part for part in paragraphs]
    return "\n\n".join(shown)


def each_name(text: str) -> str:
    """`a, b: …` of a section as `a: …` and `b: …`: b would be taken for the type of a."""
    return _SEVERAL.sub(lambda found: "\n".join(f"    {name}:{found[2]}" for name in found[1].split(", ")), text)
