"""What a run keeps of its figures: `log.csv`, and TensorBoard's files when asked for."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from kbc.errors import MissingDependencyError


class Log:
    """`log.csv`, cut back to the step that is resumed from, and TensorBoard's files."""

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        self.path = folder / "log.csv"
        rows: list[dict[str, str]] = []
        if step and self.path.is_file():
            with self.path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        self.file = self.path.open("w", newline="")
        self.writer: csv.DictWriter[str] | None = None
        for row in rows:
            self._write(dict(row))
        self.board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingDependencyError('--tensorboard needs tensorboard: pip install "kbc[train]"') from error
            self.board = SummaryWriter(str(folder), purge_step=step)

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
