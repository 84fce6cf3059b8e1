"""KBC around a matcher: coarse pass → windows → fine passes, combined → accept, or keep the coarse answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from kbc.config import KBCConfig, make_config
from kbc.cropping import FEW, image_hw, is_small, window_around, with_context
from kbc.errors import InputError, must_be
from kbc.geometry import Box, Points, defined
from kbc.images import ImageLike
from kbc.judge import WHOLE, Attempt, Judge, best_first
from kbc.localize import LOCALIZERS, Candidate, Case, Look, Probe, Request, distinct
from kbc.matcher import Matcher, as_matcher, matcher_name
from kbc.types import Kept, MatchResult, Pair, Scores

Progress = Callable[[int, int], None]
"""Called with (pairs done, pairs in all)."""

STABLE = 0.9
"""A further pass ends the iteration when its window overlaps the last one by more than this (IoU)."""


class KBCMatcher:
    """A matcher with KBC around it; itself a matcher. Built by `wrap`."""

    def __init__(self, matcher: Matcher, config: KBCConfig) -> None:
        self.matcher = matcher
        self.config = config
        self.name = f"{matcher_name(matcher)}+kbc"
        self.max_batch = config.batch_size

    def __call__(
        self,
        source: ImageLike,
        target: ImageLike,
        keypoints: object,
        source_box: Box | tuple[float, float, float, float] | None = None,
        target_box: Box | tuple[float, float, float, float] | None = None,
    ) -> Points:
        """Answers (N, 2) in the target's pixels; see `Pair` for the arguments and `match` for what happened."""
        return self.match([Pair(source, target, keypoints, source_box, target_box)])[0].keypoints

    def match(self, pairs: Sequence[Pair], progress: Progress | bool | None = None) -> list[MatchResult]:
        """Match pairs, `batch_size` at a time; a batch gives what pair by pair gives.

        Args:
            pairs: what to match.
            progress: called with (done, all) after each batch; True shows a tqdm bar where tqdm is installed.

        Raises:
            InputError: something in `pairs` is not a `Pair`, or has no keypoints.
            MatcherError: the coarse pass failed. A failed fine pass keeps the coarse answer and leaves a note.
        """
        if isinstance(pairs, Pair):
            raise InputError(must_be("pairs", "a sequence of kbc.Pair", "one Pair", "write match([pair])[0]"))
        for pair in pairs:
            if not isinstance(pair, Pair):
                raise InputError(must_be("pairs", "a sequence of kbc.Pair", type(pair).__name__))
            if len(pair.keypoints) == 0:
                raise InputError(must_be("keypoints", "at least one point", "shape (0, 2)"))
            if self.config.localizer == "given" and pair.target_box is None:
                raise InputError(must_be("target_box", "given in every pair when localizer='given'", None))
        report = _reporter(progress, len(pairs))
        results: list[MatchResult] = []
        for start in range(0, len(pairs), self.config.batch_size):
            results += self._batch(pairs[start : start + self.config.batch_size])
            report(len(results), len(pairs))
        return results

    def _batch(self, pairs: Sequence[Pair]) -> list[MatchResult]:
        config, probe = self.config, Probe(self.matcher, self.config)
        clock = [time.perf_counter()]
        plain = config.passes == 0 or config.localizer == "predicted"  # the matcher or the paper's rule, as they are
        seen = [pair if plain else with_context(pair) for pair in pairs]
        asked = [len(pair.keypoints) for pair in pairs]
        cases = [self._case(*about, probe) for about in zip(seen, asked, probe.whole(seen), strict=True)]
        clock.append(time.perf_counter())
        active = [case for case in cases if config.passes > 0 and case.known.any()]
        candidates = dict(zip(map(id, active), self._candidates(active, probe), strict=True))
        clock.append(time.perf_counter())
        cropped = [case for case in active if candidates[id(case)]]
        judge = Judge(probe)
        bars = judge.bars(cropped)
        attempts = self._attempts(cropped, candidates, judge)
        for _ in range(config.passes - 1):
            if not self._once_more(cropped, attempts, judge):
                break
        settled, refused = judge.settle(cropped, attempts, bars)
        clock.append(time.perf_counter())
        parts = [(b - a) / len(pairs) for a, b in pairwise(clock)]
        seconds = dict(zip(("coarse", "localize", "fine"), parts, strict=True)) | {"total": sum(parts)}
        return [
            self._result(case, settled.get(id(case)), self._why_coarse(case, candidates, refused), seconds)
            for case in cases
        ]

    def _case(self, pair: Pair, count: int, look: Look, probe: Probe) -> Case:
        source_hw, target_hw = image_hw(pair.source), image_hw(pair.target)
        box = pair.source_box or Box.around(pair.keypoints) or Box.whole(source_hw)
        window = window_around(box.clipped(source_hw), source_hw, probe.size_hw, self.config)
        asked = defined(pair.keypoints)
        known = asked & window.shows(pair.keypoints)
        seen = Look(look.match, None if look.maps is None else look.maps[known[asked]])
        case = Case(pair, count, known, window, seen)
        if len(pair.keypoints) > count and pair.source_box is None:
            case.notes.append(
                f"fewer than {FEW} points do not show how large their object is: "
                f"{box.longest:.0f} px around them were taken for it; `source_box` tells it"
            )
        case.seen = {("source", Box.whole(source_hw), False), ("target", Box.whole(target_hw), 1)}
        return case

    def _candidates(self, cases: Sequence[Case], probe: Probe) -> list[list[Candidate]]:
        """Candidates of each case, none where neither object is small."""
        config = self.config
        strategy = LOCALIZERS[config.localizer]
        found: list[list[Candidate]] = [[] for _ in cases]
        small = []
        for index, case in enumerate(cases):
            if case.pair.target_box is not None:
                found[index] = LOCALIZERS["given"]([case], probe)[0]
            elif self._source_is_small(case) or self._target_seems_small(case, probe):
                small.append(index)
        for index, candidates in zip(small, strategy([cases[i] for i in small], probe), strict=True):
            found[index] = candidates or self._fallback(cases[index], probe)
        return [
            [c for c in candidates if self._source_is_small(case) or is_small(c.box, case.target_hw, config)]
            for case, candidates in zip(cases, found, strict=True)
        ]

    def _fallback(self, case: Case, probe: Probe) -> list[Candidate]:
        """What costs nothing, where the strategy asked for found nothing (no maps, no budget, too few points)."""
        for name in ("consensus", "predicted"):
            found = LOCALIZERS[name]([case], probe)[0]
            if found:
                case.notes.append(f"{self.config.localizer!r} found no window within its budget; {name!r} was used")
                return found
        return []

    def _source_is_small(self, case: Case) -> bool:
        source_hw = image_hw(case.pair.source)
        box = case.pair.source_box or Box.around(case.points)
        return box is not None and is_small(box, source_hw, self.config)

    def _target_seems_small(self, case: Case, probe: Probe) -> bool:
        candidates = LOCALIZERS["consensus"]([case], probe)[0] or LOCALIZERS["predicted"]([case], probe)[0]
        return bool(candidates) and is_small(candidates[0].box, case.target_hw, self.config)

    def _attempts(
        self, cases: Sequence[Case], candidates: dict[int, list[Candidate]], judge: Judge
    ) -> dict[int, list[Attempt]]:
        """The first fine passes of each case that has any, the best first."""
        requests: list[Request] = []
        for case in cases:
            found = distinct(candidates[id(case)], case, judge.probe)
            looks = [Request(case, case.source, window, candidate.found_by) for candidate, window in found]
            requests += judge.affordable(looks, spare=judge.probe.further + judge.back_price)  # for one more pass
        return judge.attempts(requests)

    def _once_more(self, cases: Sequence[Case], attempts: dict[int, list[Attempt]], judge: Judge) -> bool:
        """One more pass from the best answers, where it is affordable and new; False when there is none.

        The source mirrored where the answers are in doubt, and a window around the answers where that moves it.
        """
        requests: list[Request] = []
        for case in cases:
            found = attempts.get(id(case))
            box = None if found is None else Box.around(found[0].points)
            if found is None or box is None:
                continue
            last = found[0]
            looks = [Request(case, last.source.mirror(), last.window, last.found_by)] if judge.doubts(last) else []
            window = window_around(box.clipped(case.target_hw), case.target_hw, judge.probe.size_hw, self.config)
            if window.box.iou(last.window.box) <= STABLE:
                looks.append(Request(case, last.source, window, last.found_by))
            requests += judge.affordable([r for r in looks if (r.source, r.target) not in case.looked])
        for key, more in judge.attempts(requests).items():
            attempts[key] = best_first(attempts[key] + more)
        return bool(requests)

    def _why_coarse(self, case: Case, candidates: dict[int, list[Candidate]], refused: set[int]) -> Kept:
        """Why a case without an accepted attempt keeps its coarse answer."""
        if self.config.passes == 0:
            return "coarse: off"
        if id(case) in refused:
            return "coarse: refused"
        if candidates.get(id(case)):
            return "coarse: failed"
        return "coarse: no window" if self._source_is_small(case) else "coarse: not small"

    def _result(self, case: Case, attempt: Attempt | None, otherwise: Kept, seconds: dict[str, float]) -> MatchResult:
        coarse, score = case.whole.match.keypoints, case.whole.match.score
        points, count = coarse.copy(), case.asked
        kept: list[Kept] = [otherwise if asked else "undefined" for asked in defined(case.pair.keypoints)]
        if attempt is not None:
            points, kept, score = self._merged(case, attempt)
        given = {"source"} if case.pair.source_box is not None else set()
        if attempt is not None and attempt.found_by == "given":
            given.add("target")
        cropped = attempt is not None and attempt.found_by != WHOLE
        return MatchResult(
            points[:count],
            None if score is None else score[:count],
            coarse=coarse[:count],
            kept=tuple(kept[:count]),
            source_window=attempt.source if attempt is not None and cropped else None,
            target_window=attempt.window if attempt is not None and cropped else None,
            given=frozenset(given),
            localizer=attempt.found_by if attempt else self.config.localizer,
            calls=case.calls,
            cost=case.cost,
            seconds=dict(seconds),
            notes=tuple(case.notes),
        )

    def _merged(self, case: Case, attempt: Attempt) -> tuple[Points, list[Kept], Scores | None]:
        """Fine answers where they are sound, coarse ones elsewhere."""
        points = case.whole.match.keypoints.copy()
        inside = attempt.window.shows(attempt.points)
        kept: list[Kept] = ["coarse: outside" if asked else "undefined" for asked in defined(case.pair.keypoints)]
        coarse_score, score = case.whole.match.score, None
        if attempt.confidence is not None:
            score = np.full(len(points), np.nan) if coarse_score is None else coarse_score.copy()
        for index, place in enumerate(np.flatnonzero(case.known)):
            if inside[index]:
                points[place] = attempt.points[index]
                kept[place] = "whole" if attempt.found_by == WHOLE else "fine"
                if score is not None and attempt.confidence is not None:
                    score[place] = attempt.confidence[index]
            elif np.isnan(attempt.points[index]).any():
                kept[place] = "coarse: failed"
        return points, kept, score


