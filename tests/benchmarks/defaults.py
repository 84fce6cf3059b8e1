"""Measure the defaults of KBCConfig on real photographs and write examples/results/defaults.md.

    python tests/benchmarks/defaults.py --data $KBC_DATA --out examples/results/defaults.md

One field at a time, the others at their defaults, the target box given (so that only the crop is measured) and the
matcher's own points, unless the field is about something else. PCK@0.1 as in localize.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

import kbc

sys.path.insert(0, str(Path(__file__).parent))
from localize import keypoint_box, mean, open_sets, score, usable

SETS = ("pf-willow f=1", "pf-willow f=3", "livestock-small", "treadscan", "dlc-openfield")
SWEEPS: dict[str, list[Any]] = {
    "margin": [0.1, 0.25, 0.4, 0.6],
    "aspect": ["square", "image"],
    "interpolation": ["cubic", "linear"],
    "max_enlargement": [1.0, 2.0, 4.0, 8.0, 16.0],
    "small_below": [0.25, 0.35, 0.5, 0.7, 1.0],
    "passes": [1, 2, 3],
    "mirror": [False, True],
    "accept_margin": [-10.0, -3.0, -1.5, 0.0],
}
BALANCED = {"passes", "mirror"}
GUESSED = {"small_below", "accept_margin"} | BALANCED
"""Fields that are measured with the target box to be found, by `best` at the default budget or at balanced."""


def measure(dataset: Any, matcher: Any, field: str, value: Any) -> list[dict[str, float]]:
    options: dict[str, Any] = {field: value}
    if field not in GUESSED:
        options |= {"joint": False, "passes": 1, "small_below": 1.0}
    elif field in BALANCED:
        options |= {"budget": "balanced"}
    wrapped = kbc.wrap(matcher, **options)
    rows = []
    for record in dataset:
        pair = dataset.load(record)
        box = None if field in GUESSED else keypoint_box(record)
        asked = kbc.Pair(pair.source, pair.target, usable(record), None, box)
        found = wrapped.match([asked])[0].keypoints
        rows.append({"pck": score(record, found, pair.target.shape[:2])})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    matcher = kbc.load_matcher("resnet18", weights=args.data / "weights" / "resnet18-imagenet-to-layer3.pth")
    lines = [
        "# How the defaults of `KBCConfig` were chosen",
        "",
        f"Made by `python tests/benchmarks/defaults.py --data $KBC_DATA --limit {args.limit}`: PCK@0.1 on the box of "
        "the true keypoints, `resnet18` at 256 px. One field at a time. The target box is given and the matcher's own "
        "points are taken, except for " + ", ".join(f"`{f}`" for f in sorted(GUESSED)) + ". Defaults in bold.",
        "",
        "| field | value | " + " | ".join(SETS) + " | mean |",
        "|---" * (len(SETS) + 3) + "|",
    ]
    datasets = {
        name: opened().limited(args.limit) for name, opened in open_sets(args.data / "data", 100) if name in SETS
    }
    defaults = kbc.KBCConfig()
    for field, values in SWEEPS.items():
        for value in values:
            figures = [mean(measure(datasets[name], matcher, field, value)) for name in SETS]
            shown = f"**{value}**" if getattr(defaults, field) == value else f"{value}"
            cells = " | ".join(f"{f:.1f}" for f in figures)
            lines.append(f"| `{field}` | {shown} | {cells} | {sum(figures) / len(figures):.1f} |")
            print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
