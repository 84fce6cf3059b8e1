"""Training pairs as batches of tensors: which pairs a step takes, drawing them, and putting them on the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from kbc.errors import KBCError
from kbc.kbcnet.backbone import normalised
from kbc.kbcnet.training.pool import FeaturePool
from kbc.kbcnet.training.recipe import Recipe
from kbc.kbcnet.training.sources import HELD_OUT, PairSource, pair_source
from kbc.processes import one_thread

Batch = dict[str, Any]
"""Source and target as `Network.forward` takes them, keypoints and truth (B, K, 2) in input pixels, parts (B, K)."""


class Mixture(Dataset[dict[str, Tensor]]):
    """All of a recipe's training pairs by index, as tensors."""

    def __init__(self, recipe: Recipe, environment: dict[str, str]) -> None:
        self._made_from = (recipe, environment)
        early: list[PairSource] = [pair_source(data, environment) for data in recipe.data]
        late = early if recipe.late_size is None else [pair_source(data, environment) for data in recipe.late_data]
        self.sources, self.first_late = (early, late), recipe.first_late
        self.seed, self.shares = recipe.seed, recipe.shares
        self.names = [name for source in early for name in source.names]
        self.first = np.cumsum([0, *(len(source.names) for source in early)])

    def __reduce__(self) -> tuple[Any, ...]:
        """Worker processes open the data anew instead of receiving caches and locks."""
        return (Mixture, self._made_from)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Pair `index`.

        Source and target (3, S, S) uint8; keypoints and truth (K, 2) float32, NaN where undefined; parts (K,) int64,
        which named point of `names` each is, −1 where it has no name.
        """
        at = 0
        sources = self.sources[index >= self.first_late]
        if len(sources) > 1:  # two by two: the pairs of a recipe stay what they were
            at = int(np.random.default_rng([self.seed, index // 2, 3]).choice(len(sources), p=self.shares))
        sample = sources[at](index)
        return {
            "source": torch.from_numpy(np.ascontiguousarray(sample.source.transpose(2, 0, 1))),
            "target": torch.from_numpy(np.ascontiguousarray(sample.target.transpose(2, 0, 1))),
            "keypoints": torch.from_numpy(sample.keypoints).float(),
            "truth": torch.from_numpy(sample.target_keypoints).float(),
            "parts": torch.from_numpy(np.where(sample.parts >= 0, sample.parts + self.first[at], -1)),
        }

    def content(self) -> str:
        """A digest of what the pairs are drawn from beside the recipe."""
        return "".join(source.content() for source in self.sources[0])


def indices_of(recipe: Recipe, step: int) -> list[int]:
    """The pairs of a step: the next ones, or a draw from the pool."""
    if recipe.pool is None:
        return list(range(step * recipe.batch, (step + 1) * recipe.batch))
    return [int(i) for i in np.random.default_rng([recipe.seed, step, 1]).integers(recipe.pool, size=recipe.batch)]


def batches(mixture: Mixture, pool: FeaturePool | None, chosen: Iterable[list[int]], workers: int) -> Iterable[Batch]:
    """The pairs of each step as one batch: from the pool, or drawn by worker processes (0: between the steps)."""
    if pool is not None:
        return map(pool.batch, chosen)
    return DataLoader(
        mixture,
        batch_sampler=chosen,
        num_workers=workers,
        worker_init_fn=one_thread,
        prefetch_factor=4 if workers else None,
        # a fork inherits OpenCV's and OpenMP's thread pools without their threads and may wait for them forever
        multiprocessing_context="spawn" if workers else None,
    )


@contextmanager
def workers_told() -> Iterator[None]:
    """What goes wrong in a process that draws pairs is said in a line, as it is without processes.

    Raises:
        KBCError: what the process raised, or that it ended, which torch notices whatever is being done.
    """
    try:
        yield
    except KBCError as error:
        if "in DataLoader worker" not in str(error):
            raise
        said = str(error).rstrip().rpartition("\n")[2]  # under torch's report of where it was raised
        raise type(error)(said.removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        hint = "without a word above the memory was full: take fewer --workers"
        raise KBCError(f"a process that draws training pairs ended before its work was done; {hint}") from error


def held_out(mixture: Mixture, count: int) -> list[Batch]:
    """The validation pairs."""
    pairs = [mixture[HELD_OUT + i] for i in range(count)]
    return [default_collate(pairs[i : i + 8]) for i in range(0, count, 8)]


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch there, as the network takes it: images normalised, a pool's half-precision maps in fp32."""
    ready: Batch = {}
    for name, value in batch.items():
        if isinstance(value, list):
            ready[name] = [level.to(device).float() for level in value]
        else:
            moved = value.to(device)
            ready[name] = normalised(moved) if moved.dtype == torch.uint8 else moved
    return ready
