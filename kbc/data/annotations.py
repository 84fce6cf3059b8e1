"""What the readers of annotation files share: models, paths that stay inside, boxes, sizes, points at (0, 0)."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, TypeAlias, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kbc import files
from kbc.data.records import Problems
from kbc.errors import DataError, InputError, as_text, counted, must_be, nearest, requirement, width_by_height
from kbc.geometry import Box, Points
from kbc.headers import stated_size
from kbc.images import Image, image_hw, load_image, turned

FAR = 1e9
"""Pixels: no picture has such a side, and differences of such coordinates overflow."""

FourNumbers: TypeAlias = Annotated[list[float], Field(min_length=4, max_length=4)]
"""A box in a file, in whichever order."""


def told_size(width: int | None, height: int | None) -> tuple[int, int] | None:
    """(height, width) of a picture where a file tells what one can have: VIA writes −1, others 0."""
    if height is None or width is None:
        return None
    return (height, width) if 0 < height < FAR and 0 < width < FAR else None


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
    clean = posixpath.normpath(name.replace("\\", "/"))
    for whole in (root.absolute(), root.resolve()):
        clean = clean.removeprefix(f"{whole.as_posix()}/")
    pure = PurePosixPath(clean)
    if "://" in name:
        received, hint = f"the address {name!r}", "download the pictures and name the files"
    elif not name or "\0" in name:
        received, hint = repr(name), ""
    elif pure.is_absolute() or (pure.parts and ":" in pure.parts[0][1:2]):
        received, hint = f"the absolute {name!r}", "names start from the root"
    elif pure.parts[:1] == ("..",):
        received, hint = repr(name), "it would climb out of the root"
    else:
        return root / pure
    raise DataError(must_be(argument, f"a path below {str(root)!r}", received, hint))


def require_category(category: str | None, known: Iterable[str]) -> None:
    """Refuse a category that the data set does not have.

    Raises:
        InputError: it is none of the known ones; the nearest are named.
    """
    names = set(known)
    if category is not None and category not in names:
        raise InputError(must_be("category", "one of the data set's", repr(category), nearest(category, names)))


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
    raise DataError(f"{path}: no such file{namesake(path)}")


def namesake(path: Path) -> str:
    """A hint for a file that is not there: another in its folder whose name differs in capital letters alone."""
    try:
        near = _by_lower(path.parent, path.parent.stat().st_mtime_ns).get(path.name.lower())
    except (OSError, ValueError):
        return ""
    return f"; there is {as_text(near)!r}, which differs in capital letters" if near and near != path.name else ""


@lru_cache(maxsize=8)  # a hundred thousand pictures may be asked for in a folder of as many
def _by_lower(folder: Path, changed: int) -> dict[str, str]:
    """Lower-case name → name of the files of a folder, as it was when it was last changed."""
    return {name.lower(): name for name in os.listdir(folder)}


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


def load_sized(path: Path, sizes: Mapping[Path, tuple[int, int]], swapped: bool = False) -> Image:
    """`load_image` that refuses a file of another size than its annotation names: its points are another picture's.

    One that was resized since, say, or one that is turned upright as it is opened (EXIF) and was annotated as it lies
    in the file.

    Args:
        path: the file.
        sizes: path → (height, width) in pixels, as annotated; a path that is not there may have any size.
        swapped: width and height may stand for each other, as tools confuse them, where no tag turns the file.
    """
    image = load_image(path)
    size_hw = image_hw(image)
    annotated = sizes.get(path, size_hw)
    if annotated != size_hw and not (swapped and annotated == size_hw[::-1] and not turned(path)):
        picture = f"those of the picture, {width_by_height(size_hw)}"
        hint = "annotate the picture as it is now, or take the one that was annotated"
        if turned(path):
            picture += " once its EXIF tag has turned it upright"
            hint = "annotate it upright, or take the tag out of the file if it was annotated without"
        raise DataError(must_be(f"width and height of {path.name}", picture, width_by_height(annotated), hint))
    return image


def head(path: Path) -> bytes:
    """The first 64 KiB of a picture's file, which state its size; b"" where it cannot be read: opening it says why."""
    try:
        with path.open("rb") as file:
            return file.read(2**16)
    except OSError:
        return b""


def seen_size(path: Path, sizes: Mapping[Path, tuple[int, int]]) -> tuple[int, int]:
    """(height, width) of a picture as opened, refused as by `load_sized`; decoded where the header leaves it open.

    Raises:
        InputError: it cannot be read, or has another size than its annotation names.
    """
    content = head(path)
    stated = stated_size(content)
    may_be_turned = content[:2] in (b"II", b"MM") or b"exif" in content.lower()
    if stated is None or may_be_turned or sizes.get(path, stated) != stated:
        return image_hw(load_sized(path, sizes))
    return stated


class Zeros:
    """Visible points at exactly (0, 0), which conversions write for "no such point": read as absent, and told.

    Args:
        noun: what holds points, in the singular.
    """

    def __init__(self, noun: str) -> None:
        self._noun = noun
        self._found: dict[str, int] = {}

    def absent(self, points: Points, place: str) -> Points:
        """Points (N, 2) as the file has them, NaN where they are at (0, 0).

        Args:
            place: which of the things that hold points this is.
        """
        zero = (points == 0).all(axis=1)
        if not zero.any():
            return points
        self._found[place] = int(zero.sum())
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
