"""A plain function as a matcher, and what may stand where a matcher is asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import numpy as np

from kbc.errors import InputError, MatcherError, must_be
from kbc.geometry import Points, defined
from kbc.images import Image
from kbc.matchers.protocol import Matcher, as_numbers, short_repr
from kbc.tensors import floating_type
from kbc.types import Match, Pair, Scores

ImageForm = Literal["array", "tensor", "batch"]
PointsForm = Literal["n2", "2n"]


class FunctionMatcher:
    """A function `f(source, target, keypoints)` as a matcher; built by `as_matcher`.

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
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        self.input_size = input_size
        self._image = image
        self._points = points
        self._device = device

    __repr__ = short_repr

    def match(self, pairs: Sequence[Pair]) -> list[Match]:
        """One call of the function per pair."""
        return [self._one(pair) for pair in pairs]

    def _one(self, pair: Pair) -> Match:
        known = defined(pair.keypoints)
        answer: Points = np.full(pair.keypoints.shape, np.nan)
        if not known.any():
            return Match(answer)
        asked = self._give_points(pair.keypoints[known])
        raw = self.function(self._give_image(pair.source), self._give_image(pair.target), asked)
        points, scores = self._take(raw, int(known.sum()))
        answer[known] = points
        if scores is None:
            return Match(answer)
        all_scores = np.full(len(answer), np.nan)
        all_scores[known] = scores
        return Match(answer, all_scores)

    def _give_image(self, image: Image) -> Any:
        if self._image == "array":
            return image.copy()
        import torch

        tensor = torch.from_numpy(image.copy()).to(self._device).permute(2, 0, 1).float() / 255
        tensor = tensor.to(floating_type(self.function))
        return tensor if self._image == "tensor" else tensor[None]

    def _give_points(self, points: Points) -> Any:
        given: Any = points.copy() if self._points == "n2" else points.T.copy()
        if self._image == "array":
            return given
        import torch

        tensor = torch.as_tensor(given, dtype=torch.float32, device=self._device)
        return tensor if self._image == "tensor" else tensor[None]

    def _take(self, raw: Any, count: int) -> tuple[Points, Scores | None]:
        """Points (count, 2) and perhaps scores (count,) of what the function gave."""
        if isinstance(raw, Match):
            return self._shaped("keypoints", raw.keypoints, (count, 2)), self._scores(raw.score, count)
        with_scores = isinstance(raw, tuple) and len(raw) == 2 and getattr(raw[0], "ndim", np.ndim(raw[0])) >= 2
        points, scores = raw if with_scores else (raw, None)
        if self._points == "n2":
            return self._shaped("keypoints", points, (count, 2)), self._scores(scores, count)
        return self._shaped("keypoints", points, (2, count)).T, self._scores(scores, count)

    def _scores(self, scores: Any, count: int) -> Scores | None:
        return None if scores is None else self._shaped("scores", scores, (count,))

    def _shaped(self, what: str, values: Any, shape: tuple[int, ...]) -> Points:
        array: Points = as_numbers(self.name, what, values)
        if self._image == "batch" and array.ndim == len(shape) + 1 and array.shape[0] == 1:
            array = array[0]
        if array.shape != shape:
            raise MatcherError(f"matcher {self.name!r} must give {what} of shape {shape}, received {array.shape}")
        return array


