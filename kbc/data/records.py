"""What a data set is: a sequence of `PairRecord`s, a list of what is wrong with it, and a bounded cache of images."""

from __future__ import annotations

import hashlib
import posixpath
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias, TypeVar, overload

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from kbc import files
from kbc.errors import DataError, InputError, as_text, counted, must_be, requirement
from kbc.files import file_digest
from kbc.geometry import Box, Points, defined, looks_relative
from kbc.headers import stated_size
from kbc.images import Image, image_hw, immutable, load_image, turned
from kbc.types import Pair

BoxKind: TypeAlias = Literal["annotated", "keypoint-extent"]
"""Whether the boxes were drawn by somebody or are the extent of the keypoints."""

Boxes: TypeAlias = Literal["none", "source", "target", "both"]
"""Which boxes `Dataset.load` puts into the pair. A target box is knowledge that a figure has to name."""

CACHE_BYTES = 512 * 2**20

FAR = 1e9
"""Pixels: no picture has such a side, and differences of such coordinates overflow."""


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
        return as_text(f"{self.where}: {self.what}") + (
            f" ({counted(self.pairs, 'pair')} left out)" if self.pairs else ""
        )


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
        if count is None or count >= len(self):
            return self
        if count < 1:
            raise InputError(must_be("limit", "at least 1", count))
        return self.subset(self.records[i] for i in np.linspace(0, len(self) - 1, count).round().astype(int))

    def shard(self, index: int, count: int) -> Dataset:
        """Every `count`-th pair from `index` on (0-based): `count` shards together hold each pair once.

        Raises:
            InputError: not 0 ≤ index < count.
        """
        if not 0 <= index < count:
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
        return list(dict.fromkeys(p for r in self.records for p in (r.source_path, r.target_path)))

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
        uses: dict[Path, int] = {}
        for record in self.records:
            for path in {record.source_path, record.target_path}:
                uses[path] = uses.get(path, 0) + 1
        sizes: dict[Path, tuple[int, int]] = {}
        for path, count in uses.items():
            try:
                height, width = self.image(path).shape[:2]
                sizes[path] = (int(height), int(width))
            except (InputError, OSError) as error:
                found.append(Problem(str(path), str(error), count))
        for record in self.records:
            for path, points in ((record.source_path, record.keypoints), (record.target_path, record.target_keypoints)):
                known = points[defined(points)]
                if path in sizes and not Box.whole(sizes[path]).contains(known).all():
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


def sized(sizes: Mapping[Path, tuple[int, int]]) -> Callable[[Path], Image]:
    """`load_image` that refuses a file of another size than its annotation names: its points are another picture's.

    One that was resized since, say, or one that is turned upright as it is opened (EXIF) and was annotated as it lies
    in the file.

    Args:
        sizes: path → (height, width) in pixels, as annotated; a path that is not there may have any size.
    """
    return partial(_open_sized, sizes)


def _open_sized(sizes: Mapping[Path, tuple[int, int]], path: Path) -> Image:
    image = load_image(path)
    height, width = image.shape[:2]
    annotated = sizes.get(path, (height, width))
    if annotated != (height, width):
        picture, hint = f"those of the picture, {width}×{height}", "annotate the picture as it is now"
        if turned(path):
            picture += " once its EXIF tag has turned it upright"
            hint = "annotate it upright, or take the tag out of the file if it was annotated without"
        argument = f"width and height of {path.name}"
        raise DataError(must_be(argument, picture, f"{annotated[1]}×{annotated[0]}", hint))
    return image


def seen_size(path: Path, sizes: Mapping[Path, tuple[int, int]]) -> tuple[int, int]:
    """(height, width) of a picture as it is opened, refused as by `sized`; decoded where its header does not settle it.

    Raises:
        InputError: it cannot be read, or has another size than its annotation names.
    """
    try:
        with path.open("rb") as file:
            head = file.read(2**16)
    except OSError:
        head = b""  # which opening it will explain
    stated = stated_size(head)
    may_be_turned = head[:2] in (b"II", b"MM") or b"exif" in head.lower()
    if stated is None or may_be_turned or sizes.get(path, stated) != stated:
        return image_hw(_open_sized(sizes, path))
    return stated


class Record(BaseModel):
    """Base of the models of annotation files: further fields are the data set's own business, NaN is refused."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, frozen=True)


_M = TypeVar("_M", bound=BaseModel)


def read_json(path: Path, model: type[_M]) -> _M:
    """A JSON file as a checked model.

    Raises:
        DataError: the file cannot be read (see `kbc.files.read_json`), or a field is wrong; file and field are named.
    """
    return checked(files.read_json(path), model, path)


def checked(data: object, model: type[_M], path: Path) -> _M:
    """What a JSON file held as a checked model.

    Raises:
        DataError: a field is wrong; file and field are named.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise DataError(f"{path}: {explain(error)}") from error


