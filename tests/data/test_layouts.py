"""Every official layout is read as it is; points, boxes and fields come out in this project's convention."""

from __future__ import annotations

import os
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import layouts  # type: ignore[import-not-found]
import numpy as np
import pytest

from kbc.data import Dataset, open_dataset, shrink
from kbc.data.matlab import read_mat
from kbc.errors import DataError, InputError
from kbc.geometry import Box, defined
from kbc.images import fingerprint


def opened_soundly(dataset: Dataset) -> Dataset:
    assert dataset.check() == []
    dataset.require_sound()
    for record in dataset:
        pair = dataset.load(record, "both")
        assert pair.source.shape == (60, 80, 3)
        assert pair.target_box == record.target_box
    return dataset


def test_spair_pairs_fields_and_layouts(tmp_path: Path) -> None:
    dataset = opened_soundly(open_dataset("spair", layouts.spair(tmp_path)))
    first = dataset[0]
    assert dataset[0].id == "000001-2008_000001-2008_000002:cat"
    assert first.category == "cat"
    assert first.keypoints.tolist() == [[12, 8], [13, 9], [14, 10], [15, 11]]
    assert first.target_keypoints.tolist() == [[13, 8], [14, 9], [15, 10], [16, 11]]
    assert first.target_box == Box(10, 5, 51, 45)
    assert first.fields["viewpoint_variation"] == 1
    assert first.fields["scale_variation"] == 2
    assert first.fields["truncation"] == 3
    assert (first.fields["source_truncated"], first.fields["target_truncated"]) == (0, 1)
    assert len(open_dataset("spair", tmp_path, layout="small")) == 1


def test_spair_reads_copies_without_colons_in_names(tmp_path: Path) -> None:
    for path in (layouts.spair(tmp_path) / "PairAnnotation" / "test").iterdir():
        path.rename(path.with_name(path.name.replace(":", "_")))
    assert len(open_dataset("spair", tmp_path)) == 3


def test_spair_says_when_pair_and_image_disagree_about_a_box(tmp_path: Path) -> None:
    path = layouts.spair(tmp_path) / "ImageAnnotation" / "cat" / "2008_000002.json"
    layouts.edit_json(path, lambda content: content.update(bndbox=[0, 0, 9, 9]))
    dataset = open_dataset("spair", tmp_path)
    assert len(dataset) == 3
    assert len(dataset.problems) == 1
    assert "2008_000002" in str(dataset.problems[0])
    assert "bndbox" in str(dataset.problems[0])


@pytest.mark.parametrize(("options", "place"), [({"split": "train"}, "split"), ({"layout": "big"}, "layout")])
def test_unknown_split_or_layout_is_refused(tmp_path: Path, options: dict[str, str], place: str) -> None:
    with pytest.raises(InputError, match=place):
        open_dataset("spair", layouts.spair(tmp_path), **options)


def test_willow_folders_give_every_ordered_pair_counted_from_zero(tmp_path: Path) -> None:
    dataset = opened_soundly(open_dataset("pfwillow", layouts.willow_folders(tmp_path)))
    assert len(dataset) == 4
    first = dataset[0]
    assert first.category == "car(G)"
    assert np.allclose(first.keypoints, layouts.WILLOW_POINTS - 1)
    assert np.allclose(first.target_keypoints, layouts.WILLOW_POINTS)
    assert first.bbox_kind == "keypoint-extent"
    assert first.target_box == Box.around(first.target_keypoints)


def test_willow_csv_is_read_counted_from_zero(tmp_path: Path) -> None:
    dataset = opened_soundly(open_dataset("pfwillow", layouts.willow_csv(tmp_path)))
    assert len(dataset) == 2
    assert np.allclose(dataset[0].keypoints, layouts.WILLOW_POINTS - 1)
    assert np.allclose(dataset[0].target_keypoints, layouts.WILLOW_POINTS)
    assert dataset[1].source_path.name == "Cars_1.png"


