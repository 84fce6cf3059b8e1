"""Find the object in the target: candidates for its box, by several strategies.

Costs are in units of one plain match. A matcher that shares features pays half a unit for each new image it encodes;
any other pays one unit for each pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from kbc import layout
from kbc.config import COST, KBCConfig
from kbc.cropping import SizeHW, image_hw, input_hw, window_around, windowed
from kbc.errors import MatcherError
from kbc.geometry import Box, Points, Window, defined
from kbc.matcher import Matcher, run_matcher, run_similarity
from kbc.types import Match, Pair

SPANS = tuple(layout.spans(1.0, 0.06, 1.0))
"""Sizes at which the whole target is searched: the layout's longer side over the image's. Our choice."""
WINDOW_SPANS = tuple(layout.spans(1.0, 0.24, 0.9, 1.2))
"""The same inside a window, whose object should fill about 1 / (1 + 2 · margin) of it."""
_TILE_RESERVE = 4.0
"""What tiles leave of the budget: a fine pass and one more around it, each matched back."""
MOST_ZOOMED = 1024
"""Longest side, pixels, to which a target is enlarged three times: attention over more patches costs far more than they
are more. Three times finds more than twice; four times no more, at most of the budget. Our choice, measured.
"""
DISTINCT = 0.8
"""Candidate windows that overlap more than this (IoU) are one: a slightly shifted window is a second opinion."""
_APART = 0.6
"""Poses of one vote whose boxes overlap more than this are one."""
_MOST = 4
"""Candidates one strategy gives at most: what comes later wins by luck when it wins."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """Where the object may be.

    Attributes:
        box: of the object's keypoints, target pixel edges.
        score: higher is likelier; only compares with candidates of the same strategy.
        found_by: the strategy's name.
    """

    box: Box
    score: float
    found_by: str


@dataclass(frozen=True, eq=False)
class Look:
    """What a matcher said about a pair: its answer, and its similarity maps of the defined points, if it has any."""

    match: Match
    maps: layout.Maps | None


@dataclass(eq=False)
class Case:
    """One pair under way: what is known of it and what it has cost.

    Attributes:
        pair: the whole images; its keypoints are those asked for and, of a few, further ones; see `with_context`.
        asked: how many of the keypoints, the first, were asked for.
        known: mask (N,) of the keypoints that are defined and seen in the source's window.
        source: the source's window.
        whole: what the matcher said on the whole images; its maps are of the known keypoints.
        calls, cost: of the matcher so far; see `MatchResult`.
        seen: the images that were encoded.
        looked: the pairs of windows that were looked through.
        notes: see `MatchResult`.
    """

    pair: Pair
    asked: int
    known: npt.NDArray[np.bool_]
    source: Window
    whole: Look
    calls: int = 1
    cost: float = 1.0
    seen: set[tuple[object, ...]] = field(default_factory=set)
    looked: set[tuple[Window, Window]] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    @property
    def points(self) -> Points:
        """The known source keypoints (K, 2)."""
        return self.pair.keypoints[self.known]

    @property
    def coarse(self) -> Points:
        """Coarse answers (K, 2) for the known keypoints; NaN where the matcher gave none."""
        return self.whole.match.keypoints[self.known]

    @property
    def target_hw(self) -> SizeHW:
        """(height, width) of the target."""
        return image_hw(self.pair.target)


@dataclass(frozen=True)
class Request:
    """A pair to look at through two windows.

    Attributes:
        found_by: the name of the strategy whose window it is.
        zoom: more than 1 asks only for maps of a target encoded that much larger.
    """

    case: Case
    source: Window
    target: Window
    found_by: str = ""
    zoom: int = 1


class Probe:
    """The matcher as the pipeline asks it: in batches, counted, with maps where there are any, never fatal."""

    def __init__(self, matcher: Matcher, config: KBCConfig) -> None:
        self.matcher = matcher
        self.config = config
        self.has_maps = hasattr(matcher, "similarity")
        self.shares = bool(getattr(matcher, "shares_features", False))
        self.zooms = self.has_maps and bool(getattr(matcher, "zooms", False))
        self.size_hw = input_hw(matcher)
        self.limit = COST[config.budget]
        self.further = 0.5 if self.shares else 1.0

    def price(self, request: Request, planned: Sequence[Request] = ()) -> float:
        """What a request would cost now, or after others of the same case."""
        if not self.shares:
            return 1.0
        known = request.case.seen.union(*map(self._images, planned))
        return sum(0.5 * size for key, size in self._images(request).items() if key not in known)

    def affords(self, case: Case, price: float) -> bool:
        """Whether the budget has this much left for a pair."""
        return case.cost + price <= self.limit + 1e-6

    def whole(self, pairs: Sequence[Pair]) -> list[Look]:
        """The coarse pass. Raises what the matcher raises."""
        return self._looks(pairs)

    def look(self, requests: Sequence[Request]) -> list[Look | None]:
        """What the matcher says through windows, in the windows' pixels; None, and a note, where it fails."""
        for request in requests:
            request.case.cost += self.price(request)
            request.case.calls += 1
            request.case.seen.update(self._images(request))
            request.case.looked.add((request.source, request.target))
        pairs = [windowed(r.case.pair, r.source, r.target, self.config) for r in requests]
        return _each(self._looks, pairs, requests, "a fine pass failed")

    def zoomed(self, request: Request) -> layout.Maps | None:
        """Maps (K, h, w) of the source window's points over a target encoded `zoom` times larger; None on failure."""
        case = request.case
        case.cost += self.price(request)
        case.calls += 1
        case.seen.update(self._images(request))
        pair = windowed(case.pair, request.source, Window.whole(case.target_hw), self.config)
        maps = _each(
            lambda asked: run_similarity(self.matcher, asked, zoom=request.zoom),
            [pair],
            [request],
            "a search pass failed",
        )
        return maps[0]

    def back(self, requests: Sequence[Request], answers: Sequence[Points]) -> list[Points | None]:
        """Where answers (K, 2), target pixels, lead in the source when the pair is turned round; None on failure.

        Free for a matcher that shares features; one call each for any other.
        """
        pairs = []
        for request, points in zip(requests, answers, strict=True):
            request.case.cost += 0.0 if self.shares else 1.0
            request.case.calls += 1
            seen = np.where(request.target.shows(points)[:, None], points, np.nan)
            pairs.append(windowed(request.case.pair.swapped(seen), request.target, request.source, self.config))
        matches = _each(lambda asked: run_matcher(self.matcher, asked), pairs, requests, "the way back failed")
        return [None if m is None else r.source.to_image(m.keypoints) for r, m in zip(requests, matches, strict=True)]

    def _images(self, request: Request) -> dict[tuple[object, ...], float]:
        """The images a request encodes, each with its size in inputs."""
        return {
            ("source", request.source.box, request.source.mirrored): 1.0,
            ("target", request.target.box, request.zoom): float(request.zoom**2),
        }

    def _looks(self, pairs: Sequence[Pair]) -> list[Look]:
        matches = run_matcher(self.matcher, pairs)
        if not self.has_maps:
            return [Look(match, None) for match in matches]
        size = max(int(getattr(self.matcher, "max_batch", None) or 1), 1)
        looks = []
        for start in range(0, len(pairs), size):
            part = pairs[start : start + size]
            # By contract a matcher keeps what `match` computed, so this is free right after it.
            maps = run_similarity(self.matcher, part)
            looks += [Look(match, values) for match, values in zip(matches[start:], maps, strict=False)]
        return looks


