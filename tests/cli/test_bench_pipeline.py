"""The bench of KBC's own work runs, adds up, and leaves what it times as it was."""

from __future__ import annotations

import json
import time

import pytest
import torch

import kbc
from kbc import layout, probe
from kbc.cli import bench_pipeline, main
from kbc.cli.bench_pipeline import STAGES, VARIANTS, Cost, Setting
from kbc.cli.bench_pipeline import bench_pipeline as measured

SMALL = Setting(64, 8, 32)


def test_every_variant_has_a_row_whose_stages_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "pipeline", "--quick", "--points", "5,40", "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["points"], row["variant"]) for row in rows] == [(n, name) for n in (5, 40) for name in VARIANTS]
    for row in rows:
        stages = row["stages"]
        assert sum(stages.values()) - stages["encoding"] == pytest.approx(row["own"])
        assert stages["encoding"] > 0
        assert stages["images"] > 0
        assert stages["asking"] > 0
    spent = {row["variant"]: row["stages"] for row in rows}
    assert all(spent["thorough"][name] > 0 for name in STAGES)  # a renamed function would leave its stage empty
    assert spent["plain"]["proposals"] == spent["plain"]["layout"] == spent["paper"]["layout"] == 0


def test_what_is_timed_is_put_back() -> None:
    matcher = kbc.load_matcher("hog", size=64)
    names = ("look", "coarse"), ("propose", "fit")
    before = [vars(owner)[name] for owner, those in zip((probe.Probe, layout), names, strict=True) for name in those]
    kept = dict(vars(matcher)), probe.PairState.cut, probe.run_matcher
    measured([SMALL], ["plain", "fast"], matcher=matcher, pairs=1, rounds=1)
    after = [vars(owner)[name] for owner, those in zip((probe.Probe, layout), names, strict=True) for name in those]
    assert before == after
    assert kept[0].keys() == vars(matcher).keys()
    assert kept[1:] == (probe.PairState.cut, probe.run_matcher)


def test_a_stage_is_timed_without_those_inside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    clock = bench_pipeline._Clock(torch.device("cpu"))
    monkeypatch.setattr(time, "thread_time", lambda: float(next(now)))
    with clock.stage("outer"):  # begins at 0
        with clock.stage("inner"):  # at 1
            pass  # until 2
        with clock.stage("outer"):  # at 3
            pass  # until 4
    assert clock.seconds == {"outer": 4.0, "inner": 1.0}


def test_a_function_as_the_matcher() -> None:
    slow = kbc.as_matcher(lambda source, target, points: points, name="stays", input_size=64)
    plain, fast = measured([Setting(0, 0, 0, batch=2)], ["plain", "fast"], matcher=slow, pairs=1, rounds=1)
    assert plain.setting is None
    assert plain.batch == 2
    assert fast.calls <= 2
    assert "as given | 8–14 | 2 | fast" in bench_pipeline.table([plain, fast])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--variants", "quick"], "variants"),
        (["--inputs", "256/8"], "--inputs"),
        (["--points", "0"], "--points"),
        (["--batch", "two"], "--batch"),
        (["--device", "cuda:99"], "device"),
        (["--rounds", "0"], "rounds"),
        (["--option", "size=5"], "together with --matcher"),
    ],
)
def test_wrong_options_are_refused_before_measuring(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "pipeline", *options]) == 2
    assert message in capsys.readouterr().err


def test_the_table_gives_ratios_to_the_plain_matcher() -> None:
    costs = [Cost(SMALL, 10, 1, name, wall, own, {}, 1.0) for name, wall, own in (("plain", 4, 2), ("fast", 6, 5))]
    assert "| 64/8, 32 | 10 | 1 | fast | 1.0 | 6.0 | 1.5 | 5.0 | 2.5 |" in bench_pipeline.table(costs)
    assert "| 6.0 | – | 5.0 | – |" in bench_pipeline.table(costs[1:])
