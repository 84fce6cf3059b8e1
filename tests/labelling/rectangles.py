"""Pictures with a red rectangle, and a matcher that knows how rectangles lie to each other."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from kbc.geometry import Box, Points
from kbc.images import Image

NAMES = ("head", "tail", "left", "right", "middle")
PLACES = np.array([[0.5, 0.1], [0.5, 0.9], [0.1, 0.4], [0.9, 0.4], [0.5, 0.5]])
"""Where the five points lie in the rectangle, fractions of its sides."""


def picture(box: Box, size_hw: tuple[int, int] = (120, 160), seed: int = 0) -> Image:
    """Grey noise with a red rectangle."""
    image = np.random.default_rng(seed).integers(90, 120, (*size_hw, 3), dtype=np.uint8)
    x0, y0, x1, y1 = (int(edge) for edge in box.xyxy)
    image[y0:y1, x0:x1] = (250, 10, 10)
    return image


def points_of(box: Box) -> Points:
    """(5, 2) the points of a rectangle."""
    return np.array([box.x0, box.y0]) + PLACES * [box.width, box.height] - 0.5


def red_box(image: Image) -> Box | None:
    """The largest red rectangle."""
    red = (image[..., 0].astype(int) - image[..., 1] > 80).astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(red)
    if count < 2:
        return None
    x, y, width, height, _ = stats[1 + int(stats[1:, 4].argmax())]
    return Box(float(x), float(y), float(x + width), float(y + height))


def find_red(source: Image, target: Image, keypoints: Points) -> Points:
    """The points lie in the target's rectangle as in the source's; without one there is no answer."""
    here, there = red_box(source), red_box(target)
    if here is None or there is None:
        return np.full_like(keypoints, np.nan)
    part = (keypoints + 0.5 - [here.x0, here.y0]) / [here.width, here.height]
    found = [there.x0, there.y0] + part * [there.width, there.height] - 0.5
    return np.clip(found, 0, [target.shape[1], target.shape[0]])


BOXES = [Box(20 + 9 * i, 30 + 5 * i, 60 + 10 * i, 62 + 5 * i) for i in range(6)]


def write_folder(folder: Path, boxes: list[Box] = BOXES) -> list[Path]:
    """One picture for each rectangle, as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, box in enumerate(boxes):
        paths.append(folder / f"{index}.png")
        cv2.imwrite(str(paths[-1]), picture(box, seed=index)[..., ::-1])
    return paths


def write_labels(path: Path, labelled: dict[str, Box], others: tuple[str, ...] = (), **category: object) -> Path:
    """A COCO file that labels the rectangles of some pictures and names others."""
    names = [*labelled, *others]
    images = [{"id": i, "file_name": name, "width": 160, "height": 120} for i, name in enumerate(names, 1)]
    annotations = []
    for number, (name, box) in enumerate(labelled.items(), 1):
        flat = [value for x, y in points_of(box).tolist() for value in (x, y, 2)]
        annotations.append({"id": number, "image_id": names.index(name) + 1, "category_id": 1, "keypoints": flat})
    kind = {"id": 1, "name": "thing", "keypoints": list(NAMES), "skeleton": [[1, 2], [3, 4]], **category}
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [kind]}))
    return path
