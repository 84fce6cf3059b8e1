"""KBCNet as a matcher."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kbcnet_helpers import shaken, small_config, turnable

from kbc.data.scenes.render import scene_pair
from kbc.errors import InputError
from kbc.kbcnet import KBCNet, load
from kbc.kbcnet.checkpoint import empty_network
from kbc.kbcnet.matcher import correlation_bytes, peaks
from kbc.kbcnet.model import Network
from kbc.kbcnet.training.recipe import read_recipe
from kbc.matchers.protocol import SimilarityMatcher, run_matcher
from kbc.types import Pair


def pairs(count: int = 3) -> list[Pair]:
    return [scene_pair(seed, size_hw=(96, 128)).pair for seed in range(count)]


def test_it_is_a_similarity_matcher(network: Network) -> None:
    matcher = KBCNet(network)
    assert isinstance(matcher, SimilarityMatcher)
    assert matcher.input_size == (64, 64)
    for pair, match in zip(pairs(), run_matcher(matcher, pairs()), strict=True):
        assert match.keypoints.shape == pair.keypoints.shape
        assert match.score is not None
        assert ((match.score > 0) & (match.score <= 1 + 1e-6)).all()


def test_a_batch_gives_what_single_calls_give(network: Network) -> None:
    matcher = KBCNet(network)
    together = matcher.match(pairs())
    for pair, match in zip(pairs(), together, strict=True):
        alone = KBCNet(network).match([pair])[0]
        assert np.allclose(match.keypoints, alone.keypoints, atol=1e-3)
        assert np.allclose(match.score, alone.score, atol=1e-5)


@pytest.mark.parametrize(("backbone", "size_hw"), [("tiny", (64, 96)), ("resnet18", (65, 97))])
def test_an_image_finds_its_points_in_itself_turned(backbone: str, size_hw: tuple[int, int]) -> None:
    """By 180°, with a network that turns its maps along: an error of the offset counts twice instead of cancelling."""
    config = small_config(backbone=backbone, layers=(1, 2, 3), decoder=(), temperature=0.005)
    network = empty_network(config)
    turnable(network.backbone)
    matcher = KBCNet(network, size=size_hw)
    image = scene_pair(1, size_hw=size_hw).source.image
    points = matcher.grid.to_pixels(torch.tensor([[3.0, 2.0], [7.0, 5.0], [1.0, 6.0]])).numpy().astype(np.float64)
    turned = np.array([size_hw[1] - 1, size_hw[0] - 1]) - points
    found = matcher.match([Pair(image, np.ascontiguousarray(image[::-1, ::-1]), points)])[0].keypoints
    assert np.abs(found - turned).max() < 0.25 * matcher.grid.stride  # an offset of the other kind: 0.9 strides


def test_an_image_finds_its_points_at_another_size() -> None:
    """The target is the source, enlarged twice and stretched to the same input: places scale about pixel edges."""
    matcher = KBCNet(empty_network(small_config(decoder=(), temperature=0.005)), size=(64, 96))
    image = scene_pair(1, size_hw=(64, 96)).source.image
    points = matcher.grid.to_pixels(torch.tensor([[3.0, 2.0], [7.0, 5.0], [1.0, 6.0]])).numpy().astype(np.float64)
    found = matcher.match([Pair(image, image.repeat(2, 0).repeat(2, 1), points)])[0].keypoints
    assert np.abs(found - (2 * points + 0.5)).max() < 0.25


def test_undefined_and_absent_points(network: Network) -> None:
    first, second, third = pairs()
    points = first.keypoints.copy()
    points[1] = np.nan
    none = Pair(second.source, second.target, np.empty((0, 2)))
    found = KBCNet(network).match([Pair(first.source, first.target, points), none, third])
    assert np.isnan(found[0].keypoints[1]).all()
    assert found[0].score is not None
    assert math.isnan(found[0].score[1])
    assert np.isfinite(np.delete(found[0].keypoints, 1, axis=0)).all()
    assert found[1].keypoints.shape == (0, 2)
    assert KBCNet(network).match([none])[0].keypoints.shape == (0, 2)
    assert KBCNet(network).match([]) == []


def test_features_are_kept_per_image_within_a_bound(network: Network) -> None:
    matcher = KBCNet(network)
    pair = pairs(1)[0]
    matcher.match([pair, pair])
    matcher.match([Pair(pair.target, pair.source, pair.keypoints)])
    matcher.similarity([pair])
    assert matcher.encoded == 2
    forgetful = KBCNet(network, cache_bytes=0)
    forgetful.match([pair])
    forgetful.match([pair])
    assert forgetful.encoded == 4


def test_similarity_covers_the_target_and_peaks_where_the_match_lies(network: Network) -> None:
    matcher = KBCNet(network, size=(64, 96))
    pair = pairs(1)[0]
    values = matcher.similarity([pair])[0].numpy()
    match = matcher.match([pair])[0]
    assert values.shape == (len(pair.keypoints), 8, 12)
    assert values.dtype == np.float32
    height, width = pair.target.shape[:2]
    for point, row in zip(match.keypoints, values, strict=True):
        i, j = np.unravel_index(row.argmax(), row.shape)
        centre = ((j + 0.5) * width / 12 - 0.5, (i + 0.5) * height / 8 - 0.5)
        assert np.abs(point - centre).max() <= (matcher.network.config.reach + 0.5) * width / 12


def test_similarity_right_after_a_match_computes_nothing(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    matcher = KBCNet(network)
    asked = pairs()
    matcher.match(asked)
    fresh = KBCNet(network).similarity(asked)
    monkeypatch.setattr(network, "query", None)
    for kept, computed in zip(matcher.similarity(asked), fresh, strict=True):
        assert np.allclose(kept, computed, atol=1e-5)


def test_flow_agrees_with_the_points_at_cell_centres(network: Network) -> None:
    matcher = KBCNet(network)
    pair = pairs(1)[0]
    flow = matcher.flow([pair])[0]
    assert flow.target.shape == (8, 8, 2)
    asked = flow.source[[1, 4, 6], [2, 3, 7]]
    match = matcher.match([Pair(pair.source, pair.target, asked)])[0]
    assert np.allclose(match.keypoints, flow.target[[1, 4, 6], [2, 3, 7]], atol=0.05)
    assert np.allclose(flow.at(asked), match.keypoints, atol=0.05)
    assert np.isnan(flow.at(np.array([[np.nan, 1.0]]))).all()


def test_confidence_is_the_share_around_the_peak() -> None:
    rows = torch.full((2, 9, 9), -10.0)
    rows[0, 4, 4] = 0.0
    rows[1, 1, 1] = rows[1, 7, 7] = 0.0
    cells, score = peaks(rows, 2, 0.1)
    assert torch.allclose(cells[0], torch.tensor([4.0, 4.0]))
    assert torch.allclose(score, torch.tensor([1.0, 0.5]), atol=1e-4)


def test_the_memory_of_a_pair_is_what_is_foretold(tmp_path: Path) -> None:
    """What the allocator gave out while a pair was compared, features at hand: not much more, and not half."""
    rng = np.random.default_rng(0)
    source, target = (rng.integers(0, 255, (96, 128, 3), dtype=np.uint8) for _ in range(2))
    pair = Pair(source, target, rng.uniform(2, 90, (10, 2)))
    for recipe, size, changes in (
        ("kbcnet-tiny", 160, {}),
        ("kbcnet-resnet18", 256, {}),
        ("kbcnet-resnet18", 256, {"model.decoder": [16, 16]}),
        ("kbcnet-resnet18", 256, {"model.decoder": []}),
        ("kbcnet-resnet18", 256, {"model.vote_pool": 1}),
    ):
        matcher = KBCNet(empty_network(read_recipe(recipe, changes).model), size=size)
        matcher.match([pair])
        most = max(peak_bytes(partial(run, [pair]), tmp_path) for run in (matcher.match, matcher.flow))
        foretold = correlation_bytes(matcher.network, (size, size))
        assert most <= 1.3 * foretold, (recipe, changes)
        assert foretold <= 2 * most, (recipe, changes)


def peak_bytes(run: Callable[[], object], folder: Path) -> int:
    """Most bytes held at once of what torch's CPU allocator gave out during the run."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    profile.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    memory = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"])
    return int(max(np.cumsum([e["args"]["Bytes"] for e in memory])))


