"""Points as people give them: typed, or in a .json or .csv file."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kbc.errors import InputError, must_be
from kbc.files import read_json, read_table, read_text
from kbc.geometry import Points, as_points

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_PAIR = re.compile(rf"({_NUMBER})\s*,\s*({_NUMBER})", re.ASCII)
_NAME_COLUMNS = ("name", "keypoint", "bodypart", "part", "label", "id")

POINTS_HELP = """\
points are in the source photograph's pixels, (0, 0) the centre of the top-left
one, given as
  "120,80 134,92"  x,y with spaces between points
  points.csv       two columns x, y; or a first line that names the columns,
                   such as name,x,y,v: x and y are needed, v and name (or
                   keypoint, bodypart, part, label, id) are read, others are
                   passed over. Empty fields: no such point
  points.json      [[x, y], ...] or [[x, y, v], ...], null for no such point;
                   or an object with that under "keypoints" or "points", and
                   perhaps "names"
v (or visible) is COCO's visibility: 0 is no such point, 1 and 2 are points. A
point that is not there keeps its place and gets no answer."""


@dataclass(frozen=True)
class NamedPoints:
    """Points (N, 2) in the order given, NaN where there is none, and their N names, or none."""

    points: Points
    names: tuple[str, ...] = ()


def parse_points(text: str) -> NamedPoints:
    """Points from "x,y x,y …" or from a .json or .csv file; see `POINTS_HELP`.

    Raises:
        InputError: no points, something that is not a number, columns that cannot be told apart, or a file that cannot
            be read.

    >>> parse_points("120,80 134.5,92").points.tolist()
    [[120.0, 80.0], [134.5, 92.0]]
    """
    if text.lower().endswith((".json", ".csv")):
        return points_in_file(Path(text))
    return NamedPoints(typed_points(text, '"x,y x,y …" or the name of a .json or .csv file'))


def typed_points(text: str, expected: str = '"x,y x,y …"') -> Points:
    """Points from "x,y x,y …" alone; no file is opened.

    Raises:
        InputError: anything else.
    """
    left = _PAIR.sub("", text).strip(" \t\n;")
    points = [[float(x), float(y)] for x, y in _PAIR.findall(text)]
    if left or not points:
        raise _wrong(expected, _short(text))
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
    if text.lower().endswith((".json", ".csv")):
        found = points_in_file(Path(text))
        if not found.names:
            expected = 'named: JSON {"name": [x, y], …} or a CSV file with columns named name, x and y'
            raise _wrong(expected, f"points without names in {text}")
        names, points = found.names, found.points
    else:
        parts = [part.partition("=") for part in re.sub(r"\s*([=,])\s*", r"\1", text).replace(";", " ").split()]
        names = tuple(name for name, equals, place in parts if equals and name and _PAIR.fullmatch(place))
        if not parts or len(names) < len(parts):
            wrong = next((f"{''.join(part)!r} in it" for part in parts if not _PAIR.fullmatch(part[2])), "")
            hint = 'for instance "nose=120,80 tail=134,92", or a .csv or .json file, in which names may have spaces'
            received = f"{wrong}: {_short(text)}" if wrong and len(parts) > 1 else _short(text)
            raise _wrong('"name=x,y name=x,y …"', received, hint)
        points = as_points([typed_points(place)[0] for _, _, place in parts], "--points")
    _refuse_twice(names)
    return {name: (float(x), float(y)) for name, (x, y) in zip(names, points, strict=True)}


def points_in_file(path: Path) -> NamedPoints:
    """Points from a .csv file or, by any other name, a JSON file.

    Raises:
        InputError: the file cannot be read or holds something else.
    """
    try:
        rows, names = _from_csv(path) if path.suffix.lower() == ".csv" else _from_json(path)
    except InputError as error:
        if "`--points`" in str(error):
            raise
        raise _wrong("a file that can be read", error) from error
    return NamedPoints(as_points(rows, "--points"), names)


def _from_json(path: Path) -> tuple[list[list[float]], tuple[str, ...]]:
    data, names = read_json(path), None
    if isinstance(data, dict):
        json.loads(read_text(path), object_pairs_hook=_each_once)  # of two the last would win, unsaid
        names = data.get("names")
        data = next((data[key] for key in ("keypoints", "points") if key in data), data)
    if isinstance(data, dict):  # {"nose": [x, y], …}
        if not data or not all(value is None or (isinstance(value, list) and value) for value in data.values()):
            expected = 'JSON with "keypoints" or "points", or {"name": [x, y], …}'
            raise _wrong(expected, f"the keys {_short(sorted(data))} in {path}")
        names, data = list(data), list(data.values())
    if not isinstance(data, list) or not data:
        raise _wrong("a JSON list of points [[x, y], …]", f"{type(data).__name__} in {path}")
    points = [_point(entry, path) for entry in data]
    if names is None:
        return points, ()
    if not isinstance(names, list) or len(names) != len(data) or not all(isinstance(name, str) for name in names):
        raise _wrong(f'JSON with "names" for its {len(data)} points', f"{_short(names)} in {path}")
    return points, tuple(names)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_twice(name for name, _ in pairs)
    return dict(pairs)


def _refuse_twice(names: Iterable[str]) -> None:
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise _wrong("with each name given once", f"{twice[0]!r} twice")


def _from_csv(path: Path) -> tuple[list[list[float]], tuple[str, ...]]:
    rows = [row for _, row in read_table(path)]
    columns, form = ["x", "y"], "two columns x, y, or a first line that names more, such as id,x,y"
    if rows and not all(map(_is_number, rows[0])):
        columns = [field.lower() for field in rows.pop(0)]
        form = f"the columns {_short(', '.join(columns), plain=True)}"
        if not {"x", "y"} <= set(columns) or any(columns.count(name) > 1 for name in ("x", "y", "v", "visible")):
            raise _wrong("a CSV file with one column x and one y", f"{form} in {path}")
    if not rows:
        raise _wrong("a CSV file with points", f"no rows in {str(path)!r}")
    wanted = [columns.index(name) for name in ("x", "y", *[n for n in ("v", "visible") if n in columns][:1])]
    named = next((columns.index(name) for name in _NAME_COLUMNS if name in columns), None)
    points = []
    for row in rows:
        if len(row) != len(columns) or not all(_is_number(row[c]) for c in wanted):
            commas = any("," in field for field in row)
            received = f"the row {_short((';' if commas else ',').join(row))} in {path}"
            hint = "a number has a decimal point, no comma" if commas else ""
            raise _wrong(f"a CSV file with numbers in {form}", received, hint)
        points.append(_point([_number(row[c]) for c in wanted], path))
    return points, () if named is None else tuple(row[named] for row in rows)


def _point(entry: object, path: Path) -> list[float]:
    """x and y of [x, y] or [x, y, v], NaN where there is none."""
    if entry is None or (isinstance(entry, list) and None in entry[:2]):
        return [np.nan, np.nan]
    expected = "a list of points [[x, y], …] or [[x, y, v], …]"
    if not isinstance(entry, list) or len(entry) not in (2, 3):
        hint = "" if isinstance(entry, list) else "a flat list has to be grouped"
        raise _wrong(expected, f"the entry {_short(entry)} in {path}", hint)
    x, y = (_coordinate(value, path) for value in entry[:2])
    if len(entry) == 3 and entry[2] not in (0, 1, 2):
        hint = "v is the visibility 0, 1 or 2; for confidences, leave out the column and the points that are not there"
        raise _wrong(expected, f"the entry {_short(entry)} in {path}", hint)
    return [np.nan, np.nan] if entry[2:] == [0] else [x, y]


def _coordinate(value: object, path: Path) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:  # an integer of hundreds of digits
            pass
    raise _wrong("numbers", f"the coordinate {_short(value)} in {path}")


_WORDS = {"": None, "false": 0.0, "true": 1.0}


def _number(text: str) -> float | None:
    word = text.lower()
    number = _WORDS[word] if word in _WORDS else float(word)
    return None if number is None or math.isnan(number) else number


def _is_number(text: str) -> bool:
    try:
        _number(text)
    except ValueError:
        return False
    return True


def _wrong(expected: str, received: object, hint: str = "") -> InputError:
    return InputError(must_be("--points", expected, received, hint))


def _short(value: Any, plain: bool = False) -> str:
    """What was received, in at most 80 characters."""
    text = value if plain else repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
