"""What fine passes are worth: evidence for the layout, agreement with it, the way back; and what they say together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kbc import layout
from kbc.config import COST
from kbc.cropping import image_hw
from kbc.geometry import Box, Points, Window, defined
from kbc.localize import SPANS, WINDOW_SPANS, Case, Look, Probe, Request
from kbc.types import Scores

CYCLE_WEIGHT = 4.0
"""What a forward-backward error of one object's size costs, against full agreement's 1: of all points in the score, of
one point in its say. Our choice, measured."""
DOUBT = 0.5
"""An attempt whose score is this much lower has e times less say in where the points are. Our choice, measured."""
_HEARD = 4 * DOUBT  # below the best by more than this, an attempt has no say: it must not fill what the best left open
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
        misses: (K,) how far the answers, matched back, miss the keypoints; see `missed`. Zeros when not asked.
    """

    source: Window
    window: Window
    points: Points
    confidence: Scores | None
    found_by: str
    evidence: float
    agreement: float
    misses: Scores

    @property
    def cycle(self) -> float:
        """The mean forward-backward error, a fraction of the object."""
        return float(self.misses.mean())

    @property
    def soundness(self) -> float:
        """Agreement less the weighted cycle error: the same scale for any window and for the coarse answer."""
        return self.agreement - CYCLE_WEIGHT * self.cycle

    @property
    def score(self) -> float:
        """Compares the attempts of a pair, whatever their windows."""
        return self.evidence + self.soundness - (MIRROR_PENALTY if self.source.mirrored else 0.0)


class Judge:
    """Runs fine passes through a probe, says whether they beat the coarse answer and what they say together."""

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

    def attempts(self, requests: Sequence[Request]) -> dict[int, list[Attempt]]:
        """What came of the requests: the attempts of each case, by `id`, the best first."""
        seen = [
            (request, self._attempt(request, look, WINDOW_SPANS, TURNS))
            for request, look in zip(requests, self.probe.look(requests), strict=True)
            if look is not None
        ]
        found: dict[int, list[Attempt]] = {}
        for request, attempt in self._checked(seen):
            found.setdefault(id(request.case), []).append(attempt)
        return {key: best_first(tried) for key, tried in found.items()}

    def bars(self, cases: Sequence[Case]) -> dict[int, float]:
        """What an attempt must beat, by case `id`: the coarse answer's soundness and the margin.

        None for a given target box, which is taken as it is, and for the paper's rule, which never refuses.
        """
        competing = [] if self._plain else [case for case in cases if case.pair.target_box is None]
        before = self._checked([(self._request(case), self._coarse(case)) for case in competing])
        return {id(r.case): coarse.soundness + self.probe.config.accept_margin for r, coarse in before}

    def settle(
        self, cases: Sequence[Case], attempts: dict[int, list[Attempt]], bars: dict[int, float]
    ) -> tuple[dict[int, Attempt], set[int]]:
        """The answers of the cases whose best attempt passes its bar, and the cases (by `id`) whose best does not.

        Each point's answer is what all attempts say of it together (`combined`). Where no window passes, the points
        chosen jointly on the whole image get their chance, where there are maps: they cost nothing. They do not compete
        with windows, whose evidence is finer but less concentrated.
        """
        settled = {
            key: found[0] if self._plain else combined(found)
            for key, found in attempts.items()
            if found[0].score > bars.get(key, -math.inf)
        }
        left = [case for case in cases if id(case) in attempts and id(case) not in settled]
        if self._whole:
            whole = [(self._request(c), self._attempt(self._request(c), c.whole, SPANS)) for c in left]
            settled |= {id(r.case): tried for r, tried in self._checked(whole) if tried.score > bars[id(r.case)]}
        return settled, {id(case) for case in left if id(case) not in settled}

    def _attempt(
        self, request: Request, look: Look, spans: Sequence[float], turns: Sequence[float] = (0.0,)
    ) -> Attempt:
        case, source, window = request.case, request.source, request.target
        points = window.to_image(look.match.keypoints[case.known])
        confidence = None if look.match.score is None else look.match.score[case.known]
        agreement, misses = agreement_of(case.points, points), np.zeros(len(points))
        if look.maps is None or self._plain:
            return Attempt(source, window, points, confidence, request.found_by, UNKNOWN, agreement, misses)
        side = window.box.longest
        pose = layout.vote(layout.evidence(look.maps), window, case.points, [s * side for s in spans], turns=turns)[0]
        # Evidence is measured against a uniform map of the window: a wider window gains by being wider.
        evidence = pose.score + math.log(pose.span / side)
        if self._joint and len(case.points) >= FEWEST:
            points, confidence = layout.choose(look.maps, window, pose)
        return Attempt(source, window, points, confidence, request.found_by, evidence, agreement, misses)

    def _coarse(self, case: Case) -> Attempt:
        seen = self._request(case)
        agreement = agreement_of(case.points, case.coarse)
        return Attempt(seen.source, seen.target, case.coarse, None, WHOLE, 0.0, agreement, np.zeros(len(case.coarse)))

    def _request(self, case: Case) -> Request:
        return Request(case, Window.whole(image_hw(case.pair.source)), Window.whole(case.target_hw), WHOLE)

    def _checked(self, seen: list[tuple[Request, Attempt]]) -> list[tuple[Request, Attempt]]:
        """The attempts with the way back, where that is asked for and affordable."""
        if not self._turns_back:
            return seen
        returned = self.probe.back([request for request, _ in seen], [attempt.points for _, attempt in seen])
        return [
            (request, replace(attempt, misses=missed(request.case.points, back)))
            for (request, attempt), back in zip(seen, returned, strict=True)
        ]


