"""`kbc data check` and `kbc data sources`."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layouts  # type: ignore[import-not-found]
import pytest

from kbc.cli import data as command
from kbc.data import open_dataset
from kbc.errors import DataError, InputError


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return command.run(parser.parse_args(list(words)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (layouts.spair, "SPair-71k test: 3 usable pairs of 3 images"),
        (layouts.pascal, "PF-PASCAL test: 2 usable pairs of 3 images"),
        (layouts.willow_folders, "pf-willow: 4 usable pairs"),
        (layouts.willow_csv, "pf-willow: 2 usable pairs"),
        (layouts.ap10k, "AP-10K cross-family test: 1 usable pair of 2 images, 0 pairs left out"),
        (layouts.coco, "4 usable pairs of 4 images"),
    ],
)
def test_a_sound_copy_of_every_layout_is_recognised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Path], said: str
) -> None:
    assert call("check", str(make(tmp_path))) == 0
    out = capsys.readouterr().out
    assert said in out
    assert out.endswith("nothing wrong\n")


def cvat(root: Path) -> Path:
    """CVAT's export: annotations/person_keypoints_default.json and images/default/."""
    layouts.coco(root, pairs=False)
    (root / "annotations").mkdir()
    (root / "annotations.json").rename(root / "annotations" / "person_keypoints_default.json")
    (root / "images").rename(root / "default")
    (root / "images").mkdir()
    (root / "default").rename(root / "images" / "default")
    layouts.edit_json(root / "annotations" / "person_keypoints_default.json", bare)
    return root


def official(root: Path) -> Path:
    """COCO's own: annotations/person_keypoints_val2017.json beside val2017/."""
    cvat(root)
    (root / "annotations" / "person_keypoints_default.json").rename(
        root / "annotations" / "person_keypoints_val2017.json"
    )
    (root / "annotations" / "captions_val2017.json").write_text("{}")
    (root / "images" / "default").rename(root / "val2017")
    return root


def roboflow(root: Path) -> Path:
    """Roboflow's export: train/ and valid/, each with its pictures and _annotations.coco.json."""
    for part in ("train", "valid"):
        folder = layouts.coco(root / part, pairs=False)
        (folder / "annotations.json").rename(folder / "_annotations.coco.json")
        for path in (folder / "images").iterdir():
            path.rename(folder / path.name)
        layouts.edit_json(folder / "_annotations.coco.json", bare)
    return root


def bare(content: dict[str, Any]) -> None:
    """File names without a folder, and no category with one picture."""
    for image in content["images"]:
        image["file_name"] = image["file_name"].removeprefix("images/")
    content["annotations"].pop()


@pytest.mark.parametrize(("make", "parts"), [(cvat, 1), (official, 1), (roboflow, 2)])
def test_folders_as_cvat_roboflow_and_coco_lay_them_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Path], parts: int
) -> None:
    assert call("check", str(make(tmp_path))) == 0
    assert capsys.readouterr().out.count(": 9 usable pairs of 4 images, 0 pairs left out") == parts
    if parts == 1:
        assert len(open_dataset("coco", tmp_path)) == 9
        return
    with pytest.raises(DataError, match=r"annotations=train/_annotations\.coco\.json"):
        open_dataset("coco", tmp_path)
    assert len(open_dataset("coco", tmp_path / "train")) == 9
    assert len(open_dataset("coco", tmp_path, annotations="valid/_annotations.coco.json")) == 9


def test_data_options_are_passed_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", str(layouts.coco(tmp_path)), "--data-option", "min_points=3") == 1
    assert "2 usable pairs" in capsys.readouterr().out
    assert call("check", str(tmp_path), "--data-option", "min_points=3", "--data-option", "occluded=true") == 0


@pytest.mark.parametrize("tag", [3, 2, 6])
def test_pictures_turned_by_their_tag_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], tag: int) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="Pillow comes with matplotlib, an extra")
    layouts.coco(tmp_path)
    for number in range(1, 5):
        layouts.write_image(tmp_path / "images" / f"{number}.jpg", number, (60, 60))
    layouts.edit_json(tmp_path / "annotations.json", lambda c: [i.update(width=60, height=60) for i in c["images"]])
    exif = pillow.Exif()
    exif[0x0112] = tag
    pillow.open(tmp_path / "images" / "2.jpg").save(tmp_path / "images" / "2.jpg", exif=exif)
    assert call("check", str(tmp_path)) == 0
    said = (
        "note: 1 of 4 images turned by their EXIF tag when opened, e.g. 2.jpg: points and boxes are read in the turned"
    )
    assert said in capsys.readouterr().out


def test_what_is_wrong_is_said_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (layouts.coco(tmp_path) / "images" / "2.jpg").unlink()
    path = tmp_path / "images" / "3.jpg"
    path.write_bytes(path.read_bytes()[:200])
    assert call("check", str(tmp_path)) == 1
    out = capsys.readouterr().out
    assert "1 usable pair of 3 images, 3 pairs left out" in out
    assert "2.jpg" in out
    assert "3.jpg" in out
    assert "2 problems" in out