def explain(error: ValidationError) -> str:
    """A validation error in one line: the first wrong field, what it must be and what it is."""
    first, count = error.errors(include_url=False)[0], error.error_count()
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    received = repr(first.get("input"))
    shown = received if len(received) <= 60 else received[:57] + "…"
    more = f" (and {count - 1} more)" if count > 1 else ""
    return f"field {where!r} {requirement(first['msg'])}, received {shown}{more}"


def inside(root: Path, name: str, argument: str = "file name") -> Path:
    """`root / name`, where `name` comes out of an annotation file and may not leave `root`.

    The check is on the text, so that a folder of images may still be a symbolic link. An absolute name is taken when
    it begins with the root's own path.

    Raises:
        DataError: an address, an absolute name elsewhere, or one that climbs out.
    """
    if "://" in name:
        hint = "download the pictures and name the files"
        raise DataError(must_be(argument, f"a path below {str(root)!r}", f"the address {name!r}", hint))
    clean = posixpath.normpath(name.replace("\\", "/"))
    for whole in (root.absolute(), root.resolve()):
        clean = clean.removeprefix(f"{whole.as_posix()}/")
    pure = PurePosixPath(clean)
    if not name or "\0" in name:
        raise DataError(must_be(argument, f"a path below {str(root)!r}", repr(name)))
    if pure.is_absolute() or (pure.parts and ":" in pure.parts[0][1:2]):
        hint = "names start from the root"
        raise DataError(must_be(argument, f"a path below {str(root)!r}", f"the absolute {name!r}", hint))
    if pure.parts[:1] == ("..",):
        raise DataError(must_be(argument, f"a path below {str(root)!r}", repr(name), "it would climb out of the root"))
    return root / pure


def existing(path: Path) -> Path:
    """The path, if there is such a file.

    Raises:
        DataError: there is none, or the name is longer than the file system takes.
    """
    try:
        if path.is_file():
            return path
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    raise DataError(f"{path}: no such file")


def refuse_relative(points: Points, where: str) -> None:
    """Refuse points that can only be fractions of their picture's size.

    Raises:
        DataError: they are.
    """
    if looks_relative(points):
        hint = "multiply relative ones by the picture's width and height"
        first = points[defined(points)][0].tolist()
        raise DataError(must_be(where, "pixels", f"coordinates in [0, 1], e.g. {first}", hint))


def box_xyxy(values: Sequence[float], field: str) -> Box:
    """Four numbers of an annotation as a box.

    Raises:
        DataError: not x0 < x1 and y0 < y1; the field is named.
    """
    x0, y0, x1, y1 = (float(value) for value in values)
    if not (x0 < x1 and y0 < y1 and max(map(abs, (x0, y0, x1, y1))) < FAR):
        raise DataError(f"field {field!r} must be a box with x0 < x1 and y0 < y1, received {[x0, y0, x1, y1]}")
    if min(x0, y0) >= 0 and max(x1, y1) <= 1:
        hint = "multiply a relative box by the picture's width and height"
        raise DataError(must_be(f"field {field!r}", "pixels", f"a box in [0, 1]: {[x0, y0, x1, y1]}", hint))
    return Box(x0, y0, x1, y1)


def box_xywh(values: Sequence[float], field: str = "bbox") -> Box:
    """COCO's x, y, width, height as a box in pixel edges.

    Raises:
        DataError: width or height is not positive.
    """
    x, y, width, height = values
    return box_xyxy((x, y, x + width, y + height), field)


class Problems:
    """Collects what is wrong while reading, one entry per place, counting the pairs it costs."""

    def __init__(self, found: Iterable[Problem] = ()) -> None:
        self._found = {(problem.where, problem.what): problem for problem in found}

    def add(self, where: str, what: object, pairs: int = 0) -> None:
        """Note a problem; the same one again only counts further pairs."""
        key = (where, str(what))
        held = self._found.get(key, Problem(where, str(what)))
        self._found[key] = replace(held, pairs=held.pairs + pairs)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._found.values())


class Zeros:
    """Visible points at exactly (0, 0), which conversions write for "no such point": read as absent, and told.

    Args:
        noun: what holds points, in the singular.
    """

    def __init__(self, noun: str) -> None:
        self._noun = noun
        self._found: dict[str, int] = {}

    def absent(self, points: Points, place: object) -> Points:
        """Points (N, 2) as the file has them, NaN where they are at (0, 0).

        Args:
            place: which of the things that hold points this is.
        """
        zero = (points == 0).all(axis=1)
        if not zero.any():
            return points
        self._found[str(place)] = int(zero.sum())
        return np.where(zero[:, None], np.nan, points)

    def report(self, where: str, problems: Problems) -> None:
        """Make what was found one problem."""
        if self._found:
            points, first = counted(sum(self._found.values()), "visible point"), next(iter(self._found))
            problems.add(
                where,
                f"{points} at (0, 0) in {counted(len(self._found), self._noun)} (first: {first}), as conversions "
                "write for no point; read as absent",
            )
