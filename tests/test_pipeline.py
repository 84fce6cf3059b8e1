"""KBC around a matcher: a perfect matcher stays perfect, a bad one is caught, nothing is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

import kbc
import kbc.data
from kbc.pipeline import KBCMatcher
from kbc.tuning import TUNING
from kbc.types import Match, Pair
from tests.conftest import Oracle, draw_scene, find_ramp, ramp, read_ramp

SIZE = (220, 250)
WARP = np.array([[0.9, 0.1, 12.3], [-0.08, 1.1, 7.7]])
SMALL = np.array([[60.2, 70.1], [85.7, 64.4], [71.3, 92.8], [90.0, 90.0]])


def truth(points: np.ndarray) -> np.ndarray:
    return points @ WARP[:, :2].T + WARP[:, 2]


def oracle_pair(points: np.ndarray = SMALL, **boxes: object) -> Pair:
    return Pair(ramp(SIZE), ramp(SIZE), points, **boxes)  # type: ignore[arg-type]


def error(result: Match, points: np.ndarray = SMALL) -> float:
    return float(np.abs(result.keypoints - truth(points)).max())


@pytest.mark.parametrize("localizer", ["predicted", "consensus", "search", "best"])
@pytest.mark.parametrize("budget", ["fast", "balanced", "thorough"])
def test_a_perfect_matcher_stays_perfect(localizer: str, budget: str) -> None:
    result = kbc.wrap(Oracle(WARP), localizer=localizer, budget=budget).match([oracle_pair()])[0]
    assert error(result) <= 0.05
    if localizer:
        assert result.origin == ("fine",) * 4
        assert result.target_window is not None
        assert result.target_window.scale_xy[0] > 1.5


@pytest.mark.parametrize(
    "options",
    [
        {"passes": 0},
        {"passes": 3},
        {"aspect": "image"},
        {"margin": 0.0},
        {"max_enlargement": 1.0},
        {"interpolation": "linear"},
        {"batch_size": 1},
        {"small_below": 1.0},
    ],
)
def test_every_option_keeps_a_perfect_matcher_perfect(options: dict[str, object]) -> None:
    assert error(kbc.wrap(Oracle(WARP), **options).match([oracle_pair()])[0]) <= 0.05


def test_given_boxes_replace_the_guess_and_are_named() -> None:
    target = kbc.Box.around(truth(SMALL))
    assert target is not None
    source = kbc.Box(50, 55, 100, 105)
    result = kbc.wrap(Oracle(WARP)).match([oracle_pair(source_box=source, target_box=target)])[0]
    assert error(result) <= 0.05
    assert result.given == {"source", "target"}
    assert result.localizer == "given"
    assert result.source_window is not None
    assert result.source_window.box.center == pytest.approx(source.center, abs=1)
    given = kbc.wrap(Oracle(WARP), localizer="given")
    assert error(given.match([oracle_pair(target_box=target.xyxy)])[0]) <= 0.05
    with pytest.raises(kbc.InputError, match="target_box"):
        given.match([oracle_pair()])


def test_tensors_and_floats_are_accepted() -> None:
    image = torch.from_numpy(ramp(SIZE)).permute(2, 0, 1).float() / 255
    wrapped = kbc.wrap(Oracle(WARP))
    for form in (image, image.permute(1, 2, 0).numpy(), np.dstack([ramp(SIZE), np.full(SIZE, 255, np.uint8)])):
        answer = wrapped(form, form, torch.from_numpy(SMALL))
        assert np.abs(answer - truth(SMALL)).max() <= 0.05


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_points_and_the_box_of_their_object_are_matched_in_a_window(count: int) -> None:
    points = SMALL[:count]
    result = kbc.wrap(Oracle(WARP)).match([oracle_pair(points, source_box=(50, 55, 100, 105))])[0]
    assert result.origin == ("fine",) * count
    assert error(result, points) <= 0.05
    assert result.target_window is not None
    inside = result.target_window.box.contains(truth(np.array([[50.0, 55.0], [99.0, 104.0]])))
    assert inside.all()  # all of the object, not the points alone


def test_a_batch_equals_pair_by_pair() -> None:
    rng = np.random.default_rng(5)
    pairs = []
    for count in (1, 2, 5, 3, 9, 4, 2):
        centre = rng.uniform(60, 150, 2)
        pairs.append(oracle_pair(centre + rng.uniform(-20, 20, (count, 2))))
    pairs.insert(3, oracle_pair(np.array([[5.0, 5.0], [240.0, 210.0]])))  # not small
    wrapped = kbc.wrap(Oracle(WARP), batch_size=3)
    seen: list[tuple[int, int]] = []
    together = wrapped.match(pairs, progress=lambda done, total: seen.append((done, total)))
    for pair, result in zip(pairs, together, strict=True):
        alone = kbc.wrap(Oracle(WARP)).match([pair])[0]
        assert np.abs(result.keypoints - alone.keypoints).max() <= 1e-4
        assert result.origin == alone.origin
    assert seen == [(3, 8), (6, 8), (8, 8)]


@pytest.mark.parametrize("budget", ["fast", "balanced"])
def test_a_batch_of_real_matching_equals_pair_by_pair(budget: str) -> None:
    """Pairs with 1 to 12 keypoints, so with other numbers of support points; a matcher that errs, so not every one."""
    rng = np.random.default_rng(0)
    scenes = [kbc.data.open_dataset("scenes", None, count=1, seed=seed, size_hw=(180, 240)) for seed in range(5)]
    pairs = [scene.load(scene[0]) for scene in scenes]
    asked = [rng.permutation(len(pair.keypoints))[:count] for pair, count in zip(pairs, (12, 1, 4, 7, 2), strict=True)]
    pairs = [Pair(p.source, p.target, p.keypoints[rows]) for p, rows in zip(pairs, asked, strict=True)]
    wrapped = kbc.wrap(kbc.load_matcher("hog"), budget=budget)
    for pair, result in zip(pairs, wrapped.match(pairs), strict=True):
        alone = wrapped.match([pair])[0]
        assert result.origin == alone.origin
        assert np.nanmax(np.abs(result.keypoints - alone.keypoints)) <= 1e-3


def test_nothing_small_is_one_call_and_says_so() -> None:
    oracle = Oracle(WARP)
    points = np.array([[5.0, 8.0], [240.0, 12.0], [120.0, 210.0]])
    result = kbc.wrap(oracle).match([oracle_pair(points)])[0]
    assert oracle.seen == 1
    assert result.calls == 1
    assert result.origin == ("whole",) * 3
    assert error(result, points) <= 0.5


def test_the_default_rule_calls_a_plain_matcher_twice() -> None:
    oracle = Oracle(WARP)
    result = kbc.wrap(oracle).match([oracle_pair()])[0]
    assert (oracle.seen, result.calls, result.cost) == (2, 2, 2.0)


@pytest.mark.parametrize(("budget", "most"), [("fast", 2), ("balanced", 4), ("thorough", 16)])
def test_budgets_are_kept(budget: str, most: int) -> None:
    points = np.array([[60.2, 70.1], [85.7, 64.4], [71.3, 92.8], [90.0, 90.0]])

    class Noisy(Oracle):
        def _one(self, pair: Pair) -> np.ndarray:
            rng = np.random.default_rng(self.seen)
            return super()._one(pair) + rng.normal(0, 8, pair.keypoints.shape)

    noisy = Noisy(WARP)
    result = kbc.wrap(noisy, budget=budget, passes=8).match([oracle_pair(points)])[0]
    assert noisy.seen <= most
    assert result.cost <= most
    hog = kbc.load_matcher("hog")
    result = kbc.wrap(hog, budget=budget, passes=4).match([Pair(draw_scene(1), draw_scene(2), points)])[0]
    assert hog.encoded * 0.5 == result.cost <= most  # type: ignore[attr-defined]


def test_undefined_points_stay_undefined() -> None:
    points = SMALL.copy()
    points[1] = np.nan, 3.0
    result = kbc.wrap(Oracle(WARP)).match([oracle_pair(points)])[0]
    assert np.isnan(result.keypoints[1]).all()
    assert np.abs(result.keypoints - truth(SMALL))[[0, 2, 3]].max() <= 0.05
    nothing = kbc.wrap(Oracle(WARP)).match([oracle_pair(np.full((2, 2), np.nan))])[0]
    assert np.isnan(nothing.keypoints).all()
    assert nothing.calls == 1


@pytest.mark.parametrize(
    "points",
    [
        [[100.0, 90.0]],
        [[100.0, 90.0]] * 3,
        [[90.0, 90.0], [110.0, 90.0], [120.0, 90.0]],
        [[0.0, 0.0], [12.0, 9.0]],
        [[249.0, 219.0], [240.0, 215.0], [244.0, 212.0]],
        [[-3.0, -2.0], [5.0, 6.0], [4.0, 9.0]],
    ],
    ids=["single", "coincident", "collinear", "corner", "other corner", "outside"],
)
def test_awkward_points(points: list[list[float]]) -> None:
    asked = np.array(points)
    identity = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    for budget in ("fast", "thorough"):
        result = kbc.wrap(Oracle(identity), budget=budget).match([oracle_pair(asked)])[0]
        assert np.abs(result.keypoints - asked).max() <= 0.1


def uncut(pair: Pair) -> bool:
    """Whether the source is the whole image, not a window of it."""
    return bool(pair.source.shape[:2] == SIZE and pair.source[0, 0, 0] == 0)


class Fails(Oracle):
    """Right on the whole images, broken through windows."""

    def __init__(self, how: str) -> None:
        super().__init__(WARP, max_batch=4)
        self.how = how

    def match(self, pairs: Sequence[Pair]) -> list[Match]:
        found = super().match(pairs)
        for index, pair in enumerate(pairs):
            if uncut(pair):
                continue
            if self.how == "raises":
                raise RuntimeError("out of memory")
            points = found[index].keypoints
            wrong = {"nan": points * np.nan, "shape": points[:-1], "far": points + 1e6, "edge": points * 0 - 60.0}
            found[index] = Match(wrong[self.how])
        return found


@pytest.mark.parametrize("how", ["raises", "nan", "shape", "far", "edge"])
@pytest.mark.parametrize("localizer", ["predicted", "best"])
def test_a_failed_fine_pass_keeps_the_coarse_answer_and_says_so(how: str, localizer: str) -> None:
    sound = oracle_pair(np.array([[5.0, 8.0], [240.0, 12.0], [120.0, 210.0]]))
    results = kbc.wrap(Fails(how), localizer=localizer).match([oracle_pair(), sound])
    assert error(results[0]) <= 0.05
    assert all(reason.startswith("coarse") for reason in results[0].origin)
    assert results[0].origin[0] != "coarse: not small"
    if how in ("raises", "shape", "far"):
        assert any("fine pass failed" in note for note in results[0].notes)
    assert results[1].origin == ("whole" if localizer == "best" else "coarse: not small",) * 3


class BothWays(Oracle):
    """An oracle that is also right when the pair is turned round; targets are told by their blue."""

    shares_features = True

    def __init__(self) -> None:
        super().__init__(WARP, max_batch=8)

    def match(self, pairs: Sequence[Pair]) -> list[Match]:
        return [Match(self._back(pair) if pair.source[..., 2].mean() > 50 else self._one(pair)) for pair in pairs]

    def _back(self, pair: Pair) -> np.ndarray:
        asked = read_ramp(pair.source, pair.keypoints) - WARP[:, 2]
        return find_ramp(pair.target, asked @ np.linalg.inv(WARP[:, :2]).T)


def blue_target(blue: int) -> Pair:
    target = ramp(SIZE)
    target[..., 2] = blue
    return Pair(ramp(SIZE), target, SMALL)


def test_passes_that_err_in_different_points_are_right_together() -> None:
    class Strays(BothWays):
        passes = 0

        def _one(self, pair: Pair) -> np.ndarray:
            answer = super()._one(pair)
            if uncut(pair):
                answer[0] += [60.0, 40.0]
            else:
                self.passes += 1
                answer[self.passes % 4] += [40.0, 25.0]
            return answer

    matcher = Strays()
    result = kbc.wrap(matcher, budget="thorough").match([blue_target(200)])[0]
    assert matcher.passes >= 2
    assert result.origin == ("fine",) * 4
    assert error(result) <= 0.5  # each pass alone is far off in one point


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda s, t, k: 1 / 0, "ZeroDivisionError"),
        (lambda s, t, k: k[:-1], r"shape \((\d+), 2\), received \((\d+), 2\)"),
        (lambda s, t, k: k.T, "shape"),
        (lambda s, t, k: None, "shape"),
        (lambda s, t, k: k * np.inf, "finite"),
        (lambda s, t, k: k + 5000, "target's pixels"),
    ],
)
def test_a_broken_matcher_is_named(function: object, message: str) -> None:
    matcher = kbc.as_matcher(function, name="mine")  # type: ignore[arg-type]
    with pytest.raises(kbc.MatcherError, match=message) as caught:
        kbc.wrap(matcher).match([oracle_pair()])
    assert "'mine'" in str(caught.value)


def test_what_is_no_sequence_of_pairs_is_refused() -> None:
    for given, received in ((None, "NoneType"), (oracle_pair(), "Pair")):
        with pytest.raises(kbc.InputError, match=f"sequence of kbc.Pair, received one {received}"):
            kbc.wrap(Oracle(WARP)).match(given)  # type: ignore[arg-type]


def test_wrong_numbers_of_matches_are_refused() -> None:
    class Short(Oracle):
        def match(self, pairs: Sequence[Pair]) -> list[Match]:
            return super().match(pairs)[:-1]

    with pytest.raises(kbc.MatcherError, match="one Match per pair"):
        kbc.wrap(Short(WARP)).match([oracle_pair(), oracle_pair()])


def test_a_matcher_cannot_spoil_its_callers_data() -> None:
    source, points = ramp(SIZE), SMALL.copy()

    def spoils(s: np.ndarray, t: np.ndarray, k: np.ndarray) -> np.ndarray:
        answer = k.copy()
        s[:], t[:], k[:] = 0, 0, -1
        return answer

    kbc.wrap(spoils)(source, source, points)
    assert np.array_equal(source, ramp(SIZE))
    assert np.array_equal(points, SMALL)

    class Spoils(Oracle):
        def match(self, pairs: Sequence[Pair]) -> list[Match]:
            pairs[0].source[:] = 0
            return super().match(pairs)

    with pytest.raises(kbc.MatcherError, match="read-only"):
        kbc.wrap(Spoils(WARP))(source, source, points)


def test_tiny_and_stripe_images() -> None:
    same = kbc.as_matcher(lambda s, t, k: k)
    for size in ((1, 1), (2, 2), (20, 20000), (3000, 3)):
        image = np.zeros((*size, 3), np.uint8)
        answer = kbc.wrap(same, budget="thorough")(image, image, [[0, 0]])
        assert np.abs(answer).max() <= 0.05
        hog = kbc.wrap(kbc.load_matcher("hog"))
        assert hog(image, image, [[0, 0]]).shape == (1, 2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: kbc.wrap(Oracle(WARP)).match([oracle_pair(np.empty((0, 2)))]), "at least one"),
        (lambda: kbc.wrap(Oracle(WARP)).match([(1, 2, 3)]), "kbc.Pair"),
        (lambda: kbc.wrap(Oracle(WARP)).match(oracle_pair()), r"match\(\[pair\]\)"),  # type: ignore[arg-type]
        (lambda: kbc.wrap(3), "function"),
        (lambda: kbc.wrap(Oracle(WARP), budgett="fast"), "'budget'"),
        (lambda: kbc.wrap(Oracle(WARP), budget="huge"), "budget"),
        (lambda: kbc.wrap(Oracle(WARP), margin=-1), "margin"),
        (lambda: Pair(ramp(SIZE), ramp(SIZE), [[1, 2, 3]]), r"\(N, 2\)"),
        (lambda: oracle_pair(source_box=(500, 500, 600, 600)), "meets the image"),
        (lambda: oracle_pair(target_box=(9, 9, 3, 12)), "xyxy"),
    ],
)
def test_bad_input_is_a_typed_error(build: object, message: str) -> None:
    with pytest.raises(kbc.InputError, match=message):
        build()  # type: ignore[operator]


def test_results_are_json_ready() -> None:
    import json

    points = SMALL.copy()
    points[0] = np.nan
    result = kbc.wrap(Oracle(WARP)).match([oracle_pair(points)])[0]
    data = json.loads(json.dumps(result.to_dict()))
    assert data["keypoints"][0] is None
    assert data["keypoints"][1] == pytest.approx(truth(SMALL)[1].tolist(), abs=0.05)
    assert data["target_window"]["size_hw"]
    assert set(data["seconds"]) == {"coarse", "matcher", "own", "total"}


def test_wrapping_again_only_changes_the_config() -> None:
    once = kbc.wrap(Oracle(WARP))
    again = kbc.wrap(once, budget="thorough")
    assert isinstance(again, KBCMatcher)
    assert again.matcher is once.matcher
    assert (once.config.budget, again.config.budget) == ("fast", "thorough")


def test_every_point_says_why_it_is_coarse() -> None:
    off = kbc.wrap(Oracle(WARP), passes=0).match([oracle_pair()])[0]
    assert off.origin == ("coarse: off",) * 4
    points = np.vstack([SMALL, [[np.nan, 1.0], [240.0, 200.0]]])  # the last lies far from the source box
    box = kbc.Box.around(SMALL)
    assert box is not None
    result = kbc.wrap(Oracle(WARP)).match([oracle_pair(points, source_box=box)])[0]
    assert result.origin == ("fine",) * 4 + ("undefined", "coarse: outside")
    elsewhere = kbc.wrap(Oracle(WARP)).match([oracle_pair(SMALL, source_box=kbc.Box(200, 180, 230, 200))])[0]
    assert elsewhere.origin == ("coarse: outside",) * 4
    assert np.abs(result.keypoints - truth(points))[[0, 1, 2, 3, 5]].max() <= 0.05

    class Silent(Oracle):
        """Answers nothing on whole images, so that nothing proposes a window."""

        def _one(self, pair: Pair) -> np.ndarray:
            return np.full(pair.keypoints.shape, np.nan)

    nothing = kbc.wrap(Silent(WARP)).match([oracle_pair()])[0]
    assert nothing.origin == ("coarse: no window",) * 4
    assert np.isnan(nothing.keypoints).all()


def test_points_of_another_image_are_refused_and_near_ones_asked() -> None:
    with pytest.raises(kbc.InputError, match=r"near the source image \(250×220\), received \[700.0, 30.0\]"):
        oracle_pair(np.array([[10.0, 10.0], [700.0, 30.0]]))
    with pytest.raises(kbc.InputError, match="numbers of shape"):
        oracle_pair(np.array([[10.0 + 1j, 10.0]]))
    half = oracle_pair(torch.tensor([[10.5, 20.25]], dtype=torch.bfloat16))  # type: ignore[arg-type]
    assert half.keypoints.tolist() == [[10.5, 20.25]]


class Mapped(Oracle):
    """An oracle with similarity maps that are broken on demand, on whole images or through windows."""

    def __init__(self, maps: object, where: str) -> None:
        super().__init__(WARP)
        self.maps, self.where = maps, where

    def similarity(self, pairs: Sequence[Pair]) -> list[np.ndarray]:
        whole = pairs[0].source.shape[:2] == SIZE and pairs[0].source[0, 0, 0] == 0
        if whole == (self.where == "whole"):
            return self.maps(pairs)  # type: ignore[operator,no-any-return]
        return [np.random.default_rng(0).random((len(pair.keypoints), 8, 8), dtype=np.float32) for pair in pairs]


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (lambda pairs: 1 / 0, "`similarity` of matcher 'oracle' raised ZeroDivisionError"),
        (lambda pairs: [], "one array per pair, received 0 for 1"),
        (lambda pairs: [np.zeros((3, 8, 8))], r"must give \(\d+, h, w\), received \(3, 8, 8\)"),
        (lambda pairs: [np.zeros((4, 64))], r"received \(4, 64\)"),
        (lambda pairs: [np.full((len(pairs[0].keypoints), 8, 8), np.nan)], "finite where the keypoint is defined"),
    ],
)
def test_broken_maps_are_named_and_lose_no_answer(maps: object, message: str) -> None:
    with pytest.raises(kbc.MatcherError, match=message):
        kbc.wrap(Mapped(maps, "whole")).match([oracle_pair()])
    result = kbc.wrap(Mapped(maps, "window"), localizer="consensus").match([oracle_pair()])[0]
    assert result.origin == ("coarse: failed",) * 4
    assert error(result) <= 0.05
    assert "fine pass failed" in result.notes[0]


class AskedBack(Oracle):
    """An oracle that tells by the source's blue which way it is asked, and perhaps fails backward."""

    shares_features = True

    def __init__(self, fails: bool = False) -> None:
        super().__init__(WARP)
        self.fails = fails
        self.returned: list[float] = []

    def match(self, pairs: Sequence[Pair]) -> list[Match]:
        self.seen += len(pairs)
        return [Match(self._back(pair) if pair.source[..., 2].any() else self._one(pair)) for pair in pairs]

    def _back(self, pair: Pair) -> np.ndarray:
        if self.fails:
            raise RuntimeError("out of memory")
        known = ~np.isnan(pair.keypoints).any(axis=1)
        found = np.full(pair.keypoints.shape, np.nan)
        inverse = np.linalg.inv(WARP[:, :2])
        there = (read_ramp(pair.source, pair.keypoints[known]) - WARP[:, 2]) @ inverse.T
        found[known] = find_ramp(pair.target, there)
        self.returned += [float(np.abs(there[:4] - SMALL).max())]
        return found


