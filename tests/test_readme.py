"""Every code block of the README runs as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from kbc import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_blocks_run_in_order() -> None:
    namespace: dict[str, object] = {}
    found = blocks("python")
    assert len(found) >= 2
    for block in found:
        exec(compile(block, "README.md", "exec"), namespace)
    assert np.allclose(namespace["points"], [[100, 120], [130, 122], [115, 150]])  # type: ignore[call-overload]
    assert namespace["result"].keypoints.shape == (3, 2)  # type: ignore[attr-defined]


def commands() -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


def test_shell_commands_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = commands()
    assert len(found) >= 2
    for line in found:
        assert line.startswith("kbc "), line
        assert cli.main(shlex.split(line)[1:]) == 0, line


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"`make (\w+)`", README)
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link
    for anchor in re.findall(r"\]\(#([^)]+)\)", README):
        assert anchor in [
            title.lower().replace(" ", "-").rstrip("?") for title in re.findall(r"^## (.*)$", README, re.M)
        ]


ROWS = {
    "the matcher alone": "no KBC",
    "the matcher alone, 512 px": "no KBC, 512 px (cost 4)",
    "KBC, the paper's rule": "`predicted`: the paper's rule",
    "KBC, `fast` (default)": "`best`, fast",
    "KBC, `balanced`": "`best`, balanced",
    "KBC, `thorough`": "`best`, thorough",
    "KBC around a bare function, `fast`": "a bare function, fast",
    "KBC around a bare function, `thorough`": "a bare function, thorough",
    "(the true window, the matcher's own points)": "true window, matcher's own points",
}
SETS = {
    "wheels": "treadscan (100)",
    "mice": "dlc-openfield (100)",
    "cows and sheep": "livestock-small (100)",
    "PF-WILLOW shrunk 3×": "pf-willow f=3 (200)",
    "shrunk 5×": "pf-willow f=5 (200)",
    "not shrunk": "pf-willow f=1 (200)",
    "pairs made worse": "worse by > 10 points",
}


def tables(text: str) -> dict[tuple[str, str], str]:
    """(row, column) → cell of the tables in a page; of a column that comes again, the first."""
    found: dict[tuple[str, str], str] = {}
    for head, rows in re.findall(r"^(\|.*\|)\n\|[-:| ]+\|\n((?:\|.*\|\n)+)", text, flags=re.MULTILINE):
        names, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in [head, *rows.splitlines()]]
        for cells in lines:
            for name, cell in zip(names[1:], cells[1:], strict=True):
                found.setdefault((cells[0].replace("**", ""), name), cell)
    return found


def test_the_table_s_figures_are_the_measured_ones() -> None:
    shown = tables(README)
    measured = tables((ROOT / "examples" / "results" / "localisation.md").read_text(encoding="utf-8"))
    for row, source in ROWS.items():
        for column, data_set in SETS.items():
            if (row, column) != ("the matcher alone", "pairs made worse"):
                assert shown[row, column] == measured[source, data_set], (row, column)


def test_how_kbc_works_repeats_the_measured_figures() -> None:
    measured = tables((ROOT / "examples" / "results" / "localisation.md").read_text(encoding="utf-8"))
    before, after = (measured[row, "pf-willow f=1 (200)"] for row in ("no KBC", "no KBC, 512 px (cost 4)"))
    assert f"PF-WILLOW as it is ({before} to {after})" in (ROOT / "docs" / "how_it_works.md").read_text(
        encoding="utf-8"
    )
