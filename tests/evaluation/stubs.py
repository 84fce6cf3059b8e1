"""A matcher whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kbc.types import Match, Pair


class Shifted:
    """Answers with the source's points moved by (dx, dy); counts its calls."""

    name = "shifted"
    max_batch = 4
    input_size = 32

    def __init__(self, dx: float = 0.0, dy: float = 0.0) -> None:
        self.shift = np.array([dx, dy])
        self.asked = 0

    def match(self, pairs: Sequence[Pair]) -> list[Match]:
        self.asked += len(pairs)
        return [Match(pair.keypoints + self.shift) for pair in pairs]
