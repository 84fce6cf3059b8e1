"""Boxes and windows: the only place where pixel coordinates are converted.

Convention:
    Points are (N, 2), x then y, in pixels; (0, 0) is the centre of the top-left pixel. Undefined points are NaN.
    Boxes are xyxy pixel *edges*, half-open: the whole image is (0, 0, W, H), and the pixel in column c spans
    [c, c + 1). A point with coordinate x therefore lies at edge coordinate x + 0.5, in column floor(x + 0.5).
    Resizing by s maps x → (x + 0.5)·s − 0.5, which is what `cv2.resize` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
import numpy.typing as npt

from kbc.errors import InputError, must_be, width_by_height
from kbc.images import Image, require_cv2
from kbc.tensors import to_array

if TYPE_CHECKING:
    import torch

Points = npt.NDArray[np.float64]
"""(N, 2) x then y, pixels of the image they belong to, NaN where undefined."""

_P = TypeVar("_P", Points, "torch.Tensor")

Enlarge = Literal["cubic", "linear"]
CUBIC: Enlarge = "cubic"
LINEAR: Enlarge = "linear"
_LARGEST = 16384  # px a side that anything is resampled to


def as_points(points: object, argument: str = "keypoints") -> Points:
    """Points as a fresh float64 (N, 2) array.

    A table (a DataFrame, a structured array) whose columns are named is read by the names x and y, wherever they stand.
    What `np.ma` masks is undefined.

    Raises:
        InputError: not numeric, or not of shape (N, 2), or infinite; a table without the columns x and y.
    """
    given = _xy_columns(points, argument)
    try:
        array: Points = to_array(given).copy()
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(must_be(argument, "numbers of shape (N, 2)", f"{type(points).__name__} ({error})")) from error
    if array.size == 0:
        array = array.reshape(0, 2)
    if array.ndim != 2 or array.shape[1] != 2:
        hint = ""
        if array.ndim == 2 and array.shape[1] == 3:  # COCO's: the third says which of the points are there at all
            hint = "of x, y, visibility give x and y, and NaN where the visibility is 0"
        elif array.ndim == 2 and array.shape[0] == 2:
            hint = "transpose it: x and y are the last axis"
        raise InputError(must_be(argument, "of shape (N, 2), x then y", f"shape {array.shape}", hint))
    if np.isinf(array).any():
        raise InputError(must_be(argument, "finite, or NaN where undefined", "infinite coordinates"))
    return array


def _xy_columns(points: object, argument: str) -> object:
    """The columns x and y of a table whose columns have names; anything else as it is."""
    given: Any = points
    names = getattr(getattr(given, "dtype", None), "names", None)  # a structured array
    if names is None and hasattr(given, "columns") and not callable(given.columns):  # a DataFrame
        names = [name for name in given.columns if isinstance(name, str)] or None
    if names is None:
        return points
    found = {str(name).strip().lower(): name for name in names}
    if not {"x", "y"} <= set(found):
        raise InputError(must_be(argument, "a table with the columns x and y", f"the columns {', '.join(names)}"))
    return np.stack([np.asarray(given[found[axis]], dtype=np.float64) for axis in "xy"], axis=1)


def defined(points: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Mask (…) of the points (…, 2) of which neither coordinate is NaN."""
    return np.asarray(~np.isnan(points).any(axis=-1), dtype=np.bool_)


def looks_relative(points: Points) -> bool:
    """Whether points can only be fractions of their image's size: two or more, all in [0, 1], not all whole pixels."""
    known = points[defined(points)]
    return bool(len(known) > 1 and known.min() >= 0 and known.max() <= 1 and (known % 1).any())


def looks_per_cent(points: Points, size_hw: tuple[int, int]) -> bool:
    """Whether points may be per cent of an image of (height, width): three or more, spread over 0 … 100 and no farther.

    An object in the corner of a large image looks the same: this is to be pointed out, not refused. The bounds, 40 of
    spread and sides of 300 px, are our choice.
    """
    known = points[defined(points)]
    if len(known) < 3 or min(size_hw) < 300 or known.min() < 0 or known.max() > 100:
        return False
    return bool(np.ptp(known, axis=0).max() >= 40)