@pytest.mark.parametrize("points", ["mat", "csv"])
def test_pascal_points_from_either_place_agree(tmp_path: Path, points: str) -> None:
    dataset = opened_soundly(open_dataset("pfpascal", layouts.pascal(tmp_path), points=points))
    first = dataset[0]
    assert first.category == "aeroplane"
    known = first.keypoints[defined(first.keypoints)]
    assert np.allclose(known, layouts.PASCAL_POINTS[[0, 1, 3]] - 1)
    assert first.bbox_kind == ("annotated" if points == "mat" else "keypoint-extent")
    if points == "mat":
        assert first.target_box is not None
        assert first.target_box.width == 33.0  # 41 − 8, as published thresholds have it
        assert len(first.keypoints) == 4


def test_pascal_training_pairs_are_mirrored_where_the_list_says_so(tmp_path: Path) -> None:
    dataset = open_dataset("pfpascal", layouts.pascal(tmp_path), split="trn")
    plain, mirrored = dataset
    image, mirror = dataset.load(plain, "both"), dataset.load(mirrored, "both")
    assert np.array_equal(mirror.source, image.source[:, ::-1])
    for a, b in zip(plain.keypoints, mirrored.keypoints, strict=True):
        if not np.isnan(a).any():
            x, y = (int(v) for v in a)
            u, v = (int(w) for w in b)
            assert np.array_equal(image.source[y, x], mirror.source[v, u])
    assert plain.source_box is not None
    assert mirrored.source_box is not None
    assert mirrored.source_box.x0 == 80 - plain.source_box.x1


@pytest.mark.parametrize(
    ("part", "category"), [("intra-species", "cat"), ("cross-species", "Felidae"), ("cross-family", "all")]
)
def test_ap10k_benchmarks(tmp_path: Path, part: str, category: str) -> None:
    dataset = opened_soundly(open_dataset("ap10k", layouts.ap10k(tmp_path), benchmark=part))
    assert len(dataset) == 1
    assert dataset[0].category == category
    assert dataset[0].target_box == Box(10, 8, 60, 48)
    assert int(defined(dataset[0].keypoints).sum()) == 5
    visible = open_dataset("ap10k", tmp_path, benchmark=part, occluded=False)
    assert int(defined(visible[0].keypoints).sum()) == 4


def test_coco_with_a_pairs_file(tmp_path: Path) -> None:
    dataset = opened_soundly(open_dataset("coco", layouts.coco(tmp_path)))
    assert [record.id for record in dataset] == ["1-2", "2-3", "3-4", "4-1"]
    assert defined(dataset[0].keypoints).tolist() == [True, True, False]  # hidden in one of the two
    assert dataset[0].target_box == Box(14, 18, 50, 48)
    assert [record.fields["target_instances"] for record in dataset] == [1, 1, 3, 1]
    assert defined(open_dataset("coco", tmp_path, occluded=True)[0].keypoints).all()
    assert [len(record.others) for record in dataset] == [0, 0, 1, 0]  # the sheep on that picture is no cow
    assert dataset[2].others[0].tolist() == [[25, 20], [55, 25], [30, 44]]  # the fifth cow


def test_coco_forms_pairs_within_a_category_and_never_within_a_picture(tmp_path: Path) -> None:
    dataset = open_dataset("coco", layouts.coco(tmp_path, pairs=False))
    assert {record.category for record in dataset} == {"cow"}
    assert len(dataset) == 9  # 5·4/2, less the two cows of one picture
    assert "4-5" not in {record.id for record in dataset}
    assert ["sheep" in str(problem) for problem in dataset.problems] == [True]


def test_coco_samples_pairs_before_it_forms_them(tmp_path: Path) -> None:
    count = 400
    layouts.write_image(tmp_path / "1.png")
    instance = {"category_id": 1, "keypoints": [3, 4, 2, 9, 9, 2]}
    content = {
        "images": [{"id": i, "file_name": "1.png"} for i in range(count)],
        "annotations": [{"id": i, "image_id": i, **instance} for i in range(count)],
        "categories": [{"id": 1, "name": "cow"}],
    }
    layouts.write_json(tmp_path / "annotations.json", content)
    dataset = open_dataset("coco", tmp_path, max_pairs=100)
    assert dataset.notes == ("100 of 79,800 possible pairs, evenly spread; max_pairs takes more",)
    everything = list(combinations(range(count), 2))
    spread = [everything[round(i)] for i in np.linspace(0, len(everything) - 1, 100)]
    assert [record.id for record in dataset] == [f"{a}-{b}" for a, b in spread]
    assert dataset[:3].notes == dataset.notes
    assert open_dataset("coco", tmp_path, max_pairs=79_800).notes == ()


