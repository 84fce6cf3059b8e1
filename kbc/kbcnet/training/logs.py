"""What a run keeps of its figures: `log.csv`, and TensorBoard's files when asked for."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from kbc.errors import DataError, must_be, require
from kbc.files import read_table


class Log:
    """`log.csv`, cut back to the step that is resumed from, and TensorBoard's files."""

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        self.path = folder / "log.csv"
        rows = _rows_up_to(self.path, step) if step and self.path.is_file() else []
        self.file = self.path.open("w", newline="")
        self.writer: csv.DictWriter[str] | None = None
        for row in rows:
            self._write(row)
        self.board: Any = None
        if tensorboard:
            writers = require("torch.utils.tensorboard", "--tensorboard needs tensorboard", "train")
            self.board = writers.SummaryWriter(str(folder), purge_step=step)

    def row(self, step: int, values: dict[str, float]) -> None:
        """Note a step's figures; NaN is left blank."""
        self._write({"step": step} | {name: "" if math.isnan(v) else f"{v:.6g}" for name, v in values.items()})
        if self.board is not None:
            for name, value in values.items():
                if not math.isnan(value):
                    self.board.add_scalar(f"train/{name}", value, step)

    def _write(self, row: dict[str, Any]) -> None:
        if self.writer is None:
            self.writer = csv.DictWriter(self.file, list(row))
            self.writer.writeheader()
        self.writer.writerow(row)
        self.file.flush()

    def close(self) -> None:
        """Finish the files."""
        self.file.close()
        if self.board is not None:
            self.board.close()


def _rows_up_to(path: Path, step: int) -> list[dict[str, str]]:
    """The whole rows of a log up to a step; a run that was killed may have left half a row."""
    (_, header), *rows = read_table(path) or [(0, [])]
    try:
        held = [dict(zip(header, row, strict=True)) for _, row in rows if len(row) == len(header)]
        return [row for row in held if int(row["step"]) <= step]
    except (KeyError, ValueError) as error:
        raise DataError(must_be("out", "a folder with the run's log.csv", f"{path} ({error})", "remove it")) from error
