"""Measure KBC where one, two or three points are asked, on real photographs; write examples/results/few_points.md.

    python tests/benchmarks/few_points.py --data $KBC_DATA --out examples/results/few_points.md

The points of each pair are one drawn by chance (seed 0) and its nearest neighbours. A point is right within 0.1 of the
longer side of the box of all true keypoints, whichever are asked.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from localize import open_sets, usable

import kbc
from kbc.data import Dataset

COUNTS = (1, 2, 3)
NONE, FULL = "no KBC", "balanced, all points of the pair asked"
ROWS: dict[str, tuple[str, dict[str, Any], bool]] = {
    NONE: ("resnet18", {"passes": 0}, False),
    "`fast`": ("resnet18", {"budget": "fast"}, False),
    "`balanced`": ("resnet18", {"budget": "balanced"}, False),
    "`balanced`, `source_box` given": ("resnet18", {"budget": "balanced"}, True),
    "a bare function, `balanced`": ("function", {"budget": "balanced"}, False),
}
"""Row → (matcher, options of kbc.wrap, whether the source's box is given)."""

Hits = dict[str, dict[str, list[float]]]
"""Number of points → row → share of right points, per pair."""


def measure(dataset: Dataset, matchers: dict[str, Any]) -> Hits:
    hits: Hits = {str(count): {} for count in COUNTS}
    wrapped = {row: kbc.wrap(matchers[name], **options) for row, (name, options, _) in ROWS.items()}
    everything = kbc.wrap(matchers["resnet18"], budget="balanced")
    rng = np.random.default_rng(0)
    for record in dataset:
        pair, points, truth = dataset.load(record), usable(record), record.target_keypoints
        known = np.flatnonzero(~np.isnan(points).any(axis=1))
        if len(known) <= max(COUNTS):
            continue
        source_box, target_box = kbc.Box.around(points[known]), kbc.Box.around(truth[known])
        assert target_box is not None
        full = everything.match([kbc.Pair(pair.source, pair.target, points)])[0].keypoints
        first = points[rng.choice(known)]
        near = known[np.argsort(np.linalg.norm(points[known] - first, axis=1), kind="stable")]
        for count in COUNTS:
            asked = near[:count]
            answers = {FULL: full[asked]}
            for row, (_, _, boxed) in ROWS.items():
                given = kbc.Pair(pair.source, pair.target, points[asked], source_box if boxed else None)
                answers[row] = wrapped[row].match([given])[0].keypoints
            for row, found in answers.items():
                right = np.linalg.norm(found - truth[asked], axis=1) <= 0.1 * target_box.longest
                hits[str(count)].setdefault(row, []).append(100 * float(right.mean()))
    return hits


def markdown(tables: dict[str, Hits], command: str) -> str:
    lines = [
        "# A few points",
        "",
        f"Made by `{command}` ({platform.machine()}, torch {torch.__version__}). `resnet18` (ImageNet, "
        "layers 2+3) at 256 px. Of each pair one keypoint drawn by chance and its nearest neighbours are asked for. "
        "Per cent of points within 0.1 of the longer side of the box of all true keypoints, mean over pairs; in "
        "brackets the share of pairs more than 10 points below no KBC.",
        "",
        "Fewer than four points do not show how large their object is. The support points then lie over `source_box` "
        "or, without it, over a square around the points (a quarter of the image, or half as long again as they lie "
        "apart), and these show it.",
        "",
    ]
    for count in COUNTS:
        lines += [f"## {count} point{'s' * (count > 1)}", ""]
        sizes = (f"{name} ({len(table[str(count)][NONE])})" for name, table in tables.items())
        lines += ["| | " + " | ".join(sizes) + " |", "|---" * (len(tables) + 1) + "|"]
        for row in (*ROWS, FULL):
            cells = []
            for table in tables.values():
                values, before = (np.array(table[str(count)][name]) for name in (row, NONE))
                worse = f" ({100 * (values < before - 10).mean():.0f} %)" if row != NONE else ""
                cells.append(f"{values.mean():.1f}{worse}")
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder with data/ and weights/")
    parser.add_argument("--limit", type=int, default=40, help="pairs a set, twice as many of PF-WILLOW")
    parser.add_argument("--work", type=Path, default=Path("runs/few_points"), help="sets measured are kept here")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    plain = kbc.load_matcher("resnet18", weights=args.data / "weights" / "resnet18-imagenet-to-layer3.pth")
    matchers = {
        "resnet18": plain,
        "function": kbc.as_matcher(
            lambda s, t, k: plain.match([kbc.Pair(s, t, k)])[0].keypoints, name="function", input_size=256
        ),
    }
    args.work.mkdir(parents=True, exist_ok=True)
    tables = {}
    for name, opened in open_sets(args.data / "data", args.limit):
        if name not in ("livestock-small", "treadscan", "dlc-openfield", "pf-willow f=3", "pf-willow f=1"):
            continue
        kept = args.work / f"{name.replace(' ', '_')}-{args.limit}.json"
        if not kept.is_file():
            kept.write_text(json.dumps(measure(opened(), matchers)))
        tables[name] = json.loads(kept.read_text())
        print(name, flush=True)
    text = markdown(tables, f"python tests/benchmarks/few_points.py --data $KBC_DATA --limit {args.limit}")
    if args.out:
        args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
