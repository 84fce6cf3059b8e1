"""SCOT: semantic correspondence as optimal transport, run from the user's checkout of csyanbin/SCOT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kbc.errors import InputError, must_be
from kbc.images import Image
from kbc.tensors import usable_device
from kbc.types import Pair

from .sandbox import Checkout, Upstream
from .upstream import (
    UpstreamMatcher,
    check_imagenet,
    looks_like,
    normalised,
    packages,
    read_checkpoint,
    require_finite,
    travels,
    whole_numbers,
)

LAYERS: dict[tuple[str, str], tuple[int, ...]] = {
    ("pf", "resnet101"): (2, 22, 24, 25, 27, 28, 29),
    ("pf", "fcn101"): (2, 4, 5, 18, 19, 20, 24, 32),
    ("spair", "resnet50"): (0, 11, 12, 13),
    ("spair", "resnet101"): (0, 19, 27, 28, 29, 30),
}
"""(preset, backbone) → hyperpixel layers, from upstream's cmd.txt."""

EXPONENTS = {"pf": 0.5, "spair": 1.0}
"""Exponent of the transport plan, from upstream's cmd.txt."""

DEPTHS = {"resnet50": 16, "resnet101": 33, "fcn101": 33}
"""Number of the last layer."""


@dataclass(frozen=True, slots=True)
class Plan:
    """SCOT's settings: the backbone, its layers, the exponent, whether the cells are weighed by CAM."""

    backbone: str
    layers: tuple[int, ...]
    exponent: float
    cam: bool


@dataclass(frozen=True, slots=True)
class Found:
    """What upstream's forward pass gives: confidence (n_source, n_target) and the cells' boxes (n, 4), frame pixels."""

    confidence: Tensor
    source_boxes: Tensor
    target_boxes: Tensor


class SCOT(UpstreamMatcher):
    """Built by `load`."""

    name = "scot"
    upstream = Upstream(
        repository="csyanbin/SCOT",
        entry="model/scot_CAM.py",
        licence="none",
        citation="Liu, Zhu, Yamada, Yang: Semantic Correspondence as an Optimal Transport Problem, CVPR 2020",
        direction="source → target",
        frame="longest side 300, aspect kept",
    )

    def __init__(self, checkout: Checkout, plan: Plan, side: int, device: torch.device) -> None:
        super().__init__(checkout, device)
        self.input_size = side
        self._plan = plan
        build = checkout.get("model.scot_CAM", "SCOT_CAM")
        self._predict = checkout.get("model.geometry", "predict_kps")
        self._neighbours = checkout.get("model.geometry", "neighbours")
        self._resize = checkout.get("model.util", "resize")
        transport = checkout.module("model.rhm_map")
        guard(transport, checkout.get("model.rhm_map", "rhm"))
        with checkout.building(device):
            self._network = build(plan.backbone, str(plan.layers), "pfpascal", device, "")
        # upstream multiplies them with tensors on the CPU, whatever the device
        self._network.jsz, self._network.rfsz = self._network.jsz.cpu(), self._network.rfsz.cpu()
        self.node_step = float(self._network.jsz[plan.layers[0]])

    def _correlate(self, pairs: Sequence[Pair]) -> list[Found]:
        source, target = (self._image(image) for image in (pairs[0].source, pairs[0].target))
        plan = self._plan
        options = ("OTGeo", 1.0, plan.exponent, 0.05, int(plan.cam), None, None, None, None, plan.backbone)
        confidence, source_boxes, target_boxes = self._network(source, target, *options)
        return [Found(confidence, source_boxes, target_boxes)]

    def _transfer(self, found: Found, points: Tensor) -> Tensor:
        moved: Tensor = self._predict(found.source_boxes, found.target_boxes, points, found.confidence)
        return moved

    def _rows(self, found: Found, points: Tensor) -> Tensor:
        near, count = self._neighbours(found.source_boxes, points)
        rows: Tensor = near.to(found.confidence.dtype) / count[:, None] @ found.confidence
        width = int((found.target_boxes[:, 1] == found.target_boxes[0, 1]).sum())  # cells of the first row
        return rows.reshape(len(rows), -1, width)

    def _scale(self, image: Image) -> tuple[float, float]:
        ratio = np.float32(self._size_hw[0]) / np.float32(max(image.shape[:2]))  # float32, as upstream's ratio is
        return (float(ratio), float(ratio))

    def _image(self, image: Image) -> Tensor:
        # upstream scales the keypoints it is given in place: hand it some that nobody needs
        unused = torch.zeros(2, 1)
        resized: Tensor = self._resize(normalised(image, self.device)[None], unused, self._size_hw[0])[0]
        return resized


