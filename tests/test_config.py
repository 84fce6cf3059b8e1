"""KBCConfig: frozen, every field described, nothing unknown and nothing out of range."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

import kbc
from kbc.config import COST, KBCConfig, make_config
from kbc.errors import InputError


def test_it_is_frozen_and_compares_by_value() -> None:
    config = KBCConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.margin = 1.0  # type: ignore[misc]
    assert config == KBCConfig()
    assert hash(config) == hash(KBCConfig())
    assert config != KBCConfig(margin=1.0)
    assert KBCConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("name", KBCConfig.model_fields)
def test_every_field_says_what_it_is(name: str) -> None:
    field = KBCConfig.model_fields[name]
    assert field.description
    assert field.description.rstrip().endswith(".")
    assert not field.is_required()


def test_defaults_are_within_their_own_ranges() -> None:
    assert KBCConfig(**KBCConfig().model_dump()) == KBCConfig()


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [("margn", "'margin'"), ("localiser", "'localizer'"), ("max_enlargment", "'max_enlargement'"), ("qqq", "known: ")],
)
def test_unknown_fields_are_refused_with_the_nearest(unknown: str, nearest: str) -> None:
    with pytest.raises(InputError) as caught:
        make_config(None, {unknown: 1})
    assert unknown in str(caught.value)
    assert nearest in str(caught.value)
    with pytest.raises(ValidationError):
        KBCConfig(**{unknown: 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("localizer", "magic"),
        ("budget", "huge"),
        ("small_below", 0),
        ("small_below", 1.01),
        ("margin", -0.01),
        ("margin", 4.1),
        ("margin", "wide"),
        ("margin", math.nan),
        ("small_below", math.nan),
        ("max_enlargement", 0.9),
        ("max_enlargement", math.nan),
        ("aspect", "round"),
        ("interpolation", "nearest"),
        ("passes", -1),
        ("passes", 9),
        ("passes", 1.5),
        ("accept_margin", 11),
        ("accept_margin", math.nan),
        ("batch_size", 0),
        ("joint", "perhaps"),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InputError) as caught:
        make_config(None, {name: value})
    assert f"`{name}`" in str(caught.value)
    assert repr(value) in str(caught.value)


def test_options_change_a_given_config_and_leave_it_alone() -> None:
    base = KBCConfig(margin=0.5, budget="balanced")
    changed = make_config(base, {"budget": "thorough"})
    assert (changed.margin, changed.budget) == (0.5, "thorough")
    assert base.budget == "balanced"
    assert make_config(base, {}) == base
    assert make_config(None, {}) == KBCConfig()


def test_something_else_than_a_config_is_a_typed_error() -> None:
    with pytest.raises(InputError, match=r"config.*KBCConfig.*dict"):
        kbc.wrap(lambda s, t, k: k, {"margin": 1})  # type: ignore[arg-type]


def test_budgets_have_a_cost_each_and_grow() -> None:
    assert list(COST) == ["fast", "balanced", "thorough"]
    assert list(COST.values()) == sorted(COST.values())
    assert COST["fast"] <= 2  # the default rule: at most two calls
    assert KBCConfig().budget == "fast"
