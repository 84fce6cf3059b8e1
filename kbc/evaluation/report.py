"""The report: what every run scored, and pair by pair whether KBC helped, by how much and at what price."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from kbc.data import Dataset
from kbc.evaluation.outcomes import Outcome
from kbc.evaluation.pck import PCK, Protocol
from kbc.evaluation.runner import Plan, complete
from kbc.evaluation.stats import bootstrap, sign_flip_test

BAD_LOSS = 0.10
SIZE_EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, math.inf)
CELL_EDGES = (0.0, 2.0, 4.0, 6.0, 8.0, 12.0, math.inf)
CELL_PX = 16

Numbers = dict[str, Any]


def headline(protocol: Protocol) -> float:
    """The α that the comparisons use: 0.1 if it is there, else the middle one."""
    alphas = sorted(protocol.alphas)
    return 0.1 if 0.1 in alphas else alphas[len(alphas) // 2]


def headlines(report: Mapping[str, Any]) -> str:
    """What a report leads with, in words: PCK at the threshold, or the thresholds, of its data sets."""
    alphas = sorted({f"{dataset['headline']:g}" for dataset in report["datasets"]})
    return f"PCK@{'/'.join(alphas)}"


def pair_scores(outcomes: Iterable[Outcome], protocol: Protocol) -> dict[str, float]:
    """Pair → its PCK at the headline α, for the pairs that count."""
    place = protocol.alphas.index(headline(protocol))
    return {o.pair: float(o.correct(protocol)[:, place].mean()) for o in outcomes if o.counts}


def run_numbers(outcomes: Sequence[Outcome], protocol: Protocol) -> Numbers:
    """One run over one data set: all averages with the interval of the headline figure, failures, calls, seconds."""
    metric = PCK(protocol)
    counted = [outcome for outcome in outcomes if outcome.counts]
    for o in counted:
        metric.merge({"protocol": protocol.to_dict(), "rows": [_row(o, protocol)]})
    result = metric.compute()
    scores = list(pair_scores(counted, protocol).values())
    return {
        "pairs": result.pairs,
        "points": result.points,
        "per_point": _keyed(result.per_point),
        "per_image": _keyed(result.per_image),
        "per_category": _keyed(result.per_category),
        "categories": {name: _keyed(shares) for name, shares in result.categories.items()},
        "interval": _interval(scores),
        "data_failures": sum(outcome.failure == "data" for outcome in outcomes),
        "matcher_failures": sum(outcome.failure == "matcher" for outcome in outcomes),
        "calls": _mean(o.calls for o in counted),
        "cost": _mean(o.cost for o in counted),
        "seconds": _mean(o.seconds for o in counted),
        "fine": _mean(o.fine for o in counted),
    }


def comparison(plain: Sequence[Outcome], other: Sequence[Outcome], protocol: Protocol) -> Numbers:
    """Another run against the bare matcher on the pairs that both could be asked, in shares of 1.

    gain: mean difference of the pairs' PCK at the headline α, with its bootstrap interval; p: one-sided, see
    `sign_flip_test`; better, worse: share of pairs that rose or fell at all; much_worse: share that fell by more
    than 10 points; loss: mean fall of those that fell.
    """
    before, after = pair_scores(plain, protocol), pair_scores(other, protocol)
    differences = [after[pair] - before[pair] for pair in before if pair in after]
    falls = [-d for d in differences if d < -1e-12]
    count = max(len(differences), 1)
    return {
        "pairs": len(differences),
        "gain": _mean(differences),
        "interval": _interval(differences),
        "p": sign_flip_test(differences),
        "better": sum(d > 1e-12 for d in differences) / count,
        "worse": len(falls) / count,
        "much_worse": sum(fall > BAD_LOSS + 1e-12 for fall in falls) / count,
        "loss": _mean(falls) if falls else 0.0,
    }


def by_size(
    outcomes: Sequence[Outcome],
    protocol: Protocol,
    measure: Callable[[Outcome], float],
    edges: Sequence[float],
) -> list[Numbers]:
    """Per-image PCK at the headline α of the pairs whose `measure` falls in [low, high), where there are any."""
    scores = pair_scores(outcomes, protocol)
    return _binned([(measure(o), scores[o.pair]) for o in outcomes if o.pair in scores], edges)


def _binned(scored: Sequence[tuple[float, float]], edges: Sequence[float]) -> list[Numbers]:
    bins = []
    for low, high in pairwise(edges):
        inside = [score for size, score in scored if low <= size < high]
        if inside:
            bins.append(
                {
                    "low": low,
                    "high": None if math.isinf(high) else high,
                    "pairs": len(inside),
                    "pck": _mean(inside),
                    "interval": _interval(inside),
                }
            )
    return bins


def build(
    plan: Plan,
    datasets: Sequence[Dataset],
    outcomes: Iterable[Outcome],
    protocols: Mapping[str, Protocol],
    command: str = "",
) -> Numbers:
    """The whole report, JSON-ready: what `report.json` holds.

    Args:
        plan: what was run.
        datasets: the plan's, for their problems and order.
        outcomes: of these, in any order; others are passed over.
        protocols: name of the data set → how PCK is measured on it.
        command: that made it, for the reader.
    """
    groups: dict[str, dict[str, list[Outcome]]] = {dataset.name: {} for dataset in datasets}
    for outcome in complete(plan, datasets, outcomes):
        groups[outcome.dataset].setdefault(outcome.run, []).append(outcome)
    bases = plan.baselines()
    parts = [dataset_report(d.name, groups[d.name], bases, protocols[d.name]) for d in datasets if groups[d.name]]
    runs = [
        {"name": run.name, "matcher": run.matcher, "mode": run.mode, "size": run.size, "options": run.options}
        for run in plan.runs
    ]
    return {
        "command": command,
        "matchers": list(dict.fromkeys(run.matcher for run in plan.runs)),
        "runs": json.loads(json.dumps(runs, default=str)),
        "datasets": parts,
        "pooled": {run.name: _pooled(groups, run.name, protocols) for run in plan.runs},
        "problems": [
            {"dataset": dataset.name, "text": str(problem), "count": max(problem.pairs, 1)}
            for dataset in datasets
            for problem in dataset.problems
        ],
    }


def dataset_report(
    name: str, groups: Mapping[str, Sequence[Outcome]], baselines: Mapping[str, str], protocol: Protocol
) -> Numbers:
    """Everything about one data set.

    Args:
        name: of the data set.
        groups: run → its outcomes.
        baselines: run → the bare run it is compared with; also that run's input counts the cells.
        protocol: how PCK is measured.
    """
    some = next(iter(groups.values()))
    counted = [outcome for outcome in some if outcome.counts]
    runs: dict[str, Numbers] = {}
    for run, outcomes in groups.items():
        numbers = run_numbers(outcomes, protocol)
        base = groups.get(baselines[run], ())
        if baselines[run] != run and base:
            numbers["against"] = baselines[run]
            numbers["comparison"] = comparison(base, outcomes, protocol)
        numbers["by_size"] = by_size(outcomes, protocol, lambda o: o.size, SIZE_EDGES)
        input_hw = next((o.input_hw for o in base if o.input_hw is not None), None)
        if input_hw is not None:
            numbers["input_hw"] = list(input_hw)
            numbers["by_cells"] = by_size(outcomes, protocol, partial(_cells, input_hw), CELL_EDGES)
        runs[run] = numbers
    failed = {o.pair: o.error for outcomes in groups.values() for o in outcomes if o.failure}
    return {
        "name": name,
        "protocol": protocol.to_dict(),
        "headline": headline(protocol),
        "pairs": len(some),
        "several_instances": _mean(float(o.instances > 1) for o in counted) or 0.0,
        "object_size": _quantiles([o.size for o in counted]),
        "runs": runs,
        "failures": [{"pair": pair, "error": error} for pair, error in sorted(failed.items())],
    }


def _cells(input_hw: tuple[int, int], outcome: Outcome) -> float:
    return outcome.cells(input_hw, CELL_PX)


def _pooled(
    groups: Mapping[str, Mapping[str, Sequence[Outcome]]], run: str, protocols: Mapping[str, Protocol]
) -> list[Numbers]:
    """A run's figures by object size over all data sets together, every pair weighing alike."""
    scored = []
    for name, runs in groups.items():
        scores = pair_scores(runs.get(run, ()), protocols[name])
        scored += [(o.size, scores[o.pair]) for o in runs.get(run, ()) if o.pair in scores]
    return _binned(scored, SIZE_EDGES)


def _row(outcome: Outcome, protocol: Protocol) -> list[Any]:
    right = outcome.correct(protocol)
    return [outcome.category, len(right), [int(hits) for hits in right.sum(axis=0)]]


def _keyed(shares: dict[float, float]) -> dict[str, float | None]:
    return {f"{alpha:g}": _number(share) for alpha, share in shares.items()}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _mean(values: Iterable[float]) -> float | None:
    held = list(values)
    return math.fsum(held) / len(held) if held else None


def _interval(values: Sequence[float]) -> list[float | None]:
    return [_number(bound) for bound in bootstrap(values)]


def _quantiles(values: Sequence[float]) -> list[float]:
    """The 10, 50 and 90 % points, as members of the list."""
    held = sorted(values)
    return [held[min(int(share * len(held)), len(held) - 1)] for share in (0.1, 0.5, 0.9)] if held else []
