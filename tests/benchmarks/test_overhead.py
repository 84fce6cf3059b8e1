"""What KBC adds to its matcher calls. Run with: pytest tests/benchmarks/test_overhead.py --benchmark-enable"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kbc
from tests.conftest import draw_scene

POINTS = np.array([[600.0, 300.0], [640.0, 310.0], [700.0, 330.0], [610.0, 360.0], [690.0, 380.0], [650.0, 350.0]])


class Free:
    """A matcher that costs nothing: it answers with the source's points, scaled to the target."""

    name = "free"
    input_size = 256
    max_batch = 16

    def match(self, pairs: Any) -> list[kbc.Match]:
        return [
            kbc.Match(p.keypoints * [p.target.shape[1] / p.source.shape[1], p.target.shape[0] / p.source.shape[0]])
            for p in pairs
        ]


@pytest.mark.parametrize("localizer", ["predicted", "best"])
def test_overhead_per_pair(benchmark: Any, localizer: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pair = kbc.Pair(draw_scene(1, (720, 1280)), draw_scene(2, (720, 1280)), POINTS)
    wrapped = kbc.wrap(Free(), localizer=localizer)
    result = benchmark(lambda: wrapped.match([pair])[0])
    torch.set_num_threads(threads)
    assert result.calls == 2
