"""Support points lie on the object, about as many as asked for."""

from __future__ import annotations

import numpy as np
import pytest

from kbc.geometry import Box
from kbc.support import object_box, support_points
from kbc.tuning import TUNING

HW = (300, 400)
TRIANGLE = np.array([[50.0, 50.0], [250.0, 60.0], [60.0, 240.0], [100.0, 100.0]])


def test_they_fill_the_keypoints_hull_and_little_more() -> None:
    box = Box.around(TRIANGLE)
    assert box is not None
    points = support_points(TRIANGLE, box, HW)
    assert abs(len(points) - TUNING.support_count) < 0.25 * TUNING.support_count
    reach = TUNING.support_reach * box.longest
    beyond = points @ np.array([180.0, 190.0]) - TRIANGLE[1] @ np.array([180.0, 190.0])  # across the long side
    assert beyond.max() / np.hypot(180, 190) <= reach + 1e-6
    assert (points[:, 0] >= 50 - reach - 1e-6).all()
    assert np.linalg.norm(points[:, None] - points[None], axis=2)[~np.eye(len(points), dtype=bool)].min() > 5


@pytest.mark.parametrize("keypoints", [TRIANGLE[:0], TRIANGLE[:2], TRIANGLE[[0, 0, 0, 0]], TRIANGLE * [1, 0] + [0, 9]])
def test_without_an_extent_they_fill_the_box(keypoints: np.ndarray) -> None:
    points = support_points(keypoints, Box(100, 50, 200, 150), HW, count=49)
    assert len(points) == 49
    assert points.min(axis=0).tolist() == pytest.approx([100 + 50 / 7 - 0.5, 50 + 50 / 7 - 0.5])
    assert points.max(axis=0).tolist() == pytest.approx([200 - 50 / 7 - 0.5, 150 - 50 / 7 - 0.5])


def test_none_are_asked_for_none_and_none_lie_outside_the_image() -> None:
    assert support_points(TRIANGLE, Box(0, 0, 9, 9), HW, count=0).shape == (0, 2)
    points = support_points(TRIANGLE[:1], Box(350, 250, 400, 300), (280, 380), count=49)
    assert 0 < len(points) < 49
    assert Box.whole((280, 380)).contains(points).all()


def test_few_points_get_a_square_around_them() -> None:
    box = object_box(TRIANGLE[:1], None, HW)
    assert (box.width, box.height) == (100.0, 100.0)
    assert box.contains(TRIANGLE[:1]).all()
    assert object_box(TRIANGLE, None, HW) == Box.around(TRIANGLE)
    assert object_box(TRIANGLE[:1], Box(1, 2, 3, 4), HW) == Box(1, 2, 3, 4)
