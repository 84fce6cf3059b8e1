"""Votes: against the sum they are defined as, and what they are for."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from kbc.matchers.voting import votes


def one_way(agreement: torch.Tensor, reach: float, tolerance: float) -> torch.Tensor:
    """The docstring's sum, cell by cell, on equal grids."""
    ha, wa, hb, wb = agreement.shape
    found = torch.zeros(ha, wa, hb, wb)
    for y, x, v, u in itertools.product(range(ha), range(wa), range(hb), range(wb)):
        for y2, x2, v2, u2 in itertools.product(range(ha), range(wa), range(hb), range(wb)):
            near = ((y2 - y) / (reach * ha)) ** 2 + ((x2 - x) / (reach * wa)) ** 2
            alike = ((v2 - y2 - v + y) / (tolerance * hb)) ** 2 + ((u2 - x2 - u + x) / (tolerance * wb)) ** 2
            found[y, x, v, u] += float(agreement[y2, x2, v2, u2]) * math.exp(-(near + alike) / 2)
    return found


def by_definition(agreement: torch.Tensor, reach: float, tolerance: float) -> torch.Tensor:
    ways = [one_way(agreement, reach, tolerance), one_way(agreement.flip(1), reach, tolerance).flip(1)]
    found = max(ways, key=lambda way: float(way.square().sum()))
    return found / found.max()


def test_equals_the_definition() -> None:
    agreement = torch.rand(2, 3, 4, 3, 4, generator=torch.Generator().manual_seed(0))
    found = votes(agreement, 0.4, 0.2)
    for pair in range(2):
        torch.testing.assert_close(found[pair], by_definition(agreement[pair], 0.4, 0.2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mirrored", [False, True])
def test_neighbours_displaced_alike_decide_between_look_alikes(mirrored: bool) -> None:
    """The middle cell fits two places equally well; its neighbours (or their mirror image) moved by (2, 1)."""
    agreement = torch.zeros(1, 5, 5, 8, 8)
    for y, x in itertools.product(range(5), range(5)):
        agreement[0, y, 4 - x if mirrored else x, y + 1, x + 2] = 1.0
    agreement[0, 2, 2, 6, 0] = 1.0
    found = votes(agreement, 0.3, 0.1)[0, 2, 2]
    assert divmod(int(found.argmax()), 8) == (3, 4)
    assert float(found[3, 4]) > 3 * float(found[6, 0])


@pytest.mark.parametrize("grids", [(5, 7, 5, 7), (4, 4, 8, 6), (8, 6, 3, 9), (1, 1, 4, 4), (3, 3, 1, 1)])
def test_any_grids(grids: tuple[int, int, int, int]) -> None:
    found = votes(torch.rand(2, *grids), 0.2, 0.1)
    assert found.shape == (2, *grids)
    assert torch.isfinite(found).all()
    assert found.flatten(1).amax(1).tolist() == pytest.approx([1.0, 1.0])


def test_nothing_agrees() -> None:
    assert not votes(torch.zeros(1, 3, 3, 3, 3), 0.2, 0.1).any()
