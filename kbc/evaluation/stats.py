"""How sure a difference is: bootstrap intervals over pairs, and a paired test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kbc.errors import InputError, must_be

Values = npt.NDArray[np.float64]


def bootstrap(values: Sequence[float], level: float = 0.95, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the mean over pairs drawn with replacement (Efron 1979); (NaN, NaN) for none.

    Args:
        values: one number per pair.
        level: share of the draws inside.
        draws: how many.
        seed: of the generator; the same seed and values give the same interval.

    Raises:
        InputError: `level` outside (0, 1).
    """
    if not 0 < level < 1:
        raise InputError(must_be("level", "between 0 and 1", level))
    held = np.asarray(values, dtype=np.float64)
    if held.size == 0:
        return (np.nan, np.nan)
    generator = np.random.default_rng(seed)
    means = np.concatenate([_means(held, generator, count) for count in _blocks(draws, held.size)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return (float(low), float(high))


def sign_flip_test(differences: Sequence[float], draws: int = 10_000, seed: int = 0) -> float:
    """One-sided p of "the mean difference is positive only by luck" (Fisher's randomisation test).

    If the two answers of a pair could as well be swapped, every sign pattern of the differences is equally likely;
    p is the share of patterns whose mean is at least the observed one. All patterns are counted for up to 12
    differences that are not zero, `draws` random ones (and the observed one) otherwise. 1 when nothing differs.
    """
    held = np.asarray(differences, dtype=np.float64)
    held = held[held != 0]
    if held.size == 0:
        return 1.0
    observed = held.sum() - 1e-9
    if held.size <= 12:
        patterns = (np.arange(2**held.size)[:, None] >> np.arange(held.size)) & 1
        return float(np.mean((1 - 2 * patterns) @ held >= observed))
    generator = np.random.default_rng(seed)
    hits = 1
    for count in _blocks(draws, held.size):
        signs = generator.integers(0, 2, size=(count, held.size)) * 2 - 1
        hits += int(np.count_nonzero(signs @ held >= observed))
    return hits / (draws + 1)


def _means(held: Values, generator: np.random.Generator, count: int) -> Values:
    drawn: Values = held[generator.integers(0, held.size, size=(count, held.size))].mean(axis=1)
    return drawn


def _blocks(draws: int, size: int) -> list[int]:
    """Draws in blocks of at most about a million numbers, so that long lists need no memory to speak of."""
    block = max(1, min(draws, 1_000_000 // max(size, 1)))
    return [block] * (draws // block) + ([draws % block] if draws % block else [])
