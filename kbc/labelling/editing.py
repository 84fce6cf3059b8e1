"""Transferred points put right by a person: a COCO file, object by object, the most doubtful first."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, StrictInt, ValidationError

from kbc.data.annotations import Record, checked, inside
from kbc.data.coco_file import CocoAnnotation, box_of, coco_entries, picture_folder
from kbc.data.records import Problems
from kbc.errors import DataError, InputError, counted, must_be
from kbc.files import absolute, read_json, write_json
from kbc.geometry import Box
from kbc.labelling.detections import Detection
from kbc.labelling.labels import Labels, read_labels
from kbc.labelling.output import DIGITS, annotation_of, boxed, named, triples, vouched
from kbc.labelling.pipeline import ASK, Labeller

Progress = Callable[[int, int], None]
"""Called with (pictures done, pictures in all)."""


class Correction(Record):
    """What a person says of one object: its points x, y, v in the category's order; v as in COCO.

    v is 2 where the point is visible, 1 where it is hidden but its place is known, 0 where it is not in the picture.
    `id` is the annotation's; without it an object of a category is added to a picture.
    """

    keypoints: list[tuple[float, float, Literal[0, 1, 2]]]
    id: StrictInt | None = None
    image_id: StrictInt | None = None
    category_id: StrictInt | None = None


class Which(Record):
    """An object of the file, by its annotation's number."""

    id: StrictInt


class MadeBy(Record):
    """How the file says that it was made: what `transfer_again` needs of it."""

    matcher: str = "hog"
    options: dict[str, Any] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)
    instances: int = 1
    asked: int = ASK
    min_confidence: float = 0.0


