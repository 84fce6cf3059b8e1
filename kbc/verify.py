"""What fine passes are worth, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kbc import layout
from kbc.geometry import Points
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
        confidence: (S,) how likely each lies within a tenth of the object's size of the right place, [0, 1].
    """

    points: Points
    confidence: Scores


def together(
    states: Sequence[PairState], passes: Sequence[Sequence[FinePass]], tuning: Tuning, refused: Sequence[bool] = ()
) -> list[Answer]:
    """Where the points lie by all passes of each pair, the best first, one layout through all of them.

    Passes from the other side of the mirror have no say, for left would mix with right, nor have those far below the
    best.

    Args:
        refused: of which pairs the matcher's own coarse answers are kept, though; for the confidence. None by default.
    """
    heard = [[p for p in found if _heard(p, found[0], tuning)] for found in passes]
    several = [i for i, found in enumerate(heard) if len(found) > 1]
    fitted = [found[0].fitted for found in heard]  # one pass alone has its layout already
    for i, one in zip(several, _fitted([states[i] for i in several], [heard[i] for i in several], tuning), strict=True):
        fitted[i] = one
    kept = list(refused) or [False] * len(states)
    return [
        _answer(state, found, one, was_kept, tuning)
        for state, found, one, was_kept in zip(states, heard, fitted, kept, strict=True)
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


def _answer(
    state: PairState, passes: Sequence[FinePass], fitted: layout.Layout, refused: bool, tuning: Tuning
) -> Answer:
    _, answers, share = stacked_answers([state], [[p.seen for p in passes]])
    points, right = layout.place(fitted, answers, share, tuning)
    off = (answers[:, :, 0, 0] - points).norm(dim=-1) / fitted.size
    agrees = torch.where(share[:, :, 0, 0] > 0, torch.exp(-0.5 * (off / 0.1).square()), 0.0)
    confidence = _confidence(right, float(fitted.evidence.amax()), agrees, refused, tuning)
    return Answer(points[0].numpy(), confidence[0].numpy())


def _heard(one: FinePass, best: FinePass, tuning: Tuning) -> bool:
    return one.mirrored == best.mirrored and one.worth(tuning) > best.worth(tuning) - tuning.heard


def _confidence(right: Tensor, evidence: float, agrees: Tensor, refused: bool, tuning: Tuning) -> Tensor:
    """Logistic regression on what the layout knows of a point and of its pair; coefficients in `Tuning.calibration`."""
    offset, by_right, by_evidence, by_refusal, by_agreement = tuning.calibration
    sure = torch.logit(right.clamp(1e-3, 1 - 1e-3)) / 3
    return torch.sigmoid(
        offset + by_right * sure + by_evidence * evidence + by_refusal * refused + by_agreement * agrees
    )


def _cells(seen: Sequence[Sequence[Observation]]) -> Tensor:
    """(B, P) target pixels a cell of the matcher covers in each pass of each pair, 0 where there is none."""
    cell = torch.zeros(len(seen), max(map(len, seen)), dtype=torch.float64)
    for i, found in enumerate(seen):
        cell[i, : len(found)] = torch.tensor([one.cell for one in found])
    return cell


def _searched_area(states: Sequence[PairState], seen: Sequence[Observation]) -> list[float]:
    """Pixels squared of the target that each pass searched: 0 for windows, which are cut around the object."""
    return [
        one.target.box.area if one.target.box == state.whole[1].box else 0.0
        for state, one in zip(states, seen, strict=True)
    ]
