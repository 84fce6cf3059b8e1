"""What flows through the house: a `Pair` goes in, a `Match` comes out, a `MatchResult` tells how."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from kbc.errors import InputError, counted, must_be, width_by_height
from kbc.geometry import Box, Points, Window, as_points, defined, far_outside, looks_relative
from kbc.images import Image, ImageLike, load_image

Scores: TypeAlias = npt.NDArray[np.float64]
"""(N,), higher is surer; the scale is the matcher's own. NaN where the point is undefined."""

Origin: TypeAlias = Literal[
    "fine",
    "whole",
    "coarse: off",
    "coarse: not small",
    "coarse: no window",
    "coarse: refused",
    "coarse: outside",
    "coarse: failed",
    "undefined",
]
"""Where an answer comes from: the fine pass; a joint choice on the whole image; or the coarse pass, because `passes` is
0, nothing is small, no window was proposed, none scored well enough, the point or its fine answer lies outside the
window, or the fine pass gave no answer. "undefined" where the keypoint is."""


@dataclass(frozen=True, eq=False, init=False)
class Pair:
    """Two images and the points asked for.

    Attributes:
        source, target: RGB uint8 (H, W, 3). Paths, grey, RGBA and float arrays and (3, H, W) tensors are converted.
        keypoints: (N, 2) float64 in the source, x then y, pixels, (0, 0) the centre of the top-left pixel. A row with
            NaN asks for nothing and gets NaN. A point may lie somewhat outside the image (at most about its size); what
            a matcher says of it is its own affair, usually the nearest border's.
        source_box, target_box: where the object is, `Box` or xyxy pixel edges, when known (a detector, an annotation).

    Raises:
        InputError: an image that cannot be read, points or boxes of the wrong form, or far outside their image.

    >>> import numpy as np, kbc
    >>> photo = np.zeros((480, 640, 3), np.uint8)
    >>> kbc.Pair(photo, photo, [[120, 80], [np.nan, np.nan]], target_box=(300, 200, 420, 330))
    Pair(source 640×480, target 640×480, 1 point and 1 undefined, target_box (300, 200, 420, 330))
    """

    source: Image
    target: Image
    keypoints: Points
    source_box: Box | None
    target_box: Box | None

    def __init__(
        self,
        source: ImageLike,
        target: ImageLike,
        keypoints: object,
        source_box: Box | tuple[float, float, float, float] | None = None,
        target_box: Box | tuple[float, float, float, float] | None = None,
    ) -> None:
        put = object.__setattr__  # a frozen dataclass with conversion at the door
        put(self, "source", _sealed(load_image(source, "source")))
        put(self, "target", _sealed(load_image(target, "target")))
        points = as_points(keypoints)
        points[np.isnan(points).any(axis=1)] = np.nan
        far = far_outside(points, self.source.shape[:2])
        if far.any():
            expected = f"near the source image ({width_by_height(self.source.shape)})"
            hint = "points are in the source's own pixels; undefined ones are NaN"
            raise InputError(must_be("keypoints", expected, points[far][0].tolist(), hint))
        _refuse_relative(points, self.source)
        points.setflags(write=False)
        put(self, "keypoints", points)
        put(self, "source_box", box_inside(source_box, self.source, "source_box"))
        put(self, "target_box", box_inside(target_box, self.target, "target_box"))

    def __repr__(self) -> str:
        shown = [f"{side} {width_by_height(getattr(self, side).shape)}" for side in ("source", "target")]
        known = int(defined(self.keypoints).sum())
        missing = len(self.keypoints) - known
        shown.append(counted(known, "point") + (f" and {missing} undefined" if missing else ""))
        for name in ("source_box", "target_box"):
            if (box := getattr(self, name)) is not None:
                shown.append(f"{name} ({', '.join(f'{edge:g}' for edge in box.xyxy)})")
        return f"Pair({', '.join(shown)})"

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A pair that was pickled or copied is read-only again."""
        self.__dict__.update(state)
        for array in (self.source, self.target, self.keypoints):
            array.setflags(write=False)

    @classmethod
    def trusted(cls, source: Image, target: Image, keypoints: Points) -> Pair:
        """A pair of images and points that are known to be right: cut-outs of a pair that passed the door."""
        pair = object.__new__(cls)
        for name, value in (("source", source), ("target", target), ("keypoints", keypoints)):
            value.setflags(write=False)
            object.__setattr__(pair, name, value)
        object.__setattr__(pair, "source_box", None)
        object.__setattr__(pair, "target_box", None)
        return pair


def _sealed(image: Image) -> Image:
    """A read-only view, so that no matcher can paint over a caller's image; an already read-only array is kept."""
    if not image.flags.writeable:
        return image
    view = image.view()
    view.setflags(write=False)
    return view


