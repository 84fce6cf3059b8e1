"""`kbc bench pipeline`: what KBC's own work costs beside the matcher's network, stage by stage.

The network is one that costs next to nothing (each cell's own pixels), or a matcher of yours. Drawn scenes; the plain
matcher, the paper's rule and each budget take turns in one process; the figures are medians over the turns. Every turn
begins with fresh arrays and an empty feature cache, as a user's pair does.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import kbc
from kbc.cli.options import options_of
from kbc.cli.text import markdown_table
from kbc.data.scenes.render import scene_pair
from kbc.errors import InputError, must_be
from kbc.matchers.protocol import Matcher, run_matcher
from kbc.tensors import usable_device

INPUTS = "256/8/128,518/14/384,518/14/768,840/14/768"
VARIANTS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "paper": {"localizer": "predicted", "passes": 1},
    "fast": {"budget": "fast"},
    "balanced": {"budget": "balanced"},
    "thorough": {"budget": "thorough"},
}
"""Name → options of `kbc.wrap`; None for the matcher alone."""

ENCODING, REST = "encoding", "rest"
STAGES = {
    "images": ("kbc.matchers.features.fingerprint", "kbc.matchers.features.network_input"),
    "asking": ("kbc.cli.bench_pipeline.run_matcher", "kbc.probe.run_matcher", "kbc.probe.run_similarity"),
    "peaks": ("kbc.probe._with_peaks",),
    "cutting": ("kbc.geometry.Window.cut", "kbc.probe.PairState.cut"),
    "proposals": ("kbc.layout.propose",),
    "layout": ("kbc.layout.fit", "kbc.layout.place"),
    "verification": ("kbc.pipeline.judge", "kbc.pipeline.together"),
}
"""Stage → the functions it is made of, by where they are called from. A stage's time is without those inside it."""


@dataclass(frozen=True)
class Setting:
    """What is measured: the matcher's input in pixels, its stride and channels, points and pairs a batch.

    Attributes:
        points: a pair; None for those that the scenes have, 8 to 14.
    """

    size: int
    stride: int
    channels: int
    points: int | None = None
    batch: int = 1


@dataclass(frozen=True)
class Cost:
    """What one variant costs at one setting, milliseconds a pair.

    Attributes:
        setting: see `Setting`; None where the matcher was given.
        points, batch: of a pair, of a call.
        variant: "plain" for the matcher alone, the paper's rule, or a budget.
        wall: all of it, by the clock on the wall.
        own: without the network, by the processor time of the calling thread on a CPU, by the wall on a GPU.
        stages: stage → its share of `own`, and "encoding" → the network, the same clock.
        calls: mean cost in units of one plain match.
    """

    setting: Setting | None
    points: int | None
    batch: int
    variant: str
    wall: float
    own: float
    stages: dict[str, float]
    calls: float


