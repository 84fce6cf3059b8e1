"""What a fine pass is worth: evidence for the layout, agreement with it, and the way back to the source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kbc import layout
from kbc.config import COST
from kbc.cropping import image_hw
from kbc.geometry import Points, Window, defined
from kbc.localize import SPANS, WINDOW_SPANS, Case, Look, Probe, Request
from kbc.types import Scores

CYCLE_WEIGHT = 4.0
"""What a forward-backward error of one object's size costs, against full agreement's 1. Our choice, measured."""
MIRROR_PENALTY = 0.5
"""What answers from the mirrored source must be worth more: a symmetric thing looks right either way. Measured."""
TURNS = tuple(2 * math.pi * step / 12 for step in range(12))
"""In-plane rotations of the layout within a window: what turns freely, a mouse seen from above. Measured."""
UNKNOWN = 0.85
"""Evidence of a window where the matcher shows no maps: a window gets the benefit of the doubt."""
FEWEST = 3
"""Points are chosen jointly from this many on: two can be placed anywhere by some similarity, so they tell nothing."""
WHOLE = "whole"
"""Found_by of the attempt that chooses the points jointly on the whole image, without cropping."""


@dataclass(frozen=True, eq=False)
class Attempt:
    """One set of answers and what it is worth.

    Attributes:
        source: the window of the source, perhaps mirrored.
        window: of the target.
        points: (K, 2) answers for the known keypoints, target pixels; NaN where there is none.
        confidence: (K,) or None.
        found_by: the strategy whose window it is.
        evidence: mean log evidence of the layout on the similarity maps, calibrated for the window's size.
        agreement: how well the matcher's own answers keep the source's layout, [0, 1].
        cycle: how far the answers, matched back, miss the keypoints, as a fraction of the object; 0 when not asked.
    """

    source: Window
    window: Window
    points: Points
    confidence: Scores | None
    found_by: str
    evidence: float
    agreement: float
    cycle: float = 0.0

    @property
    def soundness(self) -> float:
        """Agreement less the weighted cycle error: the same scale for any window and for the coarse answer."""
        return self.agreement - CYCLE_WEIGHT * self.cycle

    @property
    def score(self) -> float:
        """Compares the attempts of a pair, whatever their windows."""
        return self.evidence + self.soundness - (MIRROR_PENALTY if self.source.mirrored else 0.0)


class Judge:
    """Runs fine passes through a probe and says which is best and whether it beats the coarse answer."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        strategy = probe.config.localizer
        self._plain = strategy == "predicted"  # the paper's rule: no judging, no joint choice
        settled = bool(getattr(probe.matcher, "weighs_neighbours", False))
        self._mirrors = probe.config.mirror and probe.has_maps and not self._plain  # without maps little tells
        self._joint = probe.config.joint and not self._plain and not settled
        self._turns_back = not self._plain and (probe.shares or probe.limit >= COST["thorough"])
        self._whole = self._joint and probe.has_maps and strategy == "best"

    @property
    def back_price(self) -> float:
        """What matching an attempt back costs: nothing where features are shared, or where it is not done."""
        return 1.0 if self._turns_back and not self.probe.shares else 0.0

    def doubts(self, attempt: Attempt) -> bool:
        """Whether the object may face the other way: the matcher's answers do not hold up, so look mirrored."""
        return self._mirrors and attempt.soundness < 0

    def affordable(self, requests: Sequence[Request], spare: float = 0.0) -> list[Request]:
        """The requests of one case, in order, that its budget allows; all but the first must leave `spare` of it."""
        taken: list[Request] = []
        price = 0.0
        for request in requests:
            more = price + self.probe.price(request, taken) + self.back_price
            if self.probe.affords(request.case, more + (spare if taken else 0.0)):
                taken.append(request)
                price = more
        return taken

    def best(self, requests: Sequence[Request]) -> dict[int, Attempt]:
        """The best attempt of each case, by `id`."""
        seen = [
            (request, self._attempt(request, look, WINDOW_SPANS, TURNS))
            for request, look in zip(requests, self.probe.look(requests), strict=True)
            if look is not None
        ]
        return _best(self._checked(seen))

    def bars(self, cases: Sequence[Case]) -> dict[int, float]:
        """What an attempt must beat, by case `id`: the coarse answer's soundness and the margin.

        None for a given target box, which is taken as it is, and for the paper's rule, which never refuses.
        """
        competing = [] if self._plain else [case for case in cases if case.pair.target_box is None]
        before = self._checked([(self._request(case), self._coarse(case)) for case in competing])
        return {id(r.case): coarse.soundness + self.probe.config.accept_margin for r, coarse in before}

    def settle(
        self, cases: Sequence[Case], attempts: dict[int, Attempt], bars: dict[int, float]
    ) -> tuple[dict[int, Attempt], set[int]]:
        """The attempts that pass their bar, and the cases (by `id`) whose attempts do not.

        Where no window passes, the points chosen jointly on the whole image get their chance, where there are maps:
        they cost nothing. They do not compete with windows, whose evidence is finer but less concentrated.
        """
        settled = {key: attempt for key, attempt in attempts.items() if attempt.score > bars.get(key, -math.inf)}
        left = [case for case in cases if id(case) in attempts and id(case) not in settled]
        if self._whole:
            whole = [(self._request(c), self._attempt(self._request(c), c.whole, SPANS)) for c in left]
            found = _best(self._checked(whole))
            settled |= {key: attempt for key, attempt in found.items() if attempt.score > bars[key]}
        return settled, {id(case) for case in left if id(case) not in settled}

    def _attempt(
        self, request: Request, look: Look, spans: Sequence[float], turns: Sequence[float] = (0.0,)
    ) -> Attempt:
        case, source, window = request.case, request.source, request.target
        points = window.to_image(look.match.keypoints[case.known])
        confidence = None if look.match.score is None else look.match.score[case.known]
        agreement = agreement_of(case.points, points)
        if look.maps is None or self._plain:
            return Attempt(source, window, points, confidence, request.found_by, UNKNOWN, agreement)
        side = window.box.longest
        pose = layout.vote(layout.evidence(look.maps), window, case.points, [s * side for s in spans], turns=turns)[0]
        # Evidence is measured against a uniform map of the window: a wider window gains by being wider.
        evidence = pose.score + math.log(pose.span / side)
        if self._joint and len(case.points) >= FEWEST:
            points, confidence = layout.choose(look.maps, window, pose)
        return Attempt(source, window, points, confidence, request.found_by, evidence, agreement)

    def _coarse(self, case: Case) -> Attempt:
        seen = self._request(case)
        agreement = agreement_of(case.points, case.coarse)
        return Attempt(seen.source, seen.target, case.coarse, None, WHOLE, 0.0, agreement)

    def _request(self, case: Case) -> Request:
        return Request(case, Window.whole(image_hw(case.pair.source)), Window.whole(case.target_hw), WHOLE)

    def _checked(self, seen: list[tuple[Request, Attempt]]) -> list[tuple[Request, Attempt]]:
        """The attempts with their cycle errors, where those are asked for and affordable."""
        if not self._turns_back:
            return seen
        returned = self.probe.back([request for request, _ in seen], [attempt.points for _, attempt in seen])
        return [
            (request, replace(attempt, cycle=cycle_error(request.case.points, back)))
            for (request, attempt), back in zip(seen, returned, strict=True)
        ]


def _best(seen: Sequence[tuple[Request, Attempt]]) -> dict[int, Attempt]:
    best: dict[int, Attempt] = {}
    for request, attempt in seen:
        key = id(request.case)
        if key not in best or attempt.score > best[key].score:
            best[key] = attempt
    return best


def agreement_of(asked: Points, answers: Points) -> float:
    """How well answers (K, 2) keep the layout of the asked points (K, 2), [0, 1]; 0.5 where too few can tell."""
    answered = defined(answers)
    if int(answered.sum()) < 3:
        return 0.5
    pose = layout.consensus(asked[answered], answers[answered])
    return 0.0 if pose is None else min(pose.score, 1.0) * float(answered.mean())


def cycle_error(points: Points, returned: Points | None) -> float:
    """Mean forward-backward error as a fraction of the layout's longer side, at most 0.5 a point; 0.5 for no answer."""
    if returned is None:
        return 0.5
    span = max(float(np.ptp(points, axis=0).max()), 1.0)
    errors = np.linalg.norm(returned - points, axis=1) / span
    return float(np.minimum(np.nan_to_num(errors, nan=0.5), 0.5).mean())
