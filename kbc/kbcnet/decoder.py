"""The centre-pivot decoder: what the neighbours of a match say about it.

A stack of centre-pivot 4D convolutions (HSNet, arXiv 2104.01538) reads several correlations as channels and gives a
correction of the main one. Only pointwise activations lie between the convolutions, so the rows of the asked keypoints
can be evaluated alone and exactly (`kbc.ops.query_rows`). Whatever looks at the whole grid (mutual best matches, votes)
is computed on the input, where all of the correlation is at hand anyway. The choice of channels is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from kbc.kbcnet.config import ModelConfig
from kbc.matchers.voting import mutual_agreement, votes
from kbc.ops import CenterPivotStack

_VOTE_UNIT = 20.0
"""Logits that a vote weight of one adds: a unit of cosine at the usual temperature, 0.05."""


class Decoder(nn.Module):
    """Correlation channels → a correction in units of the softmax's logits. Starts as the votes alone.

    Args:
        config: of the network.
        levels: correlations given to `channels`.

    Attributes:
        inputs: how many channels the stack reads.
    """

    def __init__(self, config: ModelConfig, levels: int) -> None:
        super().__init__()
        self.position_sigma = config.position_sigma
        self.votes, self.vote_pool = config.votes, config.vote_pool
        self.inputs = levels + 1 + (config.position_sigma is not None) + len(config.votes)
        self.stack = CenterPivotStack([self.inputs, *config.decoder, 1], kernel_size=config.kernel)
        last = self.stack.layers[-1]
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        count = len(config.votes)
        self.vote_weights = nn.Parameter(torch.full((count,), config.vote_weight / max(count, 1)))

    def channels(self, levels: list[Tensor], temperature: Tensor) -> Tensor:
        """What the stack reads: ReLU of the cosines, mutual agreement, nearness in the frame, votes.

        Args:
            levels: (B, Ha, Wa, Hb, Wb) cosines.
            temperature: of the softmax over cells.

        Returns:
            (B, L, Ha, Wa, Hb, Wb) in the channels-last memory order. Mutual agreement is the first level's. Nearness is
            exp(−d²/2σ²), d the distance of the two cells in their frames, in sides: crops centred on the same
            thing have it at about the same place. Votes are mutual agreement's, see `kbc.matchers.voting` and
            `ModelConfig.vote_pool`.
        """
        first = levels[0]
        mutual = mutual_agreement(first, temperature)
        found = [*(level.relu() for level in levels), mutual]
        if self.position_sigma is not None:
            ha, wa, hb, wb = first.shape[1:]
            found.append(nearness((ha, wa), (hb, wb), self.position_sigma).to(first).expand_as(first))
        if self.votes:
            voters = pooled(mutual.detach(), self.vote_pool)
            voted = (votes(voters, reach, tolerance) for reach, tolerance in self.votes)
            found += [unpooled(values, self.vote_pool, first.shape) for values in voted]
        return torch.stack(found, dim=-1).movedim(-1, 1)

    def forward(self, channels: Tensor) -> Tensor:
        """(B, L, Ha, Wa, Hb, Wb) → (B, Ha, Wa, Hb, Wb)."""
        correction: Tensor = self.stack(channels)[:, 0].float()
        return correction + self._voted(channels)

    def rows(self, channels: Tensor, index: Tensor) -> Tensor:
        """`forward` at the source cells `index` (B, K), row-major, only: (B, K, Hb, Wb)."""
        correction: Tensor = self.stack.query_rows(channels, index)[:, :, 0].float()
        if not self.votes:
            return correction
        voted = self._voted(channels).flatten(1, 2)
        return correction + voted[torch.arange(len(index), device=index.device)[:, None], index]

    def _voted(self, channels: Tensor) -> Tensor:
        """What the votes, which are the last channels, add: (B, Ha, Wa, Hb, Wb)."""
        voted = channels[:, channels.shape[1] - len(self.votes) :].float()
        return torch.einsum("v,bvijkl->bijkl", _VOTE_UNIT * self.vote_weights, voted)


def pooled(values: Tensor, factor: int) -> Tensor:
    """Sums of (B, Ha, Wa, Hb, Wb) over blocks of `factor` cells along each axis; the last blocks may be cut short."""
    if factor == 1:
        return values
    for _ in range(2):  # the b-grid as images, then the a-grid
        batch, height, width, *_ = values.shape
        small = functional.avg_pool2d(values.flatten(1, 2), factor, ceil_mode=True, divisor_override=1)
        values = small.view(batch, height, width, *small.shape[2:]).permute(0, 3, 4, 1, 2)
    return values


def unpooled(values: Tensor, factor: int, size: Sequence[int]) -> Tensor:
    """Back from `pooled` to `size` (B, Ha, Wa, Hb, Wb), linear between the centres of the blocks."""
    if factor == 1:
        return values
    for full in (size[3:], size[1:3]):
        batch, height, width, *_ = values.shape
        large = functional.interpolate(values.flatten(1, 2), scale_factor=factor, mode="bilinear", align_corners=False)
        values = large.view(batch, height, width, *large.shape[2:])[..., : full[0], : full[1]].permute(0, 3, 4, 1, 2)
    return values


def nearness(grid_a: tuple[int, int], grid_b: tuple[int, int], sigma: float) -> Tensor:
    """exp(−d²/2σ²) of the distance of cell centres, in units of the frame's sides: (Ha, Wa, Hb, Wb)."""
    down, across = ((_middles(a)[:, None] - _middles(b)[None]).square() for a, b in zip(grid_a, grid_b, strict=True))
    return torch.exp(-(down[:, None, :, None] + across[None, :, None, :]) / (2 * sigma**2))


def _middles(count: int) -> Tensor:
    """Of `count` equal parts of 1."""
    return (torch.arange(count, dtype=torch.float32, device="cpu") + 0.5) / count
