"""DINO, DINOv2 and DINOv3 through transformers: patch tokens become a feature map."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from math import ceil
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, FiniteFloat, PositiveFloat, ValidationError
from torch import Tensor

from kbc.errors import DataError, InputError, MatcherError, must_be, require, requirement
from kbc.files import read_json
from kbc.geometry import Points, cell_centres, resize_points
from kbc.images import Image
from kbc.matchers.features import FeatureMatcher, from_features
from kbc.matchers.protocol import short_repr
from kbc.tensors import IMAGENET_MEAN, IMAGENET_STD, sample, soft_peak, usable_device, warn_if_training
from kbc.types import Match, Pair

from .sandbox import BUILDING

_UNREAD = ("pooler.", "embeddings.mask_token")  # weights that patch tokens do not depend on
_GREY = tuple(round(255 * value) for value in IMAGENET_MEAN)  # zero after normalisation


def load(
    *,
    model: str | Path | torch.nn.Module,
    size: int | None = None,
    layer: int = -1,
    fit: Literal["letterbox", "stretch"] = "letterbox",
    votes: bool = False,
    download: bool = False,
    device: str | torch.device | None = None,
) -> FeatureMatcher | Letterboxed:
    """A DINO, DINOv2 or DINOv3 vision transformer as a matcher.

    Args:
        model: a local folder with `config.json` and safetensors weights, a model id, or a network in hand: one of
            transformers, or one with `patch_size`, `n_blocks` and `get_intermediate_layers(…, reshape=True)`, as
            torch.hub's DINOv2 and DINOv3 have. It is used as it is, and gets ImageNet-normalised RGB.
        size: side of the square input, pixels, a multiple of the patch; by default about 518.
        layer: whose patch tokens: 1 … L, or −1 … −L from the end. Passed through the final norm, as DINOv2's
            `get_intermediate_layers` does.
        fit: "letterbox" keeps the aspect and pads (at the right and below, our choice; no answer falls there);
            "stretch" fills the square.
        votes: add the votes of the surrounding matches; see `FeatureMatcher.with_votes`.
        download: fetch a model id that is not in the cache. Never done unasked.
        device: where it runs; by default the CPU, or where the network in hand is.

    Raises:
        InputError: no such model, weights of another one, not a ViT with patch tokens, a wrong size, layer or device.
        MissingDependencyError: transformers is not installed.
    """
    if fit not in ("letterbox", "stretch"):
        raise InputError(must_be("fit", "'letterbox' or 'stretch'", repr(fit)))
    asked = None if device is None else usable_device(device)  # before anything is read from disk for it
    network, name, statistics = _opened(model, download)
    network = network if asked is None else network.to(asked)
    where = next(network.parameters()).device
    patch, depth = _shape(network)
    default = 518 // patch * patch
    side = default if size is None else size
    if not isinstance(side, Integral) or side < patch or side % patch:
        near = max(round(side / patch), 1) * patch if isinstance(side, Real) else default
        raise InputError(must_be("size", f"a multiple of the patch, {patch}", repr(size), f"e.g. {near}"))
    if not isinstance(layer, Integral) or not 1 <= abs(layer) <= depth:
        raise InputError(must_be("layer", f"1 … {depth} or −1 … −{depth}", repr(layer)))
    chosen = layer if layer > 0 else depth + 1 + layer
    encode = encoder(network, chosen, statistics)
    warn_if_training(network, "model")
    square = from_features(encode, patch, size=side, name=f"dino ({name})", normalise=False, device=where)
    square = square.with_votes() if votes else square
    return square if fit == "stretch" else Letterboxed(square)


_Statistics = tuple[Sequence[float], Sequence[float]]


class _Preprocessing(BaseModel):
    """What `preprocessor_config.json` says of a network's input."""

    image_mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat] = IMAGENET_MEAN
    image_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = IMAGENET_STD


def _opened(model: str | Path | torch.nn.Module, download: bool) -> tuple[torch.nn.Module, str, _Statistics]:
    """The network, its name, and the mean and deviation of its input."""
    if isinstance(model, (str, Path)):
        network = _pretrained(model, download).eval()
        return network, Path(str(model)).name, _statistics(model, download)
    if not isinstance(model, torch.nn.Module):
        raise InputError(must_be("model", "a model's id, a folder or a torch.nn.Module", repr(model)))
    if download:
        raise InputError(must_be("download", "False with a network in hand", download))
    return model, type(model).__name__, (IMAGENET_MEAN, IMAGENET_STD)


