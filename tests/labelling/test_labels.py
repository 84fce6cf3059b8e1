"""What goes in: COCO labels, pictures, a detector's boxes, named points."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from rectangles import BOXES, NAMES, points_of, write_folder, write_labels

from kbc.cli.points import parse_named_points
from kbc.data import open_dataset
from kbc.data.records import Problems
from kbc.errors import DataError, InputError
from kbc.geometry import Box
from kbc.images import load_image
from kbc.labelling import Detection, find_images, read_detections, read_labels
from kbc.labelling.editing import LabelFile
from kbc.labelling.labels import label_picture


def test_coco_labels_are_read(tmp_path: Path) -> None:
    paths = write_folder(tmp_path)
    labels = read_labels(write_labels(tmp_path / "labels.json", {"0.png": BOXES[0]}, ("1.png", "2.png")))
    assert [str(one.image) for one in labels.exemplars] == [str(paths[0])]
    one = labels.exemplars[0]
    assert one.names == NAMES
    assert one.box is None  # the file has none
    np.testing.assert_allclose(one.keypoints, points_of(BOXES[0]))
    assert [(c.id, c.name, c.keypoints, c.skeleton) for c in labels.categories] == [
        (1, "thing", NAMES, [[1, 2], [3, 4]])
    ]
    assert set(labels.labelled) == {paths[0]}
    assert labels.numbers == dict(enumerate(paths[:3], 1))
    assert labels.sizes[paths[1]] == (120, 160)


@pytest.mark.parametrize(
    ("place", "pictures"),
    [
        ("labels.json", "."),
        ("annotations/person_keypoints_default.json", "images/default"),  # CVAT
        ("annotations/person_keypoints_val2017.json", "val2017"),  # COCO
        ("annotations/labels.json", "annotations"),
    ],
)
def test_the_pictures_of_labels_are_found_where_tools_put_them(tmp_path: Path, place: str, pictures: str) -> None:
    paths = write_folder(tmp_path / pictures)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    labels = read_labels(write_labels(tmp_path / place, {"0.png": BOXES[0]}, ("1.png",)))
    assert [one.image for one in labels.exemplars] == paths[:1]
    assert list(labels.numbers.values()) == paths[:2]


@pytest.mark.parametrize("said", ["../photos", 3, "a\0b", None])
def test_a_file_may_say_where_its_pictures_lie(tmp_path: Path, said: object) -> None:
    """As `kbc transfer` does where they are not below it; others count them there."""
    (tmp_path / "out").mkdir()
    paths = write_folder(tmp_path / ("photos" if said == "../photos" else "out"))
    path = write_labels(tmp_path / "out" / "labels.json", {"0.png": BOXES[0]})
    path.write_text(json.dumps({**json.loads(path.read_text()), "info": {"images": said}}))
    assert read_labels(path).exemplars[0].image == paths[0]
    assert LabelFile(path).picture(1).samefile(paths[0])
    data = json.loads(path.read_text())
    data["images"].append({"id": 2, "file_name": "1.png"})
    data["annotations"].append({**data["annotations"][0], "id": 2, "image_id": 2})
    path.write_text(json.dumps(data))
    (pair,) = open_dataset("coco", tmp_path / "out", annotations="labels.json").records
    assert pair.target_path.samefile(paths[1])


def test_hidden_points_are_no_exemplar_but_the_picture_is_labelled(tmp_path: Path) -> None:
    write_folder(tmp_path)
    path = write_labels(tmp_path / "labels.json", {"0.png": BOXES[0], "1.png": BOXES[1]})
    data = json.loads(path.read_text())
    data["annotations"][1]["keypoints"][2::3] = [1] * 5
    path.write_text(json.dumps(data))
    labels = read_labels(path)
    assert len(labels.exemplars) == 1
    assert set(labels.labelled) == {tmp_path / "0.png", tmp_path / "1.png"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"keypoints": []}, "named keypoints"),
        ({"keypoints": ["a", "a", "b", "c", "d"]}, "'a' twice"),
        ({"keypoints": ["a", "b"]}, "keypoints"),
    ],
)
def test_labels_that_cannot_be_joined_by_name_are_refused(tmp_path: Path, change: dict, said: str) -> None:
    write_folder(tmp_path)
    with pytest.raises(DataError, match=said):
        read_labels(write_labels(tmp_path / "labels.json", {"0.png": BOXES[0]}, **change))


def test_labels_at_the_origin_are_absent_and_a_problem(tmp_path: Path) -> None:
    write_folder(tmp_path)
    path = write_labels(tmp_path / "labels.json", {"0.png": BOXES[0]})
    data = json.loads(path.read_text())
    data["annotations"][0]["keypoints"][:3] = [0, 0, 2]
    path.write_text(json.dumps(data))
    labels = read_labels(path)
    assert "1 visible point at (0, 0) in 1 annotation (first: id 1)" in str(labels.problems[0])
    assert np.isnan(labels.exemplars[0].keypoints[0]).all()


@pytest.mark.parametrize(
    "broken",
    [
        {"id": 9, "image_id": 2, "caption": "a thing"},
        {"id": 9, "image_id": 2, "category_id": 1, "keypoints": [5, 5, 2]},
        {"id": 9, "image_id": 2, "category_id": 1, "keypoints": [0.1, 0.2, 2] * 5},
        {"id": 9, "image_id": 2, "category_id": 1, "keypoints": [float("inf"), 5, 2] * 5},
        {"id": 9, "image_id": 2, "category_id": 2, "keypoints": [5, 5, 2]},  # which names no keypoints
        {"id": 9, "image_id": 2, "category_id": 3, "keypoints": [5, 5, 2]},  # which names one twice
        {"id": 9, "image_id": 3, "category_id": 1, "keypoints": [5, 5, 2] * 5},  # a picture that is not there
        {"id": 9, "image_id": 99, "category_id": 1, "keypoints": [5, 5, 2] * 5},
    ],
)
def test_a_broken_label_becomes_a_problem_and_the_rest_is_used(tmp_path: Path, broken: dict) -> None:
    write_folder(tmp_path)
    path = write_labels(tmp_path / "labels.json", {"0.png": BOXES[0]}, ("1.png", "gone.png"))
    data = json.loads(path.read_text())
    data["annotations"].append(broken)
    data["categories"] += [{"id": 2, "name": "plain"}, {"id": 3, "name": "twice", "keypoints": ["a", "a"]}]
    path.write_text(json.dumps(data))
    labels = read_labels(path)
    assert [Path(str(one.image)).name for one in labels.exemplars] == ["0.png"]
    assert [one.name for one in labels.categories] == ["thing"]
    assert len(labels.problems) == 1
    assert "annotation" in str(labels.problems[0])


def test_a_box_that_holds_no_visible_point_is_a_problem_and_left_out(tmp_path: Path) -> None:
    write_folder(tmp_path)
    path = write_labels(tmp_path / "labels.json", {"0.png": BOXES[0]})
    data = json.loads(path.read_text())
    data["annotations"][0]["bbox"] = [100, 5, 30, 20]
    path.write_text(json.dumps(data))
    labels = read_labels(path)
    assert labels.exemplars[0].box is None
    assert "bbox of annotation 1" in str(labels.problems[0])
    assert "holds none" in str(labels.problems[0])


@pytest.mark.parametrize(
    ("size", "kept"), [((160, 120), True), ((80, 60), False), ((120, 160), False), ((-1, 0), True)]
)
def test_labels_of_a_picture_that_was_resized_since_are_a_problem(
    tmp_path: Path, size: tuple[int, int], kept: bool
) -> None:
    """Their points are another picture's."""
    write_folder(tmp_path)
    path = write_labels(tmp_path / "labels.json", {"0.png": BOXES[0], "1.png": BOXES[1]})
    data = json.loads(path.read_text())
    data["images"][1].update(width=size[0], height=size[1])
    path.write_text(json.dumps(data))
    labels = read_labels(path)
    assert [Path(str(one.image)).name for one in labels.exemplars] == ["0.png", *["1.png"] * kept]
    assert len(labels.labelled) == 1 + kept
    said = [
        f"annotations: `width and height of 1.png` must be those of the picture, 160×120, received {size[0]}×{size[1]}"
    ]
    assert [str(one).split(";")[0] for one in labels.problems] == said * (not kept)


