from __future__ import annotations

import torch

from kbc.kbcnet.training.objective import cell_loss, end_point_loss, pair_mean

KNOWN = torch.ones(1, 1, dtype=torch.bool)
ONE = torch.tensor(1.0)


def peaked(x: float, y: float, sharp: float = 2.0, size: int = 8) -> torch.Tensor:
    ys, xs = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return -sharp * ((xs - x) ** 2 + (ys - y) ** 2)[None, None].float()


def test_cell_loss_is_least_at_the_truth_between_cells() -> None:
    truth = torch.tensor([[[3.4, 5.0]]])
    right = cell_loss(peaked(3.4, 5.0, 1 / (2 * 0.6**2)), truth, KNOWN, ONE)
    for x, y in ((3.4, 4.0), (5.0, 3.4), (3.0, 5.0), (4.0, 5.0)):
        assert right < cell_loss(peaked(x, y, 1 / (2 * 0.6**2)), truth, KNOWN, ONE)


def test_cell_loss_of_no_knowledge_is_the_log_of_the_number_of_cells() -> None:
    loss = cell_loss(torch.zeros(1, 1, 8, 8), torch.tensor([[[1.0, 2.0]]]), KNOWN, ONE)
    assert torch.allclose(loss, torch.tensor(64.0).log())


def test_unknown_points_give_neither_loss_nor_gradient() -> None:
    rows = torch.randn(2, 3, 8, 8, requires_grad=True)
    truth = torch.rand(2, 3, 2) * 7
    truth[0, 1] = torch.nan
    known = ~truth.isnan().any(-1)
    loss = cell_loss(rows, truth, known, ONE) + end_point_loss(rows, truth, known, ONE, 2)
    loss.backward()
    assert bool(loss.isfinite())
    assert rows.grad is not None
    assert rows.grad[0, 1].abs().sum() == 0
    assert rows.grad[0, 0].abs().sum() > 0


def test_end_point_loss_pulls_the_peak_and_ignores_what_is_out_of_reach() -> None:
    rows = peaked(3.0, 3.0).requires_grad_()
    loss = end_point_loss(rows, torch.tensor([[[3.6, 3.0]]]), KNOWN, ONE, 2)
    loss.backward()
    assert loss > 0
    assert rows.grad is not None
    assert rows.grad[0, 0, 3, 4] < 0 < rows.grad[0, 0, 3, 2]
    assert end_point_loss(peaked(3.0, 3.0), torch.tensor([[[7.0, 3.0]]]), KNOWN, ONE, 2) == 0


def test_a_mean_over_pairs_does_not_depend_on_how_the_batch_is_split() -> None:
    values, known = torch.rand(6, 5), torch.rand(6, 5) < 0.6
    known[2] = False
    parts = [pair_mean(values[i::2], known[i::2]) for i in range(2)]
    assert torch.allclose(torch.stack(parts).mean(), pair_mean(values, known))
