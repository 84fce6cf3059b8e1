"""What training minimises: the distribution over target cells at each keypoint, and where its peak lies."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kbc.tensors import soft_peak


def cell_loss(rows: Tensor, truth: Tensor, known: Tensor, temperature: Tensor, sigma: float = 0.6) -> Tensor:
    """Cross-entropy between the softmax over target cells and a Gaussian around the true point.

    Args:
        rows: (B, K, h, w) similarity of each keypoint with the target's cells.
        truth: (B, K, 2) true points in fractional cells, x then y; anything where unknown.
        known: (B, K) bool.
        temperature: scalar.
        sigma: width of the Gaussian in cells.

    Returns:
        scalar: mean over each pair's known points, then over the pairs that have any. (A mean over pairs is the same
        however the batch is split over processes.)
    """
    height, width = rows.shape[-2:]
    y = torch.arange(height, device=rows.device)
    x = torch.arange(width, device=rows.device)
    at = truth.nan_to_num(0.0)
    far_x, far_y = (x - at[..., :1]).square(), (y - at[..., 1:]).square()  # (B, K, w), (B, K, h)
    wanted = (-(far_y[..., :, None] + far_x[..., None, :]) / (2 * sigma**2)).flatten(2).softmax(-1)
    loss = -(wanted * (rows.flatten(2) / temperature).log_softmax(-1)).sum(-1)
    return pair_mean(loss, known)


def end_point_loss(rows: Tensor, truth: Tensor, known: Tensor, temperature: Tensor, reach: int) -> Tensor:
    """Smooth distance in cells from the soft peak to the true point, for peaks within `reach` cells of it.

    Arguments as `cell_loss`. Peaks farther off get no gradient: the window does not hold the truth.
    """
    batch, count = known.shape
    cells, _ = soft_peak(rows.flatten(0, 1), reach, temperature)  # type: ignore[arg-type]
    cells = cells.view(batch, count, 2)
    at = torch.where(known[..., None], truth, cells.detach())
    near = (cells.detach() - at).abs().amax(-1) <= reach
    loss = functional.smooth_l1_loss(cells, at, reduction="none", beta=0.5).sum(-1)
    return pair_mean(loss * near, known)


def pair_mean(values: Tensor, known: Tensor) -> Tensor:
    """Mean of (B, K) over each pair's known points, then over the pairs; a pair without points counts as zero."""
    per_pair = torch.where(known, values, 0.0).sum(1) / known.sum(1).clamp_min(1)
    return per_pair.mean()
