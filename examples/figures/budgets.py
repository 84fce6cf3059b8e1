"""What each budget looks at in one target: `python examples/figures/budgets.py docs/images/budgets.jpg`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import kbc
from kbc import viz
from kbc.config import COST
from kbc.data.scenes.render import scene_pair
from kbc.geometry import Box
from kbc.probe import Probe


@contextmanager
def recorded() -> Iterator[list[Box]]:
    """The boxes in the target that KBC looks at meanwhile."""
    seen: list[Box] = []
    look = Probe.look

    def noting(probe: Probe, requests: Any) -> Any:
        seen.extend(request.target.box for request in requests)
        return look(probe, requests)

    Probe.look = noting  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        Probe.look = look  # type: ignore[method-assign]


def main(path: str) -> None:
    """Match two drawn pairs with each budget; a row each, a panel for each budget: its windows and its answers."""
    figure, axes = viz.new_axes(2, 3, size=(4.0, 3.2))
    for seed, row in zip((18, 16), (axes[:3], axes[3:]), strict=True):
        scene = scene_pair(seed, variation=0.5, turn=15.0, object_fraction=(0.08, 0.12))
        tolerance = 0.1 * scene.target_box.longest
        for ax, budget in zip(row, COST, strict=True):
            with recorded() as boxes:
                wrapped = kbc.wrap(kbc.load_matcher("kbcnet"), budget=budget)  # type: ignore[arg-type]
                result = wrapped.match([scene.pair])[0]
            right = np.linalg.norm(result.keypoints - scene.target_keypoints, axis=1) <= tolerance
            looks = f"{len(boxes)} looks, cost {result.cost:.1f}"
            viz.draw_image(ax, scene.pair.target, title=f"{budget}: {looks}, {right.sum()} of {len(right)} right")
            for box in boxes:
                viz.draw_box(ax, box, colour="white")
            viz.draw_box(ax, result.target_window, colour="tab:blue")
            viz.draw_points(ax, result.keypoints, right=right, size=viz.SMALL)
    viz.save(figure, path)


if __name__ == "__main__":
    main(sys.argv[1])
