"""What goes in: labelled pictures, and the pictures to label."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kbc.data.annotations import inside, seen_size
from kbc.data.coco import CocoReader
from kbc.data.coco_file import CocoAnnotation, picture_folder, read_coco
from kbc.data.records import Problem, Problems
from kbc.errors import DataError, InputError, counted, must_be, width_by_height
from kbc.files import absolute, as_path, is_file, read_text
from kbc.geometry import Box, Points, as_points, defined, outside
from kbc.images import ImageLike

SUFFIXES = frozenset(
    f".{name}" for name in ("avif", "bmp", "gif", "jp2", "jfif", "jpe", "jpeg", "jpg", "png", "tif", "tiff", "webp")
) | {".heic", ".heif", ".pbm", ".pgm", ".pnm", ".ppm"}
"""What counts as a picture in a folder; a file that is named may be called anything. A telephone's .heic cannot
be read, and is named: passed over in silence it would be missed."""


@dataclass(frozen=True, eq=False)
class Exemplar:
    """One labelled object: what `transfer` looks for in other pictures.

    Attributes:
        image: the picture it is in; anything that `kbc.load_image` takes.
        names: what the points are called, each once, in order. Answers of several exemplars are joined by these.
        keypoints: (N, 2) in the picture's pixels, (0, 0) the centre of the top-left pixel; NaN where not visible.
        category: the object's class; exemplars of one category speak together.
        box: where the object is, xyxy pixel edges, when known; else the extent of its points.

    Raises:
        InputError: names that are missing, empty or given twice, no visible point, or a box that is none or holds none
            of the points.

    >>> import numpy as np
    >>> photo = np.zeros((40, 60, 3), np.uint8)
    >>> Exemplar(photo, names=("nose", "tail"), keypoints=[[4, 5], [51, 8]]).category
    'object'
    """

    image: ImageLike
    names: tuple[str, ...]
    keypoints: Points
    category: str = "object"
    box: Box | None = None

    def __post_init__(self) -> None:
        given: Any = self.names  # a list, an array, a column of a table
        names = tuple(given) if isinstance(given, Iterable) and not isinstance(given, (set, frozenset)) else ()
        points = as_points(self.keypoints)
        if not all(isinstance(text, str) for text in (*names, self.category)):
            raise InputError(must_be("names and category", "text", repr((*names, self.category))))
        if not all(names):
            raise InputError(must_be("names", "one for each point, none of them empty", f"an empty one among {names}"))
        if len(names) != len(points):
            received = f"{counted(len(names), 'name')} for {counted(len(points), 'point')}"
            raise InputError(must_be("names", "one for each point", received))
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(must_be("names", "given once each", f"{twice!r} twice"))
        if not defined(points).any():
            raise InputError(must_be("keypoints", "visible, at least one of them", "none that is"))
        points.setflags(write=False)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "keypoints", points)
        box = None if self.box is None else Box.of(self.box, "box")
        if box is not None and not box.contains(points).any():
            expected = "a box x0, y0, x1, y1 that holds the object's points"
            raise InputError(must_be("box", expected, f"{box.xyxy}, which holds none of them"))
        object.__setattr__(self, "box", box)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Points that were pickled or copied are read-only again."""
        self.__dict__.update(state)
        self.keypoints.setflags(write=False)


@dataclass(frozen=True)
class Category:
    """A class of objects: its number and name, what its points are called, and which of them (from 1) are joined."""

    id: int
    name: str
    keypoints: tuple[str, ...]
    skeleton: Any = None


@dataclass(frozen=True)
class LabelledObject:
    """One object as its file has it: `keypoints` x, y, v one after the other, and its box where somebody drew one."""

    category: str
    keypoints: tuple[float | None, ...]
    box: Box | None = None


