"""In-context shrinking: deterministic, pixel-exact, and never a photo inside itself."""

from __future__ import annotations

from pathlib import Path

import layouts  # type: ignore[import-not-found]
import numpy as np
import pytest

from kbc.data import open_dataset, shrink
from kbc.errors import InputError
from kbc.geometry import defined


@pytest.mark.parametrize("factor", [2, 2.5, 5])
def test_the_photo_lies_unchanged_where_the_points_say(tmp_path: Path, factor: float) -> None:
    plain = open_dataset("coco", layouts.coco(tmp_path))
    small = shrink(plain, factor)
    assert len(small) == len(plain)
    for before, after in zip(plain, small, strict=True):
        old, new = plain.load(before, "both"), small.load(after, "both")
        assert new.target.shape[:2] == (round(60 * factor), round(80 * factor))
        shift = (after.target_keypoints - before.target_keypoints)[defined(before.target_keypoints)]
        assert np.allclose(shift, shift[0])
        x, y = (int(v) for v in shift[0])
        assert np.array_equal(new.target[y : y + 60, x : x + 80], old.target)
        assert before.target_box is not None
        assert after.target_box is not None
        assert after.target_box.x0 - before.target_box.x0 == x
        assert after.target_box.width == before.target_box.width
        assert after.fields["shrink"] == factor
        assert len(after.others) == len(before.others)
        for far, near in zip(after.others, before.others, strict=True):
            assert np.allclose(far - near, shift[0])


def test_same_seed_same_images_whatever_the_pair_or_process(tmp_path: Path) -> None:
    root = layouts.coco(tmp_path)
    one, two = (shrink(open_dataset("coco", root), 3, seed=4) for _ in range(2))
    other = shrink(open_dataset("coco", root), 3, seed=5)
    assert np.array_equal(one.load(one[0]).target, two.load(two[0]).target)
    assert one.load(one[0]).target is one.load(one[1]).source
    assert not np.array_equal(one.load(one[0]).target, other.load(other[0]).target)


def test_where_a_photo_lies_does_not_depend_on_the_rest_of_the_set(tmp_path: Path) -> None:
    plain = open_dataset("coco", layouts.coco(tmp_path))
    whole, part = shrink(plain, 3), shrink(plain[1:3], 3)
    assert np.array_equal(whole[1].keypoints, part[0].keypoints, equal_nan=True)


def test_the_context_is_another_photo_of_another_kind(tmp_path: Path) -> None:
    root = layouts.willow_folders(tmp_path)
    folder = root / "PF-dataset-WILLOW"
    copy = folder / "car(M)" / "car_0.png"  # the same photo in a second category, as PF-WILLOW has it
    layouts.write_image(copy, 0)
    layouts.write_image(folder / "car(M)" / "other.png", 77)
    for path in (copy, folder / "car(M)" / "other.png"):
        layouts.write_mat(path.with_suffix(".mat"), {"pts_coord": layouts.WILLOW_POINTS.T})
    from kbc.data.shrink import _Maker

    for seed in range(10):
        maker = _Maker(open_dataset("pfwillow", root), 2.0, seed)
        for path in maker.paths:
            other = maker.context(path)
            assert other.parent.name.split("(")[0] != path.parent.name.split("(")[0]


def test_without_another_category_it_is_still_another_photo(tmp_path: Path) -> None:
    root = layouts.coco(tmp_path)
    (root / "images" / "3.jpg").write_bytes((root / "images" / "2.jpg").read_bytes())  # one photo under two names
    from kbc.data.shrink import _Maker

    plain = open_dataset("coco", root)
    for seed in range(10):
        maker = _Maker(plain, 2.0, seed)
        by_name = {path.name: path for path in maker.paths}
        assert maker.context(by_name["2.jpg"]).name in ("1.jpg", "4.jpg")


def test_a_set_of_one_photo_cannot_be_shrunk(tmp_path: Path) -> None:
    root = layouts.coco(tmp_path)
    for i in (2, 3, 4):
        (root / "images" / f"{i}.jpg").write_bytes((root / "images" / "1.jpg").read_bytes())
    small = shrink(open_dataset("coco", root), 2)
    with pytest.raises(InputError, match="another photo"):
        small.load(small[0])


@pytest.mark.parametrize("factor", [0.5, 0, -1, 1.1e6, 1e308, float("nan"), float("inf")])
def test_nonsense_factors(tmp_path: Path, factor: float) -> None:
    with pytest.raises(InputError, match="shrink"):
        shrink(open_dataset("coco", layouts.coco(tmp_path)), factor)


def test_factor_one_is_the_set_itself_and_a_broken_photo_costs_its_pairs(tmp_path: Path) -> None:
    dataset = open_dataset("coco", layouts.coco(tmp_path))
    assert shrink(dataset, 1) is dataset
    path = tmp_path / "images" / "2.jpg"
    path.write_bytes(path.read_bytes()[:300])
    small = shrink(open_dataset("coco", tmp_path), 2)
    assert len(small) == 2
    assert any("truncated" in str(problem) for problem in small.problems)
    assert small.load(small[0]).source.shape[0] == 120


def test_a_picture_beyond_memory_is_a_problem_of_its_pairs(tmp_path: Path) -> None:
    made = shrink(open_dataset("coco", layouts.coco(tmp_path)), 1e6)
    assert len(made) == 0
    assert "`shrink` must be at most 16384 px a side, received (60000000, 80000000)" in str(made.problems[-1])