def test_scenes_are_a_dataset() -> None:
    pytest.importorskip("kbc.data.scenes.render")
    dataset = open_dataset("scenes", count=3, seed=5, size_hw=(120, 160))
    again = open_dataset("scenes", count=3, seed=5, size_hw=(120, 160))
    assert [record.id for record in dataset] == ["5", "6", "7"]
    for record, other in zip(dataset, again, strict=True):
        assert np.array_equal(dataset.load(record).target, again.load(other).target)
        assert np.array_equal(record.target_keypoints, other.target_keypoints, equal_nan=True)
        assert record.target_box is not None
    assert dataset.check() == []


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [True, False])
def test_matlab_files(tmp_path: Path, order: str, compressed: bool) -> None:
    values = np.array([[1.5, np.nan, -3.0], [4.0, 5.0, 6.0]])
    arrays: dict[str, np.ndarray | str] = {"text": "words", "a_long_name": values, "x": np.array([[7.0]])}
    path = layouts.write_mat(tmp_path / "a.mat", arrays, compressed, order)
    found = read_mat(path, "a_long_name", "x", "absent")
    assert list(found) == ["a_long_name", "x"]
    assert np.array_equal(found["a_long_name"], values, equal_nan=True)
    assert found["x"].tolist() == [[7.0]]
    with pytest.raises(DataError, match=r"a\.mat: field 'text' must be an array of real numbers"):
        read_mat(path, "text")


@pytest.mark.parametrize("cut", [0, 100, 130, 150])
def test_broken_matlab_files_are_data_errors(tmp_path: Path, cut: int) -> None:
    path = layouts.write_mat(tmp_path / "a.mat", {"kps": np.ones((4, 2))})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"a\.mat"):
        read_mat(path, "kps")


def test_matlab_files_that_no_annotation_is(tmp_path: Path) -> None:
    path = layouts.write_mat(tmp_path / "a.mat", {"kps": np.zeros((2000, 2000))})  # 32 MB in 31 kB
    with pytest.raises(DataError, match="one small array"):
        read_mat(path, "kps")
    path.write_bytes(bytes(65537))
    with pytest.raises(DataError, match="at most 65,536 bytes"):
        read_mat(path, "kps")
    layouts.write_mat(path, {"kps": np.array([[np.inf, 1.0]])})
    with pytest.raises(DataError, match=r"a\.mat: field 'kps' has values that are infinite"):
        read_mat(path, "kps")
    one = layouts.write_mat(tmp_path / "b.mat", {"kps": np.ones((4, 2))}).read_bytes()
    path.write_bytes(one + one[128:])
    with pytest.raises(DataError, match=r"'kps' must be one small array, received .* or two"):
        read_mat(path, "kps")


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", "?"])
def test_matlab_files_that_scipy_writes(tmp_path: Path, dtype: str, compressed: bool) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    values = np.arange(6).reshape(3, 2).astype(dtype)
    others = {"s": {"a": 1}, "c": np.array([1, "x"], object), "t": "text", "z": values * 1j, "deep": np.ones((2, 2, 2))}
    path = tmp_path / "a.mat"
    scipy_io.savemat(path, others | {"kps": values, "empty": np.zeros((0, 2))}, do_compression=compressed)
    found = read_mat(path, "kps", "empty")
    np.testing.assert_array_equal(found["kps"], values)
    assert found["empty"].shape == (0, 2)
    for name in others:
        with pytest.raises(DataError, match=f"field '{name}' must be an array of real numbers with two axes"):
            read_mat(path, name)
    scipy_io.savemat(path, {"kps": values}, format="4")
    with pytest.raises(DataError, match="no MATLAB 5 file"):
        read_mat(path, "kps")


