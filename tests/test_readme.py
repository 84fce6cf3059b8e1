"""Every code block of the README runs as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

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
    assert namespace["points"].tolist() == [[100, 120], [130, 122], [115, 150]]  # type: ignore[attr-defined]
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
