"""SPair-71k (Min, Lee, Ponce, Cho, 2019): 70,958 pairs of 1,800 images in 18 categories."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from kbc.data.annotations import (
    FAR,
    FourNumbers,
    Record,
    Zeros,
    box_xyxy,
    existing,
    inside,
    load_sized,
    read_json,
    require_category,
    told_size,
)
from kbc.data.records import CACHE_BYTES, Dataset, PairRecord, Problems
from kbc.errors import DataError, must_be, refuse_others
from kbc.files import is_file, read_text
from kbc.geometry import Points

_Point = Annotated[list[float], Field(min_length=2, max_length=2)]
_FLAGS = ("viewpoint_variation", "scale_variation", "truncation", "occlusion", "mirror")


class _Pair(Record):
    src_imname: str
    trg_imname: str
    src_bndbox: FourNumbers
    trg_bndbox: FourNumbers
    category: str
    src_kps: list[_Point]
    trg_kps: list[_Point]
    viewpoint_variation: int = 0
    scale_variation: int = 0
    truncation: int = 0
    occlusion: int = 0
    mirror: int = 0
    kps_ids: list[int] | None = None


class _Image(Record):
    bndbox: FourNumbers
    image_width: int | None = None
    image_height: int | None = None
    truncated: int = 0
    occluded: int = 0
    difficult: int = 0


def open_spair(
    root: str | Path,
    *,
    split: Literal["trn", "val", "test"] = "test",
    layout: Literal["large", "small"] = "large",
    category: str | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> Dataset:
    """SPair-71k as its archive unpacks it.

    `Layout/<layout>/<split>.txt` names the pairs, `PairAnnotation/<split>/<pair>.json` describes them (its `:` may
    have become `_` on file systems that forbid it), `JPEGImages/<category>/` holds the images. From
    `ImageAnnotation/<category>/` come the per-image flags and sizes (a picture of another size cannot be loaded: it was
    resized since), and the box of a pair is compared with the image's.
    Points and boxes are taken as the files have them. The box's corners are its edges, so that its width is
    x1 − x0, which is what every published threshold uses.

    Fields: viewpoint_variation and scale_variation (0 easy, 1 medium, 2 hard), truncation and occlusion (0 none,
    1 source, 2 target, 3 both), mirror, keypoint_ids, and source_ / target_ truncated, occluded, difficult.

    Args:
        root: the folder `SPair-71k`.
        split: "trn", "val" or "test".
        layout: "large" (70,958 pairs) or "small".
        category: only this one, or all.
        cache_bytes: memory for decoded images.

    Raises:
        DataError: the folder is not SPair-71k or lacks the split. Single broken pairs become `problems`.
        InputError: a split, layout or category that there is not.
    """
    base = Path(root)
    refuse_others("split", split, ("trn", "val", "test"))
    refuse_others("layout", layout, ("large", "small"))
    if not (base / "PairAnnotation" / split).is_dir():
        raise DataError(must_be("root", "the folder SPair-71k, with PairAnnotation/" + split, repr(str(root))))
    problems = Problems()
    reader = _Reader(base, split, problems)
    records = []
    names = _names(base, split, layout)
    require_category(category, (name.rpartition(":")[2] for name in names))
    for name, times in Counter(names).items():
        if category is not None and name.rpartition(":")[2] != category:
            continue
        if times > 1:
            problems.add(f"Layout/{layout}/{split}.txt", f"{name} is listed more than once, and counts once", times - 1)
        try:
            records.append(reader.record(name))
        except DataError as error:
            problems.add(f"PairAnnotation/{split}/{name}.json", error, 1)
    reader.zeros.report(f"PairAnnotation/{split}", problems)
    open_image = partial(load_sized, sizes=reader.sizes, swapped=True)
    return Dataset(f"SPair-71k {split}", records, problems, open_image, cache_bytes)


def _names(base: Path, split: str, layout: str) -> list[str]:
    listing = base / "Layout" / layout / f"{split}.txt"
    names = [line.strip() for line in read_text(listing).splitlines() if line.strip()]
    if not names:
        raise DataError(f"{listing}: it names no pair")
    return names


class _Reader:
    def __init__(self, base: Path, split: str, problems: Problems) -> None:
        self.base, self.folder, self.problems = base, base / "PairAnnotation" / split, problems
        self.zeros = Zeros("object")
        self.sizes: dict[Path, tuple[int, int]] = {}
        self._images: dict[Path, _Image | None] = {}

    def record(self, name: str) -> PairRecord:
        path = inside(self.folder, f"{name}.json", "pair name")
        if not is_file(path):
            path = inside(self.folder, f"{name.replace(':', '_')}.json", "pair name")
        pair = read_json(path, _Pair)
        if len(pair.src_kps) != len(pair.trg_kps) or not pair.src_kps:
            raise DataError(f"fields 'src_kps' and 'trg_kps' hold {len(pair.src_kps)} and {len(pair.trg_kps)} points")
        paths, boxes, fields = [], [], {flag: getattr(pair, flag) for flag in _FLAGS}
        for side, key, image_name, corners in (
            ("source", "src_bndbox", pair.src_imname, pair.src_bndbox),
            ("target", "trg_bndbox", pair.trg_imname, pair.trg_bndbox),
        ):
            image = existing(inside(self.base / "JPEGImages", f"{pair.category}/{image_name}", f"{side} image name"))
            paths.append(image)
            boxes.append(box_xyxy(corners, key))
            said = self._said_of(pair.category, image, corners)
            fields.update({f"{side}_{flag}": value for flag, value in said.items()})
        if pair.kps_ids is not None:
            fields["keypoint_ids"] = pair.kps_ids
        record = PairRecord(
            id=name,
            source_path=paths[0],
            target_path=paths[1],
            keypoints=self.zeros.absent(_points(pair.src_kps), f"{name}, source"),
            target_keypoints=self.zeros.absent(_points(pair.trg_kps), f"{name}, target"),
            source_box=boxes[0],
            target_box=boxes[1],
            category=pair.category,
            fields=fields,
        )
        if np.isnan(record.keypoints).all():
            raise DataError("no point is annotated in both images")
        return record

    def _said_of(self, category: str, image: Path, corners: list[float]) -> dict[str, int]:
        """The flags that ImageAnnotation gives an image, read once; a missing or broken file costs no pair."""
        path = self.base / "ImageAnnotation" / category / f"{image.stem}.json"
        if path not in self._images:
            try:
                self._images[path] = read_json(path, _Image)
            except DataError as error:
                self._images[path] = None
                self.problems.add(str(path), error)
        known = self._images[path]
        if known is None:
            return {}
        if size_hw := told_size(known.image_width, known.image_height):
            self.sizes[image] = size_hw
        if known.bndbox != corners:
            self.problems.add(str(path), f"field 'bndbox' is {known.bndbox}, but a pair of this image says {corners}")
        return {flag: getattr(known, flag) for flag in ("truncated", "occluded", "difficult")}


def _points(rows: list[list[float]]) -> Points:
    points = np.array(rows, dtype=np.float64).reshape(-1, 2)
    if (np.abs(points) > FAR).any():
        raise DataError("fields 'src_kps' and 'trg_kps' must be in the pixels of an image")
    return points
