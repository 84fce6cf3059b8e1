"""The layout: where a smooth, bending map of the object's points lies that most of a matcher's answers agree on.

Two steps. `propose` finds the similarity transforms (mirrored ones too) from source to target that many answers agree
with: pairs of answers propose them, all answers vote (a deterministic relative of RANSAC). `fit` starts from one
and estimates, by expectation maximisation, which answers are right, how exact they are and how the object bends: a
Gaussian process over the object gives the deviation from the transform, so that near points move together and far ones
for themselves. This is vector field consensus (Ma et al., "Robust point matching via vector field consensus", IEEE TIP
2014) with several possible places a point, several passes over the same object, and a transform as its mean; these, the
kernel and every constant (`kbc.tuning`) are our choice, measured in `examples/results/tuning.md`.

The same model serves every matcher. Where answers are exact, they carry the layout: it goes through them. Where they
scatter, their neighbours correct them. How far to trust a matcher is estimated from the pair at hand.

Shapes: B problems of S source points, P passes, M places a pass may give for a point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from kbc.tuning import TUNING, Tuning

_TINY = 1e-12
_LEAST_LOG = (
    -40.0
)  # what is less likely than exp of this counts alike; numbers too small for their type take far longer
_UNRELATED_SIZE = 1.0  # side, in object sizes, of the square in which a wrong answer may lie anywhere


@dataclass(frozen=True, eq=False)
class Similarity:
    """Similarity transforms z ↦ turn · z + shift of points taken for complex numbers x + iy, batched over (…).

    Attributes:
        turn: (…) complex, scale · (cos + i sin).
        shift: (…) complex, target pixels.
        mirrored: (…) whether z is turned left to right before, into −x + iy.
        score: (…) the share of answers that agree with it, [0, 1].
    """

    turn: Tensor
    shift: Tensor
    mirrored: Tensor
    score: Tensor

    def __call__(self, points: Tensor) -> Tensor:
        """Source points (…, S, 2) in the target."""
        return torch.view_as_real(self.placed(_complex(points)))

    def placed(self, z: Tensor) -> Tensor:
        """Source points (…, S), complex, in the target."""
        return self.turn[..., None] * torch.where(self.mirrored[..., None], _turned(z), z) + self.shift[..., None]

    def __getitem__(self, index: object) -> Similarity:
        return Similarity(*(getattr(self, name)[index] for name in ("turn", "shift", "mirrored", "score")))

    def to(self, dtype: torch.dtype) -> Similarity:
        """The same in another precision, of which the real type is given."""
        turn, shift = self.turn.to(dtype.to_complex()), self.shift.to(dtype.to_complex())
        return Similarity(turn, shift, self.mirrored, self.score.to(dtype))


@dataclass(frozen=True, eq=False)
class Layout:
    """Fitted layouts, batched over B.

    Attributes:
        points: (B, S, 2) where the source points lie in the target, pixels.
        others: (B, S, 2) where a point lies by all points but itself; `others_variance` (B, S).
        noise: (B, P) deviation of a right answer from the layout, pixels.
        trust: (B, P) share of a pass's answers that are right.
        size: (B,) of the object in the target, pixels.
        evidence: (B, P) mean over the points of the log likelihood of a pass's answers against answers anywhere.
        mirrored: (B,) whether the layout is mirrored.
    """

    points: Tensor
    others: Tensor
    others_variance: Tensor
    noise: Tensor
    trust: Tensor
    size: Tensor
    evidence: Tensor
    mirrored: Tensor

    def one(self, index: int, points: int, passes: int) -> Layout:
        """Problem `index` for itself, without the rows and passes that fill it up to the size of others."""
        i, s, p = slice(index, index + 1), slice(points), slice(passes)
        return Layout(
            self.points[i, s],
            self.others[i, s],
            self.others_variance[i, s],
            self.noise[i, p],
            self.trust[i, p],
            self.size[i],
            self.evidence[i, p],
            self.mirrored[i],
        )


@lru_cache(maxsize=4)
def _draws(count: int) -> Tensor:
    """(2, count) fixed fractions in [0, 1): which two answers make each proposal. The same at every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, count, generator=generator, dtype=torch.float64, device="cpu")


