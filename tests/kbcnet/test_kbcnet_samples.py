"""Training pairs: the same at every call, and the points stay on what they mark."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from kbcnet_helpers import blob_image, centroid

from kbc.errors import DataError, InputError
from kbc.geometry import Window
from kbc.kbcnet.training.augment import MAX_POINTS, Sample, Views, framed_pair, training_window, warped_pair
from kbc.kbcnet.training.sources import HELD_OUT, PhotosData, PhotoSource, ScenesData, SceneSource, read_split

POINTS = np.array([[60.3, 50.2], [110.6, 52.1], [84.5, 90.4]])


def known(points: np.ndarray) -> np.ndarray:
    return points[~np.isnan(points).any(axis=1)]


def equal(a: Sample, b: Sample) -> bool:
    fields = ("source", "target", "keypoints", "target_keypoints", "parts")
    return all(np.array_equal(getattr(a, f), getattr(b, f), equal_nan=f != "source") for f in fields)


def test_a_scene_pair_is_determined_by_its_index() -> None:
    data = ScenesData(kind="scenes", views=Views(size=64), heights=(96,))
    first, second = SceneSource(data), SceneSource(data)
    second(7)
    assert equal(first(4), second(4))
    assert not equal(first(4), first(5))  # another scene
    assert not equal(first(4), SceneSource(data.model_copy(update={"seed": 1}))(4))


def test_categories_come_as_often_as_asked() -> None:
    data = ScenesData(kind="scenes", views=Views(size=64), heights=(64,), often={"lamp": 21.0})
    source = SceneSource(data)
    drawn = [source.names[source(index).parts.max()].split("/")[0] for index in range(24)]
    assert drawn.count("lamp") >= 12  # 21 of 28 on average
    assert len(set(drawn)) > 1
    with pytest.raises(InputError, match=r"`often` must be about some of .*person.*received \['bat'\]"):
        SceneSource(data.model_copy(update={"often": {"bat": 2.0}}))


def test_a_one_sided_wide_pair_shows_a_crop_and_a_wide_view() -> None:
    image = np.zeros((400, 400, 3), np.uint8)
    points = np.array([[180.0, 180.0], [220.0, 180.0], [200.0, 220.0]])
    views = Views(size=64, wide=1.0, margin=(1.5, 1.5), wide_margin=(6.0, 6.0), scale_jitter=0.0, aspect_jitter=0.0)
    shares = []
    for one_sided in (0.0, 1.0):
        changed = views.model_copy(update={"one_sided": one_sided})
        sample = framed_pair(np.random.default_rng(0), [(image, points), (image, points)], np.arange(3), changed)
        sides = (known(sample.keypoints), known(sample.target_keypoints))
        shares.append([float(np.ptp(side, axis=0).max()) / 64 for side in sides])
    np.testing.assert_allclose(shares, [[1 / 6, 1 / 6], [1 / 1.5, 1 / 6]], rtol=0.02)


def test_named_points_are_distinct_per_category() -> None:
    source = SceneSource(ScenesData(kind="scenes", views=Views(size=64, wide=0.0), heights=(96,)))
    assert len(set(source.names)) == len(source.names)
    for index in range(0, 12, 2):
        sample = source(index)
        present = sample.parts[sample.parts >= 0]
        assert len(set(present)) == len(present) == len(known(sample.keypoints))
        assert len({source.names[part].split("/")[0] for part in present}) == 1


@pytest.mark.parametrize("seed", range(8))
def test_framing_keeps_points_on_their_blobs(seed: int) -> None:
    image = blob_image(POINTS, (160, 200))
    views = Views(size=128, aspect_jitter=0.1)
    sides = [(image, POINTS), (image, POINTS)]
    sample = framed_pair(np.random.default_rng(seed), sides, np.arange(3), views)
    for crop, points in ((sample.source, sample.keypoints), (sample.target, sample.target_keypoints)):
        for point in known(points):
            if ((point > 12) & (point < 115)).all():
                assert np.abs(centroid(crop, point, 8) - point).max() < 0.5


@pytest.mark.parametrize("seed", range(8))
def test_a_warp_moves_points_with_the_picture(seed: int) -> None:
    """The brightness under a point and under its counterpart agree on a smooth picture."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (6, 8, 3)).astype(np.uint8)
    image = cv2.resize(small, (200, 160), interpolation=cv2.INTER_CUBIC)
    sample = warped_pair(np.random.default_rng(seed), image, POINTS, Views(size=128))
    a, b = known(sample.keypoints), known(sample.target_keypoints)
    assert len(a) == len(b) > 5
    assert (sample.parts == -1).all()

    def values(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
        at = points.astype(np.float32)
        return cv2.remap(picture, at[:, 0], at[:, 1], cv2.INTER_LINEAR)[:, 0].astype(float)

    differences = np.abs(values(sample.source, a) - values(sample.target, b))
    assert differences.mean() < 2.5
    assert np.abs(values(sample.source, a) - values(sample.target, b[::-1])).mean() > 15


def test_without_kbc_the_whole_image_is_seen() -> None:
    window = training_window(np.random.default_rng(0), POINTS, (160, 200), 1.5, Views(size=64, kbc=False))
    assert window == Window.whole((160, 200), (64, 64))


def test_windows_hold_the_object_at_about_the_margin() -> None:
    sides = []
    for seed in range(50):
        window = training_window(np.random.default_rng(seed), POINTS, (400, 400), 2.0, Views(size=64, shift=0.8))
        assert window.box.contains(POINTS).all()
        sides.append(window.box.longest)
    assert 90 < np.median(sides) < 120  # 2 × 50 px


def test_more_points_than_fit_are_drawn() -> None:
    points = np.random.default_rng(0).uniform(20, 100, (40, 2))
    image = np.zeros((120, 120, 3), np.uint8)
    views = Views(size=64, kbc=False)
    sample = framed_pair(np.random.default_rng(0), [(image, points), (image, points)], np.arange(40), views)
    assert sample.keypoints.shape == (MAX_POINTS, 2)
    assert len(known(sample.keypoints)) == MAX_POINTS
    assert len(set(sample.parts)) == MAX_POINTS
    assert np.array_equal(sample.keypoints, sample.target_keypoints)


# --- photographs -----------------------------------------------------------------------------------------------------


def photo_set(root: Path, count: int = 3) -> dict[str, object]:
    """Images with three blobs each, of which all but the first two are held out."""
    folder = root / "blobs"
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for index in range(count):
        points = POINTS + 5 * index
        cv2.imwrite(str(folder / "images" / f"{index}.png"), blob_image(points, (160, 200)))
        images.append({"id": index, "file_name": f"images/{index}.png", "width": 200, "height": 160})
        flat = np.concatenate([points, np.full((3, 1), 2)], axis=1).ravel().tolist()
        annotations.append({"id": index, "image_id": index, "category_id": 1, "keypoints": flat})
    category = {"id": 1, "name": "blob", "keypoints": ["a", "b", "c"]}
    (folder / "annotations.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [category]})
    )
    names = [f"images/{index}.png" for index in range(count)]
    split = {"blobs": {"train": names[:2], "test": names[2:]}}
    (root / "split.json").write_text(json.dumps(split))
    return {"kind": "photos", "root": str(root), "split": str(root / "split.json"), "sets": ("blobs",)}


def test_photographs_of_the_training_part_only(tmp_path: Path) -> None:
    values = photo_set(tmp_path)
    source = PhotoSource(PhotosData.model_validate(values | {"views": Views(size=96), "warps": 0.0}), {})
    assert [len(records) for records in source.by_set] == [1]
    assert source.names == ["blob/0", "blob/1", "blob/2"]
    assert equal(source(3), source(3))
    for index in range(8):
        sample = source(index)
        for crop, points in ((sample.source, sample.keypoints), (sample.target, sample.target_keypoints)):
            for point in known(points):
                if ((point > 12) & (point < 83)).all():
                    assert np.abs(centroid(crop, point, 7) - point).max() < 0.6


def test_validation_pairs_are_of_images_that_are_not_trained_on(tmp_path: Path) -> None:
    values = photo_set(tmp_path, 5)
    source = PhotoSource(PhotosData.model_validate(values | {"views": Views(size=96)}), {})
    image, seen = source.load[0], set()
    source.load[0] = lambda path: seen.add(Path(path).name) or image(path)  # type: ignore[func-returns-value]
    for index in range(12):
        source(index)
    assert seen == {"0.png", "1.png"}
    seen.clear()
    for index in range(HELD_OUT, HELD_OUT + 12):
        assert len(known(source(index).keypoints))
    assert seen == {"2.png", "3.png", "4.png"}


def test_a_set_and_a_picture_may_be_links(tmp_path: Path) -> None:
    values = photo_set(tmp_path)
    for path in (tmp_path / "blobs", next((tmp_path / "blobs" / "images").iterdir())):
        elsewhere = tmp_path / f"elsewhere-{path.name}"
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
        assert PhotoSource(PhotosData.model_validate(values), {})(0).source.shape == (128, 128, 3)


def test_a_split_that_holds_no_pair_back(tmp_path: Path) -> None:
    source = PhotoSource(PhotosData.model_validate(photo_set(tmp_path)), {})
    source(0)
    with pytest.raises(InputError, match="`validate_pairs` must be 0"):
        source(HELD_OUT)


def test_a_set_that_the_split_or_the_disk_lacks(tmp_path: Path) -> None:
    values = photo_set(tmp_path)
    with pytest.raises(InputError, match="blobs"):
        PhotoSource(PhotosData.model_validate(values | {"sets": ("other",)}), {})
    (tmp_path / "split.json").write_text(json.dumps({"blobs": {"train": [], "test": []}}))
    with pytest.raises(DataError, match="with training pairs of"):
        PhotoSource(PhotosData.model_validate(values), {})
    with pytest.raises(DataError, match="split"):
        read_split(str(tmp_path / "none.json"))
    with pytest.raises(InputError, match="KBC_DATA"):
        PhotoSource(PhotosData(kind="photos", sets=("livestock-small",)), {})


def test_the_split_in_the_repository_is_disjoint_and_leaves_pf_willow_out() -> None:
    split = read_split("photos-split.json")
    assert not any("willow" in name for name in split)
    for parts in split.values():
        assert set(parts) == {"train", "test"}
        assert not set(parts["train"]) & set(parts["test"])
        assert parts["train"]
        assert parts["test"]


@pytest.mark.data
@pytest.mark.skipif("KBC_DATA" not in os.environ, reason="KBC_DATA names no folder of photographs")
def test_the_split_covers_the_photographs() -> None:
    for name, parts in read_split("photos-split.json").items():
        data = json.loads((Path(os.environ["KBC_DATA"]) / "data" / name / "annotations.json").read_text())
        assert {image["file_name"] for image in data["images"]} == set(parts["train"]) | set(parts["test"])
