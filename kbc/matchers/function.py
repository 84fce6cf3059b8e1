"""A plain function as a matcher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from kbc.errors import InputError, MatcherError, must_be
from kbc.geometry import Points, defined
from kbc.images import Image
from kbc.types import Match, Pair

ImageForm = Literal["array", "tensor", "batch"]
PointsForm = Literal["n2", "2n"]


class FunctionMatcher:
    """A function `f(source, target, keypoints) -> keypoints` as a matcher; built by `as_matcher`.

    The function gets copies: what it does to them stays its own affair. It is asked only for defined points, and not
    at all when there are none.
    """

    max_batch = 1

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        image: ImageForm = "array",
        points: PointsForm = "n2",
        name: str | None = None,
        input_size: int | tuple[int, int] | None = None,
        device: str = "cpu",
    ) -> None:
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)
        self.input_size = input_size
        self._image = image
        self._points = points
        self._device = device

    def match(self, pairs: Sequence[Pair]) -> list[Match]:
        """One call of the function per pair."""
        return [self._one(pair) for pair in pairs]

    def _one(self, pair: Pair) -> Match:
        known = defined(pair.keypoints)
        answer: Points = np.full(pair.keypoints.shape, np.nan)
        if known.any():
            asked = self._give_points(pair.keypoints[known])
            raw = self.function(self._give_image(pair.source), self._give_image(pair.target), asked)
            answer[known] = self._take_points(raw, int(known.sum()))
        return Match(answer)

    def _give_image(self, image: Image) -> Any:
        if self._image == "array":
            return image.copy()
        import torch

        tensor = torch.from_numpy(image.copy()).to(self._device).permute(2, 0, 1).float() / 255
        return tensor if self._image == "tensor" else tensor[None]

    def _give_points(self, points: Points) -> Any:
        given: Any = points.copy() if self._points == "n2" else points.T.copy()
        if self._image == "array":
            return given
        import torch

        tensor = torch.as_tensor(given, dtype=torch.float32, device=self._device)
        return tensor if self._image == "tensor" else tensor[None]

    def _take_points(self, raw: Any, count: int) -> Points:
        if hasattr(raw, "detach"):
            raw = raw.detach().cpu().numpy()
        points = np.asarray(raw, dtype=np.float64)
        if self._image == "batch" and points.ndim == 3 and points.shape[0] == 1:
            points = points[0]
        wanted = (count, 2) if self._points == "n2" else (2, count)
        if points.shape != wanted:
            raise MatcherError(f"matcher {self.name!r} must give keypoints of shape {wanted}, received {points.shape}")
        return points if self._points == "n2" else points.T


def as_matcher(
    function: Callable[..., Any],
    *,
    image: ImageForm = "array",
    points: PointsForm = "n2",
    name: str | None = None,
    input_size: int | tuple[int, int] | None = None,
    device: str = "cpu",
) -> FunctionMatcher:
    """Make a matcher out of a function `f(source, target, keypoints) -> keypoints`.

    Args:
        function: answers in the pixels of the images it is given.
        image: what it takes: "array" uint8 RGB (H, W, 3); "tensor" float (3, H, W) in [0, 1]; "batch" (1, 3, H, W).
        points: "n2" (N, 2) or "2n" (2, N), x then y, in and out. Tensors when the images are; with a leading 1 for
            "batch".
        name: for messages and reports; the function's own by default.
        input_size: what the function resizes its images to, int or (height, width), when it does: windows are then
            resampled once, straight to it.
        device: where tensors are put.

    Raises:
        InputError: not callable, or an unknown form.

    >>> import numpy as np
    >>> from kbc import Pair, as_matcher
    >>> shift = as_matcher(lambda source, target, keypoints: keypoints + 1, name="shift")
    >>> blank = np.zeros((8, 8, 3), np.uint8)
    >>> shift.match([Pair(blank, blank, [[2, 3]])])[0].keypoints
    array([[3., 4.]])
    """
    if not callable(function):
        raise InputError(must_be("function", "callable", type(function).__name__))
    if image not in ("array", "tensor", "batch"):
        raise InputError(must_be("image", "'array', 'tensor' or 'batch'", repr(image)))
    if points not in ("n2", "2n"):
        raise InputError(must_be("points", "'n2' or '2n'", repr(points)))
    return FunctionMatcher(function, image=image, points=points, name=name, input_size=input_size, device=device)
