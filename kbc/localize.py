"""Find the object in the target: boxes for it, likeliest first, by several strategies, "best" by default.

`pipeline` puts a window around each by the rule (`cropping.window_around`).
All but `given` and `predicted` ask what most answers, the support points' included, agree on (`layout.propose`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from kbc import layout
from kbc.config import COST
from kbc.geometry import Box, Points, Window, distinct
from kbc.probe import Observation, PairState, Probe, Request
from kbc.tuning import Tuning

CANDIDATE_NMS_IOU = 0.5
"""Proposed boxes that overlap more than this are one."""
SEARCH_RESERVE = 0.25
"""Share of the budget, at least two calls, that a search leaves for the fine passes that look at what it found."""
MAX_CANDIDATES = 3
"""Boxes that one pass proposes at most: what comes later wins by luck when it wins."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """Where the object may be.

    Attributes:
        box: of the object's keypoints, target pixel edges.
        score: how far the answers agree with it, nats a point.
        found_by: the strategy's name.
        mirrored: whether the mirrored source found it.
    """

    box: Box
    score: float
    found_by: str
    mirrored: bool = False


Localizer = Callable[[Sequence[PairState], Probe], list[list[Candidate]]]
"""Pairs of which the coarse pass is known → per pair its candidates, best first; may ask the matcher more."""


def predicted(states: Sequence[PairState], probe: Probe) -> list[list[Candidate]]:
    """The paper's rule (arXiv 2404.02678): the box of the coarse predictions. Costs nothing."""
    found = []
    for state in states:
        box = Box.around(_keypoints(state, state.coarse))
        found.append([] if box is None else [Candidate(box, 0.0, "predicted")])
    return found


def given(states: Sequence[PairState], probe: Probe) -> list[list[Candidate]]:
    """The target box that came with the pair. Costs nothing."""
    boxes = [state.pair.target_box for state in states]
    return [[] if box is None else [Candidate(box, 1.0, "given")] for box in boxes]


def consensus(states: Sequence[PairState], probe: Probe) -> list[list[Candidate]]:
    """The source's layout under the similarity (mirror allowed) that most coarse answers agree on. Costs nothing."""
    return proposed(states, [state.coarse for state in states if state.coarse is not None], "consensus", probe.tuning)


def best(states: Sequence[PairState], probe: Probe) -> list[list[Candidate]]:
    """`consensus`, and the same of the cropped source on the whole target.

    The second finds what the coarse pass, which sees a small source in a few cells, cannot tell apart; the first finds
    what looks alike only at its own size. It is free for a matcher that shares features, which has both images anyway;
    another pays one call, where its budget leaves two. From `balanced` on, the mirrored source is asked too: cropped
    and, where next to nothing was found, whole, for a mirror image of equal size looks like itself only so. Where
    the answers agree less than `search_below`, `thorough` adds `search` for a matcher that shares features; any other
    pays so much for it that it looks closer first (`pipeline`).
    """
    found = consensus(states, probe)
    looks = ((False, False), (True, False), (True, True))
    for mirrored, whole in looks if probe.config.mirror and probe.limit > COST["fast"] else looks[:1]:
        asked = []
        for index, state in enumerate(states):
            source = state.whole[0] if whole else state.source
            request = Request(state, source.mirror() if mirrored else source, state.whole[1])
            score = found[index][0].score if found[index] else 0.0
            below = probe.tuning.lost_below if whole else probe.tuning.search_below
            wanted = score < below or (not whole and (probe.shares or not mirrored))
            left = (1 if not mirrored else 2) * probe.least_price
            if wanted and state.cost + probe.price(request) + left <= probe.limit + 1e-6:
                asked.append((index, request))
        for index, candidates in _asked(states, asked, "crop", probe):
            found[index] = _merged(found[index] + [replace(one, mirrored=mirrored) for one in candidates])
    for look in (search, _search_closer) if probe.shares and probe.limit >= COST["thorough"] else ():
        unsure = [i for i, c in enumerate(found) if not c or c[0].score < probe.tuning.search_below]
        for index, candidates in zip(unsure, look([states[i] for i in unsure], probe), strict=True):
            found[index] = _merged(found[index] + candidates)
    return found


def search(states: Sequence[PairState], probe: Probe) -> list[list[Candidate]]:
    """The cropped source on nine half-overlapping quarters of the target, each enlarged; as many as the budget allows.

    Costs nine calls, or for a matcher that shares features half as much; what is left must pay for two fine passes.
    """
    return _searched(states, probe, [(row / 4, column / 4, 1 / 2) for row in (1, 0, 2) for column in (1, 0, 2)])


def _search_closer(states: Sequence[PairState], probe: Probe) -> list[list[Candidate]]:
    """The same on sixteen overlapping ninths, for a matcher that shares features: any other pays too much for it."""
    if not probe.shares:
        return [[] for _ in states]
    return _searched(states, probe, [(row * 2 / 9, column * 2 / 9, 1 / 3) for row in range(4) for column in range(4)])


