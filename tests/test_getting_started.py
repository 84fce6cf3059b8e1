"""Every block of Getting started and of the how-to pages runs as it stands, in order, from an empty folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from kbc import cli

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("page", ["getting_started.md", "how_to/wrap.md"])
def test_the_blocks_run_in_order(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="the page installs the extra viz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    text = (DOCS / page).read_text(encoding="utf-8")
    namespace: dict[str, object] = {}
    blocks = re.findall(r"```(python|bash)\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 3
    for language, block in blocks:
        if language == "python":
            exec(compile(block, page, "exec"), namespace)
            continue
        for line in block.splitlines():
            assert cli.main(shlex.split(line)[1:]) == 0, line
    printed = " ".join(capsys.readouterr().out.split())
    for promised in re.findall(r"^print\(.*\)  # (.*)$", text, flags=re.MULTILINE):
        assert promised in printed
    for image in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (DOCS / page).parent.joinpath(image).exists()
    if page == "getting_started.md":
        assert "fine found in the windows" in printed
        assert (tmp_path / "match.png").stat().st_size > 10_000
