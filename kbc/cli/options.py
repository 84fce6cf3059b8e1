"""Option values as people type them: points, boxes, key=value."""

from __future__ import annotations

import argparse
import ast
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
    """key=value pairs; values are read as JSON (numbers, true, [1, 2]) or as Python (True, 2,3) and else kept as text.

    Raises:
        InputError: no "=", an empty key, or a key given twice.

    >>> key_values(["size=320", "weights=a.pth", "votes=false", "download=False", "layers=2,3"])
    {'size': 320, 'weights': 'a.pth', 'votes': False, 'download': False, 'layers': (2, 3)}
    """
    found: dict[str, Any] = {}
    for entry in given:
        key, equals, text = entry.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise InputError(must_be(argument, "KEY=VALUE", repr(entry), "for instance size=320"))
        if key in found:
            raise InputError(must_be(argument, f"given once per key, and {key!r} is given twice", repr(entry)))
        found[key] = _value(text)
    return found


def _value(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # whatever a path may provoke
            continue
    return text


def as_typed(value: object) -> str:
    """A value as one types it: what `key_values` reads back.

    >>> print(*map(as_typed, (False, None, "cpu", (2, 3), 0.5)))
    false null cpu 2,3 0.5
    """
    if isinstance(value, (list, tuple)) and len(value) > 1:
        return ",".join(map(as_typed, value))
    return value if isinstance(value, str) else json.dumps(value, default=str)


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
        hint = "x,y,width,height is x,y,x+width,y+height"
        raise InputError(must_be(argument, "four numbers x0,y0,x1,y1 in that order", repr(text), hint)) from error


POINTS_HELP = """\
points are in the source photograph's pixels, (0, 0) the centre of the top-left
one, given as
  "120,80 134,92"  x,y with spaces between points
  points.csv       two columns x, y; or a first line that names the columns,
                   such as id,x,y,v: x and y are needed, v is read, others are
                   passed over. Empty fields: no such point
  points.json      [[x, y], ...] or [[x, y, v], ...], null for no such point;
                   or an object with that under "keypoints" or "points"
v (or visible) is COCO's visibility: 0 is no such point, 1 and 2 are points. A
point that is not there keeps its place and gets no answer."""


def parse_points(text: str) -> Points:
    """Points (N, 2) from "x,y x,y …" or from a .json or .csv file; the order is kept.

    JSON holds [[x, y], …] or [[x, y, v], …], null for an undefined point, or an object with that under "keypoints" or
    "points". CSV holds two columns x, y, or a first line that names its columns: x, y, perhaps v or visible, and more
    that is passed over; empty fields are an undefined point. v is COCO's visibility: 0 makes a point undefined.

    Raises:
        InputError: no points, something that is not a number, columns that cannot be told apart, or a file that cannot
            be read.

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


NAMED_POINTS_HELP = """\
points need names here, for answers are joined by them:
  "nose=120,80 tail=134,92"  name=x,y with spaces between points
  points.csv                 a first line that names the columns: name, x, y and
                             perhaps v
  points.json                {"nose": [x, y], "tail": null, ...}, or an object
                             with that under "keypoints" or "points\""""


def parse_named_points(text: str) -> dict[str, tuple[float, float]]:
    """Points by name, from "name=x,y …" or from a .json or .csv file; NaN where one is not visible.

    Raises:
        InputError: points without names, a name given twice, and what `parse_points` raises.

    >>> parse_named_points("nose=120,80 tail=134.5,92")
    {'nose': (120.0, 80.0), 'tail': (134.5, 92.0)}
    """
    path = Path(text)
    if text.lower().endswith(".csv"):
        names, points = _named_rows(path)
    elif text.lower().endswith(".json"):
        data = _json_points(path)
        if not isinstance(data, dict):
            raise InputError(must_be("--points", 'JSON {"name": [x, y], …}', f"points without names in {path}"))
        names, points = list(data), [_point(entry, path) for entry in data.values()]
    else:
        parts = [part.partition("=") for part in re.sub(r"\s*([=,])\s*", r"\1", text).replace(";", " ").split()]
        names = [name for name, equals, _ in parts if equals and name]
        if not parts or len(names) < len(parts):
            hint = 'for instance "nose=120,80 tail=134,92", or a .csv or .json file'
            raise InputError(must_be("--points", '"name=x,y name=x,y …"', repr(text), hint))
        points = [parse_points(place)[0] for _, _, place in parts]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(must_be("--points", "with each name given once", f"{twice[0]!r} twice"))
    rows = as_points(points, "--points")
    return {name: (float(x), float(y)) for name, (x, y) in zip(names, rows, strict=True)}


def _named_rows(path: Path) -> tuple[list[str], object]:
    """Names and points of a CSV file with the columns name, x, y and perhaps v."""
    content = _read_text(path)
    rows = list(csv.reader(io.StringIO(content)))
    columns = [field.strip().lower() for field in rows[0]] if rows else []
    if "name" not in columns:
        expected = "a CSV file with columns named name, x and y"
        raise InputError(must_be("--points", expected, f"the columns {', '.join(columns)} in {path}"))
    place = columns.index("name")
    kept = [row for row in rows if any(field.strip() for field in row)]
    names = [row[place].strip() if place < len(row) else "" for row in kept[1:]]
    rest = io.StringIO()
    csv.writer(rest).writerows([field for column, field in enumerate(row) if column != place] for row in kept)
    return names, _from_csv(rest.getvalue(), path)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            must_be("--points", "a readable file", f"{str(path)!r} ({error})", "check the path")
        ) from error


