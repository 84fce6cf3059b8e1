"""Votes for a match by the matches around it that are displaced alike: context as wide as the object, no weights.

Hough matching (Cho et al., arXiv 1501.06170; regularised in Min et al., arXiv 1908.06537) adds up matches by their
displacement over the whole image, which suits rigid things. Here only neighbours in the source vote, with a Gaussian
weight, and displacements need agree only within a Gaussian tolerance, so that bent and turned parts find support too.
A thing that faces the other way moves its neighbours mirrored; the better of both readings of a pair counts. The
widths are our choice, measured in examples/results/votes.md.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mutual_agreement(similarity: Tensor, temperature: float | Tensor) -> Tensor:
    """How surely two cells choose each other: geometric mean of the softmax over the target's and the source's cells.

    Args:
        similarity: (B, Ha, Wa, Hb, Wb).
        temperature: of both softmaxes.

    Returns:
        (B, Ha, Wa, Hb, Wb) in [0, 1].
    """
    flat = similarity.flatten(3).flatten(1, 2) / temperature
    return ((flat.log_softmax(1) + flat.log_softmax(2)) / 2).exp().view_as(similarity)


@torch.no_grad()
def votes(agreement: Tensor, reach: float, tolerance: float) -> Tensor:
    """Sum, over all pairs of cells (a', b'), of agreement(a', b') · g(a' − a) · h((b' − a') − (b − a)).

    Or the same of the mirrored source, for pairs where that has the greater sum of squares.

    Args:
        agreement: (B, Ha, Wa, Hb, Wb), not negative. Grids of different size are laid over each other.
        reach: standard deviation of the Gaussian g, in sides of the a-grid.
        tolerance: standard deviation of the Gaussian h, in sides of the b-grid.

    Returns:
        (B, Ha, Wa, Hb, Wb) float32, divided by each pair's greatest value. Not differentiated.
    """
    upright = _voted(agreement.float(), reach, tolerance)
    mirrored = _voted(agreement.float().flip(2), reach, tolerance).flip(2)
    turned = mirrored.square().sum((1, 2, 3, 4)) > upright.square().sum((1, 2, 3, 4))
    found = torch.where(turned.view(-1, 1, 1, 1, 1), mirrored, upright)
    return found / found.flatten(1).amax(1).clamp_min(1e-12).view(-1, 1, 1, 1, 1)


def _voted(agreement: Tensor, reach: float, tolerance: float) -> Tensor:
    batch, ha, wa, hb, wb = agreement.shape
    device = agreement.device
    rows, columns = _displacements(ha, hb, device), _displacements(wa, wb, device)
    at = (
        torch.arange(ha, device=device)[:, None, None, None],
        torch.arange(wa, device=device)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, :],
    )
    found = agreement.new_zeros(batch, ha, wa, 2 * hb - 1, 2 * wb - 1)
    found[:, *at] = agreement
    near = [_gaussian(cells, reach * cells, device) for cells in (ha, wa)]
    alike = [_gaussian(2 * cells - 1, tolerance * cells, device) for cells in (hb, wb)]
    with torch.autocast(device.type, enabled=False):  # axis by axis, as products that need no rearranging
        found = near[0] @ found.flatten(2)
        found = near[1] @ found.view(batch * ha, wa, -1)
        found = alike[0] @ found.view(batch * ha * wa, 2 * hb - 1, 2 * wb - 1) @ alike[1]
    found = found.view(batch, ha, wa, 2 * hb - 1, 2 * wb - 1)
    return found[:, *at]


def _displacements(cells_a: int, cells_b: int, device: torch.device) -> Tensor:
    """Which displacement, 0 … 2·cells_b − 2, leads from each cell of one axis to each of the other: (a, b)."""
    scale = (cells_b - 1) / max(cells_a - 1, 1)
    laid = (torch.arange(cells_a, device=device, dtype=torch.float32) * scale).round().long()
    return torch.arange(cells_b, device=device) - laid[:, None] + cells_b - 1


def _gaussian(cells: int, sigma: float, device: torch.device) -> Tensor:
    """(cells, cells): each row a Gaussian around its own cell. The axes are short and the Gaussians wide."""
    at = torch.arange(cells, device=device, dtype=torch.float32)
    return torch.exp(-(at[:, None] - at).square() / (2 * sigma**2))
