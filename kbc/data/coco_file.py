"""COCO keypoint files as tools write them: their entries, one by one, and where their pictures lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from kbc import files
from kbc.data.annotations import FourNumbers, Record, box_xywh, existing, explain, inside, told_size
from kbc.data.records import BoxKind, Problems
from kbc.errors import DataError
from kbc.geometry import Box

_FOUR_NUMBERS: TypeAdapter[list[float]] = TypeAdapter(FourNumbers)


class CocoImage(Record):
    """An entry of `images`."""

    id: int
    file_name: str
    width: int | None = None
    height: int | None = None

    @property
    def size_hw(self) -> tuple[int, int] | None:
        """(height, width) where the file tells it."""
        return told_size(self.width, self.height)


class CocoCategory(Record):
    """An entry of `categories`; `skeleton` holds pairs of keypoints, counted from 1."""

    id: int
    name: str
    keypoints: tuple[str, ...] = ()
    skeleton: Any = None


class CocoAnnotation(Record):
    """An entry of `annotations`; its box is checked when it is asked for, so that a broken one costs no points."""

    id: int
    image_id: int
    category_id: int
    keypoints: tuple[Annotated[float, Field(allow_inf_nan=True)] | None, ...] | None = ()
    bbox: Any = None
    bbox_kind: BoxKind = "annotated"
    labelled: Any = True  # false where `kbc transfer` found the points


@dataclass(frozen=True)
class CocoFile:
    """The entries of a COCO keypoints file that can be used, and where it says that its pictures lie."""

    images: tuple[CocoImage, ...]
    annotations: tuple[CocoAnnotation, ...]
    categories: tuple[CocoCategory, ...]
    folder: str | None = None


_E = TypeVar("_E", CocoImage, CocoAnnotation, CocoCategory)
_M = TypeVar("_M", bound=Record)


def read_coco(path: Path, problems: Problems) -> CocoFile:
    """A COCO file, entry by entry: a broken one becomes a problem, the others are read.

    Raises:
        DataError: the file is no JSON object with the lists `images`, `annotations` and `categories`.
    """
    return coco_entries(files.read_json(path), path, problems)


def coco_entries(data: Any, path: Path, problems: Problems) -> CocoFile:
    """What a COCO file at a path holds, as `read_coco` gives it."""
    info = data.get("info") if isinstance(data, dict) else None
    said = info.get("images") if isinstance(info, dict) else None
    return CocoFile(
        unique_entries(data, "images", CocoImage, path, problems),
        unique_entries(data, "annotations", CocoAnnotation, path, problems),
        unique_entries(data, "categories", CocoCategory, path, problems),
        said if isinstance(said, str) and "\0" not in said else None,  # others count their pictures there
    )


def unique_entries(data: Any, name: str, model: type[_E], path: Path, problems: Problems) -> tuple[_E, ...]:
    """The entries of a list in a COCO file that can be used, without those whose id stands for several different ones.

    Raises:
        DataError: there is no such list.
    """
    held: dict[int, list[_E]] = {}
    for entry in entries(data.get(name) if isinstance(data, dict) else None, name, model, path, problems):
        same = held.setdefault(entry.id, [])
        if entry not in same:
            same.append(entry)
    for number, same in held.items():
        if len(same) > 1:  # what names such an id names nothing
            problems.add(name, f"id {number} stands for {len(same)} different {name}, so none of them is used")
    return tuple(same[0] for same in held.values() if len(same) == 1)


def entries(listed: Any, name: str, model: type[_M], path: Path, problems: Problems) -> list[_M]:
    """The entries of a list as checked models; a broken one becomes a problem.

    Raises:
        DataError: it is no list.
    """
    if not isinstance(listed, list):
        raise DataError(f"{path}: must be a JSON object with the list {name!r}, as COCO's keypoint files are")
    found = []
    for number, entry in enumerate(listed):
        try:
            found.append(model.model_validate(entry))
        except ValidationError as error:
            problems.add(f"{path.name}, {name}.{number}", explain(error))
    return found


def box_of(bbox: Any, field: str) -> Box:
    """What an entry has as its `bbox` (x, y, width, height) as a box.

    Raises:
        DataError: it is none; the field is named.
    """
    try:
        return box_xywh(_FOUR_NUMBERS.validate_python(bbox), field)
    except ValidationError as error:
        expected = f"{field} must be four numbers x, y, width, height"
        raise DataError(f"{expected}, received {bbox!r:.60}") from error


def layouts(root: Path) -> list[str]:
    """The COCO files in a folder, as kbc, Roboflow, CVAT and COCO itself lay them out, below it; [] without any."""
    for pattern in (
        "annotations.json",
        "_annotations.coco.json",
        "*/_annotations.coco.json",
        "annotations/*keypoints*.json",
    ):
        found = [path.relative_to(root).as_posix() for path in files.visible(root.glob(pattern)) if path.is_file()]
        if found:
            return found
    return []


def picture_folder(path: Path, data: CocoFile, root: Path | None = None) -> Path:
    """Where the pictures of a file lie: where it says so, or in the first of the usual folders with some.

    Args:
        path: the file.
        data: what is in it.
        root: the folder of the data set, which is looked into first; by default the file's own.
    """
    beside = path.parent
    if data.folder is not None:
        return beside / data.folder
    base = root or (beside.parent if beside.name == "annotations" else beside)
    part = path.stem.rpartition("_")[2]  # such as val2017
    folders = [root or beside, base, beside, *(base / name for name in ("images", f"images/{part}", part))]
    names = [picture.file_name for picture in data.images[:20]]

    def holds(folder: Path, name: str) -> bool:
        try:
            return bool(existing(inside(folder, name)))
        except DataError:
            return False

    return next((folder for folder in folders if any(holds(folder, name) for name in names)), folders[0])