def _refuse_relative(points: Points, image: Image) -> None:
    if min(image.shape[:2]) > 1 and looks_relative(points):
        received = f"points in [0, 1], e.g. {points[defined(points)][0].tolist()}"
        hint = "multiply relative ones by the image's width and height"
        raise InputError(must_be("keypoints", "pixels of the source image", received, hint))


def box_inside(box: object, image: Image, argument: str) -> Box | None:
    """The part of a box, `Box` or xyxy pixel edges, that lies in an image (H, W, 3); None for None.

    Raises:
        InputError: no box, a relative one, or one that does not meet the image.
    """
    if box is None:
        return None
    given = Box.of(box, argument)  # type: ignore[arg-type]
    if min(given.xyxy) >= 0 and max(given.xyxy) <= 1 < min(image.shape[:2]):
        hint = "multiply a relative box by the image's width and height"
        raise InputError(must_be(argument, "pixel edges", f"a box in [0, 1]: {given.xyxy}", hint))
    clipped = given.clipped((image.shape[0], image.shape[1]))
    if clipped.area <= 0:
        expected = f"a box that meets the image ({width_by_height(image.shape)})"
        raise InputError(must_be(argument, expected, given.xyxy, "the order is xyxy"))
    return clipped


@dataclass(frozen=True, eq=False)
class Match:
    """A matcher's answer.

    Attributes:
        keypoints: (N, 2) float64 in the target's pixels; NaN where the source point is undefined or has no answer.
        score: (N,) higher is surer, on the matcher's own scale, or None.

    >>> import numpy as np, kbc
    >>> kbc.Match(np.array([[3.0, 4.0], [np.nan, np.nan]]), np.array([0.5, np.nan]))
    Match(2 points, 1 answered; score 0.50 … 0.50)
    """

    keypoints: Points
    score: Scores | None = None

    def __repr__(self) -> str:
        answered = int(defined(self.keypoints).sum())
        return f"Match({counted(len(self.keypoints), 'point')}, {answered} answered{_range('score', self.score)})"


def sure_points(keypoints: Points, confidence: Scores, least: float) -> Points:
    """Points (N, 2), NaN where their confidence (N,) is below `least` or NaN.

    Raises:
        InputError: `least` is not in [0, 1].
    """
    if not isinstance(least, Real) or not 0 <= least <= 1:
        raise InputError(must_be("min_confidence", "a number in [0, 1]", repr(least)))
    return np.where(np.nan_to_num(confidence)[:, None] >= least, keypoints, np.nan)


def _range(name: str, values: Scores | None) -> str:
    """ "; score 0.12 … 0.87" where there are any."""
    known = np.empty(0) if values is None else values[~np.isnan(values)]
    return f"; {name} {known.min():.2f} … {known.max():.2f}" if len(known) else ""


