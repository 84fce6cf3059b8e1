"""Measure the localisers on real photographs and write examples/results/localisation.md.

    python tests/benchmarks/localize.py --data $KBC_DATA --out examples/results/localisation.md

PCK@0.1 on the box of the true keypoints, mean over pairs, original pixels. Every figure of a set is measured on the
same pairs. A set that is already in --work is not measured again, so several processes can share it with --sets.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kbc
from kbc.data import Dataset, PairRecord, open_dataset, shrink
from kbc.evaluation.pck import Protocol, pck

PROTOCOL = Protocol((0.1,), "bbox-kp")
SINGLE = ("livestock-small", "treadscan", "dlc-openfield")
SEVERAL = ("livestock-mid", "coco-person", "dlib-faces", "glue-tubes")

Table = dict[str, list[dict[str, float]]]
Configs = dict[str, tuple[str, dict[str, Any]]]
"""Row → (which matcher, options of kbc.wrap)."""

TRUE = "true window, matcher's own points"
ROWS: Configs = {
    "no KBC": ("256", {"passes": 0}),
    "no KBC, 512 px (cost 4)": ("512", {"passes": 0}),
    "`predicted`: the paper's rule": ("256", {"localizer": "predicted", "passes": 1}),
    "`consensus`": ("256", {"localizer": "consensus"}),
    "`search`": ("256", {"localizer": "search", "budget": "balanced"}),
    "`best`, fast": ("256", {"budget": "fast"}),
    "`best`, balanced": ("256", {"budget": "balanced"}),
    "`best`, thorough": ("256", {"budget": "thorough"}),
    "`best`, balanced, joint off": ("256", {"budget": "balanced", "joint": False}),
    "a bare function, fast": ("function", {"budget": "fast"}),
    "a bare function, balanced": ("function", {"budget": "balanced"}),
    "a bare function, thorough": ("function", {"budget": "thorough"}),
    TRUE: ("256", {"localizer": "given", "joint": False, "mirror": False, "passes": 1}),
    "true window, KBC's points": ("256", {"localizer": "given", "mirror": False, "passes": 1}),
    "true window, balanced": ("256", {"localizer": "given", "budget": "balanced"}),
}
VOTES: Configs = {
    "no KBC": ("256", {"passes": 0}),
    "`best`, fast": ("256", {"budget": "fast"}),
    "`best`, balanced": ("256", {"budget": "balanced"}),
    "votes, no KBC": ("votes", {"passes": 0}),
    "votes, `best`, fast": ("votes", {"budget": "fast"}),
    "votes, `best`, balanced": ("votes", {"budget": "balanced"}),
    "votes, `best`, thorough": ("votes", {"budget": "thorough"}),
    "votes, true window": ("votes", {"localizer": "given", "passes": 1}),
    TRUE: ("256", {"localizer": "given", "joint": False, "mirror": False, "passes": 1}),
}
KBCNET: Configs = {
    name: ROWS[name]
    for name in (
        "no KBC",
        "`predicted`: the paper's rule",
        "`best`, fast",
        "`best`, balanced",
        "`best`, balanced, joint off",
        TRUE,
        "true window, KBC's points",
    )
}
GIVEN = {name for name in {**ROWS, **VOTES} if "true window" in name}


def single_instance(dataset: Dataset) -> Dataset:
    """Only pairs whose target picture holds one annotated instance: elsewhere the question itself is ambiguous."""
    instances = Counter()
    for path, _ in {(r.target_path, r.target_box) for r in dataset} | {(r.source_path, r.source_box) for r in dataset}:
        instances[path] += 1
    return dataset.subset(record for record in dataset if instances[record.target_path] == 1)


def open_sets(data: Path, limit: int) -> Iterable[tuple[str, Callable[[], Dataset]]]:
    willow = open_dataset("pfwillow", data / "pf-willow")
    for factor in (1, 2, 3, 5):

        def opened(factor: int = factor) -> Dataset:
            part = willow.limited(2 * limit)
            return part if factor == 1 else shrink(part, factor, seed=0)

        yield f"pf-willow f={factor}", opened
    for name in SINGLE:
        yield name, lambda name=name: single_instance(open_dataset("coco", data / name)).limited(limit)  # type: ignore[misc]
    for name in SEVERAL:
        yield name, lambda name=name: open_dataset("coco", data / name).limited(2 * limit // 5)  # type: ignore[misc]


def keypoint_box(record: PairRecord) -> kbc.Box:
    box = kbc.Box.around(record.target_keypoints)
    assert box is not None
    return kbc.Box.centered(box.center, max(box.width, 1.0), max(box.height, 1.0))


def score(record: PairRecord, found: np.ndarray, size_hw: tuple[int, int]) -> float:
    known = usable(record)
    truth = np.where(np.isnan(known), np.nan, record.target_keypoints)
    return 100 * pck(found, truth, size_hw, record.target_box, PROTOCOL)[0.1]


def measure(dataset: Dataset, matchers: dict[str, Any], rows: Configs) -> Table:
    """Row → per pair {pck, cost}. Pair by pair, so that the rows share the features that are kept per image."""
    table: Table = {name: [] for name in rows}
    wrapped = {name: kbc.wrap(matchers[which], **options) for name, (which, options) in rows.items()}
    for record in dataset:
        pair = dataset.load(record)
        for name, (which, _) in rows.items():
            box = keypoint_box(record) if name in GIVEN else None
            asked = kbc.Pair(pair.source, pair.target, usable(record), None, box)
            result = wrapped[name].match([asked])[0]
            value = score(record, result.keypoints, pair.target.shape[:2])
            table[name].append({"pck": value, "cost": result.cost * (4.0 if which == "512" else 1.0)})
    return table


def usable(record: PairRecord) -> np.ndarray:
    """The points asked for: those visible on both sides."""
    points = record.keypoints.copy()
    points[np.isnan(record.target_keypoints).any(axis=1)] = np.nan
    return points


def mean(rows: list[dict[str, float]], key: str = "pck") -> float:
    return float(np.mean([row[key] for row in rows]))


def gap_closed(table: Table, name: str) -> str:
    low, high = mean(table["no KBC"]), mean(table[TRUE])
    return f"{100 * (mean(table[name]) - low) / (high - low):.0f} %" if high - low > 1 else "–"


def worse_better(table: Table, name: str) -> str:
    gain = np.array([a["pck"] - b["pck"] for a, b in zip(table[name], table["no KBC"], strict=True)])
    lost = gain[gain < -10]
    by = f" (by {-lost.mean():.0f})" if len(lost) else ""
    return f"{100 * (gain < -10).mean():.0f} %{by} / {100 * (gain > 10).mean():.0f} %"


RESNET = "`resnet18` (ImageNet, layers 2+3) at 256 px, nearest neighbour."


def markdown(tables: dict[str, Table], rows: Configs, title: str, command: str, matcher: str = RESNET) -> str:
    lines = [
        f"# {title}",
        "",
        f"Made by `{command}` ({platform.machine()}, torch {torch.__version__}). {matcher} PCK@0.1 on the box of "
        "the true keypoints, original pixels, `<=`, mean over pairs. Cost in units of one plain match.",
        "",
        "*Gap closed*: how much of the way from no KBC to the true window (with the matcher's own points) is made; "
        "over 100 % where the layout corrects the matcher's answers. *Worse / better*: share of pairs more than "
        "10 points below / above no KBC, and by how much the worse ones are.",
        "",
    ]
    names = list(tables)
    groups = [
        (
            "PF-WILLOW, each photograph pasted into an f times larger one",
            [n for n in names if n.startswith("pf-willow")],
        ),
        ("Small objects, one annotated instance in the target picture", [n for n in names if n in SINGLE]),
        (
            "Other sets; several instances a picture, so rows without the true window are ambiguous",
            [n for n in names if n in SEVERAL],
        ),
    ]
    for title, members in groups:
        if not members:
            continue
        lines += [f"## {title}", ""]
        lines += ["| PCK@0.1 | " + " | ".join(f"{m} ({len(tables[m]['no KBC'])})" for m in members) + " |"]
        lines += ["|---" * (len(members) + 1) + "|"]
        for row in rows:
            lines.append(f"| {row} | " + " | ".join(f"{mean(tables[m][row]):.1f}" for m in members) + " |")
        lines += ["", "| gap closed | " + " | ".join(members) + " |", "|---" * (len(members) + 1) + "|"]
        for row in rows:
            if row not in GIVEN and row != "no KBC":
                lines.append(f"| {row} | " + " | ".join(gap_closed(tables[m], row) for m in members) + " |")
        lines += ["", "| worse / better | " + " | ".join(members) + " |", "|---" * (len(members) + 1) + "|"]
        for row in rows:
            if row != "no KBC":
                lines.append(f"| {row} | " + " | ".join(worse_better(tables[m], row) for m in members) + " |")
        lines += ["", "| cost (plain matches) | " + " | ".join(members) + " |", "|---" * (len(members) + 1) + "|"]
        for row in rows:
            cells = (f"{mean(tables[m][row], 'cost'):.1f}" for m in members)
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += [
        "## All sets together",
        "",
        "| | worse by > 10 points | by | better by > 10 points |",
        "|---|---|---|---|",
    ]
    for row in rows:
        gain = np.array(
            [a["pck"] - b["pck"] for t in tables.values() for a, b in zip(t[row], t["no KBC"], strict=True)]
        )
        lost = gain[gain < -10]
        by = f"{-lost.mean():.1f}" if len(lost) else "–"
        if row != "no KBC":
            lines.append(f"| {row} | {100 * (gain < -10).mean():.1f} % | {by} | {100 * (gain > 10).mean():.1f} % |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder with data/ and weights/")
    parser.add_argument(
        "--limit",
        type=int,
        default=100,
        help="pairs a set; twice as many of the shrunk PF-WILLOW, two fifths of the ambiguous sets",
    )
    parser.add_argument("--sets", help="only these, with commas")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these, by their names in the table")
    parser.add_argument("--votes", action="store_true", help="instead: the matcher without and with `with_votes`")
    parser.add_argument("--kbcnet", type=Path, help="instead: around this checkpoint of KBCNet on frozen ResNet-18")
    parser.add_argument("--matcher", help="instead of resnet18: one at 256 px that encodes images, package.module:name")
    parser.add_argument("--work", type=Path, default=Path("runs/localisation"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    weights = args.data / "weights" / "resnet18-imagenet-to-layer3.pth"
    options = {} if args.matcher else {"weights": weights}
    plain = kbc.load_matcher(args.matcher or "resnet18", **options)
    matchers = {
        "256": plain,
        "votes": plain.with_votes(),
        "512": kbc.load_matcher(args.matcher or "resnet18", **options, size=512),
        "function": kbc.as_matcher(
            lambda s, t, k: plain.match([kbc.Pair(s, t, k)])[0].keypoints, name="function", input_size=256
        ),
    }
    rows, title = ROWS, "Localisation: where is the object in the target?"
    if args.votes:
        rows, title = VOTES, "Votes of the surrounding matches, without and with KBC"
    matcher = f"`{plain.name}` at 256 px, nearest neighbour." if args.matcher else RESNET
    if args.kbcnet:
        rows, title = KBCNET, "Around KBCNet"
        matcher = f"KBCNet, `{args.kbcnet.stem}`, at 256 px."
        matchers["256"] = kbc.load_matcher("kbcnet", weights=args.kbcnet, backbone_weights=weights)
    if args.rows:
        rows = {name: rows[name] for name in ("no KBC", *args.rows, TRUE)}  # what the others are compared with
    args.work.mkdir(parents=True, exist_ok=True)
    kind = (
        f"-{plain.name}" * bool(args.matcher)
        + "-votes" * args.votes
        + "-kbcnet" * bool(args.kbcnet)
        + f"-{len(rows)}" * bool(args.rows)
    )
    tables = {}
    for name, opened in open_sets(args.data / "data", args.limit):
        if args.sets and name not in args.sets.split(","):
            continue
        kept = args.work / f"{name.replace(' ', '_')}-{args.limit}{kind}.json"
        if not kept.is_file():
            start = time.time()
            kept.write_text(json.dumps(measure(opened(), matchers, rows)))
            print(f"{name}: {time.time() - start:.0f} s", flush=True)
        tables[name] = json.loads(kept.read_text())
    said = (
        f" --matcher {args.matcher}" * bool(args.matcher)
        + " --votes" * args.votes
        + (f" --kbcnet {args.kbcnet.name}" if args.kbcnet else "")
    )
    said += (" --rows " + shlex.join(args.rows)) if args.rows else ""
    command = f"python tests/benchmarks/localize.py --data $KBC_DATA --limit {args.limit}{said}"
    text = markdown(tables, rows, title, command, matcher)
    if args.out:
        args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
