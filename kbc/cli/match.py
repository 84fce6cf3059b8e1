"""`kbc match`: the points of one photograph in another."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kbc.cli.options import add_kbc_options, add_matcher_options, kbc_options, key_values, parse_box
from kbc.cli.points import POINTS_HELP, parse_points
from kbc.cli.text import two_columns
from kbc.errors import InputError, must_be, width_by_height
from kbc.evaluation.outcomes import rows
from kbc.files import is_file, output_file, refuse_overwriting, write_json
from kbc.geometry import defined, outside
from kbc.images import image_hw, turned
from kbc.types import Match, MatchResult, Origin, Pair

HELP = "Match the points of one photograph in another; answers are in the target photograph's own pixels."

MEANING: dict[Origin, str] = {
    "fine": "found in the windows",
    "whole": "chosen together on the whole images",
    "coarse: off": "the matcher's own (KBC is off)",
    "coarse: not small": "the matcher's own (nothing is small)",
    "coarse: no window": "the matcher's own (no window found)",
    "coarse: refused": "the matcher's own (no window was surely better)",
    "coarse: outside": "the matcher's own (outside the window)",
    "coarse: failed": "the matcher's own (no answer in the window)",
    "undefined": "undefined in the source",
}
"""`MatchResult.origin` in words."""

_FIND = "give --target-box, or look longer: --budget thorough"
NEXT: dict[Origin, str] = {
    "coarse: not small": "things of middle size: --set small_below=0.7",
    "coarse: no window": _FIND,
    "coarse: refused": _FIND,
}
"""What to try where `MatchResult.origin` is this."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kbc match`."""
    add = parser.add_argument
    add("source", help="photograph with known points")
    add("target", help="photograph in which they are looked for")
    add(
        "--points",
        required=True,
        help='"x,y x,y …" in the source\'s pixels, or a .json or .csv file of them: see below',
    )
    add_matcher_options(parser)
    add_kbc_options(parser)
    add("--source-box", metavar="X0,Y0,X1,Y1", help="where the object is in the source, pixel edges")
    add("--target-box", metavar="X0,Y0,X1,Y1", help="where it is in the target, when you know it")
    add("--no-kbc", action="store_true", help="the matcher alone, on the whole photographs")
    add("--min-confidence", type=float, metavar="P", help="leave out points that are less sure (0 to 1; default: none)")
    add("--json", metavar="FILE", help="write the result as JSON; - for standard output")
    add("--plot", metavar="FILE", help='draw the match (needs pip install "kbc[viz]")')
    parser.epilog = (
        f"{POINTS_HELP}\n\norigin, in the table and in the JSON, says where an answer comes from:\n"
        + explained(list(MEANING), indent=2)
    )


def run(args: argparse.Namespace) -> int:
    """Match, and print a table or JSON."""
    one_picture(args.target)
    given = parse_points(args.points)
    source_box, target_box = (parse_box(getattr(args, f"{s}_box"), f"--{s}-box") for s in ("source", "target"))
    options, settings = key_values(args.option), kbc_options(args)
    if args.no_kbc and settings:
        raise InputError(must_be("--no-kbc", "given without KBC's own options", ", ".join(sorted(settings))))
    if args.min_confidence is not None:
        if args.no_kbc or not 0 <= args.min_confidence <= 1:
            raise InputError(must_be("--min-confidence", "in [0, 1], and given without --no-kbc", args.min_confidence))
        settings = {**settings, "min_confidence": args.min_confidence}
    if args.json and args.json != "-":
        output_file(args.json, "--json")
    if args.plot:
        from kbc import viz

        viz.picture_file(args.plot, "--plot")
    refuse_overwriting({"--json": args.json, "--plot": args.plot}, [args.source, args.target, args.points])
    pair = Pair(args.source, args.target, given.points, source_box, target_box)
    result = match(pair, args.matcher, options, None if args.no_kbc else settings)
    if args.plot:
        title = describe(result, args.matcher)
        full = viz.draw_answer(pair, result, title=title)["kbc"] if isinstance(result, MatchResult) else None
        viz.save(full or viz.draw_match(pair, result, title=title), args.plot)
    if args.json:
        asked = {"source_keypoints": rows(given.points), **({"names": list(given.names)} if given.names else {})}
        said = {"matcher": args.matcher, "source": args.source, "target": args.target, **asked, **as_dict(result)}
        write_json(said, args.json, "--json")
    if args.json != "-":
        print(table(pair, result, given.names))
    for note in [*notes(args.source, args.target, pair), *getattr(result, "notes", ())]:
        print(f"note: {note}", file=sys.stderr)
    return 0