@dataclass(frozen=True, eq=False)
class MatchResult(Match):
    """A KBC answer and how it came about.

    Attributes:
        coarse: (N, 2) what the matcher said on the whole images.
        confidence: (N,) in [0, 1]: how likely a point lies within a tenth of the object's size of the right place, on
            one scale for every matcher; None where KBC did not judge (`passes=0`, the paper's rule).
        origin: N strings: "fine", "whole" (the layout of the coarse pass, without cropping), or "coarse: …" and why.
        source_window, target_window: what the best fine pass saw, the source perhaps mirrored; None without one.
        given: which boxes came from the user: subset of {"source", "target"}. With "target" the answer used knowledge
            that a figure must name.
        localizer: the strategy that found that target window.
        support: how many support points each pass was asked beside the keypoints.
        calls: pairs handed to the matcher for this answer (coarse, candidates, fine, backward).
        cost: the same in units of one plain match; images that a feature matcher shares between calls count once.
        seconds: {"coarse", "matcher", "own", "total"} wall time: in the matcher's coarse pass, in the matcher at all,
            in KBC itself, altogether. Pairs matched together share alike: each has the batch's time over their number.
        notes: what a user should know: a failed fine pass, a refused window.

    >>> import numpy as np, kbc
    >>> photo = np.zeros((40, 60, 3), np.uint8)
    >>> stays = kbc.wrap(lambda source, target, keypoints: keypoints)
    >>> stays.match([kbc.Pair(photo, photo, [[4, 5], [51, 8], [53, 33], [8, 30]])])[0]
    MatchResult(4 points: 4 whole; confidence 0.95 … 0.95; cost 1.0)
    """

    coarse: Points = field(default_factory=lambda: np.empty((0, 2)))
    confidence: Scores | None = None
    origin: tuple[Origin, ...] = ()
    source_window: Window | None = None
    target_window: Window | None = None
    given: frozenset[str] = frozenset()
    localizer: str = ""
    support: int = 0
    calls: int = 1
    cost: float = 1.0
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        origins = ", ".join(f"{count} {origin}" for origin, count in Counter(self.origin).most_common())
        confidence = _range("confidence", self.confidence)
        return f"MatchResult({counted(len(self.keypoints), 'point')}: {origins}{confidence}; cost {self.cost:.1f})"

    def at_least(self, min_confidence: float) -> MatchResult:
        """The same answer with NaN for the points that are less sure than this; their confidence stays.

        Raises:
            InputError: not in [0, 1], or an answer without confidence.

        >>> import numpy as np, kbc
        >>> photo = np.zeros((40, 60, 3), np.uint8)
        >>> pair = kbc.Pair(photo, photo, [[4, 5], [51, 8]])
        >>> kbc.wrap(lambda source, target, points: points).match([pair])[0].at_least(1.0).keypoints
        array([[nan, nan],
               [nan, nan]])
        """
        if self.confidence is None:
            hint = "a plain matcher, passes=0 and the paper's rule do not tell how sure a point is"
            raise InputError(must_be("at_least", "asked of a result with confidence", "one without", hint))
        return replace(self, keypoints=sure_points(self.keypoints, self.confidence, min_confidence))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data: undefined coordinates are None."""

        def rows(points: Points) -> list[list[float] | None]:
            return [None if np.isnan(p).any() else [float(p[0]), float(p[1])] for p in points]

        def window(w: Window | None) -> dict[str, Any] | None:
            if w is None:
                return None
            return {"box_xyxy": list(w.box.xyxy), "size_hw": list(w.size_hw), "mirrored": w.mirrored}

        def values(scores: Scores | None) -> list[float | None] | None:
            return None if scores is None else [None if np.isnan(s) else float(s) for s in scores]

        return {
            "keypoints": rows(self.keypoints),
            "score": values(self.score),
            "coarse": rows(self.coarse),
            "confidence": values(self.confidence),
            "origin": list(self.origin),
            "source_window": window(self.source_window),
            "target_window": window(self.target_window),
            "given": sorted(self.given),
            "localizer": self.localizer,
            "support": self.support,
            "calls": self.calls,
            "cost": self.cost,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }
