"""What every module that works on tensors shares: devices, normalisation, grids of cells, sampling, peaks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kbc.errors import InputError, must_be
from kbc.images import Image, require_cv2

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def real(values: Tensor) -> Tensor:
    """The numbers of a tensor, detached, to compute with: bfloat16 and half precision become float32.

    Raises:
        TypeError: they are complex or fp8, or there are none (the meta device); the message says so.
    """
    import torch

    if values.is_meta:
        raise TypeError("a tensor on the meta device, which holds no numbers")
    if values.is_complex():
        raise TypeError(f"complex numbers ({values.dtype}); take .real or .abs()")
    if values.layout != torch.strided or values.is_quantized:
        raise TypeError("a sparse or quantised tensor; make it dense with .to_dense() or .dequantize()")
    if values.is_floating_point() and values.element_size() < 2:
        raise TypeError(f"fp8 numbers ({values.dtype}), too coarse for coordinates and features; use bfloat16 or wider")
    values = values.detach()
    return values.float() if values.is_floating_point() and values.element_size() < 4 else values


def to_array(values: object) -> npt.NDArray[np.float64]:
    """Real numbers as an array: of an array, a tensor on any device, or lists of either; masked values are NaN.

    Raises:
        TypeError, ValueError: what they are instead.
    """
    if isinstance(values, np.ma.MaskedArray):
        values = np.where(np.ma.getmaskarray(values), np.nan, values.data)
    array: npt.NDArray[Any] = np.asarray(_plain(values))
    if np.iscomplexobj(array):
        raise TypeError(f"complex numbers ({array.dtype})")
    if array.dtype.kind in "bmM":
        raise TypeError(f"no coordinates or scores ({array.dtype})")
    with np.errstate(all="ignore"):  # what float64 cannot hold is infinite
        return array.astype(np.float64, copy=False)


def to_tensor(values: object) -> Tensor:
    """Real numbers as float32, on the device where they are; otherwise as `to_array`."""
    import torch

    if isinstance(values, torch.Tensor):
        return real(values).float()
    return torch.from_numpy(np.array(to_array(values), order="C")).float()


def _plain(values: object) -> Any:
    if isinstance(values, (list, tuple)):
        return [_plain(value) for value in values]
    return real(values).cpu().numpy() if hasattr(values, "detach") else values  # type: ignore[arg-type]


@contextmanager
def exact(device: str | torch.device) -> Iterator[None]:
    """Torch as kbc's own arithmetic needs it: without gradients, and without the autocast of whoever calls."""
    import torch

    with torch.inference_mode(), torch.autocast(torch.device(device).type, enabled=False):
        yield


