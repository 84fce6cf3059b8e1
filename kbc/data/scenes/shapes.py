"""Shapes and paints of which the figures of procedural scenes are put together. All of it is our choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from kbc.geometry import Points
from kbc.images import Image, require_cv2

Paint = Image
"""A colour (3,) or a tile (T, T, 3) that spans [-1.5, 1.5]² of the figure's frame and is reflected beyond."""

Vector = npt.NDArray[np.float64]
"""(2,) x, y in the figure's frame."""

TILE = 96
TILE_SPAN = 3.0


@dataclass(frozen=True, eq=False)
class Part:
    """Closed outlines (M, 2) filled as one with a paint; `shade` is a brightness factor, `rim` a darker edge."""

    outlines: tuple[Points, ...]
    paint: Paint
    shade: float = 1.0
    rim: bool = True


def at(x: float, y: float) -> Vector:
    """A point or vector."""
    return np.array([x, y], dtype=np.float64)


def heading(degrees: float, length: float = 1.0) -> Vector:
    """A vector by its angle: 0° to the right, 90° down."""
    angle = math.radians(degrees)
    return np.array([math.cos(angle) * length, math.sin(angle) * length])


def oval(centre: Vector, rx: float, ry: float, degrees: float = 0.0, corners: int = 36) -> Points:
    """An ellipse with its first axis turned by `degrees`."""
    axes = np.stack([heading(degrees, rx), heading(degrees + 90, ry)])
    return np.asarray(centre + _circle(corners) @ axes)


@lru_cache
def _circle(corners: int) -> Points:
    t = np.linspace(0.0, 2 * np.pi, corners, endpoint=False)
    return np.stack([np.cos(t), np.sin(t)], axis=1)


def limb(joints: Sequence[Vector], radii: Sequence[float]) -> tuple[Points, ...]:
    """A limb through its joints: per segment the hull of two discs."""
    cv2 = require_cv2()
    pieces = []
    for p, q, r, s in zip(joints[:-1], joints[1:], radii[:-1], radii[1:], strict=True):
        discs = np.concatenate([oval(p, r, r, corners=16), oval(q, s, s, corners=16)])
        pieces.append(cv2.convexHull(discs.astype(np.float32))[:, 0].astype(np.float64))
    return tuple(pieces)


def smooth(corners: Sequence[Vector], steps: int = 8) -> Points:
    """A closed Catmull–Rom curve through the corners."""
    p = np.array(corners)
    before, after, beyond = np.roll(p, 1, axis=0), np.roll(p, -1, axis=0), np.roll(p, -2, axis=0)
    t = np.linspace(0.0, 1.0, steps, endpoint=False)[None, :, None]
    curve = 0.5 * (
        2 * p[:, None]
        + (after - before)[:, None] * t
        + (2 * before - 5 * p + 4 * after - beyond)[:, None] * t**2
        + (3 * p - before - 3 * after + beyond)[:, None] * t**3
    )
    return np.asarray(curve.reshape(-1, 2))


def polygon(*corners: Vector) -> Points:
    """A polygon with sharp corners."""
    return np.array(corners)


def colour(rng: np.random.Generator, value: tuple[float, float] = (0.3, 0.95), saturation: float = 0.85) -> Paint:
    """A random RGB colour of the given range of brightness; greys and browns are as likely as bright ones."""
    hue, grey, bright = rng.uniform(0, 6), rng.uniform(0, saturation), rng.uniform(*value)
    ramp = [min(max(abs((hue + shift) % 6 - 3) - 1, 0.0), 1.0) for shift in (0, 4, 2)]
    return np.array([255 * bright * (1 - grey * (1 - r)) for r in ramp], dtype=np.uint8)


def contrasting(rng: np.random.Generator, base: Paint) -> Paint:
    """A colour clearly lighter or darker than `base`."""
    return colour(rng, (0.05, 0.3)) if base.mean() > 115 else colour(rng, (0.75, 1.0), 0.5)