class _Clock:
    """Time by stage: what a stage spends in another one inside it counts for that one alone."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._thread = threading.get_ident()
        self._stack: list[str] = []
        self._since = 0.0
        self.seconds: dict[str, float] = {}

    def now(self) -> float:
        """Processor time of this thread; on a GPU wall time, with nothing left to do there."""
        if self._device.type == "cpu":
            return time.thread_time()
        torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if threading.get_ident() != self._thread:
            yield
            return
        self._turn()
        self._stack.append(name)
        try:
            yield
        finally:
            self._turn()
            self._stack.pop()

    def _turn(self) -> None:
        now = self.now()
        if self._stack:
            self.seconds[self._stack[-1]] = self.seconds.get(self._stack[-1], 0.0) + now - self._since
        self._since = now

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            with self.stage(name):
                return function(*args, **options)

        return run

    @contextmanager
    def watching(self, matcher: Matcher) -> Iterator[None]:
        """The stages' functions and the matcher's network are timed inside the block."""
        network = "encode" if hasattr(matcher, "encode") else "match"
        with ExitStack() as stack:
            stack.enter_context(patch.object(matcher, network, self.timed(ENCODING, getattr(matcher, network))))
            for name, paths in STAGES.items():
                for path in paths:
                    stack.enter_context(patch(path, self.timed(name, resolve_name(path))))
            yield


def bench_pipeline(
    settings: Sequence[Setting],
    variants: Sequence[str] = tuple(VARIANTS),
    *,
    matcher: Matcher | None = None,
    device: str = "cpu",
    pairs: int = 6,
    rounds: int = 5,
) -> list[Cost]:
    """Measure what this machine can measure, on drawn scenes of 640×480 pixels.

    Args:
        settings: what to measure.
        variants: of `VARIANTS`.
        matcher: instead of the patch encoder; a setting's points and batch alone then count.
        device: where the patch encoder runs; of a given matcher the device that it runs on.
        pairs: at least, rounded up to whole batches.
        rounds: turns that count; one more before them does not.

    Raises:
        InputError: an unknown variant or device, or fewer than one pair or round.
    """
    for variant in variants:
        if variant not in VARIANTS:
            raise InputError(must_be("variants", f"some of {', '.join(VARIANTS)}", repr(variant)))
    if min(pairs, rounds) < 1:
        raise InputError(must_be("pairs and rounds", "at least 1", (pairs, rounds)))
    where = torch.device(usable_device(device))
    found = []
    for setting in settings:
        encode = partial(_patches, setting.channels, setting.stride)
        plain = matcher or kbc.from_features(encode, setting.stride, size=setting.size, device=where, name="patches")
        drawn = [_drawn(seed, setting.points) for seed in range(-(-pairs // setting.batch) * setting.batch)]
        turns: dict[str, list[Cost]] = {name: [] for name in variants}
        for number in range(rounds + 1):
            for name in variants:
                cost = _turn(name, plain, setting, drawn, where)
                if number:
                    turns[name].append(cost)
        found += [_median(costs, None if matcher else setting) for costs in turns.values()]
    return found


def _patches(channels: int, stride: int, images: Tensor) -> Tensor:
    """(B, channels, h, w): as many of the pixels of each cell of (B, 3, H, W), evenly spread, repeated if need be."""
    pixels = torch.nn.functional.pixel_unshuffle(images, stride)
    return pixels[:, torch.linspace(0, pixels.shape[1] - 1, channels).round().long()]


def _drawn(seed: int, points: int | None) -> kbc.Pair:
    """A drawn pair; so many points between its keypoints, if told."""
    pair = scene_pair(seed).pair
    if points is None:
        return pair
    shares = np.random.default_rng(seed).dirichlet(np.ones(len(pair.keypoints)), points)
    return kbc.Pair(pair.source, pair.target, shares @ pair.keypoints)


def _turn(name: str, matcher: Matcher, setting: Setting, drawn: Sequence[kbc.Pair], device: torch.device) -> Cost:
    """One variant over all pairs, with nothing kept from before."""
    options = VARIANTS[name]
    if (clear := getattr(matcher, "clear_cache", None)) is not None:
        clear()
    pairs = [kbc.Pair(one.source.copy(), one.target.copy(), one.keypoints) for one in drawn]
    wrapped = None if options is None else kbc.wrap(matcher, **options, batch_size=setting.batch)
    clock = _Clock(device)
    with clock.watching(matcher):
        begun = time.perf_counter()
        with clock.stage(REST):
            matches = wrapped.match(pairs) if wrapped else _plain(matcher, pairs, setting.batch)
        wall = time.perf_counter() - begun
    stages = {name: 1e3 * clock.seconds.get(name, 0.0) / len(pairs) for name in (ENCODING, *STAGES, REST)}
    own = sum(stages.values()) - stages[ENCODING]
    calls = statistics.fmean(getattr(match, "cost", 1.0) for match in matches)
    return Cost(setting, setting.points, setting.batch, name, 1e3 * wall / len(pairs), own, stages, calls)


def _plain(matcher: Matcher, pairs: Sequence[kbc.Pair], batch: int) -> Sequence[kbc.Match]:
    parts = [pairs[start : start + batch] for start in range(0, len(pairs), batch)]
    return [match for part in parts for match in run_matcher(matcher, part)]


def _median(turns: Sequence[Cost], setting: Setting | None) -> Cost:
    """The median turn's own and wall time; each stage's own median."""
    first = turns[0]
    stages = {name: statistics.median(turn.stages[name] for turn in turns) for name in first.stages}
    wall, own = statistics.median(turn.wall for turn in turns), statistics.median(turn.own for turn in turns)
    return Cost(setting, first.points, first.batch, first.variant, wall, own, stages, first.calls)


def table(costs: Sequence[Cost]) -> str:
    """The costs as a Markdown table, milliseconds a pair; ratios to the plain matcher where it was measured."""
    heads = ["size/stride, channels", "points", "batch", "", "calls", "wall", "× plain", "own", "× plain"]
    rows = []
    plain: dict[Any, Cost] = {(c.setting, c.points, c.batch): c for c in costs if c.variant == "plain"}
    for cost in costs:
        s, base = cost.setting, plain.get((cost.setting, cost.points, cost.batch))
        cells = ["as given" if s is None else f"{s.size}/{s.stride}, {s.channels}", str(cost.points or "8–14")]
        cells += [str(cost.batch), cost.variant, f"{cost.calls:.1f}"]
        for name in ("wall", "own"):
            value = getattr(cost, name)
            cells += [f"{value:.1f}", f"{value / getattr(base, name):.1f}" if base else "–"]
        rows.append([*cells, *(f"{value:.1f}" for value in cost.stages.values())])
    return markdown_table([*heads, *costs[0].stages], rows)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `kbc bench pipeline`."""
    add = parser.add_argument_group("pipeline").add_argument
    add("--inputs", default=INPUTS, metavar="SIZE/STRIDE/CHANNELS,…", help=f"of the patch encoder (default {INPUTS})")
    add("--points", metavar="N,…", help="points a pair (default: the scenes' own, 8 to 14)")
    add("--batch", default="1", metavar="B,…", help="pairs a call (default 1)")
    add("--variants", default=",".join(VARIANTS), metavar="NAME,…", help="default: all five")
    add("--matcher", metavar="NAME", help="instead of the patch encoder, see `kbc matchers`")
    add("--option", action="append", default=[], metavar="KEY=VALUE", help="of that matcher")
    add("--device", default="cpu", help="where the patch encoder or the matcher runs (default cpu)")
    add("--pairs", type=int, default=6, help="drawn pairs, rounded up to whole batches (default 6)")
    add("--rounds", type=int, default=5, help="turns that count (default 5)")


