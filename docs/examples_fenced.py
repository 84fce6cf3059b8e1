"""Shows the examples of docstrings as code: without a fence Markdown takes `>>>` for nested quotes."""

from __future__ import annotations

from typing import Any

import griffe


class Fenced(griffe.Extension):
    """Puts a fence around each example while mkdocstrings reads the package."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """A docstring with a fence around each paragraph that begins with `>>>`."""
    paragraphs = text.split("\n\n")
    shown = [f"```pycon\n{part.rstrip()}\n```" if part.startswith(">>> ") else part for part in paragraphs]
    return "\n\n".join(shown)
