"""The network: images → features → 4D correlation → decoder. Everything with weights is here.

Convention: a is the source grid, b the target grid; correlations are (B, Ha, Wa, Hb, Wb) or, with channels,
(B, L, Ha, Wa, Hb, Wb). Cells are fractional, x then y, as `kbc.matchers.features.Grid` counts them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kbc.errors import InputError, must_be
from kbc.kbcnet.backbone import Backbone, align
from kbc.kbcnet.config import ModelConfig
from kbc.kbcnet.csfa import CSFA
from kbc.kbcnet.decoder import Decoder
from kbc.tensors import Grid

Described = list[Tensor]
"""Feature maps (B, C, h, w) on the matched grid, of unit length along C: the refined ones first, then one per layer."""


class Scores(NamedTuple):
    """What two images look like to each other.

    Attributes:
        plain: (B, Ha, Wa, Hb, Wb) cosine of the refined features.
        refined: the same after the decoder; equal to `plain` without one. Same scale: divide by the temperature.
        source, target: (B, C, h, w) the refined features, of unit length.
    """

    plain: Tensor
    refined: Tensor
    source: Tensor
    target: Tensor


class Network(nn.Module):
    """Backbone, CSFA, correlation and decoder (Jin & Li, arXiv 2404.02678; details that §1 of it leaves open are ours).

    Args:
        config: the architecture.
        learned_coarse: the backbone's weights end before the deepest layer, which is learned instead.
    """

    def __init__(self, config: ModelConfig, *, learned_coarse: bool = False) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config, learned_coarse=learned_coarse)
        self.csfa: CSFA | None = None
        if config.csfa:
            self.csfa = CSFA(self.backbone.channels, self.width, config.csfa_dim, config.csfa_heads)
        self.decoder = Decoder(config, self.parts) if config.decoder else None
        self.log_temperature = nn.Parameter(torch.tensor(config.temperature).log())

    @property
    def temperature(self) -> Tensor:
        """Of the softmax over the target's cells, scalar; kept within [0.005, 0.5]."""
        return self.log_temperature.exp().clamp(0.005, 0.5)

    @property
    def grid(self) -> Grid:
        """Where the matched cells lie in the input."""
        return self.backbone.grid(1)

    @property
    def parts(self) -> int:
        """How many maps `describe` gives."""
        layers = len(self.config.hypercolumn)
        return 1 + (layers if layers > 1 else 0)

    @property
    def width(self) -> int:
        """Channels of the refined features."""
        return sum(self._widths)

    @property
    def _widths(self) -> list[int]:
        """Channels of the hypercolumn's layers."""
        channels = dict(zip(self.config.layers, self.backbone.channels, strict=True))
        return [channels[layer] for layer in self.config.hypercolumn]

    def split(self, maps: Tensor) -> Described:
        """`describe`'s maps from their concatenation along the channels."""
        layers = self._widths
        return list(torch.split_with_sizes(maps, [self.width, *layers] if len(layers) > 1 else layers, dim=1))

    def describe(self, images: Tensor) -> Described:
        """(B, 3, H, W) RGB, ImageNet-normalised → the features that are compared.

        Raises:
            InputError: not (B, 3, H, W), smaller than one coarsest cell, or not on the network's device.
        """
        if images.dim() != 4 or images.shape[1] != 3:
            raise InputError(must_be("images", "(B, 3, H, W)", tuple(images.shape)))
        if images.device != self.log_temperature.device:
            here = self.log_temperature.device
            raise InputError(must_be("images", f"on the network's device ({here})", images.device, "move one of them"))
        return self.align_scales(self.backbone.raw(images))

    def align_scales(self, raw: list[Tensor]) -> Described:
        """`describe` from the backbone's own maps (`Backbone.raw`), which may have been kept."""
        maps = self.backbone.complete(raw)
        size_hw = (maps[1].shape[-2], maps[1].shape[-1])
        grids = [self.backbone.grid(level) for level in range(3)]
        layers = []
        for layer in self.config.hypercolumn:
            level = self.config.layers.index(layer)
            here = maps[level] if level == 1 else align(maps[level], grids[level], grids[1], size_hw)
            layers.append(functional.normalize(here.float(), dim=1))
        features = torch.cat(layers, dim=1) / len(layers) ** 0.5
        if self.csfa is not None:
            features = self.csfa(features, maps, grids)
        refined = functional.normalize(features.float(), dim=1)
        return [refined, *layers] if len(layers) > 1 else [refined]

    def compare(self, source: Described, target: Described) -> tuple[Tensor, Tensor]:
        """Correlation of two images' features.

        Returns:
            the cosine of the refined features (B, Ha, Wa, Hb, Wb), and what the decoder reads (B, L, Ha, Wa, Hb, Wb).

        Raises:
            InputError: the two sides are on different devices.
        """
        if source[0].device != target[0].device:
            raise InputError(must_be("target", f"on the source's device ({source[0].device})", target[0].device))
        levels = [self.cosine(a, b) for a, b in zip(source, target, strict=True)]
        if self.decoder is None:
            return levels[0], levels[0][:, None]
        return levels[0], self.decoder.channels(levels, self.temperature)

    def forward(self, source: Tensor | list[Tensor], target: Tensor | list[Tensor], decode: bool = True) -> Scores:
        """Scores of all pairs of cells.

        Args:
            source, target: (B, 3, H, W) RGB, ImageNet-normalised, or the maps of `Backbone.raw`.
            decode: run the decoder.
        """
        described = [
            self.describe(side) if isinstance(side, Tensor) else self.align_scales(side) for side in (source, target)
        ]
        source_maps, target_maps = described
        if decode:
            plain, channels = self.compare(source_maps, target_maps)
            return Scores(plain, self.refine(plain, channels), source_maps[0], target_maps[0])
        plain = self.cosine(source_maps[0], target_maps[0])
        return Scores(plain, plain, source_maps[0], target_maps[0])

    @staticmethod
    def cosine(source: Tensor, target: Tensor) -> Tensor:
        """Of two maps (B, C, h, w) of unit length: (B, Ha, Wa, Hb, Wb), float32 (a cosine in bf16 has two digits)."""
        with torch.autocast(source.device.type, enabled=False):
            return torch.einsum("bcij,bckl->bijkl", source.float(), target.float())

    def refine(self, plain: Tensor, channels: Tensor) -> Tensor:
        """The refined scores of all pairs of cells from what `compare` gives."""
        if self.decoder is None:
            return plain
        correction: Tensor = self.decoder(channels)
        return plain + self.temperature * correction

    def query(self, source: Described, target: Described, cells: Tensor) -> Tensor:
        """Refined scores of some source points only: `rows_at(forward(…).refined, cells)` but for rounding.

        The correlation is computed whole; the decoder as far as the points need it (see `CenterPivotStack.query_rows`).

        Args:
            source, target: of `describe`.
            cells: (B, K, 2) fractional source cells, x then y.

        Returns:
            (B, K, Hb, Wb).
        """
        plain, channels = self.compare(source, target)
        rows = rows_at(plain, cells)
        if self.decoder is None or cells.shape[1] == 0:
            return rows
        index, weight = corners(cells, (plain.shape[1], plain.shape[2]))
        corrections = self.decoder.rows(channels, index.flatten(1)).view(*index.shape, *plain.shape[3:])
        return rows + self.temperature * (corrections * weight[..., None, None]).sum(2)


