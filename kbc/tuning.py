"""Every number that steers KBC's answers and is no option of the user's, in one frozen place.

Each was chosen by a sweep over photographs (ResNet-18) and over the simulated matchers of every strength;
`examples/results/tuning.md` holds the figures and the command that makes them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """The constants of the core. Lengths are fractions of the object's size: the longer side of its keypoints' box.

    Attributes:
        support_count: support points asked beside the keypoints, about.
        support_reach: how far outside the keypoints' hull they lie at most.
        min_points_for_extent: fewer keypoints than this do not show how large their object is.
        guessed_side: least side of the square taken for the object of so few points; fraction of the image's side.
        peaks: places a point may have on one similarity map.
        peak_sharpness: a peak one deviation of the map lower is exp(this) times less likely.
        proposals, window_proposals: pairs of answers that each propose a similarity transform, and the same where the
            target was cut around the object.
        rough_points: points on which all proposals are compared first; the best quarter then on all.
        agreement_reach: deviation of an answer from a proposed transform that counts as agreeing.
        least_reach: the same, at least; fraction of the side of the part of the target that was searched.
        chance_area: how far the area in which answers lie by chance is that searched (1) and not the object's (0).
        proposal_trust: share of the answers taken to be right where transforms are compared.
        mirror_doubt: what a mirrored transform must have more, nats a point.
        bend_size, bend_reach: deviation of the object's parts from a similarity transform, and over what distance on
            the object it changes.
        stretch: deviation of an affine part of that.
        shared_errors: near points err alike, so that their answers bend the layout as this many times fewer would.
        local_bend, sure_noise: deviation of single points from that; it counts only where right answers scatter about
            the layout by less than the second: elsewhere they are mistaken, and not the object bent.
        noise_floor, noise_ceiling: bounds on the deviation of a right answer from the layout.
        cell_floor: the same floor in cells of the matcher, where those are known.
        rounds: of estimating who is right and where the layout lies.
        loose_share, loose_size: how often a part lies where its neighbours do not say, and how far off.
        heard, heard_mirrored: passes whose worth is lower than the best by more than this have no say; the second where
            one saw the object's mirror image and found it all the same: its left and right are mixed up.
        doubt: evidence below which a matcher that pays for every pair looks at the source mirrored; one that shares
            features always does, where the budget allows it.
        search_below: where the best proposal has fewer nats a point than this, `thorough` searches the whole target.
        lost_below: where it has fewer even than this, `balanced` and `thorough` ask the whole source mirrored.
        surer: where the best closer look is worth less than the coarse one and this, `thorough` searches too.
        same_place: IoU above which two boxes of an object are one place.
        elsewhere: what a fine pass that puts the object elsewhere than the coarse one must be worth more to be taken,
            added to `accept_margin`.
        calibration: of the confidence: constant, then a weight for each of `kbc.confidence.CLUES`.
        calibration_forward: the same for a matcher that pays for every pair, and is not asked back.
        least_evidence: worth below which a fine pass is refused: its answers agree on nothing.
        mirror_penalty: what a mirrored layout must be better, nats a point: symmetric things look right either way.
    """

    support_count: int = 80
    support_reach: float = 0.05
    min_points_for_extent: int = 4
    guessed_side: float = 0.25
    peaks: int = 3
    peak_sharpness: float = 1.5
    proposals: int = 512
    window_proposals: int = 128
    rough_points: int = 20
    agreement_reach: float = 0.12
    least_reach: float = 0.03
    chance_area: float = 0.5
    proposal_trust: float = 0.3
    mirror_doubt: float = 0.1
    bend_size: float = 0.12
    bend_reach: float = 0.35
    stretch: float = 0.15
    shared_errors: float = 2.0
    local_bend: float = 0.045
    sure_noise: float = 0.03
    noise_floor: float = 0.02
    noise_ceiling: float = 0.12
    cell_floor: float = 0.15
    rounds: int = 4
    loose_share: float = 0.1
    loose_size: float = 0.25
    mirror_penalty: float = 0.45
    heard: float = 1.0
    heard_mirrored: float = 0.5
    doubt: float = 1.5
    search_below: float = 1.5
    lost_below: float = 1.0
    surer: float = 0.5
    same_place: float = 0.1
    elsewhere: float = 1.5
    least_evidence: float = 0.2
    calibration: tuple[float, ...] = (0.36, 3.29, -7.38, -1.06, 0.59, 0.78, 0.0)
    calibration_forward: tuple[float, ...] = (-0.74, 4.1, -6.75, -0.78, 0.75, 0.41, -0.25)


TUNING = Tuning()
