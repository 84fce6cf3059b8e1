"""Small, faithful copies of the official layouts, written by the tests."""

from __future__ import annotations

import csv
import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def write_image(path: Path, seed: int = 0, size_hw: tuple[int, int] = (60, 80)) -> Path:
    """A picture of coloured blobs that no other seed gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, size=(6, 8, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), cv2.resize(small, size_hw[::-1], interpolation=cv2.INTER_CUBIC))
    return path


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_mat(path: Path, arrays: Mapping[str, Array | str], compressed: bool = True, order: str = "<") -> Path:
    """A MATLAB 5 file, after the published format; doubles and text only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = b"MATLAB 5.0 MAT-file, written by a test".ljust(124) + struct.pack(order + "HH", 0x0100, 0x4D49)
    body = b""
    for name, values in arrays.items():
        element = _matrix(name, values, order)
        if compressed:
            packed = zlib.compress(element)
            element = struct.pack(order + "II", 15, len(packed)) + packed
        body += element
    path.write_bytes(head + body)
    return path


def _matrix(name: str, values: Array | str, order: str) -> bytes:
    is_text = isinstance(values, str)
    array = np.array([[ord(c) for c in values]], np.float64) if isinstance(values, str) else np.atleast_2d(values)
    content = (
        _element(4, array.astype(order + "u2").tobytes(order="F"), order)
        if is_text
        else _element(9, array.astype(order + "f8").tobytes(order="F"), order)
    )
    inner = _element(6, struct.pack(order + "II", 4 if is_text else 6, 0), order)
    inner += _element(5, np.array(array.shape, order + "i4").tobytes(), order)
    inner += _element(1, name.encode(), order) + content
    return _element(14, inner, order)


def _element(kind: int, content: bytes, order: str) -> bytes:
    if 0 < len(content) <= 4:  # a small element: content in the tag
        return struct.pack(order + "I", len(content) << 16 | kind) + content.ljust(4, b"\0")
    return struct.pack(order + "II", kind, len(content)) + content + b"\0" * (-len(content) % 8)


def spair(root: Path) -> Path:
    """SPair-71k with one category, three images and, in the split "test", three pairs."""
    names = ["2008_000001", "2008_000002", "2008_000003"]
    for seed, name in enumerate(names):
        write_image(root / "JPEGImages" / "cat" / f"{name}.jpg", seed)
        annotation = {
            "filename": f"{name}.jpg",
            "image_width": 80,
            "image_height": 60,
            "category": "cat",
            "bndbox": [10, 5, 50 + seed, 45],
            "kps": {str(i): [12 + i + seed, 8 + i] for i in range(4)} | {"4": None},
            "truncated": seed,
            "occluded": 0,
            "difficult": 0,
        }
        write_json(root / "ImageAnnotation" / "cat" / f"{name}.json", annotation)
    lines = []
    for number, (a, b) in enumerate([(0, 1), (1, 2), (2, 0)], 1):
        line = f"{number:06d}-{names[a]}-{names[b]}:cat"
        lines.append(line)
        pair = {
            "pair_id": number,
            "filename": f"{names[a]}-{names[b]}:cat",
            "src_imname": f"{names[a]}.jpg",
            "trg_imname": f"{names[b]}.jpg",
            "src_imsize": [80, 60, 3],
            "trg_imsize": [80, 60, 3],
            "src_bndbox": [10, 5, 50 + a, 45],
            "trg_bndbox": [10, 5, 50 + b, 45],
            "category": "cat",
            "src_pose": "Frontal",
            "trg_pose": "Left",
            "src_kps": [[12 + i + a, 8 + i] for i in range(4)],
            "trg_kps": [[12 + i + b, 8 + i] for i in range(4)],
            "kps_ids": [0, 1, 2, 3],
            "mirror": 0,
            "viewpoint_variation": 1,
            "scale_variation": 2,
            "truncation": 3,
            "occlusion": 0,
        }
        write_json(root / "PairAnnotation" / "test" / f"{line}.json", pair)
    for layout, kept in (("large", lines), ("small", lines[:1])):
        path = root / "Layout" / layout / "test.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return root


WILLOW_POINTS = np.array([[5.0 + 4 * i, 6.0 + 3 * (i % 5)] for i in range(10)])
"""(10, 2) counted from 1, as in the files."""


def willow_folders(root: Path) -> Path:
    """PF-WILLOW's original layout: two categories of two images."""
    for c, category in enumerate(("car(G)", "duck(S)")):
        for i in range(2):
            image = root / "PF-dataset-WILLOW" / category / f"{category[:3]}_{i}.png"
            write_image(image, 10 * c + i)
            write_mat(image.with_suffix(".mat"), {"pts_coord": (WILLOW_POINTS + i).T})
    return root


