"""The report's figures, with matplotlib (`pip install "kbc[viz]"`) and without a display.

Colours are Okabe and Ito's, which colour-blind people tell apart; bars are hatched and lines carry markers as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kbc.data import Dataset
from kbc.errors import KBCError
from kbc.evaluation.markdown import title
from kbc.evaluation.outcomes import Edges, Outcome, points
from kbc.evaluation.pck import Protocol, reference_length
from kbc.evaluation.plan import GIVEN, OFF
from kbc.evaluation.report import DatasetReport, Report, RunInfo, headline, pair_scores
from kbc.geometry import Box, Window
from kbc.types import Match, MatchResult

_INK = ["#999999", "#56B4E9", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#F0E442"]
_HATCH = ["", "//", "xx", "\\\\", "", "..", "oo", "--"]
_MARK = ["o", "s", "^", "D", "P", "X", "v", "*"]


def bars(report: Report, path: Path) -> Path:
    """With and without KBC per matcher, mean over the data sets (the paper's Figure 3), and per data set below."""
    from kbc import viz

    matchers, datasets = report.matchers, report.datasets
    width = max(7.0, 1.1 * max(len(datasets), 2 * len(matchers)))
    panels = [None, *matchers] if len(datasets) > 1 else [None]
    figure, axes = viz.new_axes(len(panels), 1, size=(width, 2.6))
    labels = _labels(report.runs)
    for ax, names in zip(axes, panels, strict=True):
        groups = matchers if names is None else [dataset.name for dataset in datasets]
        for place, label in enumerate(labels):
            heights = []
            for group in groups:
                matcher = group if names is None else names
                run = next((r.name for r in report.runs if r.matcher == matcher and _label(r) == label), None)
                chosen = [d for d in datasets if names is None or d.name == group]
                heights.append(_mean_share(chosen, run))
            step = min(0.85 / len(labels), 0.2)
            at = np.arange(len(groups)) + (place - (len(labels) - 1) / 2) * step
            ink, hatch = _INK[place % len(_INK)], _HATCH[place % len(_HATCH)]
            ax.bar(at, heights, step, label=label, color=ink, hatch=hatch, edgecolor="white", linewidth=0.5)
        ax.set_xticks(np.arange(len(groups)), groups, fontsize=8, rotation=0 if names is None else 15)
        ax.set_ylabel(f"{report.headlines()}, %", fontsize=8)
        whole = "mean over the data sets" if len(datasets) > 1 else datasets[0].name
        ax.set_title(str(names or whole), fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=7, ncols=min(len(labels), 3), frameon=False, loc="upper left", bbox_to_anchor=(0, -0.12))
    return viz.save(figure, path)


def against_size(report: Report, path: Path) -> Path:
    """PCK against the object's size over all data sets together, one panel per matcher."""
    from kbc import viz

    matchers = report.matchers
    figure, axes = viz.new_axes(1, len(matchers), size=(4.6, 3.6))
    labels = _labels(report.runs)
    for ax, matcher in zip(axes, matchers, strict=True):
        for run in (run for run in report.runs if run.matcher == matcher):
            bins = report.pooled[run.name]
            middle = [(b.low + (b.high or b.low + 0.2)) / 2 for b in bins]
            place = labels.index(_label(run))
            ink, mark = _INK[place % len(_INK)], _MARK[place % len(_MARK)]
            ax.plot(middle, [_per_cent(b.pck) for b in bins], label=_label(run), lw=1.5, ms=5, color=ink, marker=mark)
            low, high = ([_per_cent(b.interval[side]) for b in bins] for side in (0, 1))
            ax.fill_between(middle, low, high, color=ink, alpha=0.08, lw=0)
        ax.set_title(matcher, fontsize=9)
        ax.set_xlabel("longest side of the box / image side", fontsize=8)
        ax.set_ylabel(f"{report.headlines()}, %", fontsize=8)
        ax.set_ylim(0, 100)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=7, frameon=False)
    return viz.save(figure, path)


def matches(
    dataset: Dataset, plain: Sequence[Outcome], other: Sequence[Outcome], protocol: Protocol, path: Path
) -> Path | None:
    """Pairs with and without KBC (the paper's Figures 4 and 5), or None when there is nothing to show.

    Which pairs is a rule, not a choice: those at the 90, 50 and 10 % points of the gain, so that one is helped, one is
    typical and one is hurt or unchanged.
    """
    from kbc import viz

    before, after = pair_scores(plain, protocol), pair_scores(other, protocol)
    gains = sorted((after[pair] - before[pair], pair) for pair in before if pair in after)
    if not gains:
        return None
    picked = dict(gains[round(share * (len(gains) - 1))][::-1] for share in (0.9, 0.5, 0.1))
    records = {record.id: record for record in dataset.records}
    by_pair = [{outcome.pair: outcome for outcome in outcomes} for outcomes in (plain, other)]
    figure, rows = viz.comparison_axes(2, len(picked))
    figure.suptitle(
        "pairs at the 90, 50 and 10 % points of the gain: right (●), wrong (×), truth (◇); dashed: KBC's windows, "
        "dotted: annotated boxes",
        fontsize=10,
    )
    for row, (pair_id, gain) in zip(rows, picked.items(), strict=True):
        first, second = (known[pair_id] for known in by_pair)
        try:
            pair = dataset.load(records[pair_id], "both")
        except KBCError:
            continue
        truth = points(first.truth)
        tolerance = headline(protocol) * reference_length(protocol, truth, first.size_hw, first.target_box)
        answers = {"KBC off": _match(first), "with KBC": _match(second)}
        viz.draw_comparison(pair, answers, truth=truth, tolerance=tolerance, row=row)
        row[0].set_title(f"{pair_id}: {100 * gain:+.0f} points", fontsize=9)
    return viz.save(figure, path)


def charts(report: Report, folder: Path) -> list[Path]:
    """The figures without any picture of the data: `bars` and `against_size`, as PNG.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    return [bars(report, folder / "bars.png"), against_size(report, folder / "size.png")]


def pictures(
    report: Report,
    datasets: Sequence[Dataset],
    outcomes: Sequence[Outcome],
    protocols: Mapping[str, Protocol],
    folder: Path,
) -> list[Path]:
    """`matches` of every matcher on every data set, as PNG; the photographs' own licences hold for them.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    made: list[Path] = []
    for matcher in report.matchers:
        runs = [run for run in report.runs if run.matcher == matcher]
        off = next((run.name for run in runs if run.mode == OFF), None)
        fair = [run.name for run in runs if run.mode not in (OFF, GIVEN)]
        shown = fair[-1] if fair else next((run.name for run in runs if run.mode == GIVEN), None)
        if off is None or shown is None:
            continue
        for dataset in datasets:
            groups = [[o for o in outcomes if o.dataset == dataset.name and o.run == name] for name in (off, shown)]
            name = "".join(c if c.isalnum() or c in "-_" else "-" for c in f"matches-{matcher}-{dataset.name}")
            path = matches(dataset, groups[0], groups[1], protocols[dataset.name], folder / f"{name}.png")
            made += [path] if path else []
    return made


def _match(outcome: Outcome) -> Match:
    found = points(outcome.predicted)
    if outcome.target_window is None:
        return Match(found)
    windows = [_window(edges) for edges in (outcome.source_window, outcome.target_window)]
    return MatchResult(found, source_window=windows[0], target_window=windows[1])


def _window(edges: Edges | None) -> Window | None:
    if edges is None:
        return None
    box = Box.of(edges)
    return Window(box, (int(box.height), int(box.width)))


def _label(run: RunInfo) -> str:
    return title(run.mode) + ("" if run.size is None else f", {run.size} px")


def _labels(runs: Sequence[RunInfo]) -> list[str]:
    return list(dict.fromkeys(_label(run) for run in runs))


def _per_cent(share: float | None) -> float:
    return float("nan") if share is None else 100 * share


def _mean_share(datasets: Sequence[DatasetReport], run: str | None) -> float:
    """Mean over the data sets of a run's per-image figure, per cent; NaN without any."""
    known = [share for d in datasets if run is not None and (share := d.share(run)) is not None]
    return 100 * float(np.mean(known)) if known else float("nan")
