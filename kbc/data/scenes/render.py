"""Procedural scenes: small articulated figures with exactly known keypoints in textured clutter.

For the demo, for tests, and to train `kbcnet-tiny` from nothing. Everything follows from the seed; no global state is
read or written. All of it is our choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt

from kbc.data.scenes.figures import CATEGORIES, Figure
from kbc.data.scenes.shapes import TILE, TILE_SPAN, Alike, Part, colour, heading, oval
from kbc.errors import InputError, must_be
from kbc.geometry import Box, Points
from kbc.images import Image, require_cv2
from kbc.types import Pair

Seed: TypeAlias = int | Sequence[int]
"""One non-negative integer or several, as `numpy.random.default_rng` takes them."""

SIZE_HW = (480, 640)
FRACTION = (0.08, 0.25)
TURN, MIRROR = 12.0, 0.5
_EDGE = 1e-6  # boxes are half-open, and some keypoints are the very tip of a figure
_SHIFT = 4  # fractional bits of polygon corners handed to OpenCV: 1/16 of a supersampled pixel


@dataclass(frozen=True, eq=False)
class Scene:
    """One picture of one figure.

    Attributes:
        image: RGB uint8 (H, W, 3).
        keypoints: (N, 2) where the named keypoints are, pixels, exact to the sub-pixel; all inside the image.
        box: the figure's extent (all of its parts), pixel edges.
        category: one of `categories()`.
        names: N names, the same for every scene of a category.
    """

    image: Image
    keypoints: Points
    box: Box
    category: str
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ScenePair:
    """Two scenes of one category: different instances, poses, backgrounds and light."""

    source: Scene
    target: Scene

    @property
    def pair(self) -> Pair:
        """What a matcher is given: images and source keypoints, no boxes."""
        return Pair(self.source.image, self.target.image, self.source.keypoints)

    @property
    def target_keypoints(self) -> Points:
        """(N, 2) the answer, in the target's pixels."""
        return self.target.keypoints

    @property
    def source_box(self) -> Box:
        """The figure's extent in the source."""
        return self.source.box

    @property
    def target_box(self) -> Box:
        """The figure's extent in the target."""
        return self.target.box

    @property
    def category(self) -> str:
        """The category of both figures."""
        return self.source.category

    @property
    def names(self) -> tuple[str, ...]:
        """N names of the keypoints."""
        return self.source.names


def categories() -> tuple[str, ...]:
    """The names of the categories."""
    return tuple(CATEGORIES)


def scene_pair(
    seed: Seed,
    *,
    size_hw: tuple[int, int] = SIZE_HW,
    object_fraction: tuple[float, float] = FRACTION,
    category: str | None = None,
    variation: float = 1.0,
    turn: float = TURN,
    mirror: float = MIRROR,
) -> ScenePair:
    """Two scenes of one category, fully determined by the arguments.

    Args:
        seed: non-negative; different seeds give unrelated pairs.
        size_hw: height and width of both images, pixels, at least 32.
        object_fraction: range of (longest side of the figure's box) / (longest side of the image), drawn log-uniformly
            and for each image on its own. A figure that would not fit into the image is made smaller.
        category: one of `categories()`; by default drawn from the seed.
        variation: how much the two figures differ in build, pose and colours: from 0, one individual in one pose, to
            1, unrelated ones. Place, size, background and light always differ.
        turn: standard deviation of the in-plane rotation, degrees (cut at 2.5 of it).
        mirror: probability that a figure faces the other way.

    Raises:
        InputError: unknown category, a size below 32, or a range, share or probability that is not within [0, 1].

    >>> scene = scene_pair(7, category="fish")
    >>> scene.pair.source.shape, scene.pair.keypoints.shape == scene.target_keypoints.shape, scene.names[0]
    ((480, 640, 3), True, 'mouth')
    """
    seeds = _seeds(seed)
    if not 0 <= variation <= 1:
        raise InputError(must_be("variation", "within [0, 1]", variation))
    if category is None:
        category = categories()[int(np.random.default_rng([*seeds, 2]).integers(len(CATEGORIES)))]
    frame = _Frame(size_hw, object_fraction, turn, mirror)
    scenes = []
    for side in (0, 1):
        rng = np.random.default_rng([*seeds, side])
        alike = cast(np.random.Generator, Alike(np.random.default_rng([*seeds, 3]), rng, variation))
        scenes.append(_scene(category, rng, frame, rng if variation == 1 else alike))
    return ScenePair(*scenes)


