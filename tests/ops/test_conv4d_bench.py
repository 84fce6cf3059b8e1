"""The bench runs, says what it could not measure, and judges by its goals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from kbc.cli import bench
from kbc.errors import InputError


def test_verdicts() -> None:
    for found, verdict in ((1.9, "missed"), (2.0, "target met"), (3.5, "stretch met"), (None, "not measured")):
        assert bench.GoalRow("speed", 2, 3, found).verdict == verdict
    for found, verdict in ((0.7, "missed"), (0.6, "target met"), (0.3, "stretch met")):
        assert bench.GoalRow("memory", 0.62, 0.45, found, at_most=True).verdict == verdict


def test_every_goal_has_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert bench.main(["conv4d", "--quick", "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 14
    assert torch.get_num_threads() == threads
    measured = [row["name"] for row in rows if row["found"] is not None]
    assert sum("CPU" in name for name in measured) >= (8 if sys.platform == "linux" else 7)
    assert all(row["note"].startswith("quick, no result") for row in rows)
    if not torch.cuda.is_available():
        gpu = [row for row in rows if row["name"].startswith("H200")]
        assert len(gpu) == 4
        assert all("not measured: no CUDA device" in row["note"] and row["found"] is None for row in gpu)


def test_where_the_result_goes_is_checked_before_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "bench_conv4d", lambda **_: pytest.fail("measured first"))
    with pytest.raises(InputError, match="`json` must be in a folder"):
        bench.main(["conv4d", "--json", str(tmp_path / "nowhere" / "bench.json")])
    row = bench.GoalRow("a", 2, 3, 2.5)
    monkeypatch.setattr(bench, "bench_conv4d", lambda **_: [row])
    assert bench.main(["conv4d", "--json", str(tmp_path / "bench.json")]) == 0
    assert json.loads((tmp_path / "bench.json").read_text())["rows"][0]["verdict"] == "target met"


def test_table() -> None:
    rows = [bench.GoalRow("a", 2, 3, 2.5, note="n"), bench.GoalRow("b", 0.6, 0.4, at_most=True)]
    text = bench.table(rows)
    assert "| a | 2× | 3× | 2.50× | target met | n |" in text
    assert "| b | ≤ 0.6× | ≤ 0.4× | – | not measured |  |" in text
