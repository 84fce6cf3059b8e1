"""PCK against an independent computation, and the traps that make published figures differ."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbc.errors import InputError
from kbc.evaluation import PCK, Protocol, correct, pck, reference_length
from kbc.geometry import Box, Points

THRESHOLDS = ("bbox", "bbox-kp", "img", "bbox-kp-padded")


def by_hand(
    predicted: list[list[float]],
    truth: list[list[float]],
    size_hw: tuple[int, int],
    box: tuple[float, float, float, float],
    protocol: Protocol,
) -> list[list[bool | None]]:
    """The same in plain Python, point by point, sharing no code with kbc; None on the very edge of a disc."""
    height, width = size_hw
    sy, sx = 1.0, 1.0
    if protocol.frame != "original":
        sy, sx = protocol.frame[0] / height, protocol.frame[1] / width
    known = [(x, y) for x, y in truth if x == x and y == y]
    if not known:
        return []
    xs, ys = [((x + 0.5) * sx - 0.5) for x, _ in known], [((y + 0.5) * sy - 0.5) for _, y in known]
    if protocol.threshold == "bbox-kp-padded":
        xs, ys = [*xs, -1.0], [*ys, -1.0]
    length = {
        "bbox": max((box[2] - box[0]) * sx, (box[3] - box[1]) * sy),
        "bbox-kp": max(max(xs) - min(xs), max(ys) - min(ys)),
        "bbox-kp-padded": max(max(xs) - min(xs), max(ys) - min(ys)),
        "img": max(height * sy, width * sx),
    }[protocol.threshold]
    rows: list[list[bool | None]] = []
    for (px, py), (tx, ty) in zip(predicted, truth, strict=True):
        if tx != tx or ty != ty:
            continue
        d = math.sqrt(((px - tx) * sx) ** 2 + ((py - ty) * sy) ** 2)
        edge = [abs(d - a * length) < 1e-9 and d > 0 for a in protocol.alphas]
        near = [(d <= a * length) if protocol.inclusive else (d < a * length) for a in protocol.alphas]
        rows.append([None if e else n for e, n in zip(edge, near, strict=True)])
    return rows


coordinate = st.floats(0, 90).map(lambda v: round(v, 2))
maybe = st.one_of(coordinate, st.just(math.nan))


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(st.tuples(maybe, maybe, maybe, maybe), min_size=1, max_size=12),
    threshold=st.sampled_from(THRESHOLDS),
    frame=st.one_of(st.just("original"), st.tuples(st.integers(20, 300), st.integers(20, 300))),
    inclusive=st.booleans(),
    size=st.tuples(st.integers(100, 200), st.integers(100, 200)),
)
def test_equals_an_independent_computation(
    rows: list[tuple[float, float, float, float]], threshold: Any, frame: Any, inclusive: bool, size: tuple[int, int]
) -> None:
    predicted, truth = [list(r[:2]) for r in rows], [list(r[2:]) for r in rows]
    protocol = Protocol((0.03, 0.1, 0.3), threshold, frame, inclusive)
    box = (10.0, 12.0, 61.5, 47.25)
    wanted = by_hand(predicted, truth, size, box, protocol)
    found = correct(predicted, truth, size, Box(*box), protocol)
    assert found.shape == (len(wanted), 3)
    for row, wanted_row in zip(found.tolist(), wanted, strict=True):
        assert all(a == b for a, b in zip(row, wanted_row, strict=True) if b is not None)
    if any(cell is None for row in wanted for cell in row):
        return
    shares = list(pck(predicted, truth, size, Box(*box), protocol).values())
    if wanted:
        assert shares == pytest.approx([sum(column) / len(wanted) for column in zip(*wanted, strict=True)])
    else:
        assert all(math.isnan(share) for share in shares)


# --- the traps: in each the wrong way gives another number -------------------------------------------------------

TRUTH = np.array([[110.0, 60.0], [150.0, 80.0]])


def moved(points: Points, x: float = 0.0, y: float = 0.0) -> Points:
    return np.asarray(points + np.array([x, y]))


def test_trap_padding_makes_the_threshold_several_times_larger() -> None:
    right = Protocol((0.1,), "bbox-kp")
    assert reference_length(right, TRUTH, (200, 200)) == 40.0
    assert reference_length(Protocol((0.1,), "bbox-kp-padded"), TRUTH, (200, 200)) == 151.0
    off_by_ten = moved(TRUTH, x=10.0)
    assert pck(off_by_ten, TRUTH, (200, 200), protocol=right) == {0.1: 0.0}
    assert pck(off_by_ten, TRUTH, (200, 200), protocol=Protocol((0.1,), "bbox-kp-padded")) == {0.1: 1.0}
    assert "not comparable" in str(Protocol((0.1,), "bbox-kp-padded"))


def test_trap_a_stretched_frame_and_a_threshold_scaled_by_one_axis() -> None:
    """A photo twice as wide as high, stretched to a square: the disc becomes an ellipse, and a threshold scaled by
    the height's ratio alone is another one again."""
    size, box = (100, 200), Box(100, 50, 160, 90)  # 60 × 40
    along_x, along_y = moved(TRUTH, x=5.9), moved(TRUTH, y=5.9)
    original, square = Protocol((0.1,), "bbox"), Protocol((0.1,), "bbox", (100, 100))
    assert reference_length(original, TRUTH, size, box) == 60.0
    assert reference_length(square, TRUTH, size, box) == 40.0  # the box becomes 30 × 40
    assert pck(along_x, TRUTH, size, box, original) == {0.1: 1.0}
    assert pck(along_y, TRUTH, size, box, original) == {0.1: 1.0}
    assert pck(along_x, TRUTH, size, box, square) == {0.1: 1.0}
    assert pck(along_y, TRUTH, size, box, square) == {0.1: 0.0}
    y_scaled = 60.0 * 100 / 100  # the box's longer side times the ratio of the heights
    wrong = np.hypot(*((along_y - TRUTH) * np.array([0.5, 1.0])).T) <= 0.1 * y_scaled
    assert wrong.mean() == 1.0


