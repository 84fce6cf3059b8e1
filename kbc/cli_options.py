"""Option values as people type them: points, boxes, key=value."""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from kbc.errors import InputError, must_be
from kbc.geometry import Box, Points, as_points

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_PAIR = re.compile(rf"({_NUMBER})\s*,\s*({_NUMBER})")


def add_matcher_options(parser: argparse.ArgumentParser, default: str | None = "hog") -> None:
    """--matcher NAME and --option KEY=VALUE."""
    shown = f" (default: {default})" if default else ""
    parser.add_argument("--matcher", default=default, metavar="NAME", help=f"see `kbc matchers`{shown}")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE",
        help="an option of the matcher, e.g. weights=resnet18.pth or size=320; may be repeated",
    )  # fmt: skip


def add_kbc_options(parser: argparse.ArgumentParser) -> None:
    """--localizer, --budget and --set KEY=VALUE."""
    from kbc.config import KBCConfig

    def allowed(field: str) -> list[str]:
        values: list[str] = KBCConfig.model_json_schema()["properties"][field]["enum"]
        return values

    parser.add_argument("--localizer", choices=allowed("localizer"), help="how the target window is found")
    parser.add_argument("--budget", choices=allowed("budget"), help="how much a pair may cost")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help="a field of kbc.KBCConfig, e.g. margin=0.4; may be repeated",
    )  # fmt: skip


def kbc_options(args: argparse.Namespace) -> dict[str, Any]:
    """The KBCConfig fields that were given."""
    chosen = {name: getattr(args, name) for name in ("localizer", "budget") if getattr(args, name) is not None}
    return chosen | key_values(args.settings, "--set")


def key_values(given: list[str], argument: str = "--option") -> dict[str, Any]:
    """key=value pairs; values are read as JSON (numbers, true, [1, 2]) and else kept as text.

    Raises:
        InputError: no "=", an empty key, or a key given twice.

    >>> key_values(["size=320", "weights=a.pth", "layers=[2, 3]"])
    {'size': 320, 'weights': 'a.pth', 'layers': [2, 3]}
    """
    found: dict[str, Any] = {}
    for entry in given:
        key, equals, text = entry.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise InputError(must_be(argument, "KEY=VALUE", repr(entry), "for instance size=320"))
        if key in found:
            raise InputError(must_be(argument, f"given once per key, and {key!r} is given twice", repr(entry)))
        try:
            found[key] = json.loads(text)
        except json.JSONDecodeError:
            found[key] = text
    return found


def parse_box(text: str | None, argument: str) -> Box | None:
    """ "x0,y0,x1,y1" (pixel edges) as a box; None stays None.

    Raises:
        InputError: not four numbers, or not in xyxy order.
    """
    if text is None:
        return None
    parts = [part for part in re.split(r"[,\s]+", text.strip()) if part]
    try:
        return Box.of([float(part) for part in parts], argument)
    except ValueError as error:
        raise InputError(must_be(argument, "four numbers x0,y0,x1,y1 in that order", repr(text))) from error


def parse_points(text: str) -> Points:
    """Points (N, 2) from "x,y x,y …" or from a .json or .csv file.

    JSON holds [[x, y], …] (null for an undefined point), or an object with such a list under "keypoints" or "points".
    CSV holds x and y as its first two columns, or in columns named x and y; empty fields are an undefined point.

    Raises:
        InputError: no points, something that is not a number, or a file that cannot be read.

    >>> parse_points("120,80 134.5,92").tolist()
    [[120.0, 80.0], [134.5, 92.0]]
    """
    if text.lower().endswith((".json", ".csv")):
        points = _from_file(Path(text))
    else:
        left = _PAIR.sub("", text).strip(" \t\n;")
        points = [[float(x), float(y)] for x, y in _PAIR.findall(text)]
        if left or not points:
            raise InputError(must_be("--points", '"x,y x,y …" or the name of a .json or .csv file', repr(text)))
    return as_points(points, "--points")


def _from_file(path: Path) -> object:
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            must_be("--points", "a readable file", f"{str(path)!r} ({error})", "check the path")
        ) from error
    if path.suffix.lower() == ".csv":
        return _from_csv(content, path)
    try:
        data = json.loads(content)
    except json.JSONDecodeError as error:
        raise InputError(must_be("--points", "a JSON file", f"{str(path)!r} ({error})")) from error
    if isinstance(data, dict):
        found = next((data[key] for key in ("keypoints", "points") if key in data), None)
        if found is None:
            raise InputError(must_be("--points", 'JSON with "keypoints" or "points"', f"the keys {sorted(data)}"))
        data = found
    if not isinstance(data, list) or not data:
        raise InputError(must_be("--points", "a JSON list of points [[x, y], …]", f"{type(data).__name__} in {path}"))
    return [[np.nan, np.nan] if point is None or None in point else point for point in data if _is_row(point, path)]


def _is_row(point: object, path: Path) -> bool:
    if point is None or (isinstance(point, list) and len(point) == 2):
        return True
    raise InputError(must_be("--points", "a JSON list of points [[x, y], …]", f"the entry {point!r} in {path}"))


def _from_csv(content: str, path: Path) -> object:
    rows = [row for row in csv.reader(io.StringIO(content)) if any(field.strip() for field in row) or len(row) > 1]
    columns = (0, 1)
    if rows and not any(_is_number(field) for field in rows[0]):
        header = [field.strip().lower() for field in rows.pop(0)]
        if "x" in header and "y" in header:
            columns = (header.index("x"), header.index("y"))
    if not rows:
        raise InputError(must_be("--points", "a CSV file with points", f"no rows in {str(path)!r}"))
    try:
        return [[float(row[c]) if row[c].strip() else np.nan for c in columns] for row in rows]
    except (ValueError, IndexError) as error:
        raise InputError(must_be("--points", "a CSV file with two columns x, y", f"{str(path)!r} ({error})")) from error


def _is_number(text: str) -> bool:
    return not text.strip() or re.fullmatch(_NUMBER, text.strip()) is not None
