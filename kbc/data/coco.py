"""Your own data: COCO keypoints JSON and, if there is one, a file of pairs."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from kbc.data.records import (
    CACHE_BYTES,
    BoxKind,
    Dataset,
    PairRecord,
    Problems,
    Record,
    box_xywh,
    existing,
    inside,
    read_json,
    sized,
)
from kbc.errors import DataError, InputError, must_be
from kbc.geometry import Box, Points

_Four = Annotated[list[float], Field(min_length=4, max_length=4)]


class CocoImage(Record):
    """An entry of `images`."""

    id: int
    file_name: str
    width: int | None = None
    height: int | None = None


class CocoCategory(Record):
    """An entry of `categories`; `skeleton` holds pairs of keypoints, counted from 1."""

    id: int
    name: str
    keypoints: tuple[str, ...] = ()
    skeleton: Any = None


class CocoAnnotation(Record):
    """An entry of `annotations`."""

    id: int
    image_id: int
    category_id: int
    keypoints: tuple[float | None, ...] = ()
    bbox: _Four | None = None
    bbox_kind: Literal["annotated", "keypoint-extent"] = "annotated"


class CocoFile(Record):
    """What kbc reads of a COCO keypoints file."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


class _Pairs(Record):
    pairs: list[Annotated[list[int], Field(min_length=2, max_length=2)]]


def open_coco(
    root: str | Path,
    *,
    annotations: str = "annotations.json",
    pairs: str | None = None,
    images: str = "",
    min_points: int = 1,
    occluded: bool = False,
    cache_bytes: int = CACHE_BYTES,
) -> Dataset:
    """A data set in COCO's keypoint format.

    Points are read as they stand: 0-based pixels, (0, 0) the centre of the top-left pixel. A point counts when it is
    visible (v = 2) in both instances; with `occluded`, labelled but hidden ones (v = 1) count as well. A picture that
    has not the width and height that `images` names cannot be loaded: its points are of another picture.

    Args:
        root: the folder.
        annotations: the COCO JSON below it.
        pairs: JSON below it with `pairs`: [[source annotation id, target annotation id], …]. Without it
            `pairs.json` is taken if it is there; otherwise every two instances of a category on different images
            form a pair, in the order of the file.
        images: folder below the root that `file_name` starts from.
        min_points: pairs with fewer common points are left out.
        cache_bytes: memory for decoded images.

    Raises:
        DataError: the folder or a file as a whole cannot be used. Single broken entries become `problems`.
    """
    base = Path(root)
    if not base.is_dir():
        raise DataError(must_be("root", "an existing folder", repr(str(root))))
    if min_points < 1:
        raise InputError(must_be("min_points", "at least 1", min_points))
    data = read_json(inside(base, annotations, "annotations"), CocoFile)
    problems = Problems()
    reader = CocoReader(base, inside(base, images, "images") if images else base, data, occluded, problems)
    wanted = inside(base, pairs or "pairs.json", "pairs")
    listed = read_json(wanted, _Pairs).pairs if pairs or wanted.is_file() else reader.all_pairs()
    records = []
    for source, target in listed:
        try:
            record = reader.record(int(source), int(target))
        except DataError as error:
            problems.add(annotations, error, 1)
            continue
        common = int(np.count_nonzero(~np.isnan(record.keypoints[:, 0])))
        if common >= min_points:
            records.append(record)
        else:
            problems.add(annotations, f"fewer than {min_points} common visible points", 1)
    return Dataset(base.resolve().name, records, problems, sized(reader.sizes), cache_bytes)


