"""Running matchers over data sets: resumable, sharded, over several processes or machines."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from kbc.data import Dataset, PairRecord
from kbc.errors import InputError, KBCError, as_text, must_be, whole_number
from kbc.evaluation.outcomes import Outcome, OutcomeFile, read_outcomes, rows
from kbc.evaluation.plan import GIVEN, OFF, AnyMatcher, Plan, Run, written
from kbc.images import image_hw
from kbc.matchers.protocol import input_hw, run_matcher
from kbc.processes import worker_processes
from kbc.types import Match, Pair

_CHUNK = 16


def evaluate(
    matcher: AnyMatcher,
    dataset: Dataset,
    *,
    run: str = OFF,
    give_boxes: bool = False,
    records: Iterable[tuple[int, PairRecord]] | None = None,
    chunk: int = _CHUNK,
) -> Iterator[list[Outcome]]:
    """Match a data set and yield the outcomes chunk by chunk; nothing that a pair does ends the run.

    Args:
        matcher: anything with `match`; a `KBCMatcher`'s accounts are kept.
        dataset: what to match.
        run: name for the outcomes.
        give_boxes: put the annotated boxes into the pairs. Only for a run that says so.
        records: (index, record) to match; default all.
        chunk: pairs per call of the matcher.

    A pair whose images cannot be read is a failure of the data. When a chunk raises it is repeated pair by pair, and
    the pair that raises again is a failure of the matcher. The next chunk's images are read, in a thread, while one is
    matched.
    """
    todo = list(enumerate(dataset.records) if records is None else records)
    chunks = [todo[start : start + chunk] for start in range(0, len(todo), chunk)]
    load = partial(_loaded, dataset, run, give_boxes, input_hw(matcher))
    with ThreadPoolExecutor(1, thread_name_prefix="kbc-read") as reader:
        reads = (reader.submit(load, part) for part in chunks)
        ahead = list(islice(reads, 1))
        while ahead:
            failed, loaded = ahead.pop().result()
            ahead += islice(reads, 1)
            yield sorted(failed + _matched(matcher, loaded), key=lambda outcome: outcome.index)


def _loaded(
    dataset: Dataset,
    run: str,
    give_boxes: bool,
    seen_hw: tuple[int, int] | None,
    records: Sequence[tuple[int, PairRecord]],
) -> tuple[list[Outcome], list[tuple[Outcome, Pair]]]:
    """The outcomes of pairs whose images cannot be read, and the pairs of the others with what is known of them."""
    failed: list[Outcome] = []
    loaded: list[tuple[Outcome, Pair]] = []
    for index, record in records:
        empty = _outcome(dataset.name, run, index, record)
        try:
            pair = dataset.load(record, "both" if give_boxes else "none")
        except (KBCError, OSError) as error:
            failed.append(replace(empty, failure="data", error=as_text(str(error))))
            continue
        loaded.append((replace(empty, size_hw=image_hw(pair.target), input_hw=seen_hw), pair))
    return failed, loaded


def _outcome(dataset: str, run: str, index: int, record: PairRecord) -> Outcome:
    return Outcome(
        dataset=dataset,
        run=run,
        pair=record.id,
        index=index,
        category=record.category,
        truth=rows(record.target_keypoints),
        others=tuple(map(rows, record.others)),
        box=None if record.target_box is None else record.target_box.xyxy,
        instances=int(record.fields.get("target_instances", 1)),
    )


def _matched(matcher: AnyMatcher, loaded: Sequence[tuple[Outcome, Pair]]) -> list[Outcome]:
    """The outcomes with the matcher's answers; one call for all, one by one when that raises."""
    if not loaded:
        return []
    start = time.perf_counter()
    try:
        matches = _ask(matcher, [pair for _, pair in loaded])
    except Exception as error:  # whatever a matcher does to one pair, the others are still to be measured
        if len(loaded) == 1:
            seconds = time.perf_counter() - start
            message = as_text(f"{type(error).__name__}: {error}")
            nothing = tuple(None for _ in loaded[0][0].truth)
            return [replace(loaded[0][0], predicted=nothing, failure="matcher", error=message, seconds=seconds)]
        return [outcome for single in loaded for outcome in _matched(matcher, [single])]
    seconds = (time.perf_counter() - start) / len(loaded)
    return [_answered(outcome, match, seconds) for (outcome, _), match in zip(loaded, matches, strict=True)]


def _ask(matcher: AnyMatcher, pairs: Sequence[Pair]) -> Sequence[Match]:
    """A wrapped matcher's results with its accounts; a bare one's answers, checked."""
    from kbc.pipeline import KBCMatcher

    return matcher.match(pairs) if isinstance(matcher, KBCMatcher) else run_matcher(matcher, pairs)


def _answered(outcome: Outcome, match: Match, seconds: float) -> Outcome:
    windows = [getattr(match, f"{side}_window", None) for side in ("source", "target")]
    kept = [answer for answer, row in zip(getattr(match, "origin", ()), outcome.truth, strict=False) if row is not None]
    return replace(
        outcome,
        predicted=rows(match.keypoints),
        seconds=seconds,
        own_seconds=_own_seconds(match, seconds),
        calls=int(getattr(match, "calls", 1)),
        cost=float(getattr(match, "cost", 1.0)),
        fine=float(np.mean([answer == "fine" for answer in kept])) if kept else 0.0,
        source_window=None if windows[0] is None else windows[0].box.xyxy,
        target_window=None if windows[1] is None else windows[1].box.xyxy,
        localizer=str(getattr(match, "localizer", "")),
        notes=tuple(getattr(match, "notes", ())),
    )


