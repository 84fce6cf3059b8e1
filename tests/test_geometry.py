"""Coordinates are right, not merely invertible: drawn blobs are cut and found again."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kbc.errors import InputError
from kbc.geometry import Box, Window, as_points, cell_centres, resize_points


def draw_blob(size_hw: tuple[int, int], x: float, y: float, sigma: float) -> np.ndarray:
    """A Gaussian blob whose true centre is the point (x, y), pixel centres at whole coordinates."""
    ys, xs = np.mgrid[: size_hw[0], : size_hw[1]]
    blob = np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * sigma**2))
    return np.repeat(np.rint(blob * 255).astype(np.uint8)[:, :, None], 3, axis=2)


def centroid(image: np.ndarray) -> np.ndarray:
    weight = image[..., 0].astype(np.float64)
    ys, xs = np.mgrid[: weight.shape[0], : weight.shape[1]]
    return np.array([[(xs * weight).sum(), (ys * weight).sum()]]) / weight.sum()


@pytest.mark.parametrize("scale", [0.3, 0.5, 0.77, 1.0, 1.5, 2.0, 3.3, 5.0, 8.0])
@pytest.mark.parametrize("enlarge", ["cubic", "linear"])
def test_a_cut_blob_is_found_where_it_was_drawn(scale: float, enlarge: str) -> None:
    x, y = 91.37, 70.81
    image = draw_blob((160, 200), x, y, sigma=4.0)
    window = Window.fit(Box(61.0, 41.0, 121.0, 101.0), (160, 200))
    window = window.resized((round(60 * scale), round(60 * scale)))
    found = window.to_image(centroid(window.cut(image, enlarge)))
    assert np.abs(found - [x, y]).max() <= 0.05
    mirrored = window.mirror()
    found = mirrored.to_image(centroid(mirrored.cut(image, enlarge)))
    assert np.abs(found - [x, y]).max() <= 0.05
    assert np.array_equal(mirrored.cut(image, enlarge), window.cut(image, enlarge)[:, ::-1])
    naive = centroid(window.cut(image, enlarge)) / window.scale_xy + [61.0, 41.0]
    if scale >= 2:  # the wrong convention passes every round trip and fails here
        assert np.abs(naive - [x, y]).max() > 0.2


def resampling(length: int, new: int, enlarge: str) -> np.ndarray:
    """The (new, length) matrix that resamples one axis as `cv2.resize` does: area, cubic (a = −0.75) or linear."""
    matrix = np.zeros((new, length))
    ratio = length / new
    rows = np.arange(new)
    if new < length:
        low, high = rows * ratio, (rows + 1) * ratio
        columns = np.arange(length)
        overlap = np.minimum(high[:, None], columns + 1) - np.maximum(low[:, None], columns)
        matrix = np.clip(overlap, 0.0, None) / ratio
    else:
        at = (rows + 0.5) * ratio - 0.5
        base = np.floor(at).astype(int)
        reach = (-1, 0, 1, 2) if enlarge == "cubic" else (0, 1)
        for step in reach:
            weight = cubic(at - base - step) if enlarge == "cubic" else 1 - np.abs(at - base - step)
            np.add.at(matrix, (rows, np.clip(base + step, 0, length - 1)), weight)
    return matrix


def cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel with a = −0.75, OpenCV's choice."""
    a, d = -0.75, np.abs(distance)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("size_hw", [(18, 25), (60, 60), (90, 40), (480, 300)])
def test_a_cut_is_one_resampling_of_each_axis(size_hw: tuple[int, int], mirrored: bool) -> None:
    rng = np.random.default_rng(3)
    image = cv2.GaussianBlur(rng.integers(0, 256, (120, 150, 3), dtype=np.uint8), (0, 0), 1.2)
    window = Window(Box(20, 30, 95, 90), size_hw, mirrored)
    part = image[30:90, 20:95].astype(np.float64)
    part = part[:, ::-1] if mirrored else part
    for enlarge in ("cubic", "linear"):
        rows, columns = resampling(60, size_hw[0], enlarge), resampling(75, size_hw[1], enlarge)
        expected = np.einsum("yh,hwc,xw->yxc", rows, part, columns).clip(0, 255)
        assert np.abs(expected - window.cut(image, enlarge)).max() <= 2.0


def test_arrays_and_tensors_agree() -> None:
    window = Window(Box(20, 30, 95, 90), (90, 40), True)
    points = np.random.default_rng(3).uniform(0, 100, (20, 2))
    assert np.abs(window.to_window(torch.from_numpy(points)).numpy() - window.to_window(points)).max() < 1e-3


edge = st.floats(-300, 900, allow_nan=False)
side = st.integers(1, 400)


