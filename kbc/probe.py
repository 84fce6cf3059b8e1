"""Asking the matcher: through windows, in batches, counted, never fatal after the coarse pass.

Costs are in units of one plain match. A matcher that shares features pays half a unit for each new image it encodes;
any other pays one unit for each pair.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import Tensor

from kbc.config import COST, KBCConfig
from kbc.cropping import SizeHW
from kbc.errors import KBCError
from kbc.geometry import Box, Points, Window, defined, edges_around
from kbc.images import Image, image_hw, immutable
from kbc.layout import Similarity
from kbc.matchers.protocol import Matcher, input_hw, run_matcher, run_similarity
from kbc.tensors import peaks
from kbc.tuning import TUNING, Tuning
from kbc.types import Match, Pair, Scores


@dataclass(eq=False)
class Observation:
    """What a matcher said in one pass about all points of a pair, S of them, the keypoints first.

    Attributes:
        source, target: the windows it looked through.
        answers: (S, M, 2) places each point may have, target image pixels, source ones where it looked back; 0 where
            `share` is.
        share: (S, M) how likely each place is, before the neighbours are asked: sums to 1, or 0 without an answer.
        score: (S,) the matcher's own, or None.
        cell: target pixels that a cell of the matcher covers, 0 where not known.
        transforms: (1, …) those that most answers agree with, once asked for (`localize.agreed`).
    """

    source: Window
    target: Window
    answers: npt.NDArray[np.float64]
    share: npt.NDArray[np.float64]
    score: Scores | None
    cell: float
    transforms: Similarity | None = None

    @property
    def own(self) -> Points:
        """(S, 2) the matcher's own answers, pixels as in `answers`; NaN where there is none."""
        return np.where(self.share[:, :1] > 0, self.answers[:, 0], np.nan)


@dataclass(eq=False)
class PairState:
    """One pair under way: what is known of it and what it has cost.

    Attributes:
        pair: the whole images and the keypoints (N, 2) asked for.
        known: (N,) the keypoints that are defined and seen in the source's window.
        points: (S, 2) what the matcher is asked: the keypoints, then the support points.
        box: the object's in the source, pixel edges.
        source: the source's window.
        min_points_for_extent: see `Tuning`.
        coarse: what the matcher said on the whole images; None before that.
        calls, cost: of the matcher so far; see `MatchResult`.
        encoded: the images that were encoded.
        notes: see `MatchResult`.
    """

    pair: Pair
    known: npt.NDArray[np.bool_]
    points: Points
    box: Box
    source: Window
    min_points_for_extent: int
    coarse: Observation | None = None
    calls: int = 0
    cost: float = 0.0
    encoded: set[tuple[str, Window]] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    _cuts: dict[tuple[str, Window], Image] = field(default_factory=dict)

    @cached_property
    def usable(self) -> npt.NDArray[np.bool_]:
        """(S,) the points that speak for the layout: the known keypoints and the support points."""
        return np.concatenate([self.known, np.ones(len(self.points) - len(self.known), dtype=np.bool_)])

    @cached_property
    def framing(self) -> npt.NDArray[np.bool_]:
        """(S,) the points whose box is the object's: the known keypoints, or all where those are too few to tell."""
        few = int(self.known.sum()) < self.min_points_for_extent
        return self.usable & (few | (np.arange(len(self.points)) < len(self.known)))

    def box_of(self, points: Points) -> Box | None:
        """The object's box in the target, whose framing points (F, 2) lie here; None where none is defined."""
        known = points[defined(points)]
        return Box(*self.edges_of(known).tolist()) if len(known) else None

    def edges_of(self, points: Points) -> npt.NDArray[np.float64]:
        """(…, 4) the pixel edges of the object's box in the target, whose framing points (…, F, 2) lie here.

        It is as much larger than their own box as the object's box in the source is than theirs there, so that both
        windows show equally much.
        """
        edges = edges_around(points)
        longest = (edges[..., 2:] - edges[..., :2]).max(axis=-1, keepdims=True)
        height, width = self.target_hw
        grown = edges + 0.5 * (self._larger - 1) * longest * (-1, -1, 1, 1)
        return np.asarray(grown.clip(0.0, (width, height, width, height)))

    @cached_property
    def _larger(self) -> float:
        """How much larger the object's box in the source is than that of its framing points; at least 1."""
        before = Box.around(self.points[self.framing])
        known = before is not None and before.longest > 0
        return max(self.box.longest / before.longest, 1.0) if known and before is not None else 1.0

    @property
    def source_hw(self) -> SizeHW:
        """(height, width) of the source."""
        return image_hw(self.pair.source)

    @property
    def target_hw(self) -> SizeHW:
        """(height, width) of the target."""
        return image_hw(self.pair.target)

    @property
    def whole(self) -> tuple[Window, Window]:
        """The windows of the coarse pass."""
        return Window.whole(self.source_hw), Window.whole(self.target_hw)

    def cut(self, side: str, window: Window, config: KBCConfig) -> Image:
        """The source or target as seen through a window; each cut-out is made once."""
        key = (side, window)
        if key not in self._cuts:
            image = self.pair.source if side == "source" else self.pair.target
            whole = Window.whole(image_hw(image))
            if window == whole:
                self._cuts[key] = immutable(image)  # which is hashed only once
            else:
                uncut = self.cut(side, whole, config)
                cut = window.cut(uncut, config.interpolation)
                self._cuts[key] = immutable(cut, uncut, f"{window} {config.interpolation}")
        return self._cuts[key]