_Answer = TypeVar("_Answer")


def _each(
    ask: Callable[[Sequence[Pair]], list[_Answer]], pairs: Sequence[Pair], requests: Sequence[Request], failed: str
) -> list[_Answer | None]:
    """All answers at once; where that fails one by one, None and a note for those that fail."""
    try:
        return list(ask(pairs))
    except MatcherError as error:
        if len(requests) == 1:
            requests[0].case.notes.append(f"{failed}: {error}")
            return [None]
    alone = zip(pairs, requests, strict=True)
    return [answer for pair, request in alone for answer in _each(ask, [pair], [request], failed)]


Localizer = Callable[[Sequence[Case], Probe], list[list[Candidate]]]
"""Cases of which the coarse pass is known → per case its candidates, best first; may ask the matcher more."""


def predicted(cases: Sequence[Case], probe: Probe) -> list[list[Candidate]]:
    """The paper's rule (arXiv 2404.02678): the box of the coarse predictions. Costs nothing."""
    found = []
    for case in cases:
        box = Box.around(case.coarse)
        found.append([] if box is None else [Candidate(box, 0.0, "predicted")])
    return found


def consensus(cases: Sequence[Case], probe: Probe) -> list[list[Candidate]]:
    """The source's layout under the similarity (mirror allowed) that most coarse points agree on. Costs nothing."""
    found: list[list[Candidate]] = []
    for case in cases:
        answered = defined(case.coarse)
        pose = layout.consensus(case.points[answered], case.coarse[answered])
        if pose is None:
            found.append([])
            continue
        box = layout.pose_box(pose).clipped(case.target_hw)
        found.append([Candidate(box, pose.score, "consensus")] if box.longest > 0 else [])
    return found


