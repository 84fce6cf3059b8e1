"""ResNet-18/50/101 feature extractors with torchvision's key names, so that its weight files load as they are.

Architecture: He et al., "Deep Residual Learning", arXiv 1512.03385, with the stride on the 3×3 convolution of the
bottleneck (the variant behind the weights in common use).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from kbc.errors import DataError, InputError, must_be
from kbc.weights import load_weights

ResNetName = Literal["resnet18", "resnet50", "resnet101"]

STRIDES = {1: 4, 2: 8, 3: 16, 4: 32}
"""Stride of each layer's output, input pixels per cell."""

_BLOCKS: dict[str, tuple[bool, tuple[int, int, int, int]]] = {
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet101": (True, (3, 4, 23, 3)),
}
_HUB = {
    "resnet18": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    "resnet50": "https://download.pytorch.org/models/resnet50-11ad3fa6.pth",
    "resnet101": "https://download.pytorch.org/models/resnet101-cd907fc2.pth",
}


class _Block(nn.Module):
    """Residual block: two 3×3 convolutions (basic) or 1×1, 3×3, 1×1 (bottleneck)."""

    def __init__(self, inside: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out = width * 4 if bottleneck else width
        if bottleneck:
            self.conv1 = nn.Conv2d(inside, width, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.conv3 = nn.Conv2d(width, out, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out)
        else:
            self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(width, out, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.bn2 = nn.BatchNorm2d(width if bottleneck else out)
        self.bottleneck = bottleneck
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inside != out:
            self.downsample = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H/stride, W/stride)."""
        skip = x if self.downsample is None else self.downsample(x)
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.bottleneck:
            y = self.bn3(self.conv3(torch.relu(y)))
        return torch.relu(y + skip)


class ResNet(nn.Module):
    """A ResNet without its classifier.

    Attributes:
        channels: channels of each layer's output, {1: …, 2: …, 3: …, 4: …}.
        available: the layers that have weights; all four for a fresh network, fewer for a truncated weight file.
    """

    def __init__(self, name: ResNetName = "resnet18") -> None:
        super().__init__()
        if name not in _BLOCKS:
            raise InputError(must_be("name", "one of " + ", ".join(_BLOCKS), repr(name)))
        bottleneck, blocks = _BLOCKS[name]
        self.name = name
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.channels: dict[int, int] = {}
        inside = 64
        for index, count in enumerate(blocks, start=1):
            width = 64 * 2 ** (index - 1)
            stages = []
            for position in range(count):
                stride = 2 if index > 1 and position == 0 else 1
                stages.append(_Block(inside, width, stride, bottleneck))
                inside = width * 4 if bottleneck else width
            setattr(self, f"layer{index}", nn.Sequential(*stages))
            self.channels[index] = inside
        self.available: tuple[int, ...] = (1, 2, 3, 4)

    def require(self, layers: Sequence[int]) -> None:
        """Refuse layers for which there are no weights.

        Raises:
            InputError: one of these.
        """
        if not set(layers) <= set(self.available):
            expected = f"among {self.available}, for which there are weights"
            raise InputError(must_be("layers", expected, tuple(layers)))

    def forward(self, images: Tensor, layers: Sequence[int] = (2, 3)) -> dict[int, Tensor]:
        """Feature maps of the asked layers.

        Args:
            images: (B, 3, H, W), RGB, ImageNet-normalised.
            layers: of 1 … 4.

        Returns:
            {layer: (B, channels[layer], H/stride, W/stride)}, sizes rounded up; strides 4, 8, 16, 32. Cell i of a map
            is centred on input pixel i · stride, because every strided convolution is padded symmetrically.
        """
        self.require(layers)
        x = torch.relu(self.bn1(self.conv1(images)))
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        found: dict[int, Tensor] = {}
        for index in range(1, max(layers) + 1):
            x = getattr(self, f"layer{index}")(x)
            if index in layers:
                found[index] = x
        return found


def resnet(name: ResNetName = "resnet18", weights: str | Path | None = None) -> ResNet:
    """A ResNet in eval mode, with weights from a file, from torch.hub's URL, or random.

    Args:
        name: "resnet18", "resnet50" or "resnet101".
        weights: path of a `.pth` (never unpickled), `.safetensors` or `.npz` with torchvision's key names; "imagenet"
            downloads torchvision's file through `torch.hub` (asked for by name only); None leaves random weights.
            A truncated file loads the layers it has: see `ResNet.available`.

    Raises:
        DataError: missing or broken file, weights of another network, or no way to download them.
    """
    with torch.device("cpu"):  # whatever the default device and dtype are
        network = ResNet(name).float().eval()
    if weights is None:
        return network
    state = _downloaded(_HUB[name]) if str(weights) == "imagenet" else load_weights(weights)
    load_resnet_state(network, state, str(weights))
    return network


def _downloaded(url: str) -> dict[str, Tensor]:
    """torchvision's file, from torch.hub's folder or the network, or a `DataError` that says how to do without."""
    try:
        state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
            url, progress=True, map_location="cpu", weights_only=True, check_hash=True
        )
    except (OSError, RuntimeError) as error:  # no network, no permission; half a file, or another one of that name
        folder, file = Path(torch.hub.get_dir()) / "checkpoints", url.rpartition("/")[2]
        hint = f"download {url} elsewhere and give weights=/path/to/{file}, or put it into {folder}"
        expected = "a file, or 'imagenet' where it can be downloaded"
        raise DataError(must_be("weights", expected, f"'imagenet' ({error})", hint)) from error
    return state


def load_resnet_state(network: ResNet, state: dict[str, Tensor], where: str) -> None:
    """Copy a torchvision-named state dict into a network and note which layers it had.

    Raises:
        DataError: keys or shapes of another network, or no complete layer.
    """
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    own = network.state_dict()
    strange = sorted(key for key in state if key not in own)
    wrong = sorted(key for key in state if key in own and state[key].shape != own[key].shape)
    if strange or wrong:
        example = (strange or wrong)[0]
        shape = tuple(state[example].shape)
        raise DataError(must_be("weights", f"those of a {network.name}", f"{where!r} with key {example!r} {shape}"))

    def complete(prefix: str) -> bool:
        wanted = [key for key in own if key.startswith(prefix) and not key.endswith("num_batches_tracked")]
        return all(key in state for key in wanted)

    available = []
    for layer in (1, 2, 3, 4):
        if not complete(f"layer{layer}."):
            break
        available.append(layer)
    if not (complete("conv1.") and complete("bn1.") and available):
        raise DataError(must_be("weights", f"a {network.name}'s, from conv1 to at least layer1", f"{where!r}"))
    network.load_state_dict(state, strict=False)
    network.available = tuple(available)