def test_the_folder_may_be_given_as_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", "--root", str(layouts.coco(tmp_path))) == 0
    assert capsys.readouterr().out.endswith("nothing wrong\n")
    for words in ([], [str(tmp_path), "--root", str(tmp_path)]):
        with pytest.raises(InputError, match=r"`DIR` must be given once, received .*kbc data check data/pf-willow"):
            call("check", *words)


def test_an_unknown_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--kind"):
        call("check", str(tmp_path))
    with pytest.raises(DataError, match="`DIR` must be an existing folder"):
        call("check", str(tmp_path / "absent"))


def test_a_data_set_without_a_pair_is_not_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "annotations.json").write_text('{"images": [], "annotations": [], "categories": []}', encoding="utf-8")
    assert call("check", str(tmp_path)) == 1
    assert "holds no pair\n1 problem\n" in capsys.readouterr().out


def test_sources_names_origin_and_terms_of_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("sources") == 0
    out = capsys.readouterr().out
    for word in ("SPair-71k", "PF-PASCAL", "PF-WILLOW", "AP-10K", "https://", "CC BY 4.0", "icence"):
        assert word in out


def test_a_picture_that_its_decoder_warns_of_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = layouts.coco(tmp_path) / "images" / "2.jpg"
    content, middle = path.read_bytes(), path.stat().st_size // 2
    path.write_bytes(content[:middle] + bytes(40) + content[middle + 40 :])
    assert call("check", str(tmp_path)) == 0  # it opens: a warning alone is no fault
    out = capsys.readouterr().out
    assert "note: 1 of 4 images opened with a warning of their decoder, e.g. 2.jpg (Corrupt JPEG data: " in out


def test_points_that_may_be_per_cent_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layouts.coco(tmp_path / "large")

    def enlarge(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image.update(width=500, height=400)
        content["annotations"][0]["keypoints"][:2] = [95, 90]

    layouts.edit_json(tmp_path / "large" / "annotations.json", enlarge)
    for number in range(1, 5):
        layouts.write_image(tmp_path / "large" / "images" / f"{number}.jpg", number, (400, 500))
    assert call("check", str(tmp_path / "large")) == 0
    assert "note: all points lie within 100 px of the top left corner: if they are per cent" in capsys.readouterr().out
    assert call("check", str(layouts.coco(tmp_path / "small"))) == 0
    assert "per cent" not in capsys.readouterr().out


MAKERS = {
    "AP-10K": layouts.ap10k,
    "PF-PASCAL": layouts.pascal,
    "PF-WILLOW": layouts.willow_folders,
    "SPair-71k": layouts.spair,
    "cvat": cvat,
    "my cows": layouts.coco,
}
KIND_OF = dict(zip(MAKERS, ("ap10k", "pfpascal", "pfwillow", "spair", "coco", "coco"), strict=True))


def test_a_folder_of_data_sets_names_them(tmp_path: Path) -> None:
    for name, make in MAKERS.items():
        make(tmp_path / "all" / name)
    (tmp_path / "all" / "notes").mkdir()
    held = ", ".join(f"{name} ({kind})" for name, kind in KIND_OF.items())
    with pytest.raises(DataError) as caught:
        call("check", str(tmp_path / "all"))
    assert f"`DIR` must be the folder of one data set, received '{tmp_path}/all', which holds {held}; " in str(
        caught.value
    )
    assert str(caught.value).endswith(f"for instance kbc data check {tmp_path}/all/AP-10K")


@pytest.mark.parametrize("name", MAKERS)
def test_a_data_set_one_folder_further_down_is_named(tmp_path: Path, name: str) -> None:
    MAKERS[name](tmp_path / "unpacked here")
    with pytest.raises(DataError, match=rf"holds unpacked here \({KIND_OF[name]}\); .* check '/.*/unpacked here'$"):
        call("check", str(tmp_path))


@pytest.mark.parametrize("name", MAKERS)
def test_what_macos_leaves_beside_files_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    MAKERS[name](tmp_path)
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
    (tmp_path / "__MACOSX").mkdir()
    call("check", str(tmp_path))
    assert "._" not in capsys.readouterr().out


def test_a_split_that_cannot_be_used_hides_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (layouts.spair(tmp_path) / "PairAnnotation" / "val").mkdir()
    assert call("check", str(tmp_path)) == 1
    out = capsys.readouterr().out
    assert "val: cannot be used\n  " in out
    assert "SPair-71k test: 3 usable pairs" in out
    assert out.endswith("1 problem\n")


def test_an_spair_without_its_lists_is_not_taken_for_ap10k(tmp_path: Path) -> None:
    shutil.rmtree(layouts.spair(tmp_path) / "Layout")
    with pytest.raises(DataError, match=r"Layout/large/test\.txt: cannot be read"):
        call("check", str(tmp_path))


def test_the_annotations_of_a_pascal_without_lists_are_not_taken_for_another_set(tmp_path: Path) -> None:
    folder = layouts.pascal(tmp_path) / "PF-dataset-PASCAL"
    with pytest.raises(DataError, match="no pair list; looked for test_pairs"):
        call("check", str(folder))
