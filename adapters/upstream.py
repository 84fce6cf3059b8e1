"""What the five upstream adapters share: preprocessing, upstream's own frame, checkpoints, and the batch loop."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, wraps
from importlib import import_module
from importlib.util import find_spec
from numbers import Integral
from operator import index
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kbc.errors import InputError, MatcherError, MissingDependencyError, must_be
from kbc.files import as_path, is_file
from kbc.geometry import Points, cell_centres, defined
from kbc.images import Image
from kbc.tensors import network_input
from kbc.types import Match, Pair
from kbc.weights import load_weights

from .sandbox import Checkout, Stub, Upstream

_P = ParamSpec("_P")
_M = TypeVar("_M", bound="UpstreamMatcher")
_PATHS = ("checkout", "checkpoint", "backbone_weights")
_KEPT_BYTES = 128 * 2**20
_INSIDE = 1e-3  # MMNet's transfer indexes past its map at x = width
_KEY_SIGNS = {
    "learner.chm6d.bias": "chm",
    "reduction_ffns.0.0.weight": "dhpf",
    "msblock0.conv.weight": "mmnet",
    "decoder.pos_embed_x": "cats",
    "fc.weight": "an ImageNet ResNet",
    "head.conv5.0.weight": "gluoncv-torch's FCN",
}


def travels(load: Callable[_P, _M]) -> Callable[_P, _M]:
    """A module's function `load` whose matchers can be pickled and copied: they are loaded again from the same files.

    Paths are kept whole, so that the other process may work in another folder.
    """

    @wraps(load)
    def loading(*args: _P.args, **options: _P.kwargs) -> _M:
        matcher = load(*args, **options)
        paths = {name: os.path.abspath(as_path(options[name], name)) for name in _PATHS if name in options}
        matcher.loaded_by = (load.__module__, {**options, **paths})
        return matcher

    return loading


def _load_again(module: str, options: dict[str, Any]) -> UpstreamMatcher:
    loaded: UpstreamMatcher = import_module(module).load(**options)
    return loaded


class UpstreamMatcher:
    """A matcher that runs an upstream checkout. Satisfies `kbc.matchers.protocol.SimilarityMatcher`.

    An adapter sets the class attributes and writes `_correlate`, `_transfer` and `_rows`. Points travel through it in
    upstream's own frame: x·S/W, without the half-pixel offset, as upstream scales them, so that its answers are
    upstream's. Calls of one instance are serialised, because upstream may keep state.

    Attributes:
        name, input_size, max_batch: see `kbc.matchers.protocol.Matcher`.
        upstream: repository, licence, citation, direction and frame.
        node_first, node_step: where the cells of upstream's correlation lie in its frame, frame pixels, both axes.
        loaded_by: the module whose `load` built it and that function's options, see `travels`.
    """

    name: ClassVar[str]
    upstream: ClassVar[Upstream]
    input_size: int | tuple[int, int]
    max_batch: int = 1
    node_first: float = 0.0
    node_step: float
    loaded_by: tuple[str, dict[str, Any]] | None = None

    def __init__(self, checkout: Checkout, device: torch.device) -> None:
        self.checkout = checkout
        self.device = device
        self._lock = threading.Lock()
        self._maps: WeakKeyDictionary[Pair, npt.NDArray[np.float32]] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process, and a deep copy, loads it again from the same files: upstream's code is nobody's module."""
        if self.loaded_by is None:
            raise TypeError(f"{type(self).__name__} travels where its `load` is decorated with kbc_adapters' `travels`")
        return _load_again, self.loaded_by

    def match(self, pairs: Sequence[Pair]) -> list[Match]:
        """Upstream's own prediction; the score is the peak of the point's similarity map, on upstream's scale."""
        answers = self._answers(pairs)
        with self._lock:
            for pair, (_, maps) in zip(pairs, answers, strict=True):
                self._maps[pair] = maps  # kbc asks for them next
            while sum(maps.nbytes for maps in self._maps.values()) > _KEPT_BYTES:
                self._maps.pop(next(iter(self._maps)))
        return [match for match, _ in answers]

    def similarity(self, pairs: Sequence[Pair]) -> list[npt.NDArray[np.float32]]:
        """Upstream's correlation of each keypoint with the target, resampled to cells that tile the target image.

        Free right after `match` of the same `Pair` objects.
        """
        with self._lock:
            kept = [self._maps.pop(pair, None) for pair in pairs]
        missing = [pair for pair, maps in zip(pairs, kept, strict=True) if maps is None]
        fresh = iter([maps for _, maps in self._answers(missing)])
        return [next(fresh) if maps is None else maps for maps in kept]

    # What an adapter writes ------------------------------------------------------------------------------------

    def _correlate(self, pairs: Sequence[Pair]) -> Sequence[Any]:
        """Upstream's forward pass: one correlation per pair, in whatever form upstream has it."""
        raise NotImplementedError

    def _transfer(self, found: Any, points: Tensor) -> Tensor:
        """Upstream's own transfer of points (2, N), in frame pixels of the source → (2, N) of the target."""
        raise NotImplementedError

    def _rows(self, found: Any, points: Tensor) -> Tensor:
        """Similarity (N, h, w) of points (2, N) to the cells of the target."""
        raise NotImplementedError

    def _scale(self, image: Image) -> tuple[float, float]:
        """Frame pixels per image pixel, x and y. Here: the image is stretched to `input_size`."""
        height, width = self._size_hw
        return (width / image.shape[1], height / image.shape[0])

    def _images(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        """Sources and targets (B, 3, h, w), as upstream's data sets prepare them: Pillow's resize, then normalised."""
        sides = ([pair.source for pair in pairs], [pair.target for pair in pairs])
        source, target = (torch.stack([self._image(image) for image in images]) for images in sides)
        return source, target

    def _image(self, image: Image) -> Tensor:
        """One of them (3, h, w)."""
        return normalised(pillow_resize(image, self._size_hw), self.device)

    # The loop --------------------------------------------------------------------------------------------------

    @property
    def _size_hw(self) -> tuple[int, int]:
        size = self.input_size
        return (size, size) if isinstance(size, int) else size

    def _answers(self, pairs: Sequence[Pair]) -> list[tuple[Match, npt.NDArray[np.float32]]]:
        answers = []
        for start in range(0, len(pairs), self.max_batch):
            batch = pairs[start : start + self.max_batch]
            with self._lock, self.checkout.running(self.device):
                found = self._correlate(batch)
                answers += [self._answer(pair, one) for pair, one in zip(batch, found, strict=True)]
        return answers

    def _answer(self, pair: Pair, found: Any) -> tuple[Match, npt.NDArray[np.float32]]:
        known = defined(pair.keypoints)
        keypoints = np.full(pair.keypoints.shape, np.nan)
        score = np.full(len(known), np.nan)
        points = self._to_frame(pair.keypoints[known], pair.source)
        if not known.any():  # upstream's transfer is not made for no points
            points = points.new_zeros((2, 1))
        rows = self._rows(found, points).float()
        cells = np.full((len(known), 2 * rows.shape[-2], 2 * rows.shape[-1]), np.nan, dtype=np.float32)
        if known.any():
            moved = self._transfer(found, points.clone()).T.double().cpu().numpy()
            keypoints[known] = moved / self._scale(pair.target)
            score[known] = rows.flatten(1).amax(dim=1).double().cpu().numpy()
            cells[known] = self._on_cells(rows, pair.target)
        return Match(keypoints, score), cells

    def _to_frame(self, points: Points, image: Image) -> Tensor:
        """Image pixels (N, 2) in upstream's frame (2, N), clamped into it: upstream answers NaN or worse outside."""
        scale = np.array(self._scale(image))
        limit = scale * (image.shape[1], image.shape[0]) - _INSIDE
        return torch.as_tensor((points * scale).clip(0.0, limit).T, dtype=torch.float32, device=self.device)

    def _on_cells(self, rows: Tensor, image: Image) -> npt.NDArray[np.float32]:
        """Rows (N, h, w) on upstream's nodes as 2h × 2w cells that tile the image, each with its nearest node's value.

        Nodes lie where upstream's transfer has them, often at the cells' corners. Twice as many cells let each node
        keep its place and its value; interpolation would halve a peak that is one node wide. Our choice.
        """
        height, width = rows.shape[-2:]
        scale = self._scale(image)
        x, y = cell_centres((2 * height, 2 * width), (image.shape[0], image.shape[1]))
        columns = np.rint((x * scale[0] - self.node_first) / self.node_step).clip(0, width - 1).astype(int)
        lines = np.rint((y * scale[1] - self.node_first) / self.node_step).clip(0, height - 1).astype(int)
        values = rows.float().cpu().numpy()[:, lines[:, None], columns]
        return np.asarray(values, dtype=np.float32)


# Images --------------------------------------------------------------------------------------------------------


def normalised(image: Image, device: torch.device) -> Tensor:
    """(H, W, 3) uint8 → (3, H, W) float32 with ImageNet's mean and deviation, on the device."""
    return network_input([image], True, device)[0]


def pillow_resize(image: Image, size_hw: tuple[int, int]) -> Image:
    """What Pillow's `Image.resize(…, BILINEAR)` gives, bit for bit, which torchvision's `Resize` uses on photographs.

    A triangle filter, widened by the shrink factor; weights rounded to 22 bits; each axis rounded to uint8, x first
    (Pillow's documentation, "Filters", and its observed output). Upstream's argmax can tell one grey level. Pillow 13
    takes y first at some sizes, and then differs by that one level; upstreams' figures were made with x first.
    """
    wide = _pillow_axis(image.swapaxes(0, 1), size_hw[1]).swapaxes(0, 1)
    return np.ascontiguousarray(_pillow_axis(wide, size_hw[0]))


def _pillow_axis(image: Image, new: int) -> Image:
    """Resize the first axis of (L, …) uint8 to `new`."""
    at, weights = _pillow_taps(image.shape[0], new)
    sums = np.full((new, *image.shape[1:]), 2**21, dtype=np.int64)
    for tap in range(at.shape[1]):
        sums += weights[:, tap, None, None] * image[at[:, tap]]
    return (sums >> 22).clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=64)
