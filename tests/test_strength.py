"""Around a simulated matcher of any strength, on real layouts, KBC gains: the dial in a short form."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import kbc
from kbc.data import open_dataset

Example = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def strength() -> Iterator[ModuleType]:
    folder = str(Path(__file__).parent / "benchmarks")
    sys.path.insert(0, folder)
    import strength

    yield strength
    sys.path.remove(folder)


def drawn(strength: ModuleType, root: Path, count: int) -> list[Example]:
    """Source and target drawn as maps of places, and their points."""
    dataset = open_dataset("coco", root)
    seen = Counter(path for path, _ in {(r.target_path, r.target_box) for r in dataset})
    chosen = [r for r in dataset if seen[r.target_path] == 1]
    draw = strength.Drawn(dataset)
    found = []
    for record in chosen[:: len(chosen) // count][:count]:
        pair = dataset.load(record)
        source, target = (
            draw(path, image.shape[:2])
            for path, image in ((record.source_path, pair.source), (record.target_path, pair.target))
        )
        found.append((source, target, record.keypoints, record.target_keypoints))
    return found


@pytest.mark.parametrize("function", [False, True])
@pytest.mark.parametrize(("noise", "least"), [(0.6, 78.0), (1.2, 50.0), (2.0, 13.0)])
def test_weak_and_strong_matchers_gain(
    strength: ModuleType, kbc_data: Path, noise: float, least: float, function: bool
) -> None:
    matcher = kbc.from_features(strength.encoder(noise), stride=16, size=256, normalise=False)
    asked = strength.hidden(matcher) if function else matcher
    alone, fast, paper = [], [], []
    for name in ("treadscan", "livestock-small"):
        examples = drawn(strength, kbc_data / "data" / name, 6)
        alone.append(strength.pck(kbc.wrap(asked, passes=0), examples))
        paper.append(strength.pck(kbc.wrap(asked, localizer="predicted", passes=1), examples))
        fast.append(strength.pck(kbc.wrap(asked), examples))
    assert np.mean(fast) >= least  # absolute: a weaker matcher cannot pass by gaining more
    assert np.mean(fast) >= np.mean(paper) - 6
    assert np.mean(fast) >= np.mean(alone) + 8
    assert np.mean(np.concatenate(fast) < np.concatenate(alone) - 10) <= 0.1
