"""What a matcher is: functions of every common signature become one, and nothing that is no answer passes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

import kbc
from kbc.errors import InputError, MatcherError
from kbc.matchers.function import FunctionMatcher, as_matcher
from kbc.matchers.protocol import SimilarityMatcher, matcher_name, run_matcher
from kbc.types import Match, Pair
from tests.conftest import draw_scene

SCENE, OTHER = draw_scene(1, (40, 60)), draw_scene(2, (50, 70))
POINTS = np.array([[3.0, 4.0], [np.nan, np.nan], [20.5, 10.25]])
MOVE = np.array([2.0, -1.0])


def pair(points: object = POINTS) -> Pair:
    return Pair(SCENE, OTHER, points)


def moved(form: str, image: str) -> Any:
    """A function that checks what it is given, then moves the points by MOVE, in the form it takes."""

    def move(source: Any, target: Any, points: Any) -> Any:
        for given, truth in ((source, SCENE), (target, OTHER)):
            if image == "array":
                assert given.dtype == np.uint8
                assert np.array_equal(given, truth)
                continue
            assert given.dtype == torch.float32
            plain = given[0] if image == "batch" else given
            assert given.ndim == (4 if image == "batch" else 3)
            assert torch.allclose(plain.permute(1, 2, 0) * 255, torch.from_numpy(truth.copy()).float(), atol=1e-3)
        step = MOVE if image == "array" else torch.tensor(MOVE, dtype=torch.float32)
        count = 2  # the undefined point is not asked for
        wanted: tuple[int, ...] = (count, 2) if form == "n2" else (2, count)
        assert tuple(points.shape) == ((1, *wanted) if image == "batch" else wanted)
        return points + (step if form == "n2" else step[:, None])

    return move


@pytest.mark.parametrize("form", ["n2", "2n"])
@pytest.mark.parametrize("image", ["array", "tensor", "batch"])
def test_every_signature_gives_the_same_answer(form: str, image: str) -> None:
    matcher = as_matcher(moved(form, image), image=image, points=form)  # type: ignore[arg-type]
    three = np.array([[3.0, 4.0], [np.nan, np.nan], [20.5, 10.25]])
    match = run_matcher(matcher, [pair(three)])[0]
    assert match.keypoints == pytest.approx(three + MOVE, nan_ok=True)
    assert match.score is None


@pytest.mark.parametrize("form", ["n2", "2n"])
def test_a_batched_function_may_drop_the_leading_one(form: str) -> None:
    def drops(source: torch.Tensor, target: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        return points[0].requires_grad_() * 1.0

    matcher = as_matcher(drops, image="batch", points=form)  # type: ignore[arg-type]
    assert matcher.match([pair()])[0].keypoints == pytest.approx(POINTS, nan_ok=True)


def test_lists_and_extra_attributes() -> None:
    matcher = as_matcher(lambda s, t, k: k.tolist(), name="mine", input_size=(64, 96))
    assert matcher.match([pair()])[0].keypoints == pytest.approx(POINTS, nan_ok=True)
    assert (matcher.name, matcher.input_size) == ("mine", (64, 96))


def test_a_function_is_not_asked_about_nothing() -> None:
    def never(source: object, target: object, points: object) -> object:
        raise AssertionError("asked")

    nothing = np.full((2, 2), np.nan)
    assert np.isnan(run_matcher(as_matcher(never), [pair(nothing)])[0].keypoints).all()
    assert run_matcher(as_matcher(never), [pair(np.empty((0, 2)))])[0].keypoints.shape == (0, 2)


@pytest.mark.parametrize("image", ["array", "tensor", "batch"])
def test_functions_cannot_write_into_their_callers_arrays(image: str) -> None:
    source, points = SCENE.copy(), POINTS.copy()

    def spoils(s: Any, t: Any, k: Any) -> Any:
        answer = k + 0
        s[:], t[:], k[:] = 0, 0, -5
        return answer

    as_matcher(spoils, image=image).match([Pair(source, source, points)])  # type: ignore[arg-type]
    assert np.array_equal(source, SCENE)
    assert np.array_equal(points, POINTS, equal_nan=True)


class Recorder:
    """Notes the size of every batch and gives the points back."""

    def __init__(self, max_batch: Any = 3) -> None:
        self.max_batch = max_batch
        self.sizes: list[int] = []

    def match(self, pairs: Sequence[Pair]) -> list[Match]:
        self.sizes.append(len(pairs))
        return [Match(p.keypoints) for p in pairs]


@pytest.mark.parametrize(("most", "sizes"), [(3, [3, 3, 1]), (1, [1] * 7), (7, [7]), (64, [7]), (None, [1] * 7)])
def test_batches_hold_at_most_max_batch_and_keep_the_order(most: int | None, sizes: list[int]) -> None:
    recorder = Recorder(most)
    pairs = [pair([[float(i), 1.0]]) for i in range(7)]
    found = run_matcher(recorder, pairs)
    assert recorder.sizes == sizes
    assert [match.keypoints[0, 0] for match in found] == list(range(7))
    assert run_matcher(recorder, []) == []


def test_without_max_batch_pairs_come_one_by_one() -> None:
    class Bare:
        def match(self, pairs: Sequence[Pair]) -> list[Match]:
            assert len(pairs) == 1
            return [Match(pairs[0].keypoints)]

    assert len(run_matcher(Bare(), [pair(), pair()])) == 2


class Gives:
    """Answers with whatever it was built with."""

    name = "odd"

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def match(self, pairs: Sequence[Pair]) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


FINE = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (ValueError("no GPU"), "ValueError: no GPU"),
        ([], "received 0 for 1"),
        ([Match(FINE)] * 2, "received 2 for 1"),
        (None, "TypeError"),
        ([Match(FINE[:2])], r"\(3, 2\), received \(2, 2\)"),
        ([Match(FINE.T)], r"received \(2, 3\)"),
        ([Match(FINE[..., 0])], r"received \(3,\)"),
        ([None], "keypoints"),
        ([Match("points")], "numbers as keypoints.*points"),  # type: ignore[arg-type]
        ([Match(FINE * np.inf)], "finite"),
        ([Match(FINE + 1000)], r"70×50.*input size"),
        ([Match(FINE - 1000)], r"70×50.*-999\.0"),
        ([Match(FINE, np.ones(2))], r"score per point \(3,\), received \(2,\)"),
        ([Match(FINE, np.ones((3, 1)))], r"received \(3, 1\)"),
        ([Match(FINE, ["a", "b", "c"])], "numbers as scores"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_answer_names_the_matcher(answer: Any, message: str) -> None:
    with pytest.raises(MatcherError, match=message) as caught:
        run_matcher(Gives(answer), [pair()])
    assert "'odd'" in str(caught.value)


def test_sound_answers_in_other_clothes_pass() -> None:
    for keypoints in (FINE.astype(np.float32), FINE.tolist(), torch.from_numpy(FINE).requires_grad_()):
        found = run_matcher(Gives([Match(keypoints)]), [pair()])[0]  # type: ignore[arg-type]
        assert found.keypoints.dtype == np.float64
        assert found.keypoints[[0, 2]] == pytest.approx(FINE[[0, 2]])
        assert np.isnan(found.keypoints[1]).all()  # which was not asked for
    bare = run_matcher(Gives([FINE]), [pair()])[0]
    assert bare.keypoints[0].tolist() == [1, 1]
    outside = run_matcher(Gives([Match(FINE - 20)]), [pair()])[0]  # a little outside the image is an answer
    assert outside.keypoints[0].tolist() == [-19, -19]


def test_half_undefined_answers_are_undefined() -> None:
    found = run_matcher(Gives([Match(np.array([[1.0, np.nan], [2, 2], [3, 3]]), np.ones(3))]), [pair()])[0]
    assert np.isnan(found.keypoints).all(axis=1).tolist() == [True, True, False]
    assert found.score is not None
    assert found.score[2] == 1


def test_typed_errors_of_a_matcher_pass_through() -> None:
    with pytest.raises(InputError, match="weights"):
        run_matcher(Gives(InputError("no weights")), [pair()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"function": 3}, "callable.*int"),
        ({"image": "list"}, "'array', 'tensor' or 'batch'.*'list'"),
        ({"points": "xy"}, "'n2' or '2n'.*'xy'"),
    ],
)
def test_unknown_forms_are_refused(options: dict[str, Any], message: str) -> None:
    function = options.pop("function", lambda s, t, k: k)
    with pytest.raises(InputError, match=message):
        as_matcher(function, **options)


def test_names_and_protocols() -> None:
    def my_matcher(s: object, t: object, k: object) -> object:
        return k

    assert matcher_name(as_matcher(my_matcher)) == "my_matcher"
    assert matcher_name(Recorder()) == "Recorder"
    assert isinstance(as_matcher(my_matcher), FunctionMatcher)
    assert not isinstance(as_matcher(my_matcher), SimilarityMatcher)


@pytest.mark.parametrize("form", ["n2", "2n"])
def test_a_function_may_give_scores_beside_its_points(form: str) -> None:
    def sure(source: Any, target: Any, points: Any) -> Any:
        return points, [0.9, 0.2]

    for image in ("array", "tensor", "batch"):
        match = run_matcher(as_matcher(sure, image=image, points=form), [pair()])[0]  # type: ignore[arg-type]
        assert match.keypoints == pytest.approx(POINTS, nan_ok=True)
        assert match.score == pytest.approx([0.9, np.nan, 0.2], nan_ok=True)


def test_a_function_may_give_a_match() -> None:
    match = as_matcher(lambda s, t, k: Match(k + 1, np.array([0.5, 0.6]))).match([pair()])[0]
    assert match.keypoints == pytest.approx(POINTS + 1, nan_ok=True)
    assert match.score == pytest.approx([0.5, np.nan, 0.6], nan_ok=True)
    assert as_matcher(lambda s, t, k: Match(k)).match([pair()])[0].score is None


def test_a_tuple_of_two_points_is_points() -> None:
    two = np.array([[3.0, 4.0], [20.5, 10.25]])
    match = as_matcher(lambda s, t, k: ((1, 2), (3, 4))).match([pair(two)])[0]
    assert match.keypoints.tolist() == [[1, 2], [3, 4]]
    assert match.score is None


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda k: (k, [0.9]), r"matcher 'f' must give scores of shape \(2,\), received \(1,\)"),
        (lambda k: (k, k, k), r"matcher 'f' must give keypoints of shape \(2, 2\), received \(3, 2, 2\)"),
        (lambda k: None, r"matcher 'f' must give keypoints of shape \(2, 2\), received \(\)"),
        (lambda k: {"points": k}, "matcher 'f' must give numbers as keypoints, received {'points'"),
        (lambda k: (k, "sure"), "matcher 'f' must give numbers as scores, received 'sure'"),
    ],
)
def test_a_function_s_wrong_answers_are_named(answer: Any, message: str) -> None:
    with pytest.raises(MatcherError, match=message):
        as_matcher(lambda s, t, k: answer(k), name="f").match([pair()])


class Net(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


class TwoImages(torch.nn.Module):
    def forward(self, source: torch.Tensor, target: torch.Tensor, updates: int = 12) -> torch.Tensor:
        return source


class WithPoints(torch.nn.Module):
    def forward(self, source: torch.Tensor, target: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        return points


class Method:
    match = "not a method"


@pytest.mark.parametrize(
    ("given", "way_out"),
    [
        (Net(), "an object of type Net; a feature extractor becomes a matcher by from_features"),
        (TwoImages(), "a network of two images becomes a matcher by from_flow.* or from_correlation"),
        (WithPoints(), r"becomes a matcher by as_matcher\(it, image='batch'\)"),
        (lambda image: image, "received the function <lambda>; a feature extractor becomes a matcher by from_features"),
        (lambda source, target: source, "a network of two images becomes a matcher by from_flow"),
        (lambda a, b, c, d: a, "it takes other arguments"),
        (Recorder, r"the class Recorder; give an object of it, Recorder\(…\)"),
        ("hog", r"load_matcher\('hog'\)"),
        (Method(), "it has no method `match` and cannot be called"),
        (None, "received an object of type NoneType"),
    ],
)
def test_what_is_no_matcher_is_refused_when_wrapped(given: Any, way_out: str) -> None:
    with pytest.raises(InputError, match="`matcher` must be a Matcher or a function .*" + way_out):
        kbc.wrap(given)


def test_what_opencv_gives_is_refused_with_the_way_out() -> None:
    import cv2

    flow = cv2.DISOpticalFlow.create()
    with pytest.raises(InputError, match="becomes a matcher by from_flow"):
        kbc.wrap(flow)
    with pytest.raises(InputError, match=r"`network` must be callable .*DISOpticalFlow; give a function that calls it"):
        kbc.from_flow(flow)


def test_callables_of_every_kind_are_wrapped() -> None:
    class Callable3:
        def __call__(self, source: Any, target: Any, keypoints: Any) -> Any:
            return keypoints

    for given in (Callable3(), Callable3().__call__, lambda *a: a[2], lambda s, t, k, scale=1: k):
        assert kbc.wrap(given).match([pair()])[0].keypoints == pytest.approx(POINTS, nan_ok=True, abs=1e-6)
    assert as_matcher(WithPoints(), image="batch").match([pair()])[0].keypoints == pytest.approx(POINTS, nan_ok=True)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (as_matcher(lambda s, t, k: k, name="mine"), "FunctionMatcher('mine')"),
        (as_matcher(lambda s, t, k: k, name="mine", input_size=(64, 96)), "FunctionMatcher('mine', 64×96 px)"),
        (kbc.from_features(lambda x: x, 8, size=64), "FeatureMatcher('features', 64×64 px)"),
        (kbc.from_flow(lambda s, t: s, size=64), "FlowMatcher('flow', 64×64 px)"),
        (
            kbc.wrap(as_matcher(lambda s, t, k: k, name="mine"), margin=0.4),
            "KBCMatcher(FunctionMatcher('mine'), localizer='best', budget='fast', margin=0.4)",
        ),
    ],
)
def test_they_show_themselves_in_a_line(shown: object, text: str) -> None:
    assert repr(shown) == text


def test_networks_left_in_training_mode_are_pointed_out() -> None:
    dropping = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, 8), torch.nn.Dropout())
    for build in (lambda n: kbc.from_features(n, 8), lambda n: kbc.from_features(n.forward, 8), kbc.from_flow):
        with pytest.warns(UserWarning, match=r"training mode: Dropout make its answers vary; call .eval\(\)") as caught:
            build(dropping)
        assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kbc.from_features(dropping.eval(), 8)
        kbc.from_features(torch.nn.Conv2d(3, 4, 8, 8), 8)
        kbc.from_features(lambda x: x, 8)


def test_relative_answers_are_refused() -> None:
    relative = as_matcher(lambda s, t, k: k / (t.shape[1], t.shape[0]), name="f")
    said = r"matcher 'f' must answer in the target's pixels \(\d+×\d+\), received only points in \[0, 1\], e\.g\. \["
    with pytest.raises(MatcherError, match=said):
        run_matcher(relative, [pair()])
    with pytest.raises(MatcherError, match=said):
        kbc.wrap(relative).match([pair()])


def test_points_and_answers_that_may_be_per_cent_or_placeholders_are_noted() -> None:
    blank = np.zeros((400, 640, 3), np.uint8)
    asked = np.array([[320.0, 100.0], [480, 200], [400, 300], [310, 260]])

    def note(keypoints: np.ndarray, function: Any) -> str:
        return " ".join(kbc.wrap(function, passes=0).match([Pair(blank, blank, keypoints)])[0].notes)

    per_cent = note(asked, lambda s, t, k: 100 * k / (640, 400))
    assert "all answers lie within 100 px of the corner (0, 0): does the matcher give per cent" in per_cent
    assert "all keypoints lie within 100 px of the corner (0, 0)" in note(asked / (6.4, 4), lambda s, t, k: k)
    assert note(asked, lambda s, t, k: k) == ""
    zeros = note(np.concatenate([asked, [[0, 0]]]), lambda s, t, k: k)  # on one picture twice, which is right
    assert zeros == "1 keypoint at exactly (0, 0): where that stands for a point that is not there, give NaN"


def test_a_function_that_gives_its_keypoints_back_is_noted() -> None:
    source, target = np.zeros((400, 640, 3), np.uint8), np.full((400, 640, 3), 9, np.uint8)
    asked = np.array([[320.0, 100.0], [480, 200], [400, 300], [np.nan, np.nan], [310, 260]])

    def note(target: np.ndarray, function: Any) -> str:
        return " ".join(kbc.wrap(function).match([Pair(source, target, asked)])[0].notes)

    assert "every answer lies exactly where its keypoint does" in note(target, lambda s, t, k: k)
    assert note(source, lambda s, t, k: k) == note(target, lambda s, t, k: k + 1) == ""
    wide = np.full((400, 1280, 3), 9, np.uint8)  # where a flow of zeros stretches them
    assert "every answer lies exactly where" in note(wide, lambda s, t, k: (k + 0.5) * (2, 1) - 0.5)


@pytest.mark.parametrize("asked", [[[320, 100], [480, 200], [400, 300], [310, 260]], [[400, 200]]])
def test_answers_that_are_all_one_point_are_no_agreement(asked: list[list[float]]) -> None:
    source, target = np.zeros((400, 640, 3), np.uint8), np.full((400, 640, 3), 9, np.uint8)
    middle = kbc.wrap(lambda s, t, k: np.full(k.shape, 100.0))
    for box in (None, (50, 50, 150, 150)):
        found = middle.match([Pair(source, target, asked, target_box=box)])[0]
        assert found.confidence is not None
        assert (found.confidence == 0).all()
        assert ("all answers are one and the same point" in " ".join(found.notes)) == (len(asked) > 1)


def test_answers_that_all_lie_outside_the_target_are_noted() -> None:
    blank = np.zeros((400, 640, 3), np.uint8)
    asked = np.array([[320.0, 100.0], [480, 200], [400, 300], [310, 260]])
    for away, noted in ((700, True), (300, False)):  # of the second some lie inside
        found = kbc.wrap(lambda s, t, k, away=away: k + np.array([away, 0])).match([Pair(blank, blank, asked)])[0]
        assert ("all answers lie outside the target" in " ".join(found.notes)) == noted
        assert found.confidence is not None
        assert (found.confidence == 0).all() == noted


@pytest.mark.parametrize("box", [None, (80, 60, 220, 200)])
def test_answers_that_all_lie_in_one_line_are_no_agreement(box: tuple[int, int, int, int] | None) -> None:
    source, target = draw_scene(1, (300, 400)), draw_scene(2, (300, 400))
    asked = [[100, 80], [150, 90], [120, 140], [180, 160], [140, 110]]
    for function, nothing in (
        (lambda s, t, k: k * (1, 0) + (0, 100), True),  # y is lost
        (lambda s, t, k: k[:, :1] * (0.5, 0.5) + 20, True),  # x is written twice
        (lambda s, t, k: k * (1, 0.2) + (0, 100), False),
    ):
        found = kbc.wrap(function).match([Pair(source, target, asked, target_box=box)])[0]
        assert found.confidence is not None
        assert (found.confidence == 0).all() == nothing