def as_matcher(
    function: Callable[..., Any],
    *,
    image: ImageForm = "array",
    points: PointsForm = "n2",
    name: str | None = None,
    input_size: int | tuple[int, int] | None = None,
    device: str = "cpu",
) -> FunctionMatcher:
    """Make a matcher out of a function `f(source, target, keypoints)`.

    Args:
        function: answers in the pixels of the images it is given: the points, a tuple (points, scores) of them and a
            score each (N,), higher is surer, or a `Match`.
        image: what it takes: "array" uint8 RGB (H, W, 3); "tensor" float (3, H, W) in [0, 1]; "batch" (1, 3, H, W).
        points: "n2" (N, 2) or "2n" (2, N), x then y, in and out. Tensors when the images are; with a leading 1 for
            "batch".
        name: for messages and reports; the function's own by default.
        input_size: what the function resizes its images to, int or (height, width), when it does: windows are then
            resampled once, straight to it.
        device: where tensors are put.

    Raises:
        InputError: not a function of three arguments, or an unknown form.

    >>> import numpy as np
    >>> from kbc import Pair, as_matcher
    >>> shift = as_matcher(lambda source, target, keypoints: keypoints + 1, name="shift")
    >>> blank = np.zeros((8, 8, 3), np.uint8)
    >>> shift.match([Pair(blank, blank, [[2, 3]])])[0].keypoints
    array([[3., 4.]])

    >>> sure = as_matcher(lambda source, target, keypoints: (keypoints, [0.9]))
    >>> sure.match([Pair(blank, blank, [[2, 3]])])[0].score
    array([0.9])
    """
    if not callable(function):
        raise InputError(must_be("function", "callable", type(function).__name__, _way_out(function)))
    if not _takes(function, 3):
        expected = "a function of three arguments (source, target, keypoints)"
        raise InputError(must_be("function", expected, _called(function), _way_out(function)))
    if image not in ("array", "tensor", "batch"):
        raise InputError(must_be("image", "'array', 'tensor' or 'batch'", repr(image)))
    if points not in ("n2", "2n"):
        raise InputError(must_be("points", "'n2' or '2n'", repr(points)))
    return FunctionMatcher(function, image=image, points=points, name=name, input_size=input_size, device=device)


def to_matcher(given: object) -> Matcher:
    """A matcher as it is, or a function made one: what `kbc.wrap` accepts.

    Raises:
        InputError: anything else, with the constructor that fits.
    """
    if callable(getattr(given, "match", None)) and not isinstance(given, type):
        return cast(Matcher, given)
    if callable(given) and not isinstance(given, type) and not _is_network(given) and _takes(given, 3):
        return as_matcher(given)
    expected = "a Matcher or a function (source, target, keypoints) -> points"
    raise InputError(must_be("matcher", expected, _called(given), _way_out(given)))


def _way_out(given: object) -> str:
    """What makes a matcher of something that is none."""
    if isinstance(given, type):
        return f"give an object of it, {given.__name__}(…)"
    if isinstance(given, str):
        return f"load_matcher({given!r}) makes a matcher of a name"
    if callable(getattr(given, "calc", None)):
        return "a flow of OpenCV becomes a matcher by from_flow(function, image='array'), which shows how"
    if not callable(given):
        return "it has no method `match` and cannot be called"
    if _takes(given, 1):
        return "a feature extractor becomes a matcher by from_features(it, stride=…)"
    if _takes(given, 2):
        return "a network of two images becomes a matcher by from_flow(it) or from_correlation(it)"
    if _is_network(given) and _takes(given, 3):
        return "a network of two images and points becomes a matcher by as_matcher(it, image='batch')"
    return "it takes other arguments: give a function that calls it with these three"


def _is_network(given: object) -> bool:
    """Whether it is a torch module, without importing torch for it."""
    return any(kind.__module__ == "torch.nn.modules.module" for kind in type(given).__mro__)


def _takes(function: object, count: int) -> bool:
    """Whether it can be called with so many arguments; True where that cannot be told.

    >>> [_takes(lambda a, b=0: a, count) for count in (1, 2, 3)]
    [True, True, False]
    """
    called = getattr(function, "forward", function) if _is_network(function) else function
    try:
        signature = inspect.signature(cast(Callable[..., Any], called))
    except (TypeError, ValueError):  # built in, without a signature
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _called(given: object) -> str:
    if isinstance(given, type):
        return f"the class {given.__name__}"
    name = getattr(given, "__name__", None)
    return f"the function {name}" if name else f"an object of type {type(given).__name__}"
