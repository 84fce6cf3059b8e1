"""Confidence: what counts for and against a point, whatever the matcher; and points left out by it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kbc
from kbc.confidence import CLUES, clues, confidence
from kbc.errors import InputError
from kbc.tuning import TUNING

GRID = np.stack(np.meshgrid(np.arange(6) * 20.0, np.arange(6) * 20.0), axis=-1).reshape(-1, 2)
SIZE = 100.0


def state(usable: np.ndarray | None = None) -> Any:
    there = np.ones(len(GRID), bool) if usable is None else usable
    return SimpleNamespace(points=GRID, usable=there, target_hw=(400, 500))


def seen(answers: np.ndarray) -> Any:
    return SimpleNamespace(answers=answers[:, None], share=np.ones((len(answers), 1)))


def clue(name: str, found: np.ndarray) -> np.ndarray:
    return found[:, CLUES.index(name)]


def test_answers_that_agree_are_surer_than_scattered_ones() -> None:
    answer = GRID + 50
    rng = np.random.default_rng(0)
    exact = clues(state(), answer, SIZE, [seen(answer)], [answer])
    wild = clues(state(), answer, SIZE, [seen(answer + rng.normal(0, 40, GRID.shape))], [answer])
    np.testing.assert_allclose(clue("neighbours", exact), 1)
    np.testing.assert_allclose(clue("own", exact), 1)
    assert clue("neighbours", wild).mean() < 0.3
    assert confidence(exact, False, TUNING).min() > 0.8
    assert confidence(exact, False, TUNING).mean() > confidence(wild, False, TUNING).mean() + 0.3


def test_one_wrong_answer_costs_itself_and_its_neighbours_and_those_far_away_nothing() -> None:
    answer = GRID + 50
    said = answer.copy()
    said[0] += 80
    found = confidence(clues(state(), answer, SIZE, [seen(said)], [answer]), False, TUNING)
    right = confidence(clues(state(), answer, SIZE, [seen(answer)], [answer]), False, TUNING)
    assert (found[:2] < right[:2] - 0.05).all()
    assert found[-1] == pytest.approx(right[-1], abs=1e-6)


def test_passes_that_disagree_cost_confidence_though_each_agrees_with_itself() -> None:
    answer = GRID + 50
    other = answer + np.array([25.0, 0.0])
    same = confidence(clues(state(), answer, SIZE, [seen(answer)] * 2, [answer] * 2), False, TUNING)
    apart = confidence(clues(state(), answer, SIZE, [seen(answer)] * 2, [answer, other]), False, TUNING)
    assert (apart < same - 0.04).all()
    alone = clues(state(), answer, SIZE, [seen(answer)], [other])
    assert clue("spread", alone) == pytest.approx(0.25)  # an answer that is not where its pass's layout puts it
    assert clue("alone", alone).min() == 1


def test_a_point_is_surer_where_the_matcher_finds_back_from_its_neighbours() -> None:
    answer = GRID + 50
    lost = GRID.copy()
    lost[:12] += 60
    lost[12] = np.nan
    found = clues(state(), answer, SIZE, [seen(answer)] * 2, [answer] * 2, [lost, lost])
    back = clue("neighbours", found)
    assert back[:3].max() < 0.2
    assert back[-1] == pytest.approx(1, abs=1e-3)
    half = clues(state(), answer, SIZE, [seen(answer)] * 2, [answer] * 2, [lost, GRID])
    np.testing.assert_allclose(clue("neighbours", half), (1 + back) / 2)
    assert (np.diff(confidence(found, True, TUNING)[[0, -1]]) > 0.3).all()


def test_units_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    answer = GRID + 50
    said = answer + rng.normal(0, 8, GRID.shape)
    found = clues(state(), answer, SIZE, [seen(said)], [answer])
    large = SimpleNamespace(points=GRID * 3, usable=np.ones(len(GRID), bool), target_hw=(1600, 2000))
    again = clues(large, answer * 4, SIZE * 4, [seen(said * 4)], [answer * 4])
    np.testing.assert_allclose(found, again)


def test_points_that_were_not_asked_have_no_say() -> None:
    answer = GRID + 50
    said = answer.copy()
    said[10] += 500
    usable = np.ones(len(GRID), bool)
    usable[10] = False
    found = clues(state(usable), answer, SIZE, [seen(said)], [answer])
    others = np.delete(clue("neighbours", found), 10)
    np.testing.assert_allclose(others, 1)


def test_less_sure_points_are_left_out_on_request() -> None:
    photo = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    rng = np.random.default_rng(2)

    def noisy(source: np.ndarray, target: np.ndarray, points: np.ndarray) -> np.ndarray:
        return np.asarray(points + rng.normal(0, 6, points.shape) * (points[:, :1] > 80))

    pair = kbc.Pair(photo, photo, [[20, 20], [20, 100], [140, 20], [140, 100], [np.nan, np.nan]])
    result = kbc.wrap(noisy).match([pair])[0]
    assert result.confidence is not None
    assert np.isnan(result.confidence[4])
    middle = float(np.nanmedian(result.confidence))
    found = result.at_least(middle)
    sure = np.nan_to_num(result.confidence) >= middle
    assert 0 < sure.sum() < 4
    np.testing.assert_array_equal(found.keypoints[sure], result.keypoints[sure])
    assert np.isnan(found.keypoints[~sure]).all()
    np.testing.assert_array_equal(found.confidence, result.confidence)
    np.testing.assert_array_equal(result.at_least(0.0).keypoints, result.keypoints)
    rng = np.random.default_rng(2)  # the same noise again
    asked = kbc.wrap(noisy, min_confidence=middle).match([pair])[0]
    np.testing.assert_array_equal(asked.keypoints, found.keypoints)
    np.testing.assert_array_equal(asked.coarse, result.coarse)
    assert asked.origin == result.origin
    rng = np.random.default_rng(2)
    wrapped = kbc.wrap(noisy, min_confidence=middle)
    np.testing.assert_array_equal(wrapped(photo, photo, pair.keypoints), found.keypoints)


def test_what_has_no_confidence_is_not_sifted_by_it() -> None:
    photo = np.zeros((40, 60, 3), np.uint8)
    result = kbc.wrap(lambda s, t, p: p, passes=0).match([kbc.Pair(photo, photo, [[4, 5]])])[0]
    with pytest.raises(InputError, match="with confidence"):
        result.at_least(0.5)
    with pytest.raises(InputError, match=r"in \[0, 1\]"):
        kbc.wrap(lambda s, t, p: p).match([kbc.Pair(photo, photo, [[4, 5]])])[0].at_least(2)


@pytest.mark.parametrize("options", [{"passes": 0}, {"localizer": "predicted"}])
def test_a_least_confidence_is_refused_where_none_is_told(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="`min_confidence` must be 0 with passes=0 or localizer='predicted'"):
        kbc.wrap(lambda s, t, p: p, min_confidence=0.5, **options)
    with pytest.raises(InputError, match="`min_confidence` must be less than or equal to 1, received"):
        kbc.wrap(lambda s, t, p: p, min_confidence=1.5)


def test_points_outside_the_picture_are_not_sure() -> None:
    """KBC has nothing to judge them by; without a least confidence the matcher's own answer stays."""
    photo = np.zeros((40, 60, 3), np.uint8)
    pair = kbc.Pair(photo, photo, [[4.0, 5.0], [51.0, 8.0]], source_box=(20, 20, 30, 30))
    free, least = (kbc.wrap(lambda s, t, p: p, min_confidence=p).match([pair])[0] for p in (0.0, 0.1))
    unknown = np.isnan(free.confidence) if free.confidence is not None else np.ones(2, bool)
    assert unknown.any()
    np.testing.assert_array_equal(np.isnan(least.keypoints[unknown]), True)
    assert not np.isnan(free.keypoints).any()


