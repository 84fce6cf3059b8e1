"""Views of a pair for training: framed around the keypoints, warped, recoloured, mirrored; all drawn from a generator.

KBC is the augmentation (Jin & Li, arXiv 2404.02678, train with it): both sides are cut around their keypoints' box at
about the same scale, with jitter in margin, scale, aspect and place. A share of wide framings keeps the network able to
find the object in a whole image, and a cropped object in a wide view. Proportions and ranges are our choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from kbc.geometry import LINEAR, Box, Points, Window, defined
from kbc.images import Image, require_cv2

MAX_POINTS = 24
"""Points of one training pair; of more, some are drawn."""


def rising(between: tuple[float, float]) -> tuple[float, float]:
    """The range, if its lower end comes first."""
    if not between[0] <= between[1]:
        raise ValueError("the lower end must come first")
    return between


_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Range = Annotated[tuple[_Positive, _Positive], AfterValidator(rising)]
"""Lower and upper end, positive and finite."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One training pair at the network's input size.

    Attributes:
        source, target: RGB uint8 (S, S, 3).
        keypoints, target_keypoints: (MAX_POINTS, 2), pixels of the crops; NaN where not defined in both.
        parts: (MAX_POINTS,) which of the source's `names` each point is; −1 for nameless points.
    """

    source: Image
    target: Image
    keypoints: Points
    target_keypoints: Points
    parts: npt.NDArray[np.int64]


class Views(BaseModel):
    """How images are framed for training.

    Attributes:
        size: side of the crops, pixels.
        kbc: cut around the keypoints; without it every view is the whole image (an ablation).
        wide: share of pairs framed widely although `kbc` is on.
        one_sided: share of the wide pairs in which only the target is wide, as when a crop is looked for in an image.
        margin: range of (side of the crop) / (longest side of the keypoints' box), the same for both images of a pair.
        wide_margin: the same for wide framings.
        scale_jitter, aspect_jitter: standard deviation of the log of each image's own factor.
        shift: greatest displacement of the window, in sides of the slack around the box.
        colour: strength of the colour jitter, 0 … 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size: Annotated[int, Field(ge=32)] = 128
    kbc: bool = True
    wide: Annotated[float, Field(ge=0, le=1)] = 0.3
    one_sided: Annotated[float, Field(ge=0, le=1)] = 0.0
    margin: Range = (1.2, 2.4)
    wide_margin: Range = (2.4, 8.0)
    scale_jitter: Annotated[float, Field(ge=0)] = 0.15
    aspect_jitter: Annotated[float, Field(ge=0)] = 0.08
    shift: Annotated[float, Field(ge=0, le=1)] = 0.8
    colour: Annotated[float, Field(ge=0, le=1)] = 0.0


def framed_pair(
    rng: np.random.Generator, sides: list[tuple[Image, Points]], parts: npt.NDArray[np.int64], views: Views
) -> Sample:
    """Cut both images of an annotated pair as `views` says."""
    wide = bool(rng.random() < views.wide)
    margins = [_drawn_margin(rng, views.wide_margin if wide else views.margin)] * 2
    # Without one-sided pairs nothing is drawn for them: a recipe's pairs stay what they were.
    if wide and views.one_sided and rng.random() < views.one_sided:
        margins[0] = _drawn_margin(rng, views.margin)
    crops, points = [], []
    for (image, keypoints), margin in zip(sides, margins, strict=True):
        window = training_window(rng, keypoints, image.shape[:2], margin, views)
        crops.append(_recoloured(rng, window.cut(image, LINEAR), views.colour))
        points.append(np.where(window.box.contains(keypoints)[:, None], window.to_window(keypoints), np.nan))
    return _sample(rng, crops, points, parts)


def _drawn_margin(rng: np.random.Generator, between: tuple[float, float]) -> float:
    """Log-uniform."""
    return float(np.exp(rng.uniform(*np.log(between))))


def training_window(
    rng: np.random.Generator, keypoints: Points, image_hw: tuple[int, ...], margin: float, views: Views
) -> Window:
    """A window around the keypoints' box, jittered; the whole image without KBC or without points."""
    size_hw, size = (image_hw[0], image_hw[1]), (views.size, views.size)
    box = Box.around(keypoints)
    if box is None or not views.kbc:
        return Window.whole(size_hw, size)
    side = max(box.longest, 8.0) * margin * float(np.exp(rng.normal(0, views.scale_jitter)))
    aspect = float(np.exp(rng.normal(0, views.aspect_jitter)))
    width, height = side * aspect, side / aspect
    slack = np.array([max(width - box.width, 0.0), max(height - box.height, 0.0)]) / 2
    x, y = np.array(box.center) + rng.uniform(-1, 1, 2) * slack * views.shift
    return Window.fit(Box.centered((float(x), float(y)), width, height), size_hw).resized(size)


def warped_pair(rng: np.random.Generator, image: Image, keypoints: Points, views: Views) -> Sample:
    """A view of a photograph and the same view under a smooth random warp; points at random places.

    An affine map and a thin sheet of displacements on a 4×4 grid, as in self-supervised matching (Rocco et al., arXiv
    1703.05593); ranges are our choice.
    """
    cv2 = require_cv2()
    window = training_window(rng, keypoints, image.shape[:2], _drawn_margin(rng, views.margin), views)
    size = views.size
    crop = window.cut(image, LINEAR)
    field = _warp_field(rng, size)
    warped = cv2.remap(crop, field[..., 0], field[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    target = rng.uniform(2, size - 3, (4 * MAX_POINTS, 2))
    columns, rows = np.rint(target).astype(int).T
    target = np.stack([columns, rows], axis=1).astype(np.float64)  # at pixel centres the field is exact
    source = field[rows, columns].astype(np.float64)
    inside = ((source >= 0) & (source <= size - 1)).all(axis=1)
    crops = [_recoloured(rng, side, views.colour) for side in (crop, np.asarray(warped, dtype=np.uint8))]
    return _sample(rng, crops, [source[inside], target[inside]], np.full(int(inside.sum()), -1))


def _warp_field(rng: np.random.Generator, size: int) -> npt.NDArray[np.float32]:
    """(size, size, 2): which pixel of the view each pixel of its warp shows, x then y."""
    cv2 = require_cv2()
    angle, scale = rng.normal(0, 0.25), np.exp(rng.normal(0, 0.2))
    shear, stretch = rng.normal(0, 0.12), np.exp(rng.normal(0, 0.12))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = scale * turn @ np.array([[stretch, shear], [0.0, 1 / stretch]])
    middle = (size - 1) / 2
    y, x = np.mgrid[:size, :size].astype(np.float64)
    at = np.stack([x - middle, y - middle], axis=-1) @ matrix.T + middle + rng.normal(0, 0.06 * size, 2)
    bend = rng.normal(0, 0.045 * size, (4, 4, 2)).astype(np.float32)
    smooth = cv2.resize(bend, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.asarray(at + smooth, dtype=np.float32)


def _recoloured(rng: np.random.Generator, image: Image, strength: float) -> Image:
    """Brightness, contrast and cast, sometimes grey."""
    if strength == 0:
        return image
    values = image.astype(np.float32)
    if rng.random() < 0.2 * strength:
        values = np.repeat(values.mean(axis=2, keepdims=True), 3, axis=2)
    mean = values.mean()
    contrast = np.exp(rng.normal(0, 0.3 * strength))
    gain = np.exp(rng.normal(0, 0.2 * strength)) * np.exp(rng.normal(0, 0.1 * strength, 3))
    return np.asarray(np.clip(((values - mean) * contrast + mean) * gain, 0, 255), dtype=np.uint8)


def mirrored(sample: Sample) -> Sample:
    """Both sides flipped: left stays left's counterpart."""
    width = sample.source.shape[1]
    points = [p * (-1.0, 1.0) + (width - 1.0, 0.0) for p in (sample.keypoints, sample.target_keypoints)]
    flipped = [np.ascontiguousarray(image[:, ::-1]) for image in (sample.source, sample.target)]
    return Sample(flipped[0], flipped[1], points[0], points[1], sample.parts)


def _sample(rng: np.random.Generator, crops: list[Image], points: list[Points], parts: npt.NDArray[np.int64]) -> Sample:
    known = np.flatnonzero(defined(points[0]) & defined(points[1]))
    chosen = rng.permutation(known)[:MAX_POINTS]
    filled = np.full((2, MAX_POINTS, 2), np.nan)
    filled[0, : len(chosen)], filled[1, : len(chosen)] = points[0][chosen], points[1][chosen]
    named = np.full(MAX_POINTS, -1)
    named[: len(chosen)] = parts[chosen]
    return Sample(crops[0], crops[1], filled[0], filled[1], named)
