"""Training pairs, each fully determined by its index: procedural scenes, annotated photographs, warped photographs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from kbc.errors import DataError, InputError, must_be
from kbc.files import file_digest, read_json
from kbc.kbcnet.training.augment import Sample, Views, framed_pair, mirrored, rising, warped_pair

if TYPE_CHECKING:
    from kbc.data.records import PairRecord
    from kbc.data.scenes.render import ScenePair

HELD_OUT = 1_000_000_000
"""Indices from here on are validation pairs; training never reaches them."""


_Share = Annotated[float, Field(gt=0, le=1)]


class ScenesData(BaseModel):
    """Procedural scenes.

    Attributes:
        object_fraction: range of the figure's longest side over the image's, as `scene_pair` takes it.
        heights: image heights that are drawn from; the width is 4/3 of it.
        often: relative frequency of some categories; of the others it is 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["scenes"]
    seed: Annotated[int, Field(ge=0)] = 0
    views: Views = Views()
    object_fraction: Annotated[tuple[_Share, _Share], AfterValidator(rising)] = (0.08, 0.4)
    heights: tuple[Annotated[int, Field(ge=32)], ...] = Field((240, 360, 480), min_length=1)
    often: dict[str, Annotated[float, Field(gt=0)]] = {}


class PhotosData(BaseModel):
    """Annotated photographs in COCO's form, of which only the images named in a split are used.

    Attributes:
        root: folder that holds the sets; "$KBC_DATA" in it is replaced by the environment variable.
        split: JSON {set: {"train": [file names], "test": [file names]}}; a name without a folder is one of the splits
            that come with kbc. Validation pairs are of two images of "test", training pairs of two of "train".
        sets: which sets.
        warps: share of pairs that are one photograph and a warp of it (random points, known exactly).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["photos"]
    seed: Annotated[int, Field(ge=0)] = 0
    views: Views = Views(colour=0.5)
    root: str = "$KBC_DATA/data"
    split: str = "photos-split.json"
    sets: tuple[str, ...]
    warps: Annotated[float, Field(ge=0, le=1)] = 0.3


class PairSource(Protocol):
    """Training pairs by index ≥ 0; `names` lists every named point that occurs, of all categories."""

    names: list[str]

    def __call__(self, index: int) -> Sample:
        """The pair of this index, the same at every call."""
        ...

    def content(self) -> str:
        """A digest of what the pairs are drawn from beside `data`; "" where kbc's version tells."""
        ...


def pair_source(data: ScenesData | PhotosData, environment: dict[str, str]) -> PairSource:
    """The pairs that `data` describes.

    Raises:
        InputError, DataError: photographs that are not there.
    """
    return SceneSource(data) if isinstance(data, ScenesData) else PhotoSource(data, environment)


