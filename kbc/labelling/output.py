"""What goes out: COCO keypoints, and a table."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kbc.data.records import BoxKind
from kbc.files import absolute
from kbc.geometry import Box, defined
from kbc.labelling.labels import Category, Exemplar, LabelledObject, Labels
from kbc.labelling.pipeline import FoundObject, Transferred

DIGITS = 2
"""Decimals of a coordinate: a hundredth of a pixel."""


def image_base(out: Path, images: Sequence[Path]) -> Path:
    """The folder that file names start from: the output's own where all lie below it, else their common one."""
    folders = [absolute(image).parent for image in images]
    here = absolute(out).parent
    if all(folder.is_relative_to(here) for folder in folders):
        return here
    return Path(os.path.commonpath(folders))


def file_name(image: Path, base: Path) -> str:
    """A picture's name below `base`, with forward slashes."""
    return absolute(image).relative_to(base).as_posix()


def coco(
    pictures: Sequence[Transferred], labels: Labels, out: Path, provenance: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A COCO keypoints document, JSON-ready.

    Points that were found have v = 2, others x = y = v = 0. Beside COCO's own fields an annotation has
    `keypoint_scores`, the confidence of each point in [0, 1], `score`, their mean, and `labelled` where the labels
    themselves stand there. Pictures that could not be done are listed under `info.skipped`, not among the images.

    Args:
        pictures: what came of each; those that `labels` has labels of keep them.
        labels: what was transferred; its categories keep their numbers and skeletons.
        out: where the document will lie: file names start from its folder, or from the pictures' common one, which
            `info.images` then names relative to it.
        provenance: how it was made, for `info.kbc`.
    """
    base = image_base(out, [one.path for one in pictures])
    categories = {one.name: one for one in labels.categories}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    for picture in pictures:
        name = file_name(picture.path, base)
        if picture.error:
            skipped.append({"file_name": name, "why": picture.error})
            continue
        number = len(images) + 1
        height, width = picture.size_hw
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for one in labels.labelled.get(picture.path) or picture.objects:
            category = categories[one.category]
            place = {"id": len(annotations) + 1, "image_id": number, "category_id": category.id}
            body = _labelled(one) if isinstance(one, LabelledObject) else annotation_of(one, category)
            annotations.append({**place, **body})
    where = os.path.relpath(base, absolute(out).parent)
    info = {
        "description": "keypoints transferred from labelled pictures by kbc",
        **({} if where == "." else {"images": Path(where).as_posix()}),
        "kbc": dict(provenance or {}),
        "skipped": skipped,
    }
    kinds = [_category(one) for one in labels.categories]
    return {"info": info, "images": images, "annotations": annotations, "categories": kinds}


def _category(one: Category) -> dict[str, Any]:
    points = {"keypoints": list(one.keypoints), "skeleton": one.skeleton or []}
    return {"id": one.id, "name": one.name, "supercategory": one.name, **points}


def annotation_of(found: FoundObject, category: Category) -> dict[str, Any]:
    """A found object as COCO's annotation, without its numbers; see `coco`."""
    there = defined(found.keypoints)
    flat: list[float] = []
    for known, (x, y) in zip(there, found.keypoints.tolist(), strict=True):
        flat += [round(x, DIGITS), round(y, DIGITS), 2] if known else [0, 0, 0]
    assert found.names == category.keypoints
    return {
        "keypoints": flat,
        "num_keypoints": int(there.sum()),
        **boxed(found.box, "annotated" if found.given else "keypoint-extent"),
        "score": round(found.sureness, 4),
        "keypoint_scores": [round(float(c), 4) for c in np.nan_to_num(found.confidence)],
        "labelled": False,
        "exemplar": found.exemplar,
    }


def _labelled(own: LabelledObject) -> dict[str, Any]:
    rows = triples(own.keypoints)
    box = own.box or Box.around(rows[rows[:, 2] > 0, :2])
    assert box is not None  # an object without a single point is not among the labelled
    return {**vouched(rows), **boxed(box, "annotated" if own.box else "keypoint-extent")}


def vouched(rows: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Points (N, 3) x, y, v that a person set, as an annotation holds them: sure where v > 0."""
    seen = rows[:, 2] > 0
    return {
        "keypoints": [value for x, y, v in rows.tolist() for value in (x, y, int(v) if v.is_integer() else v)],
        "num_keypoints": int(seen.sum()),
        "score": round(float(seen.mean()), 4),
        "keypoint_scores": seen.astype(float).tolist(),
        "labelled": True,
    }


def triples(keypoints: Iterable[float | None]) -> npt.NDArray[np.float64]:
    """COCO's flat list as (N, 3) x, y, v; 0 for null and NaN."""
    return np.nan_to_num(np.array(list(keypoints), dtype=np.float64), posinf=0.0, neginf=0.0).reshape(-1, 3)


def boxed(box: Box, kind: BoxKind) -> dict[str, Any]:
    """A box as an annotation holds it."""
    numbers = [round(value, DIGITS) for value in (box.x0, box.y0, box.width, box.height)]
    return {"bbox": numbers, "bbox_kind": kind, "area": round(box.area, DIGITS), "iscrowd": 0}


def named(exemplars: Iterable[Exemplar]) -> list[dict[str, str]]:
    """Exemplars as `info.kbc` names them."""
    return [{"image": Path(str(one.image)).name, "category": one.category} for one in exemplars]


def by_picture(document: Mapping[str, Any]) -> dict[int, list[Any]]:
    """The annotations of each picture of a COCO document of `coco`, by its number."""
    found: dict[int, list[Any]] = {image["id"]: [] for image in document["images"]}
    for one in document["annotations"]:
        found[one["image_id"]].append(one)
    return found


def table(document: Mapping[str, Any]) -> str:
    """A COCO document of `coco` as CSV: a row for each object, name_x, name_y and name_confidence for each point.

    A picture without an object has a row of its own with nothing in it; one that could not be done has none.
    """
    categories = {one["id"]: one for one in document["categories"]}
    names = list(dict.fromkeys(name for one in categories.values() for name in one["keypoints"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fields = ("x", "y", "confidence")
    writer.writerow(["image", "object", "category", *(f"{name}_{field}" for name in names for field in fields)])
    objects = by_picture(document)
    for image in document["images"]:
        for number, one in enumerate(objects[image["id"]], 1):
            category = categories[one["category_id"]]
            rows, scores = triples(one["keypoints"]).tolist(), one["keypoint_scores"]
            cells = {
                name: [x, y, score] if v else ["", "", score]
                for name, (x, y, v), score in zip(category["keypoints"], rows, scores, strict=True)
            }
            row = [cell for name in names for cell in cells.get(name, ["", "", ""])]
            writer.writerow([image["file_name"], number, category["name"], *row])
        if not objects[image["id"]]:
            writer.writerow([image["file_name"], "", "", *[""] * (3 * len(names))])
    return text.getvalue()