def wrap(matcher: Matcher | Callable[..., Any], config: KBCConfig | None = None, **options: Any) -> KBCMatcher:
    """Put KBC around a matcher.

    Args:
        matcher: a `Matcher`, or a function `f(source, target, keypoints) -> keypoints` on uint8 RGB images and (N, 2)
            points (`as_matcher` takes other signatures).
        config: a `KBCConfig`; defaults otherwise.
        options: fields of `KBCConfig` to change, e.g. `budget="thorough"`.

    Returns:
        A matcher: `.match(pairs)`, or called directly, `wrapped(source, target, keypoints) -> (N, 2)`.

    Raises:
        InputError: not a matcher, an unknown option or a value out of range.

    >>> import numpy as np, kbc
    >>> wrapped = kbc.wrap(lambda source, target, keypoints: keypoints)
    >>> image = np.zeros((40, 60, 3), np.uint8)
    >>> wrapped(image, image, [[10, 20], [14, 22]]).round(6)
    array([[10., 20.],
           [14., 22.]])
    """
    settings = make_config(config, options)
    if isinstance(matcher, KBCMatcher):
        return KBCMatcher(matcher.matcher, settings)
    if hasattr(matcher, "match"):
        return KBCMatcher(matcher, settings)
    if callable(matcher):
        return KBCMatcher(as_matcher(matcher), settings)
    raise InputError(must_be("matcher", "a Matcher or a function", type(matcher).__name__))


def _reporter(progress: Progress | bool | None, total: int) -> Progress:
    if callable(progress):
        return progress
    if not progress:
        return lambda done, of: None
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return lambda done, of: None
    bar = tqdm(total=total, unit="pair")

    def update(done: int, of: int) -> None:
        bar.update(done - bar.n)
        if done >= of:
            bar.close()

    return update
