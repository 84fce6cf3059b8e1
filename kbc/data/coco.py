"""Your own data: COCO keypoints JSON and, if there is one, a file of pairs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from kbc import files
from kbc.data.annotations import FAR, Record, Zeros, existing, inside, load_sized, read_json
from kbc.data.coco_file import CocoAnnotation, CocoFile, box_of, layouts, picture_folder, read_coco
from kbc.data.records import CACHE_BYTES, BoxKind, Dataset, PairRecord, Problems, refuse_relative
from kbc.errors import DataError, InputError, must_be
from kbc.geometry import Box, Points, defined

MAX_PAIRS = 20_000
"""Pairs that are formed where no file lists them; more instances give evenly spread ones of all possible pairs."""


class _Pairs(Record):
    pairs: list[Annotated[list[int], Field(min_length=2, max_length=2)]]


def open_coco(
    root: str | Path,
    *,
    annotations: str | None = None,
    pairs: str | None = None,
    images: str | None = None,
    min_points: int = 1,
    occluded: bool | float = False,
    max_pairs: int = MAX_PAIRS,
    cache_bytes: int = CACHE_BYTES,
) -> Dataset:
    """A data set in COCO's keypoint format.

    Points are read as they stand: 0-based pixels, (0, 0) the centre of the top-left pixel. A point counts when it is
    visible (v = 2) in both instances; with `occluded`, labelled but hidden ones (v = 1) count as well. Points of two
    categories that name their keypoints are joined by name. A picture that has not the width and height that `images`
    names cannot be loaded: its points are of another picture. Visible points at exactly (0, 0), which conversions write
    for "no such point", are read as absent and become a problem. A box that cannot be used is replaced by the extent of
    the keypoints and becomes a problem.

    Args:
        root: the folder.
        annotations: the COCO JSON below it; by default `annotations.json`, or the one file where CVAT, Roboflow or
            COCO itself put it.
        pairs: JSON below it with `pairs`: [[source annotation id, target annotation id], …]. Without it
            `pairs.json` is taken if it is there; otherwise every two instances of a category on different images
            form a pair, in the order of the file.
        images: folder below the root that `file_name` starts from; by default the one that the JSON's `info.images`
            names (`kbc transfer` writes it), else the first that holds the pictures: the root, the JSON's own folder,
            `images`, `images/<part>` or `<part>`, as in `…_<part>.json`.
        min_points: pairs with fewer common points are left out.
        occluded: whether v = 1 counts as v = 2 does; or the least v that counts, for files that hold confidences there.
        max_pairs: at most so many pairs are formed, evenly spread over all possible ones. A list is read whole.
        cache_bytes: memory for decoded images.

    Raises:
        DataError: the folder or a file as a whole cannot be used. Single broken entries become `problems`.
    """
    base = Path(root)
    for argument, count in (("min_points", min_points), ("max_pairs", max_pairs)):
        if count < 1:
            raise InputError(must_be(argument, "at least 1", count))
    if not isinstance(occluded, (bool, int, float)) or not (isinstance(occluded, bool) or 0 < occluded <= 2):
        raise InputError(must_be("occluded", "true, false, or the least v that counts", repr(occluded)))
    name = annotations or _one_layout(base)
    problems = Problems()
    path = inside(base, name, "annotations")
    data = read_coco(path, problems)
    folder = picture_folder(path, data, base) if images is None else inside(base, images or ".", "images")
    visible = (1.0 if occluded else 2.0) if isinstance(occluded, bool) else float(occluded)
    reader = CocoReader(folder, data, problems, visible)
    wanted, notes = inside(base, pairs or "pairs.json", "pairs"), []
    if pairs or files.is_file(wanted):
        chosen = [(a, b) for a, b in read_json(wanted, _Pairs).pairs]
    else:
        chosen, possible = reader.all_pairs(min_points, max_pairs)
        if possible > max_pairs:
            notes.append(f"{len(chosen):,} of {possible:,} possible pairs, evenly spread; max_pairs takes more")
    records = reader.records(chosen, name, min_points)
    reader.zeros.report(name, problems)
    found = sum(one.labelled is False for one in data.annotations)
    if found:
        said = f"the points of {found:,} of {len(data.annotations):,} objects are those that kbc transfer found"
        notes.append(f"{said}: to measure by them compares kbc with itself; `kbc ui --labels` puts them right")
    open_image = partial(load_sized, sizes=reader.sizes)
    return Dataset(base.resolve().name, records, problems, open_image, cache_bytes, notes)


def _one_layout(base: Path) -> str:
    if not base.is_dir():
        raise DataError(must_be("root", "an existing folder", repr(str(base))))
    found = layouts(base)
    if not found:
        hint = "name the file with the option annotations"
        raise DataError(must_be("root", "a folder with annotations.json", repr(str(base)), hint))
    if len(found) > 1:
        hint = f"choose one, for instance annotations={found[0]}"
        raise DataError(must_be("annotations", "one COCO file", f"{', '.join(found)} in {str(base)!r}", hint))
    return found[0]


class CocoReader:
    """The instances of a COCO file, each checked when `side(annotation id)` asks for it.

    Args:
        images: the folder that file names start from.
        data: the usable entries.
        problems: where broken boxes and lost pairs are noted.
        visible: the least v of a point that counts.
    """

    def __init__(self, images: Path, data: CocoFile, problems: Problems, visible: float = 2.0) -> None:
        self.images, self.problems, self.visible = images, problems, visible
        self.pictures = {image.id: image for image in data.images}
        self.sizes: dict[Path, tuple[int, int]] = {}
        self.categories = {category.id: category for category in data.categories}
        self.annotations = {annotation.id: annotation for annotation in data.annotations}
        self.instances = Counter(annotation.image_id for annotation in data.annotations)
        self.by_kind: dict[tuple[int, int], list[int]] = {}  # image and category → annotation ids
        for annotation in self.annotations.values():
            self.by_kind.setdefault((annotation.image_id, annotation.category_id), []).append(annotation.id)
        self.side = cache(self._side)
        self.zeros = Zeros("annotation")

    def all_pairs(self, min_points: int, most: int) -> tuple[list[tuple[int, int]], int]:
        """At most `most` pairs of two usable instances of a category on different images, and how many there are."""
        groups: dict[int, list[CocoAnnotation]] = {}
        for annotation in self.annotations.values():
            groups.setdefault(annotation.category_id, []).append(annotation)
        usable = []
        for category, members in groups.items():
            if len({member.image_id for member in members}) < 2:
                name = self.categories[category].name if category in self.categories else str(category)
                self.problems.add(f"category {name!r}", "all its instances are on one image, so it gives no pair")
            usable.append(self._usable(members, min_points))
        counts = [len(members) * (len(members) - 1) // 2 for members in usable]
        possible = sum(counts)
        if possible <= most:
            pairs = [pair for members in usable for pair in combinations(members, 2)]
        else:
            starts = np.cumsum([0, *counts])
            pairs = []
            for place in np.linspace(0, possible - 1, most).round().astype(np.int64):
                group = int(np.searchsorted(starts, place, side="right")) - 1
                first, second = _nth_pair(len(usable[group]), int(place - starts[group]))
                pairs.append((usable[group][first], usable[group][second]))
        return [(a.id, b.id) for a, b in pairs if a.image_id != b.image_id], possible

    def _usable(self, members: Sequence[CocoAnnotation], min_points: int) -> list[CocoAnnotation]:
        """Those with enough points; each other one becomes a problem with the pairs that it costs."""
        left, on_image = len(members), Counter(member.image_id for member in members)
        usable = []
        for member in members:
            try:
                points = self.side(member.id)[1]
                if int(defined(points).sum()) < min_points:
                    raise DataError(f"fewer than {min_points} visible points{self._unseen(member)}")
                usable.append(member)
            except DataError as error:
                self.problems.add("annotations", error, left - on_image[member.image_id])
                left -= 1
                on_image[member.image_id] -= 1
        return usable

    def records(self, listed: Iterable[tuple[int, int]], where: str, min_points: int) -> list[PairRecord]:
        """The pairs of annotation ids that can be used and have enough common points; each other one is a problem."""
        records: dict[str, PairRecord] = {}
        for source, target in listed:
            try:
                record = self.record(source, target)
                if record.id in records:
                    raise DataError(f"pair {record.id} is listed twice")
                if int(defined(record.keypoints).sum()) < min_points:
                    unseen = self._unseen(self.annotations[source], self.annotations[target])
                    raise DataError(f"fewer than {min_points} common visible points{unseen}")
                records[record.id] = record
            except DataError as error:
                self.problems.add(where, error, 1)
        return list(records.values())

    def _unseen(self, *annotations: CocoAnnotation) -> str:
        """Which v the points have that do not count, and what counts them."""
        found = {
            v for one in annotations for v in (one.keypoints or ())[2::3] if v is not None and 0 < v < self.visible
        }
        if not found:
            return ""
        values = ", ".join(f"{v:g}" for v in sorted(found)[:5])
        option = "occluded=true" if found == {1.0} else f"occluded={min(found):g}"
        return (
            f": those with v = {values} do not count (v >= {self.visible:g} does); --data-option {option} counts them"
        )

    def _side(self, number: int) -> tuple[Path, Points, Box | None, BoxKind]:
        """Picture, points (N, 2) with NaN where not labelled, box and its kind, of an annotation id.

        Raises:
            DataError: the annotation, its picture or its category is absent, not unique or broken.
        """
        if number not in self.annotations:
            raise DataError(f"a pair names annotation {number}, which is absent or not unique")
        annotation = self.annotations[number]
        if annotation.category_id not in self.categories:
            raise DataError(f"annotation {number}: category {annotation.category_id} is absent or not unique")
        if annotation.image_id not in self.pictures:
            raise DataError(f"annotation {number}: image {annotation.image_id} is absent or not unique")
        picture = self.pictures[annotation.image_id]
        path = existing(inside(self.images, picture.file_name, f"file_name of annotation {number}"))
        if picture.size_hw is not None:
            self.sizes[path] = picture.size_hw
        points = self._points(annotation)
        if annotation.bbox is not None:
            try:
                return path, points, box_of(annotation.bbox, f"bbox of annotation {number}"), annotation.bbox_kind
            except DataError as error:
                self.problems.add("annotations", f"{error}; the extent of its keypoints is used")
        return path, points, Box.around(points), "keypoint-extent"

    def _points(self, annotation: CocoAnnotation) -> Points:
        names = self.categories[annotation.category_id].keypoints
        flat = annotation.keypoints or ()
        if len(flat) % 3 or (names and len(flat) != 3 * len(names)):
            expected = f"{len(names)} triples x, y, v" if names else "triples x, y, v"
            raise DataError(f"annotation {annotation.id}: field 'keypoints' must hold {expected}, received {len(flat)}")
        rows = np.array([np.nan if value is None else value for value in flat], dtype=np.float64).reshape(-1, 3)
        if not np.isfinite(rows[:, 2]).all():
            raise DataError(f"annotation {annotation.id}: field 'keypoints' has a v that is not finite")
        seen = rows[:, 2] >= self.visible
        if not (np.abs(rows[seen]) <= FAR).all():  # False for NaN, too
            raise DataError(f"annotation {annotation.id}: field 'keypoints' has NaN or infinity in a visible point")
        points = self.zeros.absent(np.where(seen[:, None], rows[:, :2], np.nan), f"id {annotation.id}")
        refuse_relative(points, f"keypoints of annotation {annotation.id}")
        return points

    def record(self, source: int, target: int) -> PairRecord:
        """The pair of two annotation ids."""
        if source == target:
            raise DataError(f"pair {source}-{target} is of one annotation with itself")
        source_path, points, source_box, _ = self.side(source)
        target_path, target_points, target_box, kind = self.side(target)
        a, b = self.annotations[source], self.annotations[target]
        order = self._order(a.category_id, b.category_id)
        others = [self._joined(other, order) for other in self._others(b)]
        target_points = self._joined(target_points, order)
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
            fields={"source_instances": self.instances[a.image_id], "target_instances": self.instances[b.image_id]},
            others=tuple(o for o in others if len(o) == len(points) and not np.isnan(o).all()),
        )

    def _order(self, source: int, target: int) -> list[int] | None:
        """For each keypoint of the source's category its place in the target's, −1 without; None for the same places.

        Raises:
            DataError: two categories of which one names a keypoint twice, or that share no name.
        """
        names, others = self.categories[source].keypoints, self.categories[target].keypoints
        if source == target or names == others or not names or not others:
            return None
        label = f"categories {self.categories[source].name!r} and {self.categories[target].name!r}"
        if len(set(names)) < len(names) or len(set(others)) < len(others):
            raise DataError(f"{label}: a keypoint's name stands twice, so that points cannot be joined by name")
        if not set(names) & set(others):
            raise DataError(f"{label} share no keypoint's name")
        return [others.index(name) if name in others else -1 for name in names]

    @staticmethod
    def _joined(points: Points, order: list[int] | None) -> Points:
        if order is None:
            return points
        return np.array([points[place] if place >= 0 else (np.nan, np.nan) for place in order])

    def _others(self, annotation: CocoAnnotation) -> list[Points]:
        """The points of the other objects of its category in its picture; broken ones cost no pair."""
        found = []
        for number in self.by_kind[annotation.image_id, annotation.category_id]:
            if number != annotation.id:
                try:
                    found.append(self.side(number)[1])
                except DataError as error:
                    self.problems.add("annotations", error)
        return found


def _nth_pair(count: int, place: int) -> tuple[int, int]:
    """The `place`-th of `combinations(range(count), 2)`, without forming them.

    >>> [_nth_pair(4, place) for place in range(6)]
    [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    """
    left = count * (count - 1) // 2 - 1 - place  # counted from the end, rows have 1, 2, 3, … pairs
    row = (math.isqrt(8 * left + 1) - 1) // 2
    first = count - 2 - row
    return first, count - 1 - (left - row * (row + 1) // 2)
