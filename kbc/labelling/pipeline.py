"""Labelled pictures → a folder of others: which exemplars are asked, what they say together, object by object."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kbc.data.records import ImageCache
from kbc.errors import InputError, KBCError, must_be, refuse_others
from kbc.geometry import Box, Points, defined, distinct
from kbc.images import Image, ImageLike, image_hw, load_image, require_cv2
from kbc.labelling.combine import SAME_OBJECT_IOU, Answers, by_name, combined, object_box, objects
from kbc.labelling.detections import Detection
from kbc.labelling.labels import Exemplar, categories_of
from kbc.matchers.protocol import Matcher, run_matcher
from kbc.pipeline import KBCMatcher, wrap
from kbc.support import object_box as source_object_box
from kbc.tuning import TUNING
from kbc.types import MatchResult, Pair, Scores, box_inside, sure_points

ASK = 3
"""Exemplars asked about a picture by default: three of ten, the likest, do as well as all ten (our measurement)."""
LEAST_SURE = 0.25
"""Mean confidence that an object after a picture's first must have, where no detector vouches for it."""
_THUMBNAIL = 16


@dataclass(frozen=True, eq=False)
class FoundObject:
    """One object in a picture.

    Attributes:
        category: its class.
        names: what its points are called, as the category has them.
        keypoints: (N, 2) in the picture's pixels, NaN where no exemplar shows the point, where it would lie beyond the
            picture's edge, or where it is not sure enough.
        confidence: (N,) in [0, 1]: how likely a point lies within a tenth of the object's size of the right place.
        box: where the object is, xyxy pixel edges.
        given: whether a detector gave the box.
        exemplar: index of the exemplar that had the greatest say; None where the labels themselves are these points.
        window: what its best fine pass saw of the picture, or None.
    """

    category: str
    names: tuple[str, ...]
    keypoints: Points
    confidence: Scores
    box: Box
    given: bool = False
    exemplar: int | None = None
    window: Box | None = None

    @property
    def sureness(self) -> float:
        """Mean confidence of the points that the category has; 0 for those without an answer."""
        return float(np.where(defined(self.keypoints), np.nan_to_num(self.confidence), 0.0).mean())

    def at_least(self, min_confidence: float) -> FoundObject:
        """The same object with NaN for the points that are less sure than this; their confidence stays."""
        return replace(self, keypoints=sure_points(self.keypoints, self.confidence, min_confidence))


@dataclass(frozen=True, eq=False)
class Transferred:
    """What came of one picture.

    Attributes:
        image: as it was given.
        size_hw: its (height, width); (0, 0) where it could not be read.
        objects: the objects found, the surest first; with a detector's boxes in their order.
        error: why there are none, where the picture could not be read or the matcher failed.
        problems: why single boxes were passed over, a line each; the other boxes' objects are there.
    """

    image: ImageLike
    size_hw: tuple[int, int]
    objects: tuple[FoundObject, ...] = ()
    error: str = ""
    problems: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The picture's file, where it was given as one."""
        return Path(str(self.image))