def heatmap(cases: Sequence[Case], probe: Probe) -> list[list[Candidate]]:
    """The source's layout where the coarse similarity maps give it most evidence. Costs nothing; needs maps.

    With the budget for it, the cropped source joins in: its maps over the whole target cost half a unit for a matcher
    that shares features (which the fine pass needs anyway) and one for another.
    """
    if not probe.has_maps:
        return [[] for _ in cases]
    crops: dict[int, layout.Maps] = {}
    wanted = []
    for index, case in enumerate(cases):
        # At its own size, so that it is the very image that the coarse pass has encoded.
        request = Request(case, case.source, Window.whole(case.target_hw))
        if probe.affords(case, probe.price(request) + 0.5) and probe.shares:
            wanted.append((index, request))
    for (index, _), look in zip(wanted, probe.look([request for _, request in wanted]), strict=True):
        if look is not None and look.maps is not None:
            crops[index] = look.maps
    found = []
    for index, case in enumerate(cases):
        assert case.whole.maps is not None
        density = _evidence(case.whole.maps)
        points = case.points
        if index in crops:
            density = np.concatenate([density, _evidence(crops[index])])
            points = np.concatenate([points, points])
        found.append(_voted(case, density, points, "heatmap"))
    return found


def search(cases: Sequence[Case], probe: Probe) -> list[list[Candidate]]:
    """The cropped source over an enlarged target.

    A matcher that zooms encodes the target once at three times the side (5 units) where budget and `MOST_ZOOMED` allow
    it, else at twice the side (2.5), for all its overlapping tiles at once: approximate, for a tile cut first would not
    see beyond its border. Any other is asked tile by tile, half overlapping, at two sizes (13 calls, or as many as the
    budget leaves after the fine pass and its checks), each judged by how well the answers keep the source's layout.
    """
    if probe.zooms:
        found: list[list[Candidate]] = []
        for case in cases:
            whole = Window.whole(case.target_hw)
            zooms = [2] if 3 * max(probe.size_hw or case.target_hw) > MOST_ZOOMED else [3, 2]
            requests = (Request(case, case.source, whole, zoom=zoom) for zoom in zooms)
            request = next((r for r in requests if probe.affords(case, probe.price(r))), None)
            maps = None if request is None else probe.zoomed(request)
            found.append([] if maps is None else _voted(case, _evidence(maps), case.points, "search"))
        return found
    return [_tiled(case, probe) for case in cases]


