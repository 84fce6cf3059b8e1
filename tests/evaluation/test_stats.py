"""Intervals and tests against what theory says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kbc.errors import InputError
from kbc.evaluation.stats import bootstrap, sign_flip_test


def test_the_interval_is_about_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = bootstrap(list(values))
    error = values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.03)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.03)
    assert bootstrap(list(values)) == (low, high)


def test_the_interval_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    hits = sum(
        low <= 0.3 <= high
        for low, high in (bootstrap(generator.binomial(1, 0.3, 60).tolist(), draws=400) for _ in range(200))
    )
    assert 178 <= hits <= 199


def test_edges_of_the_interval() -> None:
    assert all(math.isnan(bound) for bound in bootstrap([]))
    assert bootstrap([2.0]) == (2.0, 2.0)
    with pytest.raises(InputError, match="level"):
        bootstrap([1.0], level=1.5)


def test_sign_flips_are_counted_exactly_for_few_pairs() -> None:
    assert sign_flip_test([1, 1, 1]) == 1 / 8
    assert sign_flip_test([1, -1]) == 3 / 4
    assert sign_flip_test([0.0, 0.0]) == 1.0
    assert sign_flip_test([]) == 1.0
    assert sign_flip_test([-1, -2, -3]) == 1.0


def test_sign_flips_by_chance_agree_with_the_exact_count() -> None:
    generator = np.random.default_rng(2)
    few = generator.normal(0.4, 1, 12)
    exact = sign_flip_test(list(few))
    patterns = 1 - 2 * ((np.arange(4096)[:, None] >> np.arange(12)) & 1)
    assert exact == pytest.approx(np.mean(patterns @ few >= few.sum() - 1e-9))
    assert sign_flip_test([*few, 1e-12]) == pytest.approx(exact, abs=0.02)


def test_p_is_uniform_when_nothing_helps() -> None:
    generator = np.random.default_rng(3)
    found = [sign_flip_test(list(generator.normal(0, 1, 30)), draws=400, seed=i) for i in range(300)]
    assert 0.02 <= np.mean(np.array(found) <= 0.05) <= 0.09
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)