def _from_file(path: Path) -> object:
    if path.suffix.lower() == ".csv":
        return _from_csv(_read_text(path), path)
    data = _json_points(path)
    if isinstance(data, dict):
        raise InputError(must_be("--points", 'JSON with "keypoints" or "points"', f"the keys {sorted(data)}"))
    if not isinstance(data, list) or not data:
        raise InputError(must_be("--points", "a JSON list of points [[x, y], …]", f"{type(data).__name__} in {path}"))
    return [_point(entry, path) for entry in data]


def _json_points(path: Path) -> object:
    """What a JSON file holds, or what it has under "keypoints" or "points"."""
    content = _read_text(path)
    if not content.strip():
        raise InputError(must_be("--points", "a JSON file with points", f"the empty file {str(path)!r}"))
    try:
        data = json.loads(content)
    except json.JSONDecodeError as error:
        raise InputError(must_be("--points", "a JSON file", f"{str(path)!r} ({error})")) from error
    if isinstance(data, dict):
        return next((data[key] for key in ("keypoints", "points") if key in data), data)
    return data


def _from_csv(content: str, path: Path) -> object:
    rows = [row for row in csv.reader(io.StringIO(content)) if any(field.strip() for field in row) or len(row) > 1]
    columns, form = ["x", "y"], "two columns x, y, or a first line that names more, such as id,x,y"
    if rows and not all(map(_is_number, rows[0])):
        columns = [field.strip().lower() for field in rows.pop(0)]
        form = f"the columns {', '.join(columns)}"
        if not {"x", "y"} <= set(columns):
            raise InputError(must_be("--points", "a CSV file with columns named x and y", f"{form} in {path}"))
    if not rows:
        raise InputError(must_be("--points", "a CSV file with points", f"no rows in {str(path)!r}"))
    wanted = [columns.index(name) for name in ("x", "y", *({"v", "visible"} & set(columns)))]
    points = []
    for row in rows:
        if len(row) != len(columns) or not all(_is_number(row[c]) for c in wanted):
            received = f"the row {','.join(row)!r} in {path}"
            raise InputError(must_be("--points", f"a CSV file with numbers in {form}", received))
        points.append(_point([_number(row[c]) for c in wanted], path))
    return points


def _point(entry: object, path: Path) -> object:
    """x and y of [x, y] or [x, y, v], NaN where there is none."""
    if entry is None or (isinstance(entry, list) and None in entry[:2]):
        return [np.nan, np.nan]
    if not isinstance(entry, list) or len(entry) not in (2, 3) or (len(entry) == 3 and entry[2] not in (0, 1, 2)):
        hint = "v is the visibility 0, 1 or 2" if isinstance(entry, list) else "a flat list has to be grouped"
        expected = "a list of points [[x, y], …] or [[x, y, v], …]"
        raise InputError(must_be("--points", expected, f"the entry {entry!r} in {path}", hint))
    return [np.nan, np.nan] if entry[2:] == [0] else entry[:2]


_WORDS = {"": None, "false": 0.0, "true": 1.0}


def _number(text: str) -> float | None:
    word = text.strip().lower()
    return _WORDS[word] if word in _WORDS else float(word)


def _is_number(text: str) -> bool:
    try:
        _number(text)
    except ValueError:
        return False
    return True
