"""The script that makes the figures: its interval, and the networks it measures untrained."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from kbc.matchers.resnet import ResNet

SCRIPT = Path(__file__).parents[2] / "examples" / "kbcnet" / "measure.py"


@pytest.fixture(scope="module")
def measure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_interval_draws_images_not_pairs(measure: ModuleType) -> None:
    counts = [(i % 3, 2) for i in range(30)]  # one half right
    alone = measure.interval(counts, [{str(i)} for i in range(30)])
    shared = measure.interval(counts, [{str(i % 3), "other"} for i in range(30)])
    assert alone[0] < 50 < alone[1]
    assert shared[1] - shared[0] > alone[1] - alone[0]  # the images say less than as many pairs would
    assert measure.interval([(1, 2)] * 30, [{str(i)} for i in range(30)]) == (50.0, 50.0)


def test_the_interval_of_independent_pairs_is_the_usual_one(measure: ModuleType) -> None:
    counts = [(int(i < 40), 1) for i in range(100)]
    low, high = measure.interval(counts, [{str(i)} for i in range(100)])
    assert low == pytest.approx(40 - 1.96 * 4.9, abs=1.5)
    assert high == pytest.approx(40 + 1.96 * 4.9, abs=1.5)


def test_untrained_is_what_training_starts_from(measure: ModuleType, tmp_path: Path) -> None:
    backbone = ResNet("resnet18").state_dict()
    torch.save({k: v for k, v in backbone.items() if not k.startswith(("layer4", "fc"))}, tmp_path / "weights.pth")
    weights = str(tmp_path / "weights.pth")
    plain = measure.untrained("kbcnet-resnet18", {"model.csfa": False, "model.decoder": []}, weights).network
    assert plain.csfa is None
    assert plain.decoder is None
    assert torch.equal(plain.backbone.network.state_dict()["conv1.weight"], backbone["conv1.weight"])
