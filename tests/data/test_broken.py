"""Broken data is named, counted and reported; with --strict nothing is matched."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layouts  # type: ignore[import-not-found]
import numpy as np
import pytest

from kbc.data import Dataset, open_dataset, shrink
from kbc.errors import DataError, InputError
from kbc.geometry import Box


def annotation(number: int, **fields: Any) -> Callable[[Path], None]:
    def change(content: dict[str, Any]) -> None:
        next(a for a in content["annotations"] if a["id"] == number).update(fields)

    return lambda root: layouts.edit_json(root / "annotations.json", change)


def truncate(root: Path) -> None:
    path = root / "images" / "2.jpg"
    path.write_bytes(path.read_bytes()[:300])


def rename_to(name: str) -> Callable[[Path], None]:
    return lambda root: layouts.edit_json(root / "annotations.json", lambda c: c["images"][1].update(file_name=name))


def pairs(*more: list[int]) -> Callable[[Path], None]:
    return lambda root: layouts.edit_json(root / "pairs.json", lambda c: c["pairs"].extend(more))


NAN = [float("nan"), 20, 2, 43, 25, 2, 30, 44, 2]
BREAKS: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "missing image": (lambda root: (root / "images" / "2.jpg").unlink(), 2, "2.jpg"),
    "a pair naming an absent annotation": (pairs([1, 99]), 4, "annotation 99"),
    "an annotation naming an absent image": (annotation(2, image_id=77), 2, "image 77"),
    "an annotation naming an absent category": (annotation(2, category_id=9), 2, "category 9"),
    "an absolute path": (rename_to("/etc/passwd"), 2, "absolute"),
    "an address": (rename_to("https://a.org/2.jpg"), 2, "address"),
    "a name with a NUL": (rename_to("a\0b.jpg"), 2, "a path below"),
    "a name that is too long": (rename_to("a" * 300 + ".jpg"), 2, "too long"),
    "keypoints that are null": (annotation(2, keypoints=None), 2, "received 0"),
    "a coordinate of 1e308": (annotation(2, keypoints=[1e308, 20, 2, 43, 25, 2, 30, 44, 2]), 2, "infinity"),
    "relative coordinates": (annotation(2, keypoints=[0.25, 0.3, 2, 0.5, 0.4, 2, 0.6, 0.7, 2]), 2, "relative"),
    "words for coordinates": (annotation(2, keypoints=["a", 20, 2, 43, 25, 2, 30, 44, 2]), 2, "annotations.1"),
    "an integer of 400 digits": (annotation(2, keypoints=[10**400, 20, 2, 43, 25, 2, 30, 44, 2]), 2, "annotations.1"),
    "a path that climbs out": (rename_to("images/../../x.jpg"), 2, "climb"),
    "a path that climbs out, as Windows writes it": (rename_to("..\\..\\x.jpg"), 2, "climb"),
    "a drive": (rename_to("C:/x.jpg"), 2, "absolute"),
    "too few numbers": (annotation(2, keypoints=[1, 2, 2]), 2, "keypoints"),
    "a visible point that is null": (annotation(2, keypoints=[None, *NAN[1:]]), 2, "NaN"),
    "no common point": (annotation(2, keypoints=[0] * 9), 2, "common"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_entry_costs_its_pairs_and_is_named(tmp_path: Path, name: str) -> None:
    damage, left, said = BREAKS[name]
    damage(layouts.coco(tmp_path))
    dataset = open_dataset("coco", tmp_path)
    assert len(dataset) == left
    assert any(said in str(problem) for problem in dataset.problems)
    assert sum(problem.pairs for problem in dataset.problems) == (1 if left == 4 else 2)
    with pytest.raises(DataError, match="problem"):
        dataset.require_sound()


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", [None, {}, "x"])
def test_a_file_without_its_lists_is_refused(tmp_path: Path, key: str, value: object) -> None:
    layouts.edit_json(layouts.coco(tmp_path) / "annotations.json", lambda c: c.update({key: value}))
    with pytest.raises(DataError, match=rf"annotations\.json: must be a JSON object with the list '{key}'"):
        open_dataset("coco", tmp_path)


@pytest.mark.parametrize(
    "box",
    [[], "wide", [1, 1, 0, 5], [1, 1, -3, 5], [1, 2, 3], [1, 1, 1e308, 5], [0.1, 0.1, 0.5, 0.5], [None] * 4, {}],
    ids=str,
)
def test_a_broken_box_costs_no_pair_and_is_replaced_by_the_extent_of_the_points(tmp_path: Path, box: object) -> None:
    annotation(2, bbox=box)(layouts.coco(tmp_path))
    dataset = open_dataset("coco", tmp_path)
    assert [len(dataset), len(dataset.problems)] == [4, 1]
    assert "annotation 2" in str(dataset.problems[0])
    assert "the extent of its keypoints is used" in str(dataset.problems[0])
    assert (dataset[0].target_box, dataset[0].bbox_kind) == (Box(16.5, 20.5, 46.5, 25.5), "keypoint-extent")


def test_what_is_no_instance_becomes_a_problem_and_the_rest_is_used(tmp_path: Path) -> None:
    def add(content: dict[str, Any]) -> None:
        content["annotations"] += [{"id": 9, "image_id": 1, "caption": "a cow"}, None, 7, {"id": "x"}]
        content["images"] += [{"id": 99}, []]
        content["categories"].append({"name": "no id"})

    layouts.edit_json(layouts.coco(tmp_path) / "annotations.json", add)
    dataset = open_dataset("coco", tmp_path)
    assert len(dataset) == 4
    assert len(dataset.problems) == 7


def test_nan_in_a_point_that_is_not_visible_is_nothing(tmp_path: Path) -> None:
    annotation(2, keypoints=[float("nan"), 20, 0, *NAN[3:]])(layouts.coco(tmp_path))
    dataset = open_dataset("coco", tmp_path)
    assert (len(dataset), dataset.problems) == (4, ())
    assert np.isnan(dataset[0].target_keypoints[0]).all()
    annotation(2, keypoints=NAN)(tmp_path)
    (found,) = open_dataset("coco", tmp_path).problems
    assert (found.pairs, "NaN" in str(found)) == (2, True)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_an_id_that_stands_for_two_things_names_neither(tmp_path: Path, key: str) -> None:
    def change(content: dict[str, Any]) -> None:
        twin = dict(content[key][0])
        twin |= {"images": {"file_name": "images/4.jpg"}, "annotations": {"image_id": 4}, "categories": {"name": "ox"}}[
            key
        ]
        content[key] += [twin, dict(content[key][1])]  # the second: said again, which changes nothing

    layouts.edit_json(layouts.coco(tmp_path) / "annotations.json", change)
    dataset = open_dataset("coco", tmp_path)
    assert [record.id for record in dataset] == {
        "images": ["2-3", "3-4"],
        "annotations": ["2-3", "3-4"],
        "categories": [],
    }[key]
    assert f"{key}: id 1 stands for 2 different {key}" in str(dataset.problems[0])
    assert sum(problem.pairs for problem in dataset.problems) == 4 - len(dataset)


def test_a_pair_that_is_listed_twice_counts_once(tmp_path: Path) -> None:
    pairs([1, 2])(layouts.coco(tmp_path))
    dataset = open_dataset("coco", tmp_path)
    assert len(dataset) == 4
    assert "pair 1-2 is listed twice (1 pair left out)" in str(dataset.problems[0])


def test_a_pair_of_one_annotation_with_itself_is_none(tmp_path: Path) -> None:
    layouts.write_json(layouts.coco(tmp_path) / "pairs.json", {"pairs": [[1, 2], [3, 3]]})
    dataset = open_dataset("coco", tmp_path)
    assert [record.id for record in dataset] == ["1-2"]
    assert "pair 3-3 is of one annotation with itself (1 pair left out)" in str(dataset.problems[0])


def test_placeholders_at_the_origin_are_absent_and_named(tmp_path: Path) -> None:
    zeros = [0, 0, 2, 43, 25, 2, 30, 44, 2]
    annotation(2, keypoints=zeros)(layouts.coco(tmp_path))
    dataset = open_dataset("coco", tmp_path)
    (found,) = dataset.problems
    assert "1 visible point at (0, 0) in 1 annotation (first: id 2)" in str(found)
    with pytest.raises(DataError, match="1 problem"):
        dataset.require_sound()
    annotation(2, keypoints=[0, 0, 0, *zeros[3:]])(tmp_path)
    hidden = open_dataset("coco", tmp_path)
    assert hidden.problems == ()
    for one, other in zip(dataset, hidden, strict=True):
        np.testing.assert_array_equal(one.target_keypoints, other.target_keypoints)


@pytest.mark.parametrize(
    ("value", "said", "options"),
    [
        (1, r"those with v = 1 do not count \(v >= 2 does\); --data-option occluded=true", {"occluded": True}),
        (0.9, r"those with v = 0.9 do not count .*--data-option occluded=0.9", {"occluded": 0.9}),
    ],
)
@pytest.mark.parametrize("listed", [True, False])
def test_visibilities_that_do_not_count_are_told(
    tmp_path: Path, value: float, said: str, options: dict[str, Any], listed: bool
) -> None:
    def change(content: dict[str, Any]) -> None:
        for one in content["annotations"]:
            one["keypoints"][2::3] = [value] * 3

    layouts.edit_json(layouts.coco(tmp_path, pairs=listed) / "annotations.json", change)
    dataset = open_dataset("coco", tmp_path)
    assert len(dataset) == 0
    assert any(re.search(said, str(problem)) for problem in dataset.problems)
    assert sum(problem.pairs for problem in dataset.problems) == (4 if listed else 9)
    counted = open_dataset("coco", tmp_path, **options)
    assert len(counted) == (4 if listed else 9)


def test_points_of_two_categories_are_joined_by_name(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["categories"][1]["keypoints"] = ["c", "x", "a"]
        content["annotations"][5].update(image_id=3, keypoints=[31, 1, 2, 32, 2, 2, 33, 3, 2])

    layouts.edit_json(layouts.coco(tmp_path) / "annotations.json", change)
    pairs([1, 6], [6, 1])(tmp_path)
    there, back = open_dataset("coco", tmp_path).records[-2:]
    assert there.category == "cow→sheep"
    np.testing.assert_array_equal(there.target_keypoints, [[33, 3], [np.nan] * 2, [31, 1]])
    np.testing.assert_array_equal(there.keypoints, [[13, 20], [np.nan] * 2, [30, 44]])
    np.testing.assert_array_equal(back.target_keypoints, [[30, 44], [np.nan] * 2, [13, 20]])
    for names, said in ((["x", "y", "z"], "share no keypoint's name"), (["a", "a", "b"], "stands twice")):
        layouts.edit_json(
            tmp_path / "annotations.json", lambda c, names=names: c["categories"][1].update(keypoints=names)
        )
        assert any(said in str(problem) for problem in open_dataset("coco", tmp_path).problems)


def test_an_absolute_name_inside_the_root_is_taken(tmp_path: Path) -> None:
    rename_to(str(layouts.coco(tmp_path) / "images" / "2.jpg"))(tmp_path)
    assert open_dataset("coco", tmp_path).check() == []


def test_annotations_in_any_encoding_with_a_mark_and_none_without(tmp_path: Path) -> None:
    path = layouts.coco(tmp_path) / "annotations.json"
    text = path.read_text(encoding="utf-8").replace("cow", "Kälbchen")
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_text(text, encoding=encoding)
        assert open_dataset("coco", tmp_path)[0].category == "Kälbchen"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"annotations\.json: must be text in UTF-8, received byte 0xE4"):
        open_dataset("coco", tmp_path)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"images": ' + "9" * 5000 + "}", "{", "[]", "7", '"\\ud800"'])
@pytest.mark.parametrize("name", ["annotations.json", "pairs.json"])
def test_json_that_no_reader_takes(tmp_path: Path, name: str, content: str) -> None:
    (layouts.coco(tmp_path) / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        open_dataset("coco", tmp_path)


def test_a_pipe_for_annotations_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DataError, match="must be a regular file, received a pipe or a device"):
        open_dataset("coco", tmp_path, annotations="pipe.json")


def test_text_that_is_not_json(tmp_path: Path) -> None:
    (layouts.coco(tmp_path) / "annotations.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"annotations\.json"):
        open_dataset("coco", tmp_path)
    (tmp_path / "annotations.json").write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"annotations\.json: must be a JSON file, received an empty one"):
        open_dataset("coco", tmp_path)


def test_a_truncated_image_is_found_by_the_check_and_fails_only_its_pairs(tmp_path: Path) -> None:
    truncate(layouts.coco(tmp_path))
    dataset = open_dataset("coco", tmp_path)
    assert len(dataset) == 4
    found = dataset.check()
    assert [(problem.where.endswith("2.jpg"), problem.pairs) for problem in found] == [(True, 2)]
    assert "truncated" in str(found[0])
    with pytest.raises(DataError, match=r"pair '1-2'.*2\.jpg"):
        dataset.load(dataset[0])
    dataset.load(dataset[3])
    with pytest.raises(DataError, match="truncated"):
        dataset.require_sound()


def lie_down(path: Path) -> None:
    """Save a picture a quarter turn on its side, with the tag that has it turned back when it is opened."""
    pillow = pytest.importorskip("PIL.Image", reason="Pillow comes with matplotlib, an extra")
    exif = pillow.Exif()
    exif[0x0112] = 6
    pillow.open(path).save(path, exif=exif)


def resize(path: Path) -> None:
    layouts.write_image(path, 2, (30, 40))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lie_down, r"picture, 60×80 once its EXIF tag has turned it upright, received 80×60; annotate it upright"),
        (resize, r"picture, 40×30, received 80×60; annotate the picture as it is now"),
    ],
)
def test_a_picture_of_another_size_than_annotated_is_named_and_not_measured(
    tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    change(layouts.coco(tmp_path) / "images" / "2.jpg")
    dataset = open_dataset("coco", tmp_path)
    (found,) = dataset.check()
    assert (found.where, found.pairs) == (str(tmp_path / "images" / "2.jpg"), 2)
    assert said in str(found)
    with pytest.raises(DataError, match=r"pair '1-2': `width and height of 2\.jpg` must be those of the picture"):
        dataset.load(dataset[0])
    dataset.load(dataset[3])
    assert len(shrink(dataset, 2.0)) == 2


@pytest.mark.parametrize(("make", "kind"), [(layouts.spair, "spair"), (layouts.ap10k, "ap10k")])
def test_a_picture_of_an_official_set_that_was_resized_is_named_and_not_measured(
    tmp_path: Path, make: Callable[[Path], Path], kind: str
) -> None:
    first = open_dataset(kind, make(tmp_path))[0]
    resize(first.source_path)
    dataset = open_dataset(kind, tmp_path)
    (found,) = dataset.check()
    assert found.where == str(first.source_path)
    assert "must be those of the picture, 40×30, received 80×60; annotate the picture as it is now, or take" in str(
        found
    )
    with pytest.raises(DataError, match="width and height of"):
        dataset.load(dataset[0])
    layouts.write_image(first.source_path, 2, (80, 60))  # the numbers are swapped in the annotation, say
    assert open_dataset(kind, tmp_path).load(first).source.shape == (80, 60, 3)


@pytest.mark.parametrize(
    "size", [{}, {"width": None, "height": None}, {"width": 0, "height": 0}, {"width": -1, "height": -1}]
)
def test_a_picture_whose_annotation_names_no_size_may_have_any(tmp_path: Path, size: dict[str, int | None]) -> None:
    def change(content: dict[str, Any]) -> None:
        for image in content["images"]:
            del image["width"], image["height"]
            image.update(size)

    layouts.edit_json(layouts.coco(tmp_path) / "annotations.json", change)
    resize(tmp_path / "images" / "2.jpg")
    assert len(open_dataset("coco", tmp_path).load(open_dataset("coco", tmp_path)[0]).keypoints) == 3


def test_points_outside_their_image_are_named_and_kept(tmp_path: Path) -> None:
    annotation(2, keypoints=[500, 20, 2, 43, 25, 2, 30, 44, 2])(layouts.coco(tmp_path))
    dataset = open_dataset("coco", tmp_path)
    assert len(dataset) == 4
    assert ["outside" in str(problem) for problem in dataset.check()] == [True, True]


def test_a_category_on_one_image_is_named(tmp_path: Path) -> None:
    dataset = open_dataset("coco", layouts.coco(tmp_path, pairs=False))
    assert "sheep" in str(dataset.problems[0])
    folder = layouts.willow_folders(tmp_path / "w") / "PF-dataset-WILLOW" / "duck(S)"
    (folder / "duc_1.mat").unlink()
    willow = open_dataset("pfwillow", tmp_path / "w")
    assert len(willow) == 2
    assert any("duc_1" in str(problem) for problem in willow.problems)
    assert any("one usable image" in str(problem) for problem in willow.problems)


def spair_break(root: Path, change: Callable[[Any], object]) -> Dataset:
    path = sorted((layouts.spair(root) / "PairAnnotation" / "test").iterdir())[0]
    layouts.edit_json(path, change)
    return open_dataset("spair", root)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(src_bndbox=[1, 2, 3]), "src_bndbox"),
        (lambda c: c.update(src_kps=[[1, "x"]]), r"src_kps\.0\.1"),
        (lambda c: c["src_kps"].pop(), "src_kps"),
        (lambda c: c.update(src_imname="../../../x.jpg"), "climb"),
        (lambda c: c.update(trg_imname="absent.jpg"), "absent.jpg"),
        (lambda c: c.update(trg_bndbox=[50, 0, 10, 9]), "bndbox"),
    ],
)
def test_spair(tmp_path: Path, change: Callable[[Any], object], said: str) -> None:
    dataset = spair_break(tmp_path, change)
    assert len(dataset) == 2
    assert any(said.replace("\\", "") in str(problem) for problem in dataset.problems)
    assert any("000001-" in problem.where and problem.pairs == 1 for problem in dataset.problems)


def test_pascal(tmp_path: Path) -> None:
    root = layouts.pascal(tmp_path)
    layouts.write_mat(
        root / "PF-dataset-PASCAL" / "Annotations" / "aeroplane" / "2008_2.mat", {"kps": np.full((4, 2), np.nan)}
    )
    dataset = open_dataset("pfpascal", root)
    assert len(dataset) == 1
    assert "line 3" in str(dataset.problems[0])
    text = (root / "test_pairs.csv").read_text(encoding="utf-8")
    (root / "test_pairs.csv").write_text(text.replace("jpg,1,", "jpg,21,", 1), encoding="utf-8")
    assert any("class" in str(problem) for problem in open_dataset("pfpascal", root).problems)


def test_pascal_without_any_points(tmp_path: Path) -> None:
    dataset = open_dataset("pfpascal", layouts.pascal(tmp_path, mat=False), split="trn")
    assert len(dataset) == 0
    assert all("XA" in str(problem) for problem in dataset.problems)


def test_willow_csv(tmp_path: Path) -> None:
    path = layouts.willow_csv(tmp_path) / "test_pairs.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[1] = lines[1].replace("Cars_0", "../../../Cars_0")
    lines[2] = lines[2].replace("5.000", "nan", 1)
    path.write_text("\n".join(lines), encoding="utf-8")
    dataset = open_dataset("pfwillow", tmp_path)
    assert len(dataset) == 0
    assert ["climb" in str(dataset.problems[0]), "finite" in str(dataset.problems[1])] == [True, True]


@pytest.mark.parametrize("category", ["²", "1e3", "٣", "9" * 5000, "", "-1"])
def test_pascal_classes_that_are_none(tmp_path: Path, category: str) -> None:
    path = layouts.pascal(tmp_path) / "test_pairs.csv"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("jpg,1,", f"jpg,{category},", 1), encoding="utf-8")
    dataset = open_dataset("pfpascal", tmp_path)
    assert (len(dataset), "class" in str(dataset.problems[0])) == (1, True)


@pytest.mark.parametrize("kind", ["pfpascal", "pfwillow", "spair"])
def test_lists_in_other_encodings_and_endless_fields(tmp_path: Path, kind: str) -> None:
    make = {"pfpascal": layouts.pascal, "pfwillow": layouts.willow_csv, "spair": layouts.spair}[kind]
    path = make(tmp_path) / ("Layout/large/test.txt" if kind == "spair" else "test_pairs.csv")
    text, count = path.read_text(encoding="utf-8"), len(open_dataset(kind, tmp_path))
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_text(text, encoding=encoding)
        assert len(open_dataset(kind, tmp_path)) == count
    path.write_bytes(text.encode() + "é".encode("latin-1"))
    with pytest.raises(DataError, match="must be text in UTF-8, received byte 0xE9"):
        open_dataset(kind, tmp_path)
    if kind != "spair":
        path.write_text(text.replace("Cars_0", "C" * 200_000).replace("2008_0", "C" * 200_000))
        with pytest.raises(DataError, match="field larger than field limit"):
            open_dataset(kind, tmp_path)


@pytest.mark.parametrize("kind", ["pfpascal", "pfwillow", "spair", "ap10k"])
@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "/etc/passwd", "https://a.org/b"])
def test_names_that_no_file_has_cost_their_pair(tmp_path: Path, kind: str, name: str) -> None:
    makers = {
        "pfpascal": layouts.pascal,
        "pfwillow": layouts.willow_csv,
        "spair": layouts.spair,
        "ap10k": layouts.ap10k,
    }
    root = makers[kind](tmp_path)
    before = len(open_dataset(kind, root))
    if kind in ("pfpascal", "pfwillow"):
        lines = (root / "test_pairs.csv").read_text(encoding="utf-8").splitlines()
        lines[1] = ",".join([name, *lines[1].split(",")[1:]])
        (root / "test_pairs.csv").write_text("\n".join(lines), encoding="utf-8")
    else:
        path = sorted((root / "PairAnnotation" / "test").iterdir())[0]
        key = {"spair": "src_imname", "ap10k": "src_json_path"}[kind]
        layouts.edit_json(path, lambda content: content.update({key: name}))
    dataset = open_dataset(kind, root)
    assert len(dataset) == before - 1
    assert sum(problem.pairs for problem in dataset.problems) == 1


def test_a_coordinate_beyond_any_image_costs_its_pair(tmp_path: Path) -> None:
    dataset = spair_break(tmp_path, lambda c: c["src_kps"].__setitem__(0, [1e308, 1]))
    assert (len(dataset), sum(problem.pairs for problem in dataset.problems)) == (2, 1)
    dataset = spair_break(tmp_path / "b", lambda c: c.update(src_bndbox=[1, 1, 1e308, 9]))
    assert (len(dataset), sum(problem.pairs for problem in dataset.problems)) == (2, 1)


def test_a_pair_that_spair_lists_twice_counts_once(tmp_path: Path) -> None:
    path = layouts.spair(tmp_path) / "Layout" / "large" / "test.txt"
    path.write_text(path.read_text() * 2)
    dataset = open_dataset("spair", tmp_path)
    assert len(dataset) == len({record.id for record in dataset}) == 3
    assert sum(problem.pairs for problem in dataset.problems) == 3


def test_ap10k(tmp_path: Path) -> None:
    root = layouts.ap10k(tmp_path)
    path = next((root / "PairAnnotation" / "test").iterdir())
    layouts.edit_json(path, lambda c: c.update(src_json_path="data/ap-10k/ImageAnnotation/../../../x.json"))
    dataset = open_dataset("ap10k", root)
    assert len(dataset) == 0
    assert "climb" in str(dataset.problems[0])
    layouts.edit_json(path, lambda c: c.update(src_json_path=7))
    assert "src_json_path" in str(open_dataset("ap10k", root).problems[0])


@pytest.mark.parametrize("name", ["a" * 300, "a" * 5000, "a" * 300 + "/b.jpg"])
def test_ap10k_names_that_no_file_has_give_way_to_the_usual_one(tmp_path: Path, name: str) -> None:
    root = layouts.ap10k(tmp_path)
    layouts.edit_json(root / "ImageAnnotation/Felidae/cat/000000000001.json", lambda c: c.update(file_name=name))
    dataset = open_dataset("ap10k", root)
    assert [record.source_path.name for record in dataset] == ["000000000001.jpg"]
    assert not dataset.problems


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("coco", {"min_points": "x"}, "`min_points` must be a valid integer"),
        ("coco", {"min_points": True}, "`min_points` must be a valid integer"),
        ("coco", {"max_pairs": 1e9}, "`max_pairs` must be a valid integer"),
        ("coco", {"annotations": 5}, "`annotations` must be a valid string"),
        ("coco", {"images": [1]}, "`images` must be a valid string"),
        ("coco", {"cache_bytes": "x"}, "`cache_bytes` must be a valid integer"),
        ("spair", {"category": 5}, "`category` must be a valid string"),
        ("pfpascal", {"cache_bytes": 1.5}, "`cache_bytes` must be a valid integer"),
        ("pfwillow", {"pairs": 5}, "`pairs` must be a valid string"),
        ("ap10k", {"occluded": "yes"}, "`occluded` must be a valid boolean"),
        ("scenes", {"size_hw": "x"}, "`size_hw` must be"),
        ("scenes", {"count": None}, "`count` must be a valid integer"),
    ],
)
def test_options_of_another_type_are_refused(tmp_path: Path, kind: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_dataset(kind, tmp_path, **options)


def test_numbers_of_numpy_are_numbers_and_a_cache_may_hold_nothing(tmp_path: Path) -> None:
    root = layouts.coco(tmp_path)
    dataset = open_dataset("coco", root, min_points=np.int64(1), cache_bytes=-1)
    assert dataset.image(dataset[0].source_path).shape == (60, 80, 3)
    assert len(open_dataset("scenes", count=1, size_hw=[96, 128])) == 1


@pytest.mark.parametrize("name", ["a" * 300, "a" * 5000, "a\0b"])
@pytest.mark.parametrize("kind", ["spair", "pfpascal", "pfwillow", "ap10k", "coco"])
def test_roots_of_impossible_names_are_refused(kind: str, name: str) -> None:
    with pytest.raises(DataError, match="`root` must be an existing folder"):
        open_dataset(kind, name)


@pytest.mark.parametrize("kind", ["spair", "pfpascal", "pfwillow", "ap10k", "coco"])
def test_a_folder_that_is_not_the_data_set(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError):
        open_dataset(kind, tmp_path)
    with pytest.raises(DataError):
        open_dataset(kind, tmp_path / "absent")


def _zero_in_spair(root: Path) -> None:
    path = sorted((layouts.spair(root) / "PairAnnotation" / "test").iterdir())[0]
    layouts.edit_json(path, lambda content: content["src_kps"].__setitem__(1, [0, 0]))


def _zero_in_ap10k(root: Path) -> None:
    path = layouts.ap10k(root) / "ImageAnnotation/Felidae/cat/000000000001.json"
    layouts.edit_json(path, lambda content: content["keypoints"].__setitem__(slice(3, 6), [0, 0, 2]))


def _zero_in_pascal(root: Path) -> None:
    folder = layouts.pascal(root) / "PF-dataset-PASCAL" / "Annotations" / "aeroplane"
    points = layouts.PASCAL_POINTS.copy()
    points[1] = 0
    layouts.write_mat(folder / "2008_0.mat", {"kps": points})


def _zero_in_willow(root: Path) -> None:
    points = layouts.WILLOW_POINTS.copy()
    points[1] = 0
    layouts.write_mat(
        layouts.willow_folders(root) / "PF-dataset-WILLOW" / "car(G)" / "car_0.mat", {"pts_coord": points.T}
    )


def _zero_in_willow_csv(root: Path) -> None:
    path = layouts.willow_csv(root) / "test_pairs.csv"
    header, first, *rest = path.read_text(encoding="utf-8").splitlines()
    cells = first.split(",")
    cells[3] = cells[13] = "0"
    path.write_text("\n".join([header, ",".join(cells), *rest]), encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("spair", _zero_in_spair),
        ("ap10k", _zero_in_ap10k),
        ("pfpascal", _zero_in_pascal),
        ("pfwillow", _zero_in_willow),
        ("pfwillow", _zero_in_willow_csv),
    ],
)
def test_placeholders_at_the_origin_are_absent_in_every_layout(
    tmp_path: Path, kind: str, damage: Callable[[Path], None]
) -> None:
    damage(tmp_path)
    dataset = open_dataset(kind, tmp_path)
    assert any("1 visible point at (0, 0) in 1 " in str(problem) for problem in dataset.problems)
    assert any(np.isnan(record.keypoints[1]).all() and not np.isnan(record.keypoints[0]).any() for record in dataset)
    assert not any(np.isin(record.keypoints, (0, -1)).all(axis=1).any() for record in dataset)


def test_a_pair_that_is_not_there_is_asked_for_in_vain_and_told_why(tmp_path: Path) -> None:
    annotation(2, image_id=77)(layouts.coco(tmp_path))
    dataset = open_dataset("coco", tmp_path)
    with pytest.raises(IndexError, match=r"'.*' has 2 pairs, received index 9; .*image 77 is absent or not unique"):
        dataset[9]
    assert len(list(dataset)) == 2


def test_a_pascal_list_may_write_its_flips_as_tables_do(tmp_path: Path) -> None:
    path = layouts.pascal(tmp_path) / "trn_pairs.csv"
    text = path.read_text(encoding="utf-8")
    for no, yes in (("0.0", "1.0"), ("False", "True"), ("0", "1")):
        path.write_text(text.replace(",0\n", f",{no}\n").replace(",1\n", f",{yes}\n"), encoding="utf-8")
        assert [record.fields["flip"] for record in open_dataset("pfpascal", tmp_path, split="trn")] == [0, 1]
    path.write_text(text.replace(",1\n", ",2\n"), encoding="utf-8")
    dataset = open_dataset("pfpascal", tmp_path, split="trn")
    assert len(dataset) == 1
    assert "`flip` must be 0 or 1, received '2'" in str(dataset.problems[0])


@pytest.mark.parametrize("kind", ["pfpascal", "pfwillow"])
def test_a_list_without_its_first_line_is_refused_and_loses_no_pair(tmp_path: Path, kind: str) -> None:
    path = {"pfpascal": layouts.pascal, "pfwillow": layouts.willow_csv}[kind](tmp_path) / "test_pairs.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    for rest in ("\n".join(lines[1:]), ""):
        path.write_text(rest, encoding="utf-8")
        with pytest.raises(DataError, match=r"must name the .*columns .* in its first line, received"):
            open_dataset(kind, tmp_path)


def test_a_willow_list_is_read_by_the_names_of_its_columns(tmp_path: Path) -> None:
    path = layouts.willow_csv(tmp_path) / "test_pairs.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    before = open_dataset("pfwillow", tmp_path)
    names = [f"{axis}{side}{i}" for side in "BA" for i in range(1, 11) for axis in "YX"]
    order = [rows[0].index(name) for name in ("imageB", *names, "imageA")]
    shuffled = [[str(number), *(row[place] for place in order)] for number, row in enumerate(rows)]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["", *shuffled[0][1:]], *shuffled[1:]])
    after = open_dataset("pfwillow", tmp_path)
    assert [record.source_path for record in after] == [record.source_path for record in before]
    for one, other in zip(after, before, strict=True):
        np.testing.assert_array_equal(one.keypoints, other.keypoints)
        np.testing.assert_array_equal(one.target_keypoints, other.target_keypoints)
    rows[0][2:] = [f"column {number}" for number in range(40)]  # names of somebody's own: in the usual order
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    np.testing.assert_array_equal(open_dataset("pfwillow", tmp_path)[1].keypoints, before[1].keypoints)


def test_a_willow_picture_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = layouts.willow_folders(tmp_path) / "PF-dataset-WILLOW"
    layouts.write_image(folder / "duck(S)" / "more.png", 5)
    layouts.write_mat(folder / "duck(S)" / "more.mat", {"pts_coord": layouts.WILLOW_POINTS.T})
    assert len(open_dataset("pfwillow", tmp_path)) == 2 + 6
    (folder / "duck(S)" / "more.png").rename(folder / "duck(S)" / "More.PNG")
    dataset = open_dataset("pfwillow", tmp_path)
    assert (len(dataset), len(dataset.problems)) == (2 + 2, 1)
    assert "more.png: no such file; there is 'More.PNG'" in str(dataset.problems[0])
    for path in folder.glob("*/*.mat"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"neither a pair list .*; .*car_0\.mat: broken or no MATLAB 5 file"):
        open_dataset("pfwillow", tmp_path)


@pytest.mark.parametrize("make", [layouts.spair, layouts.pascal, layouts.willow_csv, layouts.ap10k, layouts.coco])
def test_a_file_whose_name_differs_in_capitals_is_pointed_to(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    kind = {"pascal": "pfpascal", "willow_csv": "pfwillow"}.get(make.__name__, make.__name__)
    first = open_dataset(kind, make(tmp_path))[0].source_path
    first.rename(first.with_suffix(first.suffix.upper()))
    dataset = open_dataset(kind, tmp_path)
    upper = first.with_suffix(first.suffix.upper()).name
    assert f"; there is {upper!r}, which differs in capital letters" in str(dataset.problems[0])


def test_a_list_of_pairs_that_is_no_object_is_told_in_json_words(tmp_path: Path) -> None:
    layouts.write_json(layouts.coco(tmp_path) / "pairs.json", [[1, 2]])
    with pytest.raises(DataError, match=r"field 'the file' must be a valid dictionary, received \[\[1, 2\]\]"):
        open_dataset("coco", tmp_path)


@pytest.mark.parametrize(
    ("make", "kind", "right"), [(layouts.spair, "spair", "cat"), (layouts.pascal, "pfpascal", "aeroplane")]
)
def test_a_category_that_the_set_does_not_have_is_refused(
    tmp_path: Path, make: Callable[[Path], Path], kind: str, right: str
) -> None:
    make(tmp_path)
    assert len(open_dataset(kind, tmp_path, category=right)) >= 2
    with pytest.raises(
        InputError, match=rf"`category` must be one of the data set's, received .*; did you mean '{right}'"
    ):
        open_dataset(kind, tmp_path, category=f"{right}s")
