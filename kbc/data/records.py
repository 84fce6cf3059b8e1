"""What a data set is: a sequence of `PairRecord`s, a list of what is wrong with it, and a bounded cache of images."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

import numpy as np

from kbc.errors import DataError, InputError, as_text, counted, must_be
from kbc.files import file_digest
from kbc.geometry import Box, Points, defined, looks_relative, outside
from kbc.images import Image, image_hw, immutable, load_image, turned
from kbc.types import Pair

BoxKind: TypeAlias = Literal["annotated", "keypoint-extent"]
"""Whether the boxes were drawn by somebody or are the extent of the keypoints."""

Boxes: TypeAlias = Literal["none", "source", "target", "both"]
"""Which boxes `Dataset.load` puts into the pair. A target box is knowledge that a figure has to name."""

CACHE_BYTES = 512 * 2**20


@dataclass(frozen=True, eq=False)
class PairRecord:
    """One pair as annotated; nothing is decoded yet.

    Attributes:
        id: unique within the data set.
        source_path, target_path: image files (for made-up images a name that only its data set can open).
        keypoints: (N, 2) in the source's pixels, (0, 0) the centre of the top-left pixel; NaN where not annotated.
        target_keypoints: (N, 2) the same points in the target; a row is NaN in both where it is missing in either.
        source_box, target_box: the objects, pixel edges, or None.
        bbox_kind: where the boxes come from.
        category: the class of the object.
        others: (N, 2) each, the same points on further objects of the category in the target picture, NaN where not
            annotated: what the protocol "any instance" accepts as well.
        fields: what else the data set says of the pair (difficulty flags, number of instances, …), JSON-ready.
    """

    id: str
    source_path: Path
    target_path: Path
    keypoints: Points
    target_keypoints: Points
    source_box: Box | None = None
    target_box: Box | None = None
    bbox_kind: BoxKind = "annotated"
    category: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    others: tuple[Points, ...] = ()

    def __post_init__(self) -> None:
        for name, points in (("target_keypoints", self.target_keypoints), *(("others", o) for o in self.others)):
            if self.keypoints.shape != points.shape:
                raise DataError(must_be(name, f"of shape {self.keypoints.shape}", points.shape))
        for other in self.others:
            other.setflags(write=False)
        for name in ("id", "category"):
            object.__setattr__(self, name, as_text(getattr(self, name)))
        both = defined(self.keypoints) & defined(self.target_keypoints)
        for name in ("keypoints", "target_keypoints"):
            points = np.where(both[:, None], getattr(self, name), np.nan)
            points.setflags(write=False)
            object.__setattr__(self, name, points)
            refuse_relative(points, name)

    def __repr__(self) -> str:
        points = counted(int(defined(self.keypoints).sum()), "point")
        kind = f", {self.category!r}" if self.category else ""
        return f"PairRecord({self.id!r}{kind}, {self.source_path.name} → {self.target_path.name}, {points})"

    @property
    def sides(self) -> tuple[tuple[Path, Points], tuple[Path, Points]]:
        """Picture and points of the source, and of the target."""
        return (self.source_path, self.keypoints), (self.target_path, self.target_keypoints)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Points that were pickled or copied are read-only again."""
        self.__dict__.update(state)
        for points in (self.keypoints, self.target_keypoints, *self.others):
            points.setflags(write=False)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a data set: where, what, and how many pairs it costs."""

    where: str
    what: str
    pairs: int = 0

    def __str__(self) -> str:
        lost = f" ({counted(self.pairs, 'pair')} left out)" if self.pairs else ""
        return as_text(f"{self.where}: {self.what}") + lost


class Problems:
    """Collects what is wrong while reading, one entry per place, counting the pairs it costs."""

    def __init__(self, found: Iterable[Problem] = ()) -> None:
        self._found = {(problem.where, problem.what): problem for problem in found}

    def add(self, where: str, what: object, pairs: int = 0) -> None:
        """Note a problem; the same one again only counts further pairs."""
        key = (where, str(what))
        held = self._found.get(key, Problem(where, str(what)))
        self._found[key] = replace(held, pairs=held.pairs + pairs)

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._found.values())


class ImageCache:
    """The most recently used images up to a number of bytes; the same read-only array each time while it is held."""

    def __init__(self, open_image: Callable[[Path], Image], max_bytes: int = CACHE_BYTES) -> None:
        self._open, self.max_bytes, self.bytes = open_image, max_bytes, 0
        self._images: OrderedDict[Path, Image] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process, and a deep copy, begin with no images."""
        return (ImageCache, (self._open, self.max_bytes))

    def __call__(self, path: Path) -> Image:
        """The image of this path, decoded at most once while it is held."""
        with self._lock:
            held = self._images.get(path)
            if held is not None:
                self._images.move_to_end(path)
                return held
        image = self._open(path)
        if not isinstance(image.base, bytes):
            image = immutable(image)  # which kbc.images.fingerprint hashes only once
        with self._lock:
            if path not in self._images and image.nbytes <= self.max_bytes:
                self._images[path] = image
                self.bytes += image.nbytes
            while self._images and self.bytes > self.max_bytes:
                self.bytes -= self._images.popitem(last=False)[1].nbytes
            return self._images.get(path, image)