@pytest.mark.parametrize("size", [(64,), (64, 64, 64), 64.0, 0, -64, "64"], ids=repr)
def test_sizes_that_are_none(network: Network, size: Any) -> None:
    with pytest.raises(InputError, match="`size` must be"):
        KBCNet(network, size=size)


def test_sizes_that_cannot_be(network: Network) -> None:
    assert KBCNet(network, size=np.int64(64)).input_size == (64, 64)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 16"):
        KBCNet(network, size=8)
    with pytest.raises(InputError, match="GiB"):
        KBCNet(network, size=4096)


def test_load(checkpoint: Path, tmp_path: Path) -> None:
    matcher = load(weights=checkpoint, size=96, amp=True)
    assert matcher.name == "kbcnet-small"
    assert matcher.match(pairs(1))[0].keypoints.shape == pairs(1)[0].keypoints.shape
    with pytest.raises(InputError, match=r"existing KBCNet checkpoint.*nowhere\.safetensors"):
        load(weights=tmp_path / "nowhere.safetensors")


@pytest.mark.slow
def test_compiled_it_gives_the_same_points(network: Network) -> None:
    pair = pairs(1)[0]
    compiled, plain = (KBCNet(network, compile=on).match([pair])[0] for on in (True, False))
    assert np.allclose(compiled.keypoints, plain.keypoints, atol=0.05)
    assert np.allclose(compiled.score, plain.score, atol=1e-3)


def test_kbc_around_it(network: Network) -> None:
    kbc = pytest.importorskip("kbc")
    scene = scene_pair(3, size_hw=(240, 320), object_fraction=(0.15, 0.2))
    matcher = kbc.wrap(KBCNet(shaken(network)), localizer="given", small_below=0.9)
    pair = Pair(scene.source.image, scene.target.image, scene.pair.keypoints, target_box=scene.target_box)
    result = matcher.match([pair])[0]
    assert result.target_window is not None
    assert result.target_window.size_hw == (64, 64)
