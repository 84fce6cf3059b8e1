"""Support points: what a matcher is asked beside the keypoints, in the same call.

A keypoint alone says little about where its object went; eighty points around it that moved together say where the
object is, how it is turned, scaled and bent, and how far this matcher can be trusted. Asking for them costs a matcher
next to nothing, and any matcher can be asked. Their number and reach are our choice, measured
(`examples/results/tuning.md`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kbc.geometry import Box, Points, Window, defined
from kbc.images import require_cv2
from kbc.tuning import TUNING, Tuning

SizeHW = tuple[int, int]


def object_box(keypoints: Points, source_box: Box | None, size_hw: SizeHW, tuning: Tuning = TUNING) -> Box:
    """The object's box in the source, pixel edges: the one given, else the keypoints'.

    Fewer than `min_points_for_extent` keypoints do not show how large their object is: then it is a square around them,
    half as large again as they reach and no smaller than `guessed_side` of the image. Our choice, measured
    (`examples/results/few_points.md`).

    Args:
        keypoints: (N, 2) source pixels, at least one of them defined unless a box is given.
        size_hw: (height, width) of the source.
    """
    if source_box is not None:
        return source_box
    box = Box.around(keypoints) or Box.whole(size_hw)
    if int(defined(keypoints).sum()) >= tuning.min_points_for_extent:
        return box
    side = max(1.5 * box.longest, tuning.guessed_side * max(size_hw))
    return Window.fit(Box.centered(box.center, side, side), size_hw).box


def support_points(
    keypoints: Points, box: Box, size_hw: SizeHW, count: int | None = None, tuning: Tuning = TUNING
) -> Points:
    """A regular grid of about `count` points over the object: (G, 2) source pixels, inside the image.

    Where the keypoints have an extent, over their convex hull and a little around it, so that few points lie on the
    background; else over the box.

    Args:
        keypoints: (K, 2) source pixels, all defined.
        box: the object's, pixel edges, of positive area or not.
        size_hw: (height, width) of the source.
        count: how many; the tuned number by default, none for 0.

    >>> import numpy as np
    >>> from kbc.geometry import Box
    >>> len(support_points(np.empty((0, 2)), Box(0, 0, 40, 40), (40, 40), count=16))
    16
    """
    count = tuning.support_count if count is None else count
    if count <= 0:
        return np.empty((0, 2))
    hull = _hull(keypoints, tuning)
    reach = tuning.support_reach * box.longest
    frame = (Box.around(keypoints) or box).grown(reach) if hull is not None else box
    width, height = max(frame.width, 1.0), max(frame.height, 1.0)
    filled = 1.0 if hull is None else float(_inside(_grid(frame, 24, 24), hull, reach).mean())
    step = (width * height * max(filled, 0.05) / count) ** 0.5
    points = _grid(frame, max(round(width / step), 1), max(round(height / step), 1))
    if hull is not None:
        points = points[_inside(points, hull, reach)]
    return points[Box.whole(size_hw).contains(points)]


def _grid(frame: Box, columns: int, rows: int) -> Points:
    """The middles of columns × rows equal parts of a box, as points."""
    x = frame.x0 + (np.arange(columns) + 0.5) * frame.width / columns - 0.5
    y = frame.y0 + (np.arange(rows) + 0.5) * frame.height / rows - 0.5
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _hull(keypoints: Points, tuning: Tuning) -> Points | None:
    """The corners (E, 2) of the keypoints' convex hull, in order; None where it has no area or too few are known."""
    if len(keypoints) < tuning.min_points_for_extent:
        return None
    cv2 = require_cv2()
    hull = cv2.convexHull(keypoints.astype(np.float32)).reshape(-1, 2).astype(np.float64)
    box = Box.around(keypoints)
    assert box is not None
    thick = cv2.contourArea(hull.astype(np.float32)) > 0.02 * box.longest**2
    return hull if len(hull) >= 3 and thick else None


def _inside(points: Points, hull: Points, reach: float) -> npt.NDArray[np.bool_]:
    """Mask of the points inside a convex polygon moved out by `reach` pixels on every side."""
    along = np.roll(hull, -1, axis=0) - hull
    normal = np.stack([along[:, 1], -along[:, 0]], axis=1) / np.maximum(np.linalg.norm(along, axis=1), 1e-9)[:, None]
    away = points @ normal.T - (hull * normal).sum(axis=1)
    turned = np.sign(((hull.mean(axis=0) - hull) * normal).sum())
    return np.asarray((-turned * away).max(axis=1) <= reach, dtype=np.bool_)
