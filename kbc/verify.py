"""What fine passes are worth, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kbc import layout
from kbc.confidence import clues, confidence
from kbc.geometry import Points, in_one_line, in_one_place, outside
from kbc.localize import agreed, stacked_answers
from kbc.probe import Observation, PairState
from kbc.tuning import Tuning
from kbc.types import Scores


@dataclass(frozen=True, eq=False)
class FinePass:
    """One pass and the layout that its answers agree on.

    Attributes:
        seen: what the matcher said.
        found_by: the strategy whose window it is.
        evidence: log likelihood of the answers against answers anywhere, nats a point: the same scale for every
            matcher and window.
        mirrored: whether the layout lies mirrored in the target.
        points: (S, 2) the layout, target pixels.
        fitted: the layout as it was fitted, batched over this one pair.
        start: the transform that it was fitted from.
    """

    seen: Observation
    found_by: str
    evidence: float
    mirrored: bool
    points: Points
    fitted: layout.Layout | None
    start: layout.Similarity | None

    def worth(self, tuning: Tuning) -> float:
        """Compares the passes of a pair, whatever their windows."""
        return self.evidence - (tuning.mirror_penalty if self.mirrored else 0.0)


def judge(
    states: Sequence[PairState], seen: Sequence[Observation], found_by: Sequence[str], tuning: Tuning
) -> list[FinePass]:
    """Each observation with the layout that its answers agree on."""
    if not states:
        return []
    source, answers, share = stacked_answers(states, [[one] for one in seen])
    starts = agreed(states, seen, _searched_area(states, seen), tuning)[:, 0]
    cell = _cells([[one] for one in seen])
    fitted = layout.fit(source, answers, share, starts, cell, tuning)
    return [
        FinePass(
            one,
            name,
            float(fitted.evidence[i, 0]),
            bool(fitted.mirrored[i]),
            fitted.points[i, : len(state.points)].numpy(),
            fitted.one(i, len(state.points), 1),
            starts[i : i + 1],
        )
        for i, (state, one, name) in enumerate(zip(states, seen, found_by, strict=True))
    ]


@dataclass(frozen=True, eq=False)
class Answer:
    """What the passes of a pair say together.

    Attributes:
        points: (S, 2) target pixels.
        size: of the object in the target, pixels.
        heard: the passes that said it.
        confidence: (S,) how likely each lies within a tenth of the object's size of the right place, [0, 1]; NaN
            before it is asked for (`assured`).
        clues: (S, F) what that was read from, see `kbc.confidence`.
    """

    points: Points
    size: float
    heard: Sequence[FinePass]
    confidence: Scores
    clues: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))


def together(states: Sequence[PairState], passes: Sequence[Sequence[FinePass]], tuning: Tuning) -> list[Answer]:
    """Where the points lie by all passes of each pair, the best first, one layout through all of them.

    Passes from the other side of the mirror have no say, for left would mix with right, nor have those far below the
    best, nor a little below it where they looked from the other side.
    """
    heard = [[p for p in found if _heard(p, found[0], tuning)] for found in passes]
    several = [i for i, found in enumerate(heard) if len(found) > 1]
    fitted = [found[0].fitted for found in heard]  # one pass alone has its layout already
    for i, one in zip(several, _fitted([states[i] for i in several], [heard[i] for i in several], tuning), strict=True):
        fitted[i] = one
    return [
        _answer(state, found, one, tuning)
        for state, found, one in zip(states, heard, fitted, strict=True)
        if one is not None
    ]


def _fitted(states: Sequence[PairState], passes: Sequence[Sequence[FinePass]], tuning: Tuning) -> list[layout.Layout]:
    """One layout through all passes of each pair, from where the best starts."""
    if not states:
        return []
    seen = [[p.seen for p in found] for found in passes]
    source, answers, share = stacked_answers(states, seen)
    starts = layout.joined([found[0].start for found in passes if found[0].start is not None])
    fitted = layout.fit(source, answers, share, starts, _cells(seen), tuning)
    return [
        fitted.one(i, len(state.points), len(found))
        for i, (state, found) in enumerate(zip(states, passes, strict=True))
    ]


def _answer(state: PairState, passes: Sequence[FinePass], fitted: layout.Layout, tuning: Tuning) -> Answer:
    _, answers, share = stacked_answers([state], [[p.seen for p in passes]])
    points = layout.place(fitted, answers, share, tuning)[0].numpy()
    return Answer(points, float(fitted.size), passes, np.full(len(points), np.nan))


def assured(
    state: PairState, answer: Answer, back: Sequence[Points], refused: Sequence[FinePass], tuning: Tuning
) -> Answer:
    """The answer with its confidence.

    Args:
        state, answer: the pair and what its passes say.
        back: where the matcher finds each answer (S, 2) in the source.
        refused: passes that say otherwise, and were refused for it.
        tuning: the constants.
    """
    heard = [*answer.heard, *refused]
    found = clues(state, answer.points, answer.size, [p.seen for p in heard], [p.points for p in heard], back)
    asked = np.where(state.usable[:, None], state.points, np.nan)
    # One place, or one line, tells nothing and agrees with itself.
    told = not all(in_one_place(asked, p.seen.own) or in_one_line(asked, p.seen.own) for p in heard)
    given = answer.points[: len(state.known)][state.known]
    told &= not len(given) or not outside(given, state.target_hw).all()  # nor do places that the target does not have
    return replace(answer, confidence=told * confidence(found, len(back) > 0, tuning), clues=found)


def _heard(one: FinePass, best: FinePass, tuning: Tuning) -> bool:
    """Whether a pass has a say beside the best one."""
    faces_alike = one.seen.source.mirrored == best.mirrored
    least = best.worth(tuning) - (tuning.heard if faces_alike else tuning.heard_mirrored)
    return one is best or (one.mirrored == best.mirrored and one.worth(tuning) > least)


def _cells(seen: Sequence[Sequence[Observation]]) -> Tensor:
    """(B, P) target pixels a cell of the matcher covers in each pass of each pair, 0 where there is none."""
    cell = np.zeros((len(seen), max(map(len, seen))))
    for row, found in zip(cell, seen, strict=True):
        row[: len(found)] = [one.cell for one in found]
    return torch.from_numpy(cell)


def _searched_area(states: Sequence[PairState], seen: Sequence[Observation]) -> list[float]:
    """Pixels squared of the target that each pass searched: 0 for windows, which are cut around the object."""
    return [
        one.target.box.area if one.target.box == state.whole[1].box else 0.0
        for state, one in zip(states, seen, strict=True)
    ]
