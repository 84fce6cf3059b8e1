"""A feature extractor as a matcher: encode both images, compare, take the sub-cell peak."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

import numpy as np

from kbc.errors import InputError, MatcherError, must_be
from kbc.geometry import Points, Window, as_size, cell_centres, defined
from kbc.images import Image, fingerprint
from kbc.matchers.protocol import short_repr
from kbc.matchers.running import NetworkRunner
from kbc.tensors import Grid, exact, network_input, sample, soft_peak, unit_length, usable_device, warn_if_training
from kbc.types import Match, Pair

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_NUMBERS = (int, float, np.integer, np.floating)

_VOTE_REACH, _VOTE_TOLERANCE, _VOTE_WEIGHT, _VOTE_TEMPERATURE = 0.2, 0.09, 0.5, 0.05


class FeatureMatcher:
    """Nearest neighbour in feature space with a sub-cell peak; features are kept per image.

    Built by `from_features`, which documents the arguments. Satisfies `SimilarityMatcher`.
    """

    shares_features = True
    votes = False

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        grid: Grid,
        size_hw: tuple[int, int],
        *,
        name: str = "features",
        normalise: bool = True,
        device: str | torch.device = "cpu",
        cache_bytes: int = 512 * 2**20,
    ) -> None:
        self.encode = encode
        self.grid = grid
        self.input_size = size_hw
        self.name = name
        self.max_batch = 64
        self.encoded = 0
        self._normalise = normalise
        self._device = device
        self._runner = NetworkRunner(f"`encode` of matcher {name!r}", "C, h, w", device)
        self._cache = _Cache(cache_bytes)
        self._latest: WeakKeyDictionary[Pair, Tensor] = WeakKeyDictionary()

    __repr__ = short_repr

    def __getstate__(self) -> dict[str, Any]:
        """What was compared last stays behind; the cache empties itself."""
        return {name: value for name, value in vars(self).items() if name != "_latest"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _latest=WeakKeyDictionary())

    def with_votes(self) -> Self:
        """This matcher, sharing its cache, with the votes of the surrounding matches added to every similarity.

        Every cell of the source is compared, not the keypoints' alone; the neighbours of a point then say where it
        moved (`kbc.matchers.voting`). Good for upright things, mirrored or not; worse for things that turn freely.
        Costs a correlation of all cells with all cells.
        Measured in examples/results/votes.md; the weights are our choice.
        """
        voting = copy(self)
        voting.votes = True
        return voting

    def clear_cache(self) -> None:
        """Forget all features: call it when the weights behind `encode` have changed."""
        self._cache.clear()

    def features(self, images: Sequence[Image]) -> list[Tensor]:
        """One map (C, h, w) per image, unit length along C, on the device; each distinct image is encoded once.

        Args:
            images: RGB uint8 (H, W, 3).

        Raises:
            MatcherError: `encode` gave something else than a finite (B, C, h, w) of the declared stride.
        """
        import torch

        mode = self._autocast()
        keys = [fingerprint(image) + mode for image in images]
        found: dict[bytes, Tensor] = {}
        todo: dict[bytes, Image] = {}
        for key, image in zip(keys, images, strict=True):
            kept = self._cache.get(key)
            if kept is None:
                todo[key] = image
            else:
                found[key] = kept
        waiting = list(todo.items())
        with torch.inference_mode():
            for start in range(0, len(waiting), 8):  # larger batches gain nothing on a CPU and cost memory
                part = waiting[start : start + 8]
                cut = [self._frame(image).cut(image) for _, image in part]
                batch = network_input(cut, self._normalise, self._device)
                maps = self._checked(self._runner.run(self.encode, batch))
                self._runner.examine(self.encode, batch, maps)
                self.encoded += len(part)
                for (key, _), values in zip(part, _in_range(maps), strict=True):
                    found[key] = unit_length(values)  # its own memory, for the cache's sake
                    self._cache.put(key, found[key])
        return [found[key] for key in keys]

    def similarity(self, pairs: Sequence[Pair]) -> list[Tensor]:
        """Per pair (N, h, w): cosine of each keypoint's feature with the target's cells, over the whole target.

        On the device.

        Free right after `match` of the same `Pair` objects.
        """
        found = {pair: values for pair in pairs if (values := self._latest.pop(pair, None)) is not None}
        missing = [pair for pair in pairs if pair not in found]
        found.update(zip(missing, self._compared(missing), strict=True))
        with exact(self._device):
            return [self._on_regular_cells(found[pair]) for pair in pairs]

    def _compared(self, pairs: Sequence[Pair]) -> list[Tensor]:
        """Per pair the similarity of its keypoints (N, h, w) with the target's own cells."""
        features = self.features([image for pair in pairs for image in (pair.source, pair.target)])
        with exact(self._device):
            return [
                self._similarity(pair, source, target)
                for pair, source, target in zip(pairs, features[::2], features[1::2], strict=True)
            ]

    def match(self, pairs: Sequence[Pair]) -> list[Match]:
        """The soft peak of each keypoint's similarity; the score is the similarity there."""
        compared = self._compared(pairs)
        matches = []
        with exact(self._device):
            for pair, values in zip(pairs, compared, strict=True):
                self._latest[pair] = values  # kbc asks for it next
                cells, score = self._peaks(values)
                inside = self.grid.to_pixels(cells).double().cpu().numpy()
                points = self._frame(pair.target).to_image(inside)
                matches.append(Match(points, score.double().cpu().numpy()))
        return matches

    def _peaks(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Of similarity (N, h, w): the cells (N, 2), x then y, and the scores (N,); NaN where it is."""
        return soft_peak(values)

    def _similarity(self, pair: Pair, source: Tensor, target: Tensor) -> Tensor:
        import torch

        inside: Points = self._frame(pair.source).to_window(pair.keypoints)
        cells = self.grid.to_cells(torch.as_tensor(inside, dtype=source.dtype, device=source.device))
        queries = unit_length(sample(source, cells))
        values: Tensor = (queries.mT @ target.flatten(1)).view(-1, *target.shape[1:])
        if self.votes:
            values = values + _VOTE_WEIGHT * _voted(source, target, cells)
        values[torch.as_tensor(~defined(pair.keypoints), device=values.device)] = torch.nan
        return values

    def _on_regular_cells(self, values: Tensor) -> Tensor:
        """Similarity on a grid whose cells tile the image, as `SimilarityMatcher` promises.

        Patches tile it already. Other grids are resampled (bicubic) at half their stride, so that peaks stay put.
        """
        import torch

        stride, size_hw = self.grid.stride, self.input_size
        tiled = (round(size_hw[0] / stride), round(size_hw[1] / stride))
        if tuple(values.shape[-2:]) == tiled and self.grid.patches:
            return values
        rows, columns = tiled[0] * 2, tiled[1] * 2
        x, y = cell_centres((rows, columns), size_hw)
        at = torch.from_numpy(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2))
        cells = self.grid.to_cells(at.to(values))
        return sample(values, cells, "bicubic").reshape(-1, rows, columns)

    def _frame(self, image: Image) -> Window:
        return Window.whole((image.shape[0], image.shape[1]), self.input_size)

    def _autocast(self) -> bytes:
        """Under what autocast of its caller `encode` runs: features are kept apart by it."""
        import torch

        kind = torch.device(self._device).type
        return str(torch.get_autocast_dtype(kind)).encode() if torch.is_autocast_enabled(kind) else b""

    def _checked(self, maps: Tensor) -> Tensor:
        size_hw = self.input_size
        if maps.ndim != 4:
            shape = tuple(maps.shape)
            text = f"`encode` of matcher {self.name!r} must give ({len(maps)}, C, h, w), received {shape}"
            if len(shape) == 3:
                text += "; tokens (B, N, C) without [CLS] become a map by .transpose(1, 2).reshape(B, C, h, w)"
            raise MatcherError(text)
        for side, cells in zip(size_hw, maps.shape[2:], strict=True):
            if not self.grid.covers(side, cells):
                raise MatcherError(
                    f"`encode` of matcher {self.name!r} must give a cell every {self.grid.stride:g} px of its "
                    f"{size_hw[0]}×{size_hw[1]} input, received {maps.shape[2]}×{maps.shape[3]} cells, one every "
                    f"{side / cells:.4g} px; is it `stride={side / cells:.4g}`?"
                )
        return maps


class _Cache:
    """Feature maps by image, least recently used dropped first; several matchers and threads may share it."""

    def __init__(self, most_bytes: int) -> None:
        if not isinstance(most_bytes, _NUMBERS):
            raise InputError(must_be("cache_bytes", "a number of bytes, 0 for no cache", repr(most_bytes)))
        self._most = most_bytes
        self._held = 0
        self._maps: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process, and a deep copy, begin with an empty cache."""
        return (_Cache, (self._most,))

    def get(self, key: bytes) -> Tensor | None:
        with self._lock:
            if key not in self._maps:
                return None
            self._maps.move_to_end(key)
            return self._maps[key]

    def clear(self) -> None:
        with self._lock:
            self._maps.clear()
            self._held = 0

    def put(self, key: bytes, values: Tensor) -> None:
        size = values.element_size() * values.nelement()
        with self._lock:
            if size > self._most or key in self._maps:
                return
            self._maps[key] = values
            self._held += size
            while self._held > self._most:
                _, old = self._maps.popitem(last=False)
                self._held -= old.element_size() * old.nelement()


def from_features(
    encode: Callable[[Tensor], Tensor],
    stride: float,
    *,
    size: int | tuple[int, int] = 256,
    offset: float | None = None,
    name: str = "features",
    normalise: bool = True,
    device: str | torch.device = "cpu",
    cache_bytes: int = 512 * 2**20,
) -> FeatureMatcher:
    """Make a matcher out of a feature extractor.

    Args:
        encode: (B, 3, H, W) float tensor on `device` → (B, C, h, w). Features are kept by the image's pixels: call
            `clear_cache()` on the matcher when the weights change.
        stride: input pixels per cell. Where the answers lie depends on it: a map of another stride is refused.
        size: what images are stretched to, (height, width) or the side of a square, input pixels.
        offset: input pixel of the first cell's centre; (stride − 1)/2 by default (patches); 0 for ResNets.
        name: for messages and reports.
        normalise: give `encode` ImageNet-normalised RGB (else [0, 1]).
        device: where `encode` runs.
        cache_bytes: bound on cached features; least recently used images are dropped first.

    Raises:
        InputError: `encode` is no function, a stride or size that is not positive, a device that is not there.

    >>> import kbc, torch
    >>> kbc.from_features(torch.nn.Conv2d(3, 64, 16, stride=16), stride=16, size=224)  # (B, 3, H, W) -> (B, C, h, w)
    FeatureMatcher('features', 224×224 px)
    """
    if not callable(encode):
        expected = "a function (B, 3, H, W) -> (B, C, h, w)"
        raise InputError(must_be("encode", expected, type(encode).__name__, "give what computes the features"))
    warn_if_training(encode, "encode")
    size_hw = as_size(size)
    if not isinstance(stride, _NUMBERS) or isinstance(stride, bool) or not 0 < stride < math.inf:
        raise InputError(must_be("stride", "a positive number of input pixels", repr(stride)))
    stride = float(stride)
    if offset is not None and not (isinstance(offset, _NUMBERS) and abs(offset) <= max(size_hw)):
        raise InputError(must_be("offset", "where in the input the first cell's centre lies, pixels", repr(offset)))
    if min(size_hw) < stride:
        raise InputError(must_be("size", f"at least one stride ({stride:g} px)", size_hw))
    grid = Grid(stride, (stride - 1) / 2 if offset is None else float(offset))
    where = usable_device(device)
    return FeatureMatcher(encode, grid, size_hw, name=name, normalise=normalise, device=where, cache_bytes=cache_bytes)


def _in_range(maps: Tensor) -> Tensor:
    """Maps (B, C, h, w), each divided by its largest value where float32 cannot hold the squares of its values."""
    each = (1, 2, 3)
    most = maps.amax(each, keepdim=True).maximum(-maps.amin(each, keepdim=True))  # sooner than of absolute values
    extreme = (most > 1e15) | ((most < 1e-9) & (most > 0))
    return maps / most.where(extreme, 1.0) if bool(extreme.any()) else maps


def _voted(source: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    """What the matches of all cells of two maps (C, h, w) say about source cells (N, 2): (N, h, w) in [0, 1]."""
    import torch

    from kbc.matchers.voting import mutual_agreement, votes

    cosine = torch.einsum("cij,ckl->ijkl", source, target)[None]
    found = votes(mutual_agreement(cosine, _VOTE_TEMPERATURE), _VOTE_REACH, _VOTE_TOLERANCE)[0]
    return sample(found.flatten(2).permute(2, 0, 1), cells).T.reshape(-1, *target.shape[1:])
