"""Transferred points put right: what is written, what is refused, and that what a person labelled is an exemplar."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rectangles import BOXES, NAMES, find_red, points_of, write_folder, write_labels

from kbc.cli import main
from kbc.errors import DataError, InputError
from kbc.labelling import Labeller, read_labels
from kbc.labelling.editing import Correction, LabelFile


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rectangles, the first labelled, the others transferred by a weak matcher."""
    folder = tmp_path_factory.mktemp("rectangles")
    write_folder(folder)
    write_labels(folder / "labels.json", {"0.png": BOXES[0]}, tuple(f"{i}.png" for i in range(1, 6)))
    command = ["transfer", str(folder / "labels.json"), "--out", str(folder / "keypoints.json"), "--quiet"]
    assert main(command) == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(made, tmp_path / "rectangles"))


def right(index: int) -> list[tuple[float, float, int]]:
    return [(x, y, 2) for x, y in points_of(BOXES[index]).tolist()]


def written(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "keypoints.json").read_text())


def test_the_most_doubtful_come_first_and_the_labelled_last(folder: Path) -> None:
    (folder / "6.png").write_bytes((folder / "5.png").read_bytes())
    data = written(folder)
    data["images"].append({"id": 7, "file_name": "6.png", "width": 160, "height": 120})
    (folder / "keypoints.json").write_text(json.dumps(data))
    found = LabelFile(folder / "keypoints.json").objects()
    assert [one["id"] is None for one in found] == [True] + [False] * 6
    assert found[0]["file"] == "6.png"
    assert [one["labelled"] for one in found] == [False] * 6 + [True]
    scores = [one["score"] for one in found[1:-1]]
    assert scores == sorted(scores)
    assert found[-1]["file"] == "0.png"
    assert found[-1]["names"] == list(NAMES)


def test_a_correction_is_written_at_once_and_the_rest_stays(folder: Path) -> None:
    before = written(folder)
    file = LabelFile(folder / "keypoints.json")
    one = next(o for o in before["annotations"] if o["image_id"] == 3)
    points = right(2)
    points[1] = (points[1][0], points[1][1], 1)
    points[4] = (0.0, 0.0, 0)
    shown = file.correct(Correction(id=one["id"], keypoints=points))
    assert shown["labelled"]
    after = written(folder)
    changed = next(o for o in after["annotations"] if o["id"] == one["id"])
    rows = np.array(changed["keypoints"]).reshape(-1, 3)
    np.testing.assert_allclose(rows[:4, :2], points_of(BOXES[2])[:4], atol=0.005)
    assert rows[:, 2].tolist() == [2, 1, 2, 2, 0]
    assert changed["keypoint_scores"] == [1, 1, 1, 1, 0]
    assert changed["num_keypoints"] == 4
    assert changed["labelled"] is True
    assert [o for o in after["annotations"] if o["id"] != one["id"]] == [
        o for o in before["annotations"] if o["id"] != one["id"]
    ]
    assert {**after, "annotations": 0} == {**before, "annotations": 0}
    assert not file.undo(one["id"])["labelled"]
    assert written(folder) == before


def test_an_object_of_which_nothing_is_there_is_no_label(folder: Path) -> None:
    file = LabelFile(folder / "keypoints.json")
    shown = file.correct(Correction(id=2, keypoints=[(5.0, 5.0, 0)] * 5))
    assert (shown["score"], shown["labelled"]) == (0.0, False)
    assert next(o for o in written(folder)["annotations"] if o["id"] == 2)["keypoints"] == [0] * 15


def test_what_is_corrected_is_a_label_and_what_was_found_is_none(folder: Path) -> None:
    assert [Path(str(o.image)).name for o in read_labels(folder / "keypoints.json").exemplars] == ["0.png"]
    file = LabelFile(folder / "keypoints.json")
    points = right(4)
    points[0] = (*points[0][:2], 1)
    number = next(o["id"] for o in written(folder)["annotations"] if o["image_id"] == 5)
    file.correct(Correction(id=number, keypoints=points))
    first, second = file.labels().exemplars
    assert [Path(str(o.image)).name for o in (first, second)] == ["0.png", "4.png"]
    assert np.isnan(second.keypoints[0]).all()  # hidden points are no exemplars
    np.testing.assert_allclose(second.keypoints[1:], points_of(BOXES[4])[1:], atol=0.005)


