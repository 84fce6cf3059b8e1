"""`kbc eval`: matchers over data sets, with and without KBC, and the report on it."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from kbc.cli.options import key_values, matcher_reference, set_fields
from kbc.cli.text import fitted, say_problems
from kbc.data import KINDS, Dataset
from kbc.errors import DataError, InputError, MissingDependencyError, as_text, counted, must_be
from kbc.evaluation.outcomes import Outcome, read_outcomes
from kbc.evaluation.pck import Frame, Protocol, Threshold
from kbc.evaluation.plan import OFF, Plan, Run, Source, complete, parse_shard
from kbc.evaluation.report import DatasetReport, Report, RunReport, build
from kbc.evaluation.runner import execute, execute_jobs, execute_torchrun, torchrun_rank
from kbc.files import output_file, output_folder, write_json, written_whole
from kbc.progress import progress_bar

HELP = "Measure matchers with and without KBC on data sets, and report whether it helps, by how much and at what price."

SUITE_LIMIT = 16
LOCALIZERS = "predicted,best,given"
_SHRINKS = (1.0, 2.0, 3.0, 5.0)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kbc eval`."""
    add = parser.add_argument_group("data").add_argument
    add("--data", choices=list(KINDS), help="kind of data set")
    add("--root", help="its folder, in the official layout")
    add("--data-option", action="append", default=[], metavar="KEY=VALUE", help="e.g. split=val")
    add("--suite", metavar="DIR", help="every folder below DIR with an annotations.json, PF-WILLOW shrunk")
    add("--shrink", default=None, help="paste photos into f times larger ones: f, or several as 1,2,3")
    add("--seed", type=int, help="of the shrinking (default 0)")
    add("--limit", type=int, help=f"pairs per set, evenly spread (default: {SUITE_LIMIT} for a suite, all)")
    add("--strict", action="store_true", help="stop before the first match if anything in the data is wrong")

    add = parser.add_argument_group("matchers").add_argument
    add(
        "--matcher",
        action="append",
        type=matcher_reference,
        metavar="NAME",
        help="may be given several times (default hog)",
    )
    add("--option", action="append", default=[], metavar="[NAME.]KEY=VALUE", help="option of the matchers")
    add("--size", help="input size in px, or several: KBC runs at the first, the bare matcher at each")
    add("--kbc", choices=("both", "on", "off"), default="both")
    add("--localizer", default=LOCALIZERS, help=f"several with commas (default {LOCALIZERS})")
    add("--budget", choices=("fast", "balanced", "thorough"))
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help="a field of kbc.KBCConfig")

    add = parser.add_argument_group("protocol").add_argument
    add("--alpha", default="0.05,0.1,0.15", help="tolerances (default 0.05,0.1,0.15)")
    add("--threshold", choices=("auto", "bbox", "bbox-kp", "img", "bbox-kp-padded"), default="auto")
    add("--frame", default="original", help="original (default), or HxW for the stretched frame")
    add("--exclusive", action="store_true", help="< instead of <=")
    add(
        "--instance", choices=("own", "any"), default="own",
        help="any: a point may lie on any object of the kind in the target picture; by default a further column",
    )  # fmt: skip

    add = parser.add_argument_group("output").add_argument
    add("--out", default="runs/eval", help="folder; a run in it is taken up again (default runs/eval)")
    add("--jobs", type=int, default=1, help="processes on this machine (default 1)")
    add("--shard", help="i/n: only this part, without a report; a last run without --shard makes it")
    add("--figures", choices=("all", "charts", "none"), default="all", help="charts: without pictures of the data")
    add("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Match, and write the report; 1 when every pair failed."""
    plan = make_plan(args)
    datasets = plan.open()
    if not any(map(len, datasets)):
        wrong = [f"{problem.where}: {problem.what}" for dataset in datasets for problem in dataset.problems]
        received = f"none ({wrong[-1]})" if wrong else "none"
        raise DataError(
            must_be("data", "at least one usable pair", received, "`kbc data check DIR` says what is wrong")
        )
    plan.check()
    for name in ("report.json", "report.md"):
        output_file(output_folder(args.out, "--out") / name, "--out")
    rank, _ = torchrun_rank() or (0, 1)
    if rank == 0:
        say_problems(f"{dataset.name}: {note}" for dataset in datasets for note in dataset.notes)
    start = time.perf_counter()
    outcomes = _matched(args, plan, datasets)
    if outcomes is None:
        return 0
    seconds = time.perf_counter() - start
    return _report(args, plan, datasets, outcomes, seconds)


def _matched(args: argparse.Namespace, plan: Plan, datasets: list[Dataset]) -> list[Outcome] | None:
    """What came of every pair; None where this process has done a part of them and another one makes the report."""
    folder = Path(args.out)
    if torchrun_rank() is not None:
        gathered = execute_torchrun(plan, folder, datasets, args.strict)
        return None if gathered is None else list(gathered.values())
    shard = parse_shard(args.shard) if args.shard else (0, 1)
    with progress_bar(wanted=not args.quiet) as progress:
        if args.jobs > 1:
            execute_jobs(plan, folder, datasets, args.jobs, strict=args.strict, progress=progress)
        else:
            execute(plan, folder, datasets, shard=shard, strict=args.strict, progress=progress)
    if args.shard:
        print(f"shard {args.shard} is done; run without --shard for the report", file=sys.stderr)
        return None
    return list(read_outcomes(folder).values())


def make_plan(args: argparse.Namespace) -> Plan:
    """Data sets and runs from the command line.

    Raises:
        InputError: options that contradict each other or cannot be read.
    """
    Protocol(tuple(_floats("--alpha", args.alpha)), frame=_frame(args.frame))  # refused now, not after the matching
    if args.jobs < 1:
        raise InputError(must_be("--jobs", "at least 1", args.jobs))
    if args.jobs > 1 and args.shard:
        raise InputError(must_be("--jobs", "1 together with --shard", args.jobs))
    return Plan(tuple(_sources(args)), tuple(_runs(args)))


def protocol_for(args: argparse.Namespace, source: Source, dataset: Dataset) -> Protocol:
    """How PCK is measured on a data set: as asked, or as its literature does.

    "auto": PF-PASCAL the image (once shrunk, the box: the image has grown and the object has not), PF-WILLOW and every
    set without annotated boxes the extent of the keypoints, the others the annotated box.
    """
    threshold: Threshold = "bbox"
    if args.threshold != "auto":
        threshold = args.threshold
    elif source.kind == "pfpascal" and source.shrink == 1:
        threshold = "img"
    elif any(record.bbox_kind == "keypoint-extent" or record.target_box is None for record in dataset.records):
        threshold = "bbox-kp"
    alphas = tuple(_floats("--alpha", args.alpha))
    return Protocol(alphas, threshold, _frame(args.frame), not args.exclusive, args.instance)


def _sources(args: argparse.Namespace) -> list[Source]:
    if bool(args.suite) == bool(args.data):
        raise InputError(must_be("--data or --suite", "given, one of them", "both" if args.suite else "neither"))
    if args.suite and args.root:
        raise InputError(must_be("--root", "given together with --data", repr(args.root)))
    options = key_values(args.data_option, "--data-option")
    asked = None if args.shrink is None else _floats("--shrink", args.shrink)
    if args.data == "scenes" and args.root:
        raise InputError(must_be("--root", "left out where --data is scenes, which are drawn", repr(args.root)))
    if args.data and asked is None and args.seed is not None:
        hint = "drawn scenes have an option of their own, --data-option seed=1" if args.data == "scenes" else ""
        raise InputError(must_be("--seed", "given together with --shrink, whose seed it is", args.seed, hint))
    seed = args.seed or 0
    if args.data:
        root = str(args.root or "")
        return [Source(args.data, root, f, seed, args.limit, options) for f in asked or [1.0]]
    limit = SUITE_LIMIT if args.limit is None else args.limit
    sources = []
    for folder in sorted(path.parent for path in Path(args.suite).glob("*/annotations.json")):
        willow = (folder / "PF-dataset-WILLOW").is_dir()
        for factor in asked or (_SHRINKS if willow else [1.0]):
            kind = "pfwillow" if willow else "coco"
            sources.append(Source(kind, str(folder), factor, seed, limit, options))
    if not sources:
        raise InputError(must_be("--suite", "a folder of folders with an annotations.json", repr(args.suite)))
    return sources


def _runs(args: argparse.Namespace) -> list[Run]:
    matchers = args.matcher or ["hog"]
    sizes: list[int | None] = [None]
    if args.size is not None:
        asked_sizes = _floats("--size", args.size)
        if not all(size >= 1 and size.is_integer() for size in asked_sizes):
            raise InputError(must_be("--size", "whole pixels, at least 1", repr(args.size)))
        sizes = [int(size) for size in asked_sizes]
    modes = [mode.strip() for mode in args.localizer.split(",") if mode.strip()]
    if not modes:
        raise InputError(must_be("--localizer", f"names such as {LOCALIZERS}", repr(args.localizer)))
    budget = {"budget": args.budget} if args.budget else {}
    config = budget | set_fields(args, ("localizer", *budget))
    if config and args.kbc == "off":
        raise InputError(must_be("--kbc off", "given without KBC's own options", ", ".join(sorted(config))))
    asked = [(*key.rpartition(".")[::2], value) for key, value in key_values(args.option).items()]
    for name, key, _ in asked:
        if name and name not in matchers:
            expected = f"NAME.KEY=VALUE with one of {', '.join(matchers)}"
            raise InputError(must_be("--option", expected, repr(f"{name}.{key}")))
    runs = []
    for matcher in matchers:
        # Its own options come last and win, whatever the order they were given in.
        options = {key: value for whose in ("", matcher) for name, key, value in asked if name == whose}
        if args.kbc != "on":
            runs += [Run(matcher, OFF, size, options) for size in sizes]
        if args.kbc != "off":
            runs += [Run(matcher, mode, sizes[0], options, config) for mode in modes]
    if len({run.name for run in runs}) < len(runs):
        raise InputError(must_be("--matcher, --size and --localizer", "given once each", [run.name for run in runs]))
    return runs


def _report(
    args: argparse.Namespace, plan: Plan, datasets: list[Dataset], outcomes: list[Outcome], seconds: float
) -> int:
    """Write the report, and say what is in it; 1 when every pair failed."""
    from kbc.evaluation.markdown import render

    folder = Path(args.out)
    protocols = {
        dataset.name: protocol_for(args, source, dataset)
        for source, dataset in zip(plan.sources, datasets, strict=True)
    }
    command = as_text(shlex.join(["kbc", *getattr(args, "words", sys.argv[1:])]))
    report = _portable(build(plan, datasets, outcomes, protocols, command))
    write_json(report.to_dict(), folder / "report.json")
    figures: list[Path] = []
    if args.figures != "none":
        from kbc.evaluation.charts import charts, pictures

        try:
            figures += charts(report, folder)
            if args.figures == "all":
                figures += pictures(report, datasets, complete(plan, datasets, outcomes), protocols, folder)
        except MissingDependencyError as error:
            print(f"no figures: {error}", file=sys.stderr)
    with written_whole(folder / "report.md") as file:
        file.write(render(report, [figure.name for figure in figures]).encode())
    print(_overview(report) if len(report.datasets) > 1 else "\n".join(map(_short, report.datasets)))
    print(_numbers(report, outcomes, seconds), folder / "report.md", folder / "report.json", sep="\n")
    if figures:
        print(counted(len(figures), "figure"))
    unreadable = {outcome.pair: outcome.error for outcome in outcomes if outcome.failure == "data"}
    if unreadable:
        lost = f"{counted(len(unreadable), 'pair')} left out that could not be loaded"
        print(f"note: {lost}, e.g. {next(iter(unreadable.values()))}", file=sys.stderr)
    failed = [outcome for outcome in outcomes if outcome.failure == "matcher"]
    if failed:
        first = f"{failed[0].run!r} on pair {failed[0].pair!r}: {failed[0].error}"
        print(f"note: {counted(len(failed), 'match')} failed, and count as wrong, e.g. {first}", file=sys.stderr)
    return 0 if any(outcome.counts and outcome.failure is None for outcome in outcomes) else 1


def _numbers(report: Report, outcomes: list[Outcome], seconds: float) -> str:
    matches = counted(sum(outcome.counts for outcome in outcomes), "match")
    failed = sum(outcome.failure is not None for outcome in outcomes)
    problems = counted(sum(problem.count for problem in report.problems))
    return f"{matches}, {failed} failed, {problems} in the data, {seconds:.0f} s"


def _overview(report: Report) -> str:
    """The essence of a report on several data sets, for the terminal: a row each, a column for each run."""
    from kbc.evaluation.markdown import SEVERAL

    names = [run.name for run in report.runs]
    titles = [dataset.name + " †" * bool(dataset.several_instances) for dataset in report.datasets]
    width = max(map(len, titles))
    lines = [f"{'PCK per image, %':<{width}}  pairs" + "".join(f"{f'({i})':>7}" for i in range(1, len(names) + 1))]
    for title, dataset in zip(titles, report.datasets, strict=True):
        shares = "".join(f"{_share(dataset, name):>7}" for name in names)
        lines.append(f"{title:<{width}}  {dataset.pairs:>5}{shares}")
    alphas = ", ".join(dict.fromkeys(f"@{dataset.head}" for dataset in report.datasets))
    lines.append(fitted(f"{alphas}; " + ", ".join(f"({i}) {name}" for i, name in enumerate(names, 1))))
    return "\n".join(lines + [fitted(SEVERAL)] * any(dataset.several_instances for dataset in report.datasets))


def _short(dataset: DatasetReport) -> str:
    """The essence of a report on one data set, for the terminal."""
    from kbc.evaluation.markdown import chance

    width = max(map(len, dataset.runs))
    lines = [
        fitted(f"{dataset.name}: {dataset.protocol}", 0, 2),
        f"  {'per cent per image':<{width}}   @{dataset.head:<26}  s/pair  cost×  time×",
    ]
    for name, numbers in dataset.runs.items():
        gain = " " * 22
        if (compared := numbers.comparison) and compared.gain is not None:
            p = chance(compared.p).replace(" ", "")  # as wide as the others
            gain = f"  gain {100 * compared.gain:+5.1f} (p{p:>6})"
        lines.append(f"  {name:<{width}}  {_share(dataset, name)}{gain}{_price(numbers)}")
    return "\n".join(lines)


def _price(numbers: RunReport) -> str:
    """Seconds a pair, and the price in units of the plain matcher: of its calls, of its time."""
    if numbers.seconds is None:
        return ""
    ratios = ("–" if value is None else f"{value:.1f}" for value in (numbers.cost, numbers.time))
    return f"  {numbers.seconds:6.3f}" + "".join(f"  {text:>5}" for text in ratios)


def _share(dataset: DatasetReport, run: str) -> str:
    """A run's PCK at the headline α in per cent, five characters."""
    found = dataset.share(run)
    return f"{'–':>5}" if found is None else f"{100 * found:5.1f}"


def _portable(report: Report) -> Report:
    """The report with the folder of the data by its variable's name, so that a reader can repeat the command."""
    home = os.environ.get("KBC_DATA", "").rstrip("/")
    if home:
        report = report.with_alias(home, "$KBC_DATA")
    return replace(report, machine=f"{os.cpu_count()} processor cores, torch {version('torch')}")


def _floats(option: str, text: str) -> list[float]:
    try:
        found = [float(word) for word in str(text).split(",") if word.strip()]
    except ValueError:
        found = []
    if not found:
        raise InputError(must_be(option, "numbers with commas between", repr(text)))
    if len({f"{number:g}" for number in found}) < len(found):
        raise InputError(must_be(option, "numbers that stand once each", repr(text)))
    return found


def _frame(text: str) -> Frame:
    if text == "original":
        return "original"
    found = re.fullmatch("([0-9]{1,6})x([0-9]{1,6})", text.lower())
    if found is None:
        raise InputError(must_be("--frame", "original or HxW", repr(text)))
    return int(found[1]), int(found[2])
