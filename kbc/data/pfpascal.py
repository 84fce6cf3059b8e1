"""PF-PASCAL (Ham, Cho, Schmid, Ponce: Proposal Flow, TPAMI 2017): 1,351 pairs in the 20 PASCAL categories."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from kbc.data.annotations import FAR, Zeros, existing, inside, require_category
from kbc.data.matlab import from_matlab, read_mat
from kbc.data.records import CACHE_BYTES, BoxKind, Dataset, PairRecord, Problems
from kbc.errors import DataError, InputError, must_be, refuse_others
from kbc.files import is_file, read_table
from kbc.geometry import Box, Points
from kbc.images import Image, load_image

# fmt: off
CATEGORIES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
_COLUMNS = ("source_image", "target_image", "class")
_MIRRORED = "#mirrored"
_Side = tuple[Points, Box | None]


def open_pfpascal(
    root: str | Path,
    *,
    split: Literal["trn", "val", "test"] = "test",
    points: Literal["auto", "mat", "csv"] = "auto",
    category: str | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> Dataset:
    """PF-PASCAL from any of the layouts in use.

    Pairs come from `<split>_pairs.csv` or `<split>_pairs_pf_pascal.csv` (`train` is understood for `trn`), columns
    `source_image, target_image, class` (1 to 20, or the name), then `flip` in training lists (1: both images and
    their points are mirrored) or the points themselves, `XA, YA, XB, YB`, each a `;`-separated list. The archive's
    own points are in `Annotations/<class>/<name>.mat`: `kps` (N, 2), NaN where absent, and `bbox`. Both count from 1
    (the lists' own evaluation code normalises by x − 1) and are given here counted from 0. A box's corners are
    taken as points, so that its width is x1 − x0, as published thresholds have it.

    Args:
        root: the folder with the lists, holding `JPEGImages` itself or in `PF-dataset-PASCAL`; or that folder.
        split: "trn", "val" or "test".
        points: "mat", "csv", or "auto": .mat when there is an `Annotations` folder.
        category: only this one, or all.
        cache_bytes: memory for decoded images.

    Raises:
        DataError: the folder or list as a whole cannot be used. Single broken rows become `problems`.
    """
    base = Path(root)
    refuse_others("split", split, ("trn", "val", "test"))
    require_category(category, CATEGORIES)
    refuse_others("points", points, ("auto", "mat", "csv"))
    folder = next((d for d in (base, base / "PF-dataset-PASCAL") if (d / "JPEGImages").is_dir()), None)
    if folder is None:
        raise DataError(must_be("root", "a folder with JPEGImages or PF-dataset-PASCAL/JPEGImages", repr(str(root))))
    problems = Problems()
    listing = _listing(base, folder, split)
    reader = _Reader(folder, points)
    records = []
    (_, header), *rows = read_table(listing) or [(0, [])]
    header = [name.lower() if name.lower() in _COLUMNS else name for name in header]
    if absent := [name for name in _COLUMNS if name not in header]:
        expected = f"the columns {', '.join(_COLUMNS)} in its first line"
        raise DataError(f"{listing}: must name {expected}, received none of the name {absent[0]!r}")
    for number, (line, cells) in enumerate(rows, 1):
        try:
            record = reader.record(f"{number:05d}", dict(zip(header, cells, strict=False)))
        except DataError as error:
            problems.add(f"{listing.name}, line {line}", error, 1)
            continue
        if category is None or record.category == category:
            records.append(record)
    reader.zeros.report(listing.name, problems)
    return Dataset(f"PF-PASCAL {split}", records, problems, _open_image, cache_bytes)


def _listing(base: Path, folder: Path, split: str) -> Path:
    words = ("trn", "train") if split == "trn" else (split,)
    names = [f"{word}_pairs{tail}.csv" for word in words for tail in ("", "_pf_pascal")]
    for name in names:
        for place in (base, folder):
            if is_file(place / name):
                return place / name
    raise DataError(f"{base}: no pair list; looked for {', '.join(names)}")


def _open_image(path: Path) -> Image:
    """An image of the set; a name with the mark of a mirrored pair gives the mirror image."""
    name = str(path)
    if name.endswith(_MIRRORED):
        return np.ascontiguousarray(load_image(name.removesuffix(_MIRRORED))[:, ::-1])
    return load_image(path)


class _Reader:
    def __init__(self, folder: Path, points: str) -> None:
        self.folder = folder
        self.mat = points == "mat" or (points == "auto" and (folder / "Annotations").is_dir())
        self._sides: dict[Path, _Side] = {}
        self.zeros = Zeros("object")

    def record(self, number: str, row: dict[str, str]) -> PairRecord:
        category = self._category(row.get("class"))
        names = [row.get("source_image") or "", row.get("target_image") or ""]
        if not all(names):
            raise DataError("column 'source_image' or 'target_image' is missing or empty")
        images = [
            existing(inside(self.folder / "JPEGImages", name.replace("\\", "/").split("/")[-1])) for name in names
        ]
        if self.mat:
            sides = [self._from_mat(category, image) for image in images]
        else:
            sides = [(self._from_csv(row, "A", number), None), (self._from_csv(row, "B", number), None)]
        if len(sides[0][0]) != len(sides[1][0]):
            raise DataError(f"{len(sides[0][0])} points on one side, {len(sides[1][0])} on the other")
        flip = self._flip(row.get("flip"))
        if flip:
            sides = [_mirror(side, image) for side, image in zip(sides, images, strict=True)]
            images = [Path(f"{image}{_MIRRORED}") for image in images]
        (source, source_box), (target, target_box) = sides
        kind: BoxKind = "annotated" if self.mat else "keypoint-extent"
        record = PairRecord(
            id=number,
            source_path=images[0],
            target_path=images[1],
            keypoints=source,
            target_keypoints=target,
            source_box=source_box or Box.around(source),
            target_box=target_box or Box.around(target),
            bbox_kind=kind,
            category=category,
            fields={"flip": int(flip)},
        )
        if np.isnan(record.keypoints).all():
            raise DataError("no point is annotated in both images")
        return record

    def _category(self, value: str | None) -> str:
        text = (value or "").strip()
        if text in CATEGORIES:
            return text
        number = int(text) if text.isascii() and text.isdecimal() and len(text) < 9 else 0
        if not 1 <= number <= len(CATEGORIES):
            raise DataError(must_be("class", f"1 to {len(CATEGORIES)} or a category's name", repr(value)))
        return CATEGORIES[number - 1]

    @staticmethod
    def _flip(value: str | None) -> bool:
        """0 or 1, as spreadsheets and data frames write them, too."""
        said = {"": False, "0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
        flip = said.get((value or "").lower())
        if flip is None:
            raise DataError(must_be("flip", "0 or 1", repr(value)))
        return flip

    def _from_mat(self, category: str, image: Path) -> _Side:
        path = self.folder / "Annotations" / category / f"{image.stem}.mat"
        if path not in self._sides:
            arrays = read_mat(path, "kps", "bbox")
            points, box = arrays.get("kps"), arrays.get("bbox")
            if points is None or points.shape[1] != 2:
                shape = None if points is None else points.shape
                raise DataError(f"{path}: field 'kps' must be of shape (N, 2), received {shape}")
            if box is not None and (box.size != 4 or not np.isfinite(box).all()):
                raise DataError(f"{path}: field 'bbox' must be four numbers, received {box.tolist()}")
            corners = None if box is None else Box.around(from_matlab(box.reshape(2, 2)))
            points = from_matlab(self.zeros.absent(points, path.name))
            self._sides[path] = (points, corners)
        return self._sides[path]

    def _from_csv(self, row: dict[str, str], side: str, number: str) -> Points:
        columns = []
        for name in (f"X{side}", f"Y{side}"):
            text = row.get(name)
            if not text:
                raise DataError(f"column {name!r} is missing or empty, and there is no Annotations folder")
            try:
                columns.append([float(cell) for cell in text.split(";") if cell.strip()])
            except ValueError as error:
                raise DataError(f"column {name!r} holds something that is not a number ({error})") from error
        if len(columns[0]) != len(columns[1]) or not (np.abs(columns) < FAR).all():
            raise DataError(f"columns X{side} and Y{side} must hold as many finite numbers, in the pixels of an image")
        return from_matlab(self.zeros.absent(np.array(columns).T, f"X{side} of pair {number}"))


def _mirror(side: _Side, image: Path) -> _Side:
    """Points and box in the mirror image. Its width is needed, so the image is decoded: training lists only."""
    try:
        width = load_image(image).shape[1]
    except (InputError, OSError) as error:
        raise DataError(str(error)) from error
    points, box = side
    mirrored = np.stack([width - 1 - points[:, 0], points[:, 1]], axis=1)
    return mirrored, None if box is None else Box(width - box.x1, box.y0, width - box.x0, box.y1)
