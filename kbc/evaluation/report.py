"""The report: what every run scored, and pair by pair whether KBC helped, by how much and at what price."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise
from typing import Any, TypeAlias

from pydantic import TypeAdapter

from kbc.data import Dataset
from kbc.evaluation.outcomes import Outcome, points
from kbc.evaluation.pck import PCK, PCKResult, Protocol
from kbc.evaluation.plan import Plan, Run, complete
from kbc.evaluation.stats import bootstrap, sign_flip_test

BAD_LOSS = 0.10
SIZE_EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, math.inf)
CELL_EDGES = (0.0, 2.0, 4.0, 6.0, 8.0, 12.0, math.inf)
CELL_PX = 16

Shares: TypeAlias = dict[str, float | None]
"""α as text ("0.1") → share of right points; None where there was nothing to measure."""

Interval: TypeAlias = tuple[float | None, float | None]
"""95 % bootstrap interval of a mean over pairs."""


@dataclass(frozen=True)
class Comparison:
    """A run against the bare matcher on the pairs that both could be asked, in shares of 1.

    Attributes:
        pairs: how many.
        gain, interval: mean difference of the pairs' PCK at the headline α.
        p: one-sided, see `sign_flip_test`.
        better, worse: share of pairs that rose or fell at all.
        much_worse: share that fell by more than 10 points.
        loss: mean fall of those that fell.
    """

    pairs: int
    gain: float | None
    interval: Interval
    p: float
    better: float
    worse: float
    much_worse: float
    loss: float | None


@dataclass(frozen=True)
class SizeBin:
    """Per-image PCK at the headline α of the pairs whose object's size lies in [low, high); no `high`: no limit."""

    low: float
    high: float | None
    pairs: int
    pck: float | None
    interval: Interval


@dataclass(frozen=True)
class RunReport:
    """One run over one data set.

    Attributes:
        pairs, points: what was counted.
        per_point, per_image, per_category: the three averages.
        categories: name → its mean over pairs.
        interval: of `per_image` at the headline α.
        data_failures, matcher_failures: pairs that counted for nobody, and pairs that counted as wrong.
        any_instance: `per_image` by the protocol "any instance"; only for sets in which it may differ.
        calls, cost, seconds, own_seconds, fine: means over the pairs, see `Outcome`.
        time: `seconds` over those of the bare run `against` (1 for that run itself), None without one: the price in
            time, as `cost` is the price in calls.
        against: the bare run that `comparison` is with; none for that run itself.
        by_size: by the box's longest side over the image's side.
        input_hw, by_cells: the bare matcher's input, and the figures by the box's longest side in its cells of 16 px.
    """

    pairs: int
    points: int
    per_point: Shares
    per_image: Shares
    per_category: Shares
    categories: dict[str, Shares]
    interval: Interval
    data_failures: int
    matcher_failures: int
    calls: float | None
    cost: float | None
    seconds: float | None
    fine: float | None
    own_seconds: float | None = None
    time: float | None = None
    any_instance: Shares | None = None
    against: str | None = None
    comparison: Comparison | None = None
    by_size: tuple[SizeBin, ...] = ()
    input_hw: tuple[int, int] | None = None
    by_cells: tuple[SizeBin, ...] | None = None


@dataclass(frozen=True)
class FailedPair:
    """A pair on which a run failed, and the message."""

    pair: str
    error: str


@dataclass(frozen=True)
class DatasetReport:
    """Everything about one data set.

    Attributes:
        protocol: how PCK is measured.
        headline: the α that the comparisons use.
        pairs: how many there are, those that failed included.
        several_instances: share of the pairs whose target picture holds several objects of the set.
        object_size: 10, 50 and 90 % points of the box's longest side over the image's side; empty without pairs.
        runs: by the run's name.
    """

    name: str
    protocol: Protocol
    headline: float
    pairs: int
    several_instances: float
    object_size: tuple[float, ...]
    runs: dict[str, RunReport]
    failures: tuple[FailedPair, ...]

    @property
    def head(self) -> str:
        """The headline α as the keys of `Shares` have it."""
        return f"{self.headline:g}"

    def share(self, run: str) -> float | None:
        """A run's per-image PCK at the headline α; None where it was not measured."""
        return self.runs[run].per_image[self.head] if run in self.runs else None


@dataclass(frozen=True)
class RunInfo:
    """What a run is, see `Run`; its figures are in `DatasetReport.runs` under its name."""

    name: str
    matcher: str
    mode: str
    size: int | None
    options: dict[str, Any]


@dataclass(frozen=True)
class ProblemNote:
    """What is wrong in a data set, and how many pairs it costs."""

    dataset: str
    text: str
    count: int


