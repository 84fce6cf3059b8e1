"""PCK@0.1 of a matcher without and with KBC, on held-out scenes, PF-WILLOW and the held-out part of photographs.

    python examples/kbcnet/measure.py --on scenes --pairs 200
    python examples/kbcnet/measure.py --on pf-willow livestock-small --data $KBC_DATA/data \
        --option weights=runs/kbcnet-resnet18/kbcnet-resnet18.safetensors --option backbone_weights=resnet18.pth
    python examples/kbcnet/measure.py --on pf-willow --data $KBC_DATA/data \
        --matcher resnet18 --option weights=resnet18.pth
    python examples/kbcnet/measure.py --on pf-willow --data $KBC_DATA/data --untrained kbcnet-resnet18 \
        --option backbone_weights=resnet18.pth --set model.csfa=false --set 'model.decoder=[]'

The interval holds 95 % of 2000 draws of the images, not of the pairs, which share images: a pair counts as often as the
product of how often each of its images was drawn (Owen, The pigeonhole bootstrap, 2007).
Distances are compared with 0.1 × the longer extent of the target's true keypoints, in original pixels, over all points.
The photographs are those that the split of the training recipes holds back; PF-WILLOW is never trained on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kbc
from kbc.cli.options import key_values
from kbc.data.coco import open_coco
from kbc.data.scenes.render import scene_pair
from kbc.evaluation.pck import Protocol, correct
from kbc.geometry import Points
from kbc.kbcnet.backbone import resnet_weights
from kbc.kbcnet.checkpoint import empty_network, put_backbone
from kbc.kbcnet.matcher import KBCNet
from kbc.kbcnet.training.recipe import read_recipe
from kbc.kbcnet.training.sources import read_split

Labelled = tuple[kbc.Pair, Points, set[str]]
"""A pair, the true points, and which images it is of."""

HELD_OUT_SEED = 31  # of the scenes: no recipe uses it
PROTOCOL = Protocol(alphas=(0.1,), threshold="bbox-kp")


def scenes(count: int) -> Iterator[Labelled]:
    """Pairs with objects of 8–25 % of the image's side."""
    for seed in range(count):
        scene = scene_pair([HELD_OUT_SEED, seed])
        pair = scene.pair
        asked = kbc.Pair(pair.source, pair.target, pair.keypoints, target_box=scene.target_box)
        yield asked, scene.target_keypoints, {str(seed)}


def photographs(root: Path, name: str, count: int) -> Iterator[Labelled]:
    """Evenly spread pairs of a set; of a set that is also trained on, only pairs of two held-out images."""
    dataset = open_coco(root / name)
    parts = read_split("photos-split.json").get(name)
    if parts is not None:
        held_out = {(root / name / file).resolve() for file in parts["test"]}
        dataset = dataset.subset(
            r for r in dataset.records if {r.source_path.resolve(), r.target_path.resolve()} <= held_out
        )
    for record in dataset.limited(min(count, len(dataset))).records:
        images = {str(record.source_path), str(record.target_path)}
        yield dataset.load(record, "target"), record.target_keypoints, images


def measure(matcher: Any, labelled: list[Labelled], given: bool) -> tuple[list[tuple[int, int]], float]:
    """(points right, points) of each pair, and seconds per pair."""
    counts = []
    started = time.perf_counter()
    for pair, truth, _ in labelled:
        asked = pair if given else kbc.Pair(pair.source, pair.target, pair.keypoints)
        found = matcher.match([asked])[0].keypoints
        right = correct(found, truth, pair.target.shape[:2], protocol=PROTOCOL)
        counts.append((int(right.sum()), len(right)))
    return counts, (time.perf_counter() - started) / len(labelled)


def interval(counts: list[tuple[int, int]], images: list[set[str]]) -> tuple[float, float]:
    """95 % interval of the percentage over draws of the images."""
    names = sorted(set().union(*images))
    index = {name: i for i, name in enumerate(names)}
    draws = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=2000)
    weights = np.stack([draws[:, [index[name] for name in pair]].prod(axis=1) for pair in images], axis=1)
    right, points = (weights @ np.array(counts)).T
    low, high = np.percentile(100 * right / np.maximum(points, 1), [2.5, 97.5])
    return float(low), float(high)


def untrained(recipe: str, changes: dict[str, Any], backbone_weights: str) -> KBCNet:
    """A recipe's network as training starts it. Without CSFA and decoder: nearest neighbour on the recipe's grid."""
    config = read_recipe(recipe, changes).model
    state, learned_coarse = resnet_weights(config, backbone_weights)
    network = empty_network(config, learned_coarse=learned_coarse)
    put_backbone(network, state)
    return KBCNet(network, name=f"untrained {recipe}")


def main() -> None:
    """Print one table row per set and way of matching."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", nargs="+", default=["scenes"], help="scenes, or names of sets below --data")
    parser.add_argument("--data", type=Path, help="folder of the photographs")
    parser.add_argument("--pairs", type=int, default=100, help="pairs per set at most (default 100)")
    parser.add_argument("--matcher", default="kbcnet")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the matcher")
    parser.add_argument("--untrained", metavar="RECIPE", help="a KBCNet as its training starts, instead of --matcher")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe's field")
    parser.add_argument("--budget", default="balanced", help="of KBC (default balanced)")
    parser.add_argument("--plain", action="store_true", help="without KBC only")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    options, changes = key_values(args.option), key_values(args.set, "--set")
    matcher: Any
    if args.untrained:
        matcher = untrained(args.untrained, changes, **options)
    else:
        matcher = kbc.load_matcher(args.matcher, **options)
    ways: list[tuple[str, Any, bool]] = [("no KBC", matcher, False)]
    if not args.plain:
        ways.append((f"KBC, {args.budget}", kbc.wrap(matcher, budget=args.budget), False))
        ways.append(("KBC, true target box", kbc.wrap(matcher, localizer="given"), True))
    print("| set | pairs | points | way | PCK@0.1 | 95 % | s/pair |\n|---|---|---|---|---|---|---|")
    for name in args.on:
        labelled = list(scenes(args.pairs) if name == "scenes" else photographs(args.data, name, args.pairs))
        for way, wrapped, given in ways:
            counts, seconds = measure(wrapped, labelled, given)
            right, points = np.sum(counts, axis=0)
            low, high = interval(counts, [images for *_, images in labelled])
            row = f"| {name} | {len(labelled)} | {points} | {way} | {100 * right / points:.1f} | {low:.0f} – {high:.0f}"
            print(f"{row} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
