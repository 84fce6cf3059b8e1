"""Pictures: what is drawn lies where the conventions say, and no global state of matplotlib is touched."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="matplotlib is an extra")

from kbc import viz
from kbc.data.scenes.render import scene_pair
from kbc.errors import InputError
from kbc.geometry import Box, Window
from kbc.types import Match, MatchResult, Pair

PAIR = Pair(np.full((60, 80, 3), 90, np.uint8), np.full((120, 100, 3), 30, np.uint8), [[10, 20], [40, 30], [70, 50]])
TRUTH = np.array([[20.0, 30.0], [50.0, 60.0], [np.nan, np.nan]])
ANSWER = Match(np.array([[21.0, 30.0], [80.0, 60.0], [5.0, 5.0]]))


def offsets(ax: object, colour: str) -> np.ndarray:
    from matplotlib.colors import to_rgba

    found = [c.get_offsets() for c in ax.collections if np.allclose(c.get_facecolor()[:1], to_rgba(colour))]
    return np.concatenate([np.asarray(f) for f in found]) if found else np.empty((0, 2))


def test_right_and_wrong_points_differ_in_colour_and_in_shape() -> None:
    _, (ax,) = viz.new_axes()
    viz.draw_points(ax, ANSWER.keypoints, right=np.array([True, False, False]))
    assert offsets(ax, viz.RIGHT).tolist() == [[21.0, 30.0]]
    assert offsets(ax, viz.WRONG).tolist() == [[80.0, 60.0], [5.0, 5.0]]
    circle, cross = (c.get_paths()[0].vertices for c in ax.collections)
    assert circle.shape != cross.shape


def test_undefined_points_are_left_out() -> None:
    _, (ax,) = viz.new_axes()
    viz.draw_points(ax, np.array([[1.0, 2.0], [np.nan, 3.0]]), numbers=True)
    assert offsets(ax, viz.PLAIN).tolist() == [[1.0, 2.0]]
    assert [text.get_text() for text in ax.texts] == ["0"]


def test_the_right_points_are_those_within_the_tolerance() -> None:
    assert viz.right_points(ANSWER.keypoints, TRUTH, 5.0).tolist() == [True, False, False]
    assert viz.right_points(ANSWER.keypoints, TRUTH, 40.0).tolist() == [True, True, False]
    assert viz.right_points(ANSWER.keypoints, TRUTH).tolist() == [True, False, False]  # 0.1 of 30 px
    assert viz.right_points(ANSWER.keypoints, None) is None


def test_a_box_is_drawn_at_the_outer_edges_of_its_pixels() -> None:
    _, (ax,) = viz.new_axes()
    viz.draw_box(ax, Box(3, 4, 10, 12))
    assert {p.get_bbox().bounds for p in ax.patches} == {(2.5, 3.5, 7.0, 8.0)}


def test_the_target_is_scaled_to_the_sources_height_and_its_points_go_along() -> None:
    result = MatchResult(ANSWER.keypoints, target_window=Window.fit(Box(10, 20, 50, 60), (120, 100)))
    ax = viz.draw_match(PAIR, result, lines=True)
    left, right, bottom, top = ax.images[1].get_extent()
    assert (bottom - top, right - left) == pytest.approx((60, 50))
    shown = offsets(ax, viz.PLAIN)[3:]  # after the three source points
    assert shown[0] == pytest.approx([left + (21 + 0.5) / 2, top + (30 + 0.5) / 2])
    (x, y, width, height) = ax.patches[-1].get_bbox().bounds
    assert (x - left, y - top, width, height) == pytest.approx((5, 10, 20, 20))
    assert len(ax.lines) == 3


def test_a_point_alone_is_shown_with_what_surrounds_it() -> None:
    """As large as KBC takes its object to be; sixteen pixels show nobody where it is."""
    image = np.zeros((480, 640, 3), np.uint8)
    pair = Pair(image, image, [[200.0, 150.0], [np.nan, np.nan]])
    result = MatchResult(
        np.array([[300.0, 200.0], [np.nan, np.nan]]), coarse=pair.keypoints, origin=("fine", "undefined")
    )
    axes = viz.draw_answer(pair, result)
    for name in ("source zoom", "kbc zoom"):
        low, high = axes[name].get_xlim()
        assert 160 <= high - low <= 320


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda: viz.draw_match(PAIR, TRUTH), "`answer` must be a Match, such as kbc.Match"),
        (lambda: viz.draw_comparison(PAIR, {"a": TRUTH, "b": ANSWER}), "`answer` must be a Match, such as kbc.Match"),
        (lambda: viz.draw_match(PAIR, Match(TRUTH[:1])), "`answer` must be 3 points, as the pair has, received 1"),
        (lambda: viz.draw_match(PAIR, ANSWER, truth=TRUTH[:2]), "`truth` must be 3 points, as the answer has"),
    ],
)
def test_what_does_not_belong_to_the_pair_is_refused(draw: Callable[[], object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        draw()


def test_points_without_an_answer_are_counted() -> None:
    coarse = PAIR.keypoints + 1
    left_out = np.where(np.arange(len(coarse))[:, None] < 1, np.nan, coarse)
    axes = viz.draw_answer(PAIR, MatchResult(left_out, coarse=coarse, origin=("fine",) * len(coarse)))
    assert axes["kbc zoom"].get_title() == "target, with KBC (1 without an answer)"


def test_a_comparison_counts_the_right_points_and_shows_one_object() -> None:
    row = viz.draw_comparison(PAIR, {"plain": ANSWER, "better": Match(TRUTH)}, truth=TRUTH)
    assert [ax.get_title() for ax in row[1:]] == ["source", "plain: 1 of 2 right", "better: 2 of 2 right"]
    assert row[2].get_xlim() == row[3].get_xlim()
    with pytest.raises(InputError, match="`row` must be 3 Axes, received 4"):
        viz.draw_comparison(PAIR, {"plain": ANSWER}, row=row)
    with pytest.raises(InputError, match="`answers` must be"):
        viz.draw_comparison(PAIR, {})


def test_cells_with_several_keypoints_are_counted() -> None:
    points = np.array([[0.0, 0.0], [3.4, 3.4], [3.6, 0.0], [63.0, 31.0], [np.nan, 0.0]])
    cells = viz.cell_of(points, (32, 64), (8, 16))  # cells of 4 px; 3.5 is the edge between the first two
    assert cells.tolist() == [[0, 0], [0, 0], [0, 1], [7, 15]]
    _, (ax,) = viz.new_axes()
    viz.draw_cells(ax, np.zeros((32, 64, 3), np.uint8), points, grid_hw=(8, 16))
    assert [text.get_text() for text in ax.texts] == ["2"]
    assert len(ax.patches) == 3


def test_points_show_on_the_pixels_they_name(tmp_path: Path) -> None:
    """Rendered and read back: a marker at (x, y) covers the white pixel there and nothing a pixel beside it."""
    image = np.zeros((20, 30, 3), np.uint8)
    figure, (ax,) = viz.new_axes(size=(3.0, 2.0), dpi=100)
    viz.draw_image(ax, image)
    viz.draw_points(ax, np.array([[7.0, 12.0]]), size=20)
    ax.set_position((0, 0, 1, 1))
    figure.set_layout_engine("none")
    shown = cv2.imread(str(viz.save(figure, tmp_path / "a.png")))
    y, x = np.nonzero(np.abs(shown.astype(int) - (0x73, 0x9E, 0x00)).max(axis=2) < 40)  # BGR of the plain green
    assert (x.mean(), y.mean()) == pytest.approx(((7 + 0.5) * 10 - 0.5, (12 + 0.5) * 10 - 0.5), abs=1.0)


def test_saving_is_whole_or_nothing(tmp_path: Path) -> None:
    ax = viz.draw_match(PAIR, ANSWER)
    assert viz.save(ax, tmp_path / "m.png") == tmp_path / "m.png"
    assert cv2.imread(str(tmp_path / "m.png")) is not None
    with pytest.raises(InputError, match=r"`path` must be a picture's name"):
        viz.save(ax, tmp_path / "m.xyz")
    with pytest.raises(InputError, match="make the folder first"):
        viz.save(ax, tmp_path / "no" / "m.png")
    assert [p.name for p in tmp_path.iterdir()] == ["m.png"]


def test_a_mask_of_another_length_is_refused() -> None:
    _, (ax,) = viz.new_axes()
    with pytest.raises(InputError, match=r"`right` must be of shape \(3,\), received shape \(2,\)"):
        viz.draw_points(ax, ANSWER.keypoints, right=np.array([True, False]))


def test_pyplot_is_never_imported_and_a_scene_can_be_drawn(tmp_path: Path) -> None:
    code = (
        "import sys; from kbc import viz; from kbc.data.scenes.render import scene_pair; from kbc.types import Match\n"
        "s = scene_pair(1); m = Match(s.target_keypoints)\n"
        f"viz.save(viz.draw_comparison(s.pair, {{'a': m}}, truth=s.target_keypoints)[0], r'{tmp_path / 'a.png'}')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_draw_cells_on_a_scene_finds_fused_keypoints() -> None:
    scene = scene_pair(11, object_fraction=(0.08, 0.08))
    cells = viz.cell_of(scene.target_keypoints, (480, 640), (16, 16))
    assert len(np.unique(cells, axis=0)) < len(cells)


def test_without_matplotlib_the_line_to_run_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from kbc.errors import MissingDependencyError

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "kbc\[viz\]"'):
        viz.new_axes()


def test_a_huge_photograph_is_shown_small_where_it_was() -> None:
    ax = viz.new_axes()[1][0]
    image = np.zeros((6000, 8000, 3), np.uint8)
    viz.draw_image(ax, image)
    (shown,) = ax.get_images()
    assert np.prod(shown.get_array().shape[:2]) <= viz.SHOWN_PIXELS
    assert tuple(shown.get_extent()) == (-0.5, 7999.5, 5999.5, -0.5)