@settings(max_examples=200, deadline=None)
@given(x0=edge, y0=edge, width=st.floats(0, 700), height=st.floats(0, 700), image_h=side, image_w=side)
def test_windows_stay_inside_and_are_invertible(
    x0: float, y0: float, width: float, height: float, image_h: int, image_w: int
) -> None:
    window = Window.fit(Box(x0, y0, x0 + width, y0 + height), (image_h, image_w))
    box = window.box
    assert 0 <= box.x0 < box.x1 <= image_w
    assert 0 <= box.y0 < box.y1 <= image_h
    assert box.width >= min(2, image_w)
    assert box.height >= min(2, image_h)
    image = np.zeros((image_h, image_w, 3), np.uint8)
    resized = window.resized((7, 9))
    assert resized.cut(image).shape == (7, 9, 3)
    corners = np.array([[box.x0 - 0.5, box.y0 - 0.5], [box.x1 - 0.5, box.y1 - 0.5], [3.3, -2.0]])
    inside = resized.to_window(corners)
    assert np.allclose(inside[:2], [[-0.5, -0.5], [8.5, 6.5]])  # edges map to edges
    assert np.allclose(resized.to_image(inside), corners, atol=1e-9)
    for seen in (resized, resized.mirror()):
        assert seen.box_to_image(seen.box_to_window(box)).iou(box) > 0.999
        corners = seen.to_window(np.array([[box.x0 - 0.5, box.y0 - 0.5], [box.x1 - 0.5, box.y1 - 0.5]])) + 0.5
        assert np.sort(corners, axis=0).ravel() == pytest.approx(seen.box_to_window(box).xyxy, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(x=st.floats(30, 70), y=st.floats(30, 50), length=st.integers(12, 40), new=st.integers(12, 160))
def test_any_window_keeps_a_blob_in_place(x: float, y: float, length: int, new: int) -> None:
    image = draw_blob((80, 100), x, y, sigma=1.5)
    window = Window.fit(Box.centered((x + 0.5, y + 0.5), length, length), (80, 100)).resized((new, new))
    found = window.to_image(centroid(window.cut(image)))
    assert np.abs(found - [x, y]).max() <= 0.05 + 0.02 * max(length / new, 1)  # quantised tails count when shrunk


def test_the_convention_of_cv2_resize_is_ours() -> None:
    image = draw_blob((60, 80), 33.2, 21.7, sigma=3.0)
    large = cv2.resize(image, (320, 240), interpolation=cv2.INTER_LINEAR)
    expected = resize_points(np.array([[33.2, 21.7]]), (60, 80), (240, 320))
    assert np.abs(centroid(large) - expected).max() < 0.05
    assert np.allclose(expected, [[(33.2 + 0.5) * 4 - 0.5, (21.7 + 0.5) * 4 - 0.5]])


def test_cell_centres_tile_the_image() -> None:
    x, y = cell_centres((2, 4), (32, 64))
    assert x.tolist() == [7.5, 23.5, 39.5, 55.5]
    assert y.tolist() == [7.5, 23.5]


def test_boxes() -> None:
    box = Box(10, 20, 30, 60)
    assert (box.width, box.height, box.longest, box.area, box.center) == (20, 40, 40, 800, (20, 40))
    assert box.grown(2).xyxy == (8, 18, 32, 62)
    assert box.clipped((50, 25)).xyxy == (10, 20, 25, 50)
    assert box.iou(Box(10, 20, 30, 40)) == 0.5
    assert Box(0, 0, 1, 1).iou(Box(2, 2, 3, 3)) == 0
    points = np.array([[9.5, 19.5], [29.49, 40.0], [29.5, 40.0], [np.nan, 30.0]])
    assert box.contains(points).tolist() == [True, True, False, False]  # half-open, at column floor(x + 0.5)
    around = Box.around(np.array([[1.0, 2.0], [5.0, 2.0], [np.nan, 0.0]]))
    assert around == Box(1.5, 2.5, 5.5, 2.5)
    assert Box.around(np.full((3, 2), np.nan)) is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Box(3, 0, 1, 4), "xyxy"),
        (lambda: Box(0, 0, float("nan"), 4), "finite"),
        (lambda: Box.of([1, 2, 3]), "four numbers"),
        (lambda: Window(Box(0.5, 0, 4, 4), (2, 2)), "whole"),
        (lambda: Window(Box(0, 0, 4, 4), (0, 2)), "1×1"),
        (lambda: Window(Box(0, 0, 9, 9), (4, 4)).cut(np.zeros((5, 5, 3), np.uint8)), "inside the image"),
        (lambda: as_points([[1, 2, 3]]), r"\(N, 2\)"),
        (lambda: as_points(np.zeros((2, 5))), "transpose"),
        (lambda: as_points([[np.inf, 0]]), "infinite"),
        (lambda: as_points("ab"), "numbers"),
    ],
)
def test_bad_geometry_is_refused(build: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()  # type: ignore[operator]
