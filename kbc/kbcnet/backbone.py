"""Three feature maps of an image, each at half the resolution of the one before."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from kbc.errors import InputError, must_be
from kbc.kbcnet.config import GROUPS, ModelConfig
from kbc.matchers.resnet import ResNet, resnet
from kbc.tensors import Grid, imagenet_normalised

_ORIENTATIONS = 8
_EDGE_SCALES = (4, 2, 1)  # pixels per gradient: a stride-4 cell holds 1, 4 or 16 of them


class TinyBackbone(nn.Module):
    """A small residual network: 4×4 patches and oriented edges, then residual blocks with 2×2 steps between the layers.

    The edges are computed, not learned: with little data and time a network that starts from gradients is far ahead
    of one that must find them first (cf. Oyallon et al., arXiv 1703.08961, with wavelets).
    Group norm and no batch norm, so that a training step does not depend on how a batch is split over processes.
    Patches tile the image: cell i of a map with stride s is centred on input pixel i·s + (s − 1)/2. Our choice.
    """

    def __init__(self, widths: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, widths[0], 4, 4)
        self.edges = nn.Conv2d(_ORIENTATIONS * len(_EDGE_SCALES), widths[0], 3, padding=1)
        self.layers = nn.ModuleList()
        for index, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            step: list[nn.Module] = [nn.Conv2d(widths[index - 1], width, 2, 2)] if index else []
            residuals = [_Residual(width) for _ in range(count)]
            self.layers.append(nn.Sequential(*step, nn.GroupNorm(GROUPS, width), *residuals))

    def forward(self, images: Tensor, layers: tuple[int, ...]) -> dict[int, Tensor]:
        """(B, 3, H, W) → {layer: (B, C, H/2^(layer+1), W/2^(layer+1))}, rounded down."""
        found: dict[int, Tensor] = {}
        x = self.patches(images)
        x = x + self.edges(oriented_edges(images)[..., : x.shape[-2], : x.shape[-1]])
        for index, layer in enumerate(self.layers[: max(layers)], start=1):
            x = layer(x)
            if index in layers:
                found[index] = x
        return found


@torch.no_grad()
def oriented_edges(images: Tensor) -> Tensor:
    """Strength of edges by direction, at three scales, divided by the surroundings' strength.

    Args:
        images: (B, 3, H, W), sides of at least 4.

    Returns:
        (B, 24, ceil(H/4), ceil(W/4)): eight unsigned orientations per scale, about 1 on average. Not differentiated.
    """
    height, width = images.shape[-2:]
    grey = functional.pad(images.mean(1, keepdim=True), (0, -width % 4, 0, -height % 4), mode="replicate")
    angles = torch.arange(_ORIENTATIONS, device=images.device, dtype=torch.float32) * (2 * torch.pi / _ORIENTATIONS)
    cosines, sines = angles.cos().view(1, -1, 1, 1), angles.sin().view(1, -1, 1, 1)
    found = []
    for scale in _EDGE_SCALES:
        small = functional.avg_pool2d(grey, scale)
        padded = functional.pad(small, (1, 1, 1, 1), mode="replicate")
        dx = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
        dy = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
        strength = (dx.square() + dy.square() + 1e-12).sqrt()
        # m·cos(2θ − φ), from the double angle: no arctangent
        along, across = (dx.square() - dy.square()) / strength, 2 * dx * dy / strength
        votes = functional.avg_pool2d((along * cosines + across * sines).relu(), 4 // scale)
        around = functional.avg_pool2d(votes.mean(1, keepdim=True), 9, 1, 4, count_include_pad=False)
        found.append(votes / (around + 0.01))
    return torch.cat(found, dim=1)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, width), nn.GroupNorm(GROUPS, width)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(torch.relu(x))))
        added: Tensor = x + self.norm2(self.conv2(y))
        return added


class Backbone(nn.Module):
    """The configured network's three maps.

    Attributes:
        channels: of the three maps, finest first.
        learned_coarse: the coarsest map comes from a learned stride-2 block, because the weights end before it.
        unused: prefixes of the names of the whole network's tensors that are left out: layers beyond the deepest one.
    """

    def __init__(self, config: ModelConfig, *, learned_coarse: bool = False) -> None:
        super().__init__()
        self.layers = config.layers
        self.learned_coarse = learned_coarse
        # Layers beyond the deepest one are made and dropped: what is drawn after them stays that of the recipe's seed.
        deepest = config.layers[1 if learned_coarse else 2]
        self.network: TinyBackbone | ResNet
        if config.backbone == "tiny":
            self.network = TinyBackbone(config.widths, config.blocks)
            widths = {index: width for index, width in enumerate(config.widths, start=1)}
            self.unused = tuple(f"layers.{index}." for index in range(deepest, len(config.widths)))
            del self.network.layers[deepest:]
        else:
            self.network = ResNet(config.backbone)
            widths = self.network.channels
            self.unused = tuple(f"layer{layer}." for layer in range(deepest + 1, 5))
            for name in self.unused:
                delattr(self.network, name.rstrip("."))
            self.network.available = tuple(range(1, deepest + 1))
        self.channels = tuple(widths[layer] for layer in config.layers)
        self._patches = config.backbone == "tiny"
        self.coarser: nn.Module | None = None
        if learned_coarse:
            middle, coarse = self.channels[1:]
            self.coarser = nn.Conv2d(middle, coarse, 3, 2, 1)
        self.train()

    def train(self, mode: bool = True) -> Backbone:
        """As any module, but a ResNet's batch norms keep their ImageNet statistics, trained or not."""
        super().train(mode)
        if isinstance(self.network, ResNet):
            self.network.eval()
        return self

    def grid(self, level: int) -> Grid:
        """Where the cells of map 0 (finest), 1 or 2 lie in the input."""
        stride = 2 ** (self.layers[level] + 1)
        return Grid(float(stride), (stride - 1) / 2 if self._patches else 0.0)

    def raw(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) RGB, ImageNet-normalised → the maps that come from `network` itself, finest first.

        Raises:
            InputError: an image smaller than one cell of the coarsest map.
        """
        coarsest = int(self.grid(2).stride)
        if min(images.shape[-2:]) < coarsest:
            size = f"{images.shape[-1]}×{images.shape[-2]}"
            raise InputError(must_be("images", f"at least {coarsest}×{coarsest} pixels, one coarsest cell", size))
        layers = self.layers[:2] if self.learned_coarse else self.layers
        maps = self.network(images, layers)
        return [maps[layer] for layer in layers]

    def complete(self, maps: list[Tensor]) -> list[Tensor]:
        """The three maps: those of `raw`, and the learned coarsest one where the weights end before it."""
        if self.coarser is None:
            return maps
        return [*maps, torch.relu(self.coarser(maps[-1]))]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) RGB, ImageNet-normalised → three maps (B, C, h, w), finest first."""
        return self.complete(self.raw(images))


