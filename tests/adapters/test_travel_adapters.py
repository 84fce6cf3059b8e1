"""Adapters travel to other processes and give the same answers there."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from adapter_layers import NAMES, Layer, example
from kbc_adapters.dino import load

import kbc


def travelled(matcher: Any) -> list[Any]:
    return [pickle.loads(pickle.dumps(matcher)), copy.deepcopy(matcher)]


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_travels(name: str, matchers: dict[str, Any]) -> None:
    matcher, pair = matchers[name], example()
    before = matcher.match([pair])[0].keypoints
    for there in travelled(matcher):
        np.testing.assert_array_equal(there.match([pair])[0].keypoints, before)
        np.testing.assert_array_equal(there.similarity([pair])[0], matcher.similarity([pair])[0])
    wrapped = kbc.wrap(matcher)
    for there in travelled(wrapped):
        np.testing.assert_array_equal(there.match([pair])[0].keypoints, wrapped.match([pair])[0].keypoints)


def answered(sent: bytes) -> np.ndarray:
    """In a process that knows nothing but what it was sent."""
    torch.set_num_threads(1)
    return np.asarray(pickle.loads(sent).match([example()])[0].keypoints)


@pytest.mark.slow
def test_a_spawned_process_gives_an_adapters_answers(layer: Layer, matchers: dict[str, Any]) -> None:
    sent = [pickle.dumps(matchers[name]) for name in NAMES]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(answered, sent)
    for name, there in zip(NAMES, found, strict=True):
        np.testing.assert_allclose(there, matchers[name].match([example()])[0].keypoints, atol=1e-4)


def test_dino_travels() -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra: pip install kbc[dino]")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.Dinov2Model(
            transformers.Dinov2Config(image_size=56, patch_size=14, hidden_size=32, num_hidden_layers=2,
                                      num_attention_heads=2)
        ).eval()  # fmt: skip
    matcher, pair = load(model=model, size=56), example()
    before = matcher.match([pair])[0].keypoints
    for there in travelled(matcher):
        np.testing.assert_array_equal(there.match([pair])[0].keypoints, before)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (there,) = pool.map(answered, [pickle.dumps(matcher)])
    np.testing.assert_allclose(there, before, atol=1e-4)