def test_a_picture_that_its_exif_tag_turns_was_labelled_upright(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    write_folder(tmp_path)
    exif = pillow.Exif()
    exif[0x0112] = 6  # lies on its side
    with pillow.open(tmp_path / "0.png") as lying:
        lying.save(tmp_path / "0.jpg", exif=exif)
    path = write_labels(tmp_path / "labels.json", {"0.jpg": BOXES[0], "1.png": BOXES[1]})
    assert [Path(str(one.image)).name for one in read_labels(path).exemplars] == ["1.png"]
    data = json.loads(path.read_text())
    data["images"][0].update(width=120, height=160)
    path.write_text(json.dumps(data))
    assert len(read_labels(path).exemplars) == 2


def test_visible_points_outside_the_picture_are_a_problem_and_kept(tmp_path: Path) -> None:
    write_folder(tmp_path)
    path = write_labels(tmp_path / "labels.json", {"0.png": BOXES[0]})
    data = json.loads(path.read_text())
    data["annotations"][0]["keypoints"][:2] = [170, 40]
    path.write_text(json.dumps(data))
    labels = read_labels(path)
    assert [str(one) for one in labels.problems] == [
        "annotations: annotation 1: 1 visible point outside the picture (160×120)"
    ]
    assert labels.exemplars[0].keypoints[0].tolist() == [170, 40]
    assert [
        str(one) for one in label_picture(tmp_path / "0.png", {"a": (170.0, 40.0), "b": (30.0, 40.0)}).problems
    ] == ["0.png: 1 visible point outside the picture (160×120)"]
    assert not label_picture(tmp_path / "0.png", {"a": (np.nan, np.nan), "b": (30.0, 40.0)}).problems


def test_boxes_of_a_picture_of_another_size_are_a_problem(tmp_path: Path) -> None:
    paths = write_folder(tmp_path)
    labels = read_labels(write_labels(tmp_path / "labels.json", {"0.png": BOXES[0]}, ("1.png",)))
    pictures = [{"id": i, "file_name": f"{i}.png", "width": 160 // i, "height": 120 // i} for i in (1, 2)]
    boxes = [{"image_id": i, "bbox": [10, 20, 30, 40]} for i in (1, 2)]
    (tmp_path / "boxes.json").write_text(json.dumps({"images": pictures, "annotations": boxes, "categories": []}))
    problems = Problems()
    found = read_detections(tmp_path / "boxes.json", paths[1:3], labels, problems)
    assert {path.name: len(boxes) for path, boxes in found.items()} == {"1.png": 1, "2.png": 0}
    assert "`width and height of 2.png` must be those of the picture, 160×120, received 80×60" in str(*problems)


def test_two_categories_of_one_name_are_not_mixed(tmp_path: Path) -> None:
    write_folder(tmp_path)
    path = write_labels(tmp_path / "labels.json", {"0.png": BOXES[0]})
    data = json.loads(path.read_text())
    data["categories"].append({"id": 2, "name": "thing", "keypoints": ["a"]})
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match="two called 'thing'"):
        read_labels(path)


def test_a_group_without_keypoints_may_be_called_as_its_class_is(tmp_path: Path) -> None:
    """Roboflow writes one before the classes."""
    write_folder(tmp_path)
    path = write_labels(tmp_path / "labels.json", {"0.png": BOXES[0]})
    data = json.loads(path.read_text())
    data["categories"].insert(0, {"id": 0, "name": "thing", "supercategory": "none"})
    path.write_text(json.dumps(data))
    assert [(one.id, one.keypoints) for one in read_labels(path).categories] == [(1, NAMES)]


@pytest.mark.parametrize("suffix", ["gif", "avif", "pnm", "JFIF", "webp"])
def test_a_folder_gives_what_can_be_read(tmp_path: Path, suffix: str) -> None:
    written = cv2.imencode(f".{suffix.replace('JFIF', 'jpg')}", np.full((8, 12, 3), 99, np.uint8))[1]
    (tmp_path / f"1.{suffix}").write_bytes(written.tobytes())
    (found,) = find_images([tmp_path])
    assert load_image(found).shape == (8, 12, 3)


def test_labels_without_a_label_or_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="labelled picture"):
        read_labels(write_labels(tmp_path / "labels.json", {}, ("0.png",)))
    with pytest.raises(DataError, match="no such file"):
        read_labels(write_labels(tmp_path / "labels.json", {"0.png": BOXES[0]}))


def test_a_file_of_found_points_alone_is_refused_as_what_it_is(tmp_path: Path) -> None:
    write_folder(tmp_path)
    path = write_labels(tmp_path / "labels.json", {"0.png": BOXES[0]})
    data = json.loads(path.read_text())
    data["annotations"][0]["labelled"] = False
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match="what kbc transfer found itself is no label"):
        read_labels(path)


