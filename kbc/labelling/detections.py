"""Boxes of a detector: several objects in one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from kbc.data.annotations import FourNumbers, Record, box_xywh, head
from kbc.data.coco_file import CocoCategory, CocoImage, entries, unique_entries
from kbc.data.records import Problems
from kbc.errors import DataError, InputError, must_be, width_by_height
from kbc.files import read_json
from kbc.geometry import Box
from kbc.headers import stated_size
from kbc.labelling.labels import Labels


@dataclass(frozen=True)
class Detection:
    """Where an object is, xyxy pixel edges, and of which category; None for any."""

    box: Box
    category: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "box", Box.of(self.box, "box"))  # frozen; four numbers are taken, too
        if not isinstance(self.category, str | None):
            raise InputError(must_be("category", "the name of one, or None", repr(self.category)))


class _Seen(Record):
    image_id: int | str
    bbox: FourNumbers
    category_id: int | None = None


_Pictures: TypeAlias = dict[int, tuple[str, tuple[int, int] | None]]
"""COCO's number of a picture → its name and (height, width), where known."""


def read_detections(
    path: Path, images: Sequence[Path], labels: Labels, problems: Problems
) -> dict[Path, tuple[Detection, ...]]:
    """A detector's boxes for each of the pictures, from COCO JSON; () where it has none.

    Either a whole COCO file, or COCO's results format: a list of `image_id`, `bbox` (x, y, width, height) and perhaps
    `category_id`. In the latter an `image_id` is a number in LABELS, or a picture's file name, and a `category_id` one
    of LABELS. Boxes of other pictures and of categories that LABELS has no exemplar of are passed over; where LABELS is
    a picture with points, which names no category, boxes of a single one count whatever it is called. An entry that is
    broken, empty, outside its picture or of a number that is not known becomes a problem; the others are used.

    Args:
        problems: where those are noted.

    Raises:
        DataError: the file cannot be read, or no box is left.
    """
    seen, pictures, named = _read(path, labels, problems)
    wanted = {category.name for category in labels.categories}
    found: dict[Path, list[Detection]] = {image: [] for image in images}
    lookup, stated = _finder(images), cache(_stated)
    elsewhere = ""
    others: dict[str, list[tuple[Path, Box]]] = {}
    for one in seen:
        try:
            name, size, box = _checked(one, pictures)
            image = lookup(name)
            _refuse_beside(one, name, box, size, [] if image is None else stated(image))
        except DataError as error:
            problems.add(path.name, error)
            continue
        category = None if one.category_id is None else named.get(one.category_id, f"number {one.category_id}")
        if image is None:
            elsewhere = elsewhere or name
        elif category is None or (category in wanted and one.category_id in named):
            found[image].append(Detection(box, category))
        else:
            others.setdefault(category, []).append((image, box))
    if len(others) == 1 and not any(found.values()) and not labels.numbers:  # a picture with points has no category
        for image, box in next(iter(others.values())):
            found[image].append(Detection(box))
    if not any(found.values()):
        if problems:
            raise DataError(f"{path}: {next(iter(problems))}")
        expected, received = "boxes in the pictures given, of their labels' categories", f"none of them in {path}"
        hint = f"its boxes are in others, such as {elsewhere!r}" if elsewhere else ""
        if others:
            labelled = ", ".join(sorted(wanted))
            hint = f"those in the pictures are of {', '.join(sorted(others))}, the labels of {labelled}"
        raise DataError(must_be("--boxes", expected, received, hint))
    return {image: tuple(boxes) for image, boxes in found.items()}


def _checked(one: _Seen, pictures: _Pictures) -> tuple[str, tuple[int, int] | None, Box]:
    """The picture that a box is in: its name and its size, where the file tells it; and the box."""
    name, size = (one.image_id, None) if isinstance(one.image_id, str) else pictures.get(one.image_id, ("", None))
    if not name:
        hint = "a number is one of the file's own `images`, or of LABELS; a name works as well"
        raise DataError(must_be("image_id", "of a known picture", one.image_id, hint))
    return name, size, box_xywh(one.bbox, f"bbox of {name}")


def _refuse_beside(
    one: _Seen, name: str, box: Box, size: tuple[int, int] | None, stated: Sequence[tuple[int, int]]
) -> None:
    """Refuse a box that lies beside its picture, or is one of a picture of another size.

    Args:
        size: that the file gives the picture, if any.
        stated: those that the picture itself may have; none where it is not at hand.
    """
    if size is not None and stated and size not in stated:
        expected, hint = f"those of the picture, {width_by_height(stated[0])}", "give boxes of the picture as it is now"
        raise DataError(must_be(f"width and height of {name}", expected, width_by_height(size), hint))
    sizes = stated if size is None else [size]
    if sizes and not any(box.clipped(size_hw).area > 0 for size_hw in sizes):
        expected = f"a box that meets the picture ({width_by_height(sizes[0])})"
        raise DataError(must_be(f"bbox of {name}", expected, one.bbox, "COCO's is x, y, width, height"))


def _stated(image: Path) -> list[tuple[int, int]]:
    """(height, width) by a picture's header, and as EXIF may turn it; [] where it cannot be read, said later."""
    size = stated_size(head(image))
    return [] if size is None else [size, size[::-1]]


def _read(path: Path, labels: Labels, problems: Problems) -> tuple[list[_Seen], _Pictures, dict[int, str]]:
    """Boxes, what the numbers of pictures mean, and those of categories."""
    content = read_json(path)
    if isinstance(content, list):
        pictures: _Pictures = {n: (str(p), labels.sizes.get(p)) for n, p in labels.numbers.items()}
        seen = entries(content, "boxes", _Seen, path, problems)
        return seen, pictures, {one.id: one.name for one in labels.categories}
    images = unique_entries(content, "images", CocoImage, path, problems)
    seen = entries(content.get("annotations"), "annotations", _Seen, path, problems)
    named = unique_entries({"categories": [], **content}, "categories", CocoCategory, path, problems)
    return seen, {one.id: (one.file_name, one.size_hw) for one in images}, {one.id: one.name for one in named}


def _finder(images: Sequence[Path]) -> Callable[[str], Path | None]:
    """Finds the picture whose path ends as a name does; None where none does.

    Raises:
        DataError, when asked: several do.
    """
    ends: dict[str, list[Path]] = {}
    for image in images:
        ends.setdefault(image.name, []).append(image)

    def find(name: str) -> Path | None:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        found = [one for one in ends.get(parts[-1], []) if one.parts[-len(parts) :] == parts] if parts else []
        if len(found) > 1:
            hint = "write more of its path"
            raise DataError(must_be("a picture's name", "that of one of the pictures", f"{name!r} of {found}", hint))
        return found[0] if found else None

    return find
