"""Points of labelled pictures in others: by name, by confidence, object by object."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rectangles import BOXES, NAMES, find_red, picture, points_of, red_box, write_folder

import kbc
from kbc.errors import InputError
from kbc.geometry import Box, distinct
from kbc.labelling import Detection, Exemplar, Labeller, transfer
from kbc.labelling.combine import Answers, combined, object_box, objects

EXEMPLAR = Exemplar(picture(BOXES[0]), NAMES, points_of(BOXES[0]))


def answers(points: list, confidence: list, size: float = 40.0) -> Answers:
    return Answers(np.array(points, dtype=float), np.array(confidence, dtype=float), np.full(len(points), size))


def test_the_points_lie_where_they_belong_and_are_sure() -> None:
    targets = [picture(box, seed=9 + i) for i, box in enumerate(BOXES[1:])]
    for found, box in zip(transfer([EXEMPLAR], targets, find_red), BOXES[1:], strict=True):
        assert found.size_hw == (120, 160)
        assert len(found.objects) == 1
        one = found.objects[0]
        np.testing.assert_allclose(one.keypoints, points_of(box), atol=1.5)
        assert (one.confidence > 0.8).all()
        assert one.names == NAMES
        assert one.exemplar == 0
        assert not one.given


def test_exemplars_are_joined_by_name_whatever_the_order() -> None:
    order = [4, 2, 0, 3, 1]
    other = Exemplar(picture(BOXES[2], seed=2), tuple(NAMES[i] for i in order), points_of(BOXES[2])[order])
    for exemplars in ([EXEMPLAR, other], [other, EXEMPLAR]):
        found = next(transfer(exemplars, [picture(BOXES[4], seed=4)], find_red)).objects[0]
        assert found.names == exemplars[0].names
        wanted = dict(zip(NAMES, points_of(BOXES[4]), strict=True))
        np.testing.assert_allclose(found.keypoints, [wanted[name] for name in found.names], atol=1.5)


def test_a_point_that_one_exemplar_shows_is_transferred() -> None:
    points = points_of(BOXES[1])
    points[0] = np.nan
    without = Exemplar(picture(BOXES[1], seed=1), NAMES, points)
    target = picture(BOXES[4], seed=4)
    alone = next(transfer([without], [target], find_red)).objects[0]
    assert np.isnan(alone.keypoints[0]).all()
    assert alone.confidence[0] == 0
    both = next(transfer([without, EXEMPLAR], [target], find_red)).objects[0]
    np.testing.assert_allclose(both.keypoints, points_of(BOXES[4]), atol=1.5)


def test_points_beyond_the_edge_of_the_picture_are_not_in_it() -> None:
    """The layout of an object that is cut off goes on there; as a label such a point is wrong."""

    def goes_on(source: Any, target: Any, keypoints: Any) -> Any:
        here, there = red_box(source), red_box(target)
        if here is None or there is None:
            return np.full_like(keypoints, np.nan)
        return [there.x0, there.y0] + (keypoints - [here.x0, here.y0]) * there.height / here.height

    edge = int(BOXES[0].center[0]) + 4
    cut = picture(BOXES[0], seed=3)[:, :edge]
    (one,) = Labeller([EXEMPLAR], goes_on)(cut).objects
    beyond = points_of(BOXES[0])[:, 0] > edge - 0.5
    assert 0 < beyond.sum() < len(NAMES)
    np.testing.assert_array_equal(np.isnan(one.keypoints).all(axis=1), beyond)
    assert (one.confidence[beyond] > 0).all()


def test_categories_are_kept_apart() -> None:
    other = Exemplar(picture(BOXES[1]), ("a", "b"), points_of(BOXES[1])[:2], "other")
    labeller = Labeller([EXEMPLAR, other], find_red)
    assert [(c.id, c.name, c.keypoints) for c in labeller.categories] == [
        (1, "object", NAMES),
        (2, "other", ("a", "b")),
    ]
    found = labeller(picture(BOXES[3], seed=3)).objects
    assert len({one.category for one in found}) == len(found)  # at most one of each


def test_categories_with_the_same_names_in_another_order_keep_their_own() -> None:
    turned = Exemplar(picture(BOXES[2], seed=2), NAMES[::-1], points_of(BOXES[2])[::-1], "other")
    image = picture(BOXES[4], seed=4)
    boxes = [Detection(BOXES[4], "object"), Detection(BOXES[4], "other"), Detection(BOXES[4])]
    found = Labeller([EXEMPLAR, turned], find_red)(image, boxes).objects
    assert [one.names for one in found[:2]] == [NAMES, NAMES[::-1]]
    for one in found:
        wanted = dict(zip(NAMES, points_of(BOXES[4]), strict=True))
        np.testing.assert_allclose(one.keypoints, [wanted[name] for name in one.names], atol=1.5)


def test_a_picture_without_the_object_has_none_or_a_doubtful_one() -> None:
    empty = np.random.default_rng(7).integers(90, 120, (120, 160, 3), dtype=np.uint8)
    assert next(transfer([EXEMPLAR], [empty], find_red)).objects == ()  # a matcher that says so
    (found,) = next(transfer([EXEMPLAR], [empty], kbc.load_matcher("hog"))).objects
    assert found.sureness < 0.5
    assert np.isnan(found.at_least(0.6).keypoints).any()


def test_boxes_give_one_object_each_and_say_so() -> None:
    first, second = Box(10, 20, 50, 60), Box(90, 40, 140, 90)
    image = picture(first)
    x0, y0, x1, y1 = (int(edge) for edge in second.xyxy)
    image[y0:y1, x0:x1] = (250, 10, 10)
    boxes = {"p": (Detection(first.grown(4)), Detection(second.grown(4)))}
    labeller = Labeller([EXEMPLAR], find_red)
    found = labeller(image, boxes["p"]).objects
    assert [one.given for one in found] == [True, True]
    assert [one.box for one in found] == [first.grown(4), second.grown(4)]
    for one, box in zip(found, (first, second), strict=True):
        np.testing.assert_allclose(one.keypoints, points_of(box), atol=2.0)
    assert labeller(image, ()).objects == ()


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (Box(500, 500, 540, 540), "a box that meets the image (160×120), received (500, 500, 540, 540)"),
        (Box(-50, -50, -1, -1), "a box that meets the image (160×120), received (-50, -50, -1, -1)"),
        (Box(30, 30, 30, 60), "a box that meets the image (160×120), received (30, 30, 30, 60)"),
        (Box(0.1, 0.1, 0.9, 0.8), "pixel edges, received a box in [0, 1]: (0.1, 0.1, 0.9, 0.8)"),
    ],
)
def test_a_box_outside_its_picture_is_a_problem_and_the_others_are_answered(wrong: Box, expected: str) -> None:
    image, calls = picture(BOXES[2]), []

    def find(source: np.ndarray, target: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        calls.append(1)
        return find_red(source, target, keypoints)

    labeller = Labeller([EXEMPLAR], find)
    wanted = labeller(image, [Detection(BOXES[2]), Detection(BOXES[2])])
    asked, found = len(calls), labeller(image, [Detection(BOXES[2]), Detection(wrong), Detection(BOXES[2])])
    assert len(calls) == 2 * asked  # nothing was asked about the wrong one
    assert (found.error, wanted.problems) == ("", ())
    assert [problem.split(";")[0] for problem in found.problems] == [f"`box` must be {expected}"]
    for one, other in zip(found.objects, wanted.objects, strict=True):
        np.testing.assert_array_equal(one.keypoints, other.keypoints)
    alone = labeller(image, [Detection(wrong)])
    assert (alone.error, alone.objects, alone.size_hw, len(alone.problems)) == ("", (), (120, 160), 1)


def test_a_matcher_that_fails_in_a_box_still_fails_the_picture() -> None:
    def broken(source: np.ndarray, target: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        raise ValueError("no")

    found = Labeller([EXEMPLAR], broken)(picture(BOXES[2]), [Detection(BOXES[2])])
    assert "ValueError: no" in found.error
    assert (found.objects, found.problems) == ((), ())


def test_a_detection_takes_four_numbers_and_refuses_what_is_no_box() -> None:
    assert Detection((1, 2, 30, 40)).box == Box(1, 2, 30, 40)  # type: ignore[arg-type]
    for wrong in (None, "x", (1, 2, 3), (5, 5, 1, 1), (0, 0, float("nan"), 5)):
        with pytest.raises(InputError, match="`box`"):
            Detection(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`category` must be"):
        Detection(BOXES[0], 5)  # type: ignore[arg-type]


def test_boxes_are_found_by_any_spelling_of_a_path(tmp_path: Path) -> None:
    path = write_folder(tmp_path, BOXES[:1])[0]
    boxes = {path: [Detection(BOXES[0])]}
    for image in (path, str(path)):
        (found,) = transfer([EXEMPLAR], [image], find_red, boxes=boxes)
        assert len(found.objects) == 1
    with pytest.raises(InputError, match="paths"):
        list(transfer([EXEMPLAR], [picture(BOXES[0])], find_red, boxes=boxes))


def test_a_herd_is_found_without_boxes() -> None:
    herd = [Box(10, 15, 50, 55), Box(100, 50, 148, 98)]
    image = picture(herd[0])
    image[50:98, 100:148] = (250, 10, 10)
    found = next(transfer([EXEMPLAR], [image], find_red, instances=2)).objects
    assert len(found) == 2
    for one, box in zip(sorted(found, key=lambda o: o.box.x0), herd, strict=True):
        np.testing.assert_allclose(one.keypoints, points_of(box), atol=2.0)
    one = next(transfer([EXEMPLAR], [picture(herd[0])], find_red, instances=3)).objects
    assert len(one) == 1  # a second one is not made up


def test_points_that_are_not_sure_enough_are_left_out() -> None:
    rng = np.random.default_rng(0)

    def guess(source: np.ndarray, target: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        return rng.uniform([0, 0], [target.shape[1], target.shape[0]], keypoints.shape)

    target = picture(BOXES[3])
    weak = next(transfer([EXEMPLAR], [target], guess))
    assert (weak.objects[0].confidence < 0.5).all()
    assert next(transfer([EXEMPLAR], [target], guess, min_confidence=0.9)).objects == ()
    sure = next(transfer([EXEMPLAR], [target], find_red, min_confidence=0.5)).objects
    assert np.isfinite(sure[0].keypoints).all()


def test_a_broken_picture_has_an_error_and_the_others_go_on(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    found = list(transfer([EXEMPLAR], [broken, picture(BOXES[2])], find_red))
    assert "broken.png" in found[0].error
    assert found[0].objects == ()
    assert not found[1].error
    assert len(found[1].objects) == 1


def test_exemplars_are_encoded_once() -> None:
    matcher = kbc.load_matcher("hog")
    exemplar = Exemplar(picture(BOXES[0]), NAMES, points_of(BOXES[0]))
    counts = []
    for result in transfer([exemplar], [picture(box, seed=50 + i) for i, box in enumerate(BOXES[:3])], matcher):
        assert not result.error
        counts.append(matcher.encoded)
    new = np.diff(counts)
    assert (new <= 2).all()  # each further target: whole, and a window; never the exemplar again


def test_the_likest_exemplars_are_asked_first() -> None:
    shades = [np.full((120, 160, 3), level, np.uint8) for level in (40, 220)]
    for image in shades:
        image[:, :80] //= 2
        image[30:62, 20:60] = (250, 10, 10)
    upside = shades[1][:, ::-1].copy()
    exemplars = [Exemplar(image, NAMES, points_of(BOXES[0])) for image in (upside, shades[0])]
    found = next(transfer(exemplars, [shades[1]], find_red, ask=1)).objects[0]
    assert found.exemplar == 1


def test_wrong_arguments_are_refused_before_the_first_picture() -> None:
    for wrong in ({"instances": 0}, {"ask": 0}, {"min_confidence": 1.5}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            transfer([EXEMPLAR], [], find_red, **wrong)
    with pytest.raises(InputError, match="exemplars"):
        transfer([], [], find_red)
    for options in ({"passes": 0}, {"localizer": "predicted"}):
        with pytest.raises(InputError, match="how sure"):
            transfer([EXEMPLAR], [], kbc.wrap(find_red, **options))
    with pytest.raises(InputError, match=r"exemplar 0 \(an array\): `keypoints`"):
        transfer([Exemplar(picture(BOXES[0]), ("a",), [[5000, 5]])], [], find_red)
    for given in ("photos", Path("photos"), None, 5):
        with pytest.raises(InputError, match="`images` must be a list of pictures"):
            transfer([EXEMPLAR], given, find_red)  # type: ignore[arg-type]
    for held in ([1], {"a.png": None}, {"a.png": [(1, 2, 3, 4)]}, {5: []}):
        with pytest.raises(InputError, match="`boxes` must be"):
            transfer([EXEMPLAR], [], find_red, boxes=held)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`exemplars` must be a list"):
        transfer(EXEMPLAR, [], find_red)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="min_confidence"):
        transfer([EXEMPLAR], [], find_red, min_confidence="x")  # type: ignore[arg-type]
    for names, more in ((None, {}), ((1, 2), {}), (("a", "b"), {"category": 5}), (("a", ""), {})):
        with pytest.raises(InputError, match="names"):
            Exemplar(picture(BOXES[0]), names, [[1, 2], [3, 4]], **more)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`box` must be"):
        Exemplar(picture(BOXES[0]), ("a", "b"), [[1, 2], [3, 4]], box=(5, 5, 1, 1))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="names"):
        Exemplar(picture(BOXES[0]), ("a", "a"), [[1, 2], [3, 4]])
    with pytest.raises(InputError, match="names"):
        Exemplar(picture(BOXES[0]), (), [[1, 2], [3, 4]])
    with pytest.raises(InputError, match="visible"):
        Exemplar(picture(BOXES[0]), ("a",), [[np.nan, 2]])


@pytest.mark.parametrize("least", [float("nan"), "x", None, [0.5], -0.1, 1.1])
def test_a_least_confidence_that_is_none_is_refused(least: Any) -> None:
    found = next(transfer([EXEMPLAR], [picture(BOXES[0])], find_red)).objects[0]
    with pytest.raises(InputError, match="`min_confidence` must be a number in"):
        found.at_least(least)


def test_numbers_and_names_may_come_out_of_arrays() -> None:
    for names in (np.array(NAMES), dict.fromkeys(NAMES), list(NAMES)):
        one = Exemplar(picture(BOXES[0]), names, points_of(BOXES[0]))  # type: ignore[arg-type]
        assert one.names == NAMES
    labeller = Labeller([one], find_red, np.int64(1), np.int64(2), np.float32(0.25))  # type: ignore[arg-type]
    assert (labeller.instances, labeller.ask) == (1, 2)
    assert labeller(picture(BOXES[2])).objects
    with pytest.raises(InputError, match="names"):
        Exemplar(picture(BOXES[0]), set(NAMES), points_of(BOXES[0]))  # type: ignore[arg-type]  # of no order


def test_a_box_that_holds_none_of_the_points_is_refused() -> None:
    away = Box(100, 5, 150, 25)
    with pytest.raises(InputError, match="`box` must be a box x0, y0, x1, y1 that holds the object's points"):
        Exemplar(picture(BOXES[0]), NAMES, points_of(BOXES[0]), box=away)
    beyond = Exemplar(picture(Box(0, 30, 60, 60)), ("a",), [[-9.0, 40.0]], box=Box(-20, 30, 60, 60))
    assert not next(transfer([beyond], [picture(BOXES[1])], find_red)).error  # nothing is judged, nothing raises


def test_a_single_picture_is_no_list_of_pictures() -> None:
    image = picture(BOXES[1])
    for one in (image, image[..., 0], torch.from_numpy(image).movedim(2, 0), "picture.png"):
        with pytest.raises(InputError, match="`images` must be a list of pictures"):
            transfer([EXEMPLAR], one, find_red)  # type: ignore[arg-type]
    assert len(list(transfer([EXEMPLAR], np.stack([image, image]), find_red))) == 2  # type: ignore[arg-type]


def test_boxes_that_no_picture_or_exemplar_has_are_said(tmp_path: Path) -> None:
    paths = write_folder(tmp_path)
    with pytest.raises(InputError, match="`boxes` must be by the paths that `images` are"):
        transfer([EXEMPLAR], paths, find_red, boxes={"1.png": (Detection(BOXES[1]),)})
    some = {
        paths[1]: (Detection(BOXES[1], "car"), Detection(BOXES[1])),
        "1.png": (Detection(BOXES[2]),),
        "elsewhere/2.png": (Detection(BOXES[2]),),
    }
    found = list(transfer([EXEMPLAR], paths[:3], find_red, boxes=some))
    assert [len(one.objects) for one in found] == [0, 1, 0]
    assert found[1].problems == ("`category` must be one of object, received 'car'",)
    assert [one.objects for one in transfer([EXEMPLAR], paths, find_red, boxes={})] == [()] * len(paths)


def test_an_exemplar_that_travelled_is_read_only_and_answers_alike() -> None:
    there = pickle.loads(pickle.dumps(EXEMPLAR))
    assert not there.keypoints.flags.writeable
    target = picture(BOXES[2])
    found, wanted = (next(transfer([one], [target], find_red)).objects[0] for one in (there, EXEMPLAR))
    np.testing.assert_array_equal(found.keypoints, wanted.keypoints)


def test_answers_meet_where_most_confidence_lies() -> None:
    said = answers([[[10, 10], [50, 50]], [[11, 10], [51, 50]], [[30, 40], [50, 51]]], [[0.6, 0.9]] * 3)
    points, confidence, size = combined(said, np.array([0, 1, 2]))
    np.testing.assert_allclose(points, [[10.5, 10], [50.33, 50.33]], atol=0.05)
    assert size == 40
    assert confidence[0] < confidence[1]
    assert confidence[1] > 0.9  # three agree


def test_one_exemplar_stays_as_it_is() -> None:
    said = answers([[[10, 10], [np.nan, np.nan]]], [[0.3, np.nan]])
    points, confidence, _ = combined(said, np.array([0]))
    np.testing.assert_array_equal(points[0], [10, 10])
    assert np.isnan(points[1]).all()
    np.testing.assert_allclose(confidence, [0.3, 0.0], atol=1e-6)


def test_objects_are_told_apart_by_their_boxes() -> None:
    square = np.array([[0, 0], [40, 0], [40, 40], [0, 40]], float)
    said = answers([square, square + 200, square + 3, square * np.nan], [[0.5] * 4, [0.8] * 4, [0.5] * 4, [0.5] * 4])
    assert [group.tolist() for group in objects(said)] == [[0, 2], [1]]


def test_the_box_of_few_points_is_as_large_as_the_object() -> None:
    assert object_box(np.array([[10.0, 10.0]]), 20) == Box(0.5, 0.5, 20.5, 20.5)
    assert object_box(np.array([[np.nan, 10.0]]), 20) is None
    flat = object_box(np.array([[0.0, 10.0], [40.0, 10.0]]), 40)
    assert flat is not None
    assert (flat.width, flat.height) == (40, 4)


def test_non_maximum_suppression_keeps_the_surest() -> None:
    boxes = [Box(0, 0, 10, 10), Box(2, 0, 12, 10), Box(50, 0, 60, 10), Box(90, 0, 99, 9)]
    assert distinct(boxes, [0.4, 0.5, 0.1, 0.9], 2, 0.3) == [3, 1]
    assert distinct(boxes, [0.4, 0.5, 0.1, 0.9], 9, 0.3) == [3, 1, 2]