def imagenet_normalised(images: Tensor) -> Tensor:
    """(…, 3, H, W) RGB in [0, 1] → by ImageNet's mean and deviation."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / std


def network_input(images: Sequence[Image], normalise: bool, device: str | torch.device) -> Tensor:
    """RGB uint8 (H, W, 3) → float32 (B, 3, H, W) on a device, in [0, 1] or by ImageNet's mean and deviation.

    A plane at a time through a table of the 256 levels: the same numbers as arithmetic gives, several times sooner.
    """
    import torch

    levels = torch.arange(256, dtype=torch.float32, device="cpu").expand(3, 1, -1) / 255
    tables = (imagenet_normalised(levels) if normalise else levels)[:, 0].numpy()
    cv2 = require_cv2()
    batch = np.empty((len(images), 3, *images[0].shape[:2]), np.float32)
    for image, planes in zip(images, batch, strict=True):
        for channel, table, plane in zip(cv2.split(image), tables, planes, strict=True):
            cv2.LUT(channel, table, dst=plane)
    return torch.from_numpy(batch).to(device)


def unit_length(values: Tensor) -> Tensor:
    """Feature maps (C, …) at length 1 along C, or 0 where they are 0; on a CPU several times faster than normalize."""
    return values * values.square().sum(0).clamp_min_(1e-24).rsqrt_()


def floating_type(network: object) -> torch.dtype:
    """What numbers a network takes: its own, where it is a module (or a method of one) of one floating type."""
    import torch

    module = getattr(network, "__self__", network)
    numbers = module.parameters() if isinstance(module, torch.nn.Module) else ()
    found = {one.dtype for one in numbers if one.is_floating_point()}
    return found.pop() if len(found) == 1 and min(one.itemsize for one in found) > 1 else torch.float32  # no fp8


def warn_if_training(network: object, argument: str) -> None:
    """Warn of a network (or a method of one) whose dropout or batch statistics are those of training."""
    module = getattr(network, "__self__", network)
    parts = module.modules() if hasattr(module, "modules") and getattr(module, "training", False) else ()
    unsteady = {type(part).__name__ for part in parts if part.training}
    found = sorted(name for name in unsteady if "Drop" in name or "BatchNorm" in name)
    if found:
        text = f"`{argument}` is in training mode: {', '.join(found)} make its answers vary; call .eval() on it"
        warnings.warn(text, UserWarning, stacklevel=3)


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the cells of a feature map lie in the network's input.

    Attributes:
        stride: input pixels per cell.
        offset: input pixel of the first cell's centre: (stride − 1)/2 for patches, 0 for networks of symmetrically
            padded strided convolutions such as ResNet.
    """

    stride: float
    offset: float

    def to_cells(self, points: Tensor) -> Tensor:
        """Input pixels (…, 2) in fractional cells."""
        return (points - self.offset) / self.stride

    def to_pixels(self, cells: Tensor) -> Tensor:
        """Fractional cells (…, 2) in input pixels."""
        return cells * self.stride + self.offset

    @property
    def patches(self) -> bool:
        """Whether the cells are patches, side by side from the edge on."""
        return abs(self.offset - (self.stride - 1) / 2) < 1e-6

    def covers(self, side: int, cells: int) -> bool:
        """Whether this many cells are what the grid gives of an input side of this many pixels.

        Patches: as many as fit. Others: the cells lie about as far from one edge as from the other.
        """
        if self.patches:
            return cells == int(side / self.stride + 1e-6)
        return cells > 0 and abs(self.offset - (side - 1 - (cells - 1) * self.stride) / 2) <= self.stride / 2


def usable_device(device: str | torch.device) -> torch.device:
    """A device that torch has here, tried out.

    Raises:
        InputError: an unknown name, or a device that this machine or this build of torch lacks.
    """
    import torch

    try:
        found = torch.device(device)
        torch.zeros(1, device=found).cpu()  # which "meta" refuses
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(must_be("device", "one that torch can use here", f"{device!r} ({reason})")) from error
    return found


def sample(features: Tensor, cells: Tensor, mode: str = "bilinear") -> Tensor:
    """Values of a map (C, h, w) between its cells, at fractional cells (N, 2) x then y → (C, N); edges are repeated."""
    import torch

    height, width = features.shape[-2:]
    size = torch.tensor([width, height], dtype=cells.dtype, device=cells.device)
    grid = ((cells + 0.5) * 2 / size - 1).nan_to_num(0.0)[None, None]
    values = torch.nn.functional.grid_sample(
        features[None], grid.to(features.dtype), mode=mode, padding_mode="border", align_corners=False
    )
    return values[0, :, 0]


