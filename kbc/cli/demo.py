"""`kbc demo`: drawn scenes with small objects, matched with and without KBC. Needs no download."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kbc.cli.options import add_kbc_options, kbc_options, key_values, matcher_reference
from kbc.cli.text import fitted
from kbc.config import COST, KBCConfig, make_config
from kbc.data.scenes.render import ScenePair, categories, scene_pair
from kbc.errors import InputError, KBCError, MissingDependencyError, counted, must_be
from kbc.evaluation.pck import PCK, PCKResult, Protocol, correct
from kbc.files import output_file, output_folder, write_json
from kbc.geometry import Points
from kbc.images import image_hw
from kbc.matchers.protocol import Matcher
from kbc.progress import progress_bar
from kbc.types import Match, MatchResult

HELP = """Draw pairs of scenes with small articulated figures in clutter, match them with and without KBC, print the
PCK table, and write demo.png (pairs from the largest gain to the smallest) and demo.json. Needs no download; takes
about half a minute on two cores."""

AUTO = "auto"
SHOWN = 5
VARIATION = 0.3
SECONDS_A_PAIR = {"hog": 0.3, "kbcnet": 2.5}
"""At `fast`, on two idle cores (`time kbc demo`)."""
SECONDS_BESIDE = 6
"""Loading, drawing the scenes, drawing demo.png."""
PROTOCOL = Protocol(alphas=(0.05, 0.1, 0.15), threshold="bbox")


@dataclass(frozen=True, eq=False)
class Outcome:
    """One matcher on the demo's scenes.

    Attributes:
        matcher: its name.
        results: one per pair; `coarse` is the answer without KBC.
        without, with_kbc: PCK of both.
        seconds: wall time of all pairs, KBC included.
    """

    matcher: str
    results: tuple[MatchResult, ...]
    without: PCKResult
    with_kbc: PCKResult
    seconds: float


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kbc demo`."""
    add = parser.add_argument
    add("--pairs", type=int, default=8, metavar="N", help="how many pairs (default: 8)")
    add("--seed", type=int, default=0, help="the first pair's seed (default: 0)")
    add("--variation", type=float, default=VARIATION, metavar="SHARE",
        help="how unlike the two figures of a pair are, 0 … 1; from 0.5 on, weightless matchers are lost and figures "
        f"face either way (default: {VARIATION})")  # fmt: skip
    add("--matcher", default=AUTO, type=matcher_reference, metavar="NAME",
        help="see `kbc matchers`, or package.module:function; by default every bundled one that needs no download",
    )  # fmt: skip
    add("--option", action="append", default=[], metavar="KEY=VALUE", help="an option of the matcher")
    add_kbc_options(parser)
    add("--out", default=".", metavar="FOLDER", help="where demo.png and demo.json go (default: here)")
    add("--json", metavar="FILE", help="write the figures here too; - for standard output")
    add("--no-plot", action="store_true", help="leave demo.png out (it needs matplotlib)")
    add("--quiet", action="store_true", help="no progress on standard error")


def run(args: argparse.Namespace) -> int:
    """Match, print the table, write the files."""
    from kbc import load_matcher

    if args.pairs < 1:
        raise InputError(must_be("--pairs", "at least 1", args.pairs))
    folder = output_folder(args.out, "--out")
    if args.json and args.json != "-":
        output_file(args.json, "--json")
    with_plot = not args.no_plot and _can_draw()
    chosen = contestants(args.matcher, key_values(args.option))
    config = make_config(None, kbc_options(args))
    # What is wrong with the matchers and the drawings is said before the plan.
    matchers = [(name, load_matcher(name, **options)) for name, options in chosen]
    draw_scenes(1, args.seed, args.variation)
    if not args.quiet:
        print(fitted(plan(args.pairs, chosen, config)), file=sys.stderr)
    scenes = draw_scenes(args.pairs, args.seed, args.variation)
    outcomes = [play(name, matcher, scenes, config, not args.quiet) for name, matcher in matchers]
    best = max(outcomes, key=lambda outcome: outcome.with_kbc.per_point[0.1])
    if args.json != "-":
        print(table(outcomes, len(scenes), config), flush=True)
    report = to_dict(outcomes, best, scenes, args)
    write_json(report, folder / "demo.json")
    written = [folder / "demo.json"]
    if with_plot:
        written.insert(0, draw(best, scenes, folder / "demo.png"))
    if args.json:
        write_json(report, args.json)
    if args.json != "-":
        print(fitted("written: " + ", ".join(map(str, written)), 0, 2))
    return 0


