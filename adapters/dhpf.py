"""DHPF: dynamic hyperpixel flow, run from the user's checkout of juhongm999/dhpf."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kbc.errors import InputError, must_be
from kbc.tensors import usable_device
from kbc.types import Pair

from .sandbox import Checkout, Upstream
from .upstream import UpstreamMatcher, check_imagenet, check_side, check_state, read_checkpoint, travels

MAX_POINTS = 400
"""Upstream pads its answers to this many points and fails on more."""


class DHPF(UpstreamMatcher):
    """Built by `load`."""

    name = "dhpf"
    upstream = Upstream(
        repository="juhongm999/dhpf",
        entry="model/dhpf.py",
        licence="Apache-2.0",
        citation="Min, Lee, Ponce, Cho: Learning to Compose Hypercolumns, ECCV 2020, arXiv 2007.10587",
        direction="source → target",
        frame="240 × 240, stretched",
    )
    max_batch = 1  # upstream's gating fails on more
    node_step = 4.0

    def __init__(
        self, checkout: Checkout, backbone: str, state: dict[str, Tensor], img_side: int, device: torch.device
    ) -> None:
        super().__init__(checkout, device)
        self.input_size = img_side
        build = checkout.get("model.dhpf", "DynamicHPF")
        self._geometry = checkout.get("model.base.geometry", "Geometry")
        with checkout.building(device):
            self._network = build(backbone, device, img_side)
            check_state(self._network.state_dict(), state, f"dhpf's learner for {backbone}", "try another `backbone`")
            self._network.load_state_dict(state)
            self._network.eval()

    def _correlate(self, pairs: Sequence[Pair]) -> list[Tensor]:
        correlation, _ = self._network(*self._images(pairs))
        return [correlation]

    def _transfer(self, found: Tensor, points: Tensor) -> Tensor:
        parts = []
        for chunk in torch.split(points, MAX_POINTS, dim=1):
            moved = self._geometry.transfer_kps(found, chunk[None], torch.tensor([chunk.shape[1]]))
            parts.append(moved[0, :, : chunk.shape[1]])
        return torch.cat(parts, dim=1)

    def _rows(self, found: Tensor, points: Tensor) -> Tensor:
        side = self._size_hw[0] // 4
        rows = []
        for chunk in torch.split(points, MAX_POINTS, dim=1):
            near, count = self._geometry.neighbours(self._geometry.rfs, chunk)
            rows.append(near.to(found.dtype) / count[:, None] @ found[0])
        return torch.cat(rows).reshape(-1, side, side)


@travels
def load(
    *,
    checkout: str | Path,
    checkpoint: str | Path,
    backbone_weights: str | Path,
    backbone: Literal["resnet50", "resnet101"] = "resnet101",
    img_side: int = 240,
    device: str | torch.device = "cpu",
) -> DHPF:
    """DHPF from a checkout, its checkpoint (which holds the learner only) and ImageNet weights for the backbone.

    Args:
        checkout: a clone of github.com/juhongm999/dhpf (Apache-2.0).
        checkpoint: a file of its README: the learner, without the backbone.
        backbone_weights: torchvision's ImageNet file of the backbone (resnet101-….pth), which upstream would download.
        backbone: the one the checkpoint was trained with.
        img_side: what images are stretched to, pixels; a multiple of 4.
        device: where it runs.

    Raises:
        InputError: a wrong checkout, checkpoint, weight file or option.
        DataError: a file that cannot be read without unpickling.
    """
    if backbone not in ("resnet50", "resnet101"):
        raise InputError(must_be("backbone", "'resnet50' or 'resnet101'", repr(backbone)))
    check_side("img_side", img_side, 4)
    weights = read_checkpoint(backbone_weights, "backbone_weights")
    check_imagenet(weights, 6 if backbone == "resnet50" else 23, "backbone_weights")
    # upstream doubles every tensor with torch.cat, which scalars refuse
    weights = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    code = Checkout(checkout, DHPF.upstream, weights=weights)
    return DHPF(code, backbone, read_checkpoint(checkpoint), img_side, usable_device(device))