def test_the_rest_is_asked_again_with_what_was_corrected(folder: Path) -> None:
    file = LabelFile(folder / "keypoints.json")
    number = next(o["id"] for o in written(folder)["annotations"] if o["image_id"] == 2)
    file.correct(Correction(id=number, keypoints=right(1)))
    labelled = [o for o in written(folder)["annotations"] if o["labelled"]]
    asked: list[int] = []
    made_by = {"matcher": "other", "options": {"size": 9}}
    said = file.transfer_again(
        Labeller(file.labels().exemplars, find_red), lambda done, total: asked.append(total), made_by
    )
    assert asked == [4] * 4
    assert not said
    after = written(folder)
    assert [o for o in after["annotations"] if o["labelled"]] == labelled
    assert len({o["id"] for o in after["annotations"]}) == 6
    for one in after["annotations"]:
        rows = np.array(one["keypoints"]).reshape(-1, 3)
        np.testing.assert_allclose(rows[:, :2], points_of(BOXES[one["image_id"] - 1]), atol=1.0)
    assert [o["image"] for o in after["info"]["kbc"]["exemplars"]] == ["0.png", "1.png"]
    assert made_by.items() <= after["info"]["kbc"].items()
    (folder / "keypoints.json").rename(folder / "annotations.json")
    assert main(["data", "check", str(folder)]) == 0


def test_boxes_of_a_detector_are_asked_again_and_failures_keep_what_was_there(folder: Path) -> None:
    data = written(folder)
    for one in data["annotations"]:
        if one["image_id"] == 4:
            one.update(bbox=[30, 30, 60, 50], bbox_kind="annotated")
        elif not one["labelled"]:
            one["bbox"] = None
    data["annotations"] = [o for o in data["annotations"] if o["image_id"] != 3]
    (folder / "keypoints.json").write_text(json.dumps(data))
    (folder / "4.png").write_bytes(b"broken")
    outside = {**data["annotations"][-1], "id": 99, "bbox": [500, 500, 40, 40], "bbox_kind": "annotated"}
    data["annotations"].append(outside)
    (folder / "keypoints.json").write_text(json.dumps(data))
    file = LabelFile(folder / "keypoints.json")
    said = file.transfer_again(Labeller(file.labels().exemplars, find_red))
    assert said.startswith("2 pictures of 5 kept as before, for instance 4.png: `image` must be")
    of_six = [[o for o in found["annotations"] if o["image_id"] == 6] for found in (data, written(folder))]
    assert of_six[0] == of_six[1]
    after = {o["image_id"]: o for o in written(folder)["annotations"]}
    assert after[4]["bbox"] == [30, 30, 60, 50]
    assert after[4]["bbox_kind"] == "annotated"
    assert 3 not in after  # no box, no object
    assert after[5] == next(o for o in data["annotations"] if o["image_id"] == 5)


def test_without_a_box_left_a_detectors_file_gives_no_further_objects(folder: Path) -> None:
    """Its boxes are those of objects that a person has confirmed; the other pictures had none."""
    data = written(folder)
    data["annotations"] = [o for o in data["annotations"] if o["labelled"]]
    data["info"]["kbc"]["boxes"] = "boxes.json"
    (folder / "keypoints.json").write_text(json.dumps(data))
    file = LabelFile(folder / "keypoints.json")
    assert not file.transfer_again(Labeller(file.labels().exemplars, find_red))
    assert written(folder)["annotations"] == data["annotations"]


def test_what_was_put_right_is_not_written_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, given = folder / "keypoints.json", ["--out", str(folder / "keypoints.json"), "--quiet"]
    again = ["transfer", str(folder / "labels.json"), *given]
    assert main(again) == 0  # nothing is lost: what it found itself, and the labels
    file = LabelFile(out)
    number = next(o["id"] for o in written(folder)["annotations"] if o["image_id"] == 2)
    file.correct(Correction(id=number, keypoints=right(1)))
    before = out.read_bytes()
    assert main(again) == 2
    assert "with 1 object put right by hand, such as in 1.png" in capsys.readouterr().err
    assert out.read_bytes() == before
    (folder / "corrected.json").write_bytes(before)
    assert main(["transfer", str(folder / "corrected.json"), *given]) == 0  # LABELS has it
    file = LabelFile(out)
    assert not file.corrected()
    number = next(o["id"] for o in written(folder)["annotations"] if o["image_id"] == 2)
    file.correct(Correction(id=number, keypoints=right(2)))  # once more, which LABELS does not know
    assert main(["transfer", str(folder / "corrected.json"), *given]) == 2


def test_an_object_is_added_and_removed(folder: Path) -> None:
    file = LabelFile(folder / "keypoints.json")
    number = next(o["id"] for o in written(folder)["annotations"] if o["image_id"] == 2)
    file.remove(number)
    assert file.objects()[0]["id"] is None
    added = file.correct(Correction(image_id=2, category_id=1, keypoints=right(1)))
    assert added["id"] not in {o["id"] for o in written(folder)["annotations"] if o["image_id"] != 2}
    assert len(written(folder)["annotations"]) == 6


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"id": 99}, "`id`"),
        ({"image_id": 99, "category_id": 1}, "`image_id`"),
        ({"image_id": 1, "category_id": 9}, "`category_id`"),
        ({"id": 2, "keypoints": [(1.0, 1.0, 2)]}, "5 points"),
        ({"id": 2, "keypoints": [(500.0, 1.0, 2)] * 5}, "inside the picture"),
    ],
)
def test_wrong_corrections_are_refused_and_nothing_is_written(folder: Path, given: dict[str, Any], said: str) -> None:
    before = (folder / "keypoints.json").read_bytes()
    file = LabelFile(folder / "keypoints.json")
    with pytest.raises(InputError, match=said):
        file.correct(Correction(**{"keypoints": right(0), **given}))
    assert (folder / "keypoints.json").read_bytes() == before