@dataclass(frozen=True, eq=False)
class Labels:
    """A file of labels.

    Attributes:
        exemplars: its labelled objects.
        categories: those that have an exemplar.
        labelled: picture → its labels as the file has them.
        numbers: COCO's image id → picture; all that the file names.
        sizes: picture → (height, width), where the file says so.
        problems: entries that were passed over or changed, and why.
    """

    exemplars: tuple[Exemplar, ...]
    categories: tuple[Category, ...]
    labelled: Mapping[Path, tuple[LabelledObject, ...]] = field(default_factory=dict)
    numbers: Mapping[int, Path] = field(default_factory=dict)
    sizes: Mapping[Path, tuple[int, int]] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def read_labels(path: Path, root: Path | None = None) -> Labels:
    """The labelled objects of a COCO keypoints file; a point counts when it is visible (v = 2).

    What `kbc transfer` found itself (`labelled` is false) is no label; what a person corrected is. A broken entry
    becomes a problem, and so does one of a category that does not name its keypoints, or of a picture that has another
    size than the file says; the others are used.

    Args:
        path: the JSON file.
        root: folder that its `file_name`s start from; by default the one that it names, that it lies in, or where tools
            put them beside it.

    Raises:
        DataError: it cannot be read, or nothing in it is labelled that can be used.
    """
    problems = Problems()
    data = read_coco(path, problems)
    base = absolute(root or picture_folder(path, data))
    reader = CocoReader(base, data, problems)
    exemplars: list[Exemplar] = []
    labelled: dict[Path, list[LabelledObject]] = {}
    for annotation in reader.annotations.values():
        if annotation.labelled is False or not any((annotation.keypoints or ())[2::3]):
            continue
        try:
            picture, own, exemplar = _labelled(reader, annotation)
        except InputError as error:
            problems.add("annotations", error)
            continue
        labelled.setdefault(picture, []).append(own)
        exemplars += exemplar
    reader.zeros.report("annotations", problems)
    if not exemplars:
        if problems:
            raise DataError(f"{path}: {next(iter(problems))}")
        hint = "an annotation needs `keypoints` x, y, v with v = 2 where the point is visible"
        if any(one.labelled is False for one in data.annotations):
            hint = "what kbc transfer found itself is no label; `kbc ui --labels` puts it right"
        raise DataError(must_be("LABELS", "a COCO file with a labelled picture", f"none in {path}", hint))
    numbers: dict[int, Path] = {}
    for image in data.images:
        try:
            numbers[image.id] = inside(base, image.file_name, "file_name")
        except DataError as error:
            problems.add("images", error)
    used = {one.category for one in exemplars}
    named = [one for one in data.categories if one.keypoints]  # Roboflow's group may be called as its class is
    return Labels(
        tuple(exemplars),
        tuple(Category(one.id, one.name, one.keypoints, one.skeleton) for one in named if one.name in used),
        {picture: tuple(found) for picture, found in labelled.items()},
        numbers,
        {numbers[i.id]: i.size_hw for i in data.images if i.size_hw is not None and i.id in numbers},
        tuple(problems),
    )


def _labelled(reader: CocoReader, annotation: CocoAnnotation) -> tuple[Path, LabelledObject, list[Exemplar]]:
    """A labelled object's picture, itself, and the exemplar that it makes: none where all its points are hidden.

    Raises:
        InputError: it cannot be used.
    """
    picture, points, box, kind = reader.side(annotation.id)
    category = reader.categories[annotation.category_id]
    if sum(one.name == category.name and bool(one.keypoints) for one in reader.categories.values()) > 1:
        raise DataError(must_be("category", "of a name of its own", f"two called {category.name!r}", "rename one"))
    if not category.keypoints:
        hint = "list them in the category's `keypoints`, in the order of the points"
        raise DataError(must_be(f"category {category.name!r}", "with named keypoints", "none", hint))
    said = _outside(points, seen_size(picture, reader.sizes))
    if said:
        reader.problems.add("annotations", f"annotation {annotation.id}: {said}")
    given = box if kind == "annotated" else None
    if given is not None and defined(points).any() and not given.contains(points).any():
        expected = "x, y, width, height of a box that holds its visible points"
        hint = "which holds none; the extent of its keypoints is used"
        reader.problems.add(
            "annotations", must_be(f"bbox of annotation {annotation.id}", expected, annotation.bbox, hint)
        )
        given = None
    own = LabelledObject(category.name, annotation.keypoints or (), given)
    if not defined(points).any():
        return picture, own, []
    return picture, own, [Exemplar(picture, category.keypoints, points, category.name, given)]


