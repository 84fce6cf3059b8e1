"""`examples/ray_eval.py` on a local Ray gives what `kbc eval` gives."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from kbc.data import open_dataset
from kbc.evaluation.outcomes import read_outcomes
from kbc.evaluation.plan import Run
from kbc.evaluation.runner import evaluate
from tests.examples import load_example


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_example("ray_eval", monkeypatch)


def test_a_pair_survives_the_journey(root: Path, example: ModuleType) -> None:
    for index, record in enumerate(open_dataset("coco", root)):
        back = example.to_record(example.to_row("cows", index, record))
        assert (back.id, back.source_path, back.target_box) == (record.id, record.source_path, record.target_box)
        assert np.array_equal(back.keypoints, record.keypoints, equal_nan=True)
        assert np.array_equal(back.target_keypoints, record.target_keypoints, equal_nan=True)
        assert back.category == record.category


def test_without_ray_the_worker_does_the_same(root: Path, example: ModuleType) -> None:
    dataset, run = open_dataset("coco", root), Run("hog", options={"size": 64})
    table = [example.to_row(dataset.name, index, record) for index, record in enumerate(dataset)]
    batch = {key: np.array([row[key] for row in table], dtype=object) for key in table[0]}
    found = [example.parse_outcome(line) for line in example.Worker(run)(batch)["outcome"]]
    wanted = [outcome for chunk in evaluate(run.build(), dataset, run=run.name) for outcome in chunk]
    assert found == wanted


@pytest.mark.slow
def test_on_a_local_ray(root: Path, tmp_path: Path, example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    words = ["--root", str(root), "--matcher", "hog", "--option", "size=64", "--out", str(tmp_path)]
    try:
        assert example.main(words) == 0
    finally:
        ray.shutdown()
    run, dataset = Run("hog", options={"size": 64}), open_dataset("coco", root)
    wanted = {o.pair: o for chunk in evaluate(run.build(), dataset, run=run.name) for o in chunk}
    found = {outcome.pair: outcome for outcome in read_outcomes(tmp_path).values()}
    assert sorted(found) == sorted(wanted)
    for pair, outcome in found.items():
        assert outcome == wanted[pair]
    assert "12 pairs" in capsys.readouterr().out