def resnet_weights(config: ModelConfig, weights: str | Path) -> tuple[dict[str, Tensor], bool]:
    """A ResNet's tensors from a file, or "imagenet", and whether the deepest configured layer must be learned.

    Raises:
        DataError: weights of another network, broken, or too short for the middle layer.
        InputError: the tiny backbone has no weights of its own to load.
    """
    if config.backbone == "tiny":
        raise InputError(must_be("backbone_weights", "None with the tiny backbone", repr(str(weights))))
    network = resnet(config.backbone, weights)
    if config.layers[1] not in network.available:
        expected = f"a file that reaches layer {config.layers[1]}"
        raise InputError(must_be("backbone_weights", expected, f"one with layers {network.available}"))
    return network.state_dict(), config.layers[2] not in network.available


def normalised(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 → float, by ImageNet's mean and deviation."""
    return imagenet_normalised(images.float() / 255)


def align(maps: Tensor, grid: Grid, to: Grid, size_hw: tuple[int, int]) -> Tensor:
    """Bilinear values of a map at the cell centres of another grid; edges are repeated.

    Places are computed in float32 whatever the map is: bfloat16 has no whole numbers beyond 256.

    Args:
        maps: (B, C, h, w) on `grid`.
        grid, to: where the cells of the two grids lie in the same input.
        size_hw: (height, width) of the other grid in cells.

    Returns:
        (B, C, height, width), the dtype of `maps`.
    """
    values = maps.to(torch.promote_types(maps.dtype, torch.float32))
    height, width = maps.shape[-2:]
    y, x = (grid.to_cells(to.to_pixels(torch.arange(n, dtype=values.dtype, device=maps.device))) for n in size_hw)
    x, y = (x + 0.5) * 2 / width - 1, (y + 0.5) * 2 / height - 1
    at = torch.stack([x.expand(size_hw), y[:, None].expand(size_hw)], dim=-1)
    at = at.expand(maps.shape[0], -1, -1, -1)
    return functional.grid_sample(values, at, "bilinear", "border", align_corners=False).to(maps.dtype)