def test_pictures_are_found_in_folders_globs_and_lists(tmp_path: Path) -> None:
    paths = write_folder(tmp_path / "a")
    (tmp_path / "a" / "notes.md").write_text("no picture")
    inner = write_folder(tmp_path / "a" / "b", BOXES[:1])
    listed = tmp_path / "list.txt"
    listed.write_text("a/1.png\n\na/0.png\n")
    assert find_images([tmp_path / "a"]) == paths
    assert find_images([str(tmp_path / "a" / "**" / "*.png")]) == sorted([*paths, *inner])
    assert find_images([listed]) == [paths[1], paths[0]]
    assert find_images([paths[2], tmp_path / "a"]) == [paths[2], *paths[:2], *paths[3:]]
    for name in (".1.png", "._1.png"):
        (tmp_path / "a" / name).write_bytes(b"hidden")
    assert find_images([tmp_path / "a"]) == paths
    assert find_images([tmp_path / "a" / ".1.png"]) == [tmp_path / "a" / ".1.png"]
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "empty", tmp_path / "gone.png", "nothing*.png"):
        with pytest.raises(InputError, match="IMAGES"):
            find_images([wrong])


def test_a_detectors_boxes_are_read_in_both_of_cocos_forms(tmp_path: Path) -> None:
    paths = write_folder(tmp_path)
    labels = read_labels(write_labels(tmp_path / "labels.json", {"0.png": BOXES[0]}, ("1.png", "2.png")))
    results = [
        {"image_id": 2, "bbox": [10, 20, 30, 40], "category_id": 1, "score": 0.9},
        {"image_id": "2.png", "bbox": [1, 2, 3, 4], "score": 0.5},
        {"image_id": 2, "bbox": [50, 20, 30, 40], "category_id": 77},
    ]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(results))
    wanted = {
        paths[1]: (Detection(Box(10, 20, 40, 60), "thing"),),
        paths[2]: (Detection(Box(1, 2, 4, 6)),),
        paths[3]: (),
    }
    assert read_detections(path, paths[1:4], labels, Problems()) == wanted
    whole = {
        "images": [{"id": 9, "file_name": "1.png"}, {"id": 8, "file_name": "sub/2.png"}],
        "annotations": [{"id": 1, "image_id": 9, "bbox": [10, 20, 30, 40], "category_id": 5}],
        "categories": [{"id": 5, "name": "thing"}],
    }
    path.write_text(json.dumps(whole))
    assert read_detections(path, paths[1:4], labels, Problems())[paths[1]] == wanted[paths[1]]


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ([{"image_id": 2, "bbox": [200, 20, 30, 40]}], "meets the picture"),
        ([{"image_id": "2.png", "bbox": [170, 130, 30, 40]}], r"meets the picture \(160×120\)"),  # by the file itself
        ([{"image_id": 2, "bbox": [20, 20, 0, 40]}], "bbox of"),
        ([{"image_id": 99, "bbox": [20, 20, 30, 40]}], "image_id"),
        ([{"image_id": "other.png", "bbox": [20, 20, 30, 40]}], "in others, such as 'other.png'"),
        ([{"image_id": 2, "bbox": [20, 20, 30, 40], "category_id": 4}], "are of number 4, the labels of thing"),
    ],
)
def test_boxes_that_cannot_be_used_are_refused(tmp_path: Path, seen: list, said: str) -> None:
    paths = write_folder(tmp_path)
    labels = read_labels(write_labels(tmp_path / "labels.json", {"0.png": BOXES[0]}, ("1.png",)))
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(seen))
    with pytest.raises(DataError, match=said):
        read_detections(path, paths[1:], labels, Problems())