def plan(pairs: int, chosen: Sequence[tuple[str, dict[str, Any]]], config: KBCConfig) -> str:
    """What is going to happen, said before it does."""
    names = " and ".join(name for name, _ in chosen)
    cost = f"{COST[config.budget]:g} times the matcher alone"
    return (
        f"drawing {counted(pairs, 'pair')} and matching them with {names}, without KBC and with it at budget "
        f"{config.budget!r} (at most {cost}){_duration(pairs, [name for name, _ in chosen], config)}"
    )


def _duration(pairs: int, names: Sequence[str], config: KBCConfig) -> str:
    if not all(name in SECONDS_A_PAIR for name in names):
        return ""
    dearer = COST[config.budget] / COST["fast"]
    seconds = SECONDS_BESIDE + pairs * dearer * sum(SECONDS_A_PAIR[name] for name in names)
    about = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{5 * math.ceil(seconds / 5)} seconds"
    return f"; {'about' if dearer == 1 else 'at most'} {about} on two idle cores"


def _can_draw() -> bool:
    """Whether demo.png can be drawn; where it cannot, the line to run is said and the rest is shown."""
    from kbc import viz

    try:
        viz.new_axes()
    except MissingDependencyError as error:
        print(fitted(f"note: no demo.png, the table alone: {error}"), file=sys.stderr)
        return False
    return True


def draw_scenes(pairs: int, seed: int, variation: float) -> list[ScenePair]:
    """The demo's pairs: categories in turn; alike figures (variation below 0.5) face the same way."""
    names = categories()
    alike: dict[str, Any] = {"turn": 5.0, "mirror": 0.0} if variation < 0.5 else {}
    return [scene_pair(seed + i, category=names[i % len(names)], variation=variation, **alike) for i in range(pairs)]