def test_a_file_that_somebody_else_changed_is_not_written_over(folder: Path) -> None:
    file = LabelFile(folder / "keypoints.json")
    (folder / "keypoints.json").write_text(json.dumps(written(folder)) + "\n\n")
    shown = file.objects()
    for change in (
        lambda: file.correct(Correction(id=2, keypoints=right(1))),
        lambda: file.correct(Correction(image_id=2, category_id=1, keypoints=right(1))),
        lambda: file.undo(2),
        lambda: file.remove(2),
        lambda: file.transfer_again(Labeller(file.labels().exemplars, find_red)),
    ):
        with pytest.raises(InputError, match="changed by this page alone"):
            change()
    assert file.objects() == shown  # nothing is shown that was not written


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["categories"][0].update(keypoints=[]),
        lambda data: data.update(images="none"),
    ],
)
def test_a_broken_file_is_refused(folder: Path, change: Any) -> None:
    data = written(folder)
    change(data)
    (folder / "keypoints.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"keypoints\.json"):
        LabelFile(folder / "keypoints.json")


ODD: list[Any] = [
    lambda one: one.update(keypoints=[1, 2, 2]),
    lambda one: one.update(category_id=7),
    lambda one: one.update(image_id=99),
    lambda one: [one.pop(key) for key in ("category_id", "keypoints")],  # a caption
]


@pytest.mark.parametrize("change", ODD)
def test_an_entry_that_cannot_be_shown_stays_in_the_file_and_costs_no_other(folder: Path, change: Any) -> None:
    data = written(folder)
    change(data["annotations"][1])
    (folder / "keypoints.json").write_text(json.dumps(data))
    file = LabelFile(folder / "keypoints.json")
    assert len(file.problems) == 1
    shown = file.objects()
    assert len([one for one in shown if one["id"] is not None]) == 5
    file.correct(Correction(id=data["annotations"][2]["id"], keypoints=right(2)))
    labeller = Labeller(file.labels().exemplars, find_red)
    file.transfer_again(labeller)
    assert data["annotations"][1] in written(folder)["annotations"]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["annotations"][1].update(bbox=[float("nan")] * 4),
        lambda data: data["annotations"][1].update(bbox="x", bbox_kind="annotated"),
        lambda data: data["annotations"][1].update(score=float("inf")),
        lambda data: data["annotations"][1].update(score=10**400, keypoint_scores=["a"] * 5),
        lambda data: data["annotations"][1]["keypoints"].__setitem__(slice(0, 3), [float("nan"), float("nan"), 0]),
        lambda data: data["images"][1].update(width="160", height="120"),
        lambda data: data["images"][1].update(width=10**400),
        lambda data: data["annotations"].append(dict(data["annotations"][1])),
        lambda data: [one.update(id=str(one["id"])) for one in data["annotations"]],
        lambda data: [one.update(id=str(one["id"])) for one in data["images"]],
        lambda data: data["annotations"][0].update(keypoints=[str(v) for v in data["annotations"][0]["keypoints"]]),
    ],
)
def test_odd_values_cost_nothing(folder: Path, change: Any) -> None:
    data = written(folder)
    change(data)
    (folder / "keypoints.json").write_text(json.dumps(data))
    file = LabelFile(folder / "keypoints.json")
    shown = file.objects()
    json.dumps(shown, allow_nan=False)  # as the page gets it
    assert sorted(one["id"] for one in shown) == [1, 2, 3, 4, 5, 6]
    file.correct(Correction(id=2, keypoints=right(1)))
    file.undo(2)
    assert file.correct(Correction(image_id=2, category_id=1, keypoints=right(1)))["id"] == 7
    file.remove(2)
    assert [int(one["id"]) for one in written(folder)["annotations"]] == [1, 3, 4, 5, 6, 7]
    file.transfer_again(Labeller(file.labels().exemplars, find_red))
    for one in written(folder)["annotations"]:
        wanted = points_of(BOXES[one["image_id"] - 1])
        np.testing.assert_allclose(np.array(one["keypoints"], dtype=float).reshape(-1, 3)[:, :2], wanted, atol=1.5)


def test_pictures_in_another_folder_are_found_by_what_the_file_says(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "out" / "deep"
    elsewhere.mkdir(parents=True)
    command = ["transfer", str(folder / "labels.json"), "--out", str(elsewhere / "k.json"), "--quiet"]
    assert main(command) == 0
    file = LabelFile(elsewhere / "k.json")
    assert file.picture(2) == folder / "1.png" or file.picture(2).resolve() == folder / "1.png"
    with pytest.raises(InputError, match="image_id"):
        file.picture(77)
