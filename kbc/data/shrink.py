"""In-context shrinking: each photo of a set pasted into a larger photo of the same set.

A controlled test of small objects: the picture keeps its size for the matcher, the object becomes f times smaller, and
what surrounds it is a real picture. (Design notes of this project, section 2; the details are our choice.)
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from kbc.data.records import CACHE_BYTES, Dataset, PairRecord, Problems
from kbc.errors import InputError, must_be
from kbc.geometry import Box, Points, Window, as_size
from kbc.images import Image, image_hw

MAX_FACTOR = 10**6
"""Larger ones overflow; how many pixels a picture may have is seen to for each."""
_THUMB = (16, 16)
_SAME = 0.9


def shrink(dataset: Dataset, factor: float, seed: int = 0, cache_bytes: int = CACHE_BYTES) -> Dataset:
    """The data set with every image pasted into one `factor` times as large, on both sides of each pair.

    The larger image is another image of the set, cut to the photo's proportions and enlarged to `factor` times its
    size; the photo covers a part of it, unscaled, at a seeded position. Which and where depends on the seed and the
    image alone, so an image looks the same in every pair and in every run, on every machine. The context is never the
    same photo: not the file, not its content, not a file of the same name in another folder (PF-WILLOW cuts several
    categories from one photo), not a near-copy (thumbnails correlated above 0.9); and it shows another category when
    the set has one, so that shrinking does not also add a rival. Points and boxes move along through `kbc.geometry`.

    Args:
        dataset: any data set with images.
        factor: at least 1; 1 gives the data set back.
        seed: another seed, other contexts and positions.
        cache_bytes: memory for the made images.

    Raises:
        InputError: `factor` below 1, or no other photo to paste into. A photo that would grow beyond what memory is
            likely to hold becomes a problem of its pairs.
    """
    if not isinstance(factor, (int, float, np.integer, np.floating)) or not 1 <= factor <= MAX_FACTOR:
        raise InputError(must_be("shrink", f"a factor of 1 to {MAX_FACTOR}", factor))
    if factor == 1 or not len(dataset):
        return dataset
    maker = _Maker(dataset, float(factor), seed)
    records, problems = [], Problems(dataset.problems)
    for record in dataset.records:
        try:
            records.append(maker.record(record))
        except (InputError, OSError) as error:  # sizes are needed now, so a broken photo shows here
            problems.add(record.id, error, 1)
    return Dataset(f"{dataset.name} shrunk {factor:g}", records, problems, maker.image, cache_bytes)


class _Maker:
    """Where each photo lies and what surrounds it; made images are only drawn when they are opened."""

    def __init__(self, dataset: Dataset, factor: float, seed: int) -> None:
        self.dataset, self.factor, self.seed = dataset, factor, seed
        self.paths = dataset.images()
        self.families: dict[Path, set[str]] = {}
        for record in dataset.records:
            family = record.category.split("(")[0]  # PF-WILLOW: car(G), car(M) and car(S) are all cars
            for path, _ in record.sides:
                self.families.setdefault(path, set()).add(family)
        self._sizes: dict[Path, tuple[int, int]] = {}
        self._thumbs: dict[Path, Points] = {}

    def record(self, record: PairRecord) -> PairRecord:
        source, target = self.window(record.source_path), self.window(record.target_path)
        return replace(
            record,
            keypoints=source.to_image(record.keypoints),
            target_keypoints=target.to_image(record.target_keypoints),
            source_box=None if record.source_box is None else source.box_to_image(record.source_box),
            target_box=None if record.target_box is None else target.box_to_image(record.target_box),
            others=tuple(target.to_image(other) for other in record.others),
            fields={**record.fields, "shrink": self.factor},
        )

    def image(self, path: Path) -> Image:
        photo = self.dataset.image(path)
        canvas_hw = self._canvas(path)
        context = self.dataset.image(self.context(path))
        height, width = image_hw(context)
        scale = min(width / canvas_hw[1], height / canvas_hw[0])  # the largest middle part of the same proportions
        cut_w, cut_h = canvas_hw[1] * scale, canvas_hw[0] * scale
        part = Box((width - cut_w) / 2, (height - cut_h) / 2, (width + cut_w) / 2, (height + cut_h) / 2)
        made = np.array(Window.fit(part, (height, width)).resized(canvas_hw).cut(context))
        x0, y0, x1, y1 = (int(edge) for edge in self.window(path).box.xyxy)
        made[y0:y1, x0:x1] = photo
        return made

    def window(self, path: Path) -> Window:
        """Where the photo lies in its larger image, as a window of that image at the photo's own size."""
        height, width = self._size(path)
        canvas_h, canvas_w = self._canvas(path)
        generator = self._generator(path)
        x0, y0 = (int(generator.integers(0, room + 1)) for room in (canvas_w - width, canvas_h - height))
        return Window(Box(x0, y0, x0 + width, y0 + height), (height, width))

    def context(self, path: Path) -> Path:
        """The photo that surrounds this one.

        Raises:
            InputError: the set holds no other photo.
        """
        others = [other for other in self.paths if other.stem != path.stem]
        strangers = [other for other in others if not self.families[other] & self.families[path]]
        generator = self._generator(path, "context")
        for group in (strangers, others):
            for i in generator.permutation(len(group)):
                other = group[int(i)]
                if self._readable(other) and not self._same_photo(path, other):
                    return other
        raise InputError(must_be("shrink", "given a set with another photo to paste into", f"only {path.name!r}"))

    def _readable(self, path: Path) -> bool:
        try:
            return self.dataset.image(path).size > 0
        except (InputError, OSError):
            return False

    def _same_photo(self, a: Path, b: Path) -> bool:
        return float((self._thumb(a) * self._thumb(b)).mean()) > _SAME

    def _thumb(self, path: Path) -> Points:
        if path not in self._thumbs:
            image = self.dataset.image(path)
            small = Window.whole(image_hw(image)).resized(_THUMB).cut(image).astype(np.float64)
            self._thumbs[path] = (small - small.mean()) / max(float(small.std()), 1e-6)
        return self._thumbs[path]

    def _size(self, path: Path) -> tuple[int, int]:
        if path not in self._sizes:
            self._sizes[path] = image_hw(self.dataset.image(path))
        return self._sizes[path]

    def _canvas(self, path: Path) -> tuple[int, int]:
        height, width = self._size(path)
        return as_size((round(height * self.factor), round(width * self.factor)), "shrink")

    def _generator(self, path: Path, purpose: str = "place") -> np.random.Generator:
        name = "/".join(path.parts[-2:])  # folder and file: the same on every machine and in every part of the set
        digest = hashlib.blake2b(f"{self.seed}|{purpose}|{name}".encode(), digest_size=8).digest()
        return np.random.default_rng(int.from_bytes(digest, "little"))
