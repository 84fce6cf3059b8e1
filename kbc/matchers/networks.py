"""Flow networks and 4D-correlation networks as matchers, in one line each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from kbc.errors import InputError, MatcherError, must_be
from kbc.geometry import Window, as_size, defined
from kbc.images import Image
from kbc.matchers.protocol import short_repr
from kbc.matchers.running import NetworkRunner
from kbc.tensors import exact, network_input, sample, soft_peak, usable_device, warn_if_training
from kbc.types import Match, Pair

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Network = Callable[[Any, Any], Any]
Direction = Literal["source_to_target", "target_to_source"]


class _StretchedNetwork:
    """What both kinds share: images stretched to one size, a batched call, points converted once each way."""

    def __init__(
        self, network: Network, size_hw: tuple[int, int], name: str, normalise: bool, device: str | torch.device
    ) -> None:
        self.network = network
        self.input_size = size_hw
        self.name = name
        self.max_batch = 8
        self._normalise = normalise
        self._device = device
        self._runner = NetworkRunner(f"the network of matcher {name!r}", "…", device)

    __repr__ = short_repr

    def _run(self, pairs: Sequence[Pair]) -> Tensor:
        """What the network gives of a batch, (len(pairs), …) as a float tensor on the device."""
        import torch

        with torch.inference_mode():
            source, target = (
                network_input([self._cut(image) for image in images], self._normalise, self._device)
                for images in ([pair.source for pair in pairs], [pair.target for pair in pairs])
            )
            return self._runner.run(self.network, source, target)

    def _cut(self, image: Image) -> Image:
        return self._frame(image).cut(image)

    def _frame(self, image: Image) -> Window:
        return Window.whole((image.shape[0], image.shape[1]), self.input_size)

    def _cells(self, image: Image, points: npt.NDArray[np.float64], like: Tensor) -> Tensor:
        """Image points (N, 2) in fractional cells of a map (…, h, w) that covers the image."""
        import torch

        to_cells = Window.whole((image.shape[0], image.shape[1]), (like.shape[-2], like.shape[-1]))
        return torch.as_tensor(to_cells.to_window(points), dtype=like.dtype, device=like.device)


class FlowMatcher(_StretchedNetwork):
    """A dense flow network as a matcher; built by `from_flow`."""

    def __init__(self, network: Network, direction: Direction, in_cells: bool, arrays: bool, **options: Any) -> None:
        super().__init__(network, **options)
        self.direction = direction
        self._in_cells = in_cells
        self._arrays = arrays

    def match(self, pairs: Sequence[Pair]) -> list[Match]:
        """Follow the flow from each keypoint, or find the target cell whose flow arrives at it."""
        if self._arrays:
            outputs = [self.network(self._cut(pair.source), self._cut(pair.target)) for pair in pairs]
            flows = [self._channels_first(self._runner.numbers(one), "(2, h, w) or (h, w, 2)", 3) for one in outputs]
        else:
            flows = list(self._channels_first(self._run(pairs), "(B, 2, h, w) or (B, h, w, 2)", 4))
        with exact(self._device):
            return [self._follow(pair, flow) for pair, flow in zip(pairs, flows, strict=True)]

    def _channels_first(self, flow: Tensor, expected: str, dimensions: int) -> Tensor:
        """x and y as the third axis from the end, wherever they were; refused where that cannot be told."""
        shape = tuple(flow.shape)
        first, last = len(shape) == dimensions and shape[-3] == 2, len(shape) == dimensions and shape[-1] == 2
        if first == last:
            which = ", in which x and y could be the first or the last axis" if first else ""
            raise MatcherError(f"matcher {self.name!r} must give flow {expected}, received {shape}{which}")
        return flow if first else flow.movedim(-1, -3)

    def _follow(self, pair: Pair, flow: Tensor) -> Match:
        import torch

        grid_hw = (flow.shape[-2], flow.shape[-1])
        if not self._in_cells:  # pixels of the input → cells of the flow's grid
            ratio = [grid_hw[1] / self.input_size[1], grid_hw[0] / self.input_size[0]]
            flow = flow * flow.new_tensor(ratio)[:, None, None]
        cells = self._cells(pair.source, pair.keypoints, flow)
        forward = self.direction == "source_to_target"
        found = cells + sample(flow, cells).mT if forward else _inverted(flow, cells)
        undefined = torch.as_tensor(~defined(pair.keypoints), device=found.device)
        answers = found.masked_fill(undefined[:, None], torch.nan).double().cpu().numpy()
        target_hw = (pair.target.shape[0], pair.target.shape[1])
        return Match(Window.whole(target_hw, grid_hw).to_image(answers))


def _inverted(flow: Tensor, cells: Tensor) -> Tensor:
    """Target cells (N, 2) whose flow (2, h, w), in cells, arrives at the given source cells (N, 2).

    The cell that arrives nearest, then one Newton step along the flow's own slope there, of at most one cell: exact
    for affine flows, whatever the stride.
    """
    import torch

    height, width = flow.shape[-2:]
    x, y = torch.arange(width, device=flow.device), torch.arange(height, device=flow.device)
    arrives = torch.stack([flow[0] + x, flow[1] + y[:, None]])  # where each target cell comes from
    nearest = (cells[:, :, None, None] - arrives[None]).norm(dim=1).flatten(1).argmin(dim=1)
    found = torch.stack([nearest % width, nearest // width], dim=1).to(flow.dtype)
    if min(height, width) < 2:
        return found
    along_y, along_x = torch.gradient(arrives, dim=(1, 2))
    (a, c), (b, d) = along_x.flatten(1)[:, nearest], along_y.flatten(1)[:, nearest]
    missing_x, missing_y = (cells - arrives.flatten(1)[:, nearest].mT).unbind(dim=1)
    determinant = a * d - b * c
    step = torch.stack([d * missing_x - b * missing_y, a * missing_y - c * missing_x], dim=1) / determinant[:, None]
    folded = determinant.abs() < 1e-3  # the flow does not move with the cell: there is nothing to follow
    moved: Tensor = found + step.masked_fill(folded[:, None], 0.0).clamp(-1.0, 1.0)
    return moved


class CorrelationMatcher(_StretchedNetwork):
    """A 4D-correlation network as a matcher; built by `from_correlation`. Satisfies `SimilarityMatcher`."""

    def __init__(self, network: Network, source_grid: tuple[int, int] | None, **options: Any) -> None:
        super().__init__(network, **options)
        self._source_grid = source_grid
        self._kept: WeakKeyDictionary[Pair, Tensor] = WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """What was kept of the last pairs stays behind."""
        return {name: value for name, value in vars(self).items() if name != "_kept"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _kept=WeakKeyDictionary())

    def match(self, pairs: Sequence[Pair]) -> list[Match]:
        """The sub-cell peak of each keypoint's row of the correlation; the score is its value."""
        import torch

        matches = []
        for pair, values in zip(pairs, self._rows(pairs), strict=True):
            self._kept[pair] = values  # kbc asks for it next
            with exact(self._device):
                cells, score = soft_peak(values)
            grid_hw = (values.shape[-2], values.shape[-1])
            frame = Window.whole((pair.target.shape[0], pair.target.shape[1]), grid_hw)
            points = frame.to_image(cells.to(torch.float64).cpu().numpy())
            matches.append(Match(points, score.to(torch.float64).cpu().numpy()))
        return matches

    def similarity(self, pairs: Sequence[Pair]) -> list[Tensor]:
        """Per pair (N, h, w) over the whole target, on the device: the correlation at each keypoint.

        Free right after `match` of the same `Pair` objects.
        """
        kept = [self._kept.pop(pair, None) for pair in pairs]
        missing = [pair for pair, values in zip(pairs, kept, strict=True) if values is None]
        fresh = iter(self._rows(missing) if missing else [])
        return [next(fresh) if values is None else values for values in kept]

    def _rows(self, pairs: Sequence[Pair]) -> list[Tensor]:
        volume = self._run(pairs)
        given = tuple(volume.shape)
        if volume.ndim == 3:
            source = self._source_grid or self._grid(given[1])
            alike = given[1] == given[2]  # both images have one size
            target = source if alike else self._grid(given[2])
            volume = volume.reshape(len(pairs), *source, *target) if math.prod(source) == given[1] else volume
        if volume.ndim != 5 or (self._source_grid or volume.shape[1:3]) != volume.shape[1:3]:
            high, wide = self._source_grid or ("hs", "ws")
            expected = f"(B, {high}, {wide}, ht, wt) or (B, {high}·{wide}, ht·wt)"
            raise MatcherError(f"matcher {self.name!r} must give {expected}, received {given}")
        with exact(self._device):
            return [self._row(pair, values) for pair, values in zip(pairs, volume, strict=True)]

    def _grid(self, cells: int) -> tuple[int, int]:
        """(h, w) of so many cells in a row: in the shape of the input, or a square where the network makes one of it.

        Raises:
            MatcherError: they are neither, or could be both.
        """
        height, width = self.input_size
        found = {(side, side) for side in [math.isqrt(cells)] if side * side == cells}
        rows = max(round((cells * height / width) ** 0.5), 1)
        if cells % rows == 0 and abs(cells // rows - rows * width / height) < 1:
            found.add((rows, cells // rows))
        if len(found) != 1:
            be = f", which may be {' or '.join(f'{h}×{w}' for h, w in sorted(found))}" if found else ""
            expected = "(B, hs, ws, ht, wt), or cells in a row of a grid in the shape of `size` or a square one"
            raise MatcherError(f"matcher {self.name!r} must give {expected}, received {cells} cells in a row{be}")
        return found.pop()

    def _row(self, pair: Pair, values: Tensor) -> Tensor:
        """(N, ht, wt) of a correlation (hs, ws, ht, wt)."""
        import torch

        maps = values.permute(2, 3, 0, 1).reshape(-1, *values.shape[:2])
        cells = self._cells(pair.source, pair.keypoints, maps)
        found = sample(maps, cells).mT.reshape(-1, *values.shape[2:])
        known = torch.as_tensor(defined(pair.keypoints), device=found.device)
        return torch.where(known[:, None, None], found, torch.nan)


def from_flow(
    network: Network,
    *,
    direction: Direction = "source_to_target",
    size: int | tuple[int, int] = 256,
    frame: Literal["pixels", "cells"] = "pixels",
    name: str = "flow",
    image: Literal["batch", "array"] = "batch",
    normalise: bool = True,
    device: str | torch.device = "cpu",
) -> FlowMatcher:
    """Make a matcher out of a dense flow `f(source, target)`: a network, or a function on NumPy arrays.

    The flow is a tensor or a NumPy array, (B, 2, h, w) or (B, h, w, 2) for a batch, (2, h, w) or (h, w, 2) for two
    arrays: x, then y. OpenCV's flows take grey arrays:

        dis = cv2.DISOpticalFlow.create()
        grey = lambda image: cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        kbc.from_flow(lambda a, b: dis.calc(grey(a), grey(b), None), image="array")

    Args:
        network: the flow of two images.
        direction: "source_to_target" when the flow lies on the source's grid and points into the target;
            "target_to_source" when it lies on the target's grid and tells where each cell comes from.
        size: what images are stretched to, (height, width) or the side of a square.
        frame: what the flow is measured in: "pixels" of that size, or "cells" of its own grid.
        name: for messages and reports.
        image: what it takes: "batch" two tensors (B, 3, H, W), or "array" two uint8 RGB arrays (H, W, 3).
        normalise: tensors are ImageNet-normalised RGB (else [0, 1]).
        device: where the network runs.

    Raises:
        InputError: `network` cannot be called, an unknown direction, frame or image, a wrong size, or a device that is
            not there.

    >>> import numpy as np, kbc
    >>> right = np.zeros((64, 64, 2)) + (5, 0)
    >>> matcher = kbc.from_flow(lambda source, target: right, size=64, image="array")
    >>> blank = np.zeros((64, 64, 3), np.uint8)
    >>> matcher.match([kbc.Pair(blank, blank, [[10, 20]])])[0].keypoints.round(3)
    array([[15., 20.]])
    """
    _require_network(network)
    warn_if_training(network, "network")
    if direction not in ("source_to_target", "target_to_source"):
        raise InputError(must_be("direction", "'source_to_target' or 'target_to_source'", repr(direction)))
    if frame not in ("pixels", "cells"):
        raise InputError(must_be("frame", "'pixels' or 'cells'", repr(frame)))
    if image not in ("batch", "array"):
        raise InputError(must_be("image", "'batch' or 'array'", repr(image)))
    options = {"size_hw": as_size(size), "name": name, "normalise": normalise, "device": usable_device(device)}
    return FlowMatcher(network, direction, frame == "cells", image == "array", **options)


def _require_network(network: object) -> None:
    if not callable(network):
        hint = "give a function that calls it; help(kbc.from_flow) shows OpenCV's" if hasattr(network, "calc") else ""
        raise InputError(must_be("network", "callable as f(source, target)", f"a {type(network).__name__}", hint))


def from_correlation(
    network: Network,
    *,
    size: int | tuple[int, int] = 256,
    source_grid: tuple[int, int] | None = None,
    name: str = "correlation",
    normalise: bool = True,
    device: str | torch.device = "cpu",
) -> CorrelationMatcher:
    """Make a matcher out of a network `f(source, target) -> correlation`, (B, hs, ws, ht, wt) or (B, hs·ws, ht·wt).

    Args:
        network: takes two (B, 3, H, W) batches; higher values are surer matches.
        size: what images are stretched to, (height, width) or the side of a square.
        source_grid: (hs, ws) of a flat correlation. Without it the grid has the shape of `size`, or is square where
            the number of cells leaves only that; the target's is the same where it has as many cells.
        name: for messages and reports.
        normalise: give ImageNet-normalised RGB (else [0, 1]).
        device: where the network runs.

    Raises:
        InputError: `network` cannot be called, a wrong size, or a device that is not there.

    >>> import kbc, torch
    >>> same = torch.eye(64).reshape(1, 8, 8, 8, 8)  # every cell is like itself alone
    >>> kbc.from_correlation(lambda source, target: same.expand(len(source), -1, -1, -1, -1), size=64)
    CorrelationMatcher('correlation', 64×64 px)
    """
    _require_network(network)
    warn_if_training(network, "network")
    options = {"size_hw": as_size(size), "name": name, "normalise": normalise, "device": usable_device(device)}
    grid = None if source_grid is None else as_size(source_grid, "source_grid")
    return CorrelationMatcher(network, grid, **options)
