"""What came of one pair in one run, and the file of JSON lines that keeps it across interruptions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from pydantic import TypeAdapter, ValidationError

from kbc.errors import DataError
from kbc.evaluation.pck import Protocol, correct
from kbc.files import LineFile
from kbc.geometry import Box, Points

Row: TypeAlias = tuple[float, float] | None
Edges: TypeAlias = tuple[float, float, float, float]
Failure: TypeAlias = Literal["data", "matcher"]

RESULTS = "pairs*.jsonl"
"""The files of outcomes in a folder of results."""


@dataclass(frozen=True)
class Outcome:
    """One pair in one run: enough to compute PCK by any protocol later, and the report without the images.

    Attributes:
        dataset, run, pair: together the key. `pair` is the record's id.
        index: place of the pair in the data set, so that a report does not depend on who finished first.
        category: the object's class.
        predicted, truth: N points in the target's own pixels; None where undefined.
        others: N points each on further objects of the kind in the target, see `PairRecord.others`.
        box: the target's annotated box, xyxy pixel edges, or None.
        size_hw: (height, width) of the target.
        instances: how many objects of the set the target picture holds; more than one makes the pair ambiguous for a
            matcher that is not given the box.
        calls, cost: pairs handed to the matcher, and in units of one plain match.
        seconds: wall time, without reading images. Pairs that were matched together share alike: each has the batch's
            time over the number of its pairs. No two runs have the same, so equality does not look at it.
        own_seconds: of these, KBC's own: all that was not spent in the matcher; 0 for a bare matcher, None where it is
            not known (a failed pair, a run from before it was kept).
        fine: share of the points answered inside a window.
        source_window, target_window: what the fine pass saw, xyxy pixel edges, or None.
        input_hw: what the matcher resizes its images to, when it says so.
        localizer, notes: what the wrapper said.
        failure: "data" (an image could not be read: the pair counts for nobody) or "matcher" (every point is wrong).
        error: the message.
    """

    dataset: str
    run: str
    pair: str
    index: int
    category: str = ""
    predicted: tuple[Row, ...] = ()
    truth: tuple[Row, ...] = ()
    others: tuple[tuple[Row, ...], ...] = ()
    box: Edges | None = None
    size_hw: tuple[int, int] = (0, 0)
    instances: int = 1
    calls: int = 1
    cost: float = 1.0
    seconds: float = field(default=0.0, compare=False)
    own_seconds: float | None = field(default=None, compare=False)
    fine: float = 0.0
    source_window: Edges | None = None
    target_window: Edges | None = None
    input_hw: tuple[int, int] | None = None
    localizer: str = ""
    notes: tuple[str, ...] = ()
    failure: Failure | None = None
    error: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """(dataset, run, pair)."""
        return (self.dataset, self.run, self.pair)

    @property
    def counts(self) -> bool:
        """Whether the pair could be asked at all and has a point to ask for."""
        return self.failure != "data" and any(row is not None for row in self.truth)

    @property
    def target_box(self) -> Box:
        """The annotated box, or the extent of the true points."""
        if self.box is not None:
            return Box.of(self.box)
        around = Box.around(points(self.truth))
        return around if around is not None else Box(0, 0, 0, 0)

    @property
    def size(self) -> float:
        """The object's size: longest side of its box over the image's side, max(w / W, h / H)."""
        return self.cells((1, 1), 1.0)

    def cells(self, input_hw: tuple[int, int], cell: float) -> float:
        """Longest side of the box in cells of `cell` px when the image is stretched to (height, width)."""
        box, (height, width) = self.target_box, self.size_hw
        return max(box.width / width * input_hw[1], box.height / height * input_hw[0]) / cell

    def correct(self, protocol: Protocol) -> Any:
        """(M, A) as `kbc.evaluation.correct` gives it."""
        others = [points(other) for other in self.others]
        return correct(points(self.predicted), points(self.truth), self.size_hw, self.target_box, protocol, others)

    def to_json(self) -> str:
        """One line, without its end. Floats are written so that they read back the same."""
        return json.dumps(self.__dict__, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


_adapter: TypeAdapter[Outcome] = TypeAdapter(Outcome)


def parse_outcome(line: str | bytes) -> Outcome:
    """The inverse of `Outcome.to_json`.

    Raises:
        DataError: the line is not an outcome.
    """
    try:
        outcome = _adapter.validate_json(line)
    except ValidationError as error:
        raise DataError(f"not a result ({error.errors()[0]['msg']})") from error
    if outcome.failure != "data" and (len(outcome.predicted) != len(outcome.truth) or min(outcome.size_hw) < 1):
        raise DataError("not a result (it has not an answer for every point, or no size)")
    return outcome


def points(rows: Iterable[Row]) -> Points:
    """(N, 2) with NaN where a row is None."""
    held = [(np.nan, np.nan) if row is None else row for row in rows]
    return np.array(held, dtype=np.float64).reshape(-1, 2)


def rows(values: Points) -> tuple[Row, ...]:
    """The inverse of `points`."""
    return tuple(None if np.isnan(p).any() else (float(p[0]), float(p[1])) for p in values)


class OutcomeFile(LineFile):
    """A `LineFile` of outcomes that one process writes; a pair whose line was cut off is simply run anew."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, alone=True)

    def append(self, outcomes: Iterable[Outcome]) -> None:
        """Write the lines in one system call."""
        self.write("".join(outcome.to_json() + "\n" for outcome in outcomes))


def read_outcomes(folder: Path) -> dict[tuple[str, str, str], Outcome]:
    """Every outcome in the folder's `pairs*.jsonl`, by key; a half line at the end of a file is passed over.

    Raises:
        DataError: a whole line that is not an outcome; file and line are named.
    """
    found: dict[tuple[str, str, str], Outcome] = {}
    for path in sorted(folder.glob(RESULTS)):
        for number, line in _lines(path):
            try:
                outcome = parse_outcome(line)
            except DataError as error:
                raise DataError(f"{path}, line {number}: {error}") from error
            found.setdefault(outcome.key, outcome)
    return found


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield number, line