def _shape(network: torch.nn.Module) -> tuple[int, int]:
    """Patch size and number of layers."""
    from_hub = _from_hub(network)
    told = network if from_hub else getattr(network, "config", None)
    patch = getattr(told, "patch_size", None)
    depth = getattr(told, "n_blocks" if from_hub else "num_hidden_layers", None)
    if not isinstance(patch, int) or not isinstance(depth, int):
        hint = "from_features(function, stride=patch) takes any function (B, 3, H, W) -> (B, C, h, w)"
        raise InputError(
            must_be("model", "a vision transformer such as DINOv2 or DINOv3", f"a {type(network).__name__}", hint)
        )
    return patch, depth


def _from_hub(network: torch.nn.Module) -> bool:
    method = getattr(network, "get_intermediate_layers", None)
    return method is not None and "reshape" in inspect.signature(method).parameters


def encoder(network: Any, layer: int, statistics: _Statistics) -> Callable[[Tensor], Tensor]:
    """(B, 3, H, W) RGB in [0, 1] → the patch tokens of a layer as a map (B, C, H/patch, W/patch).

    The sequence is [CLS], registers, patches row by row: the first 1 + `num_register_tokens` are left out.

    Raises:
        MatcherError: (when called) the number of tokens is not what the configuration says.
    """
    return partial(_hub_tokens if _from_hub(network) else _tokens, network, layer, statistics)  # which can be pickled


def _tokens(network: Any, layer: int, statistics: _Statistics, images: Tensor) -> Tensor:
    """What `encoder` gives for a network of transformers."""
    patch, depth = _shape(network)
    first = 1 + int(getattr(network.config, "num_register_tokens", 0) or 0)
    norm = getattr(network, "layernorm", None) or getattr(network, "norm", None)
    # A plain ViT, as the first DINO is, refuses any size but its own unless told to stretch its position code.
    stretches = "interpolate_pos_encoding" in inspect.signature(network.forward).parameters
    told = {"interpolate_pos_encoding": True} if stretches else {}
    output = network(pixel_values=_normalised(images, statistics), output_hidden_states=layer < depth, **told)
    tokens = output.last_hidden_state
    if layer < depth:
        tokens = output.hidden_states[layer]
        tokens = tokens if norm is None else norm(tokens)
    height, width = images.shape[2] // patch, images.shape[3] // patch
    if tokens.shape[1] != first + height * width:
        raise MatcherError(
            f"{type(network).__name__} must give {first} + {height}×{width} tokens, received {tokens.shape[1]}"
        )
    patches: Tensor = tokens[:, first:].transpose(1, 2).reshape(len(images), -1, height, width)
    return patches


def _hub_tokens(network: Any, layer: int, statistics: _Statistics, images: Tensor) -> Tensor:
    """The same through `get_intermediate_layers`, which leaves [CLS] and registers out itself; layers count from 0."""
    (maps,) = network.get_intermediate_layers(_normalised(images, statistics), n=[layer - 1], reshape=True)
    patches: Tensor = maps
    return patches


def _normalised(images: Tensor, statistics: _Statistics) -> Tensor:
    mean, std = (images.new_tensor(values)[:, None, None] for values in statistics)
    return (images - mean) / std