@dataclass(frozen=True, eq=False)
class Request:
    """A pair to look at through two windows, or to look back at: where do these answers come from?

    Attributes:
        state, source, target: the pair and what is seen of its two images.
        answers: (S, 2) target pixels, where to look back from; None to look forward.
    """

    state: PairState
    source: Window
    target: Window
    answers: Points | None = None

    @property
    def images(self) -> tuple[tuple[str, Window], tuple[str, Window]]:
        """What it encodes: what the points are given in, and what they are looked for in."""
        seen = ("source", self.source), ("target", self.target)
        return seen if self.answers is None else seen[::-1]


class Probe:
    """The matcher as the pipeline asks it."""

    def __init__(self, matcher: Matcher, config: KBCConfig, tuning: Tuning = TUNING) -> None:
        self.matcher = matcher
        self.config = config
        self.tuning = tuning
        self.has_maps = hasattr(matcher, "similarity")
        self.shares = bool(getattr(matcher, "shares_features", False))
        self.size_hw = input_hw(matcher)
        self.limit = COST[config.budget]
        self.seconds = 0.0
        asked = getattr(matcher, "support_points", None)
        self.support_count = tuning.support_count if asked is None else int(asked)

    def price(self, request: Request, planned: Sequence[Request] = ()) -> float:
        """What a request would cost now, or after others of the same pair."""
        if not self.shares:
            return 1.0
        known = request.state.encoded.union(*(other.images for other in planned))
        return 0.5 * sum(image not in known for image in request.images)

    @property
    def least_price(self) -> float:
        """The least that a fine pass costs: a new image, or a call."""
        return 0.5 if self.shares else 1.0

    def affordable(self, requests: Sequence[Request]) -> list[Request]:
        """The requests of one pair, in order, that its budget still allows."""
        taken: list[Request] = []
        price = 0.0
        for request in requests:
            more = price + self.price(request, taken)
            if request.state.cost + more <= self.limit + 1e-6:
                taken.append(request)
                price = more
        return taken

    def coarse(self, states: Sequence[PairState]) -> None:
        """The matcher on the whole images; without the support points where it fails on these.

        Raises what the matcher raises on the keypoints alone.
        """
        requests = [Request(state, *state.whole) for state in states]
        try:
            found = self._observe(requests)
        except KBCError:
            found = [self._coarse_alone(request) for request in requests]
        for state, seen in zip(states, found, strict=True):
            state.coarse = seen
        self._count(requests)

    def _coarse_alone(self, request: Request) -> Observation:
        state = request.state
        try:
            return self._observe([request])[0]
        except KBCError as error:
            if len(state.points) == len(state.known):
                raise
            state.points = state.points[: len(state.known)]
            seen = self._observe([request])[0]
            state.notes.append(f"asked for no support points, on which the matcher failed: {error}")
            return seen

    def look(self, requests: Sequence[Request]) -> list[Observation | None]:
        """What the matcher says through windows; None, and a note, where it fails. All forward, or all backward."""
        self._count(requests)
        return self._each(requests)

    def _each(self, requests: Sequence[Request]) -> list[Observation | None]:
        """All at once; where that fails one by one, so that one pair's failure costs no other pair."""
        try:
            return list(self._observe(requests))
        except KBCError as error:
            if len(requests) == 1:
                state = requests[0].state
                added = len(state.points) - len(state.known)
                also = f" (it asks for {added} support points too)" if added else ""
                what = "a fine pass" if requests[0].answers is None else "looking back"
                state.notes.append(f"{what} failed{also}: {error}")
                return [None]
        return [seen for request in requests for seen in self._each([request])]

    def _count(self, requests: Sequence[Request]) -> None:
        for request in requests:
            request.state.cost += self.price(request) if request.state.calls else 1.0
            request.state.calls += 1
            request.state.encoded.update(request.images)

    def _observe(self, requests: Sequence[Request]) -> list[Observation]:
        if not requests:
            return []
        pairs = [self._seen(request) for request in requests]
        start = time.perf_counter()
        size = max(int(getattr(self.matcher, "max_batch", None) or 1), 1)
        wants_maps = self.has_maps and requests[0].answers is None
        found = []
        for first in range(0, len(pairs), size):
            part = pairs[first : first + size]
            asked = [len(request.state.known) for request in requests[first : first + size]]
            matches = run_matcher(self.matcher, part, asked)
            # By contract a matcher keeps what `match` computed, so its maps are free right after it.
            maps = run_similarity(self.matcher, part) if wants_maps else [None] * len(part)
            found += list(zip(part, matches, maps, strict=True))
        self.seconds += time.perf_counter() - start
        return [self._observation(r, *seen) for r, seen in zip(requests, found, strict=True)]

    def _seen(self, request: Request) -> Pair:
        state, window = request.state, request.images[0][1]
        asked = state.points if request.answers is None else request.answers
        points = np.where(window.shows(asked)[:, None], window.to_window(asked), np.nan)
        seen_source, seen_target = (state.cut(side, window, self.config) for side, window in request.images)
        return Pair.trusted(seen_source, seen_target, points)

    def _observation(self, request: Request, pair: Pair, match: Match, maps: Tensor | None) -> Observation:
        window = request.images[1][1]
        size_hw = image_hw(pair.target)
        cell = 0.0
        places, share = match.keypoints[:, None], np.ones((len(match.keypoints), 1))
        if maps is not None:
            grid = Window.whole(size_hw).resized((maps.shape[1], maps.shape[2]))
            cell = 1 / (grid.scale_xy[0] * window.scale_xy[0])
            places, share = _with_peaks(match.keypoints, maps, grid, defined(pair.keypoints), self.tuning)
        share = np.where(defined(places), share, 0.0)
        answers = np.where(share[..., None] > 0, window.to_image(places), 0.0)
        return Observation(request.source, request.target, answers, share, match.score, cell)


def _with_peaks(
    own: Points, maps: Tensor, grid: Window, asked: npt.NDArray[np.bool_], tuning: Tuning
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The matcher's answers (S, 2) and further peaks of its maps (K, h, w) of the K asked points: (S, M, 2), (S, M)."""
    cells, heights = peaks(maps, tuning.peaks)
    places = np.full((len(own), tuning.peaks, 2), np.nan)
    share = np.zeros((len(own), tuning.peaks))
    found = grid.to_image(cells)
    share[asked] = np.exp(tuning.peak_sharpness * heights)
    places[asked] = found
    reach = 1.5 / np.array(grid.scale_xy)
    same = (np.abs(places - own[:, None]) < reach).all(axis=2)  # the answer's own peak
    share[same] = 0.0
    places, share = np.concatenate([own[:, None], places], 1), np.concatenate([np.ones((len(own), 1)), share], 1)
    share /= np.maximum(share.sum(axis=1, keepdims=True), 1e-12)
    return places, share