class CocoReader:
    """The instances of a COCO file, each checked when it is asked for."""

    def __init__(self, root: Path, images: Path, data: CocoFile, occluded: bool, problems: Problems) -> None:
        self.root, self.images, self.visible, self.problems = root, images, 1 if occluded else 2, problems
        self.pictures = {image.id: image for image in data.images}
        self.sizes: dict[Path, tuple[int, int]] = {}
        self.categories = {category.id: category for category in data.categories}
        self.annotations = {annotation.id: annotation for annotation in data.annotations}
        self.instances = Counter(annotation.image_id for annotation in data.annotations)
        self.by_kind: dict[tuple[int, int], list[int]] = {}  # image and category → annotation ids
        for annotation in self.annotations.values():
            self.by_kind.setdefault((annotation.image_id, annotation.category_id), []).append(annotation.id)
        if len(self.annotations) < len(data.annotations):
            problems.add("annotations", f"{len(data.annotations) - len(self.annotations)} annotation ids occur twice")
        self._sides: dict[int, tuple[Path, Points, Box | None, BoxKind]] = {}

    def all_pairs(self) -> list[list[int]]:
        """Every two instances of a category on different images, by annotation id."""
        groups: dict[int, list[CocoAnnotation]] = {}
        for annotation in self.annotations.values():
            groups.setdefault(annotation.category_id, []).append(annotation)
        pairs = []
        for category, members in groups.items():
            if len({member.image_id for member in members}) < 2:
                name = self.categories[category].name if category in self.categories else str(category)
                self.problems.add(f"category {name!r}", "all its instances are on one image, so it gives no pair")
            pairs += [[a.id, b.id] for a, b in combinations(members, 2) if a.image_id != b.image_id]
        return pairs

    def side(self, number: int) -> tuple[Path, Points, Box | None, BoxKind]:
        """Picture, points (N, 2) with NaN where not labelled, box and its kind, of an annotation id.

        Raises:
            DataError: the annotation, its picture or its category is absent or broken.
        """
        if number not in self._sides:
            if number not in self.annotations:
                raise DataError(f"a pair names annotation {number}, which is absent")
            annotation = self.annotations[number]
            if annotation.category_id not in self.categories:
                raise DataError(f"annotation {number}: category {annotation.category_id} is absent")
            if annotation.image_id not in self.pictures:
                raise DataError(f"annotation {number}: image {annotation.image_id} is absent")
            picture = self.pictures[annotation.image_id]
            path = existing(inside(self.images, picture.file_name, f"file_name of annotation {number}"))
            if picture.height and picture.width:
                self.sizes[path] = (picture.height, picture.width)
            points = self._points(annotation)
            if annotation.bbox is None:
                self._sides[number] = (path, points, Box.around(points), "keypoint-extent")
            else:
                box = box_xywh(annotation.bbox, f"bbox of annotation {number}")
                self._sides[number] = (path, points, box, annotation.bbox_kind)
        return self._sides[number]

    def _points(self, annotation: CocoAnnotation) -> Points:
        names = self.categories[annotation.category_id].keypoints
        flat = annotation.keypoints
        if len(flat) % 3 or (names and len(flat) != 3 * len(names)):
            expected = f"{len(names)} triples x, y, v" if names else "triples x, y, v"
            raise DataError(f"annotation {annotation.id}: field 'keypoints' must hold {expected}, received {len(flat)}")
        rows = np.array([np.nan if value is None else value for value in flat], dtype=np.float64).reshape(-1, 3)
        seen = rows[:, 2] >= self.visible
        if np.isnan(rows[:, 2]).any() or np.isnan(rows[seen]).any():
            raise DataError(f"annotation {annotation.id}: field 'keypoints' has NaN in a visible point")
        return np.where(seen[:, None], rows[:, :2], np.nan)

    def record(self, source: int, target: int) -> PairRecord:
        """The pair of two annotation ids."""
        (source_path, points, source_box, _), (target_path, target_points, target_box, kind) = (
            self.side(source),
            self.side(target),
        )
        a, b = self.annotations[source], self.annotations[target]
        if len(points) != len(target_points):
            raise DataError(
                f"pair {source}-{target}: {len(points)} points on one side, {len(target_points)} on the other"
            )
        first, second = self.categories[a.category_id].name, self.categories[b.category_id].name
        return PairRecord(
            id=f"{source}-{target}",
            source_path=source_path,
            target_path=target_path,
            keypoints=points,
            target_keypoints=target_points,
            source_box=source_box,
            target_box=target_box,
            bbox_kind=kind,
            category=first if first == second else f"{first}→{second}",
            fields={
                "source_instances": self.instances[a.image_id],
                "target_instances": self.instances[b.image_id],
            },
            others=self._others(b, len(points)),
        )

    def _others(self, annotation: CocoAnnotation, count: int) -> tuple[Points, ...]:
        """The points of the other objects of its category in its picture; broken ones cost no pair."""
        found = []
        for number in self.by_kind[annotation.image_id, annotation.category_id]:
            if number != annotation.id:
                try:
                    found.append(self.side(number)[1])
                except DataError as error:
                    self.problems.add("annotations", error)
        return tuple(points for points in found if len(points) == count and not np.isnan(points).all())