def transfer(
    exemplars: Sequence[Exemplar],
    images: Iterable[ImageLike],
    matcher: Matcher | Callable[..., Any],
    *,
    boxes: Mapping[str | Path, Sequence[Detection]] | None = None,
    instances: int = 1,
    ask: int = ASK,
    min_confidence: float = 0.0,
) -> Iterator[Transferred]:
    """Find the points of labelled pictures in others, one picture after the other.

    Args:
        exemplars: labelled objects; those of one category speak together, joined by the names of their points.
        images: paths, arrays or tensors; opened one at a time.
        matcher: a matcher or function, or one that `kbc.wrap` made with options of your own.
        boxes: a detector's boxes, by the paths that `images` are then, as written there: one set of points for each. A
            picture without any gets none; a box outside its picture, or of a category without an exemplar, becomes one
            of its `problems`, the others are answered. Without `boxes` objects are looked for.
        instances: how many objects of a category a picture may hold; further ones must be fairly sure.
        ask: how many exemplars of a category are asked about a picture, the likest first.
        min_confidence: less sure points become NaN; an object without points is left out.

    Returns:
        An iterator of `Transferred`, in the order of `images`. A picture that cannot be read, or on which the matcher
        fails, has an `error` and no objects.

    Raises:
        InputError: before anything is matched: no exemplar, one whose picture cannot be read or whose points lie far
            outside it, a number out of range, a wrapped matcher that gives no confidence, or `boxes` by the mere
            names of pictures. With `boxes`, as soon as one of `images` is no path.

    >>> import kbc, numpy as np
    >>> photo = np.zeros((40, 60, 3), np.uint8)
    >>> labelled = kbc.Exemplar(photo, names=("nose", "tail"), keypoints=[[4, 5], [51, 8]])
    >>> found = kbc.transfer([labelled], [photo, photo], lambda source, target, keypoints: keypoints)
    >>> len([one.objects for one in found])
    2
    """
    labeller = Labeller(exemplars, matcher, instances, ask, min_confidence)
    one: Any = images
    if isinstance(one, (str, os.PathLike)) or not isinstance(one, Iterable) or getattr(one, "ndim", 4) < 4:
        raise InputError(must_be("images", "a list of pictures", f"{one!r:.60}", "put a single one into a list"))
    held = None if boxes is None else _held(boxes, images)
    return (labeller(image, None if held is None else _boxes_in(image, held)) for image in images)