@pytest.mark.parametrize("compressed", [True, False])
def test_a_matlab_file_with_any_one_bit_flipped_is_read_or_refused(tmp_path: Path, compressed: bool) -> None:
    values = np.arange(8.0).reshape(4, 2)
    path = layouts.write_mat(tmp_path / "a.mat", {"kps": values}, compressed)
    content, seen = path.read_bytes(), Counter[str]()
    for place in range(120, len(content)):
        for bit in range(8):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            try:
                found = read_mat(path, "kps")
                seen["read"] += 1
                if compressed and "kps" in found:  # a checksum stands behind it
                    np.testing.assert_array_equal(found["kps"], values)
            except DataError:
                seen["refused"] += 1
    assert seen["read"] > 8
    assert seen["refused"] > 200


def test_an_image_is_decoded_once_while_memory_lasts(tmp_path: Path) -> None:
    dataset = open_dataset("coco", layouts.coco(tmp_path))
    first = dataset.load(dataset[0]).target
    assert dataset.load(dataset[1]).source is first
    assert not first.flags.writeable
    assert fingerprint(first) == fingerprint(dataset.load(dataset[1]).source)
    small = open_dataset("coco", tmp_path, cache_bytes=first.nbytes)
    for record in small:
        small.load(record)
    assert 0 < small.image.bytes <= first.nbytes


def test_a_limit_is_spread_over_the_list_and_shards_partition_it(tmp_path: Path) -> None:
    dataset = open_dataset("coco", layouts.coco(tmp_path, pairs=False))
    assert [r.id for r in dataset.limited(3)] == [dataset[0].id, dataset[4].id, dataset[8].id]
    assert dataset.limited(100) is dataset
    parts = [record.id for i in range(4) for record in dataset.shard(i, 4)]
    assert sorted(parts) == sorted(record.id for record in dataset)
    with pytest.raises(InputError, match="shard"):
        dataset.shard(4, 4)


def test_parts_and_factors_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    dataset: Any = open_dataset("coco", layouts.coco(tmp_path))
    for count in (0, -1, 2.5, "2"):
        with pytest.raises(InputError, match="`limit` must be a whole number, at least 1, received"):
            dataset.limited(count)
    for index, count in ((0, 0), (2, 2), (0.5, 2), ("0", "2")):
        with pytest.raises(InputError, match="`shard` must be i/n"):
            dataset.shard(index, count)
    for factor in (0.5, "2", None, (2, 2)):
        with pytest.raises(InputError, match="`shrink` must be a factor of 1 to"):
            shrink(dataset, factor)
    assert len(dataset.limited(np.int64(2))) == 2
    assert shrink(dataset, np.float32(2)).name.endswith("shrunk 2")


def test_unknown_kinds_and_options_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="spair"):
        open_dataset("spiar", tmp_path)
    with pytest.raises(InputError, match="split"):
        open_dataset("spair", tmp_path, spilt="test")


@pytest.mark.data
@pytest.mark.skipif("KBC_DATA" not in os.environ, reason="KBC_DATA is not set")
def test_willow_original_files_agree_with_their_coco_form() -> None:
    root = Path(os.environ["KBC_DATA"]) / "data" / "pf-willow"
    original, converted = open_dataset("pfwillow", root), open_dataset("coco", root)
    assert (len(original), len(converted)) == (900, 900)
    by_paths = {(record.source_path, record.target_path): record for record in converted}
    for record in original:
        other = by_paths[record.source_path, record.target_path]
        assert np.abs(record.keypoints - other.keypoints).max() < 0.01
        assert np.abs(record.target_keypoints - other.target_keypoints).max() < 0.01


@pytest.mark.data
@pytest.mark.skipif("KBC_DATA" not in os.environ, reason="KBC_DATA is not set")
def test_every_shared_set_is_sound() -> None:
    folders = sorted(path.parent for path in (Path(os.environ["KBC_DATA"]) / "data").glob("*/annotations.json"))
    assert folders
    for folder in folders:
        open_dataset("coco", folder).require_sound()