def _pillow_taps(length: int, new: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which inputs each output adds up, (new, taps), and their weights, whole numbers, 2²² to a row."""
    scale = length / new
    reach = max(scale, 1.0)
    centre = (np.arange(new) + 0.5) * scale
    low = (centre - reach + 0.5).astype(np.int64).clip(0)
    high = (centre + reach + 0.5).astype(np.int64).clip(None, length)
    at = low[:, None] + np.arange(int((high - low).max()))
    away = np.abs((at - centre[:, None] + 0.5) / reach)
    taps = np.where((away < 1.0) & (at < high[:, None]), 1.0 - away, 0.0)
    weights = np.floor(taps / taps.sum(axis=1, keepdims=True) * 2**22 + 0.5).astype(np.int64)
    return at.clip(0, length - 1), weights


# Checkpoints ---------------------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path, argument: str = "checkpoint") -> dict[str, Tensor]:
    """Tensors by name, never unpickled; a wrapper such as "state_dict" and the prefix "module." are taken off.

    Raises:
        InputError: no such file, or an ending that is not known.
        DataError: the file is damaged, or holds objects that only unpickling could read.
    """
    path = as_path(path, argument)
    if not is_file(path):
        raise InputError(must_be(argument, "an existing checkpoint file", repr(str(path)), "check the path"))
    try:
        state = load_weights(path)
    except InputError as error:
        raise type(error)(str(error).replace("`weights`", f"`{argument}`", 1)) from error
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def looks_like(state: Mapping[str, Tensor]) -> str:
    """The model that a state dict seems to belong to, or ""."""
    return next((name for sign, name in _KEY_SIGNS.items() if sign in state), "")


def check_state(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str, hint: str = "") -> None:
    """Refuse a state dict that does not fit, before upstream's `load_state_dict` answers with pages of keys.

    Raises:
        InputError: missing or further keys, or other shapes.
    """
    counters = {key for key in expected if key.endswith("num_batches_tracked")}  # old files lack them, torch allows it
    missing = sorted(expected.keys() - state.keys() - counters)
    extra = sorted(state.keys() - expected.keys())
    shapes = [key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape]
    if not (missing or extra or shapes):
        return
    faults = {"missing": missing, "unknown": extra, "of another shape": sorted(shapes)}
    counts = ", ".join(f"{len(keys)} keys {fault} ({keys[0]}, …)" for fault, keys in faults.items() if keys)
    guess = looks_like(state)
    received = f"one of {guess}: {counts}" if guess and guess not in what else counts
    raise InputError(must_be("checkpoint", f"a checkpoint of {what}", received, hint))


def check_imagenet(state: Mapping[str, Tensor], blocks: int, argument: str) -> None:
    """Refuse anything but a whole ImageNet ResNet in torchvision's layout with `blocks` blocks in layer 3.

    Raises:
        InputError: another network, a truncated one, or one without `fc`.
    """
    depth = {6: "resnet50", 23: "resnet101"}[blocks]
    needed = ("conv1.weight", f"layer3.{blocks - 1}.conv3.weight", "layer4.2.conv3.weight", "fc.weight")
    missing = [key for key in needed if key not in state]
    if missing or f"layer3.{blocks}.conv1.weight" in state:
        guess = looks_like(state) if "fc.weight" not in state else ""
        received = f"one of {guess}" if guess else f"one without {missing[0]}" if missing else "a deeper network"
        expected = f"an ImageNet {depth} in torchvision's layout, `fc` included"
        raise InputError(must_be(argument, expected, received, f"e.g. torchvision's file {depth}-….pth"))


def check_side(argument: str, side: int, multiple: int) -> None:
    """Refuse the side of a square frame that upstream's transfer cannot have.

    Raises:
        InputError: no whole number, too small, or no such multiple.
    """
    if not isinstance(side, Integral) or side < 64 or side % multiple:
        raise InputError(must_be(argument, f"a multiple of {multiple}, at least 64", repr(side), "upstream uses 240"))


def whole_numbers(argument: str, values: Any) -> tuple[int, ...]:
    """Layer numbers as a tuple.

    Raises:
        InputError: no sequence of whole numbers.
    """
    try:
        return tuple(index(value) for value in values)
    except TypeError as error:
        raise InputError(must_be(argument, "whole numbers, e.g. (0, 8)", repr(values))) from error


def packages(fcn: bool) -> dict[str, Any]:
    """What `Checkout` is told of the packages that SCOT and MMNet import: stubs, and gluoncv-torch for an FCN backbone.

    Raises:
        MissingDependencyError: it is needed and not installed.
    """

    def nothing(*args: object, **options: object) -> None:
        """Stands for the transforms that gluoncv-torch makes while it is imported."""

    transforms = {name: nothing for name in ("Compose", "ToTensor", "Normalize")}
    names = ("skimage", "PIL", "tqdm", "matplotlib")
    stubs = {"torchvision": Stub("torchvision", **transforms), **{name: Stub(name) for name in names}}
    if not fcn:
        return {"stubs": {**stubs, "gluoncvth": Stub("gluoncvth")}}
    found = find_spec("gluoncvth")
    if found is None or not found.submodule_search_locations:
        raise MissingDependencyError(
            "an FCN backbone needs gluoncv-torch 0.0.5; run: pip install --no-deps gluoncv-torch==0.0.5"
        )
    return {"stubs": stubs, "packages": {"gluoncvth": Path(found.submodule_search_locations[0])}}


def require_finite(what: str, values: Tensor) -> None:
    """Refuse NaN and infinity.

    Raises:
        MatcherError: some value is not finite.
    """
    if not bool(torch.isfinite(values).all()):
        raise MatcherError(f"{what} must be finite, received NaN or infinity; is the checkpoint the right one?")
