"""One pair followed through every stage of KBC: `python examples/figures/stages.py docs/images/stages.jpg`."""

from __future__ import annotations

import sys

import numpy as np

import kbc
from kbc import viz
from kbc.data.scenes.render import scene_pair
from kbc.geometry import Box


def main(path: str) -> None:
    """Match a drawn pair with `kbcnet` and draw what happened, left to right and top to bottom."""
    scene = scene_pair(2, variation=0.3, turn=5.0, mirror=0.0)
    pair, truth, tolerance = scene.pair, scene.target_keypoints, 0.1 * scene.target_box.longest
    result = kbc.wrap(kbc.load_matcher("kbcnet")).match([pair])[0]
    source, target = result.source_window, result.target_window
    assert source is not None
    assert target is not None
    near = [np.linalg.norm(points - truth, axis=1) <= tolerance for points in (result.coarse, result.keypoints)]
    extent = Box(*pair.keypoints.min(axis=0) - 3, *pair.keypoints.max(axis=0) + 4)

    figure, axes = viz.new_axes(2, 3, size=(3.6, 3.0))
    viz.draw_image(axes[0], pair.source, title="1  your points in the source; dotted: their extent")
    viz.draw_points(axes[0], pair.keypoints, size=viz.SMALL)
    viz.draw_box(axes[0], extent)
    coarse = f"2  coarse pass: {near[0].sum()} of {len(truth)} right"
    viz.draw_image(axes[1], pair.target, title=coarse)
    viz.draw_points(axes[1], result.coarse, right=near[0], size=viz.SMALL)
    viz.draw_image(axes[2], pair.target, title=f"3  the target window, found by {result.localizer}")
    viz.draw_box(axes[2], target)
    viz.draw_image(axes[3], source.cut(pair.source), title="4  what the matcher sees of the source")
    viz.draw_points(axes[3], source.to_window(pair.keypoints))
    viz.draw_image(axes[4], target.cut(pair.target), title="5  fine pass and one layout, in the window")
    viz.draw_points(axes[4], target.to_window(result.keypoints), right=near[1])
    viz.draw_image(axes[5], pair.target, title=f"6  the answer: {near[1].sum()} of {len(truth)} right")
    viz.draw_points(axes[5], result.keypoints, right=near[1], size=viz.SMALL)
    figure.suptitle(
        "a drawn pair, kbcnet (trained on such drawings), budget 'fast'; right: within a tenth of the object",
        fontsize=10,
    )
    viz.save(figure, path)


if __name__ == "__main__":
    main(sys.argv[1])
