"""Other tools' files: SLEAP and Label Studio through sleap-io, DeepLabCut's table by ourselves.

Each is made of the COCO document of `kbc.labelling.output.coco`. CVAT reads that document itself, as "COCO Keypoints".
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kbc.errors import InputError, must_be, require
from kbc.labelling.labels import Labels
from kbc.labelling.output import by_picture, triples

SCORER = "kbc"
"""Whom DeepLabCut names as the one who labelled."""


def require_sleap_io() -> Any:
    """The `sleap_io` module, or an error that says which line to run."""
    return require("sleap_io", "SLEAP and Label Studio files need sleap-io", "formats")


def refuse_what_cannot_be_held(kind: str, labels: Labels, images: Sequence[Path], several: bool) -> None:
    """Say before the work what a format has no place for.

    Args:
        kind: "coco", "csv", "dlc", "slp" or "labelstudio".
        several: whether a picture may hold several objects.

    Raises:
        InputError: DeepLabCut's table with several objects a picture or several categories, or with pictures of one
            name in two folders: it tells them by their names alone.
        MissingDependencyError: sleap-io is needed and not installed.
    """
    if kind in ("slp", "labelstudio"):
        require_sleap_io()
    if kind != "dlc":
        return
    several = several or any(len(found) > 1 for found in labels.labelled.values())
    if several or len(labels.categories) > 1:
        expected = "one that holds several objects a picture and several categories"
        raise InputError(must_be("--format", expected, "'dlc'", "take coco, csv, slp or labelstudio"))
    name, times = Counter(image.name for image in images).most_common(1)[0]
    if times > 1:
        expected = "pictures of different names for --format dlc, whose table holds no folders"
        raise InputError(must_be("IMAGES", expected, f"{times} called {name!r}", "transfer to one folder at a time"))


def deeplabcut(document: Mapping[str, Any], folder: str) -> str:
    """A COCO document as DeepLabCut's table of labels, `CollectedData_kbc.csv`, one animal.

    It has no place for confidence, boxes and joined points. The pictures belong into `labeled-data/<folder>` of the
    project, the table beside them; `deeplabcut.convertcsv2h5` makes the .h5 of it.

    Args:
        folder: name of the folder below `labeled-data`.
    """
    (category,) = document["categories"]
    names = category["keypoints"]
    objects = by_picture(document)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["scorer", "", "", *[SCORER] * (2 * len(names))])
    writer.writerow(["bodyparts", "", "", *(name for name in names for _ in "xy")])
    writer.writerow(["coords", "", "", *("x", "y") * len(names)])
    for image in document["images"]:
        flat = next((one["keypoints"] for one in objects[image["id"]]), [0] * 3 * len(names))
        cells = [cell for x, y, v in triples(flat).tolist() for cell in ((x, y) if v else ("", ""))]
        writer.writerow(["labeled-data", folder, Path(image["file_name"]).name, *cells])
    return text.getvalue()


def write_sleap(document: Mapping[str, Any], base: Path, path: Path) -> None:
    """Write a COCO document as SLEAP's .slp: labels as user's instances, transferred points as predicted ones.

    Pictures of one size are one video. Confidence is kept with each point and instance; boxes are not.

    Args:
        base: the folder that the document's file names start from.
    """
    sizes: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for image in document["images"]:
        sizes.setdefault((image["height"], image["width"]), []).append(image)
    labels = _sleap_labels(document, base, list(sizes.values()))
    require_sleap_io().save_slp(labels, str(path), verbose=False)


def write_label_studio(document: Mapping[str, Any], base: Path, path: Path) -> None:
    """Write a COCO document as Label Studio's JSON: a task for each picture that has an object.

    Each object is a rectangle, its box, and its points. Points that are not there, confidence and joined points have no
    place in it. `data.image` is the picture's file name: serve the folder, or put its address before the names, as
    Label Studio's local storage wants it.

    Args:
        base: the folder that the document's file names start from.
    """
    labels = _sleap_labels(document, base, [[image] for image in document["images"]])
    require_sleap_io().save_labelstudio(labels, str(path))
    images = {str(base / image["file_name"]): image for image in document["images"]}
    objects = by_picture(document)
    tasks = json.loads(path.read_text(encoding="utf-8"))
    for task in tasks:
        video = task["meta"]["video"]["filename"]
        image = images[video[0] if isinstance(video, list) else video]
        task["data"] = {"image": image["file_name"]}
        drawn = [one for one in task["annotations"][0]["result"] if one["type"] == "rectanglelabels"]
        sides = (image["width"], image["height"]) * 2
        for mark, one in zip(drawn, objects[image["id"]], strict=True):
            # sleap-io writes the picture's size as per cent
            shares = (100 * value / side for value, side in zip(one["bbox"], sides, strict=True))
            mark["value"].update(zip(("x", "y", "width", "height"), shares, strict=True))
    path.write_text(json.dumps(tasks, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sleap_labels(document: Mapping[str, Any], base: Path, videos: list[list[Mapping[str, Any]]]) -> Any:
    """sleap-io's `Labels` of a COCO document, whose pictures are the frames of these videos."""
    sleap = require_sleap_io()
    skeletons = {
        one["id"]: sleap.Skeleton(nodes=one["keypoints"], edges=_edges(one), name=one["name"])
        for one in document["categories"]
    }
    objects = by_picture(document)
    frames, opened = [], []
    for images in videos:
        video = sleap.Video.from_filename([str(base / image["file_name"]) for image in images])
        opened.append(video)
        for number, image in enumerate(images):
            shown = [_instance(sleap, one, skeletons[one["category_id"]]) for one in objects[image["id"]]]
            if shown:
                frames.append(sleap.LabeledFrame(video=video, frame_idx=number, instances=shown))
    return sleap.Labels(frames, videos=opened, skeletons=list(skeletons.values()))


def _instance(sleap: Any, one: Mapping[str, Any], skeleton: Any) -> Any:
    rows = triples(one["keypoints"])
    points = np.where(rows[:, 2:] > 0, rows[:, :2], np.nan)
    if one["labelled"]:
        return sleap.Instance.from_numpy(points, skeleton=skeleton)
    scores = np.array(one["keypoint_scores"])
    return sleap.PredictedInstance.from_numpy(points, skeleton=skeleton, point_scores=scores, score=one["score"])


def _edges(category: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The names of the joined points; what is not a pair of points in `skeleton` is passed over."""
    names = category["keypoints"]
    known = range(1, len(names) + 1)
    pairs = [one for one in category["skeleton"] if isinstance(one, (list, tuple)) and len(one) == 2]
    return [(names[a - 1], names[b - 1]) for a, b in pairs if a in known and b in known]