def given(cases: Sequence[Case], probe: Probe) -> list[list[Candidate]]:
    """The target box that came with the pair. Costs nothing."""
    return [[] if case.pair.target_box is None else [Candidate(case.pair.target_box, 0.0, "given")] for case in cases]


def best(cases: Sequence[Case], probe: Probe) -> list[list[Candidate]]:
    """The candidates of all the others, likeliest strategy first, as far as the budget goes.

    With maps: `heatmap`, with `search` first where the budget allows it and a fine pass. Without: `consensus`, then
    `predicted`, then `search` where the budget allows its tiles.
    """
    sources: list[Localizer] = []
    if probe.has_maps:
        if probe.zooms and probe.limit >= COST["thorough"]:
            sources.append(search)
        sources.append(heatmap)
    sources += [consensus, predicted]
    lists = [strategy(cases, probe) for strategy in sources]
    if not probe.has_maps and probe.limit >= COST["thorough"]:
        lists.insert(1, search(cases, probe))
    return [_interleaved([found[index] for found in lists]) for index in range(len(cases))]


LOCALIZERS: dict[str, Localizer] = {
    "predicted": predicted,
    "consensus": consensus,
    "heatmap": heatmap,
    "search": search,
    "best": best,
    "given": given,
}


def _evidence(maps: layout.Maps) -> layout.Maps:
    return layout.evidence(maps, layout.FINDING_SHARPNESS)


def _voted(case: Case, density: layout.Maps, points: Points, name: str) -> list[Candidate]:
    height, width = case.target_hw
    poses = layout.vote(density, Window.whole(case.target_hw), points, [s * max(height, width) for s in SPANS])
    found: list[Candidate] = []
    for pose in poses:
        box = layout.pose_box(pose).clipped(case.target_hw)
        if box.area > 0 and all(box.iou(other.box) < _APART for other in found):
            found.append(Candidate(box, pose.score, name))
        if len(found) == _MOST:
            break
    return found


def _tiled(case: Case, probe: Probe) -> list[Candidate]:
    height, width = case.target_hw
    tiles = []
    for parts in (3, 2):
        for row in range(parts):
            for column in range(parts):
                y, x = row * height / (parts + 1), column * width / (parts + 1)
                box = Box(x, y, x + 2 * width / (parts + 1), y + 2 * height / (parts + 1))
                window = Window.fit(box, case.target_hw)
                tiles.append(window.resized(probe.size_hw or case.target_hw))
    requests = []
    price = 0.0
    for tile in tiles:
        request = Request(case, case.source, tile)
        price += probe.price(request)
        if probe.affords(case, price + _TILE_RESERVE):
            requests.append(request)
    found = []
    for request, look in zip(requests, probe.look(requests), strict=True):
        if look is None:
            continue
        answers = request.target.to_image(look.match.keypoints[case.known])
        answered = defined(answers)
        pose = layout.consensus(case.points[answered], answers[answered])
        if pose is not None:
            box = layout.pose_box(pose).clipped(case.target_hw)
            if box.area > 0:
                found.append(Candidate(box, pose.score, "search"))
    return sorted(found, key=lambda candidate: -candidate.score)[:_MOST]


def _interleaved(lists: Sequence[list[Candidate]]) -> list[Candidate]:
    """The first of each list, then the second of each, and so on."""
    longest = max((len(found) for found in lists), default=0)
    return [found[rank] for rank in range(longest) for found in lists if rank < len(found)]


def distinct(candidates: Sequence[Candidate], case: Case, probe: Probe) -> list[tuple[Candidate, Window]]:
    """Candidates with their windows, without those whose window nearly repeats an earlier one."""
    kept: list[tuple[Candidate, Window]] = []
    for candidate in candidates:
        window = window_around(candidate.box, case.target_hw, probe.size_hw, probe.config)
        if all(window.box.iou(other.box) < DISTINCT for _, other in kept):
            kept.append((candidate, window))
    return kept
