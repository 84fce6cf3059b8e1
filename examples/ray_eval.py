"""Match a list of millions of pairs with Ray Data: the same matcher, the same outcomes, as many machines as there are.

    pip install "kbc[ray]"
    python examples/ray_eval.py --data coco --root DIR --matcher hog --workers 2 --out runs/ray

Each worker loads the matcher once and keeps each image's features while memory lasts; the list is kept in order, so
sort it by source image and neighbours share features. Every outcome is a line of `pairs.jsonl`, as `kbc eval` writes
it; the totals are printed. The images must be files that every worker sees under the same path. On a cluster start it
on the head node (`ray start --head`) with `--address auto`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kbc.cli import MISSING
from kbc.cli.options import key_values
from kbc.data import KINDS, Dataset, PairRecord, open_dataset
from kbc.errors import MissingDependencyError
from kbc.evaluation import PCK, Protocol
from kbc.evaluation.outcomes import Outcome, OutcomeFile, parse_outcome, points, rows
from kbc.evaluation.plan import GIVEN, OFF, Run
from kbc.evaluation.runner import evaluate
from kbc.geometry import Box


def to_row(name: str, index: int, record: PairRecord) -> dict[str, Any]:
    """A pair as plain data that any machine can read, provided that it sees the same files."""
    return {
        "dataset": name,
        "index": index,
        "id": record.id,
        "source": str(record.source_path),
        "target": str(record.target_path),
        "points": json.dumps([rows(record.keypoints), rows(record.target_keypoints)]),
        "boxes": json.dumps([None if b is None else b.xyxy for b in (record.source_box, record.target_box)]),
        "category": record.category,
        "instances": int(record.fields.get("target_instances", 1)),
    }


def to_record(row: dict[str, Any]) -> PairRecord:
    """The inverse of `to_row`."""
    source, target = (points(side) for side in json.loads(row["points"]))
    boxes = [None if edges is None else Box.of(edges) for edges in json.loads(row["boxes"])]
    fields = {"target_instances": int(row["instances"])}
    return PairRecord(
        id=row["id"],
        source_path=Path(row["source"]),
        target_path=Path(row["target"]),
        keypoints=source,
        target_keypoints=target,
        source_box=boxes[0],
        target_box=boxes[1],
        category=row["category"],
        fields=fields,
    )


class Worker:
    """One process of the pool: a matcher, and the images it has lately seen."""

    def __init__(self, run: Run) -> None:
        self.run, self.matcher = run, run.build()
        self.images: Dataset | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of `to_row`s → a batch of outcomes, each a line of JSON."""
        table = [{key: batch[key][i] for key in batch} for i in range(len(batch["id"]))]
        records = [to_record(row) for row in table]
        if self.images is None:
            self.images = Dataset(str(table[0]["dataset"]), [])
        numbered = [(int(row["index"]), record) for row, record in zip(table, records, strict=True)]
        told = self.run.mode == GIVEN
        chunks = evaluate(self.matcher, self.images, run=self.run.name, give_boxes=told, records=numbered)
        lines = [outcome.to_json() for chunk in chunks for outcome in chunk]
        return {"outcome": np.array(lines, dtype=object)}


def match_with_ray(
    dataset: Dataset, run: Run, *, workers: int = 2, batch: int = 64, gpus: float = 0
) -> Iterator[Outcome]:
    """Outcomes as they come in.

    Args:
        dataset: its records are sent, its images are read by the workers.
        run: the matcher and whether KBC is around it.
        workers: processes, each with its own matcher.
        batch: pairs handed to a worker at once.
        gpus: share of a GPU that each worker asks for.

    Raises:
        MissingDependencyError: Ray is not installed.
    """
    try:
        import ray.data
    except ImportError as error:
        raise MissingDependencyError('Ray Data is missing: pip install "kbc[ray]"') from error
    items = [to_row(dataset.name, index, record) for index, record in enumerate(dataset.records)]
    pool = ray.data.ActorPoolStrategy(size=workers)
    found = ray.data.from_items(items).map_batches(
        Worker, fn_constructor_args=(run,), batch_size=batch, compute=pool, num_gpus=gpus or None
    )
    for row in found.iter_rows():
        yield parse_outcome(row["outcome"])


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Match a list of pairs with Ray Data.")
    parser.add_argument("--data", choices=list(KINDS), default="coco")
    parser.add_argument("--root", required=True)
    parser.add_argument("--matcher", default="hog")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--localizer", default=OFF, help='"off" (default) for the bare matcher, else how KBC looks')
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="share of a GPU for each worker")
    parser.add_argument("--address", help="of a running cluster, or auto; default: a local Ray")
    parser.add_argument("--out", default="runs/ray")
    args = parser.parse_args(arguments)
    try:
        import ray
    except ImportError:
        print('ray_eval: Ray Data is missing: pip install "kbc[ray]"', file=sys.stderr)
        return MISSING
    ray.init(address=args.address, include_dashboard=False, ignore_reinit_error=True)
    dataset = open_dataset(args.data, args.root)
    run = Run(args.matcher, args.localizer, options=key_values(args.option))
    metric = PCK(Protocol())
    with OutcomeFile(Path(args.out) / "pairs.jsonl") as file:
        for outcome in match_with_ray(dataset, run, workers=args.workers, gpus=args.gpus):
            file.append([outcome])
            if outcome.counts:
                box = outcome.target_box
                metric.update(points(outcome.predicted), points(outcome.truth), outcome.size_hw, box, outcome.category)
    print(metric.compute())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