def guard(module: Any, run: Callable[..., Tensor]) -> None:
    """Make `rhm` refuse features with which upstream's Sinkhorn loop would double its ε for ever.

    That loop ends when no value is NaN. NaN or infinite features and cells of zero length give NaN at every ε.
    """

    def checked(source: Sequence[Tensor], target: Sequence[Tensor], *options: Any) -> Tensor:
        for features in (source[1], target[1]):
            lengths = features.norm(dim=1)
            require_finite("SCOT's features", torch.where(lengths > 0, lengths, torch.nan))
        return run(source, target, *options)

    module.rhm = checked


@travels
def load(
    *,
    checkout: str | Path,
    checkpoint: str | Path,
    backbone: Literal["resnet50", "resnet101", "fcn101"] = "resnet101",
    preset: Literal["pf", "spair"] = "spair",
    layers: Sequence[int] | None = None,
    cam: bool = True,
    side: int = 300,
    device: str | torch.device = "cpu",
) -> SCOT:
    """SCOT, which needs no training of its own.

    Args:
        checkout: a clone of github.com/csyanbin/SCOT (no licence stated).
        checkpoint: the backbone's weights, which upstream would download: torchvision's ImageNet file
            (resnet101-….pth), `fc` included, or gluoncv-torch's FCN for "fcn101".
        backbone: which one.
        preset: layers and exponent of upstream's commands for PF-PASCAL and PF-WILLOW, or for SPair-71k.
        layers: other hyperpixel layers than the preset's; the first sets the grid and must be at most 9.
        cam: weigh the cells by a class activation map; doubles the time.
        side: longest side of the resized images, pixels. With `cam` at most 400: above it upstream uses a variable
            that it never sets.
        device: where it runs.

    Raises:
        InputError: a wrong checkout, checkpoint or option.
        DataError: a checkpoint that cannot be read without unpickling.
        MissingDependencyError: an FCN backbone without gluoncv-torch.
    """
    plan = _plan(backbone, preset, layers, cam)
    limit = 400 if cam and backbone != "fcn101" else 1000
    if not isinstance(side, Integral) or not 64 <= side <= limit:
        raise InputError(must_be("side", f"a whole number between 64 and {limit}", repr(side), "cam=False allows more"))
    weights = read_checkpoint(checkpoint)
    fcn = backbone == "fcn101"
    if fcn:
        if "head.conv5.0.weight" not in weights:
            guess = looks_like(weights) or "something else"
            raise InputError(must_be("checkpoint", "gluoncv-torch's FCN-ResNet-101 for VOC", f"one of {guess}"))
    else:
        check_imagenet(weights, 6 if backbone == "resnet50" else 23, "checkpoint")
    code = Checkout(checkout, SCOT.upstream, weights=weights, **packages(fcn))
    if fcn:
        code.pretrained("gluoncvth.models", "get_fcn_resnet101_voc")
    return SCOT(code, plan, side, usable_device(device))


def _plan(backbone: str, preset: str, layers: Sequence[int] | None, cam: bool) -> Plan:
    if preset not in EXPONENTS or backbone not in DEPTHS or (layers is None and (preset, backbone) not in LAYERS):
        known = " or ".join(f"{a!r} with {b!r}" for a, b in LAYERS)
        received = f"{preset!r} with {backbone!r}"
        raise InputError(must_be("preset", f"one that upstream gives: {known}", received, "or give `layers`"))
    chosen = LAYERS[preset, backbone] if layers is None else whole_numbers("layers", layers)
    last = DEPTHS[backbone]
    if not chosen or sorted(set(chosen)) != list(chosen) or not (0 <= chosen[0] <= 9 and chosen[-1] <= last):
        raise InputError(must_be("layers", f"rising numbers of 0 … {last}, the first at most 9", list(chosen)))
    return Plan(backbone, chosen, EXPONENTS[preset], cam)