@pytest.mark.parametrize(
    "broken",
    [
        {"image_id": 2, "bbox": [200, 20, 30, 40]},
        {"image_id": 2, "bbox": [20, 20, 0, 40]},
        {"image_id": 2, "bbox": [20, 20]},
        {"image_id": 2, "bbox": [0.1, 0.1, 0.5, 0.5]},
        {"image_id": 99, "bbox": [20, 20, 30, 40]},
        {"image_id": None, "bbox": [20, 20, 30, 40]},
        "a box",
    ],
)
def test_a_broken_box_becomes_a_problem_and_the_rest_is_used(tmp_path: Path, broken: object) -> None:
    paths = write_folder(tmp_path)
    labels = read_labels(write_labels(tmp_path / "labels.json", {"0.png": BOXES[0]}, ("1.png",)))
    path, sound = tmp_path / "boxes.json", {"image_id": 2, "bbox": [10, 20, 30, 40]}
    whole = {"images": [{"id": 2, "file_name": "1.png", "width": 160, "height": 120}], "categories": []}
    for content in ([sound, broken], {**whole, "annotations": [broken, sound]}):
        path.write_text(json.dumps(content))
        problems = Problems()
        assert read_detections(path, paths[1:2], labels, problems) == {paths[1]: (Detection(Box(10, 20, 40, 60)),)}
        assert len(list(problems)) == 1


