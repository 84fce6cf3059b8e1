"""What several exemplars say together: which of them speak of the same object, and where its points lie.

Pure functions on arrays. E exemplars answered for the N points of one category, which were joined by name before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kbc.geometry import Box, Points, defined
from kbc.types import Scores

SAME_OBJECT_IOU = 0.3
"""Answers whose boxes overlap more than this speak of one object. 0.1 to 0.5 give the same accuracy within a point."""
REACH = 0.1
"""How far apart two exemplars' answers may lie and still support each other, fraction of the object's size."""
BY_SHARE, BY_NUMBER = 3.5, 0.9
"""What agreement adds to the log odds of the surest answer, see `combined`. Fitted on 220 pictures of six sets;
tried again with `tests/benchmarks/combine.py` since the confidence changed: `examples/results/decisions.md`."""
_LEAST = 1e-3


@dataclass(frozen=True, eq=False)
class Answers:
    """Where E exemplars say that the points of an object lie in one picture.

    Attributes:
        points: (E, N, 2) target pixels, NaN where an exemplar says nothing.
        confidence: (E, N) in [0, 1], NaN or 0 where it says nothing.
        size: (E,) of the object, the longer side of its box, target pixels.
    """

    points: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]
    size: npt.NDArray[np.float64]

    @property
    def sure(self) -> npt.NDArray[np.float64]:
        """(E, N) the confidence, 0 where there is no answer."""
        return np.where(defined(self.points), np.nan_to_num(self.confidence), 0.0)


def by_name(names: Sequence[str], given: Sequence[str], values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rows of `values` (M, …), called `given`, in the order of `names`; NaN where a name is not among them.

    >>> import numpy as np
    >>> by_name(["nose", "tail", "ear"], ["tail", "nose"], np.array([1.0, 2.0]))
    array([ 2.,  1., nan])
    """
    found = np.full((len(names), *values.shape[1:]), np.nan)
    for place, name in enumerate(names):
        if name in given:
            found[place] = values[list(given).index(name)]
    return found


def object_box(points: Points, size: float) -> Box | None:
    """The box of an object in a picture: its points' extent, but no thinner than a tenth of its size.

    Points that cover less than half of the object's size do not show its extent; it is a square of that size then.

    Args:
        points: (N, 2) target pixels.
        size: of the object, pixels.
    """
    box = Box.around(points)
    if box is None:
        return None
    least = size if box.longest < size / 2 else 0.1 * max(box.longest, size, 1.0)
    return Box.centered(box.center, max(box.width, least), max(box.height, least))


def objects(answers: Answers) -> list[npt.NDArray[np.intp]]:
    """Which exemplars speak of the same object: groups of their indices, the one with most confidence first.

    Exemplars that give no point are in no group. Every group's members overlap with one of them, the best supported.
    """
    drawn = (object_box(points, size) for points, size in zip(answers.points, answers.size, strict=True))
    boxes = {index: box for index, box in enumerate(drawn) if box is not None}
    left = list(boxes)
    weight = answers.sure.mean(axis=1)
    found = []
    while left:
        overlaps = {i: [j for j in left if j == i or boxes[i].iou(boxes[j]) > SAME_OBJECT_IOU] for i in left}
        best = max(left, key=lambda i: (weight[overlaps[i]].sum(), -i))
        found.append(np.array(overlaps[best]))
        left = [index for index in left if index not in overlaps[best]]
    return sorted(found, key=lambda group: -weight[group].sum())


def combined(answers: Answers, group: npt.NDArray[np.intp]) -> tuple[Points, Scores, float]:
    """The points of one object by all exemplars that speak of it.

    Each point is where most confidence meets: the mean, weighted by the square of the confidence, of the answers
    around the best supported one. Its confidence is that of the surest of them, its odds changed by the share of all
    exemplars' confidence that lies there and by the number of exemplars asked; a single exemplar's stays as it is.

    Args:
        answers: of all exemplars.
        group: indices of those that speak of this object.

    Returns:
        Points (N, 2), NaN where none of them has an answer; confidence (N,) in [0, 1]; the object's size in pixels.
    """
    sure = answers.sure
    weight = sure[group].mean(axis=1) + 1e-9
    size = float(np.average(answers.size[group], weights=weight))
    points = np.full(answers.points.shape[1:], np.nan)
    confidence = np.zeros(len(points))
    for index in range(len(points)):
        answering = group[defined(answers.points[group, index])]
        if len(answering) == 0:
            continue
        places, certainty = answers.points[answering, index], sure[answering, index]
        weights = certainty**2 + 1e-9
        points[index] = _mean_shift(places, weights, REACH * size)
        support = _gaussian(places, points[index], REACH * size)
        share = float((support * weights).sum() / ((sure[:, index] ** 2).sum() + 1e-9 * len(sure)))
        surest = float(np.clip((support * certainty).max(), _LEAST, 1 - _LEAST))
        asked = int(np.count_nonzero(sure[:, index] > 0)) or 1
        odds = np.log(surest / (1 - surest)) + BY_SHARE * (min(share, 1.0) - 1) + BY_NUMBER * np.log(asked)
        confidence[index] = 1 / (1 + np.exp(-odds))
    return points, confidence, size


def _gaussian(places: Points, point: Points, deviation: float) -> npt.NDArray[np.float64]:
    """How much (K, 2) places support a point (2,), [0, 1]."""
    away = np.linalg.norm(places - point, axis=1)
    return np.asarray(np.exp(-0.5 * (away / max(deviation, 1e-9)) ** 2))


def _mean_shift(places: Points, weights: npt.NDArray[np.float64], deviation: float) -> Points:
    """The mode of places (K, 2) of some weight (K,), from the best supported of them."""
    support = [float((_gaussian(places, place, deviation) * weights).sum()) for place in places]
    point: Points = places[int(np.argmax(support))]
    for _ in range(4):
        near = _gaussian(places, point, deviation) * weights
        point = (places * near[:, None]).sum(axis=0) / near.sum()
    return point
