"""What a matcher is, and how a function or a network becomes one.

A matcher answers in the pixels of the images it is given and knows nothing of windows.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from kbc.errors import KBCError, MatcherError
from kbc.geometry import Points, as_size, defined, far_outside, looks_relative
from kbc.tensors import to_array, to_tensor
from kbc.types import Match, Pair

if TYPE_CHECKING:
    from torch import Tensor


class Matcher(Protocol):
    """Anything with `match`. Optional attributes, read with `getattr`:

    - `name` (str): used in messages and reports;
    - `input_size` (int or (height, width)): what the matcher resizes its images to, so that windows are resampled
      once, straight to it; an int is a square;
    - `max_batch` (int): how many pairs one `match` call may hold, default 1;
    - `shares_features` (bool): features are cached per image, so a further pair of known images costs next to nothing;
    - `support_points` (int): how many points it may be asked beside the keypoints, in the same call (about 80 by
      default); fewer, or 0, where every point costs.

    >>> class Stays:
    ...     name = "stays"
    ...
    ...     def match(self, pairs):
    ...         return [Match(pair.keypoints) for pair in pairs]
    >>> import kbc
    >>> kbc.wrap(Stays()).name
    'stays+kbc'
    """

    def match(self, pairs: Sequence[Pair]) -> list[Match]:
        """One `Match` per pair, in order; keypoints (N, 2) in the target's pixels, NaN where undefined."""
        ...


@runtime_checkable
class SimilarityMatcher(Protocol):
    """A matcher that also shows where else a point might be: their peaks stand beside its answers.

    kbc asks for the maps of the very `Pair` objects it has just had matched, and counts that as free: keep what
    `match` computed (a `weakref.WeakKeyDictionary` by pair, or features by image).

    >>> import kbc
    >>> isinstance(kbc.load_matcher("hog"), SimilarityMatcher)
    True
    """

    def match(self, pairs: Sequence[Pair]) -> list[Match]:
        """As `Matcher.match`."""
        ...

    def similarity(self, pairs: Sequence[Pair]) -> Sequence[npt.NDArray[np.float32] | Tensor]:
        """Per pair (N, h, w): similarity of each keypoint to a grid of cells that covers the whole target image.

        Cell (i, j) has its centre at the point ((j + 0.5)·W/w − 0.5, (i + 0.5)·H/h − 0.5). Higher is more alike.
        NaN rows where the keypoint is undefined. Arrays, or tensors on any device: there they stay, and only their
        peaks are fetched.
        """
        ...


def matcher_name(matcher: object) -> str:
    """The matcher's `name`, or its type's."""
    return str(getattr(matcher, "name", None) or type(matcher).__name__)


def input_hw(matcher: object) -> tuple[int, int] | None:
    """The matcher's declared input size as (height, width), or None when it declares none. Errors as `as_size`."""
    size = getattr(matcher, "input_size", None)
    return None if size is None else as_size(size, "input_size of the matcher")


def short_repr(matcher: object) -> str:
    """A matcher in one line, e.g. "FeatureMatcher('hog', 256×256 px)"; height × width, where it resizes."""
    size = input_hw(matcher)
    shown = "" if size is None else f", {size[0]}×{size[1]} px"
    return f"{type(matcher).__name__}({matcher_name(matcher)!r}{shown})"


class _Process:
    """Whether this process has matched, or was forked from one that had: torch's threads do not survive a fork."""

    used = forked = False

    @classmethod
    def begin(cls) -> None:
        """Say what would happen, instead of waiting forever for threads that are not there."""
        torch = sys.modules.get("torch")
        if cls.forked and torch is not None and torch.get_num_threads() > 1:
            raise MatcherError(
                "this process was forked from one that had matched, and torch would wait forever for threads that it "
                "lacks here; start processes with multiprocessing.get_context('spawn'), or call "
                "torch.set_num_threads(1) in each of them first"
            )
        cls.used = cls.used or torch is not None

    @classmethod
    def after_fork(cls) -> None:
        """Called in the child."""
        cls.forked = cls.used


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_Process.after_fork)


def run_matcher(matcher: Matcher, pairs: Sequence[Pair], asked: Sequence[int] | None = None) -> list[Match]:
    """Call a matcher in batches it can hold and refuse what cannot be an answer.

    Args:
        matcher: the matcher.
        pairs: what to ask.
        asked: how many points of each pair its user asked for, the first ones; by default all. What cannot be an
            answer to a further one is none.

    Raises:
        MatcherError: the matcher raised, or gave back another number of matches or points, an answer that is not
            finite for a point that is defined on neither NaN coordinate, or points more than one image size outside;
            or this process was forked from one that had matched.
    """
    _Process.begin()
    name = matcher_name(matcher)
    size = max(int(getattr(matcher, "max_batch", None) or 1), 1)
    answers: list[Any] = []
    for start in range(0, len(pairs), size):
        batch = list(pairs[start : start + size])
        answers += _one_per_pair(f"matcher {name!r}", "Match", matcher.match, batch)
    counts = [len(pair.keypoints) for pair in pairs] if asked is None else asked
    return [checked(name, *one) for one in zip(pairs, answers, counts, strict=True)]


