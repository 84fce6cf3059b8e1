"""Procedural scenes: deterministic, and the keypoints are where the picture shows them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from kbc.data.scenes.figures import CATEGORIES, Figure
from kbc.data.scenes.render import _place, categories, draw, render, scene_pair, transform
from kbc.data.scenes.shapes import Part, oval
from kbc.errors import InputError
from kbc.geometry import Box

WHITE = np.array([255, 255, 255], np.uint8)


def test_a_seed_determines_the_pair_and_no_global_state_is_touched() -> None:
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - the global generator is what must not move
    first, again, other = scene_pair(5), scene_pair(5), scene_pair(6)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    assert np.array_equal(first.source.image, again.source.image)
    assert np.array_equal(first.target.image, again.target.image)
    assert np.array_equal(first.pair.keypoints, again.pair.keypoints)
    assert not np.array_equal(first.source.image, first.target.image)
    assert not np.array_equal(first.source.image, other.source.image)


def test_a_sequence_of_seeds_is_a_seed() -> None:
    assert np.array_equal(render("fish", [1, 2]).image, render("fish", (1, 2)).image)
    assert not np.array_equal(render("fish", [1, 2]).image, render("fish", [2, 1]).image)


@pytest.mark.parametrize("category", categories())
def test_keypoints_lie_in_box_and_image_and_the_fraction_is_kept(category: str) -> None:
    names = None
    for seed in range(16):
        scene = render(category, seed, size_hw=(160, 240), object_fraction=(0.1, 0.5))
        names = names or scene.names
        assert scene.names == names
        assert 8 <= len(names) <= 14
        assert scene.keypoints.shape == (len(names), 2)
        assert scene.box.contains(scene.keypoints).all()
        assert Box.whole((160, 240)).contains(scene.keypoints).all()
        assert scene.box.clipped((160, 240)).xyxy == pytest.approx(scene.box.xyxy)
        assert 0.1 * 240 - 1e-4 <= scene.box.longest <= 0.5 * 240 + 1e-4


def layout(points: np.ndarray) -> np.ndarray:
    """Points brought to one place and size."""
    centred = points - points.mean(axis=0)
    return centred / centred.std()


def test_instances_of_a_category_differ_in_shape_not_only_in_place() -> None:
    drawn = [layout(CATEGORIES["quadruped"](np.random.default_rng(seed)).points) for seed in range(21)]
    assert min(np.abs(a - b).max() for a, b in pairwise(drawn)) > 0.1


def test_variation_goes_from_one_individual_to_unrelated_ones() -> None:
    def distance(variation: float) -> float:
        """Mean difference of the two figures' layouts, each brought to one place and size."""
        found = []
        for seed in range(12):
            pair = scene_pair(seed, category="bird", variation=variation, turn=0.0, mirror=0.0)
            a, b = (layout(points) for points in (pair.source.keypoints, pair.target.keypoints))
            found.append(np.abs(a - b).mean())
        return float(np.mean(found))

    distances = [distance(v) for v in (0.0, 0.3, 1.0)]
    assert distances[0] < 1e-9
    assert distances[0] < distances[1] < distances[2]
    pair = scene_pair(0, category="bird", variation=0.0, turn=0.0, mirror=0.0)
    assert not np.array_equal(pair.source.image, pair.target.image)


def test_turn_and_mirror_are_kept() -> None:
    for seed in range(12):
        scene = render("car", seed, turn=0.0, mirror=0.0)
        points = dict(zip(scene.names, scene.keypoints, strict=True))
        assert points["headlight"][0] > points["tail_light"][0]
        scene = render("car", seed, turn=0.0, mirror=1.0)
        points = dict(zip(scene.names, scene.keypoints, strict=True))
        assert points["headlight"][0] < points["tail_light"][0]


def test_both_orientations_occur() -> None:
    faces_right = []
    for seed in range(24):
        scene = render("car", seed)
        points = dict(zip(scene.names, scene.keypoints, strict=True))
        faces_right.append(points["headlight"][0] > points["tail_light"][0])
    assert 4 < sum(faces_right) < 20


