"""KBCNet as a matcher: images and keypoints in, keypoints and confidences out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from kbc.errors import InputError, must_be
from kbc.files import as_path
from kbc.geometry import Points, as_size, defined
from kbc.images import Image
from kbc.kbcnet.checkpoint import load_checkpoint
from kbc.kbcnet.model import Described, Network
from kbc.matchers.features import FeatureMatcher
from kbc.tensors import exact, sample, soft_peak
from kbc.types import Pair

BUNDLED = Path(__file__).parent / "weights"
MAX_CORRELATION = 4 * 2**30
"""Bytes that comparing one pair may take; a larger input is refused before it fills the memory."""

_BATCH_BYTES = {"cpu": 64 * 2**20, "cuda": 256 * 2**20}
"""Of a batch of pairs together. On a CPU batches of 16 took 1.5 to 2.2 times as long a pair as batches of 4."""


@dataclass(frozen=True, eq=False)
class Flow:
    """Where every cell of the source goes.

    Attributes:
        source: (h, w, 2) centres of the source's cells, x then y, pixels of the source.
        target: (h, w, 2) where they are in the target, pixels of the target.
        confidence: (h, w) in [0, 1].
    """

    source: npt.NDArray[np.float64]
    target: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]

    def at(self, points: Points) -> Points:
        """Bilinear answer (N, 2), pixels of the target, for any source points (N, 2); outer cells are extended."""
        (x0, y0), (x1, y1) = self.source[0, 0], self.source[-1, -1]
        height, width = self.confidence.shape
        span = np.array([(x1 - x0) / max(width - 1, 1) or 1.0, (y1 - y0) / max(height - 1, 1) or 1.0])
        cells = torch.from_numpy((np.asarray(points, dtype=np.float64) - (x0, y0)) / span)
        maps = torch.from_numpy(self.target).permute(2, 0, 1)
        found: Points = sample(maps, cells).T.numpy()
        return np.where(defined(points)[:, None], found, np.nan)


class KBCNet(FeatureMatcher):
    """The reference model as a `SimilarityMatcher`; features are kept per image.

    Args:
        network: with its weights.
        size: what images are stretched to, (height, width) or the side of a square; the checkpoint's own by default.
        device: where the network runs.
        amp: bfloat16 autocast for the features (the correlation stays in float32).
        compile: run the feature part through torch.compile.
        name: for messages and reports.
        cache_bytes: bound on cached features; least recently used images are dropped first.

    Raises:
        InputError: a size that is none, below one coarsest cell, or whose correlation would not fit.
    """

    def __init__(
        self,
        network: Network,
        *,
        size: int | tuple[int, int] | None = None,
        device: str | torch.device = "cpu",
        amp: bool = False,
        compile: bool = False,
        name: str = "kbcnet",
        cache_bytes: int = 512 * 2**20,
    ) -> None:
        size_hw = as_size(network.config.input_size if size is None else size)
        smallest = int(network.backbone.grid(2).stride)
        if min(size_hw) < smallest:
            raise InputError(must_be("size", f"at least {smallest} px, one cell of the coarsest layer", size_hw))
        self._pair_bytes = correlation_bytes(network, size_hw)
        if self._pair_bytes > MAX_CORRELATION:
            received = f"{size_hw}, for which it takes {self._pair_bytes / 2**30:.1f} GiB"
            expected = f"small enough for a correlation of {MAX_CORRELATION / 2**30:.0f} GiB"
            raise InputError(must_be("size", expected, received, "KBC gives small objects their pixels instead"))
        self.network = network.to(device).eval()
        self._compile = compile
        self._describe: Any = torch.compile(network.describe) if compile else network.describe
        self._amp = amp
        super().__init__(
            self._encode, network.grid, size_hw, name=name, device=torch.device(device), cache_bytes=cache_bytes
        )
        self.max_batch = 32

    def __getstate__(self) -> dict[str, Any]:
        """What torch.compile made stays behind; it is made anew."""
        return {name: value for name, value in super().__getstate__().items() if name != "_describe"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._describe = torch.compile(self.network.describe) if self._compile else self.network.describe

    def with_votes(self) -> Self:
        """Itself: its decoder has them (`ModelConfig.votes`)."""
        return self

    def flow(self, pairs: Sequence[Pair]) -> list[Flow]:
        """The dense answer: every cell of the source, whatever the pairs' keypoints."""
        flows = []
        for pair in pairs:
            source, target = (self._described([image]) for image in (pair.source, pair.target))
            with exact(self._device):
                plain, channels = self.network.compare(source, target)
                refined = self.network.refine(plain, channels)[0]
                height, width = refined.shape[:2]
                cells, score = self._peaks(refined.flatten(0, 1))
            y, x = np.mgrid[:height, :width].astype(np.float64)
            centres = self.grid.to_pixels(torch.from_numpy(np.stack([x, y], axis=-1).reshape(-1, 2))).numpy()
            found = self.grid.to_pixels(cells).double().cpu().numpy()
            flows.append(
                Flow(
                    self._frame(pair.source).to_image(centres).reshape(height, width, 2),
                    self._frame(pair.target).to_image(found).reshape(height, width, 2),
                    score.double().cpu().numpy().reshape(height, width),
                )
            )
        return flows

    def _encode(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._amp):
            return torch.cat(self._describe(images), dim=1)

    def _described(self, images: Sequence[Image]) -> Described:
        """Features of several images, stacked; `features` made the parts together of unit length."""
        maps = torch.stack(self.features(images))
        return self.network.split(maps * self.network.parts**0.5)

    def _compared(self, pairs: Sequence[Pair]) -> list[Tensor]:
        """Per pair (N, h, w) refined similarity; NaN where the keypoint is undefined."""
        rows: list[Tensor] = []
        size = max(_BATCH_BYTES.get(torch.device(self._device).type, 0) // self._pair_bytes, 1)
        with exact(self._device):
            for start in range(0, len(pairs), size):
                part = pairs[start : start + size]
                cells = self._source_cells(part)
                source = self._described([pair.source for pair in part])
                target = self._described([pair.target for pair in part])
                found = self.network.query(source, target, cells)
                found = torch.where(cells.isnan().any(-1)[:, :, None, None], torch.nan, found)
                rows += [values[: len(pair.keypoints)] for values, pair in zip(found, part, strict=True)]
        return rows

    def _peaks(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The score is the share of the softmax that lies within `reach` cells of the peak, in [0, 1]."""
        return peaks(values, self.network.config.reach, float(self.network.temperature.detach()))

    def _source_cells(self, pairs: Sequence[Pair]) -> Tensor:
        """(B, K, 2), filled up with NaN."""
        cells = np.full((len(pairs), max(len(pair.keypoints) for pair in pairs), 2), np.nan, np.float32)
        for row, pair in zip(cells, pairs, strict=True):
            inside = self._frame(pair.source).to_window(pair.keypoints)
            row[: len(inside)] = self.grid.to_cells(torch.from_numpy(inside)).numpy()
        return torch.from_numpy(cells).to(self.network.log_temperature.device)


def peaks(rows: Tensor, reach: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Sub-cell peaks of (N, h, w): cells (N, 2), x then y, and the softmax's share within `reach` cells of the top."""
    cells, _ = soft_peak(rows, reach, temperature)
    if len(rows) == 0:
        return cells, rows.new_zeros(0)
    known = rows.nan_to_num(0.0)
    chance = (known.flatten(1) / temperature).softmax(1).view_as(rows)
    side = 2 * reach + 1
    mass = functional.avg_pool2d(chance[:, None], side, 1, reach, divisor_override=1)[:, 0]
    score = mass.flatten(1).gather(1, known.flatten(1).argmax(1, keepdim=True))[:, 0]
    return cells, torch.where(rows.flatten(1).isnan().any(1), torch.nan, score)


def correlation_bytes(network: Network, size_hw: tuple[int, int]) -> int:
    """Most memory that comparing one pair takes at once, without its features and what the network keeps, bytes."""
    stride = int(network.grid.stride)
    cells = -(-size_hw[0] // stride) * -(-size_hw[1] // stride)
    levels, config = network.parts, network.config
    peaks = 5  # of the dense answer: the scores, their softmax and what leads to it
    if network.decoder is None:
        return 4 * cells**2 * max(levels, peaks)
    read = network.decoder.inputs
    # Votes are counted by displacement, four times as many, of which three arrays are held, on a grid of their own.
    voting = 2 * levels + 1 + len(config.votes) + (3 * 4 + 2) / config.vote_pool**4 if config.votes else 0
    stacking = levels + 2 * read  # cosines, channels one by one, channels together
    layer = 1.1 * max(map(sum, pairwise([read, *config.decoder, 1])))  # what it reads, with a border, and gives
    return int(4 * cells**2 * max(voting, stacking, 1 + read + max(layer, peaks)))


def load(
    *,
    weights: str | Path = "tiny",
    backbone_weights: str | Path | None = None,
    size: int | tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
    amp: bool = False,
    compile: bool = False,
    cache_bytes: int = 512 * 2**20,
) -> KBCNet:
    """A KBCNet from a checkpoint: what `kbc.load_matcher("kbcnet", …)` calls.

    Args:
        weights: "tiny", the checkpoint that comes with kbc (trained from procedural scenes only), or the path of one
            that `kbc train kbcnet` wrote.
        backbone_weights: weights of the ResNet, for checkpoints that were trained on a frozen one.
        size: what images are stretched to, (height, width) or the side of a square; the checkpoint's own by default.
        device: where the network runs.
        amp: bfloat16 autocast for the features (the correlation stays in float32).
        compile: run the feature part through torch.compile.
        cache_bytes: bound on cached features; least recently used images are dropped first.

    Raises:
        InputError, DataError: no such checkpoint, damaged or incomplete, or backbone weights that do not fit.
    """
    bundled = BUNDLED / f"kbcnet-{weights}.safetensors"
    path = bundled if str(weights) == "tiny" else as_path(weights, "weights")
    network, _ = load_checkpoint(path, backbone_weights)
    stem = path.stem if path.suffix in (".safetensors", ".json") else path.name
    name = stem if stem.startswith("kbcnet") else f"kbcnet-{stem}"
    return KBCNet(network, size=size, device=device, amp=amp, compile=compile, name=name, cache_bytes=cache_bytes)