def best_first(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Sorted by score; of equal ones the earlier first."""
    return sorted(attempts, key=lambda attempt: -attempt.score)


def combined(attempts: Sequence[Attempt]) -> Attempt:
    """The best of a case's attempts, its points moved to where the attempts, weighted by their worth, agree.

    An attempt has a say in a point where its window and the best's show its answer, less the further that answer,
    matched back, misses the keypoint; one from the other side of the mirror has none, for left would mix with right.
    Windows that cut the object differently err differently, so several are better than the best.

    Args:
        attempts: of one case, the best first.
    """
    best = attempts[0]
    heard = [a for a in attempts if a.source.mirrored == best.source.mirrored and best.score - a.score < _HEARD]
    if len(heard) == 1:
        return best
    shown = [a.window.shows(a.points) & best.window.shows(a.points) for a in heard]
    answers = np.stack([np.where(seen[:, None], a.points, np.nan) for a, seen in zip(heard, shown, strict=True)])
    say = np.stack([np.exp((a.score - best.score) / DOUBT - CYCLE_WEIGHT * a.misses) for a in heard])
    size = max(extent(best.points), best.window.box.longest / 4)  # one point, or collapsed ones, have no extent
    points, chosen = layout.combine(answers, say, layout.TOLERANCE * size)
    points = np.where(defined(points)[:, None], points, best.points)
    if any(a.confidence is None for a in heard):
        return replace(best, points=points)
    confidence = np.stack([np.asarray(a.confidence) for a in heard])
    return replace(best, points=points, confidence=confidence[chosen, np.arange(len(points))])


def agreement_of(asked: Points, answers: Points) -> float:
    """How well answers (K, 2) keep the layout of the asked points (K, 2), [0, 1]; 0.5 where too few can tell."""
    answered = defined(answers)
    if int(answered.sum()) < 3:
        return 0.5
    pose = layout.consensus(asked[answered], answers[answered])
    return 0.0 if pose is None else min(pose.score, 1.0) * float(answered.mean())


def missed(points: Points, returned: Points | None) -> Scores:
    """Forward-backward error (K,) as a fraction of the layout's longer side, at most 0.5; 0.5 for no answer."""
    if returned is None:
        return np.full(len(points), 0.5)
    errors = np.linalg.norm(returned - points, axis=1) / extent(points)
    return np.asarray(np.fmin(errors, 0.5))


def extent(points: Points) -> float:
    """The longer side of the points' box, at least 1, in pixels."""
    box = Box.around(points)
    return 1.0 if box is None else max(box.longest, 1.0)