def far_outside(points: Points, size_hw: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Mask (N,) of the points more than about one image size outside an image of (height, width); False for NaN.

    Beyond that a point was measured in another image's pixels, or in another frame.
    """
    height, width = size_hw
    with np.errstate(invalid="ignore"):
        far = np.abs(points - (width / 2, height / 2)) > (1.5 * width + 16, 1.5 * height + 16)
    return np.asarray(far.any(axis=1), dtype=np.bool_)


def outside(points: Points, size_hw: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Mask (N,) of the points that do not lie in an image of (height, width); False for NaN."""
    return defined(points) & ~Box.whole(size_hw).contains(points)


def in_one_place(points: Points, answers: Points) -> bool:
    """Whether points (N, 2) that lie apart all have one place for an answer (N, 2); those without an answer aside."""
    told = defined(points) & defined(answers)
    if told.sum() < 2:
        return False
    asked, given = (np.ptp(one[told], axis=0).max() for one in (points, answers))
    return bool(given < 1e-3 < asked)


def in_one_line(points: Points, answers: Points) -> bool:
    """Whether ten or more points (N, 2), not in one line themselves, have answers (N, 2) that are."""
    told = defined(points) & defined(answers)
    if told.sum() < 10:  # a few may well lie so, and in one row of a matcher's cells
        return False
    around = (one[told] - one[told].mean(axis=0) for one in (points, answers))
    asked, given = (np.linalg.svd(one, compute_uv=False)[1] / told.sum() ** 0.5 for one in around)
    return bool(given < 1e-3 < asked)


def as_size(size: object, argument: str = "size") -> tuple[int, int]:
    """(height, width) in whole pixels, of that or of the side of a square.

    Raises:
        InputError: anything else, a side below one or above 16384, more than memory is likely to hold.
    """
    sides = tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, (int, np.integer)) and side > 0 for side in sides):
        raise InputError(must_be(argument, "a side or (height, width) in whole pixels", repr(size)))
    if max(sides) > _LARGEST:
        raise InputError(must_be(argument, f"at most {_LARGEST} px a side", repr(size)))
    return int(sides[0]), int(sides[1])


