"""KBC around a matcher: coarse pass → windows → fine passes → one layout through them, or the coarse answer kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Unpack

import numpy as np

from kbc.config import KBCConfig, KBCOptions, make_config
from kbc.cropping import is_small, window_around
from kbc.errors import InputError, counted, must_be
from kbc.geometry import Box, Points, Window, defined, in_one_place, looks_per_cent, outside, resize_points
from kbc.images import ImageLike, fingerprint, image_hw
from kbc.localize import LOCALIZERS, Candidate
from kbc.matchers.function import to_matcher
from kbc.matchers.protocol import Matcher, matcher_name
from kbc.probe import PairState, Probe, Request
from kbc.progress import progress_bar
from kbc.support import object_box, support_points
from kbc.tuning import TUNING, Tuning
from kbc.types import MatchResult, Origin, Pair, sure_points
from kbc.verify import Answer, FinePass, assured, judge, together

Progress = Callable[[int, int], None]
"""Called with (pairs done, pairs in all)."""

MOST_FIRST = 4
"""Candidates that `thorough` looks at before it goes on from the best."""
VARIED_MARGINS = (0.1, 0.5, 0.8)
"""Margins of the windows that `thorough` adds around its best answer."""
WHOLE = "whole"
"""`found_by` of the coarse pass, where it is taken for a pass of its own."""


@dataclass(eq=False)
class _Work:
    """A pair on its way through the pipeline: what is known of it, its candidates, its passes, its answer.

    Attributes:
        whole: the coarse pass, taken for a pass of its own.
        passes: the fine ones that were not refused, the best first.
        refused: the others.
        why_coarse: `MatchResult.origin` of the points that no fine pass answers.
        answer: what the passes say together.
        points, origin: of each keypoint, as the user is told them.
    """

    state: PairState
    small_source: bool
    candidates: list[Candidate] = field(default_factory=list)
    whole: FinePass | None = None
    passes: list[FinePass] = field(default_factory=list)
    refused: list[FinePass] = field(default_factory=list)
    tried: set[tuple[Window, Window]] = field(default_factory=set)
    why_coarse: Origin = "coarse: off"
    answer: Answer | None = None
    points: Points = field(default_factory=lambda: np.empty((0, 2)))
    origin: tuple[Origin, ...] = ()


class KBCMatcher:
    """A matcher with KBC around it; itself a matcher. Built by `wrap`.

    >>> import kbc
    >>> kbc.wrap(kbc.load_matcher("hog"), budget="balanced")
    KBCMatcher(FeatureMatcher('hog', 256×256 px), localizer='best', budget='balanced')
    """

    def __init__(self, matcher: Matcher, config: KBCConfig, tuning: Tuning = TUNING) -> None:
        self.matcher = matcher
        self.config = config
        self.tuning = tuning
        self.name = f"{matcher_name(matcher)}+kbc"
        self.max_batch = config.batch_size

    def __repr__(self) -> str:
        fields = KBCConfig.model_fields
        changed = [f"{k}={v!r}" for k, v in self.config if k in ("localizer", "budget") or v != fields[k].default]
        return f"KBCMatcher({self.matcher!r}, {', '.join(changed)})"

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

    def match(self, pairs: Iterable[Pair], progress: Progress | bool | None = None) -> list[MatchResult]:
        """Match pairs, `batch_size` at a time; a batch gives what pair by pair gives.

        Args:
            pairs: what to match, in any iterable.
            progress: called with (done, all) after each batch; True shows a bar, or lines of
                text where tqdm is not installed.

        Raises:
            InputError: something in `pairs` is not a `Pair`, or has no keypoints.
            MatcherError: the coarse pass failed. A failed fine pass keeps the coarse answer and leaves a note.
        """
        if isinstance(pairs, Pair) or not isinstance(pairs, Iterable):
            hint = "write match([pair])[0] for one"
            raise InputError(must_be("pairs", "a sequence of kbc.Pair", f"one {type(pairs).__name__}", hint))
        pairs = list(pairs)
        for pair in pairs:
            if not isinstance(pair, Pair):
                raise InputError(must_be("pairs", "a sequence of kbc.Pair", type(pair).__name__))
            if len(pair.keypoints) == 0:
                raise InputError(must_be("keypoints", "at least one point", "shape (0, 2)"))
            if self.config.localizer == "given" and pair.target_box is None:
                raise InputError(must_be("target_box", "given in every pair when localizer='given'", None))
        results: list[MatchResult] = []
        with progress_bar("pair", progress is True) as bar:
            report: Progress = progress if callable(progress) else lambda done, total: bar(done, total, "")
            for start in range(0, len(pairs), self.config.batch_size):
                with np.errstate(under="ignore", over="warn", divide="warn", invalid="warn"):  # NumPy's own defaults
                    results += self._batch(pairs[start : start + self.config.batch_size])
                report(len(results), len(pairs))
        return results

    def _batch(self, pairs: Sequence[Pair]) -> list[MatchResult]:
        begun = time.perf_counter()
        probe = Probe(self.matcher, self.config, self.tuning)
        works = [self._begin(pair, probe) for pair in pairs]
        probe.coarse([work.state for work in works])
        coarse = probe.seconds / len(pairs)
        if self.config.passes > 0 and self.config.localizer == "predicted":
            self._paper(works, probe)
        elif self.config.passes > 0:
            self._localize(works, probe)
            self._refine(works, probe)
            self._refine(self._searched(works, probe), probe)
            self._accept(works)
        for work in works:
            work.points, work.origin = _chosen(work, self.config)
        if self.config.localizer != "predicted":
            self._assure(works, probe)
        total = (time.perf_counter() - begun) / len(pairs)
        matcher = probe.seconds / len(pairs)
        seconds = {"coarse": coarse, "matcher": matcher, "own": total - matcher, "total": total}
        return [_result(work, self.config, seconds) for work in works]

    def _begin(self, pair: Pair, probe: Probe) -> _Work:
        config = self.config
        source_hw = image_hw(pair.source)
        box = object_box(pair.keypoints, pair.source_box, source_hw, self.tuning).clipped(source_hw)
        window = window_around(box, source_hw, probe.size_hw, config)
        known = defined(pair.keypoints) & window.shows(pair.keypoints)
        plain = config.passes == 0 or config.localizer == "predicted"  # the matcher or the paper's rule, as they are
        count = 0 if plain or not known.any() else probe.support_count
        support = support_points(pair.keypoints[known], box, source_hw, count, self.tuning)
        few = self.tuning.min_points_for_extent
        state = PairState(pair, known, np.concatenate([pair.keypoints, support]), box, window, few)
        if pair.source_box is None and not plain and int(known.sum()) < few:
            state.notes.append(
                f"fewer than {few} points do not show how large their object is: "
                f"{box.longest:.0f} px around them were taken for it; `source_box` tells it"
            )
        return _Work(state, is_small(box, source_hw, config))

    def _paper(self, works: Sequence[_Work], probe: Probe) -> None:
        """The paper's rule as it is: one pass around the coarse predictions, never refused."""
        found = LOCALIZERS["predicted"]([work.state for work in works], probe)
        requests, asked = [], []
        for work, candidates in zip(works, found, strict=True):
            work.why_coarse = "coarse: no window"
            for candidate in candidates[:1]:
                if work.small_source or is_small(candidate.box, work.state.target_hw, self.config):
                    requests.append(Request(work.state, work.state.source, self._window(work, candidate.box, probe)))
                    asked.append(work)
                else:
                    work.why_coarse = "coarse: not small"
        for work, seen in zip(asked, probe.look(requests), strict=True):
            work.why_coarse = "coarse: failed"
            if seen is not None:
                work.passes = [FinePass(seen, "predicted", 0.0, False, seen.own, None, None)]
                work.answer = Answer(seen.own, 0.0, work.passes, np.full(len(seen.own), np.nan))

    def _localize(self, works: Sequence[_Work], probe: Probe) -> None:
        """The layout of the coarse answers, and candidates where source or target is small."""
        for work in works:
            work.why_coarse = "coarse: outside"  # where no keypoint lies in the source's window
        active = [work for work in works if work.state.known.any() and work.state.coarse is not None]
        seen = [work.state.coarse for work in active if work.state.coarse is not None]
        judged = judge([work.state for work in active], seen, [WHOLE] * len(active), self.tuning)
        for work, whole in zip(active, judged, strict=True):
            work.whole = whole
            work.why_coarse = "coarse: no window" if work.small_source else "coarse: not small"
        boxed = [work for work in active if work.state.pair.target_box is not None]
        free = [work for work in active if work.state.pair.target_box is None]
        small = [work for work in free if work.small_source or self._target_seems_small(work)]
        for group, name in ((boxed, "given"), (small, self.config.localizer)):
            states = [work.state for work in group]
            found = LOCALIZERS[name](states, probe) if group else []
            if name != "given" and not all(found):  # a strategy without the budget for it finds nothing
                found = [one or other for one, other in zip(found, LOCALIZERS["consensus"](states, probe), strict=True)]
            for work, candidates in zip(group, found, strict=True):
                work.candidates = self._small(work, candidates)

    def _small(self, work: _Work, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those worth a closer look: all where the source is small, else where the target's object is."""
        hw = work.state.target_hw
        return [one for one in candidates if work.small_source or is_small(one.box, hw, self.config)]

    def _target_seems_small(self, work: _Work) -> bool:
        assert work.whole is not None
        box = _box(work, work.whole)
        return box is not None and is_small(box, work.state.target_hw, self.config)

    def _window(self, work: _Work, box: Box, probe: Probe) -> Window:
        return window_around(box, work.state.target_hw, probe.size_hw, self.config)

    def _refine(self, works: Sequence[_Work], probe: Probe) -> None:
        """Fine passes, one round after the other, as far as each pair's budget goes."""
        for round_ in range(self.config.passes):
            planned: list[tuple[_Work, Request, str]] = []
            for work in works:
                wanted = self._wanted(work, probe, round_)
                asked = probe.affordable([request for request, _ in wanted])
                for request, name in wanted:
                    if request in asked:
                        work.tried.add((request.source, request.target))
                        planned.append((work, request, name))
            if not planned:
                continue
            if round_ == 0:
                for work, _, _ in planned:
                    work.why_coarse = "coarse: failed"  # unless an answer comes
            seen = probe.look([request for _, request, _ in planned])
            answered = [(w, one, name) for (w, _, name), one in zip(planned, seen, strict=True) if one is not None]
            judged = judge(
                [w.state for w, _, _ in answered],
                [one for _, one, _ in answered],
                [n for _, _, n in answered],
                self.tuning,
            )
            for (work, _, _), found in zip(answered, judged, strict=True):
                work.why_coarse = "coarse: refused"
                (work.refused if self._contradicts(work, found) else work.passes).append(found)
            for work in works:
                work.passes.sort(key=lambda p: -p.worth(self.tuning))

    def _searched(self, works: Sequence[_Work], probe: Probe) -> list[_Work]:
        """The pairs whose closer looks leave doubt; their candidates are what a search finds with the calls left."""
        if self.config.budget != "thorough" or self.config.localizer != "best":
            return []
        doubtful = [work for work in works if self._doubtful(work)]
        found = LOCALIZERS["search"]([work.state for work in doubtful], probe) if doubtful else []
        for work, candidates in zip(doubtful, found, strict=True):
            work.candidates = self._small(work, candidates)
        return doubtful

    def _doubtful(self, work: _Work) -> bool:
        """Whether the object may be elsewhere: little pointed to where it was looked for, or it was no surer there."""
        searched = any(one.found_by == "search" for one in work.candidates)
        given = work.state.pair.target_box is not None
        if work.whole is None or given or searched or work.why_coarse == "coarse: not small":
            return False
        pointed = work.candidates[0].score if work.candidates else 0.0
        best = max((found.worth(self.tuning) for found in work.passes), default=-np.inf)
        return bool(pointed < self.tuning.search_below or best < work.whole.worth(self.tuning) + self.tuning.surer)

    def _contradicts(self, work: _Work, found: FinePass) -> bool:
        """Whether a pass puts the object elsewhere than the coarse one does, and is not so much better."""
        if work.whole is None or work.state.pair.target_box is not None:
            return False
        here, there = _box(work, found), _box(work, work.whole)
        if here is None or there is None or here.iou(there) > self.tuning.same_place:
            return False
        least = work.whole.worth(self.tuning) + self.config.accept_margin + self.tuning.elsewhere
        return found.worth(self.tuning) <= least

    def _wanted(self, work: _Work, probe: Probe, round_: int) -> list[tuple[Request, str]]:
        """What to look at next, the most promising first."""
        state = work.state
        if not work.candidates:
            return []
        windows = [
            (state.source.mirror() if c.mirrored else state.source, self._window(work, c.box, probe), c.found_by)
            for c in work.candidates
        ]
        wanted: list[tuple[Window, Window, str]] = []
        thorough = self.config.budget == "thorough"
        first = MOST_FIRST if thorough else 1
        if round_ == 0:
            wanted = windows[:first]
        elif work.passes:
            best = work.passes[0]
            name = best.found_by
            wanted = [(best.seen.source, self._around(work, best, probe), name)]
            wanted += windows[1:2]
            if self.config.mirror and (probe.shares or best.evidence < self.tuning.doubt):
                wanted.append((best.seen.source.mirror(), best.seen.target, name))
            last = round_ == self.config.passes - 1
            if thorough and last and (probe.shares or not self._doubtful(work)):  # else the calls are for a search
                wanted += self._varied(work, best, probe)
        else:  # the place was refused: the next candidate's
            wanted = [one for one in windows if one[:2] not in work.tried][:first]
        fresh = {(s, t): n for s, t, n in reversed(wanted) if (s, t) not in work.tried}
        return [(Request(state, s, t), n) for (s, t), n in reversed(fresh.items())]

    def _varied(self, work: _Work, best: FinePass, probe: Probe) -> list[tuple[Window, Window, str]]:
        """The best window wider and narrower on both sides: other cuts err otherwise."""
        box = _box(work, best)
        if box is None or box.longest <= 0:
            return []
        found = []
        for margin in VARIED_MARGINS:
            config = self.config.model_copy(update={"margin": margin})
            source = window_around(work.state.box, work.state.source_hw, probe.size_hw, config)
            source = source.mirror() if best.seen.source.mirrored else source
            found.append((source, window_around(box, work.state.target_hw, probe.size_hw, config), best.found_by))
        return found

    def _around(self, work: _Work, best: FinePass, probe: Probe) -> Window:
        box = _box(work, best)
        return self._window(work, box if box is not None and box.longest > 0 else best.seen.target.box, probe)

    def _accept(self, works: Sequence[_Work]) -> None:
        """The answers of all passes together where they beat the coarse one; the coarse pass's own layout elsewhere."""
        margin = self.config.accept_margin
        answered = [(work, work.whole) for work in works if work.whole is not None]
        for work in works:
            if work.passes and work.whole is not None and work.state.pair.target_box is None:
                best = work.passes[0]
                least = max(work.whole.worth(self.tuning) + margin, self.tuning.least_evidence)
                if best.worth(self.tuning) <= least:
                    work.refused, work.passes = [*work.refused, *work.passes], []
        passes = [work.passes or [whole] for work, whole in answered]
        found = together([work.state for work, _ in answered], passes, self.tuning)
        for (work, _), answer in zip(answered, found, strict=True):
            work.answer = answer

    def _assure(self, works: Sequence[_Work], probe: Probe) -> None:
        """How sure the answers are: a matcher that shares features is asked back through each pass's windows.

        They are where the user is told that they are, be it where the coarse pass put them.
        """
        answered = []
        for work in works:
            if work.answer is not None:
                points = np.concatenate([work.points, work.answer.points[len(work.points) :]])
                answered.append((work, replace(work.answer, points=points)))
        requests = []
        for work, answer in answered if probe.shares else ():
            points = np.where(work.state.usable[:, None], answer.points, np.nan)
            requests += [Request(work.state, p.seen.source, p.seen.target, points) for p in answer.heard]
        seen = list(zip(requests, probe.look(requests), strict=True))
        for work, answer in answered:
            back = [one.own for request, one in seen if request.state is work.state and one is not None]
            against = [] if work.passes else work.refused  # where nothing else came of them
            work.answer = assured(work.state, answer, back, against, self.tuning)


def _box(work: _Work, found: FinePass) -> Box | None:
    """Where a pass puts the object in the target."""
    return work.state.box_of(found.points[work.state.framing])


def _chosen(work: _Work, config: KBCConfig) -> tuple[Points, tuple[Origin, ...]]:
    """Each keypoint's answer (N, 2), target pixels, and where it comes from."""
    state, answer = work.state, work.answer
    assert state.coarse is not None
    count = len(state.known)
    points = state.coarse.own[:count].copy()
    asked = defined(state.pair.keypoints)
    origin: list[Origin] = [work.why_coarse if one else "undefined" for one in asked]
    cropped = bool(work.passes)
    shown = work.passes[0] if cropped else work.whole
    whole = work.why_coarse == "coarse: not small" and config.joint
    if answer is not None and shown is not None and (cropped or whole):
        found = answer.points[:count] if config.joint else shown.seen.own[:count]
        seen = state.known & shown.seen.target.shows(found)
        for index in np.flatnonzero(asked if cropped else state.known):
            if state.known[index] and np.isnan(found[index]).any():
                origin[index] = "coarse: failed"
            elif cropped and not seen[index]:
                origin[index] = "coarse: outside"
            else:
                points[index] = found[index]
                origin[index] = "fine" if cropped else "whole"
    return points, tuple(origin)


def _result(work: _Work, config: KBCConfig, seconds: dict[str, float]) -> MatchResult:
    """What the user gets: each point's answer and where it comes from."""
    state = work.state
    assert state.coarse is not None
    count = len(state.known)
    coarse = state.coarse.own[:count]
    confidence = None if work.answer is None else np.where(state.known, work.answer.confidence[:count], np.nan)
    best = work.passes[0] if work.passes else None
    points = sure_points(work.points, np.zeros(count) if confidence is None else confidence, config.min_confidence)
    score = state.coarse.score if best is None else best.seen.score
    given = {"source"} if state.pair.source_box is not None else set()
    if best is not None and best.found_by == "given":
        given.add("target")
    return MatchResult(
        points,
        None if score is None else score[:count],
        coarse=coarse,
        confidence=confidence,
        origin=work.origin,
        source_window=None if best is None else best.seen.source,
        target_window=None if best is None else best.seen.target,
        given=frozenset(given),
        localizer=config.localizer if best is None else best.found_by,
        support=len(state.points) - count,
        calls=state.calls,
        cost=state.cost,
        seconds=dict(seconds),
        notes=(*state.notes, *_doubts(state.pair, coarse)),
    )


def _doubts(pair: Pair, answers: Points) -> list[str]:
    """What is wrong with points given and answered more often than not, and may be meant all the same."""
    found = []
    zeros = int((pair.keypoints == 0).all(axis=1).sum())
    if zeros and len(pair.keypoints) > 1:
        said = f"{counted(zeros, 'keypoint')} at exactly (0, 0)"
        found.append(f"{said}: where that stands for a point that is not there, give NaN")
    box = pair.source_box
    if box is not None and defined(pair.keypoints).any() and not box.contains(pair.keypoints).any():
        found.append("`source_box` holds none of the keypoints: is it x0, y0, x1, y1, of the object that they are on?")
    asked, answered = (points[defined(pair.keypoints) & defined(answers)] for points in (pair.keypoints, answers))
    stretched = resize_points(asked, image_hw(pair.source), image_hw(pair.target))  # where a flow of zeros puts them
    stays = any((np.abs(answered - kept) < 1e-3).all() for kept in (asked, stretched))
    if len(answered) > 1 and stays and fingerprint(pair.source) != fingerprint(pair.target):
        found.append("every answer lies exactly where its keypoint does: does the matcher look at the target?")
    elif in_one_place(asked, answered):
        found.append("all answers are one and the same point: the matcher does not tell the keypoints apart")
    elif len(answered) and outside(answered, image_hw(pair.target)).all():
        found.append("all answers lie outside the target: are they x, y, in its pixels?")
    if looks_per_cent(pair.keypoints, image_hw(pair.source)):
        found.append("all keypoints lie within 100 px of the corner (0, 0): are they per cent? pixels are expected")
    elif looks_per_cent(answers, image_hw(pair.target)):
        found.append("all answers lie within 100 px of the corner (0, 0): does the matcher give per cent, not pixels?")
    return found


def wrap(
    matcher: Matcher | Callable[..., Any], config: KBCConfig | None = None, **options: Unpack[KBCOptions]
) -> KBCMatcher:
    """Put KBC around a matcher.

    Args:
        matcher: a `Matcher`, or a function `f(source, target, keypoints)` on uint8 RGB images and (N, 2) points that
            gives points, (points, scores) or a `Match` (`as_matcher` takes other signatures).
        config: a `KBCConfig`; defaults otherwise.
        options: fields of `KBCConfig` to change, e.g. `budget="thorough"`.

    Returns:
        A matcher: `.match(pairs)`, or called directly, `wrapped(source, target, keypoints) -> (N, 2)`.

    Raises:
        InputError: not a matcher, an unknown option or a value out of range.

    >>> import numpy as np, kbc
    >>> wrapped = kbc.wrap(lambda source, target, keypoints: keypoints)
    >>> image = np.zeros((40, 60, 3), np.uint8)
    >>> wrapped(image, image, [[4, 5], [51, 8], [53, 33], [8, 30]]).round(3)
    array([[ 4.,  5.],
           [51.,  8.],
           [53., 33.],
           [ 8., 30.]])
    """
    settings = make_config(config, options)
    return KBCMatcher(matcher.matcher if isinstance(matcher, KBCMatcher) else to_matcher(matcher), settings)
