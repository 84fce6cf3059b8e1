"""The report as Markdown: plain tables, percentages with their intervals, the protocol above every figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from kbc.evaluation.plan import GIVEN, OFF
from kbc.evaluation.report import DatasetReport, Interval, Report, RunInfo, RunReport, SizeBin

SEVERAL = "† several objects in the target picture: without the box the question is ambiguous; read the true window."
"""What tables say of a data set with that mark."""

_Bins = Literal["by_size", "by_cells"]

_MODES = {
    OFF: "KBC off",
    "predicted": "the paper's rule (predicted)",
    "best": "best",
    GIVEN: "true window (given)",
}


def title(mode: str) -> str:
    """What tables call a mode."""
    return _MODES.get(mode, mode)


def render(report: Report, figures: Sequence[str] = ()) -> str:
    """What `report.md` holds.

    Args:
        report: what was measured.
        figures: names of pictures that lie beside it, shown after the first paragraph.
    """
    parts = [_head(report), *(f"![{Path(name).stem.replace('-', ' ')}]({name})" for name in figures)]
    parts += [_summary(report, matcher) for matcher in report.matchers]
    parts += [_dataset(report, dataset) for dataset in report.datasets]
    return "\n\n".join(parts) + "\n"


def _head(report: Report) -> str:
    lines = [
        "# Does KBC help?",
        "",
        f"Made by `{report.command}`" + (f" on {report.machine}." if report.machine else "."),
        "",
        "Figures are PCK in per cent: right points over points that are defined in both images. *per image* is the "
        "mean over pairs, *per point* weighs every point alike, *per category* is the mean over categories of their "
        "per-image mean. A point without an answer is wrong; a pair on which a matcher failed has only wrong points; "
        "a pair whose images cannot be read is left out for everybody. Ranges are 95 % bootstrap intervals over pairs "
        "(pairs share images, so they are somewhat too narrow), p is one-sided of a paired sign-flip test. "
        "*much worse* is the share of pairs that lost more than 10 points. *calls* are pairs handed to the matcher, "
        "*cost* the same in units of one plain match. Seconds are wall time per pair with each image's features kept "
        "within a run, without reading images; every run starts with nothing kept. Pairs that are matched together "
        "share their time alike. *own* is KBC's part of the seconds, the rest the matcher's; *time* is the seconds "
        "over those of the bare matcher, as *cost* is the calls over its calls. The true window is told the target's "
        "box: no figure to compare a method with, but what a perfect localiser could reach.",
    ]
    if report.problems:
        lines += ["", f"**Problems in the data ({sum(problem.count for problem in report.problems)}):**", ""]
        lines += [f"- {problem.dataset}: {problem.text}" for problem in report.problems]
    return "\n".join(lines)


def _summary(report: Report, matcher: str) -> str:
    runs = [run for run in report.runs if run.matcher == matcher]
    heads = ["data set", "pairs", "object size", *(_column(run) for run in runs)]
    body = []
    for dataset in report.datasets:
        sizes = dataset.object_size
        marks = " †" if dataset.several_instances else ""
        cells = [dataset.name + marks, str(dataset.pairs), f"{sizes[1]:.2f}" if sizes else "–"]
        values = [dataset.share(run.name) for run in runs]
        body.append(cells + _best_bold(values, [run.mode == GIVEN for run in runs]))
    prices: list[tuple[str, Callable[[RunReport], float | None], Callable[[float | None], str]]] = [
        ("cost, plain matches", lambda n: n.cost, _decimal),
        ("time, plain matches", lambda n: n.time, _decimal),
        ("seconds a pair", lambda n: n.seconds, _seconds),
        ("of them KBC's own", lambda n: n.own_seconds, _seconds),
    ]
    for label, price, shown in prices:
        values = [_mean([price(d.runs[run.name]) for d in report.datasets if run.name in d.runs]) for run in runs]
        if any(value is not None for value in values):  # runs from before it was kept have none
            body.append([label, "", "", *map(shown, values)])
    lines = [f"## {matcher}: {report.headlines()}, per image", "", *_table(heads, body)]
    if any(dataset.several_instances for dataset in report.datasets):
        lines += ["", SEVERAL]
    return "\n".join(lines)


def _column(run: RunInfo) -> str:
    size = "" if run.size is None else f" {run.size} px"
    return title(run.mode) + size


def _best_bold(values: Sequence[float | None], apart: Sequence[bool]) -> list[str]:
    """Per cent; the best of those that are not told the answer is bold."""
    fair = [value for value, is_apart in zip(values, apart, strict=True) if value is not None and not is_apart]
    best = max(fair, default=None)
    shown = []
    for value, is_apart in zip(values, apart, strict=True):
        text = _percent(value)
        shown.append(f"**{text}**" if value is not None and value == best and not is_apart else text)
    return shown


def _dataset(report: Report, dataset: DatasetReport) -> str:
    lines = [f"## {dataset.name}", "", f"{dataset.protocol}."]
    if dataset.object_size:
        low, middle, high = dataset.object_size
        lines.append(f"{dataset.pairs} pairs; object size (10–50–90 %) {low:.2f} {middle:.2f} {high:.2f}.")
    share = dataset.several_instances
    if share:
        lines.append(
            f"In {_percent(share)} % of the pairs the target picture holds several objects of the set, so that only "
            "a run that is given the target's box is asked a question with one answer: read the second table."
        )
    if any(numbers.any_instance for numbers in dataset.runs.values()):
        lines.append(
            "*any instance* is per image where an answer may lie on any object of the kind: what it adds are points on "
            "the wrong object, what it lacks are wrong places."
        )
    runs = [run for run in report.runs if run.name in dataset.runs]
    free = [run for run in runs if run.mode != GIVEN]
    told = [run for run in runs if run.mode == GIVEN]
    for heading, chosen in (("Without the target's box", free), ("With the target's box given", told)):
        if chosen:
            lines += ["", f"### {heading}", "", *_scores(dataset, chosen)]
    lines += ["", "### By object size", "", *_sizes(dataset, runs, "by_size", "longest side of the box / image side")]
    for matcher in report.matchers:
        celled = [r for r in runs if r.matcher == matcher and dataset.runs[r.name].input_hw is not None]
        if celled and (input_hw := dataset.runs[celled[0].name].input_hw):
            height, width = input_hw
            label = f"cells of 16 px at {matcher}'s {width}×{height} input"
            lines += ["", *_sizes(dataset, celled, "by_cells", label)]
    failures = dataset.failures
    if failures:
        lines += ["", f"### Failed pairs ({len(failures)})", ""]
        lines += [f"- `{failure.pair}`: {failure.error}" for failure in failures[:20]]
        lines += [f"- … and {len(failures) - 20} more" for _ in range(len(failures) > 20)]
    return "\n".join(lines)


def _scores(dataset: DatasetReport, runs: Sequence[RunInfo]) -> list[str]:
    alphas = [f"{alpha:g}" for alpha in dataset.protocol.alphas]
    head = dataset.head
    several = any(dataset.runs[run.name].any_instance for run in runs)
    heads = ["run", *(f"per image @{alpha}" for alpha in alphas), *[f"any instance @{head}"] * several]
    heads += [f"per point @{head}", f"per category @{head}", "gain", "p", "better", "worse", "much worse"]
    heads += ["mean loss", "calls", "cost", "time", "s / pair", "own s"]
    body = []
    for run in runs:
        n = dataset.runs[run.name]
        shares = [
            _percent(n.per_image[alpha]) + (f" ({_range(n.interval)})" if alpha == head else "") for alpha in alphas
        ]
        failed = f" ({n.matcher_failures} failed)" if n.matcher_failures else ""
        cells = [f"{run.matcher} · {_column(run)}{failed}", *shares]
        cells += [_percent((n.any_instance or n.per_image)[head])] * several
        cells += [_percent(n.per_point[head]), _percent(n.per_category[head])]
        if c := n.comparison:
            cells += [f"{_signed(c.gain)} ({_range(c.interval, signed=True)})", chance(c.p)]
            cells += map(_percent, (c.better, c.worse, c.much_worse, c.loss))
        else:
            cells += [""] * 6
        cells += [_decimal(n.calls), _decimal(n.cost), _decimal(n.time), _seconds(n.seconds), _seconds(n.own_seconds)]
        body.append(cells)
    return _table(heads, body)


def _sizes(dataset: DatasetReport, runs: Sequence[RunInfo], key: _Bins, label: str) -> list[str]:
    found: dict[str, tuple[SizeBin, ...]] = {run.name: getattr(dataset.runs[run.name], key) or () for run in runs}
    bins = {(b.low, b.high): b.pairs for held in found.values() for b in held}
    ordered = sorted(bins, key=lambda span: span[0])
    heads = [
        label,
        *(f"{low:g}–{'' if high is None else f'{high:g}'} (n = {bins[low, high]})" for low, high in ordered),
    ]
    body = []
    for run in runs:
        shares = {(b.low, b.high): b.pck for b in found[run.name]}
        body.append([f"{run.matcher} · {_column(run)}", *(_percent(shares.get(span)) for span in ordered)])
    return _table(heads, body)


def _table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *("---:" for _ in heads[1:])]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in (heads, rule, *body)]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _signed(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:+.1f}"


def _range(interval: Interval, signed: bool = False) -> str:
    show = _signed if signed else _percent
    return f"{show(interval[0])} to {show(interval[1])}"


def chance(p: float) -> str:
    """A p-value as it is printed: never as nothing."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _mean(values: Sequence[float | None]) -> float | None:
    held = [value for value in values if value is not None]
    return sum(held) / len(held) if held else None
