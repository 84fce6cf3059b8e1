"""The matchers that come with kbc: `hog`, which needs no weights, and ImageNet ResNets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from kbc.errors import InputError, must_be
from kbc.matchers.features import FeatureMatcher, from_features
from kbc.matchers.resnet import STRIDES, ResNet, ResNetName, resnet

_CELL = 8
_BINS = 9


def hog(
    *, size: int | tuple[int, int] = 256, votes: bool = False, device: str | torch.device = "cpu"
) -> FeatureMatcher:
    """Dense gradient histograms with colour, compared over two scales of context; no weights.

    Histograms of oriented gradients after Dalal and Triggs (CVPR 2005), cells of 8 px, nine unsigned orientations,
    each cell described with its surroundings (our choice). Enough for a demo and for rigid, upright objects.

    Args:
        size: images are stretched to this side, or (height, width), pixels; cells are of 8 px.
        votes: let the surrounding matches vote for where a point went; good for upright things, see
            `FeatureMatcher.with_votes`.
        device: where it runs.
    """
    matcher = from_features(hog_features, _CELL, size=size, name="hog", normalise=False, device=device)
    return matcher.with_votes() if votes else matcher


def hog_features(images: Tensor) -> Tensor:
    """(B, 3, H, W) RGB in [0, 1] → (B, C, H/8, W/8) descriptors."""
    grey = images.mean(dim=1, keepdim=True)
    padded = functional.pad(grey, (1, 1, 1, 1), mode="replicate")
    dx = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    dy = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    strength = torch.sqrt(dx**2 + dy**2 + 1e-12)
    angle = torch.atan2(dy, dx) / torch.pi * _BINS  # unsigned: one turn of the angle is two turns of the bins
    centres = torch.arange(_BINS, device=images.device).view(1, -1, 1, 1)
    away = (angle - centres).remainder(_BINS)
    votes = (1 - torch.minimum(away, _BINS - away)).clamp_min(0) * strength
    histogram = functional.avg_pool2d(votes, _CELL)
    colour = functional.avg_pool2d(images - grey, _CELL)
    near = _blocks(histogram)
    wide = _blocks(functional.avg_pool2d(histogram, 3, 1, 1, count_include_pad=False), dilation=3)
    return torch.cat([near, wide, 2.0 * functional.normalize(colour, dim=1) * _saturation(colour)], dim=1)


def _blocks(histogram: Tensor, dilation: int = 1) -> Tensor:
    """Each cell with its eight neighbours, normalised to unit length, clipped at 0.2 and normalised again."""
    batch, _, height, width = histogram.shape
    padded = functional.pad(histogram, (dilation,) * 4, mode="replicate")
    block = functional.unfold(padded, 3, dilation=dilation).reshape(batch, -1, height, width)
    block = functional.normalize(block, dim=1, eps=1e-2).clamp_max(0.2)
    described: Tensor = functional.normalize(block, dim=1, eps=1e-2)
    return described


def _saturation(colour: Tensor) -> Tensor:
    strength: Tensor = torch.linalg.vector_norm(colour, dim=1, keepdim=True)
    return (strength * 4).clamp_max(1.0)


def hypercolumns(
    name: ResNetName,
    *,
    weights: str | Path,
    layers: Sequence[int] = (2, 3),
    size: int | tuple[int, int] = 256,
    votes: bool = False,
    device: str | torch.device = "cpu",
) -> FeatureMatcher:
    """Hypercolumns of an ImageNet ResNet, nearest neighbour; `weights` is a file in torchvision's form.

    The layers' maps, each normalised, on the grid of the deepest one: Hariharan et al., arXiv 1411.5752; their equal
    weighting is our choice.

    Args:
        weights: a file with torchvision's key names (`.pth`, `.safetensors`, `.npz`), or "imagenet" to download it.
        layers: which layers, 1 … 4; the deepest sets the stride.
        size: images are stretched to this side, or (height, width), pixels.
        votes: let the surrounding matches vote for where a point went; see `FeatureMatcher.with_votes`.
        device: where it runs.
    """
    given = tuple(layers) if isinstance(layers, Iterable) and not isinstance(layers, str) else (layers,)
    if not given or any(layer not in list(STRIDES) for layer in given):
        raise InputError(must_be("layers", "some of 1, 2, 3, 4", repr(layers), "for instance layers=2,3 in the shell"))
    chosen = tuple(map(int, given))
    if weights is None:
        raise InputError(must_be("weights", "a path, or 'imagenet'", None))
    network = resnet(name, weights)
    network.require(chosen)
    encode = _Hypercolumns(network.to(device), chosen)
    matcher = from_features(encode, STRIDES[max(chosen)], size=size, offset=0.0, name=name, device=device)
    return matcher.with_votes() if votes else matcher


def _builder(name: ResNetName) -> partial[FeatureMatcher]:
    """`hypercolumns` of one network, as an entry point: with its signature and its docstring."""
    builder = partial(hypercolumns, name)
    builder.__doc__ = str(hypercolumns.__doc__).replace("ImageNet ResNet", f"ImageNet ResNet-{name[6:]}")
    return builder


resnet18 = _builder("resnet18")
resnet50 = _builder("resnet50")
resnet101 = _builder("resnet101")


class _Hypercolumns:
    """(B, 3, H, W) → the layers' maps, each normalised, concatenated at the coarsest layer's cells."""

    def __init__(self, network: ResNet, layers: tuple[int, ...]) -> None:
        self.network, self.layers = network, layers

    def __call__(self, images: Tensor) -> Tensor:
        maps = self.network(images, self.layers)
        coarsest = maps[max(self.layers)]
        return torch.cat([_shrunk(functional.normalize(maps[k], dim=1), coarsest) for k in self.layers], dim=1)


def _shrunk(maps: Tensor, coarsest: Tensor) -> Tensor:
    """A finer map at the coarsest map's cells, centred alike: a binomial filter, then every k-th cell."""
    while maps.shape[-1] > coarsest.shape[-1] or maps.shape[-2] > coarsest.shape[-2]:
        channels = maps.shape[1]
        kernel = maps.new_tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16
        padded = functional.pad(maps, (1, 1, 1, 1), mode="replicate")
        maps = functional.conv2d(padded, kernel.expand(channels, 1, 3, 3), stride=2, groups=channels)
    return maps
