"""Where is the object? Every strategy finds a planted one, at the cost that its docstring states."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import pytest

import kbc
from kbc.localize import LOCALIZERS
from kbc.types import Match, Pair
from tests.benchmarks.exact import CASES
from tests.conftest import draw_scene

POINTS = np.array([[40.0, 45.0], [90.0, 40.0], [65.0, 80.0], [45.0, 95.0], [95.0, 90.0]])


def planted() -> tuple[Pair, np.ndarray]:
    """A textured patch, large in the source, small in a cluttered target; and the true target points."""
    patch = draw_scene(7, (130, 130))
    source = cv2.GaussianBlur(draw_scene(8, (260, 260)), (0, 0), 3)
    source[60:190, 50:180] = patch
    target = cv2.GaussianBlur(draw_scene(9, (400, 400)), (0, 0), 3)
    small = cv2.resize(patch, (65, 65), interpolation=cv2.INTER_AREA)
    target[250:315, 280:345] = small
    truth = (POINTS + 0.5) / 2 - 0.5 + [280, 250]
    return Pair(source, target, POINTS + np.array([50, 60])), truth


@pytest.mark.parametrize(("localizer", "budget"), [("search", "thorough"), ("best", "balanced"), ("best", "thorough")])
def test_a_planted_object_is_found(localizer: str, budget: str) -> None:
    pair, truth = planted()
    result = kbc.wrap(kbc.load_matcher("hog"), localizer=localizer, budget=budget).match([pair])[0]
    assert result.target_window is not None
    assert result.target_window.box.contains(truth).all()
    assert result.target_window.box.longest < 200
    assert np.linalg.norm(result.keypoints - truth, axis=1).mean() < 5


class Scattered:
    """Right about most points on the whole image, wrong about one; and about nothing through windows."""

    name = "scattered"
    input_size = 128

    def match(self, pairs: Sequence[Pair]) -> list[Match]:
        answers = []
        for pair in pairs:
            answer = (pair.keypoints - [50, 60] + 0.5) / 2 - 0.5 + [280, 250]
            answer[0] = [5.0, 5.0]
            whole = pair.target.shape[:2] == (400, 400)
            answers.append(Match(answer if whole else np.full(pair.keypoints.shape, 64.0)))
        return answers


def test_consensus_is_not_pulled_by_a_stray_point() -> None:
    pair, truth = planted()
    windows = {}
    for localizer in ("predicted", "consensus"):
        wrapped = kbc.wrap(Scattered(), localizer=localizer, accept_margin=-10, passes=1)
        window = wrapped.match([pair])[0].target_window
        assert window is not None
        windows[localizer] = window.box
    assert windows["predicted"].longest > 350
    assert windows["consensus"].longest < 120
    assert windows["consensus"].contains(truth).all()


@pytest.mark.parametrize("localizer", sorted(LOCALIZERS))
@pytest.mark.parametrize(("budget", "most"), [("fast", 2.0), ("balanced", 4.0), ("thorough", 16.0)])
def test_no_strategy_exceeds_its_budget(localizer: str, budget: str, most: float) -> None:
    pair, truth = planted()
    box = kbc.Box.around(truth) if localizer == "given" else None
    asked = Pair(pair.source, pair.target, pair.keypoints, target_box=box)
    result = kbc.wrap(kbc.load_matcher("hog"), localizer=localizer, budget=budget).match([asked])[0]
    assert result.cost <= most
    if localizer == "predicted":
        assert result.cost <= 2.0


def test_an_object_that_is_not_there_is_refused() -> None:
    pair, _ = planted()
    flat = np.full((400, 400, 3), 128, np.uint8)
    result = kbc.wrap(kbc.load_matcher("hog"), budget="balanced").match([Pair(pair.source, flat, pair.keypoints)])[0]
    assert set(result.origin) <= {"coarse: refused", "coarse: no window"}
    assert np.array_equal(result.keypoints, result.coarse)


@pytest.mark.parametrize("scene", [2, 3])
@pytest.mark.parametrize("budget", ["balanced", "thorough"])
def test_a_mirror_image_of_equal_size_is_found(budget: str, scene: int) -> None:
    pair, truth = CASES["mirrored"](scene)
    result = kbc.wrap(kbc.load_matcher("hog"), budget=budget).match([pair])[0]
    assert np.abs(result.keypoints - truth).max() < 2
    assert result.target_window is not None


class Elsewhere:
    """Exact on the whole images; through a window it sees the object, less exactly, at a fifth in its corner."""

    name = "elsewhere"
    input_size = 128

    def match(self, pairs: Sequence[Pair]) -> list[Match]:
        found = []
        for pair in pairs:
            whole = pair.target.shape[:2] == (400, 600)
            spread = np.random.default_rng(0).normal(0, 0.3, pair.keypoints.shape)
            found.append(Match(pair.keypoints if whole else pair.keypoints * 0.2 + 4 + spread))
        return found


@pytest.mark.parametrize(("margin", "taken"), [(-1.5, False), (-10.0, True)])
def test_another_place_than_the_coarse_one_must_be_better(margin: float, taken: bool) -> None:
    image = draw_scene(4, (400, 600))
    points = np.array([[300.0, 200.0], [340.0, 205.0], [335.0, 240.0], [305.0, 236.0]])
    result = kbc.wrap(Elsewhere(), accept_margin=margin).match([Pair(image, image, points)])[0]
    assert (result.target_window is not None) == taken
    assert taken or np.allclose(result.keypoints, points)
    assert taken or set(result.origin) == {"coarse: refused"}


class Lured:
    """Puts the red square of the source on that of the target; on the whole target, less exactly, on another place."""

    name = "lured"
    input_size = 128

    def __init__(self) -> None:
        self.whole_targets = 0

    def match(self, pairs: Sequence[Pair]) -> list[Match]:
        answers = []
        for pair in pairs:
            corner, side = _red(pair.source)
            place, scale = _red(pair.target)
            if pair.target.shape[:2] == (400, 600):
                self.whole_targets += 1
                place, scale = (
                    np.array([60.0, 60.0]) + np.random.default_rng(2).normal(0, 1, pair.keypoints.shape),
                    20.0,
                )
            found = (pair.keypoints - corner) / side * scale + place
            lost = np.random.default_rng(1).uniform(0, 128, found.shape)
            answers.append(Match(found if np.isfinite(found).all() else lost))
        return answers


def _red(image: np.ndarray) -> tuple[np.ndarray, float]:
    """Where the red square begins and its side."""
    rows, columns = np.nonzero((image[..., 0] > 200) & (image[..., 1] < 60))
    if len(rows) == 0:
        return np.full(2, np.nan), np.nan
    return np.array([columns.min(), rows.min()]), float(np.ptp(columns) + 1)


@pytest.mark.parametrize(("budget", "whole"), [("fast", 1), ("balanced", 2), ("thorough", None)])
def test_thorough_searches_where_a_closer_look_is_no_surer(budget: str, whole: int | None) -> None:
    """All answers agree on a place that is wrong: nothing but looking there tells."""
    source = np.full((400, 600, 3), 90, np.uint8)
    target = source.copy()
    source[100:160, 200:260] = target[220:240, 420:440] = [255, 0, 0]
    points = np.array([[202.0, 103.0], [255.0, 104.0], [250.0, 155.0], [208.0, 150.0], [230.0, 130.0]])
    truth = (points - [200, 100]) / 3 + [420, 220]
    lured = Lured()
    result = kbc.wrap(lured, budget=budget).match([Pair(source, target, points)])[0]
    found = np.linalg.norm(result.keypoints - truth, axis=1).max() < 3
    assert found == (budget == "thorough")
    assert whole is None or lured.whole_targets == whole  # the rest is for closer looks