class Labeller:
    """The exemplars and a matcher, ready for pictures; the arguments are those of `transfer`."""

    def __init__(
        self,
        exemplars: Sequence[Exemplar],
        matcher: Matcher | Callable[..., Any],
        instances: int = 1,
        ask: int = ASK,
        min_confidence: float = 0.0,
    ) -> None:
        if not isinstance(exemplars, Sequence) or not exemplars or not all(isinstance(o, Exemplar) for o in exemplars):
            raise InputError(must_be("exemplars", "a list of kbc.Exemplar, at least one", f"{exemplars!r:.60}"))
        self.exemplars = tuple(exemplars)
        for name, value in (("instances", instances), ("ask", ask)):
            if not isinstance(value, Integral) or value < 1:
                raise InputError(must_be(name, "a whole number, at least 1", value))
        sure_points(np.empty((0, 2)), np.empty(0), min_confidence)  # which checks it
        self.matcher = matcher if isinstance(matcher, KBCMatcher) else wrap(matcher)
        config = self.matcher.config
        if config.passes == 0 or config.localizer in ("predicted", "given"):
            expected = "wrapped with passes above 0 and localizer 'best', 'consensus' or 'search'"
            received = f"passes={config.passes}, localizer={config.localizer!r}"
            raise InputError(must_be("matcher", expected, received, "the others do not tell how sure a point is"))
        self.instances, self.ask, self.min_confidence = int(instances), int(ask), min_confidence
        self.categories = categories_of(self.exemplars)
        self._open = ImageCache(load_image)
        self._thumbnails = [self._shown(index) for index in range(len(self.exemplars))]

    def __call__(self, image: ImageLike, boxes: Sequence[Detection] | None = None) -> Transferred:
        """What the exemplars say of one picture; `boxes` as in `transfer`."""
        size = (0, 0)
        problems: list[str] = []
        try:
            target = load_image(image)
            size = image_hw(target)
            if boxes is None:
                found = self._search(target)
            else:
                boxes, problems = _usable(boxes, target, {one.name for one in self.categories})
                found = self._boxed(target, boxes)
        except KBCError as error:
            return Transferred(image, size, (), str(error), tuple(problems))
        kept = [_in_picture(one, size).at_least(self.min_confidence) for one in found]
        seen = tuple(one for one in kept if defined(one.keypoints).any())
        return Transferred(image, size, seen, problems=tuple(problems))

    def _shown(self, index: int) -> npt.NDArray[np.float64]:
        """The thumbnail of an exemplar; opening it checks its points and box."""
        try:
            return _thumbnail(self._pair(index, None).source)
        except InputError as error:
            image = self.exemplars[index].image
            name = Path(image).name if isinstance(image, (str, os.PathLike)) else "an array"
            raise InputError(f"exemplar {index} ({name}): {error}") from error

    def _boxed(self, target: Image, boxes: Sequence[Detection]) -> list[FoundObject]:
        """The object in each box, of the category that answers most surely where the detector says none."""
        found = []
        for one in boxes:
            names = [c.name for c in self.categories if one.category in (None, c.name)]
            answers = [answer for name in names for answer in self._asked(target, self._likest(name, target), one.box)]
            found += sorted(answers, key=lambda answer: -answer.sureness)[:1]
        return found

    def _search(self, target: Image) -> list[FoundObject]:
        """The objects of each category, none overlapping a surer one."""
        found: list[FoundObject] = []
        for category in self.categories:
            found += self._of_category(category.name, target)
        scores = [one.sureness for one in found]
        return [found[i] for i in distinct([one.box for one in found], scores, len(found), SAME_OBJECT_IOU)]

    def _of_category(self, category: str, target: Image) -> list[FoundObject]:
        """The best object; then again in the picture without what was found, as long as there is something sure."""
        likest = self._likest(category, target)
        found: list[FoundObject] = []
        while len(found) < self.instances:
            seen = _without([one.box for one in found], target)
            new = [one for one in self._asked(seen, likest) if one.sureness >= LEAST_SURE or not found]
            boxes = [one.box for one in (*found, *new)]
            scores = [2.0] * len(found) + [one.sureness for one in new]  # what was found before is not given up again
            fresh = [(*found, *new)[i] for i in distinct(boxes, scores, self.instances, SAME_OBJECT_IOU)][len(found) :]
            if not fresh:
                break
            found += fresh
        return found

    def _asked(self, target: Image, asked: Sequence[int], box: Box | None = None) -> list[FoundObject]:
        """The objects that exemplars find in a picture, or in a box of it; the best supported first."""
        results = self.matcher.match([self._pair(index, target, box) for index in asked])
        category = self.exemplars[asked[0]].category
        names = next(one.keypoints for one in self.categories if one.name == category)
        own = [self.exemplars[index].names for index in asked]
        answers = Answers(
            np.stack([by_name(names, given, r.keypoints) for given, r in zip(own, results, strict=True)]),
            np.stack([by_name(names, given, _confidence(r)) for given, r in zip(own, results, strict=True)]),
            np.array([self._size(index, result) for index, result in zip(asked, results, strict=True)]),
        )
        groups = objects(answers)
        if box is not None and groups:
            groups = [np.concatenate(groups)]  # they were all told where the object is
        found = []
        for group in groups:
            points, confidence, size = combined(answers, group)
            where = box or object_box(points, size)
            first = int(max(group, key=lambda i: float(answers.sure[i].sum())))
            window = results[first].target_window
            if where is not None:
                one = FoundObject(category, names, points, confidence, where, box is not None, asked[first])
                found.append(one if window is None else replace(one, window=window.box))
        return found

    def _likest(self, category: str, target: Image) -> list[int]:
        """Indices of the exemplars that are asked about a picture, the likest first.

        Where the matcher shares features, a plain match costs next to nothing, and the likest is the one whose points
        have the highest scores; else the one whose whole picture looks most alike.
        """
        all_ = [index for index, one in enumerate(self.exemplars) if one.category == category]
        if len(all_) <= self.ask:
            return all_
        if getattr(self.matcher.matcher, "shares_features", False):
            matches = run_matcher(self.matcher.matcher, [self._pair(index, target) for index in all_])
            alike = [-1.0 if m.score is None else float(np.nanmean(m.score)) for m in matches]
        else:
            shown = _thumbnail(target)
            alike = [float((self._thumbnails[index] * shown).sum()) for index in all_]
        return [all_[place] for place in np.argsort(-np.array(alike), kind="stable")[: self.ask]]

    def _pair(self, index: int, target: Image | None, box: Box | None = None) -> Pair:
        one = self.exemplars[index]
        image = self._open(one.image) if hasattr(one.image, "__fspath__") else load_image(one.image)  # type: ignore[arg-type]
        return Pair(image, image if target is None else target, one.keypoints, one.box, box)

    def _size(self, index: int, result: MatchResult) -> float:
        """The object's size in the target, pixels: its points' extent, or by the windows where they are too few."""
        extent = Box.around(result.keypoints)
        if extent is not None and int(defined(result.keypoints).sum()) >= TUNING.min_points_for_extent:
            return max(extent.longest, 1.0)
        pair = self._pair(index, None)
        own = source_object_box(pair.keypoints, pair.source_box, image_hw(pair.source)).longest
        if result.source_window is not None and result.target_window is not None:
            own *= result.target_window.box.longest / result.source_window.box.longest
        return max(own, 1.0)


