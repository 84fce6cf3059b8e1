"""What a matcher is: functions of every common signature become one, and nothing that is no answer passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

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