class Shifted:
    """Answers on whole images 60 px to the right, but for one keypoint; through windows as it is told."""

    def __init__(self, through_windows: Any) -> None:
        self.through_windows = through_windows

    def match(self, pairs: Any) -> list[kbc.Match]:
        return [kbc.Match(self._one(pair)) for pair in pairs]

    def _one(self, pair: kbc.Pair) -> np.ndarray:
        if pair.source.shape != (240, 320, 3):
            return np.asarray(self.through_windows(pair.keypoints))
        answers = pair.keypoints + np.array((60.0, 0.0))
        answers[0] = (300.0, 230.0)
        return answers


def coarse_confidence(through_windows: Any) -> np.ndarray:
    image = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    points = np.array([[60.0, 60.0], [100.0, 65.0], [95.0, 100.0], [62.0, 98.0], [80.0, 82.0]])
    result = kbc.wrap(Shifted(through_windows)).match([kbc.Pair(image, image, points)])[0]
    assert all(origin.startswith("coarse") for origin in result.origin)
    np.testing.assert_allclose(result.keypoints[0], (300, 230))
    assert result.confidence is not None
    return result.confidence


def failing(points: np.ndarray) -> np.ndarray:
    raise ValueError("not through windows")


def test_a_coarse_answer_against_its_neighbours_is_unsure_though_the_layout_is_not() -> None:
    found = coarse_confidence(failing)
    assert (found[1:] > 0.6).all()
    assert found[0] < 0.5 * found[1:].min()


def test_a_coarse_answer_is_less_sure_where_closer_looks_said_otherwise() -> None:
    scattered = coarse_confidence(lambda points: np.random.default_rng(1).uniform(0, 200, points.shape))
    assert (scattered[1:] < coarse_confidence(failing)[1:] - 0.2).all()