def noise(rng: np.random.Generator, cells: int, size: int = TILE) -> npt.NDArray[np.float32]:
    """Smooth noise (size, size) in about [0, 1] with features of size / cells pixels."""
    grid = rng.random((cells, cells), dtype=np.float32)
    return np.asarray(require_cv2().resize(grid, (size, size), interpolation=require_cv2().INTER_CUBIC))


def coat(rng: np.random.Generator, base: Paint | None = None) -> Paint:
    """A tile: plain, striped, spotted, patched or with a light underside."""
    base = colour(rng) if base is None else base
    second = contrasting(rng, base)
    axis = (np.arange(TILE, dtype=np.float32) + 0.5) / TILE * TILE_SPAN - TILE_SPAN / 2
    kind = rng.integers(5)
    mix: npt.NDArray[np.floating]
    if kind == 0:
        mix = np.zeros((TILE, TILE), np.float32)
    elif kind == 1:
        way = heading(rng.normal(0, 20) + (90 if rng.random() < 0.25 else 0), 2 * np.pi * rng.uniform(1.6, 4.0))
        phase = axis[None, :] * float(way[0]) + axis[:, None] * float(way[1]) + rng.uniform(1, 4) * noise(rng, 8)
        mix = np.sin(phase) * 3 + rng.uniform(-1.5, 0.5)
    elif kind == 2:
        mix = (noise(rng, int(rng.integers(16, 28))) - rng.uniform(0.62, 0.72)) * 20
    elif kind == 3:
        mix = (noise(rng, int(rng.integers(5, 11))) - rng.uniform(0.45, 0.62)) * 20
    else:
        mix = np.broadcast_to((axis[:, None] - rng.uniform(-0.05, 0.2)) * 6, (TILE, TILE))
    mix = np.clip(mix, 0, 1)[:, :, None] * rng.uniform(0.6, 1.0)
    grain = 0.88 + 0.24 * noise(rng, 24)[:, :, None]
    blend = base.astype(np.float32) + (second.astype(np.float32) - base.astype(np.float32)) * mix.astype(np.float32)
    return np.clip(blend * grain, 0, 255).astype(np.uint8)


BLACK = np.array([18, 16, 20], np.uint8)
WHITE = np.array([245, 245, 238], np.uint8)
GLASS = np.array([168, 205, 222], np.uint8)


def eye(centre: Vector, radius: float) -> list[Part]:
    """White with a pupil."""
    return [
        Part((oval(centre, radius, radius),), WHITE, rim=False),
        Part((oval(centre, radius * 0.6, radius * 0.6),), BLACK, rim=False),
    ]


class Alike:
    """Stands in for a generator while a figure is built, so that figures built with one `common` generator are alike.

    Continuous draws are mixed from `common` and `own`, `variation` being the share of `own`; discrete draws are common
    ones. At `variation` 0 figures are equal.
    """

    def __init__(self, common: np.random.Generator, own: np.random.Generator, variation: float) -> None:
        self._common, self._own, self._share = common, own, variation

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """As `numpy.random.Generator.uniform`, one number."""
        return (1 - self._share) * self._common.uniform(low, high) + self._share * self._own.uniform(low, high)

    def normal(self, mean: float = 0.0, deviation: float = 1.0) -> float:
        """As `numpy.random.Generator.normal`, one number."""
        common, own = self._common.normal(0, deviation), self._own.normal(0, deviation)
        return mean + (1 - self._share) * common + self._share * own

    def random(self, *args: Any, **keywords: Any) -> Any:
        """As `numpy.random.Generator.random`: decides and makes textures, so it is common."""
        return self._common.random(*args, **keywords)

    def integers(self, *args: Any, **keywords: Any) -> Any:
        """As `numpy.random.Generator.integers`."""
        return self._common.integers(*args, **keywords)

    def choice(self, *args: Any, **keywords: Any) -> Any:
        """As `numpy.random.Generator.choice`."""
        return self._common.choice(*args, **keywords)