class SceneSource:
    """Pairs of procedural scenes."""

    def __init__(self, data: ScenesData) -> None:
        from kbc.data.scenes.render import categories, render

        self.data = data
        points = {name: render(name, 0, size_hw=(32, 32)).names for name in categories()}
        self.names = [f"{category}/{point}" for category, found in points.items() for point in found]
        self.first = {category: self.names.index(f"{category}/{found[0]}") for category, found in points.items()}
        if not set(data.often) <= set(points):
            raise InputError(must_be("often", f"about some of {', '.join(points)}", sorted(data.often)))
        shares = np.array([data.often.get(category, 1.0) for category in points])
        self._shares = shares / shares.sum()

    def __call__(self, index: int) -> Sample:
        """The pair of this index. Each is a scene of its own: several views of one taught far less at every step."""
        scene = self._scene(index)
        sides = [(scene.source.image, scene.source.keypoints), (scene.target.image, scene.target.keypoints)]
        parts = self.first[scene.category] + np.arange(len(scene.names))
        return framed_pair(np.random.default_rng([self.data.seed, index, 7]), sides, parts, self.data.views)

    def content(self) -> str:
        """Nothing: kbc draws them."""
        return ""

    def _scene(self, index: int) -> ScenePair:
        from kbc.data.scenes.render import scene_pair

        data, rng = self.data, np.random.default_rng([self.data.seed, index, 5])
        height = int(rng.choice(data.heights))
        category = str(rng.choice(list(self.first), p=self._shares)) if data.often else None
        return scene_pair(
            [data.seed, index],
            size_hw=(height, height * 4 // 3),
            object_fraction=data.object_fraction,
            category=category,
        )


class PhotoSource:
    """Pairs of annotated photographs, and photographs with a warp of themselves; for validation, of other images."""

    def __init__(self, data: PhotosData, environment: dict[str, str]) -> None:
        from kbc.data.coco import open_coco

        self.data = data
        root = Path(expanded(data.root, environment))
        split = read_split(data.split)
        self.by_set: list[list[PairRecord]] = []
        self.held_out: list[list[PairRecord]] = []
        self.load: list[Any] = []
        most: dict[str, int] = {}
        for name in data.sets:
            if name not in split:
                hint = "for pictures of your own write a split of yours and name it, data.0.split=folder/split.json"
                raise InputError(must_be("sets", f"some of those in the split: {', '.join(split)}", repr(name), hint))
            dataset = open_coco(root / name)
            names = {path: path.relative_to(root / name).as_posix() for path in dataset.images()}
            records, held_out = (
                [r for r in dataset.records if {names[r.source_path], names[r.target_path]} <= chosen]
                for chosen in (set(split[name].get(part, ())) for part in ("train", "test"))
            )
            if not records:
                hint = "both pictures of a pair must be in it, named as in annotations.json"
                raise DataError(must_be("split", f"with training pairs of {root / name}", "none", hint))
            self.by_set.append(records)
            self.held_out.append(held_out)
            self.load.append(dataset.image)
            for record in records:
                most[record.category] = max(most.get(record.category, 0), len(record.keypoints))
        self.names = [f"{category}/{point}" for category, count in most.items() for point in range(count)]
        self.first = {category: self.names.index(f"{category}/0") for category in most}

    def __call__(self, index: int) -> Sample:
        """The pair of this index: a set at random, then a pair of it, in either direction.

        Raises:
            InputError: a validation pair, and the split holds none back.
        """
        rng = np.random.default_rng([self.data.seed, index, 11])
        by_set = self.by_set if index < HELD_OUT else self.held_out
        sets = [at for at, records in enumerate(by_set) if records]
        if not sets:
            hint = 'or name images in its part "test"'
            raise InputError(must_be("validate_pairs", "0 with a split that holds no pair back", self.data.split, hint))
        at = sets[int(rng.integers(len(sets)))]
        record = by_set[at][int(rng.integers(len(by_set[at])))]
        image = self.load[at]
        sides = [
            (image(record.source_path), record.keypoints),
            (image(record.target_path), record.target_keypoints),
        ]
        if rng.random() < 0.5:
            sides.reverse()
        if rng.random() < self.data.warps:
            return warped_pair(rng, *sides[0], self.data.views)
        first = self.first.get(record.category)  # a category that is held out as a whole has no names
        parts = np.full(len(record.keypoints), -1) if first is None else first + np.arange(len(record.keypoints))
        sample = framed_pair(rng, sides, parts, self.data.views)
        return mirrored(sample) if rng.random() < 0.5 else sample

    def content(self) -> str:
        """Of points and pictures, wherever they lie: machines that train together may have them in other folders."""
        found = hashlib.sha256()
        pictures: dict[Path, None] = {}
        for record in (record for records in self.by_set for record in records):
            points = [side.tolist() for _, side in record.sides]
            found.update(repr([record.id, record.category, points]).encode())
            pictures |= dict.fromkeys(path for path, _ in record.sides)
        for path in pictures:
            found.update(file_digest(path).encode())
        return found.hexdigest()


def read_split(name: str) -> dict[str, dict[str, list[str]]]:
    """Image file names by set and part, from a JSON file or one of those that come with kbc.

    Raises:
        DataError: missing or not of that form.
    """
    path = Path(name) if Path(name).parent != Path() else Path(__file__).parents[1] / "configs" / name
    try:
        split = read_json(path)
        return {key: {part: [str(file) for file in part_files] for part, part_files in parts.items()}
                for key, parts in split.items()}  # fmt: skip
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(must_be("split", "a JSON file {set: {part: [names]}}", f"{str(path)!r} ({error})")) from error


def expanded(text: str, environment: dict[str, str]) -> str:
    """A path with "$KBC_DATA" in it as the environment has it.

    Raises:
        InputError: it has none.
    """
    if "$KBC_DATA" in text and "KBC_DATA" not in environment:
        hint = f"it is in {text!r} of the recipe: set the variable, or --set that field; kbcnet-tiny needs no data"
        raise InputError(must_be("KBC_DATA", "set to the folder that holds data/ and weights/", "nothing", hint))
    return text.replace("$KBC_DATA", environment.get("KBC_DATA", ""))