@dataclass(frozen=True)
class Report:
    """What `report.json` holds.

    Attributes:
        command: that made it, for the reader.
        matchers: in the order asked for.
        runs: what was run.
        datasets: the figures.
        pooled: run → by size over all data sets together, every pair weighing alike.
        problems: in the data.
        machine: what it was run on.
    """

    command: str
    matchers: tuple[str, ...]
    runs: tuple[RunInfo, ...]
    datasets: tuple[DatasetReport, ...]
    pooled: dict[str, tuple[SizeBin, ...]]
    problems: tuple[ProblemNote, ...]
    machine: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; what does not apply to a run is left out."""
        return dict(_plain(self))

    def headlines(self) -> str:
        """What it leads with, in words: PCK at the threshold, or the thresholds, of its data sets."""
        return f"PCK@{'/'.join(sorted({dataset.head for dataset in self.datasets}))}"

    def with_alias(self, text: str, alias: str) -> Report:
        """The report with `alias` wherever a text of it has `text`, such as a variable's name for a folder."""
        content = json.dumps(self.to_dict(), ensure_ascii=False)
        return _adapter.validate_json(content.replace(json.dumps(text, ensure_ascii=False)[1:-1], alias))


_adapter: TypeAdapter[Report] = TypeAdapter(Report)


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries, without the fields that are None by default and are None."""
    if isinstance(value, Protocol):
        return value.to_dict()
    if is_dataclass(value):
        held = [(field, getattr(value, field.name)) for field in fields(value)]
        return {field.name: _plain(own) for field, own in held if own is not None or field.default is not None}
    if isinstance(value, dict):
        return {key: _plain(own) for key, own in value.items()}
    return [_plain(own) for own in value] if isinstance(value, list | tuple) else value


def headline(protocol: Protocol) -> float:
    """The α that the comparisons use: 0.1 if it is there, else the middle one."""
    alphas = sorted(protocol.alphas)
    return 0.1 if 0.1 in alphas else alphas[len(alphas) // 2]


def pair_scores(outcomes: Iterable[Outcome], protocol: Protocol) -> dict[str, float]:
    """Pair → its PCK at the headline α, for the pairs that count."""
    place = protocol.alphas.index(headline(protocol))
    return {o.pair: float(o.correct(protocol)[:, place].mean()) for o in outcomes if o.counts}


def run_report(outcomes: Sequence[Outcome], protocol: Protocol) -> RunReport:
    """One run over one data set by itself: neither compared nor by size."""
    counted = [outcome for outcome in outcomes if outcome.counts]
    result = _measured(counted, protocol)
    several = protocol.instance == "own" and any(outcome.others for outcome in counted)
    scores = list(pair_scores(counted, protocol).values())
    return RunReport(
        pairs=result.pairs,
        points=result.points,
        per_point=_keyed(result.per_point),
        per_image=_keyed(result.per_image),
        per_category=_keyed(result.per_category),
        categories={name: _keyed(shares) for name, shares in result.categories.items()},
        interval=_interval(scores),
        data_failures=sum(outcome.failure == "data" for outcome in outcomes),
        matcher_failures=sum(outcome.failure == "matcher" for outcome in outcomes),
        calls=_mean(o.calls for o in counted),
        cost=_mean(o.cost for o in counted),
        seconds=_mean(o.seconds for o in counted),
        own_seconds=_mean(o.own_seconds for o in counted if o.own_seconds is not None),
        fine=_mean(o.fine for o in counted),
        any_instance=_keyed(_measured(counted, replace(protocol, instance="any")).per_image) if several else None,
    )


def _measured(counted: Sequence[Outcome], protocol: Protocol) -> PCKResult:
    """All averages of outcomes that count."""
    metric = PCK(protocol)
    for o in counted:
        others = [points(other) for other in o.others]
        metric.update(points(o.predicted), points(o.truth), o.size_hw, o.target_box, o.category, others)
    return metric.compute()


def comparison(plain: Sequence[Outcome], other: Sequence[Outcome], protocol: Protocol) -> Comparison:
    """Another run against the bare matcher, pair by pair at the headline α."""
    before, after = pair_scores(plain, protocol), pair_scores(other, protocol)
    differences = [after[pair] - before[pair] for pair in before if pair in after]
    falls = [-d for d in differences if d < -1e-12]
    count = max(len(differences), 1)
    return Comparison(
        pairs=len(differences),
        gain=_mean(differences),
        interval=_interval(differences),
        p=sign_flip_test(differences),
        better=sum(d > 1e-12 for d in differences) / count,
        worse=len(falls) / count,
        much_worse=sum(fall > BAD_LOSS + 1e-12 for fall in falls) / count,
        loss=_mean(falls) if falls else 0.0,
    )


def by_size(
    outcomes: Sequence[Outcome],
    protocol: Protocol,
    measure: Callable[[Outcome], float],
    edges: Sequence[float],
) -> tuple[SizeBin, ...]:
    """The bins of `edges` with any pair whose `measure` falls into them."""
    scores = pair_scores(outcomes, protocol)
    return _binned([(measure(o), scores[o.pair]) for o in outcomes if o.pair in scores], edges)


def _binned(scored: Sequence[tuple[float, float]], edges: Sequence[float]) -> tuple[SizeBin, ...]:
    bins = []
    for low, high in pairwise(edges):
        inside = [score for size, score in scored if low <= size < high]
        if inside:
            bins.append(SizeBin(low, None if math.isinf(high) else high, len(inside), _mean(inside), _interval(inside)))
    return tuple(bins)


def build(
    plan: Plan,
    datasets: Sequence[Dataset],
    outcomes: Iterable[Outcome],
    protocols: Mapping[str, Protocol],
    command: str = "",
) -> Report:
    """The whole report.

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
    return Report(
        command=command,
        matchers=tuple(dict.fromkeys(run.matcher for run in plan.runs)),
        runs=tuple(
            RunInfo(run.name, run.matcher, run.mode, run.size, options["options"])
            for run, options in zip(plan.runs, plan.to_dict()["runs"], strict=True)
        ),
        datasets=tuple(parts),
        pooled={run.name: _pooled(groups, run.name, protocols) for run in plan.runs},
        problems=tuple(
            ProblemNote(dataset.name, str(problem), max(problem.pairs, 1))
            for dataset in datasets
            for problem in dataset.problems
        ),
    )