@torch.inference_mode()
def propose(
    source: Tensor,
    answers: Tensor,
    share: Tensor,
    area: Tensor,
    *,
    most: int = 40,
    tuning: Tuning = TUNING,
) -> Similarity:
    """The similarity transforms that most answers agree with, best first, one problem at a time batched.

    Every place that a point may have speaks, not its likeliest alone: on a small object most likeliest places are
    wrong, and what tells it from the background is that many points have *some* place where one transform puts them.

    Args:
        source: (B, S, 2) source points, pixels.
        answers: (B, S, M, 2) target pixels.
        share: (B, S, M) how likely each is, before the neighbours are asked; 0 where there is none.
        area: (B,) of the part of the target that was searched, pixels squared; 0 where it was cut around the object.
        most: how many.

    Returns:
        (B, most) transforms; score 0 where there are fewer.
    """
    batch = len(share)
    asked = share.sum(2) > 0
    # Single precision: none of this has to be exact, `fit` does it again. Places before points: torch adds up faster.
    start = torch.where(asked[..., None], source, 0.0).float()
    goal = torch.where(share[..., None] > 0, answers, 0.0).float().transpose(1, 2).contiguous()
    weight, area = share.float().transpose(1, 2).contiguous(), area.float()
    size = _extent(start, asked)
    found, points = _through_two(start, goal, weight, size, tuning)
    # All on a part of the points first, the better ones on all.
    part = _spread(asked, tuning.rough_points)
    rough = _agreement(found, *_rows(part, start, goal, weight), size, area, tuning).sum(2) * found.score
    kept = rough.topk(max(rough.shape[1] // 4, min(most, rough.shape[1])), dim=1).indices
    rows = torch.arange(batch, device=kept.device)[:, None]
    found, points = found[rows, kept], points.gather(2, kept.expand(2, -1, -1))
    nats = _agreement(found, start, goal, weight, size, area, tuning)
    nats = nats.sum(2) - nats.gather(2, points.movedim(0, -1)).sum(2)  # the two that proposed it agree anyway
    nats = nats / asked.sum(1, keepdim=True).clamp_min(1) - torch.where(found.mirrored, tuning.mirror_doubt, 0.0)
    found = replace(found, score=nats.clamp_min(0.0) * found.score)
    best = found.score.topk(min(most, kept.shape[1]), dim=1).indices
    found = found[rows, best].to(source.dtype)
    return _or_moved(found, source, answers[:, :, 0], share[:, :, 0])


def _spread(asked: Tensor, most: int) -> Tensor:
    """(B, most) which of the asked points (B, S), spread over all of them: in a batch the same ones as alone."""
    order = torch.argsort(~asked, dim=1, stable=True)  # the asked ones first
    known = asked.sum(1, keepdim=True)
    return order.gather(1, (torch.arange(most, device=asked.device) * known // most).clamp_max(asked.shape[1] - 1))


def _rows(part: Tensor, start: Tensor, goal: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The points `part` (B, R) of (B, S, 2) source points, their (B, M, S, 2) places and (B, M, S) shares."""
    index = part[:, None].expand(-1, goal.shape[1], -1)
    places = goal.gather(2, index[..., None].expand(-1, -1, -1, 2))
    return _take(start, part), places, share.gather(2, index)


def _through_two(start: Tensor, goal: Tensor, share: Tensor, size: Tensor, tuning: Tuning) -> tuple[Similarity, Tensor]:
    """The transforms, upright and mirrored, that put two points exactly at two of their places, drawn by their shares.

    Args:
        start: (B, S, 2) source points.
        goal, share: (B, M, S, 2) and (B, M, S) their places and how likely each is.
        size: (B,) of the object in the source.
        tuning: the constants.

    Returns:
        (B, Q) transforms, score 1, or 0 where the two lie too near each other to tell; and (2, B, Q) the two points.
    """
    batch, places, count = share.shape
    chances = share.flatten(1)
    total = chances.cumsum(1) / chances.sum(1, keepdim=True).clamp_min(_TINY)
    draws = _draws(tuning.proposals).to(start)[:, None].expand(-1, batch, -1).contiguous()
    drawn = torch.searchsorted(total.expand(2, -1, -1).contiguous(), draws).clamp_max(count * places - 1)
    points, (first, second) = drawn % count, (_complex(goal).flatten(1).gather(1, one) for one in drawn)
    near, far = (_complex(start).gather(1, one) for one in points)
    near, far = (torch.cat([z, _turned(z)], 1) for z in (near, far))
    first, second = (torch.cat([z, z], 1) for z in (first, second))
    base = far - near
    apart = base.abs() > 0.25 * size[:, None]
    turn = (second - first) / torch.where(apart, base, 1.0)
    told = apart & (turn.abs() * size[:, None] > 1e-3)
    mirrored = (torch.arange(len(told[0]), device=told.device) >= draws.shape[2]).expand_as(told)
    return Similarity(turn, first - turn * near, mirrored, told.to(start)), torch.cat([points, points], 2)


def _or_moved(found: Similarity, source: Tensor, goal: Tensor, weight: Tensor) -> Similarity:
    """A plain move by the mean where no two answers propose anything: a single point, or all in one place."""
    total = weight.sum(1, keepdim=True).clamp_min(_TINY)
    start = torch.where(weight[..., None] > 0, source, 0.0)
    shift = _complex(((goal - start) * weight[..., None]).sum(1) / total)
    none = found.score <= 0
    turn, shift = torch.where(none, 1.0, found.turn), torch.where(none, shift[:, None], found.shift)
    return Similarity(turn, shift, found.mirrored & ~none, found.score)


def _agreement(
    proposed: Similarity,
    start: Tensor,
    goal: Tensor,
    share: Tensor,
    size: Tensor,
    area: Tensor,
    tuning: Tuning,
) -> Tensor:
    """(B, Q, S) nats by which a point's places (B, M, S, 2) speak for each proposal, against places anywhere.

    Anywhere is as large as the object, which favours no size. Where a larger part was searched, it lies between the two
    (`Tuning.chance_area`): a small object is then found by less agreement, as that is less likely by chance.
    """
    scale = proposed.turn.abs() * size[:, None]
    reach = torch.maximum(tuning.agreement_reach * scale, tuning.least_reach * area.sqrt()[:, None]).clamp_min(_TINY)
    sharpness = (-0.5 / reach.square())[..., None]
    there = proposed.placed(_complex(start)[:, None])
    x, y = there.real.contiguous(), there.imag.contiguous()
    near = torch.zeros_like(x)
    for place, chance in zip(goal.unbind(1), share.unbind(1), strict=True):
        u, v = place.unbind(-1)
        squared = (x - u[:, None]).square_().add_((y - v[:, None]).square_())
        near.addcmul_(squared.mul_(sharpness).clamp_min_(_LEAST_LOG).exp_(), chance[:, None])
    anywhere = scale.square().clamp_min(_TINY)
    searched = torch.where(area[:, None] > 0, area[:, None], anywhere)
    anywhere = anywhere * (searched / anywhere) ** tuning.chance_area
    near *= (anywhere / (2 * math.pi * reach.square()))[..., None]
    asked = share.sum(1) > 0
    return torch.log1p(tuning.proposal_trust * (near - 1)).mul_(asked[:, None])


@torch.inference_mode()
def fit(
    source: Tensor,
    answers: Tensor,
    share: Tensor,
    start: Similarity,
    cell: Tensor,
    tuning: Tuning = TUNING,
) -> Layout:
    """The layout that the answers of one or more passes agree on, from a first transform on.

    Args:
        source: (B, S, 2) source points, pixels; any value where a point has no answer in any pass.
        answers: (B, S, P, M, 2) target pixels; any finite value where `share` is 0.
        share: (B, S, P, M) how likely each of a pass's answers is the point's, before neighbours are asked: sums to 1
            over M, 0 where there is none.
        start: (B,) transforms.
        cell: (B, P) target pixels that one cell of the matcher covers in a pass; 0 where not known.
    """
    passes = share.shape[2]
    asked = share.sum(3) > 0  # (B, S, P)
    any_asked = asked.any(2)
    size = _extent(source, any_asked)
    asked_count = asked.sum(1).clamp_min(1)
    middle = (source * any_asked[..., None]).sum(1) / any_asked.sum(1).clamp_min(1)[:, None]
    unit = torch.where(any_asked[..., None], (source - middle[:, None]) / size[:, None, None], 0.0)
    kernel = _kernel(unit, tuning)
    mirrored = torch.where(start.mirrored[:, None], _turned(_complex(unit)), _complex(unit))
    scale = (start.turn.abs() * size).clamp_min(1e-3)  # the object's size in the target
    points = start(torch.where(any_asked[..., None], source, middle[:, None]))
    noise = (tuning.agreement_reach * scale)[:, None].expand(-1, passes)
    trust = torch.full_like(noise, 0.5)
    squared = (answers - points[:, :, None, None]).square().sum(-1)
    for _ in range(tuning.rounds):
        right = _responsibility(squared, share, noise, trust, scale)
        weights = right / noise.square()[:, None, :, None]
        precision = weights.sum((2, 3))
        target = (weights[..., None] * answers).sum((2, 3)) / precision.clamp_min(_TINY)[..., None]
        rigid, scale = _rigid(mirrored, target, precision, scale)
        target = torch.where((precision > 1e-9 / scale.square()[:, None])[..., None], target, rigid)
        spread = tuning.shared_errors / (precision * scale.square()[:, None]).clamp_min(1e-9)
        solved, _ = _solved(kernel, spread, (target - rigid) / scale[:, None, None])
        points = rigid + scale[:, None, None] * (kernel @ solved)
        squared = (answers - points[:, :, None, None]).square().sum(-1)
        agreed = right.sum((1, 3))
        variance = (right * squared).sum((1, 3)) / (2 * agreed).clamp_min(_TINY)
        low = torch.maximum(tuning.noise_floor * scale[:, None], tuning.cell_floor * cell)
        noise = variance.sqrt().minimum(tuning.noise_ceiling * scale[:, None]).maximum(low)
        trust = ((agreed + 2) / (asked_count + 4)).clamp(0.02, 0.98)
    likely = (share * _gaussian(squared, noise.square()[:, None, :, None])).sum(3)
    ratio = torch.log(trust[:, None] * likely * _unrelated(scale)[:, None, None] + 1 - trust[:, None])
    evidence = torch.where(asked, ratio, 0.0).sum(1) / asked_count
    # Evidence is of the smooth layout: points that move by themselves would agree with anything.
    local = _local_bend(noise, asked.any(1), scale, tuning)[:, None]
    solved, factor = _solved(kernel, spread + local, (target - rigid) / scale[:, None, None])
    points = rigid + scale[:, None, None] * (kernel @ solved + local[..., None] * solved)
    diagonal = torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2)
    others = target - scale[:, None, None] * solved / diagonal[..., None]
    others_variance = (1 / diagonal - spread).clamp_min(0.0) * scale.square()[:, None]
    return Layout(points, others, others_variance, noise, trust, scale, evidence, start.mirrored)


@torch.inference_mode()
def place(fitted: Layout, answers: Tensor, share: Tensor, tuning: Tuning = TUNING) -> Tensor:
    """Each point's place (B, S, 2), target pixels: the layout's, or the matcher's own where a part is likelier bent.

    An answer that lies where the other points do not expect it is wrong, or its part has moved by itself (a lowered
    head, a bent leg); how often each happens is known from the pair's other points.
    """
    squared = (answers - fitted.others[:, :, None, None]).square().sum(-1)
    tight = fitted.noise.square()[:, None, :, None] + fitted.others_variance[:, :, None, None]
    loose = tight + (tuning.loose_size * fitted.size).square()[:, None, None, None]
    prior = share * fitted.trust[:, None, :, None]
    near = (1 - tuning.loose_share) * prior * _gaussian(squared, tight)
    bent = tuning.loose_share * prior * _gaussian(squared, loose)
    wrong = (1 - fitted.trust)[:, None] / _unrelated(fitted.size)[:, None, None]
    total = (near + bent).sum(3)
    right = (total / (total + wrong)).amax(2)
    best = (near + bent).flatten(2).argmax(2, keepdim=True)
    own = answers.flatten(2, 3).gather(2, best[..., None].expand(-1, -1, -1, 2))[:, :, 0]
    is_bent = (bent.flatten(2).gather(2, best) > near.flatten(2).gather(2, best))[..., 0]
    return torch.where((is_bent & (right > 0.5))[..., None], own, fitted.points)


def joined(transforms: Sequence[Similarity], dim: int = 0) -> Similarity:
    """Transforms one behind the other: those of several batches as one batch, or along another dimension."""
    names = ("turn", "shift", "mirrored", "score")
    return Similarity(*(torch.cat([getattr(one, name) for one in transforms], dim) for name in names))


def _kernel(unit: Tensor, tuning: Tuning) -> Tensor:
    """(B, S, S) covariance of the deviations from the transform, in units of the object's size."""
    squared = (unit[:, :, None] - unit[:, None]).square().sum(-1)
    bend = tuning.bend_size**2 * torch.exp(-0.5 * squared / tuning.bend_reach**2)
    return bend + tuning.stretch**2 * (unit @ unit.mT)


def _solved(kernel: Tensor, variance: Tensor, bend: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (B, S, 2) by which the kernel gives `bend`, known to a variance (B, S); and their system factored."""
    system = kernel.clone()
    system.diagonal(dim1=1, dim2=2).add_(variance)
    factor = torch.linalg.cholesky_ex(system)[0]
    return torch.cholesky_solve(bend, factor), factor


def _local_bend(noise: Tensor, asked: Tensor, scale: Tensor, tuning: Tuning) -> Tensor:
    """(B,) variance of what each point moves by itself, in units of the object's size.

    Nothing where the answers of every asked pass (B, P) scatter about the layout, by the deviation `noise` (B, P): they
    are mistaken there, and not the object bent.
    """
    scatter = torch.where(asked, noise, math.inf).amin(1) / scale
    return tuning.local_bend**2 * torch.exp(-2 * (scatter / tuning.sure_noise) ** 4)


def _unrelated(scale: Tensor) -> Tensor:
    """(B,) the area, pixels squared, over which wrong answers are taken to be spread."""
    return (_UNRELATED_SIZE * scale).square().clamp_min(_TINY)


def _gaussian(squared: Tensor, variance: Tensor) -> Tensor:
    """Density in the plane at a squared distance."""
    variance = variance.clamp_min(_TINY)
    return torch.exp((-0.5 * squared / variance).clamp_min(_LEAST_LOG)) / (2 * math.pi * variance)


def _responsibility(squared: Tensor, share: Tensor, noise: Tensor, trust: Tensor, scale: Tensor) -> Tensor:
    """(B, S, P, M) probability that each answer, so far from its point, is the right one."""
    right = trust[:, None, :, None] * share * _gaussian(squared, noise.square()[:, None, :, None])
    wrong = (1 - trust)[:, None, :] / _unrelated(scale)[:, None, None]
    return right / (right.sum(3) + wrong)[..., None]


def _rigid(unit: Tensor, target: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted least-squares similarity of complex unit points (B, S) to a target (B, S, 2).

    Returns:
        (B, S, 2) where it puts the points; and its scale (B,), that given where the points do not tell.
    """
    share = weight / weight.sum(1, keepdim=True).clamp_min(_TINY)
    goal = _complex(target)
    from_middle, to_middle = ((share * z).sum(1, keepdim=True) for z in (unit, goal))
    start = unit - from_middle
    spread = (share * start.abs().square()).sum(1)
    turn = (share * start.conj() * (goal - to_middle)).sum(1) / spread.clamp_min(_TINY)
    found = turn.abs()
    keep = (found > 1e-6) & (spread > _TINY)
    turn = torch.where(keep, turn, scale)[:, None]
    return torch.view_as_real(turn * start + to_middle), torch.where(keep, found, scale).clamp_min(1e-3)


def _extent(points: Tensor, weight: Tensor) -> Tensor:
    """(B,) longer side of the box of the points (B, S, 2) that have weight (B, S); at least a millionth."""
    given = (weight > 0)[..., None]
    high = torch.where(given, points, torch.nan).nan_to_num(-math.inf).amax(-2)
    low = torch.where(given, points, torch.nan).nan_to_num(math.inf).amin(-2)
    return (high - low).amax(-1).clamp_min(1e-6)


def _take(points: Tensor, index: Tensor) -> Tensor:
    return points.gather(1, index[..., None].expand(-1, -1, 2))


def _complex(points: Tensor) -> Tensor:
    """Points (…, 2) as complex numbers (…): what multiplies them turns and scales."""
    return torch.view_as_complex(points.contiguous())


def _turned(z: Tensor) -> Tensor:
    """Points turned left to right."""
    return -z.conj()
