"""The points' joint layout: where would the whole set of keypoints fit best on the similarity maps?

One keypoint's map is full of look-alikes; the set is not. Each pose (place, size, mirror, turn) of the source's layout
collects, at every point's place, the evidence of that point's own map, blurred by how far parts may move. This is a
generalised Hough transform with soft votes. Related: Cho et al., "Unsupervised Object Discovery and Localization in the
Wild" (CVPR 2015) and Ham et al., "Proposal Flow" (arXiv 1511.05065), which vote with region matches; the form here,
its log-likelihood score and its use as a prior for each point are our choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kbc.geometry import Box, Points, Window, defined
from kbc.images import require_cv2

Maps = npt.NDArray[np.float32]
"""(N, h, w): similarity of each of N points to the cells that tile a window, row by row."""

SHARPNESS = 2.0
"""Softmax sharpness on maps scaled to unit deviation. Our choice, measured on real photographs."""
FINDING_SHARPNESS = 8.0
"""The same where the whole target is searched: most of a picture is not the object, and only peaks speak against that
much of it. Our choice, measured: any value from 8 to 32 finds as much, 2 far less.
"""
TOLERANCE = 0.10
"""How far a part may lie from its place in the layout: one deviation, as a fraction of the layout's longer side."""
TURN_PENALTY = 0.2
"""What a turned layout must have more, nats a point: most things stand upright. Our choice, measured."""
FLOOR = 0.3
"""Evidence every place has, against the uniform map's 1: bounds what one occluded or mistaken point can cost."""
TAIL = 0.02
"""Prior weight of places far from the pose, against 1 at its centre."""
_FINER = 3
_NEAR = 3
_MOST_PAIRS = 400
_CHANNELS = 64


@dataclass(frozen=True, eq=False)
class Pose:
    """A placed layout.

    Attributes:
        points: (N, 2) where the points would lie, in the target's pixels.
        score: mean log evidence against a uniform map; 0 is chance.
    """

    points: Points
    score: float

    @property
    def span(self) -> float:
        """The longer side of the layout, pixels."""
        return max(float(np.ptp(self.points, axis=0).max()), 1e-6)


def evidence(maps: Maps, sharpness: float = SHARPNESS) -> Maps:
    """Similarity maps as densities against the uniform one: (N, h, w), mean 1 each.

    Maps are scaled by their common deviation first, so that cosines, correlations and logits compare.
    """
    count = maps.shape[0]
    flat = maps.reshape(count, -1).astype(np.float32)
    scale = float(np.mean(flat.std(axis=1))) or 1.0
    logits = flat * (sharpness / scale)
    logits -= logits.max(axis=1, keepdims=True)
    density = np.exp(logits)
    density *= flat.shape[1] / density.sum(axis=1, keepdims=True)
    return np.asarray(density.reshape(maps.shape), dtype=np.float32)


def vote(
    density: Maps,
    window: Window,
    layout: Points,
    spans: Sequence[float],
    *,
    turns: Sequence[float] = (0.0,),
) -> list[Pose]:
    """The best place of each (size, mirror, turn) of a layout, best first.

    Args:
        density: (N, h, w) from `evidence`, over `window`.
        window: the part of the target that the maps cover.
        layout: (N, 2) source points, all defined.
        spans: sizes to try: the layout's longer side, in the target's pixels.
        turns: in-plane rotations to try, radians; all but 0 pay `TURN_PENALTY`.
    """
    cv2 = require_cv2()
    count, height, width = density.shape
    to_cells = window.resized((height, width))
    sx, sy = to_cells.scale_xy
    middle = (layout.min(axis=0) + layout.max(axis=0)) / 2
    unit = (layout - middle) / max(float(np.ptp(layout, axis=0).max()), 1e-6)
    stacked = np.ascontiguousarray(density.transpose(1, 2, 0))
    found: list[Pose] = []
    for span in spans:
        reach = TOLERANCE * span
        blurred = _blur(cv2, stacked, reach * sx, reach * sy)
        logs = np.log(blurred + FLOOR)
        for mirror, turn in ((m, t) for t in turns for m in (1.0, -1.0)):
            cos, sin = np.cos(turn), np.sin(turn)
            placed = (unit * (mirror, 1.0)) @ np.array([[cos, sin], [-sin, cos]]) * span
            steps = np.rint(placed * (sx, sy)).astype(int)
            total = _shifted_sum(logs, steps)
            at = int(total.argmax())
            y, x = divmod(at, total.shape[1])
            centre = to_cells.to_image(np.array([[x, y]], dtype=np.float64))
            score = float(total.flat[at]) / count - (TURN_PENALTY if turn else 0.0)
            found.append(Pose(centre + placed, score))
    found.sort(key=lambda pose: -pose.score)
    return found