def test_trap_the_reversed_direction() -> None:
    """Large object in the source, small one in the target: answering target → source is judged far too mildly."""
    source, target = np.array([[10.0, 10.0], [90.0, 10.0]]), np.array([[50.0, 50.0], [60.0, 50.0]])
    protocol, size = Protocol((0.1,), "bbox-kp"), (100, 100)
    assert pck(moved(target, x=3.0), target, size, protocol=protocol) == {0.1: 0.0}
    assert pck(moved(source, x=3.0), source, size, protocol=protocol) == {0.1: 1.0}
    assert pck(target, source, size, protocol=protocol) == {0.1: 0.0}  # a right answer judged by the other image


def test_trap_less_or_equal() -> None:
    truth = np.array([[0.0, 0.0], [40.0, 0.0]])
    answer = moved(truth, x=4.0)
    assert pck(answer, truth, (99, 99), protocol=Protocol((0.1,), "bbox-kp")) == {0.1: 1.0}
    assert pck(answer, truth, (99, 99), protocol=Protocol((0.1,), "bbox-kp", inclusive=False)) == {0.1: 0.0}


# --- averages, merging, messages ---------------------------------------------------------------------------------


def example() -> PCK:
    """cat: pairs with 1 of 1 and 0 of 3 right; dog: one pair with 1 of 2; and a pair without points."""
    metric = PCK(Protocol((0.1,), "img"))
    far, near = [90.0, 90.0], [10.0, 10.0]
    metric.update([near], [near], (100, 100), category="cat")
    metric.update([far] * 3, [near] * 3, (100, 100), category="cat")
    metric.update([near, [math.nan] * 2], [near, near], (100, 100), category="dog")
    metric.update([near], [[math.nan] * 2], (100, 100), category="dog")
    return metric


def test_averages_by_hand() -> None:
    result = example().compute()
    assert result.per_point == {0.1: pytest.approx(2 / 6)}
    assert result.per_image == {0.1: pytest.approx((1 + 0 + 0.5) / 3)}
    assert result.categories == {"cat": {0.1: 0.5}, "dog": {0.1: 0.5}}
    assert result.per_category == {0.1: 0.5}
    assert (result.pairs, result.points, result.empty) == (3, 6, 1)
    shown = str(result)
    for word in ("img", "original", "<=", "per point", "per image", "per category", "0.1"):
        assert word in shown