def dataset_report(
    name: str, groups: Mapping[str, Sequence[Outcome]], baselines: Mapping[str, str], protocol: Protocol
) -> DatasetReport:
    """Everything about one data set.

    Args:
        name: of the data set.
        groups: run → its outcomes.
        baselines: run → the bare run it is compared with; also that run's input counts the cells.
        protocol: how PCK is measured.
    """
    some = next(iter(groups.values()))
    counted = [outcome for outcome in some if outcome.counts]
    failed = {o.pair: o.error for outcomes in groups.values() for o in outcomes if o.failure}
    return DatasetReport(
        name=name,
        protocol=protocol,
        headline=headline(protocol),
        pairs=len(some),
        several_instances=_mean(float(o.instances > 1) for o in counted) or 0.0,
        object_size=_quantiles([o.size for o in counted]),
        runs={
            run: _compared(outcomes, groups.get(baselines[run], ()), baselines[run], protocol)
            for run, outcomes in groups.items()
        },
        failures=tuple(FailedPair(pair, error) for pair, error in sorted(failed.items())),
    )


def _compared(outcomes: Sequence[Outcome], base: Sequence[Outcome], against: str, protocol: Protocol) -> RunReport:
    """A run's figures with those by size, and beside its baseline's when that is another run that has any."""
    found = replace(run_report(outcomes, protocol), by_size=by_size(outcomes, protocol, lambda o: o.size, SIZE_EDGES))
    if Run.is_bare(against):
        plain = _mean(o.seconds for o in base if o.counts)
        found = replace(found, time=found.seconds / plain if found.seconds is not None and plain else None)
    if base and against != outcomes[0].run:
        found = replace(found, against=against, comparison=comparison(base, outcomes, protocol))
    input_hw = next((o.input_hw for o in base if o.input_hw is not None), None)
    if input_hw is None:
        return found
    cells = by_size(outcomes, protocol, lambda o: o.cells(input_hw, CELL_PX), CELL_EDGES)
    return replace(found, input_hw=input_hw, by_cells=cells)


def _pooled(
    groups: Mapping[str, Mapping[str, Sequence[Outcome]]], run: str, protocols: Mapping[str, Protocol]
) -> tuple[SizeBin, ...]:
    """A run's figures by object size over all data sets together, every pair weighing alike."""
    scored = []
    for name, runs in groups.items():
        scores = pair_scores(runs.get(run, ()), protocols[name])
        scored += [(o.size, scores[o.pair]) for o in runs.get(run, ()) if o.pair in scores]
    return _binned(scored, SIZE_EDGES)


def _keyed(shares: dict[float, float]) -> Shares:
    return {f"{alpha:g}": _number(share) for alpha, share in shares.items()}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _mean(values: Iterable[float]) -> float | None:
    held = list(values)
    return math.fsum(held) / len(held) if held else None


def _interval(values: Sequence[float]) -> Interval:
    low, high = bootstrap(values)
    return _number(low), _number(high)


def _quantiles(values: Sequence[float]) -> tuple[float, ...]:
    """The 10, 50 and 90 % points, as members of the list."""
    held = sorted(values)
    return tuple(held[min(int(share * len(held)), len(held) - 1)] for share in (0.1, 0.5, 0.9)) if held else ()