def test_a_matcher_that_shares_features_is_asked_back_through_the_same_windows_at_no_cost() -> None:
    pair = Pair(ramp(SIZE), blue_target(9).target, SMALL)
    both, failing = AskedBack(), AskedBack(fails=True)
    result, without = (kbc.wrap(one).match([pair])[0] for one in (both, failing))
    assert max(both.returned) <= 0.1  # what it is asked back from are the answers, in the windows' own pixels
    assert result.calls == both.seen
    assert result.cost == without.cost == 2
    assert any("looking back failed" in note for note in without.notes)
    np.testing.assert_array_equal(result.keypoints, without.keypoints)
    assert result.confidence is not None
    assert without.confidence is not None
    assert result.confidence.min() > 0.8
    assert not np.isnan(without.confidence).any()
    pays = AskedBack()
    pays.shares_features = False
    kbc.wrap(pays).match([pair])
    assert not pays.returned


def test_an_object_that_faces_the_other_way_is_looked_at_mirrored() -> None:
    patch = draw_scene(20, (96, 96))
    source, target = draw_scene(5, (240, 240)) // 4, draw_scene(6, (240, 240)) // 4
    source[60:156, 50:146] = patch
    target[90:186, 110:206] = patch[:, ::-1]
    points = np.array([[61.5, 75.5], [133.5, 83.5], [93.5, 139.5], [77.5, 107.5]])
    mirrored = np.stack([110 + 95 - (points[:, 0] - 50), points[:, 1] + 30], axis=1)
    box = kbc.Box(110, 90, 206, 186)
    results = {}
    for mirror in (False, True):
        wrapped = kbc.wrap(kbc.load_matcher("hog"), budget="balanced", mirror=mirror, small_below=1.0)
        result = wrapped.match([Pair(source, target, points, target_box=box)])[0]
        assert result.cost <= 4
        assert result.source_window is not None
        results[mirror] = np.linalg.norm(result.keypoints - mirrored, axis=1).mean(), result.source_window.mirrored
    assert not results[False][1]
    assert results[True][0] < 8


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_points_are_found_where_many_are_and_only_they_come_back(count: int) -> None:
    """A small thing among copies of each of its parts: only what surrounds a point tells which is which."""
    patch = draw_scene(20, (80, 80))
    source, target = draw_scene(5, (320, 320)) // 4, draw_scene(6, (320, 320)) // 4
    source[60:140, 50:130] = patch
    target[200:280, 190:270] = patch
    for y in (20, 120, 230):  # the part that is asked about, alone
        target[y : y + 24, 40:64] = patch[10:34, 10:34]
    points = np.array([[70.0, 82.0], [76.0, 76.0], [66.0, 74.0]])[:count]
    plain = kbc.load_matcher("hog")
    result = kbc.wrap(plain, budget="balanced").match([Pair(source, target, points)])[0]
    assert len(result.keypoints) == len(result.origin) == len(result.coarse) == count
    assert result.score is None or len(result.score) == count
    assert np.linalg.norm(result.keypoints - (points + 140), axis=1).max() < 4
    assert set(result.origin) == {"fine"}
    assert result.given == set()
    assert any("source_box" in note for note in result.notes)
    told = Pair(source, target, points, source_box=(50, 60, 130, 140))
    boxed = kbc.wrap(plain, budget="balanced").match([told])[0]
    assert np.linalg.norm(boxed.keypoints - (points + 140), axis=1).max() < 4
    assert boxed.given == {"source"}
    assert boxed.notes == ()
    away = kbc.wrap(plain).match([Pair(source, target, points, source_box=(300, 20, 340, 60))])[0]
    assert any("`source_box` holds none of the keypoints" in note for note in away.notes)


