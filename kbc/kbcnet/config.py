"""What a KBCNet is made of: the JSON beside every checkpoint."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kbc.errors import InputError, must_be

_M = TypeVar("_M", bound=BaseModel)
_Share = Annotated[float, Field(gt=0, le=4)]
GROUPS = 8
"""Of the tiny backbone's group norms."""
MAX_CHANNELS = 2048
"""Of any layer: what a JSON file asks for is bounded before it is built. Our choice; a ResNet-101 ends in as many."""
MAX_BYTES = 512 * 2**20
"""Of the tiny backbone's weights. Our choice; the one that comes with kbc has 2 MB."""

_Width = Annotated[int, Field(ge=GROUPS, le=MAX_CHANNELS, multiple_of=GROUPS)]


class ModelConfig(BaseModel):
    """Architecture and read-out of a KBCNet.

    Attributes:
        backbone: "tiny" is this project's own; the others are `kbc.matchers.resnet`'s.
        layers: three consecutive backbone layers, finest first; the middle one gives the grid that is matched. Strides
            are 2^(layer + 1): (2, 3, 4) are the paper's 1/8, 1/16 and 1/32. A deepest layer without weights is
            replaced by a learned stride-2 block.
        hypercolumn: which layers make up the features that CSFA adds to, each of unit length.
        input_size: side of the square to which images are stretched, pixels.
        widths, blocks: channels (multiples of 8, for the group norm) and residual blocks of the tiny backbone's layers,
            from stride 4 on.
        csfa: use cross-scale feature alignment; without it the hypercolumn alone is matched.
        csfa_dim, csfa_heads: width of the attention and its heads.
        decoder: hidden channels of the centre-pivot decoder; () leaves it out.
        kernel: kernel side of the decoder's convolutions.
        position_sigma: width of the position prior given to the decoder as one more channel, in image sides; None
            leaves it out.
        votes: reach and tolerance in image sides of each channel of votes given to the decoder (`kbc.matchers.voting`).
        vote_pool: votes are counted on a grid this many times coarser: they are smooth, and on a fine grid they would
            cost more than all the rest.
        vote_weight: initial weight of all votes together, in units of the cosine (learned).
        temperature: initial softmax temperature of the similarity (learned).
        reach: cells on each side of the peak that take part in the soft-argmax.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    backbone: Literal["tiny", "resnet18", "resnet50", "resnet101"] = "tiny"
    layers: tuple[int, int, int] = (2, 3, 4)
    hypercolumn: tuple[int, ...] = (2, 3)
    input_size: Annotated[int, Field(ge=32, le=4096)] = 256
    widths: Annotated[tuple[_Width, ...], Field(max_length=8)] = (32, 64, 128)
    blocks: Annotated[tuple[Annotated[int, Field(ge=0, le=64)], ...], Field(max_length=8)] = (1, 2, 2)
    csfa: bool = True
    csfa_dim: Annotated[int, Field(ge=8, le=MAX_CHANNELS)] = 64
    csfa_heads: Annotated[int, Field(ge=1, le=64)] = 4
    decoder: Annotated[tuple[Annotated[int, Field(ge=1, le=256)], ...], Field(max_length=16)] = (16, 16)
    kernel: Literal[3, 5, 7] = 3
    position_sigma: Annotated[float, Field(gt=0, le=100)] | None = 0.2
    votes: Annotated[tuple[tuple[_Share, _Share], ...], Field(max_length=8)] = ((0.12, 0.09), (0.2, 0.09))
    vote_pool: Annotated[int, Field(ge=1, le=64)] = 1
    vote_weight: Annotated[float, Field(ge=0, le=1000)] = 0.5
    temperature: Annotated[float, Field(gt=0, le=100)] = 0.05
    reach: Annotated[int, Field(ge=1, le=64)] = 2

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        first, middle, last = self.layers
        deepest = len(self.widths) if self.backbone == "tiny" else 4
        if (middle, last) != (first + 1, first + 2) or first < 1 or last > deepest:
            raise ValueError(must_be("layers", f"three consecutive layers of 1 … {deepest}", self.layers))
        if not self.hypercolumn or not set(self.hypercolumn) <= set(self.layers):
            raise ValueError(must_be("hypercolumn", f"some of the layers {self.layers}", self.hypercolumn))
        if len(self.widths) != len(self.blocks):
            raise ValueError(must_be("blocks", f"one number per width {self.widths}", self.blocks))
        size = 4 * 9 * sum(w * w * (2 * n + 1) for w, n in zip(self.widths, self.blocks, strict=True))
        if size > MAX_BYTES:
            raise ValueError(must_be("blocks", f"of at most {MAX_BYTES:,} bytes of weights", f"{size:,}"))
        if self.csfa_dim % (4 * self.csfa_heads):
            raise ValueError(must_be("csfa_dim", f"a multiple of 4 · {self.csfa_heads} heads", self.csfa_dim))
        return self

    @property
    def stride(self) -> int:
        """Input pixels per cell of the matched grid."""
        return int(2 ** (self.layers[1] + 1))


def parse(model: type[_M], values: object, where: str) -> _M:
    """Validate plain data, with one line per mistake.

    Raises:
        InputError: what pydantic refuses, as this project's error.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc'])) or 'it'}: {item['msg']}" for item in error.errors()]
        raise InputError(must_be(where, f"a valid {model.__name__}", "; ".join(lines))) from error