def _blur(cv2: Any, stacked: Maps, sigma_x: float, sigma_y: float) -> Maps:
    """Gaussian blur of (h, w, N); no blur below a third of a cell."""
    if max(sigma_x, sigma_y) < 0.33:
        return stacked
    sigmas = {"sigmaX": max(sigma_x, 0.1), "sigmaY": max(sigma_y, 0.1)}
    return _per_channels(stacked, lambda part: cv2.GaussianBlur(part, (0, 0), **sigmas, borderType=2))


def _per_channels(stacked: Maps, function: Callable[[Maps], Maps]) -> Maps:
    """Apply an OpenCV function to (h, w, N) in parts: OpenCV takes a limited number of channels at once."""
    parts = []
    for start in range(0, stacked.shape[2], _CHANNELS):
        part = np.ascontiguousarray(stacked[:, :, start : start + _CHANNELS])
        done = np.asarray(function(part), dtype=np.float32)
        parts.append(done.reshape(*done.shape[:2], part.shape[2]))
    return np.concatenate(parts, axis=2)


def _shifted_sum(logs: Maps, steps: npt.NDArray[np.int_]) -> npt.NDArray[np.float32]:
    """Σ_k logs[y + dy_k, x + dx_k, k] for every (y, x); a point off the maps costs one nat."""
    height, width, count = logs.shape
    total = np.full((height, width), -1.0 * count, dtype=np.float32)
    for index in range(count):
        dx, dy = int(steps[index, 0]), int(steps[index, 1])
        y0, y1, x0, x1 = max(0, -dy), min(height, height - dy), max(0, -dx), min(width, width - dx)
        if y0 < y1 and x0 < x1:
            total[y0:y1, x0:x1] += logs[y0 + dy : y1 + dy, x0 + dx : x1 + dx, index] + 1.0
    return total


def choose(
    maps: Maps, window: Window, pose: Pose, *, sharpness: float = SHARPNESS, tolerance: float = TOLERANCE
) -> tuple[Points, npt.NDArray[np.float64]]:
    """Each point's best place given its own map and the pose: (N, 2) target pixels, and its log evidence (N,).

    The pose is a prior with a heavy tail: a part may leave its place when its own map is sure enough.
    """
    cv2 = require_cv2()
    count, height, width = maps.shape
    fine_hw = (height * _FINER, width * _FINER)
    logits = np.log(evidence(maps, sharpness).transpose(1, 2, 0) + 1e-6)
    logits = _per_channels(logits, lambda part: cv2.resize(part, fine_hw[::-1], interpolation=cv2.INTER_CUBIC))
    frame = window.resized(fine_hw)
    centre = frame.to_window(pose.points)
    sx, sy = (scale * tolerance * pose.span for scale in frame.scale_xy)
    away_x = ((np.arange(fine_hw[1])[:, None] - centre[:, 0]) / sx) ** 2
    away_y = ((np.arange(fine_hw[0])[:, None] - centre[:, 1]) / sy) ** 2
    prior = np.exp(-0.5 * away_y)[:, None] * np.exp(-0.5 * away_x)[None]
    posterior = logits + np.log(prior + TAIL)
    best = posterior.reshape(-1, count).argmax(axis=0)
    y, x = np.divmod(best, fine_hw[1])
    points = np.stack([x, y], axis=1).astype(np.float64)
    for index in range(count):
        points[index] = _local_mean(posterior[:, :, index], int(x[index]), int(y[index]))
    return frame.to_image(points), logits.reshape(-1, count)[best, np.arange(count)].astype(np.float64)


