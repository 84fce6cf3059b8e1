"""Data flows one way: which room may import which, so that the picture in CONTRIBUTING.md stays true."""

from __future__ import annotations

import ast
import re
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GROUND = {"types", "geometry", "images", "errors", "files", "headers", "weights", "tensors", "progress", "processes"}
CORE = ["config", "tuning", "cropping", "support", "layout", "probe", "localize", "confidence", "verify", "pipeline"]


def imports(path: Path, inside_functions: bool = True) -> set[str]:
    """Modules of kbc and kbc_adapters that a file imports, type checking aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if (isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test))
        or (not inside_functions and isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef))
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("kbc", "kbc_adapters")}


def module(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__").replace("adapters", "kbc_adapters", 1)


FILES = {module(path): path for room in ("kbc", "adapters") for path in sorted((ROOT / room).rglob("*.py"))}


def reached(name: str) -> set[str]:
    return {other for other in imports(FILES[name]) if other in FILES}


def within(name: str, *rooms: str) -> bool:
    return any(name == room or name.startswith(room + ".") for room in rooms)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_module_imports_only_what_it_may(name: str) -> None:
    others = reached(name) - {"kbc"}
    short = name.removeprefix("kbc.")
    if not within(name, "kbc.cli", "kbc.__main__"):
        assert not [o for o in others if within(o, "kbc.cli")]
    if short in GROUND:
        assert {o.removeprefix("kbc.") for o in others} <= GROUND
    if within(name, "kbc.matchers"):
        core = [f"kbc.{m}" for m in CORE]
        assert not [o for o in others if within(o, *core, "kbc.evaluation", "kbc.data", "kbc.kbcnet", "kbc.labelling")]
        if not within(name, "kbc.matchers.registry"):
            assert "kbc.matchers.registry" not in others
    if within(name, "kbc_adapters"):
        core = [f"kbc.{m}" for m in CORE]
        assert not [o for o in others if within(o, *core, "kbc.evaluation", "kbc.data", "kbc.kbcnet", "kbc.labelling")]
    if short in CORE:
        allowed = GROUND | set(CORE[: CORE.index(short)]) | {"matchers.protocol", "matchers.function"}
        assert {o.removeprefix("kbc.") for o in others} <= allowed | {"matchers"}
    if within(name, "kbc.data", "kbc.evaluation", "kbc.kbcnet"):
        assert not [o for o in others if within(o, "kbc.labelling")]
    if within(name, "kbc.ops"):
        assert not [o for o in others if not within(o, "kbc.ops", "kbc.errors")]


def test_there_is_no_import_cycle() -> None:
    arrows = {name: {o for o in imports(path, False) if o in FILES} - {name} for name, path in FILES.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " → ".join((*above, name))
        if name in done:
            return
        for other in sorted(arrows[name]):
            if not name.startswith(other + "."):  # a package's own __init__ is loaded before its modules
                visit(other, (*above, name))
        done.add(name)

    for name in sorted(arrows):
        visit(name, ())


def test_the_map_of_contributing_has_every_module_and_room() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+) \|", text.partition("## What to run")[0], flags=re.MULTILINE)
    named = set(re.findall(r"[\w.]+", " ".join(rows).replace("/", " ").replace(".py", "")))
    there = {path.stem for path in (ROOT / "kbc").iterdir() if (path / "__init__.py").exists() or path.suffix == ".py"}
    assert there - {"__init__", "__main__"} <= named


def test_what_contributing_names_is_there() -> None:
    named = re.findall(r"`(\w+)\.([\w.]+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    inside = [(name, rest) for name, rest in named if f"kbc.{name}" in FILES and rest != "py"]
    assert len(inside) > 5
    for name, rest in inside:
        reduce(getattr, rest.split("."), import_module(f"kbc.{name}"))
