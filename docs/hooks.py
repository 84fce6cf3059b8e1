"""What the site has beyond docs/: commands and parameters from the code, and examples/, its notebooks as pages."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from kbc.cli import COMMANDS, EXIT_CODES, command_parser
from kbc.config import KBCConfig

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def on_files(files: Files, *, config: Any) -> Files:
    """Add examples/ to the site under the same names: Markdown, pictures, and each notebook with what it showed."""
    for path in sorted(EXAMPLES.rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in (".md", ".png"):
            files.append(File.generated(config, name, abs_src_path=str(path)))
        elif path.suffix == ".ipynb":
            text, pictures = notebook(path)
            files.append(File.generated(config, str(Path(name).with_suffix(".md")), content=text))
            for picture, content in pictures.items():
                files.append(File.generated(config, f"examples/{picture}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what the code says, `<!-- commands -->` and its like, and turn the repository's links into the site's."""
    for name, write in FILLED.items():
        if f"<!-- {name} -->" in markdown:
            markdown = markdown.replace(f"<!-- {name} -->", write())
    if page.file.src_uri.startswith("examples/"):
        markdown = re.sub(r"\]\(((?:\.\./)*)docs/", r"](\1", markdown)
        return re.sub(r"\[([^]\n]*)\]\((?:\.\./)+adapters/[^)\s]*\)", r"\1", markdown)  # the code is not on the site
    markdown = re.sub(r"(\]\((?:\.\./)+examples/[^)\s]+)\.ipynb\)", r"\1.md)", markdown)
    return re.sub(r"\]\(((?:\.\./)*)\.\./examples/", r"](\1examples/", markdown)


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, with the pictures that it showed by their names beside it."""
    parts, pictures = [], {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            kind = next((kind for kind in ("image/png", "image/jpeg") if kind in data), None)
            if kind:
                name = f"{path.stem}-{len(pictures) + 1}.{kind.removeprefix('image/')}"
                pictures[name] = base64.b64decode("".join(data[kind]))
                parts.append(f"![What the code above draws]({name})")
            elif shown := "".join(output.get("text", data.get("text/plain", []))):
                parts.append(f"```text\n{shown.rstrip()}\n```")
    source = f"*The notebook is `{path.relative_to(ROOT).as_posix()}` in the repository.*"
    return "\n\n".join([parts[0], source, *parts[1:]]) + "\n", pictures


def overview() -> str:
    """The table of commands."""
    rows = [f"| [`kbc {name}`](#kbc-{name}) | {command.summary} |" for name, command in COMMANDS.items()]
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


def exit_codes() -> str:
    """The table of exit codes."""
    rows = [f"| {code} | {meaning.replace('|', chr(92) + '|')} |" for code, meaning in EXIT_CODES.items()]
    return "\n".join(["| code | meaning |", "|---|---|", *rows])


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


FILLED: dict[str, Callable[[], str]] = {
    "overview": overview,
    "exit codes": exit_codes,
    "commands": commands,
    "parameters": parameters,
}
