"""AP-10K (Yu et al., NeurIPS 2021) as the correspondence benchmark of GeoAware-SC (Zhang et al., CVPR 2024)."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from kbc.data.annotations import (
    FAR,
    FourNumbers,
    Record,
    Zeros,
    box_xywh,
    existing,
    inside,
    load_sized,
    read_json,
    told_size,
)
from kbc.data.records import CACHE_BYTES, Dataset, PairRecord, Problems
from kbc.errors import DataError, must_be, refuse_others
from kbc.files import is_file, visible
from kbc.geometry import Points

FOLDERS = {"intra-species": "", "cross-species": "_cross_species", "cross-family": "_cross_family"}
"""Benchmark → how its folders' names end."""


class _Pair(Record):
    src_json_path: str
    trg_json_path: str


class _Image(Record):
    bbox: FourNumbers
    keypoints: list[float]
    name: str = ""
    file_name: str = ""
    width: int | None = None
    height: int | None = None


def open_ap10k(
    root: str | Path,
    *,
    benchmark: Literal["intra-species", "cross-species", "cross-family"] = "intra-species",
    split: Literal["trn", "val", "test"] = "test",
    occluded: bool = True,
    cache_bytes: int = CACHE_BYTES,
) -> Dataset:
    """AP-10K's correspondence benchmark as its authors distribute it.

    `PairAnnotation/<split>[_cross_species|_cross_family]/<a>-<b>:<group>.json` names two files of
    `ImageAnnotation/<family>/<species>/` (by a path from the authors' working directory: only the part from
    `ImageAnnotation` on counts), each one COCO instance with its `bbox` (x, y, width, height) and 17 points; the
    image is its namesake in `JPEGImages`, and has the size that the annotation tells: one that was resized since
    cannot be loaded. Points are taken as they stand, 0-based.

    Args:
        root: the folder `ap-10k`.
        benchmark: which of the three; the training split has only "intra-species".
        split: "trn", "val" or "test".
        occluded: points marked hidden (v = 1) count as well, as in the benchmark's own evaluation.
        cache_bytes: memory for decoded images.

    Raises:
        DataError: the folder lacks the split. Single broken pairs become `problems`.
    """
    base = Path(root)
    refuse_others("benchmark", benchmark, FOLDERS)
    refuse_others("split", split, ("trn", "val", "test"))
    folder = base / "PairAnnotation" / (split + FOLDERS[benchmark])
    if not folder.is_dir():
        raise DataError(must_be("root", f"the folder ap-10k, with PairAnnotation/{folder.name}", repr(str(root))))
    problems = Problems()
    reader = _Reader(base, 1 if occluded else 2)
    records = []
    for path in visible(folder.glob("*.json")):
        try:
            records.append(reader.record(path))
        except DataError as error:
            problems.add(f"PairAnnotation/{folder.name}/{path.name}", error, 1)
    reader.zeros.report("ImageAnnotation", problems)
    if not records and not problems:
        raise DataError(f"{folder}: it holds no pair")
    open_image = partial(load_sized, sizes=reader.sizes, swapped=True)
    return Dataset(f"AP-10K {benchmark} {split}", records, problems, open_image, cache_bytes)


class _Reader:
    def __init__(self, base: Path, visible: int) -> None:
        self.base, self.visible = base, visible
        self.zeros = Zeros("file")
        self.sizes: dict[Path, tuple[int, int]] = {}
        self._held: dict[str, _Image] = {}

    def record(self, path: Path) -> PairRecord:
        pair = read_json(path, _Pair)
        source, points, first = self._side(pair.src_json_path)
        target, target_points, second = self._side(pair.trg_json_path)
        if len(points) != len(target_points):
            raise DataError(f"{len(points)} points on one side, {len(target_points)} on the other")
        group = re.split(r"[:_]", path.stem)[-1] if re.search(r"[:_]", path.stem) else first.name
        record = PairRecord(
            id=path.stem,
            source_path=source,
            target_path=target,
            keypoints=points,
            target_keypoints=target_points,
            source_box=box_xywh(first.bbox),
            target_box=box_xywh(second.bbox),
            category=group,
            fields={"source_species": first.name, "target_species": second.name},
        )
        if np.isnan(record.keypoints).all():
            raise DataError("no point is visible in both images")
        return record

    def _side(self, name: str) -> tuple[Path, Points, _Image]:
        """Image, points and annotation of one side of a pair."""
        below = re.split(r"(?:^|/)ImageAnnotation/", name.replace("\\", "/"))[-1]
        if below not in self._held:
            self._held[below] = read_json(inside(self.base / "ImageAnnotation", below, "json path"), _Image)
        annotation = self._held[below]
        image = self._image(below, annotation)
        if size_hw := told_size(annotation.width, annotation.height):
            self.sizes[image] = size_hw
        return image, self.zeros.absent(self._points(below, annotation), below), annotation

    def _image(self, below: str, annotation: _Image) -> Path:
        folder = inside(self.base / "JPEGImages", below, "json path").parent
        if annotation.file_name:
            named = inside(folder, annotation.file_name, "file_name")
            if is_file(named):
                return named
        return existing(folder / f"{Path(below).stem}.jpg")

    def _points(self, below: str, annotation: _Image) -> Points:
        flat = annotation.keypoints
        if len(flat) % 3:
            raise DataError(f"{below}: field 'keypoints' must hold triples x, y, v, received {len(flat)}")
        rows = np.array(flat, dtype=np.float64).reshape(-1, 3)
        if (np.abs(rows[:, :2]) > FAR).any():
            raise DataError(f"{below}: field 'keypoints' must be in the pixels of an image")
        return np.where(rows[:, 2:] >= self.visible, rows[:, :2], np.nan)