def render(
    category: str,
    seed: Seed,
    *,
    size_hw: tuple[int, int] = SIZE_HW,
    object_fraction: tuple[float, float] = FRACTION,
    turn: float = TURN,
    mirror: float = MIRROR,
) -> Scene:
    """One scene of one category. Any framing: a fraction of 0.9 in (256, 256) is a close-up.

    Args:
        category: one of `categories()`.
        seed, size_hw, object_fraction, turn, mirror: as in `scene_pair`.

    Raises:
        InputError: as `scene_pair`.
    """
    rng = np.random.default_rng(_seeds(seed))
    return _scene(category, rng, _Frame(size_hw, object_fraction, turn, mirror), rng)


@dataclass(frozen=True)
class _Frame:
    """How a figure is put into its picture; see `scene_pair`."""

    size_hw: tuple[int, int]
    object_fraction: tuple[float, float]
    turn: float
    mirror: float

    def __post_init__(self) -> None:
        if len(self.size_hw) != 2 or min(self.size_hw) < 32:
            raise InputError(must_be("size_hw", "(height, width), each at least 32", self.size_hw))
        low, high = self.object_fraction
        if not 0 < low <= high <= 1:
            expected = "a range (low, high) with 0 < low ≤ high ≤ 1"
            raise InputError(must_be("object_fraction", expected, self.object_fraction))
        if not 0 <= self.mirror <= 1:
            raise InputError(must_be("mirror", "within [0, 1]", self.mirror))
        if not 0 <= self.turn <= 180:
            raise InputError(must_be("turn", "within [0, 180] degrees", self.turn))


def _scene(category: str, rng: np.random.Generator, frame: _Frame, figure_rng: np.random.Generator) -> Scene:
    if category not in CATEGORIES:
        raise InputError(must_be("category", f"one of {', '.join(CATEGORIES)}", repr(category)))
    figure = CATEGORIES[category](figure_rng)
    low, high = frame.object_fraction
    image = background(rng, frame.size_hw)
    for _ in range(int(rng.integers(0, 3))):
        _draw_distractor(rng, image, category, frame.object_fraction)
    span = np.exp(rng.uniform(np.log(low), np.log(high))) * max(frame.size_hw)
    placement = _place(rng, figure, span, frame.size_hw, frame.turn, frame.mirror)
    image = _lit(rng, draw(image, figure, placement, light=rng.uniform(0, 360)))
    outline = transform(figure.outline_points, placement)
    (x0, y0), (x1, y1) = outline.min(axis=0) + 0.5 - _EDGE, outline.max(axis=0) + 0.5 + _EDGE
    box = Box(float(x0), float(y0), float(x1), float(y1))
    return Scene(image, transform(figure.points, placement), box, category, tuple(figure.keypoints))


def transform(points: Points, placement: npt.NDArray[np.float64]) -> Points:
    """Points (N, 2) of a figure's frame in pixels, by a (2, 3) affine placement."""
    return np.asarray(points @ placement[:, :2].T + placement[:, 2])