class Letterboxed:
    """A matcher with a square input that sees images padded to a square instead of stretched.

    Images lie at the top left, so points keep their coordinates; no answer lies in the padding. Satisfies
    `kbc.matchers.protocol.SimilarityMatcher`.
    """

    shares_features = True
    __repr__ = short_repr

    def __init__(self, square: FeatureMatcher) -> None:
        self.square = square
        self.name = square.name
        self.input_size = square.input_size
        self.max_batch = square.max_batch

    def similarity(self, pairs: Sequence[Pair]) -> list[Tensor]:
        """Per pair (N, h, w): cosines of each keypoint with cells that tile the target; see `FeatureMatcher`.

        As many cells for every image as for a square one, so that maps of windows and of whole images compare.
        """
        found = self._padded(pairs)
        return [_without_padding(maps, pair.target) for pair, maps in zip(pairs, found, strict=True)]

    def match(self, pairs: Sequence[Pair]) -> list[Match]:
        """The peak of each keypoint's similarity inside the target; the score is the cosine there."""
        matches = []
        for pair, maps in zip(pairs, self._padded(pairs), strict=True):
            height, width = pair.target.shape[:2]
            side = max(height, width)
            rows, columns = ceil(maps.shape[1] * height / side), ceil(maps.shape[2] * width / side)
            cells, score = soft_peak(maps[:, :rows, :columns])  # the last may be part padding
            peaks: Points = cells.double().cpu().numpy()
            points = resize_points(peaks, (maps.shape[1], maps.shape[2]), (side, side))
            matches.append(Match(np.minimum(points, (width - 0.5, height - 0.5)), score.double().cpu().numpy()))
        return matches

    def _padded(self, pairs: Sequence[Pair]) -> list[Tensor]:
        padded = [Pair(squared(pair.source), squared(pair.target), pair.keypoints) for pair in pairs]
        return self.square.similarity(padded)


def squared(image: Image) -> Image:
    """The image at the top left of a square of its longer side, the rest ImageNet's mean colour."""
    height, width = image.shape[:2]
    if height == width:
        return image
    side = max(height, width)
    square = np.empty((side, side, 3), dtype=np.uint8)
    square[:] = _GREY
    square[:height, :width] = image
    return square


def _without_padding(maps: Tensor, image: Image) -> Tensor:
    """Maps (N, h, w) over the padded square, resampled to as many cells that tile the image alone."""
    height, width = image.shape[:2]
    if height == width or len(maps) == 0:
        return maps
    rows, columns = maps.shape[1:]
    side = max(height, width)
    x, y = cell_centres((rows, columns), (height, width))
    at: Points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    cells = torch.from_numpy(resize_points(at, (side, side), (rows, columns))).to(maps)
    return sample(maps, cells).reshape(-1, rows, columns)


def _pretrained(model: str | Path, download: bool) -> Any:
    """The network, from safetensors only: nothing is unpickled and no code of the model's repository runs."""
    models = require("transformers", "dino needs transformers", "dino")
    options = {"local_files_only": not download, "use_safetensors": True, "trust_remote_code": False}
    try:
        with BUILDING, torch.random.fork_rng(devices=[]), _bars(shown=download):
            network, report = models.AutoModel.from_pretrained(
                str(model), **options, ignore_mismatched_sizes=True, output_loading_info=True
            )
    except Exception as error:  # OSError, ValueError and safetensors' own, by what is wrong
        reason = str(error).strip().partition("\n")[0]
        absent = not download and not os.path.exists(model)
        hint = "check the name and the files"
        if absent:
            hint = "download it, or have it downloaded: download=True (in the shell --option download=true)"
        expected = "a folder with config.json and model.safetensors, or a cached model id"
        raise InputError(must_be("model", expected, f"{str(model)!r} ({reason})", hint)) from error
    # transformers fills in random weights and goes on
    random = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    wrong = sorted(key for key in random if not key.startswith(_UNREAD))
    if wrong:
        received = f"{str(model)!r}: {len(wrong)} weights missing or of another shape ({wrong[0]}, …)"
        raise InputError(must_be("model", "a folder whose weights fit its config.json", received))
    return network


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Keeps transformers from drawing a bar for what is a moment's work; what the process has set is put back."""
    bars: Any = import_module("transformers.utils.logging")
    hub: Any = import_module("huggingface_hub.utils")
    hide, hub_hid = bars.is_progress_bar_enabled() and not shown, hub.are_progress_bars_disabled()
    if hide:
        bars.disable_progress_bar()  # and the hub's
    try:
        yield
    finally:
        if hide:
            bars.enable_progress_bar()
        if hide and hub_hid:
            hub.disable_progress_bars()


def _statistics(model: str | Path, download: bool) -> _Statistics:
    """Mean and deviation of the model's own preprocessing; ImageNet's where it names none."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(str(model), "preprocessor_config.json", local_files_only=not download)
    except OSError:
        path = None
    if path is None:
        return IMAGENET_MEAN, IMAGENET_STD
    try:
        told = _Preprocessing.model_validate(read_json(Path(path)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"{path}: {where} {requirement(first['msg'])}") from error
    return told.image_mean, told.image_std
