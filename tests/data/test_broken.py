"""Broken data is named, counted and reported; with --strict nothing is matched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import layouts  # type: ignore[import-not-found]
import numpy as np
import pytest

from kbc.data import Dataset, open_dataset, shrink
from kbc.errors import DataError


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
    "an absolute path": (rename_to("/etc/passwd"), 2, "climb"),
    "a path that climbs out": (rename_to("images/../../x.jpg"), 2, "climb"),
    "a path that climbs out, as Windows writes it": (rename_to("..\\..\\x.jpg"), 2, "climb"),
    "a drive": (rename_to("C:/x.jpg"), 2, "climb"),
    "too few numbers": (annotation(2, keypoints=[1, 2, 2]), 2, "keypoints"),
    "an empty box": (annotation(2, bbox=[1, 1, 0, 5]), 2, "bbox"),
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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["annotations"][1].update(bbox="wide"), r"annotations\.1\.bbox"),
        (lambda c: c["annotations"][1].update(keypoints=["a", 1, 2]), r"annotations\.1\.keypoints\.0"),
        (lambda c: c.pop("images"), "images"),
    ],
)
def test_a_wrong_type_names_file_and_field(tmp_path: Path, change: Callable[[Any], object], said: str) -> None:
    layouts.edit_json(layouts.coco(tmp_path) / "annotations.json", change)
    with pytest.raises(DataError, match=r"annotations\.json.*" + said):
        open_dataset("coco", tmp_path)


def test_nan_in_json_is_refused(tmp_path: Path) -> None:
    annotation(2, keypoints=NAN)(layouts.coco(tmp_path))
    with pytest.raises(DataError, match=r"annotations\.json.*keypoints"):
        open_dataset("coco", tmp_path)


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


@pytest.mark.parametrize("size", [{}, {"width": None, "height": None}, {"width": 0, "height": 0}])
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


def test_ap10k(tmp_path: Path) -> None:
    root = layouts.ap10k(tmp_path)
    path = next((root / "PairAnnotation" / "test").iterdir())
    layouts.edit_json(path, lambda c: c.update(src_json_path="data/ap-10k/ImageAnnotation/../../../x.json"))
    dataset = open_dataset("ap10k", root)
    assert len(dataset) == 0
    assert "climb" in str(dataset.problems[0])
    layouts.edit_json(path, lambda c: c.update(src_json_path=7))
    assert "src_json_path" in str(open_dataset("ap10k", root).problems[0])


@pytest.mark.parametrize("kind", ["spair", "pfpascal", "pfwillow", "ap10k", "coco"])
def test_a_folder_that_is_not_the_data_set(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError):
        open_dataset(kind, tmp_path)
    with pytest.raises(DataError):
        open_dataset(kind, tmp_path / "absent")
