"""The parameters of KBC, in one frozen, validated object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from kbc.errors import InputError, must_be, requirement

LocalizerName: TypeAlias = Literal["predicted", "consensus", "search", "best", "given"]
Budget: TypeAlias = Literal["fast", "balanced", "thorough"]

COST: dict[str, float] = {"fast": 2.0, "balanced": 4.0, "thorough": 16.0}
"""Most a pair may cost, in units of one plain match (coarse pass included)."""


class KBCConfig(BaseModel):
    """What KBC does. Frozen; unknown fields are refused.

    Each default was chosen by a measurement on real photographs; `examples/results/defaults.md` and
    `tuning.md` hold the figures and the commands that made them.

    >>> KBCConfig(budget="thorough").budget
    'thorough'
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    localizer: LocalizerName = "best"
    """How the target window is found; 'given' needs a target box in the pair."""
    budget: Budget = "fast"
    """At most 2, 4 or 16 times the cost of the plain matcher."""
    small_below: float = Field(default=0.5, gt=0, le=1)
    """An object is small when its box's longer side, as a fraction of its image's side in the matcher's input, is
    below this."""
    margin: float = Field(default=0.25, ge=0, le=4)
    """Added around the box on each side, as a fraction of the box's longer side."""
    max_enlargement: float = Field(default=8.0, ge=1)
    """Largest enlargement of original pixels; a smaller box gets a wider window instead."""
    aspect: Literal["square", "image"] = "square"
    """Shape of the window: a square, or the image's own aspect."""
    interpolation: Literal["cubic", "linear"] = "cubic"
    """How a window is enlarged; shrinking always filters by area."""
    passes: int = Field(default=3, ge=0, le=8)
    """Fine passes at most; each further one starts from the best one's points and ends when the window is stable
    (IoU > 0.9). 0 switches KBC off."""
    joint: bool = True
    """Let the layout that all of a pair's answers agree on correct single ones. Off, and always with
    localizer='predicted', the matcher's own answers in the best window are taken."""
    mirror: bool = True
    """Look at the source mirrored too, where the budget allows it: the object may face the other way. Off where left
    and right must not be taken for each other."""
    accept_margin: float = Field(default=-1.5, ge=-10, le=10)
    """A fine pass is taken when its evidence beats the coarse one's by more than this, nats a point. Below zero, for
    the coarse pass sees a small object in a few cells, whose answers agree too easily."""
    min_confidence: float = Field(default=0.0, ge=0, le=1)
    """Answers that are less sure than this become NaN; `confidence`, `origin` and `coarse` stay as they are."""
    batch_size: int = Field(default=16, ge=1)
    """Pairs handled together at most."""

    @field_validator("min_confidence")
    @classmethod
    def _judged(cls, value: float, info: ValidationInfo) -> float:
        if value > 0 and (info.data.get("passes") == 0 or info.data.get("localizer") == "predicted"):
            raise PydanticCustomError(
                "judged",
                "Input should be 0 with passes=0 or localizer='predicted', which do not tell how sure a point is",
            )
        return value


class KBCOptions(TypedDict, total=False):
    """The fields of `KBCConfig` as keyword arguments, so that editors complete them and type checkers know them."""

    localizer: LocalizerName
    budget: Budget
    small_below: float
    margin: float
    max_enlargement: float
    aspect: Literal["square", "image"]
    interpolation: Literal["cubic", "linear"]
    passes: int
    joint: bool
    mirror: bool
    accept_margin: float
    min_confidence: float
    batch_size: int


def make_config(config: KBCConfig | None, options: Mapping[str, Any]) -> KBCConfig:
    """A config with some fields replaced.

    Raises:
        InputError: an unknown field or a value out of range, with what is known or allowed.
    """
    if config is not None and not isinstance(config, KBCConfig):
        raise InputError(must_be("config", "a KBCConfig", type(config).__name__, "or pass its fields by name"))
    fields = {**(config.model_dump() if config else {}), **options}
    try:
        return KBCConfig(**fields)
    except ValidationError as error:
        from kbc.errors import nearest

        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise InputError(
                f"`{name}` must be a KBC option, received an unknown one; {nearest(name, KBCConfig.model_fields)}"
            ) from error
        raise InputError(f"`{name}` {requirement(first['msg'])}, received {first['input']!r}") from error
