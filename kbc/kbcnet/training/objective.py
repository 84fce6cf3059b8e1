"""What training minimises: the distribution over target cells at each keypoint, and where its peak lies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kbc.kbcnet.model import Network, rows_at
from kbc.kbcnet.training.recipe import Recipe
from kbc.tensors import soft_peak


class Objective(nn.Module):
    """The network and its loss in one module, as distributed training wants it.

    Args:
        network: what is trained.
        recipe: weights of the terms.
        names: how many named points there are: each has a prototype, a feature that is learned along.
        compiled: run the network through torch.compile.
    """

    def __init__(self, network: Network, recipe: Recipe, names: int, compiled: bool = False) -> None:
        super().__init__()
        self.network, self.recipe = network, recipe
        self.run = torch.compile(network) if compiled else network
        start = torch.randn(names, network.width, generator=torch.Generator().manual_seed(recipe.seed), device="cpu")
        self.parts = nn.Parameter(start * 0.1, requires_grad=recipe.part_weight > 0)

    def forward(self, batch: dict[str, Any], decode: bool) -> dict[str, Tensor]:
        """The terms of the loss and their weighted sum "loss".

        Args:
            batch: source and target as `Network.forward` takes them, keypoints and truth (B, K, 2) in input pixels.
            decode: run the decoder.
        """
        recipe, network = self.recipe, self.network
        scores = self.run(batch["source"], batch["target"], decode)
        plain, refined = scores.plain, scores.refined
        with torch.autocast(refined.device.type, enabled=False):
            grid, temperature = network.grid, network.temperature
            source, truth = grid.to_cells(batch["keypoints"]), grid.to_cells(batch["truth"])
            known = ~(source.isnan() | truth.isnan()).any(-1)
            rows = rows_at(refined, source)
            forth = cell_loss(rows_at(plain, source), truth, known, temperature)
            back = cell_loss(rows_at(plain.permute(0, 3, 4, 1, 2), truth), source, known, temperature)
            terms = {
                "refined": cell_loss(rows, truth, known, temperature),
                "plain": forth + back,
                "end_point": end_point_loss(rows, truth, known, temperature, network.config.reach),
            }
            total = terms["refined"] + recipe.plain_weight * terms["plain"]
            total = total + recipe.end_point_weight * terms["end_point"]
            if recipe.part_weight:
                named = known & (batch["parts"] >= 0)
                wanted = functional.normalize(self.parts, dim=1)[batch["parts"].clamp_min(0)]
                terms["parts"] = torch.stack(
                    [
                        cell_loss(torch.einsum("bkc,bchw->bkhw", wanted, maps.float()), at, named, temperature)
                        for maps, at in ((scores.source, source), (scores.target, truth))
                    ]
                ).sum()
                total = total + recipe.part_weight * terms["parts"]
            return {"loss": total} | terms


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