def test_reset_and_nothing() -> None:
    metric = example()
    metric.reset()
    result = metric.compute()
    assert (result.pairs, result.points) == (0, 0)
    assert math.isnan(result.per_image[0.1])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 7), st.sampled_from("abc")), min_size=2, max_size=9), st.randoms())
def test_merging_in_any_order_is_exact(pairs: list[tuple[int, str]], random: Any) -> None:
    generator = np.random.default_rng(len(pairs))
    protocol = Protocol((0.05, 0.1, 0.15), "img")
    whole, parts = PCK(protocol), [PCK(protocol) for _ in range(3)]
    for count, category in pairs:
        truth = generator.uniform(0, 100, (count, 2))
        answer = truth + generator.normal(0, 8, (count, 2))
        whole.update(answer, truth, (100, 100), category=category)
        random.choice(parts).update(answer, truth, (100, 100), category=category)
    random.shuffle(parts)
    merged = parts[0].merge(parts[1], parts[2].state())
    assert merged.compute() == whole.compute()  # every digit


def test_measures_of_different_protocols_do_not_merge() -> None:
    with pytest.raises(InputError, match="same protocol"):
        PCK(Protocol(threshold="img")).merge(PCK(Protocol(threshold="bbox")))


@pytest.mark.parametrize(
    "wrong",
    [
        {"alphas": ()},
        {"alphas": (0.1, -1)},
        {"alphas": (math.nan,)},
        {"alphas": 0.1},
        {"alphas": "0.1"},
        {"alphas": (None,)},
        {"threshold": "box"},
        {"frame": (0, 5)},
        {"frame": (5,)},
        {"frame": 5},
        {"frame": None},
        {"instance": "every"},
    ],
)
def test_nonsense_protocols(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Protocol(**wrong)


def test_on_any_instance_each_point_may_lie_on_any_object() -> None:
    own = np.array([[10.0, 10.0], [30.0, 10.0], [20.0, 30.0]])
    other = np.array([[60.0, 60.0], [80.0, 60.0], [np.nan, np.nan]])
    found = np.array([[60.5, 60.0], [30.0, 10.5], [70.0, 80.0]])  # the other's, its own, where nothing is known
    strict = Protocol((0.1,), "bbox-kp")  # 2 px of the own points' extent
    assert correct(found, own, (100, 100), protocol=strict, others=[other])[:, 0].tolist() == [False, True, False]
    free = Protocol((0.1,), "bbox-kp", instance="any")
    assert correct(found, own, (100, 100), protocol=free, others=[other])[:, 0].tolist() == [True, True, False]
    metric = PCK(free)
    metric.update(found, own, (100, 100), others=[other])
    assert metric.compute().per_point == {0.1: pytest.approx(2 / 3)}
    nothing = np.full((3, 2), np.nan)
    assert not correct(nothing, own, (100, 100), protocol=free, others=[other]).any()
    assert str(free) == f"{strict}; on any instance"


def test_what_is_missing_is_said() -> None:
    with pytest.raises(InputError, match="bbox-kp"):
        correct(TRUTH, TRUTH, (9, 9), protocol=Protocol(threshold="bbox"))
    with pytest.raises(InputError, match="shape"):
        correct(TRUTH[:1], TRUTH, (9, 9), protocol=Protocol(threshold="img"))


def test_every_protocol_prints_all_it_is() -> None:
    texts = {
        str(Protocol((0.1,), threshold, frame, inclusive))  # type: ignore[arg-type]
        for threshold, frame, inclusive in itertools.product(THRESHOLDS, ("original", (240, 240)), (True, False))
    }
    assert len(texts) == 16
    assert any("resized(240,240)" in text and " < " in text for text in texts)


@pytest.mark.parametrize("alphas", [(0.1, 0.1), (0.1, 0.1 + 1e-9)])
def test_tolerances_that_would_be_called_the_same_are_refused(alphas: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="`alphas` must be numbers that differ in six digits"):
        Protocol(alphas)