def _searched(
    states: Sequence[PairState], probe: Probe, tiles: Sequence[tuple[float, float, float]]
) -> list[list[Candidate]]:
    """What the cropped source finds on tiles (top, left, side) of the target, fractions of its sides."""
    reserve = max(SEARCH_RESERVE * probe.limit, 2.0)
    asked: list[tuple[int, Request]] = []
    for index, state in enumerate(states):
        requests = [Request(state, state.source, _tile(state, tile, probe)) for tile in tiles]
        price = sum(probe.price(request, requests[:i]) for i, request in enumerate(requests))
        while requests and state.cost + price + reserve > probe.limit + 1e-6:
            price -= probe.price(requests[-1], requests[:-1])
            requests.pop()
        asked += [(index, request) for request in requests]
    found: list[list[Candidate]] = [[] for _ in states]
    for index, candidates in _asked(states, asked, "search", probe):
        found[index] += candidates
    return [_merged(candidates) for candidates in found]


def _asked(
    states: Sequence[PairState], asked: Sequence[tuple[int, Request]], name: str, probe: Probe
) -> list[tuple[int, list[Candidate]]]:
    """What is proposed by the answers to requests, each with the number of its pair; failed ones left out."""
    seen = probe.look([request for _, request in asked])
    answered = [(index, one) for (index, _), one in zip(asked, seen, strict=True) if one is not None]
    found = proposed([states[index] for index, _ in answered], [one for _, one in answered], name, probe.tuning)
    return [(index, candidates) for (index, _), candidates in zip(answered, found, strict=True)]


def _tile(state: PairState, tile: tuple[float, float, float], probe: Probe) -> Window:
    height, width = state.target_hw
    top, left, side = tile
    box = Box(left * width, top * height, (left + side) * width, (top + side) * height)
    return Window.fit(box, (height, width)).resized(probe.size_hw or (height, width))


def _merged(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Best first, without those whose box an earlier one nearly repeats."""
    boxes, scores = [one.box for one in candidates], [one.score for one in candidates]
    return [candidates[i] for i in distinct(boxes, scores, len(candidates), CANDIDATE_NMS_IOU)]


LOCALIZERS: dict[str, Localizer] = {
    "predicted": predicted,
    "consensus": consensus,
    "search": search,
    "best": best,
    "given": given,
}


def agreed(
    states: Sequence[PairState], seen: Sequence[Observation], area: Sequence[float], tuning: Tuning
) -> layout.Similarity:
    """(B, …) transforms that most answers of each pass agree with, best first: computed once for each pass.

    Args:
        states, seen: pairs, and one pass over each.
        area: of the part of the target that each searched, pixels squared; 0 where it was cut around the object.
        tuning: the constants.
    """
    for cut, count in ((False, tuning.proposals), (True, tuning.window_proposals)):
        new = [i for i, one in enumerate(seen) if one.transforms is None and cut == (area[i] == 0)]
        if new:
            source, answers, share = stacked_answers([states[i] for i in new], [[seen[i]] for i in new])
            areas = source.new_tensor([area[i] for i in new])
            part = replace(tuning, proposals=count)
            found = layout.propose(source, answers[:, :, 0], share[:, :, 0], areas, tuning=part)
            for row, i in enumerate(new):
                seen[i].transforms = found[row : row + 1]
    return layout.joined([one.transforms for one in seen if one.transforms is not None])


def proposed(
    states: Sequence[PairState], seen: Sequence[Observation], name: str, tuning: Tuning
) -> list[list[Candidate]]:
    """The boxes of the keypoints under the transforms that most answers of one pass each agree with."""
    if not states:
        return []
    transforms = agreed(states, seen, [one.target.box.area for one in seen], tuning)
    found = []
    for index, state in enumerate(states):
        framing = torch.from_numpy(state.points[state.framing])
        placed = transforms[index](framing.expand(transforms.score.shape[1], -1, -1)).numpy()
        found.append(_distinct(placed, transforms.score[index].numpy(), state, name))
    return found


def _distinct(placed: Points, scores: Points, state: PairState, name: str) -> list[Candidate]:
    """The candidates of transforms, best first, that put the framing points (F, 2) at `placed` (Q, F, 2)."""
    edges = state.edges_of(placed)
    there = np.flatnonzero((scores > 0) & (edges[:, 2:] > edges[:, :2]).any(axis=1))
    kept = there[distinct(edges[there], scores[there], MAX_CANDIDATES, CANDIDATE_NMS_IOU)]
    return [Candidate(Box(*edges[i].tolist()), float(scores[i]), name) for i in kept]


def stacked_answers(
    states: Sequence[PairState], seen: Sequence[Sequence[Observation]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Source points (B, S, 2), a matcher's answers (B, S, P, M, 2) in each pass and their shares (B, S, P, M).

    Padded with share 0.
    """
    most = max(len(state.points) for state in states)
    passes = max(map(len, seen))
    places = max(one.share.shape[1] for found in seen for one in found)
    source = np.zeros((len(states), most, 2))
    answers, share = np.zeros((len(seen), most, passes, places, 2)), np.zeros((len(seen), most, passes, places))
    for i, (state, found) in enumerate(zip(states, seen, strict=True)):
        source[i, : len(state.points)] = np.where(state.usable[:, None], state.points, 0.0)
        for j, one in enumerate(found):
            rows, filled = one.share.shape
            answers[i, :rows, j, :filled] = one.answers
            share[i, :rows, j, :filled] = one.share * state.usable[:, None]
    return torch.from_numpy(source), torch.from_numpy(answers), torch.from_numpy(share)


def _keypoints(state: PairState, seen: Observation | None) -> Points:
    """(K, 2) a pass's own answers for the known keypoints."""
    assert seen is not None
    return seen.own[: len(state.known)][state.known]
