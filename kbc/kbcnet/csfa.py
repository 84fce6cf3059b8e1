"""Cross-scale feature alignment (CSFA): the middle scale looks at the finer and at the coarser one.

Jin & Li, arXiv 2404.02678: the middle scale is the query of a cross-attention to each of the other two scales, and the
bilinearly aligned features are combined with the result. What the combination looks like, the position code and the
start at the identity are our choice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from kbc.kbcnet.backbone import align
from kbc.tensors import Grid


class CSFA(nn.Module):
    """Adds to the middle features what cross-attention and bilinear alignment bring from the two other scales.

    The last projection starts at zero, so an untrained CSFA returns its input.

    Args:
        channels: of the finest, middle and coarsest map.
        out_channels: of the features that are refined.
        dim, heads: width of the attention and its heads.
    """

    def __init__(self, channels: tuple[int, ...], out_channels: int, dim: int, heads: int) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.query = nn.Conv2d(middle, dim, 1)
        self.scales = nn.ModuleList([_CrossScale(fine, dim, heads), _CrossScale(coarse, dim, heads)])
        self.mix = nn.Sequential(nn.Conv2d(3 * dim, 2 * dim, 1), nn.GELU(), nn.Conv2d(2 * dim, out_channels, 1))
        nn.init.zeros_(self.mix[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.mix[-1].bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor, maps: list[Tensor], grids: list[Grid]) -> Tensor:
        """Refined features.

        Args:
            features: (B, out_channels, h, w) on the middle grid.
            maps: the three maps (B, C, h, w), finest first.
            grids: where their cells lie.

        Returns:
            (B, out_channels, h, w).
        """
        fine, middle, coarse = (_unit(level) for level in maps)
        query = self.query(middle)
        found = [query]
        for scale, other, grid in ((self.scales[0], fine, grids[0]), (self.scales[1], coarse, grids[2])):
            found.append(scale(query, grids[1], other, grid))
        added: Tensor = self.mix(torch.cat(found, dim=1))
        return features + added


class _CrossScale(nn.Module):
    """Attention from the middle scale to one other, plus that scale bilinearly aligned."""

    def __init__(self, channels: int, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.key = nn.Conv2d(channels, dim, 1)
        self.value = nn.Conv2d(channels, dim, 1)

    def forward(self, query: Tensor, query_grid: Grid, other: Tensor, other_grid: Grid) -> Tensor:
        height, width = query.shape[-2:]
        key: Tensor = self.key(other)
        value: Tensor = self.value(other)
        looked = functional.scaled_dot_product_attention(
            self._tokens(query + _position_code(query, query_grid)),
            self._tokens(key + _position_code(key, other_grid)),
            self._tokens(value),
        )
        attended = looked.transpose(-1, -2).reshape(query.shape[0], -1, height, width)
        combined: Tensor = attended + align(value, other_grid, query_grid, (height, width))
        return combined

    def _tokens(self, maps: Tensor) -> Tensor:
        """(B, D, h, w) → (B, heads, h·w, D/heads), contiguous: torch's fused CPU attention wants that."""
        batch, _, height, width = maps.shape
        return maps.reshape(batch, self.heads, -1, height * width).transpose(-1, -2).contiguous()


def _unit(maps: Tensor) -> Tensor:
    """Features of unit mean square, whatever the backbone's scale."""
    unit: Tensor = functional.normalize(maps, dim=1) * maps.shape[1] ** 0.5
    return unit


def _position_code(maps: Tensor, grid: Grid) -> Tensor:
    """Sines and cosines of the cell centres in the input (1, D, h, w), the same for the same pixel on every grid.

    Wavelengths from 16 to 512 input pixels; Vaswani et al., arXiv 1706.03762, in two dimensions.
    """
    channels, height, width = maps.shape[1:]
    count = channels // 4
    waves = (
        2 * torch.pi / (16 * 32 ** (torch.arange(count, device=maps.device, dtype=torch.float32) / max(count - 1, 1)))
    )
    y, x = (
        grid.to_pixels(torch.arange(n, device=maps.device, dtype=torch.float32))[:, None] * waves
        for n in (height, width)
    )
    across = torch.cat([x.sin(), x.cos()], dim=1).T[:, None].expand(-1, height, -1)
    down = torch.cat([y.sin(), y.cos()], dim=1).T[:, :, None].expand(-1, -1, width)
    return torch.cat([across, down])[None].to(maps.dtype)
