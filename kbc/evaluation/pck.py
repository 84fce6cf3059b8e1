"""PCK, the percentage of correct keypoints, with everything that makes published figures differ said aloud.

A point is correct when its distance to the truth is at most α times a reference length. Figures differ because the
reference length, the frame in which both are measured, `<` or `<=`, and what is averaged differ; a `Protocol` names
all of them and prints itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from kbc.errors import InputError, must_be, refuse_others
from kbc.geometry import Box, Points, Window, as_points, defined

Threshold: TypeAlias = Literal["bbox", "bbox-kp", "img", "bbox-kp-padded"]
"""What α is a fraction of.

- `bbox`: the longer side of the target's annotated box (SPair-71k). Width is x1 − x0, as the annotation has it.
- `bbox-kp`: the longer extent of the target's true keypoints, largest minus smallest coordinate (PF-WILLOW).
- `img`: the longer side of the target image (PF-PASCAL).
- `bbox-kp-padded`: what several published PF-WILLOW evaluations compute by mistake: the extent of the keypoints
  *after* they were padded with rows of −1 to a fixed number, which is about the largest coordinate + 1 and so much
  more lenient (151 px instead of 40 in one example). Only for comparison with those figures.
"""

Frame: TypeAlias = Literal["original"] | tuple[int, int]
"""Where distances and reference lengths are measured: the target's own pixels, or the target stretched to (H, W)."""

Instance: TypeAlias = Literal["own", "any"]
"""Where the target shows several objects of the kind: whether a point must be on the annotated one, or may be on any.

"any" separates a wrong object from a wrong place: a point is right within the threshold (of the annotated object's own
reference length) of that point on any object of the category in the picture. Our choice; not comparable with figures
of others.
"""

_PAD = -1.0


