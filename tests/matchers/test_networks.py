"""Flow and correlation networks as matchers: a network that knows the truth must give it, in any frame and size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kbc
from kbc.errors import InputError, MatcherError
from kbc.geometry import Window, cell_centres, resize_points
from kbc.matchers.protocol import SimilarityMatcher, run_matcher
from kbc.types import Pair
from tests.conftest import draw_scene

SOURCE_HW, TARGET_HW = (240, 320), (300, 260)
SOURCE, TARGET = draw_scene(1, SOURCE_HW), draw_scene(2, TARGET_HW)
SHIFT = np.array([[1.0, 0.0, 17.3], [0.0, 1.0, -9.6]])
AFFINE = np.array([[0.8, 0.1, 11.0], [-0.15, 1.1, 30.0]])
POINTS = np.array([[60.2, 70.1], [150.0, 120.5], [np.nan, 4.0], [200.7, 90.3], [123.4, 180.9]])


def through(warp: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ warp[:, :2].T + warp[:, 2]


def inverse(warp: np.ndarray) -> np.ndarray:
    back = np.linalg.inv(warp[:, :2])
    return np.column_stack([back, -back @ warp[:, 2]])


def flow_of(
    warp: np.ndarray, from_hw: tuple[int, int], to_hw: tuple[int, int], size: tuple[int, int], grid: tuple[int, int]
) -> np.ndarray:
    """(2, h, w) flow, in pixels of `size`, of a warp between original images, written down from its definition."""
    x, y = cell_centres(grid, size)
    at = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    there = resize_points(through(warp, resize_points(at, size, from_hw)), to_hw, size)
    return (there - at).T.reshape(2, *grid)


def knows(
    warp: np.ndarray, direction: str, frame: str, size: tuple[int, int], grid: tuple[int, int]
) -> Callable[[Tensor, Tensor], Tensor]:
    ends = (SOURCE_HW, TARGET_HW) if direction == "source_to_target" else (TARGET_HW, SOURCE_HW)
    flow = flow_of(warp if direction == "source_to_target" else inverse(warp), *ends, size, grid)
    if frame == "cells":
        flow = flow * np.array([grid[1] / size[1], grid[0] / size[0]])[:, None, None]

    def network(source: Tensor, target: Tensor) -> Tensor:
        assert tuple(source.shape[1:]) == tuple(target.shape[1:]) == (3, *size)
        return torch.from_numpy(flow)[None].expand(len(source), -1, -1, -1)

    return network


@pytest.mark.parametrize("warp", [SHIFT, AFFINE], ids=["shift", "affine"])
@pytest.mark.parametrize("direction", ["source_to_target", "target_to_source"])
@pytest.mark.parametrize("frame", ["pixels", "cells"])
@pytest.mark.parametrize(
    ("size", "grid"),
    [((256, 256), (256, 256)), ((192, 288), (192, 288)), ((256, 256), (64, 64)), ((192, 320), (24, 40))],
)
def test_a_flow_network_that_knows(
    warp: np.ndarray, direction: Any, frame: Any, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    network = knows(warp, direction, frame, size, grid)
    matcher = kbc.from_flow(network, direction=direction, size=size, frame=frame)
    found = run_matcher(matcher, [Pair(SOURCE, TARGET, POINTS)] * 3)
    for match in found:
        error = np.abs(match.keypoints - through(warp, POINTS))
        assert np.isnan(error[2]).all()
        assert np.nanmax(error) <= 0.5


def test_a_flow_network_stays_right_with_kbc_around_it() -> None:
    """Through windows the flow is another one; this network reads it off the pixels."""
    from tests.conftest import find_ramp, ramp, read_ramp

    image = ramp((200, 250))
    warp = np.array([[1.0, 0.0, 20.0], [0.0, 1.0, 10.0]])
    size = (128, 128)

    def network(source: Tensor, target: Tensor) -> Tensor:
        flows = []
        for here, there in zip(source, target, strict=True):
            a, b = ((t.permute(1, 2, 0).numpy() * 255) for t in (here, there))
            x, y = cell_centres(size, size)
            at = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
            flows.append((find_ramp(b, through(warp, read_ramp(a, at))) - at).T.reshape(2, *size))
        return torch.from_numpy(np.stack(flows))

    matcher = kbc.from_flow(network, size=size, normalise=False)
    points = np.array([[60.2, 70.1], [85.7, 64.4], [71.3, 92.8]])
    result = kbc.wrap(matcher).match([Pair(image, image, points)])[0]
    assert set(result.origin) == {"fine"}
    assert np.abs(result.keypoints - through(warp, points)).max() <= 0.1


def test_a_flow_is_followed_in_batches_of_different_images() -> None:
    seen: list[int] = []

    def shift(source: Tensor, target: Tensor) -> Tensor:
        seen.append(len(source))
        return torch.full((len(source), 2, 8, 8), 4.0)

    matcher = kbc.from_flow(shift, size=64)
    pairs = [Pair(draw_scene(i, (64, 64)), draw_scene(i + 1, (64, 128)), [[10.0, 20.0]]) for i in range(11)]
    found = run_matcher(matcher, pairs)
    assert sum(seen) == 11
    assert max(seen) <= matcher.max_batch
    for match in found:
        expected = resize_points(np.array([[14.0, 24.0]]), (64, 64), (64, 128))
        assert match.keypoints == pytest.approx(expected, abs=1e-4)


def test_what_a_network_is_given() -> None:
    seen: list[Tensor] = []

    def network(source: Tensor, target: Tensor) -> Tensor:
        seen.extend([source, target])
        return torch.zeros(len(source), 2, 4, 4)

    grey = np.full((32, 32, 3), 128, np.uint8)
    pair = Pair(grey, SOURCE, [[1.0, 1.0]])
    kbc.from_flow(network, size=(32, 48), normalise=False).match([pair])
    kbc.from_flow(network, size=(32, 48)).match([pair])
    plain, target, normalised, _ = seen
    assert plain.shape == target.shape == (1, 3, 32, 48)
    assert plain.flatten().tolist() == pytest.approx([128 / 255] * plain.numel())
    for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        assert float(normalised[0, channel, 0, 0]) == pytest.approx((128 / 255 - mean) / std, abs=1e-5)
    assert torch.allclose(
        target[0].permute(1, 2, 0) * 255, torch.from_numpy(Window.whole(SOURCE_HW, (32, 48)).cut(SOURCE)).float()
    )


def correlation(truth: np.ndarray, source_grid: tuple[int, int], target_grid: tuple[int, int]) -> Tensor:
    """(hs, ws, ht, wt): a bump for every source cell at its true target cell, in fractional cells `truth` (hs, ws, 2).

    Its shape is that whose soft-argmax at the matcher's temperature is exact: a parabola.
    """
    y, x = np.mgrid[: target_grid[0], : target_grid[1]]
    away = (x - truth[..., 0, None, None]) ** 2 + (y - truth[..., 1, None, None]) ** 2
    return torch.from_numpy(1.0 - 0.05 * away).float()


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    ("size", "source_grid", "target_grid"),
    [((256, 256), (16, 16), (16, 16)), ((192, 320), (12, 20), (12, 20)), ((128, 128), (8, 16), (32, 32))],
)
def test_a_correlation_with_known_peaks(
    size: tuple[int, int], source_grid: tuple[int, int], target_grid: tuple[int, int], flat: bool
) -> None:
    x, y = cell_centres(source_grid, SOURCE_HW)
    cells = np.stack(np.meshgrid(x, y), axis=-1)
    to_cells = Window.whole(TARGET_HW, target_grid)
    truth = to_cells.to_window(through(AFFINE, cells.reshape(-1, 2))).reshape(*source_grid, 2)
    volume = correlation(truth, source_grid, target_grid)

    def network(source: Tensor, target: Tensor) -> Tensor:
        batch = volume[None].expand(len(source), *volume.shape)
        return batch.flatten(3).flatten(1, 2) if flat else batch

    matcher = kbc.from_correlation(network, size=size, source_grid=source_grid if flat else None)
    assert isinstance(matcher, SimilarityMatcher)
    asked = cells[2:-2, 2:-2].reshape(-1, 2)[::3]
    expected = through(AFFINE, asked)
    inside = (
        (to_cells.to_window(expected) > 1) & (to_cells.to_window(expected) < np.array(target_grid[::-1]) - 2)
    ).all(axis=1)
    asked, expected = asked[inside], expected[inside]
    assert len(asked) >= 3
    points = np.vstack([asked, [[np.nan, np.nan]]])
    match = run_matcher(matcher, [Pair(SOURCE, TARGET, points)] * 2)[1]
    cell = np.array([TARGET_HW[1] / target_grid[1], TARGET_HW[0] / target_grid[0]])
    assert (np.abs(match.keypoints[:-1] - expected) / cell).max() <= 0.2
    assert np.isnan(match.keypoints[-1]).all()
    assert match.score is not None
    assert (match.score[:-1] > 0.9).all()
    maps = matcher.similarity([Pair(SOURCE, TARGET, points)])[0]
    assert maps.shape == (len(points), *target_grid)
    assert maps[-1].isnan().all()
    peak = np.unravel_index(int(maps[0].argmax()), target_grid)
    centre = to_cells.to_image(np.array([[peak[1], peak[0]]], dtype=np.float64))
    assert (np.abs(centre - expected[0]) <= cell * 0.51).all()


@pytest.mark.parametrize(
    ("build", "output", "message"),
    [
        (kbc.from_flow, torch.zeros(1, 3, 8, 8), r"\(B, 2, h, w\) or \(B, h, w, 2\), received \(1, 3, 8, 8\)"),
        (kbc.from_flow, torch.zeros(1, 2, 8), r"received \(1, 2, 8\)"),
        (kbc.from_flow, torch.zeros(2, 2, 8, 8), r"\(1, …\), received \(2, 2, 8, 8\)"),
        (kbc.from_flow, torch.full((1, 2, 8, 8), torch.nan), "finite"),
        (kbc.from_flow, [torch.zeros(1, 2, 8, 8)], "received list"),
        (kbc.from_flow, torch.full((1, 2, 8, 8), 1e5), "target's pixels"),
        (kbc.from_correlation, torch.zeros(1, 8, 8, 8), r"received \(1, 8, 8, 8\)"),
        (kbc.from_correlation, torch.zeros(1, 60, 64), "square one, received 60 cells in a row"),
        (kbc.from_correlation, torch.zeros(1, 64, 60), "square one, received 60 cells in a row"),
        (kbc.from_correlation, torch.full((1, 8, 8, 8, 8), torch.inf), "finite"),
        (kbc.from_correlation, torch.zeros(3, 8, 8, 8, 8), r"received \(3, 8, 8, 8, 8\)"),
        (kbc.from_correlation, None, "NoneType"),
    ],
)
def test_wrong_outputs_are_named(build: Any, output: Any, message: str) -> None:
    matcher = build(lambda source, target: output, name="net")
    with pytest.raises(MatcherError, match=message) as caught:
        run_matcher(matcher, [Pair(SOURCE, TARGET, POINTS)])
    assert "'net'" in str(caught.value)


@pytest.mark.parametrize("output", [torch.zeros(1, 64, 64), torch.zeros(1, 8, 8, 8, 8)])
def test_a_source_grid_that_does_not_fit_is_named(output: Tensor) -> None:
    matcher = kbc.from_correlation(lambda s, t: output, source_grid=(4, 4), name="net")
    with pytest.raises(MatcherError, match=r"'net' must give \(B, 4, 4, ht, wt\) or \(B, 4·4, ht·wt\), received \(1, "):
        run_matcher(matcher, [Pair(SOURCE, TARGET, POINTS)])
    for grid in ("8x8", (8.0, 8.0), (-8, -8), (8, 8, 8)):
        with pytest.raises(InputError, match="`source_grid` must be a side or"):
            kbc.from_correlation(lambda s, t: output, source_grid=grid)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "grid"),
    [((128, 256), (8, 16)), ((100, 260), (3, 8)), ((200, 256), (16, 16)), ((64, 640), (2, 20)), ((256, 256), (32, 32))],
)
def test_cells_in_a_row_lie_as_the_input_does_or_in_a_square(size: tuple[int, int], grid: tuple[int, int]) -> None:
    x, y = cell_centres(grid, TARGET_HW)
    volume = torch.eye(grid[0] * grid[1])[None]  # every cell is like its namesake alone
    asked = np.array([[cell_centres(grid, SOURCE_HW)[0][1], cell_centres(grid, SOURCE_HW)[1][-1]]])
    found = kbc.from_correlation(lambda s, t: volume, size=size).match([Pair(SOURCE, TARGET, asked)])[0].keypoints
    assert found[0] == pytest.approx([x[1], y[-1]], abs=0.6 * max(x[1] - x[0], y[1] - y[0]))


def test_cells_in_a_row_that_may_be_of_two_grids_are_refused() -> None:
    flat = torch.eye(36)[None]  # 4 × 9, or 6 × 6 of a network that squares its input
    with pytest.raises(MatcherError, match="received 36 cells in a row, which may be 4×9 or 6×6"):
        kbc.from_correlation(lambda s, t: flat, size=(128, 288)).match([Pair(SOURCE, TARGET, POINTS)])
    x, y = cell_centres((4, 9), SOURCE_HW)
    found = kbc.from_correlation(lambda s, t: flat, size=(128, 288), source_grid=(4, 9))
    maps = found.similarity([Pair(SOURCE, TARGET, [[x[7], y[1]]])])[0]
    assert maps.shape == (1, 4, 9)
    assert int(maps.argmax()) == 9 + 7


@pytest.mark.parametrize("options", [{"direction": "backwards"}, {"frame": "metres"}, {"device": "meta"}])
def test_unknown_options_are_refused(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(InputError, match=f"`{name}`.*{value}"):
        kbc.from_flow(lambda s, t: None, **options)


@pytest.mark.parametrize("kind", ["tensor", "array"])
@pytest.mark.parametrize("last", [False, True], ids=["(B, 2, h, w)", "(B, h, w, 2)"])
def test_a_flow_may_be_of_numpy_and_have_its_channels_last(kind: str, last: bool) -> None:
    def shift(source: Tensor, target: Tensor) -> Any:
        flow = torch.zeros(len(source), 2, 8, 16)
        flow[:, 0] = 4.0
        flow = flow.movedim(1, -1) if last else flow
        return flow if kind == "tensor" else flow.numpy()

    found = kbc.from_flow(shift, size=64).match([Pair(draw_scene(0, (64, 64)), draw_scene(1, (64, 64)), [[10, 20]])])
    assert found[0].keypoints == pytest.approx(np.array([[14.0, 20.0]]), abs=1e-4)


@pytest.mark.parametrize("last", [False, True], ids=["(2, h, w)", "(h, w, 2)"])
def test_a_function_on_arrays_gives_the_flow_of_one_pair(last: bool) -> None:
    def shift(source: np.ndarray, target: np.ndarray) -> np.ndarray:
        assert source.shape == target.shape == (32, 64, 3)
        assert source.dtype == np.uint8
        flow = np.zeros((2, 32, 64), np.float32)
        flow[1] = -3
        return np.moveaxis(flow, 0, -1) if last else flow

    pair = Pair(draw_scene(0, (32, 64)), draw_scene(1, (32, 64)), [[10, 20]])
    found = kbc.from_flow(shift, size=(32, 64), image="array").match([pair, pair])
    for match in found:
        assert match.keypoints == pytest.approx(np.array([[10.0, 17.0]]), abs=1e-4)


def test_opencv_s_flow_finds_a_shift() -> None:
    import cv2

    dis = cv2.DISOpticalFlow.create()
    image = draw_scene(4, (128, 128))
    matcher = kbc.from_flow(
        lambda a, b: dis.calc(cv2.cvtColor(a, cv2.COLOR_RGB2GRAY), cv2.cvtColor(b, cv2.COLOR_RGB2GRAY), None),
        image="array",
        size=128,
    )
    moved = np.roll(image, (3, 5), axis=(0, 1))
    points = np.array([[50.0, 60.0], [64.0, 70.0], [80.0, 60.0]])
    found = matcher.match([Pair(image, moved, points)])[0].keypoints
    assert np.median(np.abs(found - points - (5, 3))) <= 1


def test_a_flow_whose_axes_cannot_be_told_apart_is_refused() -> None:
    matcher = kbc.from_flow(lambda s, t: torch.zeros(len(s), 2, 8, 2), name="net", size=64)
    with pytest.raises(MatcherError, match=r"received \(1, 2, 8, 2\), in which x and y could be the first or the last"):
        run_matcher(matcher, [Pair(SOURCE, TARGET, POINTS)])


def test_several_outputs_are_refused_with_the_way_out() -> None:
    matcher = kbc.from_flow(lambda s, t: [torch.zeros(1, 2, 8, 8)], name="net")
    with pytest.raises(MatcherError, match=r"a tensor or a NumPy array, received list; of several give one"):
        run_matcher(matcher, [Pair(SOURCE, TARGET, POINTS)])
