"""What fine passes are worth, and what several of them say together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kbc.geometry import Box, Window
from kbc.judge import Attempt, agreement_of, combined, missed

POINTS = np.array([[40.0, 45.0], [90.0, 40.0], [65.0, 80.0], [45.0, 95.0], [95.0, 90.0]])
WINDOW = Window(Box(20, 20, 120, 120), (256, 256))


def attempt(points: np.ndarray, window: Window = WINDOW, evidence: float = 1.0) -> Attempt:
    count = len(points)
    return Attempt(WINDOW, window, points, np.full(count, evidence), "heatmap", evidence, 0.5, np.zeros(count))


def test_agreement_and_the_way_back() -> None:
    scrambled = POINTS[[3, 0, 4, 1, 2]] * [1.0, 0.4]
    assert agreement_of(POINTS, POINTS * 2 + 5) > 0.95
    assert agreement_of(POINTS, scrambled) < agreement_of(POINTS, POINTS) - 0.3
    assert agreement_of(POINTS[:2], POINTS[:2]) == 0.5
    assert agreement_of(POINTS, np.full(POINTS.shape, 7.0)) < 0.3  # all in one place
    assert missed(POINTS, POINTS).max() == 0
    assert missed(POINTS, POINTS + np.array([5.5, 0.0])) == pytest.approx(np.full(5, 0.1))
    assert missed(POINTS, POINTS + 1000).min() == 0.5
    assert missed(POINTS, None).min() == 0.5
    assert missed(POINTS, np.full(POINTS.shape, np.nan)).min() == 0.5


def test_one_attempt_is_taken_as_it_is() -> None:
    assert combined([attempt(POINTS)]).points == pytest.approx(POINTS)


def test_two_worse_attempts_outvote_a_stray_point_of_the_best() -> None:
    stray = POINTS.copy()
    stray[1] = [30.0, 110.0]
    together = combined([attempt(stray, evidence=1.0), attempt(POINTS, evidence=0.9), attempt(POINTS, evidence=0.8)])
    assert together.points == pytest.approx(POINTS, abs=0.1)
    assert together.confidence is not None
    # Of the answer that each point was gathered around:
    assert together.confidence.tolist() == [1.0, 0.9, 1.0, 1.0, 1.0]
    assert combined([attempt(stray), attempt(POINTS, evidence=-3.0)]).points[1] == pytest.approx([30.0, 110.0])


def test_an_answer_that_does_not_come_back_has_less_say() -> None:
    stray = POINTS.copy()
    stray[1] = [30.0, 110.0]
    lost = replace(attempt(stray, evidence=1.0), misses=np.array([0.0, 0.5, 0.0, 0.0, 0.0]))
    home = replace(attempt(POINTS, evidence=0.6), misses=np.zeros(5))
    assert lost.score > home.score - 0.1  # nothing but the point's own way back decides
    assert combined([lost, home]).points == pytest.approx(POINTS, abs=0.1)


def test_an_answer_outside_its_own_window_has_no_say() -> None:
    elsewhere = Window(Box(20, 20, 80, 80), (256, 256))
    moved = POINTS + 10.0
    together = combined([attempt(POINTS), attempt(moved, elsewhere), attempt(moved, elsewhere)])
    outside = ~elsewhere.shows(moved)
    assert outside.sum() == 4
    assert together.points[outside] == pytest.approx(POINTS[outside], abs=0.1)


def test_the_other_side_of_the_mirror_and_attempts_far_worse_have_no_say() -> None:
    open_ = POINTS.copy()
    open_[1] = np.nan
    best = attempt(open_, evidence=2.0)
    junk = attempt(POINTS[::-1].copy(), evidence=-1.0)
    assert np.isnan(combined([best, junk]).points[1]).all()
    mirrored = replace(attempt(POINTS[::-1].copy(), evidence=2.4), source=WINDOW.mirror())
    together = combined([best, mirrored, mirrored])
    assert together.points[[0, 2, 3, 4]] == pytest.approx(POINTS[[0, 2, 3, 4]])
    assert np.isnan(together.points[1]).all()


def test_one_keypoint_is_combined_too() -> None:
    lone = combined(
        [attempt(POINTS[:1]), attempt(POINTS[:1] + 2.0), attempt(POINTS[:1] + np.array([40.0, 0.0]), evidence=0.9)]
    )
    assert np.abs(lone.points - (POINTS[:1] + 1.0)).max() < 0.5


def test_answers_that_no_window_shows_stay_the_best_attempts_own() -> None:
    far = attempt(POINTS + 500.0)
    unanswered = attempt(np.full(POINTS.shape, np.nan), evidence=0.5)
    assert combined([far, unanswered]).points == pytest.approx(POINTS + 500.0)