def _one_per_pair(who: str, kind: str, ask: Callable[..., Any], pairs: Sequence[Pair]) -> list[Any]:
    """The answers, or a `MatcherError` where the asking raised or gave another number of them."""
    try:
        answers = list(ask(pairs))
    except KBCError:
        raise
    except (Exception, SystemExit) as error:  # a matcher that calls sys.exit does not end its user's program
        raise MatcherError(f"{who} raised {type(error).__name__}: {error}") from error
    if len(answers) != len(pairs):
        raise MatcherError(f"{who} must give one {kind} per pair, received {len(answers)} for {len(pairs)} pairs")
    return answers


def checked(name: str, pair: Pair, answer: Match, asked: int) -> Match:
    """The answer as float64 with undefined points NaN, or a `MatcherError` that names it; see `run_matcher`."""
    points: Points = as_numbers(name, "keypoints", getattr(answer, "keypoints", answer))
    wanted = pair.keypoints.shape
    if points.shape != wanted:
        raise MatcherError(f"matcher {name!r} must give keypoints of shape {wanted}, received {points.shape}")
    if np.isinf(points[:asked]).any():
        raise MatcherError(f"matcher {name!r} must give finite points or NaN, received infinite coordinates")
    height, width = pair.target.shape[:2]
    far = far_outside(points, (height, width))
    points = np.where((defined(pair.keypoints) & defined(points))[:, None], points, np.nan)
    wrong = far[:asked] & defined(points[:asked])
    if wrong.any():
        first = [float(f"{value:.6g}") for value in points[:asked][wrong][0]]
        raise MatcherError(
            f"matcher {name!r} must answer in the target's pixels ({width}×{height}), received "
            f"{first}; does it answer in its own input size?"
        )
    if min(height, width) > 1 and looks_relative(points):
        first = [float(f"{value:.6g}") for value in points[defined(points)][0]]
        raise MatcherError(
            f"matcher {name!r} must answer in the target's pixels ({width}×{height}), received only points in [0, 1], "
            f"e.g. {first}; multiply relative ones by the target's width and height"
        )
    points[far] = np.nan
    score = getattr(answer, "score", None)
    if score is not None:
        score = as_numbers(name, "scores", score)
        if score.shape != wanted[:1]:
            raise MatcherError(f"matcher {name!r} must give one score per point {wanted[:1]}, received {score.shape}")
        if np.isinf(score[:asked]).any():
            raise MatcherError(f"matcher {name!r} must give finite scores or NaN, received infinite ones")
        score = np.where(defined(pair.keypoints), score, np.nan)
    return Match(points, score)


def run_similarity(matcher: Any, pairs: Sequence[Pair]) -> list[Tensor]:
    """Ask a `SimilarityMatcher` for maps and refuse what cannot be maps: per pair (K, h, w) of its K defined points.

    On the device where the matcher has them.

    Raises:
        MatcherError: it raised, or gave another number of maps, maps of another form, or values that are not finite.
    """
    import torch

    name = matcher_name(matcher)
    who = f"`similarity` of matcher {name!r}"
    answers = _one_per_pair(who, "array", matcher.similarity, pairs)
    found = []
    for pair, answer in zip(pairs, answers, strict=True):
        maps: Tensor = as_numbers(name, "similarity", answer, to_tensor)
        count = len(pair.keypoints)
        if maps.ndim != 3 or len(maps) != count or 0 in maps.shape[1:]:
            raise MatcherError(f"{who} must give ({count}, h, w), received {tuple(maps.shape)}")
        known = maps[torch.from_numpy(defined(pair.keypoints)).to(maps.device)]
        if not bool(known.isfinite().all()):
            raise MatcherError(f"{who} must be finite where the keypoint is defined")
        found.append(known)
    return found


def as_numbers(name: str, what: str, values: Any, convert: Callable[[object], Any] = to_array) -> Any:
    """The values converted, or a `MatcherError` that says what was received instead."""
    try:
        return convert(values)
    except (TypeError, ValueError, OverflowError) as error:
        received = f"{values!r:.60} ({error})"
        raise MatcherError(f"matcher {name!r} must give numbers as {what}, received {received}") from error
