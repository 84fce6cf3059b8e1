"""Damaged files of every kind: each reader gives an answer or one of kbc's own errors, within bounded memory.

The default form takes seconds and the same examples each time; the long one takes new ones:
    KBC_FUZZ_EXAMPLES=20000 pytest -m slow -s tests/data/test_fuzz.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import layouts  # type: ignore[import-not-found]
import numpy as np
import pytest
from fuzzing import EXAMPLES, Target, damaged, fuzz, odd_values  # type: ignore[import-not-found]

from kbc.cli.points import points_in_file
from kbc.data import open_dataset
from kbc.images import load_image, turned
from kbc.labelling import read_labels


def opener(kind: str, root: Path, **options: Any) -> Callable[[Path], object]:
    def read(_: Path) -> object:
        dataset = open_dataset(kind, root, **options)
        return len(dataset), [str(problem) for problem in dataset.problems]

    return read


def image(path: Path) -> object:
    return load_image(path).shape, turned(path)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    """Name → a sound file and what reads it."""
    base = tmp_path_factory.mktemp("fuzz")
    made = {
        kind: make(base / kind)
        for kind, make in {
            "spair": layouts.spair,
            "pfpascal": layouts.pascal,
            "willow": layouts.willow_folders,
            "willow_csv": layouts.willow_csv,
            "ap10k": layouts.ap10k,
            "coco": layouts.coco,
        }.items()
    }
    formed = layouts.coco(base / "formed", pairs=False)
    labels = layouts.coco(base / "labels") / "annotations.json"
    layouts.edit_json(labels, lambda content: content["annotations"].pop())  # its category names no keypoints
    pascal = made["pfpascal"] / "PF-dataset-PASCAL" / "Annotations" / "aeroplane"
    cat = made["spair"] / "ImageAnnotation" / "cat" / "2008_000001.json"
    found: dict[str, Target] = {
        "coco": (made["coco"] / "annotations.json", opener("coco", made["coco"])),
        "coco pairs": (made["coco"] / "pairs.json", opener("coco", made["coco"])),
        "coco formed": (formed / "annotations.json", opener("coco", formed)),
        "labels": (labels, read_labels),
        "spair pair": (next((made["spair"] / "PairAnnotation/test").iterdir()), opener("spair", made["spair"])),
        "spair image": (cat, opener("spair", made["spair"])),
        "spair list": (made["spair"] / "Layout/large/test.txt", opener("spair", made["spair"])),
        "ap10k pair": (next((made["ap10k"] / "PairAnnotation/test").iterdir()), opener("ap10k", made["ap10k"])),
        "ap10k image": (
            made["ap10k"] / "ImageAnnotation/Felidae/cat/000000000001.json",
            opener("ap10k", made["ap10k"]),
        ),
        "pascal list": (made["pfpascal"] / "test_pairs.csv", opener("pfpascal", made["pfpascal"], points="csv")),
        "pascal mat": (pascal / "2008_0.mat", opener("pfpascal", made["pfpascal"])),
        "willow mat": (
            made["willow"] / "PF-dataset-WILLOW/car(G)/car_0.mat",
            opener("pfwillow", made["willow"]),
        ),
        "willow list": (made["willow_csv"] / "test_pairs.csv", opener("pfwillow", made["willow_csv"])),
    }
    for name, text in (
        ("p.json", '{"points": [[1, 2, 2], null, [3.5, 4]], "names": ["a", "b", "c"]}'),
        ("p.csv", "name,x,y,v\na,1,2,2\nb,,,0\n"),
    ):
        (base / name).write_text(text)
        found[f"points {name}"] = (base / name, points_in_file)
    scene = np.random.default_rng(0).integers(0, 256, (45, 60, 3), dtype=np.uint8)
    for ending in ("png", "jpg", "webp", "bmp", "tiff", "gif", "ppm", "jp2"):
        assert cv2.imwrite(str(base / f"i.{ending}"), scene)
        found[f"image {ending}"] = (base / f"i.{ending}", image)
    return found


NAMES = (
    "coco", "coco pairs", "coco formed", "labels", "spair pair", "spair image", "spair list", "ap10k pair",
    "ap10k image", "pascal list", "pascal mat", "willow mat", "willow list", "points p.json", "points p.csv",
    *(f"image {ending}" for ending in ("png", "jpg", "webp", "bmp", "tiff", "gif", "ppm", "jp2")),
)  # fmt: skip
WITH_JSON = tuple(n for n in NAMES if n.split()[0] in ("coco", "labels", "ap10k") or n in ("spair pair", "spair image"))


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_read_or_refused(targets: dict[str, Target], name: str) -> None:
    seen = fuzz(targets[name], damaged, 100, fresh=False)
    assert seen["refused"] + seen["read"] >= 100


@pytest.mark.parametrize("name", WITH_JSON)
def test_odd_values_are_read_or_refused(targets: dict[str, Target], name: str) -> None:
    seen = fuzz(targets[name], odd_values, 100, fresh=False)
    assert seen["refused"] + seen["read"] >= 100


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_damaged_files(targets: dict[str, Target], name: str) -> None:
    print(name, dict(fuzz(targets[name], damaged, EXAMPLES, fresh=True)), flush=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_JSON)
def test_many_odd_values(targets: dict[str, Target], name: str) -> None:
    print(name, "odd values", dict(fuzz(targets[name], odd_values, EXAMPLES, fresh=True)), flush=True)
