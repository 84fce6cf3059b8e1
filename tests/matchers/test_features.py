"""Feature matchers: cells where they lie, sub-cell peaks on drawn images, one encoding per image, votes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kbc
from kbc.errors import InputError, MatcherError
from kbc.matchers.features import FeatureMatcher
from kbc.matchers.protocol import run_matcher
from kbc.tensors import Grid, soft_peak
from kbc.types import Pair
from tests.conftest import draw_scene


def patch_means(images: Tensor) -> Tensor:
    """What an 8-px patch looks like in colour, and where its weight lies: enough to tell patches apart."""
    return torch.nn.functional.unfold(images, 8, stride=8).unflatten(2, (images.shape[2] // 8, images.shape[3] // 8))


def small(**options: Any) -> FeatureMatcher:
    return kbc.from_features(patch_means, 8, size=128, normalise=False, **options)


@pytest.mark.parametrize("grid", [Grid(8.0, 3.5), Grid(16.0, 0.0), Grid(14.0, 6.5)])
def test_cells_and_pixels_are_each_others_inverse(grid: Grid) -> None:
    pixels = torch.tensor([[0.0, 0.0], [3.5, 100.25]], dtype=torch.float64)
    assert torch.allclose(grid.to_pixels(grid.to_cells(pixels)), pixels)
    assert grid.to_pixels(torch.zeros(2)).tolist() == [grid.offset, grid.offset]


def test_a_shift_by_whole_cells_is_found() -> None:
    image = draw_scene(4, (160, 160))
    source, target = image[:128, :128], image[16:144, 8:136]
    points = np.array([[35.5, 43.5], [67.5, 91.5], [99.5, 51.5], [np.nan, 0.0]])
    match = run_matcher(small(), [Pair(source, target, points)])[0]
    error = np.abs(match.keypoints[:3] - (points[:3] - (8, 16))).max()
    assert error <= 0.2 * 8  # the soft-argmax leans towards the more similar neighbour by part of a cell
    assert np.isnan(match.keypoints[3]).all()
    assert match.score is not None
    assert (match.score[:3] > 0.999).all()


def test_a_peak_between_cells_is_found() -> None:
    """A parabola around (6.3, 4.8): the soft-argmax over its top is off by less than a tenth of a cell."""
    y, x = torch.meshgrid(torch.arange(10.0), torch.arange(12.0), indexing="ij")
    values = 1 - 0.05 * ((x - 6.3) ** 2 + (y - 4.8) ** 2)
    cells, score = soft_peak(values[None], reach=2)
    assert cells[0].tolist() == pytest.approx([6.3, 4.8], abs=0.1)
    assert float(score[0]) == pytest.approx(float(values.max()))


def test_each_image_is_encoded_once() -> None:
    matcher = small()
    a, b, c = (draw_scene(seed, (90, 120)) for seed in range(3))
    pairs = [Pair(x, y, [[20.0, 20.0]]) for x, y in ((a, b), (b, a), (a, c), (c.copy(), b))]
    together = matcher.match(pairs)
    assert matcher.encoded == 3
    again = small(cache_bytes=0)
    apart = [again.match([pair])[0] for pair in pairs]
    assert again.encoded == 8
    for one, other in zip(together, apart, strict=True):
        assert np.abs(one.keypoints - other.keypoints).max() <= 1e-4


def test_the_cache_keeps_to_its_bound_and_drops_the_oldest() -> None:
    one = 4 * 3 * 64 * 16 * 16
    matcher = small(cache_bytes=2 * one)
    a, b, c = (draw_scene(seed, (90, 120)) for seed in range(3))
    for image in (a, b, a, c):  # c drops b, which was used longer ago than a
        matcher.features([image])
    assert matcher.encoded == 3
    matcher.features([a])
    assert matcher.encoded == 3
    matcher.features([b])
    assert matcher.encoded == 4


def test_similarity_covers_the_target() -> None:
    pair = Pair(draw_scene(1, (90, 120)), draw_scene(2, (90, 120)), [[20.0, 20.0], [np.nan, 1.0]])
    maps = small().similarity([pair])[0]
    assert maps.shape == (2, 16, 16)
    assert maps[1].isnan().all()
    assert maps[0].isfinite().all()


def test_votes_move_a_point_to_where_its_neighbours_went() -> None:
    """One patch of the target is painted over and its pixels put elsewhere: alone it is found there."""
    image = draw_scene(4, (128, 128))
    target = image.copy()
    target[40:48, 40:48] = 127
    target[104:112, 8:16] = image[40:48, 40:48]
    pair = Pair(image, target, [[43.5, 43.5]])
    alone = small().match([pair])[0].keypoints[0]
    matcher = small()
    voted = matcher.with_votes()
    assert np.abs(alone - (11.5, 107.5)).max() <= 4
    assert np.abs(voted.match([pair])[0].keypoints[0] - (43.5, 43.5)).max() <= 8
    assert voted.similarity([pair])[0].abs().max() <= 1.5 + 1e-6
    assert np.abs(matcher.match([pair])[0].keypoints[0] - alone).max() == 0  # the first one is as it was


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda images: images[:, :, 0], r"\(1, C, h, w\), received \(1, 3, 128\)"),
        (lambda images: torch.zeros(2, 4, 8, 8), r"received \(2, 4, 8, 8\)"),
        (lambda images: torch.zeros(1, 64, 4), r"\(1, 64, 4\); tokens .*reshape\(B, C, h, w\)"),
        (lambda images: None, "NoneType"),
        (lambda images: torch.full((1, 4, 8, 8), torch.nan), "NaN"),
        (lambda images: torch.zeros(1, 0, 8, 8), r"received none: \(1, 0, 8, 8\)"),
        (lambda images: torch.zeros(1, 4, 0, 8), r"received none: \(1, 4, 0, 8\)"),
    ],
)
def test_wrong_features_are_named(encode: Any, message: str) -> None:
    matcher = kbc.from_features(encode, 16, size=128, name="net")
    blank = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(MatcherError, match=message) as caught:
        matcher.match([Pair(blank, blank, [[3.0, 3.0]])])
    assert "'net'" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"stride": 16, "size": 8}, "size"),
        *(({"stride": stride}, "stride") for stride in (0, -4, float("nan"), float("inf"), "16", None, True, (16, 16))),
        *(({"stride": 8, "offset": offset}, "offset") for offset in ("x", [1], float("nan"), -1e9)),
        *(({"stride": 8, "cache_bytes": most}, "cache_bytes") for most in (None, "x")),
    ],
)
def test_impossible_grids_are_refused(options: dict[str, Any], argument: str) -> None:
    with pytest.raises(InputError, match=f"`{argument}`"):
        kbc.from_features(patch_means, **options)


def test_numbers_of_numpy_are_strides_and_offsets() -> None:
    pair = Pair(draw_scene(1), draw_scene(2), [[10.0, 10.0], [60.0, 50.0], [90.0, 30.0]])
    wanted = kbc.from_features(patch_means, 8, size=128, offset=3.5).match([pair])[0].keypoints
    found = kbc.from_features(patch_means, np.int64(8), size=128, offset=np.float32(3.5))  # type: ignore[arg-type]
    np.testing.assert_array_equal(found.match([pair])[0].keypoints, wanted)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [2.0**100, 2.0**60, 2.0**-60, 2.0**-100])
def test_features_of_any_scale_give_the_same_answers(scale: float) -> None:
    pair = Pair(draw_scene(1), draw_scene(2), [[10.0, 10.0], [60.0, 50.0], [90.0, 30.0]])
    wanted = kbc.from_features(patch_means, 8, size=128).match([pair])[0].keypoints
    found = kbc.from_features(lambda images: patch_means(images) * scale, 8, size=128).match([pair])[0].keypoints
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_a_wrong_stride_is_refused_before_it_gives_wrong_places() -> None:
    wrong = kbc.from_features(patch_means, 16, size=128)
    pair = Pair(draw_scene(1), draw_scene(2), [[10.0, 10.0]])
    with pytest.raises(MatcherError, match=r"a cell every 16 px of its 128×128 input, received 16×16 cells"):
        wrong.match([pair])


@pytest.mark.parametrize(
    ("stride", "offset", "implied"),
    [(4, None, 8), (7, None, 8), (9, None, 8), (7, 0.0, 8), (9.5, 0.0, 8)],
)
def test_a_stride_near_the_right_one_is_refused_with_what_the_output_implies(
    stride: float, offset: float | None, implied: float
) -> None:
    wrong = kbc.from_features(patch_means, stride, size=256, offset=offset)
    pair = Pair(draw_scene(1), draw_scene(2), [[10.0, 10.0]])
    with pytest.raises(MatcherError, match=rf"one every {implied:g} px; is it `stride={implied:g}`\?"):
        wrong.match([pair])


@pytest.mark.parametrize(
    ("stride", "offset", "side", "cells"),
    [
        (16, 7.5, 256, 16),
        (16, 7.5, 250, 15),  # what is left of the last patch is left out
        (256 / 30, (256 / 30 - 1) / 2, 256, 30),
        (16, 0.0, 256, 16),  # a ResNet, padded alike on both sides
        (16, 0.0, 250, 16),
        (16, 0.0, 257, 17),
        (17, 0.0, 256, 16),  # from edge to edge
    ],
)
def test_every_grid_that_can_be_is_taken(stride: float, offset: float, side: int, cells: int) -> None:
    assert Grid(stride, offset).covers(side, cells)
    assert not Grid(stride, offset).covers(side, cells + 2)
    assert not Grid(stride, offset).covers(side, cells - 2)


def test_what_is_no_encoder_and_a_device_that_is_not_there_are_refused_at_once() -> None:
    with pytest.raises(InputError, match=r"`encode` must be a function .*, received Tensor"):
        kbc.from_features(torch.zeros(1, 4, 8, 8), 16)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`device` must be one that torch can use here, received 'cuda:99'"):
        kbc.from_features(patch_means, 8, device="cuda:99")


def test_clearing_the_cache_asks_the_encoder_again() -> None:
    matcher = small()
    pair = Pair(draw_scene(1), draw_scene(2), [[10.0, 10.0]])
    matcher.match([pair])
    matcher.match([pair])
    assert matcher.encoded == 2
    matcher.clear_cache()
    matcher.match([pair])
    assert matcher.encoded == 4


@pytest.mark.parametrize("size", [0, -3, 2.5, "256", (1, 2, 3), (256, 0)])
def test_a_wrong_size_is_refused(size: object) -> None:
    with pytest.raises(InputError, match="whole pixels"):
        kbc.from_features(patch_means, 8, size=size)  # type: ignore[arg-type]
