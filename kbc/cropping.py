"""The KBC rule: keypoints → box → is it small? → window.

Source: Jin & Li, "Independently Keypoint Learning for Small Object Semantic Correspondence", arXiv 2404.02678. The crop
is centred on the keypoints' bounding box and enlarged to the matcher's input; margins, limits and what counts as small
are our choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kbc.config import KBCConfig
from kbc.errors import InputError, must_be
from kbc.geometry import Box, Points, Window, as_points, as_size, defined
from kbc.images import image_hw
from kbc.types import Pair

SizeHW = tuple[int, int]


def is_small(box: Box, size_hw: SizeHW, config: KBCConfig) -> bool:
    """Whether a box's longer side, as the matcher sees it (the image stretched to its input), is below the limit."""
    return max(box.width / size_hw[1], box.height / size_hw[0]) < config.small_below


def window_around(box: Box, size_hw: SizeHW, matcher_hw: SizeHW | None, config: KBCConfig) -> Window:
    """The window around an object's box, resampled to the matcher's input.

    Args:
        box: the object's (keypoints') box in an image of (height, width) `size_hw`; may have zero area.
        matcher_hw: the matcher's input size. When unknown, the window is enlarged to the image's longer side, which
            the matcher then shrinks as it would shrink the image.

    The window is never smaller than the matcher's input divided by `max_enlargement`, nor than 2×2 pixels, and is
    shifted to stay inside the image.
    """
    target = matcher_hw or (max(size_hw), max(size_hw))
    reach, least = 1 + 2 * config.margin, max(target) / config.max_enlargement
    if config.aspect == "square":
        width = height = max(box.longest * reach, least, 2.0)
    else:
        ratio = size_hw[1] / size_hw[0]
        height = max(box.height * reach, box.width * reach / ratio, least)
        if matcher_hw is not None:  # each axis is enlarged for itself
            height = max(height, least / ratio)
        width = height * ratio
    window = Window.fit(Box.centered(box.center, width, height), size_hw)
    if matcher_hw is not None:
        return window.resized(matcher_hw)
    scale = max(target) / window.box.longest
    return window.resized((max(round(window.box.height * scale), 1), max(round(window.box.width * scale), 1)))


def windowed(pair: Pair, source: Window, target: Window, config: KBCConfig) -> Pair:
    """The pair as seen through two windows, without its boxes.

    Its points are in the windows' pixels, undefined where a source point is not seen.
    """
    seen = source.shows(pair.keypoints)[:, None]
    return Pair(
        source.cut(pair.source, config.interpolation),
        target.cut(pair.target, config.interpolation),
        np.where(seen, source.to_window(pair.keypoints), np.nan),
    )


@dataclass(frozen=True, eq=False)
class CroppedPair:
    """A training pair after the KBC transform.

    Attributes:
        pair: the cut-outs, with the source keypoints and the boxes in their pixels.
        target_keypoints: (N, 2) in the target cut-out's pixels.
        source_window, target_window: how to get back.
    """

    pair: Pair
    target_keypoints: Points
    source_window: Window
    target_window: Window


def crop_pair(
    pair: Pair,
    target_keypoints: object,
    size_hw: int | SizeHW | None = None,
    config: KBCConfig | None = None,
) -> CroppedPair:
    """The KBC transform for training, where the points are known on both sides.

    Args:
        pair: images and source points; its boxes, when given, replace the keypoints' boxes.
        target_keypoints: (N, 2) in the target's pixels, NaN where undefined.
        size_hw: what the cut-outs are resampled to, or the side of a square; None keeps the larger side of the images.
        config: the rule's parameters.

    A side on which nothing is small keeps its whole image, resampled to `size_hw`.

    Raises:
        InputError: no point is defined on both sides, the numbers of points differ, or a wrong size.

    >>> import kbc
    >>> photo = np.zeros((480, 640, 3), np.uint8)
    >>> points = np.array([[300.0, 200.0], [340.0, 240.0]])
    >>> cropped = kbc.crop_pair(kbc.Pair(photo, photo, points), points + 5, size_hw=256)
    >>> cropped.pair.source.shape, cropped.pair.keypoints.shape
    ((256, 256, 3), (2, 2))
    """
    config = config or KBCConfig()
    out_hw = None if size_hw is None else as_size(size_hw, "size_hw")
    points = as_points(target_keypoints, "target_keypoints")
    if points.shape != pair.keypoints.shape:
        raise InputError(must_be("target_keypoints", f"of shape {pair.keypoints.shape}", points.shape))
    both = defined(points) & defined(pair.keypoints)
    if not both.any():
        raise InputError(must_be("target_keypoints", "defined for at least one defined source point", "none that is"))
    windows = []
    for image, given, known in (
        (pair.source, pair.source_box, pair.keypoints[both]),
        (pair.target, pair.target_box, points[both]),
    ):
        size = image_hw(image)
        box = given or Box.around(known)
        assert box is not None
        small = is_small(box, size, config)
        window = window_around(box, size, out_hw, config) if small else Window.whole(size, out_hw)
        windows.append(window)
    source, target = windows
    seen = windowed(pair, source, target, config)
    source_box = None if pair.source_box is None else source.box_to_window(pair.source_box)
    target_box = None if pair.target_box is None else target.box_to_window(pair.target_box)
    boxed = Pair(seen.source, seen.target, seen.keypoints, source_box, target_box)
    return CroppedPair(boxed, target.to_window(points), source, target)
