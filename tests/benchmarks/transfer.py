"""One labelled picture → the others: accuracy, confidence, human effort, instances, time; examples/results/transfer.md.

Run: KBC_DATA=… python tests/benchmarks/transfer.py [--targets 10] [--seed 1] > examples/results/transfer.md
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import kbc
from kbc.errors import KBCError
from kbc.geometry import Box, Points, defined
from kbc.images import load_image
from kbc.labelling import Detection, Exemplar, Labeller, read_labels
from kbc.labelling.labels import Labels
from kbc.matchers.protocol import run_matcher
from kbc.pipeline import KBCMatcher
from kbc.types import MatchResult, Pair

SETS = ("livestock-small", "treadscan", "dlc-openfield", "dlib-faces", "pf-willow")
HELD_OUT = ("livestock-mid", "coco-person", "glue-tubes")
"""Sets on which neither the confidence nor the combination of exemplars was fitted."""
CROWDED = ("dlib-faces", "coco-person", "glue-tubes")
"""More objects in a picture than are annotated: the target's box is given, or nobody could know which one is meant."""
COUNTS = (1, 3, 5, 10)
ASKED_OF_TEN = 3
DEFAULT_WAY = f"{ASKED_OF_TEN} of 10"
SEVERAL = (*CROWDED, "treadscan")
"""Sets that have pictures with several annotated objects."""
MOST_INSTANCES = 10
"""Objects that are looked for in a picture without boxes: the number is not known either."""


class Remembering(KBCMatcher):
    """A matcher that answers what it has been asked before from memory, one target at a time."""

    def __init__(self, inner: KBCMatcher) -> None:
        super().__init__(inner.matcher, inner.config)
        self.held: dict[tuple[int, bytes, object], MatchResult] = {}
        self.target: object = None

    def match(self, pairs, progress=None):  # type: ignore[no-untyped-def]
        """As `KBCMatcher.match`."""
        pairs = list(pairs)
        if pairs and pairs[0].target is not self.target:
            self.held, self.target = {}, pairs[0].target
        keys = [(id(pair.source), pair.keypoints.tobytes(), pair.target_box) for pair in pairs]
        new = [(key, pair) for key, pair in zip(keys, pairs, strict=True) if key not in self.held]
        if new:
            found = super().match([pair for _, pair in new])
            self.held.update(zip([key for key, _ in new], found, strict=True))
        return [self.held[key] for key in keys]


@dataclass
class Group:
    """The points of one set and category under one way of asking."""

    right: list[np.ndarray] = field(default_factory=list)
    confidence: list[np.ndarray] = field(default_factory=list)
    score: list[np.ndarray] = field(default_factory=list)

    def add(self, right: np.ndarray, confidence: np.ndarray, score: np.ndarray | None = None) -> None:
        """One picture's points."""
        self.right.append(right)
        self.confidence.append(np.nan_to_num(confidence))
        self.score.append(np.zeros(len(right)) if score is None else np.nan_to_num(score))

    @property
    def pck(self) -> float:
        """Mean over pictures, per cent."""
        return 100 * float(np.mean([part.mean() for part in self.right]))


def auroc(score: np.ndarray, right: np.ndarray) -> float:
    """How often a right point has a higher score than a wrong one."""
    good, bad = score[right], score[~right]
    if not len(good) or not len(bad):
        return float("nan")
    return float((np.greater.outer(good, bad) + 0.5 * np.equal.outer(good, bad)).mean())


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error over ten bins of equal width."""
    bins = np.clip((confidence * 10).astype(int), 0, 9)
    return float(
        sum(abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in set(bins))
    )


def effort(order: np.ndarray, right: np.ndarray, wanted: float = 0.95) -> float:
    """Share of the points to look at (and put right), in this order, until `wanted` of all are right; per cent."""
    fixed = np.cumsum(~right[order])
    enough = np.flatnonzero(np.concatenate([[0], fixed]) + right.sum() >= wanted * len(right))
    return 100 * float(enough[0]) / len(right)


def by_category(labels: Labels, name: str) -> Iterator[tuple[str, list[Exemplar]]]:
    """A set's exemplars by what is reported apart: cows and sheep, else category by category."""
    for category in labels.categories:
        members = [
            one for one in labels.exemplars if one.category == category.name and defined(one.keypoints).sum() > 1
        ]
        if len(members) > 3:
            yield (f"{name}, {category.name}" if name.startswith("livestock") else name), members


