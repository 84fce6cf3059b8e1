"""A small data set on disk, and runs that build a stub instead of a matcher."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from stubs import Shifted  # type: ignore[import-not-found]

from kbc.evaluation.plan import Run

SIZE = (48, 64)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six images of a "cow" with three points that do not move, in a COCO file with pairs along a circle."""
    folder = tmp_path / "cows"
    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    annotations = []
    for i in range(1, 7):
        small = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "images" / f"{i}.png"), cv2.resize(small, SIZE[::-1], interpolation=cv2.INTER_CUBIC))
        annotations.append(
            {
                "id": i,
                "image_id": i,
                "category_id": 1 + i % 2,
                "bbox": [10, 10, 20 + 4 * (i % 3), 20],
                "keypoints": [12, 12, 2, 28, 14, 2, 20, 28, 2 if i != 3 else 0],
            }
        )
    content = {
        "images": [{"id": i, "file_name": f"images/{i}.png"} for i in range(1, 7)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cow"}, {"id": 2, "name": "calf"}],
    }
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    pairs = [[i, i % 6 + 1] for i in range(1, 7)] + [[i, (i + 1) % 6 + 1] for i in range(1, 7)]
    (folder / "pairs.json").write_text(json.dumps({"pairs": pairs}), encoding="utf-8")
    return folder


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Shifted]]:
    """Let every `Run` build one of these matchers: mode "off" is 3 px off, any other mode is right."""

    def install(build: Callable[[Run], Shifted] | None = None) -> list[Shifted]:
        built: list[Shifted] = []

        def fake(self: Run) -> Shifted:
            built.append(build(self) if build else Shifted(3.0 if self.mode == "off" else 0.0))
            return built[-1]

        monkeypatch.setattr(Run, "build", fake)
        return built

    return install
