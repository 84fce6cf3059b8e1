"""What several exemplars' agreement is worth: the two constants of `kbc.labelling.combine`, fitted and tried.

Run: KBC_DATA=… python tests/benchmarks/combine.py [--targets 8] [--seed 0] [--matchers resnet18 hog]

Prints for a grid of both constants the mean log loss, and for the best and those in use the calibration error and the
AUROC of each set; the best is chosen without the set that it is tried on. One to five minutes a matcher.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from transfer import (
    CROWDED,
    HELD_OUT,
    SETS,
    auroc,
    by_category,
    calibration_error,
    data_root,
    extent,
    head,
    right,
    row,
    weights,
)

import kbc
from kbc.geometry import defined
from kbc.images import load_image
from kbc.labelling import combine, read_labels
from kbc.labelling.combine import Answers, by_name, combined, objects
from kbc.labelling.labels import Exemplar
from kbc.pipeline import KBCMatcher
from kbc.types import Pair

COUNTS = (2, 3, 5)
SHARES, NUMBERS = np.arange(1, 6.1, 0.5), np.arange(0, 1.3, 0.3)
Case = tuple[Answers, Exemplar]
Constants = tuple[float, float]


def collect(name: str, wrapped: KBCMatcher, targets: int, seed: int) -> list[Case]:
    """What the most exemplars say of each target of a set."""
    found = []
    labels = read_labels(data_root() / name / "annotations.json")
    for _, members in by_category(labels, name):
        rng = np.random.default_rng(seed)
        count = max(targets // 3, 2) if name == "pf-willow" else targets
        for one in (members[i] for i in rng.permutation(len(members))[:count]):
            others = [other for other in members if other.image != one.image]
            drawn = [others[i] for i in rng.permutation(len(others))[: max(COUNTS)]]
            boxed = name in CROWDED or sum(other.image == one.image for other in labels.exemplars) > 1
            box = extent(one) if boxed else None
            target = load_image(one.image)
            results = wrapped.match([Pair(load_image(e.image), target, e.keypoints, e.box, box) for e in drawn])
            answers = Answers(
                np.stack([by_name(one.names, e.names, r.keypoints) for e, r in zip(drawn, results, strict=True)]),
                np.stack([by_name(one.names, e.names, r.confidence) for e, r in zip(drawn, results, strict=True)]),
                np.array([extent_of(r.keypoints) for r in results]),
            )
            found.append((answers, one))
    return found


def extent_of(points: np.ndarray) -> float:
    """Longer side of the points' box, pixels; at least 1."""
    box = kbc.Box.around(points)
    return 1.0 if box is None else max(box.longest, 1.0)


def said(cases: Sequence[Case], constants: Constants) -> tuple[np.ndarray, np.ndarray]:
    """Confidence of all annotated points by the first 2, 3 and 5 exemplars, and whether they are right."""
    combine.BY_SHARE, combine.BY_NUMBER = constants
    sure, good = [], []
    for (answers, one), count in product(cases, COUNTS):
        part = Answers(answers.points[:count], answers.confidence[:count], answers.size[:count])
        for group in objects(part)[:1]:
            points, confidence, _ = combined(part, group)
            sure.append(confidence[defined(one.keypoints)])
            good.append(right(points, one))
    return np.concatenate(sure), np.concatenate(good)


def loss(sure: np.ndarray, good: np.ndarray) -> float:
    """Mean log loss, nats."""
    sure = np.clip(sure, 1e-3, 1 - 1e-3)
    return float(-np.where(good, np.log(sure), np.log(1 - sure)).mean())


def main() -> None:
    """Collect, fit and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=int, default=8, help="of each set and category; a third on PF-WILLOW")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--matchers", nargs="+", default=["resnet18", "hog"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    in_use = combine.BY_SHARE, combine.BY_NUMBER
    cells = {}
    for matcher in args.matchers:
        options = {"weights": weights()} if matcher.startswith("resnet") else {}
        wrapped = kbc.wrap(kbc.load_matcher(matcher, **options), budget="balanced")
        for name in (*SETS, *HELD_OUT):
            cells[matcher, name] = collect(name, wrapped, args.targets, args.seed)
    grid = [(float(share), float(number)) for share, number in product(SHARES, NUMBERS)]
    losses = {key: np.array([loss(*said(cases, constants)) for constants in grid]) for key, cases in cells.items()}
    mean = np.mean(list(losses.values()), axis=0)
    print(head("by share \\ by number", *(f"{number:.1f}" for number in NUMBERS)))
    for share, values in zip(SHARES, mean.reshape(len(SHARES), -1), strict=True):
        print(row(f"{share:.1f}", *(f"{value:.3f}" for value in values)))
    print("\nfitted on all sets:", grid[int(np.argmin(mean))], "in use:", in_use, "\n")
    print(
        head(
            "matcher, set", "points", "right, %", "ECE, in use", "ECE, fitted without", "AUROC, in use", "AUROC, fitted"
        )
    )
    total = []
    for key, cases in cells.items():
        without = grid[int(np.argmin(sum(values for other, values in losses.items() if other[1] != key[1])))]
        (old, good), (new, _) = said(cases, in_use), said(cases, without)
        values = [calibration_error(old, good), calibration_error(new, good), auroc(old, good), auroc(new, good)]
        total.append(values)
        print(row(", ".join(key), len(good), 100 * float(good.mean()), *(f"{value:.2f}" for value in values)))
    print(row("mean", "", "", *(f"{value:.2f}" for value in np.nanmean(np.array(total), axis=0))))


if __name__ == "__main__":
    main()