def draw(image: Image, figure: Figure, placement: npt.NDArray[np.float64], *, light: float = 230.0) -> Image:
    """Draw a figure into a copy of an image, anti-aliased by supersampling.

    Args:
        image: RGB uint8 (H, W, 3).
        figure: what to draw; parts outside the image are cut off.
        placement: (2, 3) affine map from the figure's frame to pixels.
        light: where the light comes from, degrees (0 right, 90 below).
    """
    cv2 = require_cv2()
    outline = transform(figure.outline_points, placement)
    height, width = image.shape[:2]
    x0, y0 = np.maximum(np.floor(outline.min(axis=0)).astype(int) - 2, 0)
    x1, y1 = np.minimum(np.ceil(outline.max(axis=0)).astype(int) + 3, (width, height))
    result = image.copy()
    if x0 >= x1 or y0 >= y1:
        return result
    fine = int(np.clip(round(480 / max(x1 - x0, y1 - y0)), 2, 4))
    inner = placement.copy() * fine
    inner[:, 2] = (placement[:, 2] - (x0, y0) + 0.5) * fine - 0.5
    canvas = cv2.resize(result[y0:y1, x0:x1], None, fx=fine, fy=fine, interpolation=cv2.INTER_NEAREST)
    soft = max(int(0.035 * max(canvas.shape[:2])) | 1, 3)
    for part in figure.parts:
        _draw_part(canvas, part, inner, soft, light)
    result[y0:y1, x0:x1] = cv2.resize(canvas, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    return result


def _draw_part(canvas: Image, part: Part, placement: npt.NDArray[np.float64], soft: int, light: float) -> None:
    """Fill one part in place: paint, relief from the light, darker rim."""
    cv2 = require_cv2()
    outlines = [transform(outline, placement) for outline in part.outlines]
    corners = np.concatenate(outlines)
    low = np.maximum(np.floor(corners.min(axis=0)).astype(int) - soft, 0)
    high = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + soft + 1, canvas.shape[1::-1])
    if (low >= high).any():
        return
    (x0, y0), (x1, y1) = low, high
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    for outline in outlines:
        cv2.fillPoly(mask, [np.rint((outline - low) * 2**_SHIFT).astype(np.int32)], 255, shift=_SHIFT)
    if part.paint.ndim == 1:
        paint = np.empty((*mask.shape, 3), np.uint8)
        paint[:] = part.paint
    else:
        unit = TILE_SPAN / TILE  # tile pixels → figure's frame → canvas
        local = np.concatenate([placement[:, :2] * unit, placement[:, 2:] - low[:, None]], axis=1)
        local[:, 2] += placement[:, :2] @ np.full(2, 0.5 * unit - TILE_SPAN / 2)
        paint = cv2.warpAffine(part.paint, local, (x1 - x0, y1 - y0), borderMode=cv2.BORDER_REFLECT)
    blurred = cv2.blur(mask, (soft, soft))
    dx, dy = np.rint(heading(light, soft / 2)).astype(int)
    padded = cv2.copyMakeBorder(blurred, soft, soft, soft, soft, cv2.BORDER_CONSTANT, value=0)
    shifted = padded[soft - dy : soft - dy + blurred.shape[0], soft - dx : soft - dx + blurred.shape[1]]
    relief = cv2.addWeighted(blurred, 0.55, shifted, 0.45, 0)
    gain = cv2.convertScaleAbs(relief, alpha=0.4 * part.shade, beta=68 * part.shade)  # in units of 1/160
    if part.rim:
        inside = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=max(soft // 8, 1))
        cv2.copyTo(cv2.convertScaleAbs(gain, alpha=0.55), cv2.bitwise_not(inside), gain)
    filled = cv2.multiply(paint, cv2.merge([gain] * 3), scale=1 / 160)
    cv2.copyTo(filled, mask, canvas[y0:y1, x0:x1])


def background(rng: np.random.Generator, size_hw: tuple[int, int]) -> Image:
    """Textured clutter (H, W, 3): noise of several scales, gratings, blobs and shapes."""
    cv2 = require_cv2()
    height, width = size_hw
    half = (max(height // 2, 1), max(width // 2, 1))
    first, second = (colour(rng, (0.2, 0.9), 0.6).tolist() for _ in range(2))
    mix = np.zeros(half, np.float32)
    slope = rng.uniform(0.4, 0.9)
    for level in range(5):
        cells = 2 + 3 * 2**level
        grid = rng.random((cells, int(cells * width / height) + 1), dtype=np.float32) - np.float32(0.5)
        mix += cv2.resize(grid, half[::-1], interpolation=cv2.INTER_LINEAR) * slope**level
    mix = np.clip(mix * rng.uniform(0.5, 1.1) + 0.5, 0, 1)
    for _ in range(int(rng.integers(0, 4))):
        _add_grating(rng, mix)
    field = cv2.merge([cv2.convertScaleAbs(mix, alpha=b - a, beta=a) for a, b in zip(first, second, strict=True)])
    image = cv2.resize(field, (width, height), interpolation=cv2.INTER_LINEAR)
    for _ in range(int(rng.integers(8, 36))):
        _add_shape(rng, image)
    weave = np.full((height // 2, width // 2), 0.0, np.float32)
    for cells in rng.integers(12, 90, 3):
        grid = rng.random((cells, cells), dtype=np.float32) - np.float32(0.5)
        weave += cv2.resize(grid, weave.shape[::-1], interpolation=cv2.INTER_LINEAR)
    gain = np.clip(weave * rng.uniform(20, 100) + 160, 0, 255).astype(np.uint8)
    gain = cv2.resize(gain, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.multiply(image, cv2.merge([gain] * 3), scale=1 / 160), dtype=np.uint8)


def _add_grating(rng: np.random.Generator, mix: npt.NDArray[np.float32]) -> None:
    """A sinusoidal grating in a rectangle of the mixing field, in place: fences, tiles, fields."""
    height, width = mix.shape
    x0, y0 = int(rng.integers(0, width)), int(rng.integers(0, height))
    part = mix[y0 : y0 + int(rng.integers(8, max(height // 2, 9))), x0 : x0 + int(rng.integers(8, max(width // 2, 9)))]
    way = heading(rng.uniform(0, 180), 2 * np.pi / rng.uniform(4, 24)).astype(np.float32)
    y, x = np.ogrid[: part.shape[0], : part.shape[1]]
    part += np.sin(x * way[0] + y * way[1]).astype(np.float32) * np.float32(rng.uniform(0.1, 0.35))
    np.clip(part, 0, 1, out=part)


def _add_shape(rng: np.random.Generator, image: Image) -> None:
    """A blob, polygon or stick of a random colour, in place."""
    cv2 = require_cv2()
    height, width = image.shape[:2]
    centre = rng.uniform((0, 0), (width, height))
    size = max(width, height) * np.exp(rng.uniform(np.log(0.01), np.log(0.09)))
    kind = rng.integers(3)
    if kind == 0:
        outline = oval(centre, size, size * rng.uniform(0.3, 1.0), rng.uniform(0, 180), 24)
    elif kind == 1:
        outline = centre + rng.normal(0, size * 0.7, (int(rng.integers(3, 6)), 2))
    else:
        along = heading(rng.uniform(0, 180), size * rng.uniform(1, 4))
        across = np.array([-along[1], along[0]]) * rng.uniform(0.03, 0.2)
        outline = np.array([centre - along - across, centre + along - across, centre + along + across,
                            centre - along + across])  # fmt: skip
    fixed = np.rint(outline * 2**_SHIFT).astype(np.int32)
    paint = [int(c) for c in colour(rng, (0.1, 1.0))]
    cv2.fillPoly(image, [fixed], paint, lineType=cv2.LINE_AA, shift=_SHIFT)
    if rng.random() < 0.5:
        rim = [int(c * 0.5) for c in paint]
        cv2.polylines(image, [fixed], True, rim, 1, cv2.LINE_AA, shift=_SHIFT)


def _draw_distractor(
    rng: np.random.Generator, image: Image, category: str, object_fraction: tuple[float, float]
) -> None:
    """A figure of another category, or a few of its parts, in place."""
    others = [name for name in CATEGORIES if name != category]
    figure = CATEGORIES[others[int(rng.integers(len(others)))]](rng)
    if rng.random() < 0.6:
        start = int(rng.integers(len(figure.parts)))
        figure = replace(figure, parts=figure.parts[start : start + int(rng.integers(1, 5))])
    span = rng.uniform(*object_fraction) * rng.uniform(0.5, 1.0) * max(image.shape[:2])
    image[:] = draw(image, figure, _place(rng, figure, span, image.shape[:2], 40.0), light=rng.uniform(0, 360))


def _place(
    rng: np.random.Generator, figure: Figure, span: float, size_hw: Sequence[int], turn: float, mirror: float = 0.5
) -> npt.NDArray[np.float64]:
    """A (2, 3) placement: turned, perhaps mirrored, its box's longest side `span` pixels, anywhere inside the image."""
    angle = float(np.clip(rng.normal(0, turn), -2.5 * turn, 2.5 * turn))
    matrix = np.stack([heading(angle), heading(angle + 90)], axis=1)
    if rng.random() < mirror:
        matrix = matrix * (-1.0, 1.0)
    outline = figure.outline_points @ matrix.T
    low, extent = outline.min(axis=0), np.ptp(outline, axis=0)
    image_wh = np.array(size_hw[::-1], dtype=np.float64)
    scale = min(span / extent.max(), *((image_wh - 2) / extent))
    corner = rng.uniform(0.5, np.maximum(image_wh - extent * scale - 1.5, 0.5 + 1e-9))
    return np.concatenate([matrix * scale, (corner - low * scale)[:, None]], axis=1)


def _lit(rng: np.random.Generator, image: Image) -> Image:
    """A cast, a gradient of light, contrast and sensor noise over the whole picture."""
    cv2 = require_cv2()
    height, width = image.shape[:2]
    exposure, cast = rng.uniform(0.72, 1.12), rng.uniform(0.9, 1.1, 3)
    corners = exposure * rng.uniform(0.75, 1.25, (2, 2, 1)) * cast
    gain = cv2.resize((corners * 160).astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)
    lit = cv2.multiply(image, gain, scale=1 / 160)
    grain = rng.normal(0, rng.uniform(1, 6), (64, 64)).astype(np.int16)
    grain = np.tile(grain, (height // 64 + 1, width // 64 + 1))[:height, :width]
    return np.asarray(cv2.add(lit, cv2.merge([grain] * 3), dtype=cv2.CV_8U), dtype=np.uint8)


def _seeds(seed: Seed) -> list[int]:
    seeds = [seed] if isinstance(seed, (int, np.integer)) else list(seed)
    if not seeds or any(int(s) != s or s < 0 for s in seeds):
        raise InputError(must_be("seed", "a non-negative integer or a sequence of them", repr(seed)))
    return [int(s) for s in seeds]
