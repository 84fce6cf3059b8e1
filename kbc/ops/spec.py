"""What a centre-pivot layer is besides its weights, and the checks of what users give.

Convention: the logical shape is (B, C, Ha, Wa, Hb, Wb) everywhere: a is the source grid, b the target grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from kbc.errors import InputError, must_be

Activation: TypeAlias = Literal["relu"] | None
Backend: TypeAlias = Literal["auto", "reference", "torch", "triton"]
Padding: TypeAlias = Literal["same"] | int

BACKENDS: tuple[str, ...] = get_args(Backend)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Spec(NamedTuple):
    """What a layer does besides its weights, all checked.

    Attributes:
        stride: (sh, sw) on the b-grid.
        offsets: (ah, aw, bh, bw), p of the definition per axis: the kernel element that lies on the position itself.
        relu: whether max(·, 0) follows.
    """

    stride: tuple[int, int]
    offsets: tuple[int, int, int, int]
    relu: bool

    def output_shape(self, shape: Sequence[int], outputs: int) -> tuple[int, int, int, int, int, int]:
        """(B, O, Ha, Wa, Hb', Wb') for an input of `shape`: the b-sides over the stride, rounded up."""
        b, _, ha, wa, hb, wb = shape
        return b, outputs, ha, wa, -(-hb // self.stride[0]), -(-wb // self.stride[1])


def check_layer(
    x: Tensor,
    weight_a: Tensor,
    weight_b: Tensor,
    bias: Tensor | None,
    *,
    stride: int | Sequence[int],
    padding: Padding,
    activation: Activation,
) -> Spec:
    """Check one layer's arguments against each other; kinds (dtype, device) are checked after autocast."""
    check_grid(x)
    for name, given in (("weight_a", weight_a), ("weight_b", weight_b), ("bias", bias)):
        if given is not None:
            check_tensor(name, given)
    for name, weight in (("weight_a", weight_a), ("weight_b", weight_b)):
        if weight.dim() != 4 or 0 in weight.shape:
            raise InputError(must_be(name, "(O, C, Kh, Kw) with no empty side", tuple(weight.shape)))
        if weight.shape[1] != x.shape[1]:
            expected = f"(O, {x.shape[1]}, Kh, Kw) for `x` with {x.shape[1]} channels"
            raise InputError(must_be(name, expected, tuple(weight.shape), "match the number of input channels"))
    o = weight_a.shape[0]
    if weight_b.shape[0] != o:
        raise InputError(
            must_be("weight_b", f"({o}, C, Kh, Kw) like `weight_a`", tuple(weight_b.shape), "match the outputs")
        )
    if bias is not None and tuple(bias.shape) != (o,):
        raise InputError(must_be("bias", f"({o},) or None", tuple(bias.shape), "give one value per output channel"))
    if activation not in (None, "relu"):
        raise InputError(must_be("activation", "None or 'relu'", repr(activation), "apply others to the result"))
    sides = (*weight_a.shape[-2:], *weight_b.shape[-2:])
    return Spec(check_stride(stride), check_offsets(padding, sides), activation == "relu")


def check_tensor(name: str, given: object) -> None:
    """Arrays are not converted: it would hide a copy, and where the result lives."""
    if not isinstance(given, Tensor) or given.layout != torch.strided:
        kind = given.layout if isinstance(given, Tensor) else type(given).__name__
        raise InputError(must_be(name, "a dense torch tensor", kind, "convert it first"))


def check_grid(x: Tensor) -> None:
    """Check that x is (B, C, Ha, Wa, Hb, Wb) with nothing empty but perhaps the batch."""
    check_tensor("x", x)
    if x.dim() != 6:
        raise InputError(must_be("x", "(B, C, Ha, Wa, Hb, Wb)", tuple(x.shape), "add the missing dimensions"))
    if 0 in x.shape[1:]:
        raise InputError(must_be("x", "at least one channel and one cell a side", tuple(x.shape)))


def whole_numbers(name: str, given: object, count: int, expected: str, hint: str = "") -> tuple[int, ...]:
    """`count` positive whole numbers from as many, or from one for all."""
    values = tuple(given) if isinstance(given, Sequence) else (given,) * count
    numbers = [int(v) for v in values if isinstance(v, Integral) and not isinstance(v, bool)]
    if not len(numbers) == len(values) == count or min(numbers) < 1:
        raise InputError(must_be(name, expected, repr(given), hint))
    return tuple(numbers)


def check_stride(stride: int | Sequence[int]) -> tuple[int, int]:
    """(sh, sw) on the b-grid from one number or two."""
    hint = "the a-grid has no stride: give the b-grid's alone"
    sh, sw = whole_numbers("stride", stride, 2, "a positive whole number or (sh, sw)", hint)
    return sh, sw


def check_offsets(padding: Padding, sides: Sequence[int]) -> tuple[int, int, int, int]:
    """The kernel element on the position, per axis (ah, aw, bh, bw), for kernels with these sides."""
    if isinstance(padding, str) and padding == "same":
        ah, aw, bh, bw = ((k - 1) // 2 for k in sides)
        return ah, aw, bh, bw
    if isinstance(padding, bool) or not isinstance(padding, int) or not 0 <= padding < min(sides):
        expected = f"'same' or a whole number p with 0 ≤ p < {min(sides)}, the smallest kernel side"
        raise InputError(must_be("padding", expected, repr(padding), "the output keeps the grid for any p"))
    return padding, padding, padding, padding


def check_kinds(x: Tensor, weight_a: Tensor, weight_b: Tensor, bias: Tensor | None) -> None:
    """Check that x has a dtype we compute in, and that the rest has its dtype and device."""
    if x.dtype not in DTYPES:
        raise InputError(must_be("x", "fp32, bf16, fp16 or fp64", x.dtype, "convert it first"))
    for name, given in (("weight_a", weight_a), ("weight_b", weight_b), ("bias", bias)):
        if given is not None and (given.dtype != x.dtype or given.device != x.device):
            expected = f"{x.dtype} on {x.device} like `x`"
            raise InputError(must_be(name, expected, f"{given.dtype} on {given.device}", "move one to the other"))


def autocast_arguments(
    x: Tensor, weight_a: Tensor, weight_b: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """What autocast does to a conv2d's arguments; a custom operator is not on its list."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return x, weight_a, weight_b, bias
    to = torch.get_autocast_dtype(kind)
    return x.to(to), weight_a.to(to), weight_b.to(to), None if bias is None else bias.to(to)
