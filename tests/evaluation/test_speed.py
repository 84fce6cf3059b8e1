"""Features are made once per image: a pair list costs as much as its images, and answers do not change."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import kbc
from kbc.data import Dataset, open_dataset
from kbc.evaluation.outcomes import points
from kbc.evaluation.runner import evaluate
from kbc.matchers.builtin import resnet18
from kbc.matchers.features import FeatureMatcher


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of one category and all 552 ordered pairs of them."""
    folder = tmp_path_factory.mktemp("many")
    generator = np.random.default_rng(0)
    for i in range(24):
        small = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i}.jpg"), cv2.resize(small, (320, 240), interpolation=cv2.INTER_CUBIC))
    spots = [value for x, y in generator.uniform(20, 200, (8, 2)) for value in (float(x), float(y), 2)]
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(24)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [10, 10, 200, 200], "keypoints": spots}
            for i in range(24)
        ],
        "categories": [{"id": 1, "name": "blob"}],
    }
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    pairs = [list(pair) for pair in permutations(range(24), 2)]
    (folder / "pairs.json").write_text(json.dumps({"pairs": pairs}), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for a busy processor would be counted as work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network() -> FeatureMatcher:
    """A small convolutional network with fixed random weights, stride 16."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(48, 3), (96, 48), (128, 96), (64, 128)]
    kernels = [torch.randn(o, i, 3, 3, generator=generator) * (2 / (9 * i)) ** 0.5 for o, i in shapes]

    def encode(images: torch.Tensor) -> torch.Tensor:
        for kernel in kernels:
            images = torch.nn.functional.conv2d(images, kernel, stride=2, padding=1).relu()
        return images

    return kbc.from_features(encode, 16, size=256)


def seconds_of(dataset: Dataset, build: Callable[[], FeatureMatcher], some: int) -> tuple[float, float]:
    """Processor seconds for the list with caches, and, from `some` of its pairs, for the list pair by pair without.

    Raises AssertionError when an answer differs.
    """
    matcher = build()
    start = time.process_time()
    fast = [outcome for chunk in evaluate(matcher, dataset) for outcome in chunk]
    cached = time.process_time() - start
    assert matcher.encoded == len(dataset.images())

    records = dataset.records[:: max(len(dataset) // some, 1)]
    slow, spent = [], 0.0
    for record in records:
        bare = build()
        start = time.process_time()
        pair = kbc.Pair(record.source_path, record.target_path, record.keypoints)
        slow.append(bare.match([pair])[0].keypoints)
        spent += time.process_time() - start
    answers = {outcome.pair: outcome for outcome in fast}
    for record, answer in zip(records, slow, strict=True):
        assert np.allclose(points(answers[record.id].predicted), answer, atol=1e-3, equal_nan=True)
    return cached, spent / len(records) * len(dataset)


def test_each_image_is_encoded_once_and_the_answers_are_the_same(root: Path) -> None:
    dataset = open_dataset("coco", root)
    assert (len(dataset), len(dataset.images())) == (552, 24)
    seconds_of(dataset, network, 12)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif("KBC_DATA" not in os.environ, reason="KBC_DATA is not set")
def test_on_photographs(capsys: pytest.CaptureFixture[str]) -> None:
    """ResNet-18 at 256 px, 500 pairs of 50 photographs; `-s` shows the figures."""
    home = Path(os.environ["KBC_DATA"])
    whole = open_dataset("coco", home / "data" / "livestock-small")
    kept = set(whole.images()[:50])
    records = [record for record in whole if record.source_path in kept and record.target_path in kept]
    mirrored = [
        replace(
            r,
            id=f"{r.id} back",
            source_path=r.target_path,
            target_path=r.source_path,
            keypoints=r.target_keypoints,
            target_keypoints=r.keypoints,
        )
        for r in records
    ]
    dataset = whole.subset([*records, *mirrored][:500])
    assert len(dataset) == 500
    assert len(dataset.images()) <= 50
    weights = home / "weights" / "resnet18-imagenet-to-layer3.pth"
    cached, uncached = seconds_of(dataset, lambda: resnet18(weights=weights), 25)
    with capsys.disabled():
        shown = f"{cached:.1f} s cached, {uncached:.1f} s uncached, {uncached / cached:.1f} ×"
        print(f"\n500 pairs of 50 photographs: {shown}")