@dataclass(frozen=True)
class Protocol:
    """How PCK is measured. `str()` of it belongs beside every figure.

    Attributes:
        alphas: tolerances, fractions of the reference length.
        threshold: the reference length, see `Threshold`.
        frame: "original" or (H, W), see `Frame`. Stretching makes the tolerated disc an ellipse in the photo.
        inclusive: `<=` (CHM, DIFT) or `<` (GeoAware-SC).
        instance: "own" or "any", see `Instance`.
    """

    alphas: tuple[float, ...] = (0.05, 0.1, 0.15)
    threshold: Threshold = "bbox"
    frame: Frame = "original"
    inclusive: bool = True
    instance: Instance = "own"

    def __post_init__(self) -> None:
        try:
            alphas = tuple(float(alpha) for alpha in self.alphas)
        except (TypeError, ValueError):
            alphas = ()
        if not alphas or not all(math.isfinite(alpha) and alpha > 0 for alpha in alphas):
            raise InputError(must_be("alphas", "positive numbers", repr(self.alphas)))
        if len({f"{alpha:g}" for alpha in alphas}) < len(alphas):  # figures are called by what is printed
            raise InputError(must_be("alphas", "numbers that differ in six digits", repr(self.alphas)))
        object.__setattr__(self, "alphas", alphas)
        refuse_others("threshold", self.threshold, get_args(Threshold))
        refuse_others("instance", self.instance, get_args(Instance))
        if self.frame != "original":
            frame = tuple(self.frame) if isinstance(self.frame, Sequence) else ()
            if len(frame) != 2 or not all(isinstance(side, int) and side > 0 for side in frame):
                raise InputError(must_be("frame", '"original" or (height, width)', repr(self.frame)))
            object.__setattr__(self, "frame", frame)

    def __str__(self) -> str:
        length = {
            "bbox": "longer side of the target's box",
            "bbox-kp": "longer extent of the target's true keypoints",
            "img": "longer side of the target image",
            "bbox-kp-padded": "extent of the keypoints padded with −1 (a known bug; not comparable)",
        }[self.threshold]
        frame = "original" if self.frame == "original" else f"resized({self.frame[0]},{self.frame[1]})"
        sign = "<=" if self.inclusive else "<"
        alphas = ", ".join(f"{alpha:g}" for alpha in self.alphas)
        text = f"PCK@α, α = {alphas}; distance {sign} α × {self.threshold} ({length}); frame {frame}"
        return text + ("; on any instance" if self.instance == "any" else "")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `instance` is left out where it is "own", as most protocols have it."""
        held = {**asdict(self), "alphas": list(self.alphas), "text": str(self)}
        return held if self.instance == "any" else {key: value for key, value in held.items() if key != "instance"}


def reference_length(protocol: Protocol, truth: Points, size_hw: tuple[int, int], box: Box | None = None) -> float:
    """The length that α is a fraction of, pixels of the protocol's frame.

    Args:
        protocol: threshold kind and frame.
        truth: (N, 2) true points in the target's own pixels, NaN where undefined.
        size_hw: (height, width) of the target image.
        box: the target's annotated box, pixel edges; needed for "bbox".

    Raises:
        InputError: no box for "bbox", or no defined point for the keypoint extents.
    """
    window = _frame_window(protocol, size_hw)
    if protocol.threshold == "img":
        return float(max(window.size_hw))
    if protocol.threshold == "bbox":
        if box is None:
            raise InputError(must_be("box", "the target's box for threshold 'bbox'", None, "or use 'bbox-kp'"))
        return window.box_to_window(box).longest
    known = window.to_window(truth[defined(truth)])
    if len(known) == 0:
        raise InputError(must_be("truth", f"at least one defined point for {protocol.threshold!r}", "none"))
    if protocol.threshold == "bbox-kp-padded":
        known = np.vstack([known, [[_PAD, _PAD]]])
    return float((known.max(axis=0) - known.min(axis=0)).max())


def correct(
    predicted: object,
    truth: object,
    size_hw: tuple[int, int],
    box: Box | None = None,
    protocol: Protocol | None = None,
    others: Sequence[Points] = (),
) -> npt.NDArray[np.bool_]:
    """Which points are right, for each α.

    Args:
        predicted: (N, 2) in the target's own pixels; NaN (no answer) is wrong.
        truth: (N, 2) in the target's own pixels; rows with NaN do not count and are left out.
        size_hw: (height, width) of the target image.
        box: the target's annotated box, pixel edges; needed for threshold "bbox".
        protocol: default `Protocol()`.
        others: (N, 2) each, the same points on other objects of the kind; only a protocol of any instance reads them.

    Returns:
        (M, A) for the M defined true points and A alphas.

    Raises:
        InputError: shapes that differ, or what the threshold needs is missing.
    """
    protocol = protocol or Protocol()
    found, true = as_points(predicted, "predicted"), as_points(truth, "truth")
    if found.shape != true.shape:
        raise InputError(must_be("predicted", f"of shape {true.shape}, like the truth", found.shape))
    counted = defined(true)
    if not counted.any():
        return np.zeros((0, len(protocol.alphas)), dtype=bool)
    window = _frame_window(protocol, size_hw)
    accepted = [true, *others] if protocol.instance == "any" else [true]
    places = np.stack([window.to_window(one[counted]) for one in accepted])  # (instances, M, 2)
    off = np.hypot(*np.moveaxis(window.to_window(found[counted]) - places, -1, 0))
    distance = np.fmin.reduce(off)  # NaN where there is no answer; an instance without the point is passed over
    tolerated = np.array(protocol.alphas) * reference_length(protocol, true, size_hw, box)
    with np.errstate(invalid="ignore"):
        near = distance[:, None] <= tolerated if protocol.inclusive else distance[:, None] < tolerated
    return np.asarray(near, dtype=np.bool_)


def pck(
    predicted: object,
    truth: object,
    size_hw: tuple[int, int],
    box: Box | None = None,
    protocol: Protocol | None = None,
) -> dict[float, float]:
    """PCK of one pair, in [0, 1], for each α; NaN when no point counts. Arguments as for `correct`."""
    protocol = protocol or Protocol()
    right = correct(predicted, truth, size_hw, box, protocol)
    shares = right.mean(axis=0) if len(right) else np.full(len(protocol.alphas), np.nan)
    return {alpha: float(share) for alpha, share in zip(protocol.alphas, shares, strict=True)}


@dataclass(frozen=True)
class PCKResult:
    """What was measured, with the protocol that it was measured by. All shares in [0, 1], keyed by α.

    Attributes:
        per_point: right points over all points (a pair with many points weighs more).
        per_image: mean over the pairs of the pair's share.
        per_category: mean over the categories of the category's per-image mean.
        categories: per-image mean of each category.
        pairs, points: how many were counted; `empty`: pairs without a point that counts.
    """

    protocol: Protocol
    per_point: dict[float, float]
    per_image: dict[float, float]
    per_category: dict[float, float]
    categories: dict[str, dict[float, float]]
    pairs: int
    points: int
    empty: int

    def __str__(self) -> str:
        lines = [f"{self.protocol}; {self.pairs} pairs, {self.points} points"]
        for name in ("per_point", "per_image", "per_category"):
            shares = "  ".join(f"@{alpha:g} {100 * share:5.1f}" for alpha, share in getattr(self, name).items())
            lines.append(f"  {name.replace('_', ' '):<13}{shares}")
        return "\n".join(lines)


class PCK:
    """PCK over many pairs: `update` per pair, `compute` at the end, `reset`; `merge` joins processes exactly.

    Counts are kept per pair as whole numbers and summed exactly, so that neither the order of the pairs nor the way
    they are split over processes changes a digit.

    >>> metric = PCK(Protocol(alphas=(0.1,), threshold="img"))
    >>> metric.update([[10.0, 10.0], [50.0, 50.0]], [[12.0, 10.0], [90.0, 50.0]], size_hw=(100, 100))
    >>> metric.compute().per_point
    {0.1: 0.5}
    """

    def __init__(self, protocol: Protocol | None = None) -> None:
        self.protocol = protocol or Protocol()
        self._rows: list[tuple[str, int, tuple[int, ...]]] = []

    def update(
        self,
        predicted: object,
        truth: object,
        size_hw: tuple[int, int],
        box: Box | None = None,
        category: str = "",
        others: Sequence[Points] = (),
    ) -> None:
        """Count one pair; arguments as for `correct`."""
        right = correct(predicted, truth, size_hw, box, self.protocol, others)
        self._rows.append((category, len(right), tuple(int(count) for count in right.sum(axis=0))))

    def compute(self) -> PCKResult:
        """All averages over what was counted; NaN where nothing was."""
        alphas = self.protocol.alphas
        rows = [row for row in self._rows if row[1]]
        points = sum(count for _, count, _ in rows)
        groups: dict[str, list[list[float]]] = {}
        for category, count, hits in rows:
            groups.setdefault(category, []).append([hit / count for hit in hits])
        means = {name: [_mean(column) for column in zip(*groups[name], strict=True)] for name in sorted(groups)}
        shares = [[hit / count for hit in hits] for _, count, hits in rows]
        return PCKResult(
            protocol=self.protocol,
            per_point={a: sum(r[2][i] for r in rows) / points if points else math.nan for i, a in enumerate(alphas)},
            per_image={a: _mean(share[i] for share in shares) for i, a in enumerate(alphas)},
            per_category={a: _mean(mean[i] for mean in means.values()) for i, a in enumerate(alphas)},
            categories={name: dict(zip(alphas, mean, strict=True)) for name, mean in means.items()},
            pairs=len(rows),
            points=points,
            empty=len(self._rows) - len(rows),
        )

    def reset(self) -> None:
        """Forget everything counted."""
        self._rows.clear()

    def state(self) -> dict[str, Any]:
        """What was counted, plain data that may be sent to another process."""
        return {"protocol": self.protocol.to_dict(), "rows": [list(row) for row in self._rows]}

    def merge(self, *others: PCK | Mapping[str, Any]) -> PCK:
        """Add what other objects, or their `state()`s, have counted.

        Raises:
            InputError: one of them measured by another protocol.
        """
        for other in others:
            state = other.state() if isinstance(other, PCK) else other
            if state["protocol"] != self.protocol.to_dict():
                expected = f"measured by the same protocol ({self.protocol})"
                raise InputError(must_be("other", expected, state["protocol"]["text"]))
            self._rows.extend((str(name), int(n), tuple(int(hit) for hit in hits)) for name, n, hits in state["rows"])
        return self

    def __repr__(self) -> str:
        return f"PCK({self.protocol}; {len(self._rows)} pairs)"


def _mean(values: Iterable[float]) -> float:
    """Exactly rounded, and so independent of the order."""
    held = list(values)
    return math.fsum(held) / len(held) if held else math.nan


def _frame_window(protocol: Protocol, size_hw: tuple[int, int]) -> Window:
    size = (int(size_hw[0]), int(size_hw[1]))
    return Window.whole(size) if protocol.frame == "original" else Window.whole(size, protocol.frame)
