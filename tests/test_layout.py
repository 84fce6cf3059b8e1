"""The joint layout: a planted pose is found, the prior decides between look-alikes, strong evidence still wins."""

from __future__ import annotations

import numpy as np
import pytest

from kbc import layout
from kbc.geometry import Box, Window

LAYOUT = np.array([[10.0, 10.0], [50.0, 12.0], [30.0, 40.0], [12.0, 44.0], [55.0, 38.0]])
WINDOW = Window(Box(100, 50, 356, 306), (256, 256))


def planted(points: np.ndarray, strength: float = 1.0, noise: float = 0.1) -> np.ndarray:
    """Maps (N, 32, 32) over WINDOW with a bump at each point, and noise."""
    cells = WINDOW.resized((32, 32)).to_window(points)
    ys, xs = np.mgrid[:32, :32]
    rng = np.random.default_rng(0)
    bumps = [np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / 4) for x, y in cells]
    return (strength * np.array(bumps) + noise * rng.normal(size=(len(points), 32, 32))).astype(np.float32)


@pytest.mark.parametrize("mirror", [1.0, -1.0])
@pytest.mark.parametrize("scale", [1.6, 3.0])
def test_vote_finds_a_planted_pose(mirror: float, scale: float) -> None:
    truth = (LAYOUT - LAYOUT.mean(0)) * [mirror * scale, scale] + [230.0, 180.0]
    spans = list(layout.spans(256.0, 0.15, 0.9, 1.2))
    best = layout.vote(layout.evidence(planted(truth)), WINDOW, LAYOUT, spans)[0]
    assert np.abs(best.points - truth).max() < 14  # sizes are tried in steps of a fifth, places in cells of 8 px
    assert best.score > 0.5


def test_a_turned_pose_needs_turns() -> None:
    turn = np.pi / 2
    around = LAYOUT - LAYOUT.mean(0)
    truth = around @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) * 2 + [230.0, 180.0]
    density = layout.evidence(planted(truth))
    upright = layout.vote(density, WINDOW, LAYOUT, [90.0])[0]
    turned = layout.vote(density, WINDOW, LAYOUT, [90.0], turns=(0.0, turn))[0]
    assert turned.score > upright.score + 0.3
    assert np.abs(turned.points - truth).max() < 10


def test_the_layout_decides_between_look_alikes() -> None:
    truth = (LAYOUT - LAYOUT.mean(0)) * 2 + [230.0, 180.0]
    maps = planted(truth)
    maps[0] += planted(np.array([[340.0, 290.0]] * 5), strength=1.2, noise=0.0)[0]  # a somewhat better twin, far away
    alone = np.unravel_index(maps[0].argmax(), (32, 32))
    twin = WINDOW.resized((32, 32)).to_image(np.array([[alone[1], alone[0]]], dtype=float))
    assert np.abs(twin - [340.0, 290.0]).max() < 8
    pose = layout.vote(layout.evidence(maps), WINDOW, LAYOUT, [90.0])[0]
    points, sure = layout.choose(maps, WINDOW, pose)
    assert np.abs(points - truth).max() < 6
    assert sure.shape == (5,)


def test_strong_evidence_wins_over_the_layout() -> None:
    moved = (LAYOUT - LAYOUT.mean(0)) * 2 + [230.0, 180.0]
    pose = layout.Pose(moved.copy(), 1.0)
    moved[3] += [38.0, 20.0]  # a bent limb, far outside the tolerance, where only its own map can place it
    points, _ = layout.choose(planted(moved, noise=0.02), WINDOW, pose)
    assert np.abs(points - moved).max() < 6


def test_many_points_exceed_no_channel_limit() -> None:
    rng = np.random.default_rng(1)
    many = rng.uniform(0, 60, (150, 2))
    truth = (many - many.mean(0)) * 2 + [230.0, 180.0]
    best = layout.vote(layout.evidence(planted(truth)), WINDOW, many, [float(np.ptp(truth, axis=0).max())])[0]
    assert np.abs(best.points - truth).max() < 10


def test_consensus_is_exact_and_ignores_outliers() -> None:
    for mirror in (1.0, -1.0):
        start = mirror * LAYOUT[:, 0] + 1j * LAYOUT[:, 1]
        placed = start * (1.7 * np.exp(0.4j)) + (300 + 90j)
        truth = np.stack([placed.real, placed.imag], axis=1)
        found = truth.copy()
        found[1] += 400
        pose = layout.consensus(LAYOUT, found)
        assert pose is not None
        assert np.abs(pose.points - truth).max() < 1e-6
        whole = layout.consensus(LAYOUT, truth)
        assert whole is not None
        assert whole.score > pose.score


def test_consensus_of_nothing() -> None:
    assert layout.consensus(LAYOUT[:1], LAYOUT[:1]) is None
    assert layout.consensus(np.ones((3, 2)), LAYOUT[:3]) is None


def test_evidence_does_not_depend_on_the_matchers_scale() -> None:
    maps = planted((LAYOUT - LAYOUT.mean(0)) * 2 + [230.0, 180.0])
    assert np.allclose(layout.evidence(maps), layout.evidence(maps * 40 + 7), atol=1e-2)
    assert np.allclose(layout.evidence(np.zeros((2, 4, 4), np.float32)), 1.0)


def test_answers_are_combined_where_most_weight_agrees() -> None:
    answers = np.array([[[0.0, 0.0], [5.0, 5.0]], [[2.0, 0.0], [np.nan, 5.0]], [[50.0, 0.0], [np.nan, np.nan]]])
    equal = np.ones((3, 2))
    places, around = layout.combine(answers, equal, reach=10.0)
    assert places[0] == pytest.approx([1.0, 0.0], abs=0.05)  # two of three, not their mean with the stray one
    assert places[1] == pytest.approx([5.0, 5.0])
    assert around.tolist()[1] == 0
    stray_is_sure = np.array([[0.2, 1.0], [0.2, 1.0], [1.0, 1.0]])
    places, around = layout.combine(answers, stray_is_sure, reach=10.0)
    assert places[0] == pytest.approx([50.0, 0.0], abs=1e-3)
    assert around[0] == 2
    assert np.isnan(layout.combine(np.full((2, 1, 2), np.nan), np.ones((2, 1)), 1.0)[0]).all()


def test_the_finding_sharpness_sees_a_small_object_beside_a_field_of_half_likenesses() -> None:
    whole = Window(Box(0, 0, 512, 512), (512, 512))
    spans = [512 * span for span in layout.spans(1.0, 0.06, 1.0)]
    truth = LAYOUT + np.array([400.0, 60.0])
    ys, xs = np.mgrid[:32, :32]
    off: dict[float, list[float]] = {layout.FINDING_SHARPNESS: [], layout.SHARPNESS: []}
    for seed in range(6):
        rng = np.random.default_rng(seed)
        maps = rng.normal(0, 0.05, (len(truth), 32, 32))
        for values, (x, y) in zip(maps, whole.resized((32, 32)).to_window(truth), strict=True):
            values += np.exp(-((xs - x) ** 2 + (ys - y) ** 2))
            values += 0.75 * ((xs < 20) & (ys > 10)) * (rng.random((32, 32)) < 0.5)
        for sharpness, errors in off.items():
            density = layout.evidence(maps.astype(np.float32), sharpness)
            errors.append(float(np.abs(layout.vote(density, whole, LAYOUT, spans)[0].points - truth).max()))
    assert max(off[layout.FINDING_SHARPNESS]) < 20  # one cell is 16
    assert np.median(off[layout.SHARPNESS]) > 100  # as sharp as within a window, the field wins