def measure(args: argparse.Namespace) -> list[Cost]:
    """What the options ask for."""
    matcher, inputs = None, [(0, 0, 0)]
    options = options_of(args)
    if args.matcher:
        options |= {} if args.device == "cpu" else {"device": args.device}
        matcher = kbc.load_matcher(args.matcher, **options)
    else:
        inputs = [_whole(text, "/", 3) for text in args.inputs.split(",")]
    counts = [None] if args.points is None else list(_whole(args.points, ","))
    batches = _whole(args.batch, ",")
    if args.quick:
        inputs, batches = [(0, 0, 0) if matcher else (64, 8, 32)], (1,)
    settings = [Setting(*one, points, batch) for one in inputs for points in counts for batch in batches]
    limits = {"pairs": 1, "rounds": 1} if args.quick else {"pairs": args.pairs, "rounds": args.rounds}
    return bench_pipeline(settings, args.variants.split(","), matcher=matcher, device=args.device, **limits)


def _whole(text: str, between: str, count: int | None = None) -> Any:
    """Whole numbers above 0, so many if told.

    Raises:
        InputError: something else.
    """
    try:
        found = tuple(int(word) for word in text.split(between))
    except ValueError:
        found = ()
    if not found or min(found) < 1 or len(found) != (count or len(found)):
        expected = f"{count or 'some'} whole numbers above 0 with {between!r} between"
        raise InputError(must_be("--inputs, --points and --batch", expected, repr(text)))
    return found
