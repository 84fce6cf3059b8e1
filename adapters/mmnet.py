"""MMNet: multi-scale matching networks, run from the user's checkout of wintersun661/MMNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional

from kbc.errors import InputError, must_be
from kbc.images import Image
from kbc.tensors import usable_device
from kbc.types import Pair

from .sandbox import Checkout, Upstream
from .upstream import UpstreamMatcher, check_state, looks_like, normalised, packages, read_checkpoint, travels

RESNETS = ("resnet50", "resnet101", "resnext101_32x8d")


class MMNet(UpstreamMatcher):
    """Built by `load`."""

    name = "mmnet"
    upstream = Upstream(
        repository="wintersun661/MMNet",
        entry="models/Model.py",
        licence="none",
        citation="Zhao, Song, Wang, Li, Wang, Wu: Multi-scale Matching Networks, ICCV 2021, arXiv 2108.00211",
        direction="source → target",
        frame="320 × 224 (width × height), stretched",
    )
    input_size = (224, 320)
    max_batch = 4

    def __init__(
        self, checkout: Checkout, backbone: str, state: dict[str, Tensor], level: int, device: torch.device
    ) -> None:
        super().__init__(checkout, device)
        self.level = level
        self._predict = checkout.get("utils.geometry", "predict_kps")
        self._interpolate = checkout.get("utils.geometry", "BilinearInterpolate")
        build = checkout.get("models.Model", "MMNet")
        checkout.untrained("models.resnet", *RESNETS)
        if backbone == "fcn-resnet101":
            checkout.untrained("gluoncvth.models", "get_fcn_resnet101_voc")
        options = SimpleNamespace(backbone_name=backbone, ms_rate=4, feature_channel=21)
        with checkout.building(device):
            self._network = build(options, device).to(device).eval()
            check_state(self._network.state_dict(), state, f"mmnet with {backbone}")
            self._network.load_state_dict(state)
        cells = 28 if backbone == "fcn-resnet101" and level < 3 else (7, 14, 28, 56)[level]
        self.node_step = 224 / cells

    def _correlate(self, pairs: Sequence[Pair]) -> list[Tensor]:
        source, target = self._images(pairs)
        levels = self._network({"src_img": source, "trg_img": target})
        return list(levels[self.level][0])

    def _transfer(self, found: Tensor, points: Tensor) -> Tensor:
        x, y = self._predict(points, found, originalShape=[320, 224])
        return torch.tensor([x, y], device=points.device)

    def _rows(self, found: Tensor, points: Tensor) -> Tensor:
        height, width = found.shape[:2]
        # upstream scales what it is given in place: a list of its own for each point
        rows = [self._interpolate([x, y], found, originalShape=[320, 224]) for x, y in points.T.tolist()]
        return torch.stack(rows).reshape(-1, height, width)

    def _image(self, image: Image) -> Tensor:
        """Normalised at its own size and then resized without a filter, as upstream does."""
        whole = normalised(image, self.device)[None]
        return functional.interpolate(whole, size=self._size_hw, mode="bilinear", align_corners=False)[0]


@travels
def load(*, checkout: str | Path, checkpoint: str | Path, level: int = 2, device: str | torch.device = "cpu") -> MMNet:
    """MMNet from a checkout and a checkpoint. The backbone is read off the checkpoint.

    Args:
        checkout: a clone of github.com/wintersun661/MMNet (no licence stated).
        checkpoint: a file of its README, backbone included. Its released ones are of fcn-resnet101 and need
            gluoncv-torch.
        level: the correlation that answers: 0 (32 px cells) … 3 (4 px); upstream evaluates 2 (8 px).
        device: where it runs.

    Raises:
        InputError: a wrong checkout, checkpoint or option.
        DataError: a checkpoint that cannot be read without unpickling.
        MissingDependencyError: an FCN backbone without gluoncv-torch.
    """
    if not isinstance(level, Integral) or level not in range(4):
        raise InputError(must_be("level", "0, 1, 2 or 3", repr(level)))
    state = read_checkpoint(checkpoint)
    backbone = _backbone(state)
    code = Checkout(checkout, MMNet.upstream, **packages(fcn=backbone == "fcn-resnet101"))
    return MMNet(code, backbone, state, level, usable_device(device))


def _backbone(state: Mapping[str, Tensor]) -> str:
    """Upstream's name of the backbone that a checkpoint holds."""
    if "msblock0.conv.weight" not in state:
        guess = looks_like(state)
        received = f"one of {guess}" if guess else "one without 'msblock0'"
        raise InputError(must_be("checkpoint", "a checkpoint of mmnet", received))
    if "backbone.conv1.0.weight" in state:
        return "fcn-resnet101"
    if "backbone.layer3.6.conv1.weight" not in state:
        return "resnet50"
    wide = state["backbone.layer1.0.conv1.weight"].shape[0] > 64
    return "resnext-101" if wide else "resnet101"
