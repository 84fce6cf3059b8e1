"""The KBC rule: keypoints → box → small? → window; and the same transform for training."""

from __future__ import annotations

import numpy as np
import pytest

from kbc.config import KBCConfig
from kbc.cropping import crop_pair, is_small, window_around
from kbc.errors import InputError
from kbc.geometry import Box, Window
from kbc.matchers.protocol import input_hw
from kbc.types import Pair
from tests.conftest import draw_scene
from tests.test_geometry import centroid, draw_blob

DEFAULT = KBCConfig()
IMAGE = (480, 640)
MATCHER = (256, 256)


def rule(points: object, config: KBCConfig = DEFAULT, image: tuple[int, int] = IMAGE) -> Window:
    box = Box.around(np.array(points, dtype=np.float64))
    assert box is not None
    return window_around(box, image, MATCHER, config)


def inside(window: Window, image: tuple[int, int] = IMAGE) -> bool:
    box = window.box
    return 0 <= box.x0 < box.x1 <= image[1] and 0 <= box.y0 < box.y1 <= image[0]


def test_the_window_is_centred_on_the_box_with_its_margin() -> None:
    config = KBCConfig(margin=0.25)
    window = rule([[200, 200], [299, 239]], config)
    assert window.size_hw == MATCHER
    assert window.box.center == pytest.approx((250, 220), abs=0.5)
    assert window.box.width == pytest.approx(99 * 1.5, abs=1)
    assert window.box.height == window.box.width  # a square, so that the object is not stretched
    wider = rule([[200, 200], [299, 239]], KBCConfig(margin=1.0))
    assert wider.box.width == pytest.approx(99 * 3, abs=1)
    assert wider.box.center == pytest.approx((250, 220), abs=0.5)


@pytest.mark.parametrize(
    "points",
    [
        [[320.0, 240.0]],
        [[320.0, 240.0]] * 4,
        [[300.0, 240.0], [320.0, 240.0], [339.0, 240.0]],
        [[320.0, 200.0], [320.0, 239.0]],
        [[np.nan, np.nan], [320.0, 240.0], [np.nan, 3.0]],
    ],
    ids=["single", "coincident", "row", "column", "with NaN"],
)
@pytest.mark.parametrize("limit", [1.0, 2.0, 8.0])
def test_flat_and_single_points_get_a_window_that_is_not_enlarged_too_much(points: list, limit: float) -> None:
    window = rule(points, KBCConfig(max_enlargement=limit))
    assert inside(window)
    assert max(window.scale_xy) <= limit * 1.02  # whole pixels
    assert min(window.box.width, window.box.height) >= 2
    known = np.array(points)[~np.isnan(points).any(axis=1)]
    assert window.box.contains(known).all()


def test_no_defined_point_has_no_box() -> None:
    assert Box.around(np.full((3, 2), np.nan)) is None
    assert Box.around(np.empty((0, 2))) is None


@pytest.mark.parametrize(
    "points",
    [
        [[0.0, 0.0]],
        [[639.0, 479.0]],
        [[0.0, 479.0], [30.0, 470.0]],
        [[-0.49, 100.0], [5.0, 130.0]],
        [[639.49, 0.0], [620.0, 20.0]],
    ],
)
@pytest.mark.parametrize("aspect", ["square", "image"])
def test_border_windows_are_shifted_not_cut(points: list, aspect: str) -> None:
    config = KBCConfig(aspect=aspect)
    window = rule(points, config)
    assert inside(window)
    assert window.box.contains(np.array(points)).all()
    centred = rule(np.array(points) - np.mean(points, axis=0) + [320.0, 240.0], config)
    assert window.box.width == pytest.approx(centred.box.width, abs=1)
    assert window.box.height == pytest.approx(centred.box.height, abs=1)


def test_points_outside_the_image_still_give_a_window_inside() -> None:
    for points in ([[-90.0, -40.0]], [[900.0, 700.0], [800.0, 500.0]], [[-50.0, 240.0], [700.0, 240.0]]):
        assert inside(rule(points))


@pytest.mark.parametrize("image", [(480, 640), (640, 480), (300, 900), (900, 300)])
@pytest.mark.parametrize("points", [[[150.0, 150.0]], [[150.0, 140.0], [171.0, 160.0]]])
def test_the_images_aspect_is_kept(image: tuple[int, int], points: list) -> None:
    window = rule(points, KBCConfig(aspect="image"), image)
    assert window.box.width / window.box.height == pytest.approx(image[1] / image[0], rel=0.06)
    assert max(window.scale_xy) <= DEFAULT.max_enlargement * 1.03  # on either axis
    assert window.box.contains(np.array(points)).all()


@pytest.mark.parametrize("aspect", ["square", "image"])
def test_a_matcher_of_unknown_input_gets_the_images_longer_side(aspect: str) -> None:
    box = Box(300, 200, 340, 230)
    window = window_around(box, IMAGE, None, KBCConfig(aspect=aspect))
    assert max(window.size_hw) == 640
    assert window.scale_xy[0] == pytest.approx(window.scale_xy[1], rel=0.02)  # nothing is stretched
    assert max(window.scale_xy) <= 8.1
    stripe = window_around(Box(1, 300, 2, 305), (3000, 3), None, KBCConfig(aspect=aspect))
    assert inside(stripe, (3000, 3))
    assert min(stripe.size_hw) >= 1


