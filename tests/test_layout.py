"""The layout: planted transforms are found, wrong answers outvoted, bent parts followed, exact answers left alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from kbc import layout
from kbc.tuning import TUNING, Tuning

GRID = np.stack(np.meshgrid(np.arange(8) * 12.0 + 40, np.arange(8) * 12.0 + 30), axis=-1).reshape(-1, 2)


def moved(points: np.ndarray, scale: float = 1.7, turn: float = 0.5, mirror: bool = False) -> np.ndarray:
    x = -points[:, 0] if mirror else points[:, 0]
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    return np.stack([cos * x - sin * points[:, 1] + 300, sin * x + cos * points[:, 1] - 20], axis=1)


def fitted(
    source: np.ndarray, answers: np.ndarray, share: np.ndarray | None = None, tuning: Tuning = TUNING
) -> tuple[layout.Layout, np.ndarray]:
    """The layout of one problem, and the chosen places; answers (S, 2), (S, M, 2) or (S, P, M, 2)."""
    places = torch.from_numpy(answers.reshape(len(source), *((1, 1, 2) if answers.ndim == 2 else answers.shape[1:])))
    places = places if places.ndim == 4 else places[:, None]
    shares = (
        torch.ones(places.shape[:3], dtype=torch.float64) / places.shape[2]
        if share is None
        else torch.from_numpy(share)
    )
    points = torch.from_numpy(source)[None]
    area = torch.tensor([1e6], dtype=torch.float64)
    start = layout.propose(points, places[None, :, 0], shares[None, :, 0], area, most=1)[:, 0]
    cell = torch.zeros((1, places.shape[1]), dtype=torch.float64)
    found = layout.fit(points, places[None], shares[None], start, cell, tuning)
    return found, layout.place(found, places[None], shares[None], tuning)[0].numpy()


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("turn", [0.0, 0.5, 3.0])
def test_a_planted_transform_is_found_among_wrong_answers(mirror: bool, turn: float) -> None:
    truth = moved(GRID, turn=turn, mirror=mirror)
    rng = np.random.default_rng(3)
    answers = truth.copy()
    wrong = rng.permutation(len(GRID))[:40]
    answers[wrong] = rng.uniform(-100, 700, (40, 2))
    found, places = fitted(GRID, answers)
    assert np.abs(places - truth).max() < 1.0
    assert bool(found.mirrored[0]) is mirror
    assert float(found.trust[0, 0]) == pytest.approx(24 / 64, abs=0.08)
    assert float(found.size[0]) == pytest.approx(1.7 * 84, rel=0.02)


def test_exact_answers_are_left_where_they_are() -> None:
    bent = moved(GRID) + 6 * np.sin(GRID[:, ::-1] / 30)
    _, places = fitted(GRID, bent)
    assert np.abs(places - bent).max() < 0.01 * 1.7 * 84


def test_scattered_answers_are_corrected_by_their_neighbours() -> None:
    truth = moved(GRID)
    answers = truth + np.random.default_rng(5).normal(0, 10, truth.shape)
    _, places = fitted(GRID, answers)
    assert np.linalg.norm(places - truth, axis=1).mean() < 0.5 * np.linalg.norm(answers - truth, axis=1).mean()


def test_near_points_that_err_alike_bend_the_layout_less() -> None:
    """What a network cannot tell apart it shifts together; only truly independent answers would be worth more."""
    truth = moved(GRID)
    rng = np.random.default_rng(5)
    answers = truth + rng.normal(0, 3, truth.shape)
    together = np.abs(GRID - GRID.mean(0)).max(1) < 8  # four of them
    answers[together] += (10.0, 0.0)
    error = {}
    for count in (1.0, TUNING.shared_errors):
        _, places = fitted(GRID, answers, tuning=replace(TUNING, shared_errors=count))
        error[count] = np.linalg.norm(places - truth, axis=1)[together].mean()
    assert TUNING.shared_errors > 1
    assert error[TUNING.shared_errors] < 0.95 * error[1.0]


def test_a_bent_part_is_followed() -> None:
    """A limb of six points hangs elsewhere in the target; a rigid layout would put it where the source had it."""
    truth = moved(GRID)
    limb = GRID[:, 1] > 100
    truth[limb] += [0.0, 25.0]
    _, places = fitted(GRID, truth)
    assert np.abs(places - truth).max() < 0.05 * 1.7 * 84


def test_a_point_that_moves_by_itself_is_followed_where_the_others_are_exact() -> None:
    size = 1.7 * 84
    for scatter, most in ((0.005, 0.02), (0.05, np.inf)):  # a matcher that errs more has its points corrected
        answers = moved(GRID) + np.random.default_rng(6).normal(0, scatter * size, GRID.shape)
        answers[27] = moved(GRID)[27] + [0.05 * size, 0.0]
        _, places = fitted(GRID, answers)
        away = np.linalg.norm(places[27] - answers[27]) / size
        assert away < most
        assert scatter < 0.05 or away > 0.03


def test_neighbours_choose_between_look_alikes() -> None:
    truth = moved(GRID)
    other = truth[::-1].copy()
    answers = np.stack([truth, other], axis=1)
    swapped = np.random.default_rng(1).permutation(len(GRID))[:20]
    answers[swapped] = answers[swapped, ::-1]
    likelier_first = np.tile([0.6, 0.4], (len(GRID), 1, 1))
    _, places = fitted(GRID, answers[:, None], likelier_first)
    assert np.abs(places - truth).max() < 1.0


def test_passes_that_err_in_different_points_are_right_together() -> None:
    truth = moved(GRID)
    rng = np.random.default_rng(2)
    passes = []
    for _ in range(3):
        answers = truth + rng.normal(0, 4, truth.shape)
        answers[rng.permutation(len(GRID))[:25]] += rng.uniform(-200, 200, (25, 2))
        passes.append(answers)
    alone = np.mean([np.linalg.norm(fitted(GRID, one)[1] - truth, axis=1).mean() for one in passes])
    _, places = fitted(GRID, np.stack(passes, axis=1)[:, :, None])
    assert np.linalg.norm(places - truth, axis=1).mean() < alone


def test_evidence_tells_a_layout_from_chance() -> None:
    rng = np.random.default_rng(4)
    truth = moved(GRID)
    good = float(fitted(GRID, truth)[0].evidence)
    noisy = float(fitted(GRID, truth + rng.normal(0, 8, truth.shape))[0].evidence)
    chance = float(fitted(GRID, rng.uniform(0, 400, truth.shape))[0].evidence)
    assert good > noisy + 1 > chance + 1.5
    assert float(fitted(GRID, truth * 40)[0].evidence) == pytest.approx(good, abs=0.05)  # the same at any size


@pytest.mark.parametrize("answers", [GRID[:1] + 5, np.full((4, 2), 7.0), np.zeros((1, 2))])
def test_too_little_to_tell_is_no_failure(answers: np.ndarray) -> None:
    _, places = fitted(GRID[: len(answers)], answers)
    assert np.isfinite(places).all()
    assert np.abs(places.mean(axis=0) - answers.mean(axis=0)).max() < 2.0


def test_a_batch_gives_what_one_by_one_gives() -> None:
    rng = np.random.default_rng(6)
    answers = np.stack([moved(GRID, turn=t) + rng.normal(0, 3, GRID.shape) for t in (0.0, 1.0, 2.0)])
    source = torch.from_numpy(np.stack([GRID] * 3))
    places = torch.from_numpy(answers)[:, :, None, None]
    share = torch.ones(places.shape[:4], dtype=torch.float64)
    area = torch.full((3,), 1e6, dtype=torch.float64)
    start = layout.propose(source, places[:, :, 0], share[:, :, 0], area, most=1)[:, 0]
    together = layout.fit(source, places, share, start, torch.zeros((3, 1), dtype=torch.float64), TUNING)
    for index in range(3):
        alone, _ = fitted(GRID, answers[index])
        assert torch.allclose(together.points[index], alone.points[0], atol=1e-8)


def test_further_places_find_what_the_likeliest_do_not() -> None:
    """Every point's likeliest place is wrong; where its second one lies, all agree."""
    truth = moved(GRID, scale=0.5)
    rng = np.random.default_rng(8)
    wrong = rng.uniform(0, 1000, GRID.shape)
    places = np.stack([wrong, truth], axis=1)[:, None]
    share = np.tile([0.7, 0.3], (len(GRID), 1))[:, None]
    start = layout.propose(
        torch.from_numpy(GRID)[None],
        torch.from_numpy(places[None, :, 0]),
        torch.from_numpy(share[None, :, 0]),
        torch.tensor([1e6], dtype=torch.float64),
        most=1,
    )[:, 0]
    assert np.abs(start(torch.from_numpy(GRID)[None])[0].numpy() - truth).max() < 5


def test_answers_all_in_one_place_are_no_tiny_object() -> None:
    """Half of the answers fall on one spot, as unsure matchers' do; the others lie where one transform puts them."""
    truth = moved(GRID)
    answers = truth.copy()
    answers[::2] = np.random.default_rng(9).normal(900, 2, answers[::2].shape)
    _, places = fitted(GRID, answers)
    assert np.abs(places[1::2] - truth[1::2]).max() < 10