@pytest.mark.parametrize("span", [36.0, 110.0, 300.0])
@pytest.mark.parametrize("category", categories())
def test_a_marker_drawn_at_a_keypoint_is_found_there(category: str, span: float) -> None:
    rng = np.random.default_rng([len(category), int(span)])
    figure = CATEGORIES[category](rng)
    placement = _place(rng, figure, span, (400, 400), 12.0)
    index = int(rng.integers(len(figure.keypoints)))
    reach = np.ptp(figure.outline_points, axis=0).max()
    marker = Part((oval(figure.points[index], reach * 0.05, reach * 0.05),), WHITE, rim=False)
    black = np.zeros((400, 400, 3), np.uint8)
    dark = tuple(replace(part, paint=np.zeros(3, np.uint8), rim=False) for part in figure.parts)
    image = draw(black, Figure((*dark, marker), figure.keypoints), placement)
    # the relief brightens the side towards the light, so the shape is measured, not the brightness
    weight = (image[:, :, 0] > image.max() / 3).astype(np.float64)
    y, x = np.indices(weight.shape)
    found = np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()
    wanted = transform(figure.points[index : index + 1], placement)[0]
    assert np.abs(found - wanted).max() < 0.35


def test_drawing_has_no_sub_pixel_bias() -> None:
    """Discs at random sub-pixel places, drawn flat on black: their mean centroid error is near zero."""
    errors = []
    rng = np.random.default_rng(0)
    for _ in range(60):
        centre = rng.uniform(30, 34, 2)
        part = Part((oval(np.zeros(2), 1.0, 1.0),), WHITE, rim=False)
        placement = np.array([[6.0, 0.0, centre[0]], [0.0, 6.0, centre[1]]])
        plain = draw(np.zeros((64, 64, 3), np.uint8), Figure((part,), {"o": np.zeros(2)}), placement, light=0.0)
        mirrored = draw(np.zeros((64, 64, 3), np.uint8), Figure((part,), {"o": np.zeros(2)}), placement, light=180.0)
        weight = plain[:, :, 0].astype(np.float64) + mirrored[:, :, 0]  # light from both sides: no brightness bias
        y, x = np.indices(weight.shape)
        errors.append(np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum() - centre)
    assert np.abs(np.mean(errors, axis=0)).max() < 0.03
    assert np.abs(errors).max() < 0.1


def test_a_figure_too_large_for_the_short_side_is_made_to_fit() -> None:
    scene = render("lamp", 3, size_hw=(64, 256), object_fraction=(0.9, 0.9))
    assert scene.box.height <= 64
    assert Box.whole((64, 256)).contains(scene.keypoints).all()


def test_the_figure_stands_out_from_its_background() -> None:
    """At keypoints inside parts the picture differs from the same scene without its figure in most places."""
    rng = np.random.default_rng(0)
    figure = CATEGORIES["plant"](rng)
    grey = np.full((200, 200, 3), 128, np.uint8)
    placement = _place(rng, figure, 150.0, (200, 200), 0.0)
    changed = np.abs(draw(grey, figure, placement).astype(int) - 128).max(axis=2) > 10
    columns = np.rint(transform(figure.points, placement)).astype(int)
    assert np.mean([changed[y, x] for x, y in columns]) > 0.8
    assert changed.mean() > 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"category": "unicorn"}, "`category` must be one of quadruped"),
        ({"size_hw": (16, 640)}, "`size_hw` must be"),
        ({"object_fraction": (0.5, 0.2)}, "`object_fraction` must be"),
        ({"object_fraction": (0.0, 0.2)}, "`object_fraction` must be"),
        ({"variation": 1.5}, "`variation` must be within"),
        ({"mirror": -0.1}, "`mirror` must be within"),
        ({"turn": 200.0}, "`turn` must be within"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        scene_pair(0, **options)


@pytest.mark.parametrize("seed", [-1, [], [1, -2]])
def test_bad_seeds_are_named(seed: object) -> None:
    with pytest.raises(InputError, match="`seed` must be"):
        scene_pair(seed)
