"""The procedural scenes as a data set: nothing on disk, every image drawn when it is opened."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from kbc.data.records import CACHE_BYTES, Dataset, PairRecord
from kbc.data.scenes.render import ScenePair, scene_pair
from kbc.errors import InputError, must_be
from kbc.images import Image


def open_scenes(
    *,
    count: int = 100,
    seed: int = 0,
    size_hw: tuple[int, int] = (480, 640),
    object_fraction: tuple[float, float] = (0.08, 0.25),
    category: str | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> Dataset:
    """`count` drawn pairs with the seeds `seed`, `seed + 1` and so on.

    Args:
        count: number of pairs.
        seed: of the first pair.
        size_hw: (height, width) of the images.
        object_fraction: smallest and largest object, as in `scene_pair`.
        category: only this one, or all.
        cache_bytes: memory for drawn images.

    Raises:
        InputError: `count` below 1.
    """
    if count < 1:
        raise InputError(must_be("count", "at least 1", count))

    scenes = _Scenes(size_hw, object_fraction, category)
    records = [scenes.record(seed + i) for i in range(count)]
    return Dataset("scenes", records, open_image=scenes.image, cache_bytes=cache_bytes)


class _Scenes:
    """Draws the pairs; the arguments are those of `scene_pair`."""

    def __init__(self, size_hw: tuple[int, int], object_fraction: tuple[float, float], category: str | None) -> None:
        self._options = (size_hw, object_fraction, category)
        self._drawn = lru_cache(maxsize=2)(self._draw)  # both images of a pair are asked for one after the other

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Scenes, self._options)

    def record(self, number: int) -> PairRecord:
        scene = self._drawn(number)
        folder = Path("scenes") / str(number)
        return PairRecord(
            id=str(number),
            source_path=folder / "source",
            target_path=folder / "target",
            keypoints=scene.pair.keypoints,
            target_keypoints=scene.target_keypoints,
            source_box=scene.source_box,
            target_box=scene.target_box,
            category=scene.category,
        )

    def image(self, path: Path) -> Image:
        pair = self._drawn(int(path.parent.name)).pair
        return pair.source if path.name == "source" else pair.target

    def _draw(self, number: int) -> ScenePair:
        size_hw, object_fraction, category = self._options
        return scene_pair(number, size_hw=size_hw, object_fraction=object_fraction, category=category)