class Dataset(Sequence[PairRecord]):
    """A sequence of pairs, with what was found wrong while reading and the images behind them.

    Args:
        name: for reports.
        records: the usable pairs.
        problems: what was left out and why.
        open_image: how a record's path becomes RGB uint8 (H, W, 3).
        cache_bytes: how much memory decoded images may hold.
        notes: what a user should know and is not wrong.
    """

    def __init__(
        self,
        name: str,
        records: Iterable[PairRecord],
        problems: Iterable[Problem] = (),
        open_image: Callable[[Path], Image] = load_image,
        cache_bytes: int = CACHE_BYTES,
        notes: Iterable[str] = (),
    ) -> None:
        self.name = as_text(name)
        self.notes = tuple(notes)
        self.records = tuple(records)
        self.problems = tuple(problems)
        self.image = ImageCache(open_image, cache_bytes)

    def __repr__(self) -> str:
        wrong = f", {counted(len(self.problems))}" if self.problems else ""
        return f"Dataset({self.name!r}, {counted(len(self), 'pair')} of {counted(len(self.images()), 'image')}{wrong})"

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> PairRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Dataset: ...
    def __getitem__(self, index: int | slice) -> PairRecord | Dataset:
        if isinstance(index, slice):
            return self.subset(self.records[index])
        try:
            return self.records[index]
        except IndexError:
            why = f"; {self.problems[0]}" if self.problems else ""
            raise IndexError(f"{self.name!r} has {counted(len(self), 'pair')}, received index {index}{why}") from None

    def subset(self, records: Iterable[PairRecord]) -> Dataset:
        """The same data set with other records; images are shared."""
        other = Dataset(self.name, records, self.problems, notes=self.notes)
        other.image = self.image
        return other

    def limited(self, count: int | None) -> Dataset:
        """At most `count` pairs, evenly spread over the list, so that every category keeps its share."""
        if count is None:
            return self
        if not isinstance(count, (int, np.integer)) or count < 1:
            raise InputError(must_be("limit", "a whole number, at least 1", repr(count)))
        if count >= len(self):
            return self
        return self.subset(self.records[i] for i in np.linspace(0, len(self) - 1, count).round().astype(int))

    def shard(self, index: int, count: int) -> Dataset:
        """Every `count`-th pair from `index` on (0-based): `count` shards together hold each pair once.

        Raises:
            InputError: not 0 ≤ index < count.
        """
        if not all(isinstance(one, (int, np.integer)) for one in (index, count)) or not 0 <= index < count:
            raise InputError(must_be("shard", "i/n with 0 ≤ i < n", f"{index}/{count}"))
        return self.subset(self.records[index::count])

    def load(self, record: PairRecord, boxes: Boxes = "none") -> Pair:
        """The pair with its images; boxes only where asked for, because a target box is help that counts.

        Raises:
            DataError: an image is missing, truncated or unreadable; the message names the file.
        """
        try:
            return Pair(
                self.image(record.source_path),
                self.image(record.target_path),
                record.keypoints,
                record.source_box if boxes in ("source", "both") else None,
                record.target_box if boxes in ("target", "both") else None,
            )
        except (InputError, OSError) as error:
            raise DataError(f"pair {record.id!r}: {error}") from error

    def images(self) -> list[Path]:
        """Every image named by a pair, once, in order of appearance."""
        return list(dict.fromkeys(path for record in self.records for path, _ in record.sides))

    def digest(self) -> str:
        """SHA-256 of what results depend on: every pair as annotated, and the bytes of the image files that pairs name.

        An image that is no file (a drawn scene) counts by its name, one that cannot be read as missing. The photos
        that surround those of a shrunk set count where a pair of the set names them.
        """
        content = hashlib.sha256(repr([self.name, len(self)]).encode())
        for record in self.records:
            boxes = [None if box is None else box.xyxy for box in (record.source_box, record.target_box)]
            points = [record.keypoints.tolist(), record.target_keypoints.tolist()]
            said = [record.id, str(record.source_path), str(record.target_path), record.bbox_kind, record.category]
            said += [other.tolist() for other in record.others]
            content.update(repr([said, points, boxes, sorted(record.fields.items())]).encode())
        for path in self.images():
            content.update(repr([str(path), file_digest(path)]).encode())
        return content.hexdigest()

    def turned(self) -> list[Path]:
        """The images that their EXIF tag turns when they are opened; points are read in the turned picture."""
        return [path for path in self.images() if turned(path)]

    def check(self) -> list[Problem]:
        """Everything wrong with the set: what reading found, and every image that cannot be decoded.

        Points outside their image are named too: they are kept, for several official sets have some.
        """
        found = list(self.problems)
        if not self.records and not found:
            found.append(Problem(self.name, "holds no pair"))
        uses = Counter(path for record in self.records for path in {record.source_path, record.target_path})
        sizes: dict[Path, tuple[int, int]] = {}
        for path in self.images():
            try:
                sizes[path] = image_hw(self.image(path))
            except (InputError, OSError) as error:
                found.append(Problem(str(path), str(error), uses[path]))
        for record in self.records:
            for path, points in record.sides:
                if path in sizes and outside(points, sizes[path]).any():
                    found.append(Problem(str(path), f"pair {record.id!r} has keypoints outside the image"))
        return found

    def require_sound(self) -> None:
        """Refuse a set in which anything is wrong: what `--strict` does before the first match.

        Raises:
            DataError: with every problem, counted.
        """
        found = self.check()
        if found:
            lines = "\n".join(f"  {problem}" for problem in found[:50])
            more = f"\n  … and {len(found) - 50} more" if len(found) > 50 else ""
            raise DataError(f"{self.name}: {counted(len(found))}:\n{lines}{more}")


def refuse_relative(points: Points, where: str) -> None:
    """Refuse points that can only be fractions of their picture's size.

    Raises:
        DataError: they are.
    """
    if looks_relative(points):
        hint = "multiply relative ones by the picture's width and height"
        first = points[defined(points)][0].tolist()
        raise DataError(must_be(where, "pixels", f"coordinates in [0, 1], e.g. {first}", hint))
