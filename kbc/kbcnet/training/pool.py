"""A frozen backbone's features of a fixed pool of training pairs, computed once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from kbc import __version__
from kbc.errors import DataError, must_be
from kbc.kbcnet.backbone import normalised
from kbc.kbcnet.checkpoint import backbone_digest
from kbc.kbcnet.model import Network
from kbc.kbcnet.training.recipe import Recipe
from kbc.progress import progress_bar
from kbc.weights import load_safetensors, save_safetensors

_SIDES = ("source", "target")
_POINTS = ("keypoints", "truth", "parts")


class FeaturePool:
    """Raw backbone maps (half precision) and points of every pair of the pool."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self.levels = sum(name.startswith("source") for name in tensors)

    @classmethod
    def of(
        cls,
        network: Network,
        pairs: Dataset[dict[str, Tensor]],
        recipe: Recipe,
        content: str,
        cache: Path | None,
        progress: bool,
    ) -> FeaturePool:
        """Compute the pool's features, or read them where a run with the same data and backbone left them.

        Args:
            network: its backbone gives the features.
            pairs: what they are of.
            recipe: says how many.
            content: `Mixture.content` of the pairs.
            cache: folder where the features are left.
            progress: whether a bar is shown.

        Raises:
            DataError: what was left there is damaged.
        """
        path = cache / f"pool-{_digest(network, recipe, content)}.safetensors" if cache is not None else None
        if path is not None and path.is_file():
            try:
                return cls(load_safetensors(path))
            except DataError as error:
                received = str(error).partition(", received ")[2].removesuffix("; copy it again")
                raise DataError(must_be("cache", "a folder of whole files", received, "remove it")) from error
        assert recipe.pool is not None  # the caller's condition
        found: dict[str, Tensor] = {}
        with progress_bar("pair", progress) as show:
            for index in range(recipe.pool):
                for name, value in _features(network, pairs[index]).items():
                    if name not in found:
                        found[name] = value.new_empty((recipe.pool, *value.shape))
                    found[name][index] = value
                show(index + 1, recipe.pool, "features")
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_safetensors(path, found)
        return cls(found)

    def batch(self, indices: list[int]) -> dict[str, Any]:
        """What `Network.forward` and the loss take: lists of maps for both sides, keypoints and truth."""
        chosen = {name: value[indices] for name, value in self.tensors.items()}
        sides: dict[str, Any] = {side: [chosen[f"{side}.{level}"] for level in range(self.levels)] for side in _SIDES}
        return sides | {name: chosen[name] for name in _POINTS}


@torch.no_grad()
def _features(network: Network, pair: dict[str, Tensor]) -> dict[str, Tensor]:
    images = torch.stack([pair[side] for side in _SIDES]).to(network.log_temperature.device)
    maps = network.backbone.raw(normalised(images))
    found = {f"{side}.{i}": level[at].half().cpu() for i, level in enumerate(maps) for at, side in enumerate(_SIDES)}
    return found | {name: pair[name] for name in _POINTS}


def _digest(network: Network, recipe: Recipe, content: str) -> str:
    data = recipe.model_dump(mode="json", include={"data", "mix", "pool", "seed"})
    data |= {"splits": recipe.splits, "content": content, "kbc": __version__}
    text = json.dumps(data, sort_keys=True) + backbone_digest(network) + str(network.config.layers)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