def soft_peak(values: Tensor, reach: int = 1, temperature: float = 0.05) -> tuple[Tensor, Tensor]:
    """Sub-cell peak of similarity maps: the highest cell, then a soft-argmax over its neighbours.

    Args:
        values: (N, h, w) similarities; NaN rows are undefined.
        reach: neighbours on each side that take part.
        temperature: of the softmax over the neighbourhood.

    Returns:
        cells (N, 2), x then y, fractional; and the score (N,) at the highest cell. NaN for undefined rows.
    """
    import torch

    count, height, width = values.shape
    if count == 0:
        return values.new_zeros((0, 2)), values.new_zeros(0)
    flat = values.reshape(count, -1)
    score, best = flat.max(dim=1)  # NaN where there is one
    undefined = score.isnan()
    y, x = best // width, best % width
    steps = torch.arange(-reach, reach + 1, device=values.device)
    dy, dx = torch.meshgrid(steps, steps, indexing="ij")
    ys, xs = y[:, None] + dy.reshape(-1), x[:, None] + dx.reshape(-1)
    valid = (ys >= 0) & (ys < height) & (xs >= 0) & (xs < width)
    near = flat.gather(1, ys.clamp(0, height - 1) * width + xs.clamp(0, width - 1))
    weight = torch.softmax(torch.where(valid, near / temperature, -torch.inf).nan_to_num(nan=0.0), dim=1)
    cells = torch.stack([(weight * xs).sum(1), (weight * ys).sum(1)], dim=1)
    return cells.masked_fill(undefined[:, None], torch.nan), score.masked_fill(undefined, torch.nan)


def peaks(values: Tensor, most: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The highest local peaks of maps (N, h, w), to less than a cell. Found on their device.

    Returns:
        cells (N, most, 2), x then y, NaN where a map has fewer; and how many of the map's deviations each peak lies
        below the map's highest, (N, most), −inf where there is none.
    """
    import torch

    if len(values) == 0:
        return np.empty((0, most, 2)), np.empty((0, most))
    flat = torch.where(values >= _highest_near(values), values, -torch.inf).flatten(1)
    top, best = flat.topk(min(most, flat.shape[1]), dim=1)
    width = values.shape[2]
    y, x = best // width, best % width
    around = values.flatten(1) - values.flatten(1).mean(1, keepdim=True)
    deviation = around.square_().mean(1).sqrt_().mean().clamp_min(1e-9)  # what .std() gives, which takes far longer
    cells = torch.stack([_refined(values, y, x, 1), _refined(values, y, x, 0)], dim=-1).double()
    none = torch.isinf(top)
    cells = cells.masked_fill(none[..., None], torch.nan)
    below = ((top - top[:, :1]) / deviation).double().masked_fill(none, -torch.inf)
    short = most - top.shape[1]
    if short:
        cells = torch.nn.functional.pad(cells, (0, 0, 0, short), value=torch.nan)
        below = torch.nn.functional.pad(below, (0, short), value=-torch.inf)
    return cells.cpu().numpy(), below.cpu().numpy()


def _highest_near(values: Tensor) -> Tensor:
    """The highest of each cell and its eight neighbours (…, h, w); on a CPU far faster than max pooling."""
    import torch

    for axis in (-1, -2):
        found = values.clone()
        length = values.shape[axis] - 1
        for here, there in ((1, 0), (0, 1)):
            part = found.narrow(axis, here, length)
            torch.maximum(part, values.narrow(axis, there, length), out=part)
        values = found
    return values


def _refined(values: Tensor, y: Tensor, x: Tensor, axis: int) -> Tensor:
    """The place of peaks (N, M) along one axis (0: y, 1: x): the vertex of a parabola through three cells."""
    import torch

    rows = torch.arange(values.shape[0], device=values.device)[:, None]
    at = x if axis else y
    last = values.shape[-1 if axis else -2] - 1
    low, high = (at - 1).clamp_min(0), (at + 1).clamp_max(last)
    before = values[rows, y, low] if axis else values[rows, low, x]
    after = values[rows, y, high] if axis else values[rows, high, x]
    curve = before + after - 2 * values[rows, y, x]
    step = torch.where(curve < 0, 0.5 * (before - after) / curve.clamp_max(-1e-12), torch.zeros_like(curve))
    return at + step.clamp(-0.5, 0.5)