@dataclass(frozen=True, slots=True)
class Box:
    """An axis-aligned box in pixel edges, half-open, of positive or zero area.

    Attributes:
        x0, y0, x1, y1: left, top, right and bottom edge, pixels; `x1 - x0` is the width.

    >>> box = Box(300, 200, 420, 330)
    >>> box.longest, box.clipped((240, 400)).xyxy  # an image of height 240 and width 400
    (130, (300, 200, 400.0, 240.0))
    """

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        _check_box(self.xyxy, "box_xyxy")

    @classmethod
    def of(cls, box: Box | Sequence[float] | npt.NDArray[np.floating], argument: str = "box_xyxy") -> Box:
        """A box from four numbers in xyxy order.

        Raises:
            InputError: not four numbers, not finite, or not in xyxy order.
        """
        if isinstance(box, Box):
            return box
        try:
            if isinstance(box, (str, bytes)):
                raise TypeError("text")
            x0, y0, x1, y1 = to_array(box if hasattr(box, "__len__") else list(box)).tolist()
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(must_be(argument, "four numbers x0, y0, x1, y1", repr(box))) from error
        _check_box((x0, y0, x1, y1), argument)
        return cls(x0, y0, x1, y1)

    @classmethod
    def around(cls, points: Points) -> Box | None:
        """The smallest box that holds the defined points (their centres), or None when there are none."""
        known = points[defined(points)]
        return cls(*edges_around(known).tolist()) if len(known) else None

    @classmethod
    def whole(cls, size_hw: tuple[int, int]) -> Box:
        """The box of a whole image of (height, width)."""
        return cls(0.0, 0.0, float(size_hw[1]), float(size_hw[0]))

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1)."""
        return (self.x0, self.y0, self.x1, self.y1)

    @property
    def width(self) -> float:
        """x1 − x0."""
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        """y1 − y0."""
        return self.y1 - self.y0

    @property
    def longest(self) -> float:
        """The longer side, pixels."""
        return max(self.width, self.height)

    @property
    def area(self) -> float:
        """Width times height, pixels squared."""
        return self.width * self.height

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) of the middle, in edge coordinates (subtract 0.5 for a point)."""
        return ((self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2)

    @classmethod
    def centered(cls, center: tuple[float, float], width: float, height: float) -> Box:
        """A box of the given size around a middle in edge coordinates."""
        x, y = center
        return cls(x - width / 2, y - height / 2, x + width / 2, y + height / 2)

    def grown(self, margin: float) -> Box:
        """The same middle, `margin` pixels more on every side."""
        return Box(self.x0 - margin, self.y0 - margin, self.x1 + margin, self.y1 + margin)

    def clipped(self, size_hw: tuple[int, int]) -> Box:
        """The part inside an image of (height, width); may be empty (zero area)."""
        height, width = size_hw
        x0, x1 = (min(max(x, 0.0), float(width)) for x in (self.x0, self.x1))
        y0, y1 = (min(max(y, 0.0), float(height)) for y in (self.y0, self.y1))
        return Box(x0, y0, x1, y1)

    def iou(self, other: Box) -> float:
        """Intersection over union in [0, 1]; 0 for two empty boxes."""
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        inside = max(width, 0.0) * max(height, 0.0)
        union = self.area + other.area - inside
        return inside / union if union > 0 else 0.0

    def contains(self, points: Points) -> npt.NDArray[np.bool_]:
        """Mask (N,) of the points that lie inside, half-open; False for NaN."""
        x, y = points[:, 0] + 0.5, points[:, 1] + 0.5
        inside: npt.NDArray[np.bool_] = (x >= self.x0) & (x < self.x1) & (y >= self.y0) & (y < self.y1)
        return inside


def edges_around(points: Points) -> npt.NDArray[np.float64]:
    """(…, 4) the pixel edges x0, y0, x1, y1 of the smallest boxes that hold points (…, N, 2), all defined."""
    return np.concatenate([points.min(axis=-2) + 0.5, points.max(axis=-2) + 0.5], axis=-1)


def distinct(
    boxes: Sequence[Box] | npt.NDArray[np.float64],
    scores: Sequence[float] | npt.NDArray[np.float64],
    most: int,
    iou: float,
) -> list[int]:
    """Non-maximum suppression: at most `most` boxes, best score first, none overlapping a better one by `iou` or more.

    Args:
        boxes: N boxes, or their edges (N, 4).
        scores: (N,).
        most, iou: the bounds.

    Returns:
        Their indices; of equal scores the first comes first.

    >>> distinct([Box(0, 0, 10, 10), Box(1, 0, 11, 10), Box(20, 0, 30, 10)], [0.5, 0.9, 0.1], 5, iou=0.3)
    [1, 2]
    """
    edges = np.array([box.xyxy if isinstance(box, Box) else box for box in boxes], dtype=np.float64).reshape(-1, 4)
    left = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    found: list[int] = []
    while len(left) and len(found) < most:
        found.append(int(left[0]))
        left = left[1:]
        left = left[_overlap(edges[found[-1]], edges[left]) < iou]
    return found


def _overlap(box: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(N,) intersection over union of a box (4,) with others (N, 4); 0 for two empty ones."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    inside = np.prod(sides.clip(0), axis=1)
    union = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - inside
    shared: npt.NDArray[np.float64] = np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)
    return shared


@dataclass(frozen=True, slots=True)
class Window:
    """A part of an image (whole pixels) and the size it is resampled to.

    Attributes:
        box: what is cut, at whole pixel edges inside the image, so that the cut is a view and one resampling suffices.
        size_hw: (height, width) of the cut-out after resampling.
        mirrored: whether the cut-out is turned left to right, as in a mirror.

    >>> window = Window(Box(100, 50, 200, 150), (400, 400))
    >>> window.to_window(np.array([[100.0, 50.0]])).tolist()  # a pixel's centre, enlarged four times
    [[1.5, 1.5]]
    >>> window.to_image(np.array([[1.5, 1.5]])).tolist()
    [[100.0, 50.0]]
    """

    box: Box
    size_hw: tuple[int, int]
    mirrored: bool = False

    def __post_init__(self) -> None:
        if self.box.area <= 0 or any(edge != int(edge) or edge < 0 for edge in self.box.xyxy):
            expected = "at whole, non-negative pixel edges and not empty"
            raise InputError(must_be("box", expected, self.box.xyxy, "Window.fit rounds any box to one"))
        if min(self.size_hw) < 1:
            raise InputError(must_be("size_hw", "at least 1×1", self.size_hw))

    @classmethod
    def whole(cls, image_hw: tuple[int, int], size_hw: tuple[int, int] | None = None) -> Window:
        """The whole image, by default at its own size."""
        return cls(Box.whole(image_hw), size_hw or image_hw)

    @classmethod
    def fit(cls, box: Box, image_hw: tuple[int, int]) -> Window:
        """The box at whole pixels, shifted to stay inside the image, never smaller than 2×2, at its own size.

        A box larger than the image is cut to it; an image smaller than 2×2 gives all it has.
        """
        x0, x1 = _fit_span(box.x0, box.x1, image_hw[1])
        y0, y1 = _fit_span(box.y0, box.y1, image_hw[0])
        return cls(Box(x0, y0, x1, y1), (y1 - y0, x1 - x0))

    def resized(self, size_hw: tuple[int, int]) -> Window:
        """The same part of the image, resampled to another size."""
        return replace(self, size_hw=(int(size_hw[0]), int(size_hw[1])))

    def mirror(self) -> Window:
        """The same part of the image, turned left to right."""
        return replace(self, mirrored=not self.mirrored)

    def shows(self, points: Points) -> npt.NDArray[np.bool_]:
        """Mask (N,) of the points of the image that lie in the window, or within a twentieth of its side outside."""
        return self.box.grown(0.05 * self.box.longest).contains(points)

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Enlargement in x and y: cut-out pixels per image pixel."""
        return (self.size_hw[1] / self.box.width, self.size_hw[0] / self.box.height)

    @property
    def _axes(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Signed scale and the image's edge that the cut-out starts at, in x and y."""
        (sx, sy), box = self.scale_xy, self.box
        return ((-sx, sy), (box.x1, box.y0)) if self.mirrored else ((sx, sy), (box.x0, box.y0))

    @overload
    def to_window(self, points: Points) -> Points: ...
    @overload
    def to_window(self, points: torch.Tensor) -> torch.Tensor: ...
    def to_window(self, points: Points | torch.Tensor) -> Points | torch.Tensor:
        """Points (…, 2) of the image in the cut-out's pixels. Arrays and tensors on any device alike."""
        scale, origin = (_like(values, points) for values in self._axes)
        inside: Points | torch.Tensor = (points + 0.5 - origin) * scale - 0.5
        return inside

    @overload
    def to_image(self, points: Points) -> Points: ...
    @overload
    def to_image(self, points: torch.Tensor) -> torch.Tensor: ...
    def to_image(self, points: Points | torch.Tensor) -> Points | torch.Tensor:
        """Points (…, 2) of the cut-out in the image's pixels: the exact inverse of `to_window`."""
        scale, origin = (_like(values, points) for values in self._axes)
        outside: Points | torch.Tensor = (points + 0.5) / scale + origin - 0.5
        return outside

    def box_to_window(self, box: Box) -> Box:
        """A box of the image in the cut-out's pixel edges."""
        (sx, sy), (x, y) = self._axes
        left, right = sorted(((box.x0 - x) * sx, (box.x1 - x) * sx))
        return Box(left, (box.y0 - y) * sy, right, (box.y1 - y) * sy)

    def box_to_image(self, box: Box) -> Box:
        """A box of the cut-out in the image's pixel edges."""
        (sx, sy), (x, y) = self._axes
        left, right = sorted((box.x0 / sx + x, box.x1 / sx + x))
        return Box(left, box.y0 / sy + y, right, box.y1 / sy + y)

    def cut(self, image: Image, enlarge: Enlarge = CUBIC) -> Image:
        """Cut and resample an image (H, W, 3) uint8 in one step from the original pixels.

        An axis that shrinks is filtered by area, one that grows by `enlarge` ("cubic" or "linear").

        Raises:
            InputError: the window does not lie inside this image, or `enlarge` is neither.
        """
        self._check((image.shape[0], image.shape[1]), enlarge)
        x0, y0, x1, y1 = (int(edge) for edge in self.box.xyxy)
        part = image[y0:y1, x0:x1]
        cv2 = require_cv2()
        height, width = self.size_hw
        if height < part.shape[0] or width < part.shape[1]:  # each axis is resampled once: first those that shrink
            smaller = (min(width, part.shape[1]), min(height, part.shape[0]))
            part = cv2.resize(part, smaller, interpolation=cv2.INTER_AREA)
        if part.shape[:2] != self.size_hw:
            grow = cv2.INTER_CUBIC if enlarge == CUBIC else cv2.INTER_LINEAR
            part = cv2.resize(part, (width, height), interpolation=grow)
        return np.ascontiguousarray(cv2.flip(part, 1) if self.mirrored else part, dtype=np.uint8)

    def _check(self, image_hw: tuple[int, int], enlarge: Enlarge) -> None:
        if enlarge not in (CUBIC, LINEAR):
            raise InputError(must_be("enlarge", "'cubic' or 'linear'", repr(enlarge)))
        if self.box.x1 > image_hw[1] or self.box.y1 > image_hw[0]:
            expected = f"inside the image ({width_by_height(image_hw)})"
            raise InputError(must_be("window", expected, self.box.xyxy, "use Window.fit"))


def cell_centres(grid_hw: tuple[int, int], size_hw: tuple[int, int]) -> tuple[Points, Points]:
    """x (w,) and y (h,) of the centres of a grid of cells that covers an image of (height, width), pixels."""
    whole = Window(Box.whole(grid_hw), size_hw)
    x = whole.to_window(np.stack([np.arange(grid_hw[1]), np.zeros(grid_hw[1])], axis=1).astype(np.float64))[:, 0]
    y = whole.to_window(np.stack([np.zeros(grid_hw[0]), np.arange(grid_hw[0])], axis=1).astype(np.float64))[:, 1]
    return x, y


def resize_points(points: _P, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> _P:
    """Points of an image of one size in the pixels of the same image at another size."""
    return Window(Box.whole(from_hw), to_hw).to_window(points)


def _fit_span(low: float, high: float, limit: int) -> tuple[int, int]:
    """Whole-pixel span of about [low, high), at least 2 and at most `limit` long, shifted into [0, limit)."""
    length = min(max(round(high - low), 2), limit)
    start = round((low + high - length) / 2)
    start = min(max(start, 0), limit - length)
    return start, start + length


def _check_box(xyxy: tuple[float, float, float, float], argument: str) -> None:
    x0, y0, x1, y1 = xyxy
    if not (math.isfinite(x0 + y0 + x1 + y1) and x1 >= x0 and y1 >= y0):
        hint = "the order is xyxy; a box x, y, width, height is (x, y, x + width, y + height)"
        raise InputError(must_be(argument, "finite with x1 ≥ x0 and y1 ≥ y0", xyxy, hint))


def _like(values: object, points: Any) -> Any:
    """Values as the kind of array, floating dtype and device that the points have."""
    if isinstance(points, np.ndarray):
        return np.asarray(values, dtype=np.float64)
    import torch

    dtype = points.dtype if points.is_floating_point() else torch.get_default_dtype()
    return torch.tensor(values, dtype=dtype, device=points.device)