def extent(one: Exemplar) -> Box:
    """The annotated box, else the keypoints' extent."""
    box = one.box or Box.around(one.keypoints)
    assert box is not None
    return box


def right(found: Points, one: Exemplar) -> np.ndarray:
    """Which of the annotated points were found: within a tenth of the longer side."""
    known = defined(one.keypoints)
    away = np.linalg.norm(found[known] - one.keypoints[known], axis=1)
    return np.asarray(np.nan_to_num(away, nan=np.inf) <= 0.1 * extent(one).longest)


def measure(
    name: str, wrapped: KBCMatcher, targets: int, seed: int, counts: Sequence[int] = COUNTS
) -> dict[str, dict[str, Group]]:
    """Set or category → way of asking → its points."""
    labels = read_labels(data_root() / name / "annotations.json")
    found: dict[str, dict[str, Group]] = {}
    for label, members in by_category(labels, name):
        rng = np.random.default_rng(seed)
        groups = found.setdefault(label, {})
        count = max(targets // 3, 2) if name == "pf-willow" else targets
        for index in rng.permutation(len(members))[:count]:
            one = members[index]
            others = [other for other in members if other.image != one.image]
            drawn = [others[i] for i in rng.permutation(len(others))[:10]]
            boxed = name in CROWDED or sum(other.image == one.image for other in labels.exemplars) > 1
            ask_about(one, drawn, wrapped, boxed, groups, counts)
    return found


def ask_about(
    one: Exemplar,
    drawn: Sequence[Exemplar],
    wrapped: KBCMatcher,
    boxed: bool,
    groups: dict[str, Group],
    counts: Sequence[int],
) -> None:
    """One target, by so many exemplars, by the likest three of ten, and without KBC."""
    remembering = Remembering(wrapped)
    target = load_image(one.image)
    boxes = [Detection(extent(one))] if boxed else None
    known = defined(one.keypoints)
    ways = [(str(count), drawn[:count], count) for count in counts]
    ways.append((DEFAULT_WAY, list(drawn), ASKED_OF_TEN))
    for way, exemplars, ask in ways:
        result = Labeller(exemplars, remembering, ask=ask)(target, boxes)
        points, sure = np.full(one.keypoints.shape, np.nan), np.zeros(len(known))
        if result.objects:
            points, sure = result.objects[0].keypoints, result.objects[0].confidence
        score = next(iter(remembering.held.values())).score if way == "1" else None
        groups.setdefault(way, Group()).add(right(points, one), sure[known], None if score is None else score[known])
    plain = run_matcher(wrapped.matcher, [Pair(load_image(e.image), target, e.keypoints) for e in drawn])
    nearest = Labeller(drawn, remembering, ask=1)._likest(one.category, target)[0]
    for way, place in (("plain 1", 0), ("plain nearest of 10", nearest)):
        groups.setdefault(way, Group()).add(right(plain[place].keypoints, one), np.zeros(known.sum()))


def instances(name: str, wrapped: KBCMatcher, pictures: int, seed: int) -> list[object]:
    """The row of a set in the table of several objects a picture, five exemplars of other pictures."""
    labels = read_labels(data_root() / name / "annotations.json")
    rng = np.random.default_rng(seed)
    paths = list(dict.fromkeys(one.image for one in labels.exemplars))
    several = [p for p in paths if sum(one.image == p for one in labels.exemplars) > 1]
    annotated, shares, alike = 0, [], []
    found: list[tuple[float, bool]] = []
    for place in rng.permutation(len(several))[:pictures]:
        truth = [one for one in labels.exemplars if one.image == several[place]]
        others = [one for one in labels.exemplars if one.image != several[place] and defined(one.keypoints).sum() > 1]
        drawn = [others[i] for i in rng.permutation(len(others))[:5]]
        annotated += len(truth)
        left = list(truth)
        for seen in Labeller(drawn, wrapped, instances=MOST_INSTANCES)(truth[0].image).objects:
            scores = [oks(seen.keypoints, other) for other in left]
            hit = max(scores, default=0.0) >= 0.5
            found.append((seen.sureness, hit))
            if hit:
                left.pop(int(np.argmax(scores)))
        labeller, image = Labeller(drawn, wrapped), load_image(truth[0].image)
        for one in truth:
            told = labeller(image, [Detection(extent(one))]).objects
            points = told[0].keypoints if told else np.full(one.keypoints.shape, np.nan)
            shares.append(right(points, one).mean())
            alike.append(oks(points, one) >= 0.5)
    cells: list[object] = [f"{name} ({min(pictures, len(several))})", annotated]
    for least in (0.0, 0.5):
        hits = [hit for sure, hit in found if sure >= least]
        cells += [len(hits), 100 * sum(hits) / annotated, 100 * float(np.mean(hits)) if hits else "–"]
    return [*cells, 100 * float(np.mean(alike)), 100 * float(np.mean(shares))]


def oks(found: Points, one: Exemplar) -> float:
    """COCO's object keypoint similarity with one fall-off for all points, 0.1 of the square root of the box's area."""
    known = defined(one.keypoints)
    away = np.linalg.norm(found[known] - one.keypoints[known], axis=1)
    return float(np.nan_to_num(np.exp(-(away**2) / (2 * extent(one).area * 0.1**2))).mean())


def data_root() -> Path:
    """The folder of the sets."""
    import os

    return Path(os.environ["KBC_DATA"]) / "data"


def weights() -> str:
    """ResNet-18's weights."""
    return str(data_root().parent / "weights" / "resnet18-imagenet-to-layer3.pth")


def matchers() -> dict[str, KBCMatcher]:
    """ResNet-18 first; the others for the confidence alone."""
    resnet = kbc.load_matcher("resnet18", weights=weights())
    bare = kbc.load_matcher("resnet18", weights=weights())

    def function(source: np.ndarray, target: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        return run_matcher(bare, [Pair(source, target, keypoints)])[0].keypoints

    found = {
        "resnet18": resnet,
        "hog": kbc.load_matcher("hog"),
        "kbcnet-tiny": kbc.load_matcher("kbcnet"),
        "a bare function (ResNet-18's answers)": function,
    }
    return {name: kbc.wrap(matcher, budget="balanced") for name, matcher in found.items()}


def row(*cells: object) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"


def head(*cells: str) -> str:
    """A table's first two lines."""
    return row(*cells) + "\n|" + "---|" * len(cells)


Figures = dict[str, dict[str, Group]]


def accuracy(figures: Figures) -> Iterator[str]:
    """PCK by the number of exemplars."""
    ways = ["plain 1", "plain nearest of 10", *map(str, COUNTS), DEFAULT_WAY]
    yield head("set (targets)", "one, no KBC", "nearest of 10, no KBC", *(f"{c}" for c in COUNTS), "likest 3 of 10")
    for name, groups in figures.items():
        yield row(f"{name} ({len(groups['1'].right)})", *(groups[way].pck for way in ways))
    yield row("mean", *(float(np.mean([groups[way].pck for groups in figures.values()])) for way in ways))


def confidence(figures: Figures, ways: Sequence[str]) -> Iterator[str]:
    """How well the confidence tells right from wrong, and whether it means what it says."""
    columns = [f"{what}, {way}" for way in ways for what in ("AUROC", "ECE")]
    yield head("set", "points", *columns)
    total: list[list[float]] = []
    for name, groups in figures.items():
        values = []
        for way in ways:
            sure, good = np.concatenate(groups[way].confidence), np.concatenate(groups[way].right)
            values += [auroc(sure, good), calibration_error(sure, good)]
        total.append(values)
        yield row(name, len(good), *(f"{value:.2f}" for value in values))
    yield row("mean", "", *(f"{value:.2f}" for value in np.nanmean(np.array(total), axis=0)))


def reliability(figures: Figures, way: str) -> Iterator[str]:
    """What share is right where the confidence says so much."""
    sure = np.concatenate([part for groups in figures.values() for part in groups[way].confidence])
    good = np.concatenate([part for groups in figures.values() for part in groups[way].right])
    bins = np.clip((sure * 10).astype(int), 0, 9)
    yield head("confidence", *(f"{b / 10:.1f}–{(b + 1) / 10:.1f}" for b in range(10)))
    yield row("right, %", *(100 * float(good[bins == b].mean()) if (bins == b).any() else "–" for b in range(10)))
    yield row("points", *(int((bins == b).sum()) for b in range(10)))


def human(figures: Figures, seed: int) -> Iterator[str]:
    """The share of points to look at until 95 % are right."""
    yield head(
        "set", "1: confidence", "1: score", "1: random", "3 of 10: confidence", "3 of 10: random", "perfect order"
    )
    total = []
    rng = np.random.default_rng(seed)
    for name, groups in figures.items():
        values: list[float] = []
        for way in ("1", DEFAULT_WAY):
            good, sure, score = (
                np.concatenate(getattr(groups[way], what)) for what in ("right", "confidence", "score")
            )
            orders = [np.argsort(sure, kind="stable")]
            orders += [np.argsort(score, kind="stable")] if way == "1" else []
            values += [effort(order, good) for order in orders]
            values.append(float(np.mean([effort(rng.permutation(len(good)), good) for _ in range(20)])))
        values.append(effort(np.argsort(good, kind="stable"), good))
        total.append(values)
        yield row(name, *values)
    yield row("mean", *map(float, np.mean(total, axis=0)))


def main() -> None:
    """Measure and print the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--targets", type=int, default=10, help="of each set; a third on each category of PF-WILLOW")
    parser.add_argument("--others", type=int, default=3, help="the same for the matchers other than ResNet-18")
    parser.add_argument("--seed", type=int, default=1, help="the combination was fitted on draws of seed 0")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    wrapped = matchers()
    resnet = wrapped.pop("resnet18")
    fitted: Figures = {}
    held_out: Figures = {}
    for sets, figures in ((SETS, fitted), (HELD_OUT, held_out)):
        for name in sets:
            figures |= measure(name, resnet, args.targets, args.seed)
            print(f"{name} {time.perf_counter() - start:.0f} s", file=sys.stderr)
    asked = f"--targets {args.targets} --others {args.others} --seed {args.seed}"
    lines = [TOP.format(command=f"python tests/benchmarks/transfer.py {asked}")]
    lines += ["## Accuracy\n", *accuracy(fitted), "", "Sets that nothing was fitted on:\n", *accuracy(held_out)]
    ways = ("1", "5", DEFAULT_WAY)
    lines += ["\n## Confidence\n", *confidence(fitted, ways), "", "Sets that nothing was fitted on:\n"]
    lines += [*confidence(held_out, ways), "", "Reliability, all sets together, likest 3 of 10:\n"]
    lines += [*reliability(fitted | held_out, DEFAULT_WAY), "", "Other matchers, fewer targets, likest 3 of 10:\n"]
    lines += [head("matcher", "points right, %", "AUROC, mean of sets", "ECE, mean of sets")]
    for name, other in wrapped.items():
        lines.append(row(name, *_summary(other, args.others, args.seed)))
        print(f"{name} {time.perf_counter() - start:.0f} s", file=sys.stderr)
    lines += ["\n## Human effort\n", EFFORT, *human(fitted | held_out, args.seed)]
    lines += ["\n## Several objects a picture\n", INSTANCES, head(
        "set (pictures)", "objects", "said", "found, %", "precision, %", "said, sure", "found, %", "precision, %",
        "box given: OKS ≥ 0.5, %", "box given: PCK@0.1",
    )]  # fmt: skip
    lines += [row(*instances(name, resnet, args.targets, args.seed)) for name in SEVERAL]
    print("\n".join(lines))
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)


def _summary(wrapped: KBCMatcher, targets: int, seed: int) -> tuple[float, str, str]:
    """Per cent right, mean AUROC and mean calibration error over the sets."""
    figures: Figures = {}
    for name in (*SETS, *HELD_OUT):
        try:
            figures |= measure(name, wrapped, targets, seed, (1,))
        except KBCError as error:
            print(f"{name}: {error}", file=sys.stderr)
    values = []
    for groups in figures.values():
        sure, good = (np.concatenate(getattr(groups[DEFAULT_WAY], what)) for what in ("confidence", "right"))
        values.append([groups[DEFAULT_WAY].pck, auroc(sure, good), calibration_error(sure, good)])
    right_, ranked, error_ = np.nanmean(np.array(values), axis=0)
    return float(right_), f"{ranked:.2f}", f"{error_:.2f}"


TOP = """# One labelled picture → the others

Made by `{command}` (45 minutes of one busy core, two
thirds of them for the other matchers). Matcher `resnet18` (ImageNet, layers 2+3, 256 px), budget `balanced`.

Leave one out: each target is answered by up to ten exemplars drawn at random from other pictures of its category (nine
on PF-WILLOW). A point is right within 0.1 of the longer side of the object's annotated box, or of the extent of its
points where there is none; per cent, mean over pictures. The target's box is given on dlib-faces, coco-person and
glue-tubes, and on treadscan's pictures with several wheels; "no KBC" sees the whole picture there, too. "1", "3", "5",
"10" ask so many random exemplars, all of them; "likest 3 of 10" has ten and asks three, as `kbc transfer` does by
default. Ten targets a row are few: one of them is ten points of a row.

**What falls short.** Asked for were five exemplars that beat one by five points on the mean (they do, by fifteen), and
a confidence with an AUROC of 0.85 on the mean of the sets and 0.75 on each and an ECE of at most 0.08 on sets that
nothing was fitted on: with three of ten exemplars the AUROC is 0.77 and 0.68 on the means, 0.68 on cows and horses and
0.39 on the twenty points of the tubes (two of which are wrong), and of the sets left out one has the ECE.

People are found neither without boxes nor with them, and no rule of ours is the cause. Six pictures looked at: their
people, and the exemplars', are 40 to 250 px large spectators, diners, surfers and players, half hidden and each in
another pose. Of 21 pairs with both true boxes cut out ResNet-18 alone has 14 % of the points right, KBC 11 %. Their
mean confidence says so: of the 34 objects said below two have 0.5 or more.
"""
EFFORT = """The share of points, in per cent, that a person looks at, and corrects where wrong, until 95 % of all points
are right. With one exemplar: the least confident first, the lowest score of the matcher first, any order. "Perfect
order": only wrong ones, with likest 3 of 10.
"""
INSTANCES = f"""Five random exemplars of other pictures, on pictures with several annotated objects (no livestock has).
Without boxes at most {MOST_INSTANCES} objects a picture (`--instances {MOST_INSTANCES}`): an object is right when its
OKS with an annotated one is at least 0.5 (one fall-off for all points: 0.1 of the square root of the box's area).
Objects that nobody annotated count as wrong. "Sure": only those with a mean confidence of at least 0.5. With the
annotated boxes given (`--boxes`): the share of objects that are right, and of their points.
"""

if __name__ == "__main__":
    main()