def _local_mean(values: npt.NDArray[np.floating], x: int, y: int) -> tuple[float, float]:
    """The softmax-weighted mean place around a peak: sub-cell precision."""
    y0, x0 = max(y - _NEAR, 0), max(x - _NEAR, 0)
    part = values[y0 : y + _NEAR + 1, x0 : x + _NEAR + 1]
    weight = np.exp(part - part.max())
    weight /= weight.sum()
    return (
        x0 + float(weight.sum(axis=0) @ np.arange(part.shape[1])),
        y0 + float(weight.sum(axis=1) @ np.arange(part.shape[0])),
    )


def consensus(layout: Points, found: Points, tolerance: float = TOLERANCE) -> Pose | None:
    """The similarity (mirror allowed) from source points to predictions that most of them agree with.

    Every pair of points proposes one; each point then votes by its distance, measured in the proposed size, so that a
    collapsed proposal gains nothing. Deterministic, unlike sampling. None with fewer than two distinct points.

    Args:
        layout, found: (N, 2), all defined.

    Returns:
        The pose, its score the mean vote in [0, 1]: how well the answers keep the source's layout.
    """
    count = len(layout)
    if count < 2:
        return None
    first, second = np.triu_indices(count, 1)
    if len(first) > _MOST_PAIRS:
        keep = np.linspace(0, len(first) - 1, _MOST_PAIRS).astype(int)
        first, second = first[keep], second[keep]
    goal = found[:, 0] + 1j * found[:, 1]
    size = max(float(np.ptp(layout, axis=0).max()), 1e-6)
    best: Pose | None = None
    for mirror in (1.0, -1.0):
        start = mirror * layout[:, 0] + 1j * layout[:, 1]
        base = start[second] - start[first]
        usable = np.abs(base) > 1e-3 * size
        if not usable.any():
            continue
        i, j = first[usable], second[usable]
        turn = (goal[j] - goal[i]) / base[usable]
        placed = turn[:, None] * (start[None] - start[i][:, None]) + goal[i][:, None]
        reach = np.maximum(tolerance * np.abs(turn) * size, 1e-6)
        votes = np.exp(-0.5 * (np.abs(placed - goal) / reach[:, None]) ** 2)
        votes[np.arange(len(i)), i] = votes[np.arange(len(i)), j] = 0  # the two that proposed it agree by construction
        votes[np.abs(turn) * size < 1e-3] = 0  # answers all in one place keep no layout
        # Two points agree with anything: their own vote counts little, and less the more points there are.
        score = (votes.sum(axis=1) + 1.0) / (count - 1.0)
        at = int(score.argmax())
        if best is None or score[at] > best.score:
            best = Pose(np.stack([placed[at].real, placed[at].imag], axis=1), float(score[at]))
    return best


def combine(
    answers: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], reach: float
) -> tuple[Points, npt.NDArray[np.int_]]:
    """Each point's place by several answers: the weighted mean of those near the one that most weight lies near.

    Args:
        answers: (A, N, 2) places in one frame, NaN where there is none.
        weights: (A, N) what each is worth, positive.
        reach: how far apart two answers may be and still mean the same place: one deviation, in the answers' unit.

    Returns:
        (N, 2), NaN where there is no answer; and (N,) the answer that each place was gathered around.
    """
    given = defined(answers)
    places, worth = np.where(given[:, :, None], answers, 0.0), np.where(given, weights, 0.0)
    away = np.linalg.norm(places[:, None] - places[None], axis=3) / max(reach, 1e-9)
    support = np.exp(-0.5 * away**2) * worth[None]
    chosen = np.where(given, support.sum(axis=1), -1.0).argmax(axis=0)
    near = support[chosen, :, np.arange(answers.shape[1])]
    total = near.sum(axis=1, keepdims=True)
    mean = np.einsum("na,anc->nc", near, places) / np.maximum(total, 1e-300)
    return np.where(total > 0, mean, np.nan), chosen


def spans(limit: float, low: float, high: float, step: float = 1.25) -> Iterator[float]:
    """Sizes from `low` to `high` times `limit`, each `step` times the last, pixels."""
    span = low
    while span <= high + 1e-9:
        yield span * limit
        span *= step


def pose_box(pose: Pose) -> Box:
    """The box of a pose's points, target pixel edges."""
    box = Box.around(pose.points)
    assert box is not None
    return box
