"""What fine passes are worth, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kbc import layout
from kbc.geometry import Points
from kbc.localize import stacked_answers
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
        size: of the object in the target, pixels.
        start: the transform that it was fitted from.
    """

    seen: Observation
    found_by: str
    evidence: float
    mirrored: bool
    points: Points
    size: float
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
    area = _searched_area(states, seen)
    starts = layout.propose(source, answers[:, :, 0], share[:, :, 0], area, most=1, tuning=tuning)[:, 0]
    cell = _cells([[one] for one in seen])
    fitted = layout.fit(source, answers, share, starts, cell, tuning)
    return [
        FinePass(
            one,
            name,
            float(fitted.evidence[i, 0]),
            bool(fitted.mirrored[i]),
            fitted.points[i, : len(state.points)].numpy(),
            float(fitted.size[i]),
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
    if not states:
        return []
    heard = [[p for p in found if _heard(p, found[0], tuning)] for found in passes]
    source, answers, share = stacked_answers(states, [[p.seen for p in found] for found in heard])
    own, known = answers[:, :, 0, 0], share[:, :, 0, 0]
    starts = layout.joined([found[0].start for found in heard if found[0].start is not None])
    cell = _cells([[p.seen for p in found] for found in heard])
    fitted = layout.fit(source, answers, share, starts, cell, tuning)
    points, right = layout.place(fitted, answers, share, tuning)
    off = (own - points).norm(dim=-1) / fitted.size[:, None]
    agrees = torch.where(known > 0, torch.exp(-0.5 * (off / 0.1).square()), 0.0)
    kept = torch.tensor([list(refused) or [False] * len(states)], dtype=points.dtype).mT
    evidence = fitted.evidence.amax(1)[:, None]
    confidence = _confidence(right, evidence, agrees, kept, tuning)
    return [
        Answer(points[i, : len(state.points)].numpy(), confidence[i, : len(state.points)].numpy())
        for i, state in enumerate(states)
    ]


def _heard(one: FinePass, best: FinePass, tuning: Tuning) -> bool:
    return one.mirrored == best.mirrored and one.worth(tuning) > best.worth(tuning) - tuning.heard


def _confidence(right: Tensor, evidence: Tensor, agrees: Tensor, refused: Tensor, tuning: Tuning) -> Tensor:
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


def _searched_area(states: Sequence[PairState], seen: Sequence[Observation]) -> Tensor:
    """(B,) pixels squared of the target that each pass searched: 0 for windows, which are cut around the object."""
    whole = [one.target.box == state.whole[1].box for state, one in zip(states, seen, strict=True)]
    area = [one.target.box.area for one in seen]
    return torch.tensor(area, dtype=torch.float64) * torch.tensor(whole)