def contestants(name: str, options: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Which matchers the demo shows: the named one, or the weightless one and the bundled network when it is there."""
    if name != AUTO:
        return [(name, options)]
    if options:
        raise InputError(must_be("--option", "given together with --matcher", sorted(options)))
    bundled = [("kbcnet", options)] if _is_bundled() else []
    return [("hog", options), *bundled]


def play(
    name: str, matcher: Matcher, scenes: Sequence[ScenePair], config: KBCConfig, progress: bool = False
) -> Outcome:
    """One matcher on all scenes, wrapped by KBC; its coarse answers are the matcher without KBC."""
    from kbc import wrap

    wrapped = wrap(matcher, config)
    start = time.perf_counter()
    results: list[MatchResult] = []
    with progress_bar("pair", progress) as show:
        for done, scene in enumerate(scenes, 1):
            results += wrapped.match([scene.pair])
            show(done, len(scenes), name)
    seconds = time.perf_counter() - start
    without, with_kbc = _pck(scenes, [one.coarse for one in results]), _pck(scenes, [one.keypoints for one in results])
    return Outcome(name, tuple(results), without, with_kbc, seconds)


def _pck(scenes: Sequence[ScenePair], answers: Sequence[Points]) -> PCKResult:
    metric = PCK(PROTOCOL)
    for scene, points in zip(scenes, answers, strict=True):
        size_hw = image_hw(scene.target.image)
        metric.update(points, scene.target_keypoints, size_hw, scene.target_box, scene.category)
    return metric.compute()


def table(outcomes: Sequence[Outcome], pairs: int, config: KBCConfig) -> str:
    """The PCK table as text, with the protocol and what else it depends on under it."""
    lines = [f"{'':<26}" + "".join(f"  @{alpha:<5g}" for alpha in PROTOCOL.alphas) + "  seconds a pair"]
    for outcome in outcomes:
        coarse = sum(result.seconds.get("coarse", 0.0) for result in outcome.results)
        for label, figures, seconds in (
            ("without KBC", outcome.without, coarse),
            ("with KBC", outcome.with_kbc, outcome.seconds),
        ):
            shares = "".join(f"{100 * figures.per_point[alpha]:7.1f} " for alpha in PROTOCOL.alphas)
            lines.append(f"{outcome.matcher + ' ' + label:<26}{shares} {seconds / pairs:10.3f}")
    points = outcomes[0].without.points
    drawn = f"{counted(pairs, 'drawn pair')}, {counted(points, 'point')}, objects 8–25 % of the side"
    said = [f"{PROTOCOL}; {drawn}; budget {config.budget!r}"]
    if any(outcome.matcher == "kbcnet" for outcome in outcomes):
        said.append("kbcnet's bundled weights were trained on drawings of this kind: not what photographs give")
    return "\n".join([*lines, *map(fitted, said)])


def draw(outcome: Outcome, scenes: Sequence[ScenePair], path: Path) -> Path:
    """demo.png: pairs from the largest gain to the smallest at even steps, so that they stand for all."""
    from kbc import viz

    shown = by_gain(outcome, scenes)
    figure, rows = viz.comparison_axes(2, len(shown))
    for row, index in zip(rows, shown, strict=True):
        scene, result = scenes[index], outcome.results[index]
        answers = {"without KBC": Match(result.coarse), "with KBC": result}
        tolerance = 0.1 * scene.target_box.longest
        viz.draw_comparison(scene.pair, answers, truth=scene.target_keypoints, tolerance=tolerance, row=row)
        text = f"{scene.category}, pair {index}: right (●) within {tolerance:.0f} px of the truth (◇), wrong (×)"
        row[0].set_title(text, fontsize=9)
    figure.suptitle(
        f"{outcome.matcher} without and with KBC; dashed: KBC's windows. Of {len(scenes)} pairs, from the largest "
        "gain to the smallest at even steps", fontsize=11,
    )  # fmt: skip
    return viz.save(figure, path)


def by_gain(outcome: Outcome, scenes: Sequence[ScenePair]) -> list[int]:
    """Up to five indices of pairs: the gain in right points at its maximum, quartiles and minimum."""
    found = [_right(scene, result) for scene, result in zip(scenes, outcome.results, strict=True)]
    gains = [(f["right_with_kbc"] - f["right_without_kbc"]) / f["points"] for f in found]
    order = sorted(range(len(gains)), key=lambda i: -gains[i])
    count = min(SHOWN, len(order))
    return [order[round(k * (len(order) - 1) / max(count - 1, 1))] for k in range(count)]


def to_dict(
    outcomes: Sequence[Outcome], best: Outcome, scenes: Sequence[ScenePair], args: argparse.Namespace
) -> dict[str, Any]:
    """Everything demo.json holds."""
    return {
        "protocol": PROTOCOL.to_dict(),
        "seed": args.seed,
        "variation": args.variation,
        "pairs": len(scenes),
        "drawn": best.matcher,
        "matchers": [
            {
                "matcher": outcome.matcher,
                "pck_without_kbc": {f"{a:g}": v for a, v in outcome.without.per_point.items()},
                "pck_with_kbc": {f"{a:g}": v for a, v in outcome.with_kbc.per_point.items()},
                "seconds": outcome.seconds,
                "results": [
                    {"seed": args.seed + i, "category": scene.category, **_right(scene, result), **result.to_dict()}
                    for i, (scene, result) in enumerate(zip(scenes, outcome.results, strict=True))
                ],
            }
            for outcome in outcomes
        ],
    }


def _right(scene: ScenePair, result: MatchResult) -> dict[str, Any]:
    near = [
        correct(points, scene.target_keypoints, image_hw(scene.target.image), scene.target_box, PROTOCOL)[:, 1].sum()
        for points in (result.coarse, result.keypoints)
    ]
    return {"points": len(scene.target_keypoints), "right_without_kbc": int(near[0]), "right_with_kbc": int(near[1])}


def _is_bundled() -> bool:
    """Whether the bundled network's checkpoint can be loaded here."""
    from kbc.matchers.registry import load_matcher

    try:
        load_matcher("kbcnet")
    except KBCError:
        return False
    return True