def willow_csv(root: Path) -> Path:
    """PF-WILLOW's CSV layout: two images, both orders."""
    for i in range(2):
        write_image(root / "PF-dataset" / "car(G)" / f"Cars_{i}.png", i)
    with (root / "test_pairs.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        axes = [f"{axis}{side}{i}" for side in "AB" for axis in "XY" for i in range(1, 11)]
        out.writerow(["imageA", "imageB", *axes])
        for a, b in ((0, 1), (1, 0)):
            sides = [np.concatenate((WILLOW_POINTS + k).T.tolist()) for k in (a, b)]
            names = [f"PF-dataset/car(G)/Cars_{k}.png" for k in (a, b)]
            out.writerow([*names, *(f"{value:.3f}" for side in sides for value in side)])
    return root


PASCAL_POINTS = np.array([[10.0, 12.0], [30.0, 14.0], [np.nan, np.nan], [22.0, 40.0]])
"""(4, 2) counted from 1; the third is absent."""


def pascal(root: Path, mat: bool = True) -> Path:
    """PF-PASCAL in both layouts: three images of an aeroplane, a test and a training list."""
    folder = root / "PF-dataset-PASCAL"
    for i in range(3):
        write_image(folder / "JPEGImages" / f"2008_{i}.jpg", i)
        if mat:
            box = np.array([[8.0, 10.0, 40.0 + i, 50.0]])
            arrays: dict[str, Array | str] = {"class": "aeroplane", "kps": PASCAL_POINTS + i, "bbox": box}
            write_mat(folder / "Annotations" / "aeroplane" / f"2008_{i}.mat", arrays)
    shown = PASCAL_POINTS[[0, 1, 3]]

    def cells(i: int) -> list[str]:
        return [";".join(f"{value:g}" for value in (shown + i)[:, axis]) for axis in (0, 1)]

    names = [f"PF-dataset-PASCAL/JPEGImages/2008_{i}.jpg" for i in range(3)]
    test = [[names[0], names[1], 1, *cells(0), *cells(1)], [names[1], names[2], 1, *cells(1), *cells(2)]]
    _csv(root / "test_pairs.csv", ["source_image", "target_image", "class", "XA", "YA", "XB", "YB"], test)
    train = [[names[0], names[1], 1, 0], [names[0], names[2], 1, 1]]
    _csv(root / "trn_pairs.csv", ["source_image", "target_image", "class", "flip"], train)
    return root


def _csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])


def ap10k(root: Path) -> Path:
    """AP-10K's benchmark: two species of one family and one of another, one test pair in each of the three lists."""
    places = {1: ("Felidae", "cat"), 2: ("Felidae", "cat"), 3: ("Felidae", "lion"), 4: ("Canidae", "dog")}
    for number, (family, species) in places.items():
        name = f"{number:012d}"
        points = [[20 + number + k, 15 + k, 2 if k < 5 else 0] for k in range(17)]
        points[4][2] = 1 if number == 1 else 2
        annotation = {
            "id": number,
            "image_id": number,
            "bbox": [10, 8, 50, 40],
            "keypoints": [value for point in points for value in point],
            "num_keypoints": 5,
            "width": 80,
            "height": 60,
            "file_name": f"{name}.jpg",
            "name": species,
            "supercategory": family,
        }
        write_json(root / "ImageAnnotation" / family / species / f"{name}.json", annotation)
        write_image(root / "JPEGImages" / family / species / f"{name}.jpg", number)
    for folder, a, b, group in (
        ("test", 1, 2, "cat"),
        ("test_cross_species", 1, 3, "Felidae"),
        ("test_cross_family", 1, 4, "all"),
    ):
        paths = ["data/ap-10k/ImageAnnotation/" + "/".join(places[k]) + f"/{k:012d}.json" for k in (a, b)]
        pair = {"src_json_path": paths[0], "trg_json_path": paths[1]}
        write_json(root / "PairAnnotation" / folder / f"{a:012d}-{b:012d}:{group}.json", pair)
    return root


def coco(root: Path, pairs: bool = True) -> Path:
    """Your own data: four images, five instances of a cow and one of a sheep."""
    for i in range(1, 5):
        write_image(root / "images" / f"{i}.jpg", i)
    annotations = []
    for number, image in enumerate((1, 2, 3, 4, 4), 1):
        shift = 3 * number
        points = [10 + shift, 20, 2, 40 + shift, 25, 2, 30, 44, 2 if number != 2 else 1]
        annotations.append(
            {
                "id": number,
                "image_id": image,
                "category_id": 1,
                "bbox": [8 + shift, 18, 36, 30],
                "keypoints": points,
                "num_keypoints": 3,
            }
        )
    annotations.append({"id": 6, "image_id": 4, "category_id": 2, "bbox": [1, 1, 20, 20], "keypoints": [5, 5, 2] * 3})
    content = {
        "images": [{"id": i, "file_name": f"images/{i}.jpg", "width": 80, "height": 60} for i in range(1, 5)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cow", "keypoints": ["a", "b", "c"]}, {"id": 2, "name": "sheep"}],
    }
    write_json(root / "annotations.json", content)
    if pairs:
        write_json(root / "pairs.json", {"pairs": [[1, 2], [2, 3], [3, 4], [4, 1]]})
    return root
