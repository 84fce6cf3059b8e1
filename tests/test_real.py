"""Real photographs: the points lie on the right parts, and KBC is what puts them there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kbc
from kbc.data import open_dataset
from kbc.evaluation.pck import Protocol, pck

pytestmark = pytest.mark.data
PROTOCOL = Protocol((0.1,), "bbox-kp")


@pytest.fixture(scope="module")
def resnet18(kbc_data: Path) -> kbc.Matcher:
    return kbc.load_matcher("resnet18", weights=kbc_data / "weights" / "resnet18-imagenet-to-layer3.pth")


def scores(folder: Path, matcher: kbc.Matcher, indices: list[int], **options: object) -> tuple[float, float]:
    """Mean PCK@0.1 of the coarse and of the KBC answers over fixed pairs."""
    dataset = open_dataset("coco", folder)
    without, with_kbc = [], []
    for record in (dataset[i] for i in indices):
        points = record.keypoints.copy()
        points[np.isnan(record.target_keypoints).any(axis=1)] = np.nan
        pair = kbc.Pair(record.source_path, record.target_path, points)
        result = kbc.wrap(matcher, **options).match([pair])[0]
        truth = np.where(np.isnan(points), np.nan, record.target_keypoints)
        size = pair.target.shape[:2]
        without.append(pck(result.coarse, truth, size, protocol=PROTOCOL)[0.1])
        with_kbc.append(pck(result.keypoints, truth, size, protocol=PROTOCOL)[0.1])
    return 100 * float(np.mean(without)), 100 * float(np.mean(with_kbc))


@pytest.mark.parametrize(
    ("name", "budget", "gain", "least"),
    [
        ("livestock-small", "balanced", 5.0, 25.0),
        ("treadscan", "fast", 15.0, 60.0),
        ("dlc-openfield", "fast", 15.0, 35.0),
    ],
)
def test_kbc_helps_on_small_things(
    kbc_data: Path, resnet18: kbc.Matcher, name: str, budget: str, gain: float, least: float
) -> None:
    before, after = scores(kbc_data / "data" / name, resnet18, list(range(0, 24, 2)), budget=budget)
    print(f"{name}, {budget}: PCK@0.1 {before:.1f} -> {after:.1f}")
    assert after >= before + gain
    assert after >= least


def test_large_objects_are_not_cropped(kbc_data: Path, resnet18: kbc.Matcher) -> None:
    dataset = open_dataset("coco", kbc_data / "data" / "pf-willow")
    large = []
    for record in dataset:
        pair = dataset.load(record)
        spans = [np.ptp(record.keypoints, axis=0), np.ptp(record.target_keypoints, axis=0)]
        sizes = [pair.source.shape[1::-1], pair.target.shape[1::-1]]
        if all((span / size).max() > 0.8 for span, size in zip(spans, sizes, strict=True)):
            large.append(record)
        if len(large) == 3:
            break
    assert large
    for record in large:
        result = kbc.wrap(resnet18).match([dataset.load(record)])[0]
        assert set(result.origin) <= {"whole", "undefined"}
        assert result.source_window is None
        assert result.cost == 1.0  # looking back is free, its call counted
