"""CHM: convolutional Hough matching networks, run from the user's checkout of juhongm999/chm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kbc.errors import InputError, must_be
from kbc.tensors import usable_device
from kbc.types import Pair

from .sandbox import Checkout, Stub, Upstream
from .upstream import UpstreamMatcher, check_side, check_state, read_checkpoint, travels


class CHM(UpstreamMatcher):
    """Built by `load`."""

    name = "chm"
    upstream = Upstream(
        repository="juhongm999/chm",
        entry="model/chmnet.py",
        licence="none",
        citation="Min, Cho: Convolutional Hough Matching Networks, CVPR 2021, arXiv 2103.16831",
        direction="source → target",
        frame="240 × 240, stretched",
    )
    max_batch = 8

    def __init__(
        self, checkout: Checkout, state: dict[str, Tensor], ktype: str, img_size: int, device: torch.device
    ) -> None:
        super().__init__(checkout, device)
        self.input_size = img_size
        build = checkout.get("model.chmnet", "CHMNet")
        checkout.untrained("model.base.backbone", "resnet101")
        self._geometry = checkout.get("model.base.geometry", "Geometry")
        with checkout.building(device):
            self._network = build(ktype).to(device).eval()
            check_state(self._network.state_dict(), state, f"chm with ktype={ktype!r}", "try another ktype")
            self._network.load_state_dict(state)
            self._geometry.initialize(img_size)
        side = int(self._geometry.spatial_side)
        self.node_step = img_size / (side - 1)  # upstream's grid runs from edge to edge

    def _correlate(self, pairs: Sequence[Pair]) -> list[Tensor]:
        return list(self._network(*self._images(pairs)).split(1))

    def _transfer(self, found: Tensor, points: Tensor) -> Tensor:
        # upstream's normalize_kps takes 118 px (−2 after its first step) for padding, unnormalize_kps likewise
        half = self._size_hw[0] // 2
        count = torch.tensor([points.shape[1]])
        moved: Tensor = self._geometry.transfer_kps(found, (points[None] - half) / half, count, normalized=True)
        return moved[0] * half + half

    def _rows(self, found: Tensor, points: Tensor) -> Tensor:
        half, side = self._size_hw[0] // 2, int(self._geometry.spatial_side)
        attention: Tensor = self._geometry.attentive_indexing(((points - half) / half).T)
        return (attention.flatten(1) @ found[0]).reshape(-1, side, side)


@travels
def load(
    *,
    checkout: str | Path,
    checkpoint: str | Path,
    ktype: Literal["psi", "iso", "full"] = "psi",
    img_size: int = 240,
    device: str | torch.device = "cpu",
) -> CHM:
    """CHM from a checkout and a checkpoint.

    Args:
        checkout: a clone of github.com/juhongm999/chm (no licence stated).
        checkpoint: a file of its README, backbone included.
        ktype: the kernel the checkpoint was trained with.
        img_size: what images are stretched to, pixels; a multiple of 16 (others fail in upstream's transfer).
        device: where it runs.

    Raises:
        InputError: a wrong checkout, checkpoint or option.
        DataError: a checkpoint that cannot be read without unpickling.
    """
    if ktype not in ("psi", "iso", "full"):
        raise InputError(must_be("ktype", "'psi', 'iso' or 'full'", repr(ktype)))
    check_side("img_size", img_size, 16)
    code = Checkout(checkout, CHM.upstream, stubs={"tensorboardX": Stub("tensorboardX")})
    return CHM(code, read_checkpoint(checkpoint), ktype, img_size, usable_device(device))