def _own_seconds(match: Match, seconds: float) -> float | None:
    """Of a pair's seconds those that were not the matcher's; None where a wrapper does not say."""
    told = getattr(match, "seconds", {"matcher": seconds})
    return max(seconds - told["matcher"], 0.0) if "matcher" in told else None


def execute(
    plan: Plan,
    folder: Path,
    datasets: Sequence[Dataset],
    *,
    shard: tuple[int, int] = (0, 1),
    strict: bool = False,
    chunk: int = _CHUNK,
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Run what the folder does not hold yet of this shard, appending to `pairs*.jsonl`.

    Args:
        plan: data sets and runs.
        datasets: `plan.open()`.
        folder: output; resumed when it holds results of the same plan.
        shard: (i, n): every n-th pair from the i-th.
        strict: check every data set, images included, before the first match.
        chunk: pairs matched and written together: what a kill may cost.
        progress: called with (pairs done, pairs in all, what is running).

    Raises:
        DataError: with `strict`, any data set has any problem.
        InputError: the folder holds another plan's results; an unknown matcher or option.
    """
    _prepare(plan, folder, datasets, strict)
    _run_shard(plan, folder, datasets, shard, chunk, progress)


def _prepare(plan: Plan, folder: Path, datasets: Sequence[Dataset], strict: bool) -> None:
    plan.claim(folder, datasets)
    if strict:
        for dataset in datasets:
            dataset.require_sound()


def _run_shard(
    plan: Plan,
    folder: Path,
    datasets: Sequence[Dataset],
    shard: tuple[int, int],
    chunk: int = _CHUNK,
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    index, count = shard
    name = "pairs.jsonl" if count == 1 else f"pairs.{index + 1}-of-{count}.jsonl"
    with OutcomeFile(folder / name) as file:
        plan.confirm(folder)
        done = read_outcomes(folder)
        work = [(dataset, run, _missing(dataset, run, done, index, count)) for dataset in datasets for run in plan.runs]
        total, finished = sum(len(missing) for *_, missing in work), 0
        for dataset, run, missing in work:
            if not missing:
                continue
            matcher = run.build()
            label = f"{dataset.name} · {run.name}"
            told = run.mode == GIVEN
            for outcomes in evaluate(matcher, dataset, run=run.name, give_boxes=told, records=missing, chunk=chunk):
                file.append(outcomes)
                finished += len(outcomes)
                if progress:
                    progress(finished, total, label)


def _missing(
    dataset: Dataset, run: Run, done: dict[tuple[str, str, str], Outcome], index: int, count: int
) -> list[tuple[int, PairRecord]]:
    dataset.shard(index, count)  # refuses a wrong shard
    mine = list(enumerate(dataset.records))[index::count]
    return [(i, record) for i, record in mine if (dataset.name, run.name, record.id) not in done]


def execute_jobs(
    plan: Plan,
    folder: Path,
    datasets: Sequence[Dataset],
    jobs: int,
    *,
    strict: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """`execute` in several processes of this machine, each with its share of the processor's threads.

    Raises:
        InputError: `jobs` below 1, or options that cannot be sent to other processes.
        KBCError: what the first failing process raised.
    """
    if jobs < 1:
        raise InputError(must_be("jobs", "at least 1", jobs))
    try:
        pickle.dumps(plan)
    except Exception as error:  # pickle raises what the object does
        hint = "name a function as package.module:function"
        raise InputError(must_be("jobs", "1 where an option cannot be sent to other processes", error, hint)) from error
    import torch

    _prepare(plan, folder, datasets, strict)
    before = written(folder)
    total = sum(len(dataset) for dataset in datasets) * len(plan.runs) - before
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with worker_processes(jobs, torch.set_num_threads, threads) as pool:
        futures = [pool.submit(_run_shard, plan, folder, datasets, (i, jobs)) for i in range(jobs)]
        while wait(futures, timeout=1.0).not_done:
            if progress:
                progress(written(folder) - before, total, f"{jobs} processes")
        for future in futures:
            future.result()


def torchrun_rank() -> tuple[int, int] | None:
    """(rank, world size) when torchrun started this process, else None."""
    if all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")):
        rank, world = (whole_number(name, os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
        return rank, world
    return None


def execute_torchrun(
    plan: Plan, folder: Path, datasets: Sequence[Dataset], strict: bool = False
) -> dict[tuple[str, str, str], Outcome] | None:
    """`execute` as one of torchrun's processes; the outcomes of all ranks on rank 0, None elsewhere.

    Every rank runs its shard and appends to its own file; the outcomes then travel through a gloo group, so that the
    ranks need not share a disk.

    Raises:
        InputError: torchrun did not start this process.
    """
    ranks = torchrun_rank()
    if ranks is None:
        raise InputError(
            must_be("environment", "torchrun's, with RANK and WORLD_SIZE", "neither", "start it with torchrun")
        )
    from torch import distributed

    rank, world = ranks
    distributed.init_process_group("gloo")
    try:
        execute(plan, folder, datasets, shard=(rank, world), strict=strict)
        mine = list(read_outcomes(folder).values())
        gathered: list[list[Outcome] | None] | None = [None] * world if rank == 0 else None
        distributed.gather_object(mine, gathered, dst=0)
    finally:
        distributed.destroy_process_group()
    if gathered is None:
        return None
    return {outcome.key: outcome for part in gathered if part for outcome in part}