class LabelFile:
    """A COCO keypoints file under correction; every change is written at once, fields that others put there stay.

    Methods may be called from several threads.

    Args:
        path: as `kbc transfer` writes it, or any COCO keypoints file.
        root: folder that its file names start from; by default as in `read_labels`.

    Raises:
        DataError: it cannot be read, or no category names keypoints.

    Attributes:
        document: the file's content.
        problems: entries that are not shown, and why; they stay in the file as they are.
    """

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self.path = absolute(path)
        self._lock = threading.RLock()
        problems = Problems()
        content = read_json(self.path)
        read = coco_entries(content, self.path, problems)
        self.document: dict[str, Any] = _finite(content)
        self._written = self._stamp()
        self.root = absolute(picture_folder(self.path, read) if root is None else root)
        self._images = {one.id: one for one in read.images}
        self._categories = {one.id: one for one in read.categories if one.keypoints}
        if not self._categories:
            raise DataError(must_be(str(path), "a file whose categories name keypoints", "none that does"))
        self._annotations = self._usable(read.annotations, problems)
        self.problems = tuple(problems)
        self._opened = copy.deepcopy(self._annotations)  # for `undo`

    def _usable(self, read: Sequence[CocoAnnotation], problems: Problems) -> dict[int, dict[str, Any]]:
        """Number → the file's entry, of the annotations that can be shown; entries that stand twice are joined."""
        sound = {one.id: one for one in read if self._is_sound(one, problems)}
        found: dict[int, dict[str, Any]] = {}
        kept = []
        for entry in self.document["annotations"]:
            number = _number(entry)
            if number in found:
                continue  # the same again
            if number in sound:
                one = sound[number]
                entry.update(id=one.id, image_id=one.image_id, category_id=one.category_id)  # which may be text
                found[number] = entry
            kept.append(entry)
        self.document["annotations"] = kept
        return found

    def _is_sound(self, one: CocoAnnotation, problems: Problems) -> bool:
        """Whether an annotation has a picture, a category with keypoints, and as many points as it names, or none."""
        if one.image_id not in self._images or one.category_id not in self._categories:
            problems.add(f"annotation {one.id}", "its picture, or its category with keypoints, is not in the file")
            return False
        names, values = self._categories[one.category_id].keypoints, len(one.keypoints or ())
        if values not in (0, 3 * len(names)):
            problems.add(
                f"annotation {one.id}", must_be("keypoints", f"{len(names)} triples x, y, v", f"{values} numbers")
            )
            return False
        return True

    def picture(self, image_id: int) -> Path:
        """The file of a picture.

        Raises:
            InputError: there is no such number.
        """
        if image_id not in self._images:
            raise InputError(must_be("image_id", "of a picture of the file", image_id))
        return inside(self.root, self._images[image_id].file_name, "file_name")

    def objects(self) -> list[dict[str, Any]]:
        """What a page shows, JSON-ready: the most doubtful object first, pictures without any before them.

        Objects that a person has labelled come last, in the file's order.
        """
        with self._lock:
            found = [self._shown(one) for one in self._annotations.values()]
            used = {one["image"] for one in found}
            first = next(iter(self._categories))
            empty = [self._empty(number, first) for number in self._images if number not in used]
        return [*empty, *sorted(found, key=lambda one: (one["labelled"], 0 if one["labelled"] else one["score"]))]

    def _shown(self, one: dict[str, Any]) -> dict[str, Any]:
        names = self._categories[one["category_id"]].keypoints
        rows = triples(one.get("keypoints") or [0] * 3 * len(names))
        scores, box = one.get("keypoint_scores"), _box(one)
        known = [1.0] * len(names)
        if isinstance(scores, list) and len(scores) == len(names) and all(map(_is_share, scores)):
            known = scores
        score = one.get("score")
        return {
            **self._empty(one["image_id"], one["category_id"]),
            "id": one["id"],
            "points": [[x, y, int(v)] for x, y, v in rows.tolist()],
            "scores": known,
            "score": score if _is_share(score) else float(np.mean(known)),
            "box": None if box is None else [box.x0, box.y0, box.width, box.height],
            "labelled": _labelled(one),
        }

    def _empty(self, image_id: int, category_id: int) -> dict[str, Any]:
        """A picture without an object, as an object without points."""
        category = self._categories[category_id]
        image = self._images[image_id]
        names = list(category.keypoints)
        return {
            "id": None,
            "image": image_id,
            "file": image.file_name,
            "category_id": category_id,
            "category": category.name,
            "names": names,
            "skeleton": category.skeleton or [],
            "points": [[0.0, 0.0, 0]] * len(names),
            "scores": [0.0] * len(names),
            "score": 0.0,
            "box": None,
            "labelled": False,
        }

    def corrected(self) -> list[tuple[Path, tuple[float, ...]]]:
        """Picture and points x, y, v, … of each object that a person has put right in this file."""
        with self._lock:
            found = [one for one in self._annotations.values() if _labelled(one) and "exemplar" in one]
            return [(self.picture(one["image_id"]), tuple(triples(one["keypoints"]).ravel().tolist())) for one in found]

    def correct(self, correction: Correction) -> dict[str, Any]:
        """Take over what a person says, write the file, and give the object as `objects` does.

        The object counts as labelled from then on: its points have a confidence of 1 where they are given.

        Raises:
            InputError: unknown numbers, another number of points, a point that is not finite or lies outside the
                picture, or a file that somebody else has changed.
        """
        with self._changing():
            one = self._found(correction)
            names = self._categories[one["category_id"]].keypoints
            points = correction.keypoints
            if len(points) != len(names):
                raise InputError(must_be("keypoints", f"{len(names)} points", len(points)))
            height, width = self._images[one["image_id"]].size_hw or (np.inf, np.inf)
            for x, y, v in points:
                if v and not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
                    raise InputError(must_be("keypoints", f"inside the picture ({width}×{height})", (x, y)))
            rows = np.array([[round(x, DIGITS), round(y, DIGITS), v] if v else [0.0] * 3 for x, y, v in points])
            box = Box.around(rows[rows[:, 2] > 0, :2])
            given = one.get("bbox_kind") == "annotated" and one.get("bbox")
            one.update(vouched(rows), exemplar=None)
            one.update({} if given or box is None else boxed(box, "keypoint-extent"))
            if one["id"] not in self._annotations:
                self._annotations[one["id"]] = one
                self.document["annotations"].append(one)
            return self._shown(one)

    def _found(self, correction: Correction) -> dict[str, Any]:
        """The annotation that is corrected, or a new one."""
        if correction.id is not None:
            return self._annotation(correction.id)
        for name, value, known in (
            ("image_id", correction.image_id, self._images),
            ("category_id", correction.category_id, self._categories),
        ):
            if value not in known:
                raise InputError(must_be(name, "a number of the file", value))
        return {"id": self._last_number() + 1, "image_id": correction.image_id, "category_id": correction.category_id}

    def _annotation(self, number: int) -> dict[str, Any]:
        if number not in self._annotations:
            raise InputError(must_be("id", "of an annotation of the file", number))
        return self._annotations[number]

    def _last_number(self) -> int:
        return max((_number(one) or 0 for one in self.document["annotations"]), default=0)

    def undo(self, number: int) -> dict[str, Any]:
        """An object as it was when the file was opened or last asked about again; written, and given as by `correct`.

        Raises:
            InputError: there is none with this number, it was added since, or somebody else has changed the file.
        """
        with self._changing():
            one = self._annotation(number)
            if number not in self._opened:
                raise InputError(must_be("id", "of an object that was there before", number, "remove it instead"))
            one.clear()
            one.update(copy.deepcopy(self._opened[number]))
            return self._shown(one)

    def remove(self, number: int) -> None:
        """Take an object out and write the file.

        Raises:
            InputError: there is none with this number, or somebody else has changed the file.
        """
        with self._changing():
            gone = self._annotation(number)
            self.document["annotations"] = [one for one in self.document["annotations"] if one is not gone]
            del self._annotations[number]

    def labels(self) -> Labels:
        """The objects that a person has labelled, as `kbc transfer` would read them.

        Raises:
            DataError: there is none with a visible point.
        """
        with self._lock:
            return read_labels(self.path, self.root)

    def transfer_again(
        self, labeller: Labeller, progress: Progress | None = None, made_by: Mapping[str, Any] | None = None
    ) -> str:
        """Ask the labeller about every picture without a labelled object, and put what it finds in place of the old.

        Boxes of a detector are kept: each gets new points. A picture that fails or has a box outside it keeps what it
        had, and so does one with an object of a category that the labeller has no exemplar of.

        Args:
            labeller: made of `labels().exemplars`.
            progress: called after every picture.
            made_by: of what it was made, where that is not what the file says: `matcher` and `options`.

        Returns:
            How many pictures keep what they had, and why the first does; "" where none does.
        """
        with self._lock:
            kinds = {one.name: one for one in labeller.categories}
            numbers = {one.name: one.id for one in reversed(self._categories.values())}
            done = self._done(set(kinds))
            asked = [number for number in self._images if number not in done]
            boxes = self._boxes()
        found: dict[int, list[dict[str, Any]]] = {}
        failed: list[str] = []
        for count, number in enumerate(asked, 1):
            result = labeller(self.picture(number), None if boxes is None else boxes.get(number, ()))
            if result.error or result.problems:
                failed.append(f"{self._images[number].file_name}: {result.error or result.problems[0]}")
            else:
                found[number] = [
                    {"category_id": numbers[one.category], **annotation_of(one, kinds[one.category])}
                    for one in result.objects
                ]
            if progress is not None:
                progress(count, len(asked))
        with self._changing():  # what was corrected meanwhile stays
            done = self._done(set(kinds))
            self._replace({number: new for number, new in found.items() if number not in done})
            now = {"labels": self.path.name, "exemplars": named(labeller.exemplars)}
            self.document["info"] = {**self._info, "kbc": {**self._made, **(made_by or {}), **now}}
            self._opened = copy.deepcopy(self._annotations)  # what `undo` goes back to from now on
        kept = f"{counted(len(failed), 'picture')} of {len(asked)} kept as before, for instance"
        return f"{kept} {failed[0]}" if failed else ""

    def _done(self, categories: set[str]) -> set[int]:
        """Pictures with a labelled object, or one of another category than these."""
        found, kinds = self._annotations.values(), self._categories
        return {o["image_id"] for o in found if _labelled(o) or kinds[o["category_id"]].name not in categories}

    def _boxes(self) -> dict[int, list[Detection]] | None:
        """A detector's boxes by picture; None where objects were looked for."""
        found: dict[int, list[Detection]] = {}
        for one in self._annotations.values():
            box = _box(one)
            if one.get("bbox_kind") == "annotated" and box is not None and not _labelled(one):
                kind = self._categories[one["category_id"]].name
                found.setdefault(one["image_id"], []).append(Detection(box, kind))
        return found if found or self._made.get("boxes") else None

    def _replace(self, found: dict[int, list[dict[str, Any]]]) -> None:
        number = self._last_number()
        old = {id(one) for one in self._annotations.values() if one["image_id"] in found}
        kept = [one for one in self.document["annotations"] if id(one) not in old]
        self._annotations = {key: one for key, one in self._annotations.items() if id(one) not in old}
        for image_id, new in found.items():
            for one in new:
                number += 1
                self._annotations[number] = {"id": number, "image_id": image_id, **one}
                kept.append(self._annotations[number])
        self.document["annotations"] = kept

    def made_by(self) -> MadeBy:
        """How the file says that it was made.

        Raises:
            DataError: it says so in another form than `kbc transfer` writes.
        """
        return checked(self._made, MadeBy, self.path)

    @property
    def _info(self) -> dict[str, Any]:
        info = self.document.get("info")
        return info if isinstance(info, dict) else {}

    @property
    def _made(self) -> dict[str, Any]:
        """What `kbc transfer` wrote about itself, if it did."""
        made = self._info.get("kbc")
        return made if isinstance(made, dict) else {}

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Changes that are made in the block are written at its end; none is made to a file that has changed itself."""
        with self._lock:
            if self._stamp() != self._written:
                hint = "start `kbc ui` again; this change is not in it"
                raise InputError(must_be(str(self.path), "changed by this page alone", "a newer file", hint))
            yield
            write_json(self.document, self.path)
            self._written = self._stamp()

    def _stamp(self) -> tuple[int, int]:
        try:
            found = self.path.stat()
        except OSError:
            return (-1, -1)
        return (found.st_size, found.st_mtime_ns)


def _labelled(one: dict[str, Any]) -> bool:
    """Whether a person vouches for the points: files that are not `kbc transfer`'s hold nothing else."""
    return bool(one.get("labelled", True)) and any((one.get("keypoints") or ())[2::3])


def _number(entry: Any) -> int | None:
    """The number of an entry of a COCO file; None for what has none."""
    try:
        return CocoAnnotation.model_validate(entry).id
    except ValidationError:
        return None


def _finite(value: Any) -> Any:
    """What a JSON file holds with null for NaN and infinity, which strict JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= 1


def _box(one: dict[str, Any]) -> Box | None:
    """An entry's box; None without one, or for what is none."""
    try:
        return box_of(one.get("bbox"), "bbox")
    except DataError:
        return None