def _held(
    boxes: Mapping[str | Path, Sequence[Detection]], images: Iterable[ImageLike]
) -> dict[Path, tuple[Detection, ...]]:
    try:
        held = {Path(path): tuple(found) for path, found in boxes.items()}
        sound = all(isinstance(one, Detection) for found in held.values() for one in found)
    except (AttributeError, TypeError):
        sound = False
    if not sound:
        raise InputError(must_be("boxes", "path → a list of kbc.labelling.Detection", f"{boxes!r:.60}"))
    listed = images if isinstance(images, Sequence) else ()
    paths = {Path(one) for one in listed if isinstance(one, (str, os.PathLike))}
    unused = {key.name: key for key in held.keys() - paths}
    for path in sorted(paths - held.keys()):
        key = unused.get(path.name)
        if key is not None and path.parts[-len(key.parts) :] == key.parts:
            received = f"{str(key)!r}, where `images` has {str(path)!r}"
            raise InputError(must_be("boxes", "by the paths that `images` are, as written there", received))
    return held


def _boxes_in(image: ImageLike, boxes: Mapping[Path, Sequence[Detection]]) -> Sequence[Detection]:
    if not isinstance(image, (str, os.PathLike)):
        raise InputError(must_be("images", "paths where `boxes` are given by path", type(image).__name__))
    return boxes.get(Path(image), ())


def _usable(boxes: Sequence[Detection], target: Image, known: set[str]) -> tuple[list[Detection], list[str]]:
    """The boxes that a picture can be asked in, and what is wrong with the others."""
    usable, problems = [], []
    for one in boxes:
        try:
            box_inside(one.box, target, "box")
            if one.category is not None:
                refuse_others("category", one.category, sorted(known))
        except InputError as error:
            problems.append(str(error))
        else:
            usable.append(one)
    return usable, problems


def _in_picture(found: FoundObject, size_hw: tuple[int, int]) -> FoundObject:
    """The object without the points beyond the picture's edge, where the layout of one that is cut off goes on."""
    half = np.array(size_hw[::-1]) / 2
    seen = (np.abs(found.keypoints + 0.5 - half) <= half).all(axis=1, keepdims=True)
    return replace(found, keypoints=np.where(seen, found.keypoints, np.nan))


def _confidence(result: MatchResult) -> Scores:
    """Of each point; 0 where nothing was judged, as for points outside their picture."""
    return np.zeros(len(result.keypoints)) if result.confidence is None else result.confidence


def _without(boxes: Sequence[Box], image: Image) -> Image:
    """The picture with its mean colour in the boxes' place; as it is without any."""
    if not boxes:
        return image
    painted, colour = image.copy(), image.mean(axis=(0, 1)).astype(np.uint8)
    for box in boxes:
        inside = box.grown(0.05 * box.longest).clipped(image_hw(image))
        x0, y0, x1, y1 = (round(edge) for edge in inside.xyxy)
        painted[y0:y1, x0:x1] = colour
    return painted


def _thumbnail(image: Image) -> npt.NDArray[np.float64]:
    """A small picture (16, 16, 3) of unit length around its mean: the product of two is their correlation."""
    cv2 = require_cv2()
    small = cv2.resize(image, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA).astype(np.float64)
    small -= small.mean()
    return np.asarray(small / max(float(np.linalg.norm(small)), 1e-9))