@pytest.mark.parametrize("options", [{"passes": 0}, {"localizer": "predicted"}])
def test_the_matcher_alone_and_the_papers_rule_are_asked_only_for_what_was_asked(options: dict[str, object]) -> None:
    asked = []

    def function(source: np.ndarray, target: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        asked.append(len(keypoints))
        return keypoints

    kbc.wrap(function, **options).match([oracle_pair(SMALL[:1])])
    assert set(asked) == {1}
    kbc.wrap(function).match([oracle_pair(SMALL[:1])])
    assert 60 <= asked[-1] <= 110  # and the support points around it, in the same call


@pytest.mark.parametrize(("count", "most"), [(0, 4), (12, 4 + 20)])
def test_a_matcher_that_charges_by_the_point_is_asked_for_fewer(count: int, most: int) -> None:
    class Charges(Oracle):
        support_points = count
        asked = 0

        def match(self, pairs: Sequence[Pair]) -> list[Match]:
            self.asked = max(self.asked, *(len(pair.keypoints) for pair in pairs))
            return super().match(pairs)

    matcher = Charges(WARP)
    result = kbc.wrap(matcher).match([oracle_pair()])[0]
    assert matcher.asked <= most
    assert error(result) <= 0.1
    assert result.support == matcher.asked - 4


class Counted(Oracle):
    """An oracle of every kind: with maps or without, sharing features or not; what it costs is counted outside."""

    def __init__(self, shares: bool) -> None:
        super().__init__(WARP, max_batch=4)
        self.shares_features = shares
        self.images: set[bytes] = set()

    def match(self, pairs: Sequence[Pair]) -> list[Match]:
        self.images |= {
            image.tobytes() + bytes(str(image.shape), "utf8") for p in pairs for image in (p.source, p.target)
        }
        return super().match(pairs)

    def spent(self) -> float:
        return 0.5 * len(self.images) if self.shares_features else float(self.seen)


@pytest.mark.parametrize("budget", ["fast", "thorough"])
@pytest.mark.parametrize("kind", ["features", "correlation"])
def test_maps_stay_on_their_device(kind: str, budget: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a device's numbers only points, scores and peaks are fetched: `.cpu()` is the one way from there."""
    fetched = []
    fetch = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda one: fetched.append(one.nelement()) or fetch(one))
    cells = 24
    if kind == "features":
        matcher: Any = kbc.from_features(lambda x: torch.nn.functional.avg_pool2d(x, 8), stride=8, size=8 * cells)
    else:
        matcher = kbc.from_correlation(lambda a, b: torch.rand(len(a), cells**2, cells**2), size=8 * cells)
    result = kbc.wrap(matcher, budget=budget).match([oracle_pair()])[0]
    points = len(SMALL) + result.support
    assert 2 * points <= max(fetched) <= 2 * TUNING.peaks * points < cells**2 * points


class CountedWithMaps(Counted):
    def similarity(self, pairs: Sequence[Pair]) -> list[np.ndarray]:
        return [np.random.default_rng(0).random((len(pair.keypoints), 8, 8), dtype=np.float32) for pair in pairs]


@pytest.mark.parametrize("kind", [Counted, CountedWithMaps])
@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("localizer", ["predicted", "consensus", "search", "best", "given"])
@pytest.mark.parametrize(("budget", "most"), [("fast", 2), ("balanced", 4), ("thorough", 16)])
def test_no_kind_of_matcher_pays_more_than_the_budget(
    kind: type[Counted], shares: bool, localizer: str, budget: str, most: int
) -> None:
    rng = np.random.default_rng(1)
    for _ in range(3):
        matcher = kind(shares)
        points = rng.uniform(40, 160, 2) + rng.uniform(-25, 25, (6, 2))
        box = kbc.Box.around(truth(points)) if localizer == "given" else None
        pair = Pair(ramp(SIZE), blue_target(9).target, points, target_box=box)
        result = kbc.wrap(matcher, localizer=localizer, budget=budget, passes=8).match([pair])[0]
        assert matcher.spent() <= result.cost <= most


NETWORKS: dict[str, Callable[[], Any]] = {
    "function": lambda: lambda source, target, keypoints: np.add(keypoints, (30, 20)),
    "hog": lambda: kbc.load_matcher("hog"),
    "votes": lambda: kbc.load_matcher("hog").with_votes(),
    "kbcnet": lambda: kbc.load_matcher("kbcnet"),
    "flow": lambda: kbc.from_flow(lambda s, t: torch.full((len(s), 2, 16, 16), 3.0, device=s.device), size=128),
    "correlation": lambda: kbc.from_correlation(
        lambda s, t: torch.eye(256, device=s.device).reshape(1, 16, 16, 16, 16).expand(len(s), -1, -1, -1, -1), size=128
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_device_that_torch_makes_tensors_on_by_default_changes_nothing(name: str) -> None:
    """As `torch.set_default_device("cuda")` does in notebooks; "meta" stands for it, which holds no values at all."""
    source, target = draw_scene(1, (200, 240)), draw_scene(2, (210, 220))
    asked = Pair(source, target, np.array([[100, 80], [120, 85], [110, 100], [105, 95.0]]))
    wrapped = kbc.wrap(NETWORKS[name](), budget="balanced")
    plain = wrapped.match([asked])[0]
    wrapped = kbc.wrap(NETWORKS[name](), budget="balanced")
    with torch.device("meta"):
        other = wrapped.match([asked])[0]
    assert other.keypoints == pytest.approx(plain.keypoints, abs=1e-9)
    assert other.confidence == pytest.approx(plain.confidence, abs=1e-9)
    assert (other.origin, other.notes) == (plain.origin, plain.notes)
