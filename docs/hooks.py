"""What the site generates from the code: the command line from its parsers, the parameters from `KBCConfig`."""

from __future__ import annotations

from typing import Any

from kbc.cli import COMMANDS, command_parser
from kbc.config import KBCConfig


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in `<!-- commands -->` and `<!-- parameters -->`."""
    if "<!-- commands -->" in markdown:
        markdown = markdown.replace("<!-- commands -->", commands())
    if "<!-- parameters -->" in markdown:
        markdown = markdown.replace("<!-- parameters -->", parameters())
    return markdown


def commands() -> str:
    """A section for each command: what its --help prints."""
    helps = ((name, command_parser(name, command.load()).format_help()) for name, command in COMMANDS.items())
    return "\n".join(f"### kbc {name}\n\n```text\n{text}```\n" for name, text in helps)


def parameters() -> str:
    """The table of `KBCConfig`'s fields."""
    properties = KBCConfig.model_json_schema()["properties"]
    rows = ["| field | default | values | what it does |", "|---|---|---|---|"]
    for name, field in properties.items():
        rows.append(
            f"| `{name}` | `{field['default']!r}` | {_values(field)} | {' '.join(field['description'].split())} |"
        )
    return "\n".join(rows)


def _values(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    low, high = field.get("minimum", field.get("exclusiveMinimum")), field.get("maximum")
    bounds = (f"{'above' if 'exclusiveMinimum' in field else 'from'} {low:g}" if low is not None else "",
              f"to {high:g}" if high is not None else "")  # fmt: skip
    return " ".join([field["type"], *filter(None, bounds)])