def corners(cells: Tensor, grid_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The four cells around fractional ones, for bilinear sampling; edges are repeated.

    Args:
        cells: (…, 2) x then y. NaN counts as cell 0: mask it afterwards.
        grid_hw: (height, width) of the grid.

    Returns:
        index (…, 4) int64, row-major; weight (…, 4), summing to one.
    """
    size = cells.new_tensor([grid_hw[1] - 1, grid_hw[0] - 1])
    inside = torch.minimum(cells.nan_to_num(0.0).clamp_min(0.0), size)
    low = inside.floor()
    part = inside - low
    high = torch.minimum(low + 1, size)
    x, y = torch.stack([low[..., 0], high[..., 0]], -1), torch.stack([low[..., 1], high[..., 1]], -1)
    wx, wy = torch.stack([1 - part[..., 0], part[..., 0]], -1), torch.stack([1 - part[..., 1], part[..., 1]], -1)
    index = (y[..., :, None] * grid_hw[1] + x[..., None, :]).flatten(-2).long()
    return index, (wy[..., :, None] * wx[..., None, :]).flatten(-2)


def rows_at(scores: Tensor, cells: Tensor) -> Tensor:
    """Rows of a correlation at fractional source cells.

    Args:
        scores: (B, Ha, Wa, Hb, Wb).
        cells: (B, K, 2) x then y on the a-grid.

    Returns:
        (B, K, Hb, Wb), bilinear in the a-grid.
    """
    batch, height, width, *grid_b = scores.shape
    index, weight = corners(cells, (height, width))
    flat = scores.flatten(1, 2).flatten(2)
    rows = flat[torch.arange(batch, device=flat.device)[:, None, None], index]  # (B, K, 4, Nb)
    found: Tensor = (rows * weight[..., None].to(rows.dtype)).sum(dim=2)
    return found.view(*found.shape[:2], *grid_b)
