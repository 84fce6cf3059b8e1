"""Boxes of a detector: several objects in one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated, TypeAlias

from pydantic import Field, RootModel

from kbc.data.coco import CocoCategory, CocoImage
from kbc.data.records import Record, box_xywh, checked
from kbc.errors import DataError, must_be
from kbc.files import read_json
from kbc.geometry import Box
from kbc.headers import stated_size
from kbc.labelling.labels import Labels


@dataclass(frozen=True)
class Detection:
    """Where an object is, xyxy pixel edges, and of which category; None for any."""

    box: Box
    category: str | None = None


class _Seen(Record):
    image_id: int | str
    bbox: Annotated[list[float], Field(min_length=4, max_length=4)]
    category_id: int | None = None


class _SeenList(RootModel[list[_Seen]]):
    """COCO's results format."""


class _SeenFile(Record):
    images: list[CocoImage]
    annotations: list[_Seen]
    categories: tuple[CocoCategory, ...] = ()


def read_detections(path: Path, images: Sequence[Path], labels: Labels) -> dict[Path, tuple[Detection, ...]]:
    """A detector's boxes for each of the pictures, from COCO JSON; () where it has none.

    Either a whole COCO file, or COCO's results format: a list of `image_id`, `bbox` (x, y, width, height) and perhaps
    `category_id`. In the latter an `image_id` is a number in LABELS, or a picture's file name, and a `category_id` one
    of LABELS. Boxes of other pictures and of categories that LABELS has no exemplar of are passed over.

    Raises:
        DataError: the file cannot be read, a box is empty or lies outside its picture, a number is not known, or no
            box is left.
    """
    seen, pictures, named = _read(path, labels)
    wanted = {category.name for category in labels.categories}
    found: dict[Path, list[Detection]] = {image: [] for image in images}
    lookup, stated = _finder(images), cache(_stated)
    for one in seen:
        name, size = (one.image_id, None) if isinstance(one.image_id, str) else pictures.get(one.image_id, ("", None))
        if not name:
            hint = "a number is one of the file's own `images`, or of LABELS; a name works as well"
            raise DataError(must_be(f"image_id in {path}", "of a known picture", one.image_id, hint))
        box, image = box_xywh(one.bbox, f"bbox of {name} in {path}"), lookup(name)
        sizes = ([] if image is None else stated(image)) if size is None else [size]
        if sizes and not any(box.clipped(hw).area > 0 for hw in sizes):
            expected = f"a box that meets the picture ({sizes[0][1]}×{sizes[0][0]})"
            raise DataError(must_be(f"bbox of {name} in {path}", expected, one.bbox, "COCO's is x, y, width, height"))
        category = None if one.category_id is None else named.get(one.category_id, "")
        if image is not None and (category is None or category in wanted):
            found[image].append(Detection(box, category))
    if not any(found.values()):
        hint = f"of the categories {', '.join(sorted(wanted))}; pictures are told by their file names"
        raise DataError(must_be("--boxes", "boxes in the pictures given", f"none of them in {path}", hint))
    return {image: tuple(boxes) for image, boxes in found.items()}


def _stated(image: Path) -> list[tuple[int, int]]:
    """(height, width) by a picture's header, and as EXIF may turn it; [] where it cannot be read, said later."""
    try:
        with image.open("rb") as file:
            size = stated_size(file.read(2**16))
    except OSError:
        size = None
    return [] if size is None else [size, size[::-1]]


_Pictures: TypeAlias = dict[int, tuple[str, tuple[int, int] | None]]
"""COCO's number of a picture → its name and (height, width), where known."""


def _read(path: Path, labels: Labels) -> tuple[list[_Seen], _Pictures, dict[int, str]]:
    """Boxes, what the numbers of pictures mean, and those of categories."""
    content = read_json(path)
    if isinstance(content, list):
        pictures: _Pictures = {n: (str(p), labels.sizes.get(p)) for n, p in labels.numbers.items()}
        return checked(content, _SeenList, path).root, pictures, {one.id: one.name for one in labels.categories}
    data = checked(content, _SeenFile, path)
    pictures = {one.id: (one.file_name, one.size_hw) for one in data.images}
    return data.annotations, pictures, {one.id: one.name for one in data.categories}


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
