"""How likely a point is right: logistic regression on what all passes of its pair show, the same for every matcher.

A matcher's score has a scale of its own, and one that smooths its answers (by votes, by a decoder) agrees with itself
where it is wrong. What means the same for all is how its answers change when it looks again through another window, or
back from the target: a right answer stays where it is. Looking back costs a matcher that shares features nothing, for
both images are encoded; any other would pay a whole match, is not asked, and has a calibration of its own. Which clues
are taken, and their weights (`Tuning.calibration`), is our choice, fitted on photographs with matchers of different
kinds and tried on sets left out: `examples/results/confidence.md`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kbc.geometry import Points
from kbc.probe import Observation, PairState
from kbc.tuning import Tuning
from kbc.types import Scores

CLUES = ("neighbours", "spread", "alone", "own", "share", "bare")
"""What `clues` gives of each point, in this order."""
REACH, CLOSE = 0.1, 0.05
"""How near to the answer a place counts as the same, a neighbour's and the point's own; fractions of the object's size,
a Gaussian's deviation."""
NEIGHBOURS = 0.15
"""How near a neighbour is, fraction of the object's size in the source; a Gaussian's deviation."""
FAR = 0.5
"""A layout that lies further away than this, in object sizes, is simply elsewhere."""

_F = npt.NDArray[np.float64]


def confidence(found: _F, looked_back: bool, tuning: Tuning) -> Scores:
    """Clues (S, F) as the probability (S,) that a point lies within a tenth of the object's size of the right place."""
    offset, *weights = tuning.calibration if looked_back else tuning.calibration_forward
    return np.asarray(1 / (1 + np.exp(-(offset + found @ np.array(weights)))))


def clues(
    state: PairState,
    points: Points,
    size: float,
    heard: Sequence[Observation],
    layouts: Sequence[Points],
    back: Sequence[Points] = (),
) -> _F:
    """What speaks for each point, (S, F) by the order of `CLUES`; all of it without unit.

    - neighbours: the share of the points around from whose answers the matcher finds back to them; where it was not
      asked, the share of their places that lies where the answer puts them.
    - spread: how far single passes' own layouts lie from the answer, mean over the passes, in object sizes.
    - alone: 1 where a single pass speaks, else 0.
    - own: the share of the point's own places that lies at the answer.
    - share: log of the object's size, as a fraction of the target's longer side.
    - bare: 1 where the matcher names one place a point, and shows no similarity among which others could be, else 0.

    Args:
        state: the pair; its S points are what was asked.
        points: (S, 2) the answer, target pixels.
        size: of the object in the target, pixels.
        heard: the passes that speak for and against it, P of them.
        layouts: P times (S, 2), where each pass alone would put the points.
        back: where the matcher finds each answer in the source, (S, 2) source pixels, through the windows of passes;
            none where it was not asked.
    """
    size = max(size, 1e-6)
    away = np.linalg.norm(np.stack(layouts) - points, axis=2) / size
    alone = len(heard) == 1
    if back:
        found = np.stack(back) - state.points
        around = _gaussian(np.square(found).sum(axis=2) / (REACH * _extent(state)) ** 2).mean(axis=0)
    else:
        around = np.mean([_near(seen, points, REACH * size) for seen in heard], axis=0)
    return np.stack(
        [
            _neighbours(state) @ around,
            np.minimum(np.nan_to_num(away, nan=FAR), FAR).mean(axis=0),
            np.full(len(points), float(alone)),
            np.mean([_near(seen, points, CLOSE * size) for seen in heard], axis=0),
            np.full(len(points), np.log(size / max(state.target_hw))),
            np.full(len(points), float(heard[0].share.shape[1] == 1)),
        ],
        axis=1,
    )


def _near(seen: Observation, points: Points, reach: float) -> _F:
    """(S,) the share of a pass's places for each point that lies at `points`, [0, 1]."""
    away = np.square(seen.answers - points[:, None]).sum(axis=2) / reach**2
    return np.asarray((seen.share * _gaussian(away)).sum(axis=1))


def _gaussian(squared: _F) -> _F:
    """How near a squared distance, in deviations, is: 1 … 0; 0 for NaN."""
    return np.asarray(np.exp(-0.5 * np.nan_to_num(squared, nan=np.inf)))


def _extent(state: PairState) -> float:
    """Longer side of the box of the usable points, source pixels; 1 where there is none."""
    return max(float(np.ptp(state.points[state.usable], axis=0).max()), 1e-6) if state.usable.any() else 1.0


def _neighbours(state: PairState) -> _F:
    """(S, S) how much each usable point is a neighbour of another, rows summing to 1, or 0 where there is none."""
    there = np.where(state.usable[:, None], state.points, 0.0)
    squared = np.square(there[:, None] - there[None]).sum(axis=2) / (NEIGHBOURS * _extent(state)) ** 2
    weight = _gaussian(squared) * state.usable[None]
    np.fill_diagonal(weight, 0.0)
    return np.asarray(weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-9))
