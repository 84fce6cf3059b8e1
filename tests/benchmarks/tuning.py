"""Sweep the constants of `kbc.tuning` over photographs and simulated matchers; write examples/results/tuning.md.

    python tests/benchmarks/tuning.py --data $KBC_DATA --out examples/results/tuning.md

One constant at a time, the others as they are. Columns: ResNet-18 on photographs at `fast` and `balanced`, and the
simulated matcher of strength.py at three strengths. PCK@0.1 as in localize.py, mean over the sets.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import strength
import torch
from localize import open_sets, usable

import kbc
from kbc.data import open_dataset
from kbc.pipeline import KBCMatcher
from kbc.tuning import TUNING

SWEEPS: dict[str, list[Any]] = {
    "support_count": [30, 80, 150],
    "peaks": [1, 3, 5],
    "peak_sharpness": [0.75, 1.5, 3.0],
    "agreement_reach": [0.08, 0.12, 0.18],
    "proposals": [256, 512, 1024],
    "window_proposals": [64, 128, 512],
    "rounds": [3, 4, 8],
    "least_reach": [0.0, 0.03, 0.06],
    "chance_area": [0.0, 0.5, 0.8],
    "proposal_trust": [0.15, 0.3, 0.6],
    "mirror_doubt": [0.0, 0.1, 0.3],
    "bend_size": [0.08, 0.12, 0.18],
    "bend_reach": [0.2, 0.35, 0.6],
    "noise_ceiling": [0.08, 0.12, 0.2],
    "loose_share": [0.03, 0.1, 0.3],
    "mirror_penalty": [0.2, 0.45, 0.8],
    "heard": [0.3, 1.0, 2.0],
    "search_below": [1.0, 1.5, 2.0],
    "lost_below": [0.0, 0.75, 1.0],
    "elsewhere": [-9.0, 1.0, 1.5, 2.0],
    "least_evidence": [-9.0, 0.2, 0.8],
}
PHOTOGRAPHS = ("pf-willow f=1", "pf-willow f=3", "livestock-small", "treadscan", "dlc-openfield")
DRAWN = ("livestock-small", "dlc-openfield", "treadscan", "willow3")
NOISES = (0.6, 1.2, 2.0)
ROWS = {
    "fast": kbc.KBCConfig(),
    "balanced": kbc.KBCConfig(budget="balanced"),
    "thorough": kbc.KBCConfig(budget="thorough"),
}

Example = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Source, target, source points, target points."""


def photographs(data: Path, limit: int) -> Iterator[list[Example]]:
    for name, opened in open_sets(data, limit):
        if name in PHOTOGRAPHS:
            dataset = opened().limited(limit)
            pairs = [(record, dataset.load(record)) for record in dataset]
            yield [(p.source, p.target, usable(r), r.target_keypoints) for r, p in pairs]


def drawings(data: Path, limit: int) -> Iterator[list[Example]]:
    for name in DRAWN:
        factor = int(name[6:]) if name.startswith("willow") else 1
        kind, folder = ("pfwillow", "pf-willow") if factor > 1 else ("coco", name)
        dataset, rng = open_dataset(kind, data / folder), np.random.default_rng(3)
        drawn, found = strength.Drawn(dataset), []
        for record in dataset.limited(limit):
            pair = dataset.load(record)
            source = drawn(record.source_path, pair.source.shape[:2])
            target, truth = drawn(record.target_path, pair.target.shape[:2]), record.target_keypoints
            points = record.keypoints
            if factor > 1:
                source, points = strength.pasted(rng, source, points, factor)
                target, truth = strength.pasted(rng, target, truth, factor)
            found.append((source, target, points, truth))
        yield found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with data/ and weights/")
    parser.add_argument("--limit", type=int, default=24, help="pairs a set")
    parser.add_argument("--fields", help="only these, with commas")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    weights = args.data / "weights" / "resnet18-imagenet-to-layer3.pth"
    real = kbc.load_matcher("resnet18", weights=weights)
    groups = {"photographs": (real, list(photographs(args.data / "data", args.limit)))}
    drawn = list(drawings(args.data / "data", args.limit))
    for noise in NOISES:
        matcher = kbc.from_features(strength.encoder(noise), stride=16, size=256, normalise=False)
        groups[f"noise {noise}"] = matcher, drawn
    columns = [f"{group}, {row}" for group in groups for row in ROWS]
    lines = [
        "# How the constants of `kbc.tuning` were chosen",
        "",
        f"Made by `python tests/benchmarks/tuning.py --data $KBC_DATA --limit {args.limit}`: PCK@0.1, one constant at "
        f"a time, mean over {len(PHOTOGRAPHS)} sets of photographs (ResNet-18, 256 px) and {len(DRAWN)} drawn ones "
        "(strength.py). The value in use is bold.",
        "",
        "| constant | value | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for field in args.fields.split(",") if args.fields else SWEEPS:
        for value in SWEEPS[field]:
            tuning = replace(TUNING, **{field: value})
            cells = [
                np.mean([strength.pck(KBCMatcher(matcher, config, tuning), examples).mean() for examples in sets])
                for matcher, sets in groups.values()
                for config in ROWS.values()
            ]
            shown = f"**{value}**" if value == getattr(TUNING, field) else f"{value}"
            lines.append(f"| `{field}` | {shown} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
            print(lines[-1], flush=True)
            if args.out:
                args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