def test_boxes_of_one_category_count_for_a_picture_with_points(tmp_path: Path) -> None:
    """Which says nothing of what its object is called."""
    paths = write_folder(tmp_path)
    labels = label_picture(paths[0], {"a": (30.0, 40.0)})
    path = tmp_path / "boxes.json"
    seen = [{"image_id": "1.png", "bbox": [10, 20, 30, 40], "category_id": 7}]
    path.write_text(json.dumps(seen))
    found = read_detections(path, paths[1:], labels, Problems())
    assert found[paths[1]] == (Detection(Box(10, 20, 40, 60)),)
    path.write_text(json.dumps([*seen, {**seen[0], "category_id": 8}]))
    with pytest.raises(DataError, match="are of number 7, number 8, the labels of object"):
        read_detections(path, paths[1:], labels, Problems())


def test_a_number_of_two_pictures_is_none(tmp_path: Path) -> None:
    paths = write_folder(tmp_path)
    labels = read_labels(write_labels(tmp_path / "labels.json", {"0.png": BOXES[0]}, ("1.png",)))
    whole = {
        "images": [{"id": 2, "file_name": "1.png"}, {"id": 2, "file_name": "2.png"}],
        "annotations": [{"image_id": 2, "bbox": [10, 20, 30, 40]}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(whole))
    with pytest.raises(DataError, match="id 2 stands for 2 different images"):
        read_detections(tmp_path / "boxes.json", paths[1:3], labels, Problems())


@pytest.mark.parametrize("name", ["a" * 300, "a" * 5000])
def test_pictures_of_impossible_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="IMAGES"):
        find_images([name])
    (tmp_path / "list.txt").write_text("a\0b.png\n")
    with pytest.raises(DataError, match="NUL"):
        find_images([tmp_path / "list.txt"])


def test_named_points(tmp_path: Path) -> None:
    wanted = {"nose": (120.0, 80.0), "tail": (134.5, 92.0)}
    assert parse_named_points("nose=120,80 tail=134.5,92") == wanted
    assert parse_named_points("nose = 120, 80; tail = 134.5, 92") == wanted
    path = tmp_path / "p.csv"
    path.write_text("name,x,y,v\nnose,120,80,2\ntail,134.5,92,1\near,,,0\n")
    found = parse_named_points(str(path))
    assert {name: found[name] for name in wanted} == wanted
    assert np.isnan(found["ear"]).all()
    path = tmp_path / "p.json"
    for data in ({"nose": [120, 80], "tail": [134.5, 92, 2]}, {"keypoints": {"nose": [120, 80], "tail": [134.5, 92]}}):
        path.write_text(json.dumps(data))
        assert parse_named_points(str(path)) == wanted
    path.write_text('{"nose": [120, 80], "nose": [1, 2]}')
    with pytest.raises(InputError, match="'nose' twice"):
        parse_named_points(str(path))
    path.write_text("[[120, 80]]")
    for wrong in ("120,80 134,92", "nose=120,80 nose=1,2", "nose=120", "", str(path)):
        with pytest.raises(InputError, match="--points"):
            parse_named_points(wrong)
    for wrong in ("nose=1,2,tail=3,4", "nose=1,2 left ear=3,4", "nose=1,2,2", "nose=(1,2)", "nose=nan,nan"):
        with pytest.raises(InputError, match='`--points` must be "name=x,y name=x,y …", received'):
            parse_named_points(wrong)
    path = tmp_path / "q.csv"
    path.write_text("name;x;y\nnose;1,5;2,5\n")
    with pytest.raises(InputError, match=r"row 'nose;1,5;2,5' in .*; a number has a decimal point"):
        parse_named_points(str(path))
    path.write_text("x,y\n1,2\n")
    with pytest.raises(InputError, match="name"):
        parse_named_points(str(path))