def one_picture(target: str) -> None:
    """Refuse a folder, a glob or a list in place of a target, and say which command takes it.

    Raises:
        InputError: it is one.
    """
    path = Path(target)
    if os.path.isdir(target) or path.suffix.lower() == ".txt" or (set("*?[") & set(target) and not is_file(path)):
        hint = f'many pictures: kbc transfer SOURCE {target!r} --points "NAME=X,Y …" --out keypoints.json'
        raise InputError(must_be("TARGET", "one picture", repr(target), hint))


def notes(source: str, target: str, pair: Pair) -> list[str]:
    """What a person who measured the points elsewhere should know: turned files, points beyond the image."""
    found = []
    for name, image, what in ((source, pair.source, "points"), (target, pair.target, "answers")):
        if turned(name):
            size = width_by_height(image.shape)
            found.append(f"{name} was turned upright, as its EXIF tag says: {what} are pixels of the {size} picture")
    beyond = pair.keypoints[outside(pair.keypoints, image_hw(pair.source))]
    if len(beyond):
        share = f"{len(beyond)} of {defined(pair.keypoints).sum()} points"
        size, (x, y) = width_by_height(pair.source.shape), beyond[0]
        found.append(f"{share} outside the source image ({size}), e.g. {x:g},{y:g}")
    return found


def match(pair: Pair, name: str, options: dict[str, Any], settings: dict[str, Any] | None) -> Match:
    """The answer of a matcher by name, with KBC, or without it when `settings` is None."""
    from kbc import load_matcher, wrap
    from kbc.matchers.protocol import run_matcher

    matcher = load_matcher(name, **options)
    if settings is None:
        return run_matcher(matcher, [pair])[0]
    result: MatchResult = wrap(matcher, **settings).match([pair])[0]
    return result


def as_dict(result: Match) -> dict[str, object]:
    """A match as JSON-ready data, with or without KBC."""
    if isinstance(result, MatchResult):
        return result.to_dict()
    score = None if result.score is None else [None if np.isnan(s) else float(s) for s in result.score]
    return {"keypoints": rows(result.keypoints), "score": score}


def describe(result: Match, name: str) -> str:
    """One line about a match, for a picture's title."""
    if not isinstance(result, MatchResult):
        return f"{name} without KBC"
    return f"{name} with KBC; {origins(result)}"


def origins(result: MatchResult) -> str:
    """Where the points come from, e.g. "9 points: 7 found in the windows, 2 the matcher's own (outside the window)"."""
    counts = Counter(result.origin).most_common()
    return f"{len(result.origin)} points: " + ", ".join(f"{count} {MEANING[kept]}" for kept, count in counts)


def explained(kinds: list[Origin], indent: int = 0) -> str:
    """A line for each kind of `MatchResult.origin`: what it means, and what to try."""
    return two_columns([(kept, "; ".join(filter(None, (MEANING[kept], NEXT.get(kept))))) for kept in kinds], indent)


def table(pair: Pair, result: Match, names: Sequence[str] = ()) -> str:
    """Source points, coarse and final answers as text, numbered or named; what `origin` means beneath."""
    coarse = {"coarse": result.coarse} if isinstance(result, MatchResult) else {}
    columns = {"source": pair.keypoints, **coarse, "answer": result.keypoints}
    labels = list(names) or [str(i) for i in range(len(pair.keypoints))]
    width = max(4, *map(len, labels))
    lines = [f"{'#':>{width}}" + "".join(f"{head:>16}" for head in columns)]
    for i, label in enumerate(labels):
        lines.append(f"{label:>{width}}" + "".join(_shown(points[i]) for points in columns.values()))
    if isinstance(result, MatchResult):
        said = ["  sure  origin", *(f"  {sure(result, i):>4}  {kept}" for i, kept in enumerate(result.origin))]
        lines = [line + more for line, more in zip(lines, said, strict=True)]
        lines.append(explained([kept for kept in MEANING if kept in result.origin]))
        if result.confidence is not None:
            lines.append("sure: how likely a point lies within a tenth of the object's size of its place")
        lines.append(f"calls {result.calls}, cost {result.cost:.1f} plain matches, "
                     f"{result.seconds.get('total', 0.0):.2f} s, localizer {result.localizer or '-'}")  # fmt: skip
    return "\n".join(lines)


def sure(result: MatchResult, index: int) -> str:
    """How sure a point is, "0.82"; a dash where KBC does not say."""
    value = np.nan if result.confidence is None else result.confidence[index]
    return "-" if np.isnan(value) else f"{value:.2f}"


def _shown(point: np.ndarray) -> str:
    return f"{'-':>16}" if np.isnan(point).any() else f"{point[0]:>8.1f}{point[1]:>8.1f}"
