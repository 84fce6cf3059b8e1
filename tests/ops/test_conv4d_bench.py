"""The bench runs, and says what it could not measure."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from kbc.cli import bench, main


def test_everything_has_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert main(["bench", "conv4d", "--quick", "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 13
    assert torch.get_num_threads() == threads
    measured = [row["name"] for row in rows if row["found"] is not None]
    assert sum("CPU" in name for name in measured) >= (8 if sys.platform == "linux" else 7)
    assert all(row["note"].startswith("quick, no result") for row in rows)
    if not torch.cuda.is_available():
        gpu = [row for row in rows if row["name"].startswith("CUDA")]
        assert len(gpu) == 4
        assert all("not measured: no CUDA device" in row["note"] and row["found"] is None for row in gpu)


def test_where_the_result_goes_is_checked_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "bench_conv4d", lambda **_: pytest.fail("measured first"))
    assert main(["bench", "conv4d", "--json", str(tmp_path / "nowhere" / "bench.json")]) == 2
    assert "`json` must be in a folder" in capsys.readouterr().err
    row = bench.Row("a", 2.5)
    monkeypatch.setattr(bench, "bench_conv4d", lambda **_: [row])
    assert main(["bench", "conv4d", "--json", str(tmp_path / "bench.json")]) == 0
    assert json.loads((tmp_path / "bench.json").read_text())["rows"] == [{"name": "a", "found": 2.5, "note": ""}]


def test_table() -> None:
    text = bench.table([bench.Row("a", 2.5, "n"), bench.Row("b")])
    assert "| a | 2.50× | n |" in text
    assert "| b | – |  |" in text