def _outside(points: Points, size_hw: tuple[int, int]) -> str:
    """What to say of points outside their picture; "" where there are none."""
    beyond = int(outside(points, size_hw).sum())
    return f"{counted(beyond, 'visible point')} outside the picture ({width_by_height(size_hw)})" if beyond else ""


def categories_of(exemplars: Sequence[Exemplar]) -> tuple[Category, ...]:
    """The categories of exemplars: names of points in the order in which they first appear."""
    names: dict[str, dict[str, None]] = {}
    for one in exemplars:
        names.setdefault(one.category, {}).update(dict.fromkeys(one.names))
    return tuple(Category(i, name, tuple(points)) for i, (name, points) in enumerate(names.items(), 1))


def label_picture(path: Path, points: Mapping[str, tuple[float, float]], box: Box | None = None) -> Labels:
    """One picture with named points (x, y; NaN where not visible) as labels of the category "object".

    Raises:
        InputError: as `Exemplar`.
    """
    path = absolute(path)
    rows = np.array(list(points.values()), dtype=np.float64).reshape(-1, 2)
    one = Exemplar(path, tuple(points), rows, box=box)
    triples = np.where(defined(rows)[:, None], np.insert(rows, 2, 2.0, axis=1), 0.0)
    labelled = {path: (LabelledObject(one.category, tuple(triples.ravel().tolist()), box),)}
    said = _outside(rows, seen_size(path, {}))
    return Labels((one,), categories_of([one]), labelled, problems=(Problem(path.name, said),) if said else ())


def find_images(given: Iterable[str | Path]) -> list[Path]:
    """The pictures that files, folders, globs and lists name, each once, in order.

    A folder gives the pictures in it, by name, without hidden ones and its own folders (`folder/**/*.jpg` looks there);
    a .txt file holds one path a line, from its own folder.

    Raises:
        InputError: something that is not there, a folder or glob without a picture, or no picture at all.
        DataError: a .txt file that is no text in UTF-8, or holds a NUL.
    """
    found: list[Path] = []
    for entry in given:
        path = as_path(entry, "IMAGES")
        if os.path.isdir(path):
            names = [one for one in sorted(path.iterdir()) if _is_picture(one)]
            hint = f"for its folders give {str(path / '**' / '*.jpg')!r}"
            found += _some(names, "a folder with pictures in it", f"none in {str(path)!r}", hint)
        elif path.suffix.lower() == ".txt" and is_file(path):
            lines = read_text(path).splitlines()
            if any("\0" in line for line in lines):
                raise DataError(f"{path}: must hold a path a line, received a NUL")
            found += _some([path.parent / line.strip() for line in lines if line.strip()], "a list of paths", str(path))
        elif is_file(path):
            found.append(path)
        else:
            names = [Path(one) for one in sorted(glob.glob(str(path), recursive=True))]
            found += _some(names, "existing pictures, a folder or a glob", repr(str(entry)), "check the path")
    return list(dict.fromkeys(absolute(one) for one in _some(found, "at least one picture", "none")))


def _is_picture(path: Path) -> bool:
    """Whether a folder's entry is one; a Mac writes ._1.jpg beside 1.jpg, which is none."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _some(names: list[Path], expected: str, received: str, hint: str = "") -> list[Path]:
    if not names:
        raise InputError(must_be("IMAGES", expected, received, hint))
    return names