@pytest.mark.parametrize("image", [(1, 1), (2, 2), (1, 50), (20000, 20), (20, 20000)])
@pytest.mark.parametrize("matcher", [None, MATCHER, (64, 320)])
@pytest.mark.parametrize("aspect", ["square", "image"])
def test_any_image_has_a_window(image: tuple[int, int], matcher: tuple[int, int] | None, aspect: str) -> None:
    middle = Box.centered((image[1] / 2, image[0] / 2), 0, 0)
    window = window_around(middle, image, matcher, KBCConfig(aspect=aspect))
    assert inside(window, image)
    assert window.cut(np.zeros((*image, 3), np.uint8)).shape == (*window.size_hw, 3)
    if matcher is not None:
        assert window.size_hw == matcher


def test_small_is_what_the_matcher_sees() -> None:
    config = KBCConfig(small_below=0.5)
    assert is_small(Box(0, 0, 319, 0), IMAGE, config)
    assert not is_small(Box(0, 0, 320, 0), IMAGE, config)  # half the width
    assert not is_small(Box(0, 0, 10, 240), IMAGE, config)  # half the height, which is stretched to the same side
    assert is_small(Box(5, 5, 5, 5), IMAGE, config)  # one point
    assert is_small(Box(0, 0, 639, 479), IMAGE, KBCConfig(small_below=1.0))


def test_declared_input_sizes() -> None:
    class Declares:
        def __init__(self, size: object) -> None:
            self.input_size = size

    assert input_hw(object()) is None
    assert input_hw(Declares(None)) is None
    assert input_hw(Declares(256)) == (256, 256)
    assert input_hw(Declares((256, 320))) == (256, 320)
    assert input_hw(Declares([240, 320])) == (240, 320)


def blob_pair(**boxes: object) -> tuple[Pair, np.ndarray]:
    """A blob in a corner of the source and another in the target, at known sub-pixel places."""
    here, there = np.array([[41.3, 57.8]]), np.array([[133.6, 30.25]])
    source, target = draw_blob((200, 260), *here[0], 2.0), draw_blob((180, 240), *there[0], 2.0)
    return Pair(source, target, here, **boxes), there  # type: ignore[arg-type]


@pytest.mark.parametrize("size_hw", [None, (128, 128), (96, 160), (400, 400)])
@pytest.mark.parametrize("aspect", ["square", "image"])
def test_crop_pair_moves_pixels_and_points_alike(size_hw: tuple[int, int] | None, aspect: str) -> None:
    pair, there = blob_pair()
    cropped = crop_pair(pair, there, size_hw, KBCConfig(aspect=aspect))
    for image, points, window, truth in (
        (cropped.pair.source, cropped.pair.keypoints, cropped.source_window, pair.keypoints),
        (cropped.pair.target, cropped.target_keypoints, cropped.target_window, there),
    ):
        assert image.shape[:2] == (size_hw or window.size_hw)
        assert min(window.scale_xy) > 1
        original = centroid(image) / 1.0
        assert np.abs(window.to_image(original) - truth).max() <= 0.05
        assert np.abs(original - points).max() <= 0.05 * max(window.scale_xy)
        assert np.abs(window.to_image(points) - truth).max() < 1e-9


def test_crop_pair_keeps_a_large_side_whole() -> None:
    scene = draw_scene(2)
    pair = Pair(scene, scene, [[10.0, 10.0], [300.0, 230.0]])
    cropped = crop_pair(pair, [[100.0, 100.0], [120.0, 110.0]], (128, 128))
    whole = Box.whole((240, 320))
    assert cropped.source_window.box == whole
    assert cropped.target_window.box != whole
    assert cropped.pair.source.shape == cropped.pair.target.shape == (128, 128, 3)


def test_crop_pair_takes_the_points_of_both_sides_and_given_boxes() -> None:
    scene = draw_scene(2)
    here = [[10.0, 10.0], [300.0, 230.0], [20.0, 16.0]]
    there = [[100.0, 100.0], [np.nan, np.nan], [110.0, 104.0]]
    cropped = crop_pair(Pair(scene, scene, here), there, (128, 128))
    assert cropped.source_window.box.longest < 60  # the far point has no partner and does not count
    assert cropped.pair.keypoints.shape == (3, 2)
    assert np.isnan(cropped.target_keypoints[1]).all()
    boxed = crop_pair(Pair(scene, scene, here, None, (150, 20, 200, 80)), there, (128, 128))
    assert boxed.target_window.box.center == pytest.approx((175, 50), abs=1)
    assert boxed.source_window == cropped.source_window


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((2, 2)), r"shape \(1, 2\).*\(2, 2\)"),
        (np.full((1, 2), np.nan), "at least one"),
        ([[1, 2, 3]], r"\(N, 2\)"),
    ],
)
def test_crop_pair_refuses(points: object, message: str) -> None:
    pair, _ = blob_pair()
    with pytest.raises(InputError, match=message) as caught:
        crop_pair(pair, points)
    assert "target_keypoints" in str(caught.value)
