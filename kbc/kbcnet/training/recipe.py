"""A training recipe: one JSON file says everything that decides the weights."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kbc.errors import DataError, InputError, must_be
from kbc.files import as_path, is_file, read_json
from kbc.kbcnet.config import ModelConfig, parse
from kbc.kbcnet.training.sources import PhotosData, ScenesData, read_split

CONFIGS = Path(__file__).parents[1] / "configs"


class Recipe(BaseModel):
    """How a KBCNet is trained.

    Attributes:
        name: of the checkpoint.
        model: the architecture.
        data: what is trained on: the share of each kind follows `mix`.
        mix: relative frequency of each entry of `data`; equal when empty.
        backbone_weights: file of a ResNet's weights, "imagenet", or None; "$KBC_DATA" is replaced by the environment
            variable. With `backbone_lr` 0 they are frozen and stay out of the checkpoint.
        pool: number of distinct training pairs that are drawn again and again, so that a frozen backbone sees each
            only once; None for fresh pairs at every step.
        steps, batch: optimiser steps, pairs per step (over all processes).
        seed: of the initial weights and of the order of the pairs.
        lr, backbone_lr, decoder_lr: AdamW's peak learning rates.
        weight_decay, clip: AdamW's decay; greatest norm of the gradient.
        warmup: share of the steps over which the rate rises; then it falls as a cosine to zero.
        ema: decay of the averaged weights.
        blend: where the result lies between the initial weights (0) and the averaged ones (1). Below one it keeps more
            of what the features knew of things not trained on (Wortsman et al., arXiv 2109.01903).
        late_size, late_start: side of the views after this share of the steps, instead of `Views.size`: small views
            teach most of what there is to learn at a fraction of the cost, larger ones the detail (cf. Touvron et al.,
            arXiv 1906.06423). Not with a `pool`.
        decoder_start: share of the steps before the decoder runs; features learn faster without it.
        plain_weight, end_point_weight: weights of the loss on the features' own correlation and of the distance term;
            the loss on the refined correlation has weight one.
        part_weight: weight of the loss that compares features with one learned prototype per named point, the same in
            all images of a category. Steadier than pairs alone; the prototypes are dropped after training. Our choice.
        validate_every, validate_pairs: steps between checks on held-out pairs, and how many of them.
        save_every: steps between checkpoints to resume from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", max_length=100)
    model: ModelConfig
    data: tuple[Annotated[ScenesData | PhotosData, Field(discriminator="kind")], ...] = Field(min_length=1)
    mix: tuple[Annotated[float, Field(gt=0)], ...] = ()
    backbone_weights: str | None = None
    pool: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    steps: Annotated[int, Field(ge=1, le=100_000_000)]
    batch: Annotated[int, Field(ge=1, le=65_536)] = 16
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    lr: Annotated[float, Field(gt=0)] = 1e-3
    backbone_lr: Annotated[float, Field(ge=0)] = 1e-3
    decoder_lr: Annotated[float, Field(gt=0)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.02
    clip: Annotated[float, Field(gt=0)] = 1.0
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.998
    blend: Annotated[float, Field(gt=0, le=1)] = 1.0
    late_size: Annotated[int, Field(ge=32)] | None = None
    late_start: Annotated[float, Field(ge=0, le=1)] = 0.7
    decoder_start: Annotated[float, Field(ge=0, le=1)] = 0.0
    plain_weight: Annotated[float, Field(ge=0)] = 0.5
    end_point_weight: Annotated[float, Field(ge=0)] = 0.1
    part_weight: Annotated[float, Field(ge=0)] = 0.5
    validate_every: Annotated[int, Field(ge=1)] = 200
    validate_pairs: Annotated[int, Field(ge=0, le=100_000)] = 64
    save_every: Annotated[int, Field(ge=1)] = 200

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.name.lower() == "last":
            raise ValueError(
                must_be("name", "another one: last.safetensors is what a run goes on from", repr(self.name))
            )
        if self.pool is not None and self.late_size is not None:
            raise ValueError(must_be("late_size", "left out with a pool, whose pairs are drawn once", self.late_size))
        return self

    @property
    def frozen_backbone(self) -> bool:
        """The backbone's own weights do not change."""
        return self.backbone_lr == 0 and self.model.backbone != "tiny"

    @property
    def shares(self) -> tuple[float, ...]:
        """Probability of each entry of `data`."""
        mix = self.mix or (1.0,) * len(self.data)
        if len(mix) != len(self.data):
            raise InputError(must_be("mix", f"one number per entry of data ({len(self.data)})", mix))
        return tuple(share / sum(mix) for share in mix)

    @property
    def late_data(self) -> tuple[ScenesData | PhotosData, ...]:
        """`data` with the views of the last steps."""
        sized = [data.views.model_copy(update={"size": self.late_size or data.views.size}) for data in self.data]
        return tuple(data.model_copy(update={"views": views}) for data, views in zip(self.data, sized, strict=True))

    @property
    def first_late(self) -> int:
        """Index of the first training pair that is one of `late_data`."""
        return math.ceil(self.late_start * self.steps) * self.batch

    @property
    def splits(self) -> dict[str, Any]:
        """What the splits of the photographs hold, by name: their names alone do not say what is trained on.

        Raises:
            DataError: one that is missing or broken.
        """
        return {data.split: read_split(data.split) for data in self.data if isinstance(data, PhotosData)}

    def digest(self) -> str:
        """Of everything that decides the weights: a run resumes only under the same recipe. Errors as `splits`."""
        decisive = self.model_dump(mode="json", exclude={"validate_every", "validate_pairs", "save_every"})
        decisive |= {"splits": self.splits} if self.splits else {}
        return hashlib.blake2b(json.dumps(decisive, sort_keys=True).encode(), digest_size=8).hexdigest()


def read_recipe(path: str | Path, changes: dict[str, Any] | None = None) -> Recipe:
    """A recipe from a JSON file, or by name one of those that come with kbc.

    Args:
        changes: dotted field → value, applied on top: {"model.csfa": False, "data.0.views.kbc": False}.

    Raises:
        InputError: no such file, no JSON, or a field that is unknown or wrong.
    """
    own = CONFIGS / f"{path}.json"
    file = own if is_file(own) else as_path(path, "config")
    if not is_file(file):
        names = ", ".join(sorted(p.stem for p in CONFIGS.glob("kbcnet-*.json")))
        raise InputError(must_be("config", f"a JSON file, or one of {names}", repr(str(path))))
    try:
        values = read_json(file)
    except DataError as error:
        raise DataError(must_be("config", "a recipe in JSON", str(error))) from error
    for field, value in (changes or {}).items():
        _change(values, field, value)
    return parse(Recipe, values, "config")


def _change(values: Any, field: str, value: Any) -> None:
    *parents, last = field.split(".")
    try:
        for key in parents:
            values = values[int(key)] if isinstance(values, list) else values.setdefault(key, {})
        values[int(last) if isinstance(values, list) else last] = value
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        hint = "a list's entries are counted from 0: data.0.views.size=128"
        raise InputError(must_be("set", "field=value with a field of the recipe", repr(field), hint)) from error
