"""The modules: one centre-pivot layer, and a stack of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from kbc.errors import InputError, must_be
from kbc.ops.query_rows import query_rows
from kbc.ops.spec import Activation, Backend, Padding, check_grid, check_offsets, check_stride, whole_numbers
from kbc.ops.streaming import Layer, one_layer, stack_forward, streams


class CenterPivotConv4d(nn.Module):
    """A centre-pivot 4D convolution layer (definition: HSNet, arXiv 2104.01538).

    Args:
        in_channels, out_channels: C and O, any numbers.
        kernel_size: one number, or four (ah, aw, bh, bw), in cells.
        stride: on the b-grid, one number or (sh, sw), in cells.
        padding: "same" or the kernel element on the position, see `center_pivot_conv4d`.
        bias: whether there is one.
        activation: None or "relu"; also chooses the gain of the initial weights (uniform, He; our choice).

    Attributes:
        weight_a, weight_b: (O, C, ah, aw) and (O, C, bh, bw).
        bias: (O,) or None.
        backend: what `center_pivot_conv4d` is asked for; "auto" until set.

    `load_state_dict` also takes the usual layout of such layers: `conv1.weight` and `conv2.weight` for the a- and the
    b-grid, and `conv1.bias`, `conv2.bias`, of which only the sum matters.

    Raises:
        InputError: a size that is not a positive whole number, or arguments that do not fit together.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        padding: Padding = "same",
        bias: bool = True,
        activation: Activation = None,
    ) -> None:
        super().__init__()
        ah, aw, bh, bw = sides = _four(kernel_size)
        self.in_channels = _positive("in_channels", in_channels)
        self.out_channels = _positive("out_channels", out_channels)
        self.kernel_size = sides
        self.stride = check_stride(stride)
        check_offsets(padding, sides)
        self.padding: Padding = padding
        if activation not in (None, "relu"):
            raise InputError(must_be("activation", "None or 'relu'", repr(activation), "apply others to the result"))
        self.activation: Activation = activation
        self.backend: Backend = "auto"
        self.weight_a = nn.Parameter(torch.empty(out_channels, in_channels, ah, aw))
        self.weight_b = nn.Parameter(torch.empty(out_channels, in_channels, bh, bw))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights: uniform, variance gain²/fan-in over both kernels together; bias zero."""
        fan_in = self.weight_a[0].numel() + self.weight_b[0].numel()
        bound = math.sqrt((6.0 if self.activation == "relu" else 3.0) / fan_in)
        nn.init.uniform_(self.weight_a, -bound, bound)
        nn.init.uniform_(self.weight_b, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Ha, Wa, Hb, Wb) → (B, O, Ha, Wa, ceil(Hb/sh), ceil(Wb/sw))."""
        return one_layer(x, self.as_layer())

    def as_layer(self) -> Layer:
        """The same layer for `query_rows`, sharing the parameters."""
        return Layer(self.weight_a, self.weight_b, self.bias, self.stride, self.padding, self.activation, self.backend)

    def extra_repr(self) -> str:
        """What `repr` shows within the brackets."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return f"{text}, padding={self.padding!r}, bias={self.bias is not None}, activation={self.activation!r}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        usual = {name: prefix + name for name in ("conv1.weight", "conv2.weight", "conv1.bias", "conv2.bias")}
        if usual["conv1.weight"] in state_dict and usual["conv2.weight"] in state_dict:
            # torch hands over its own shallow copy, so the caller's dict stays as it was
            state_dict[prefix + "weight_a"] = state_dict.pop(usual["conv1.weight"])
            state_dict[prefix + "weight_b"] = state_dict.pop(usual["conv2.weight"])
            biases = [state_dict.pop(usual[n]) for n in ("conv1.bias", "conv2.bias") if usual[n] in state_dict]
            if biases:
                state_dict[prefix + "bias"] = sum(biases[1:], start=biases[0])
        super()._load_from_state_dict(state_dict, prefix, *args)


class CenterPivotStack(nn.Module):
    """Centre-pivot layers in a row with pointwise activations, so that `query_rows` is exact.

    Args:
        channels: channels of the input, of each layer between, and of the output; at least two numbers.
        kernel_size: for all layers, or one per layer, in cells.
        activation: after every layer but the last: "relu" or None.
        final_activation: after the last layer: "relu" or None.
        stride: on the b-grid, for all layers, or one per layer, in cells.

    Attributes:
        layers: a `ModuleList` of `CenterPivotConv4d`.

    Raises:
        InputError: fewer than two channels, or a list whose length is not the number of layers.
    """

    def __init__(
        self,
        channels: Sequence[int] = (3, 16, 16, 1),
        kernel_size: int | Sequence[int] = 3,
        activation: Activation = "relu",
        final_activation: Activation = None,
        stride: int | Sequence[int] = 1,
    ) -> None:
        super().__init__()
        if not isinstance(channels, Sequence) or len(channels) < 2:
            raise InputError(must_be("channels", "at least two numbers, input and output", repr(channels)))
        count = len(channels) - 1
        sizes = _per_layer("kernel_size", kernel_size, count)
        strides = _per_layer("stride", stride, count)
        activations = [activation] * (count - 1) + [final_activation]
        self.layers = nn.ModuleList(
            CenterPivotConv4d(c, o, k, s, activation=act)
            for (c, o), k, s, act in zip(pairwise(channels), sizes, strides, activations, strict=True)
        )

    def as_layers(self) -> list[Layer]:
        """The layers for `query_rows`, sharing the parameters."""
        return [layer.as_layer() for layer in self.layers if isinstance(layer, CenterPivotConv4d)]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Ha, Wa, Hb, Wb) → (B, O, Ha, Wa, Hb', Wb'); b-sides shrink by each layer's stride, rounded up.

        On the CPU and without gradients the layers run together, strip by strip of the a-grid: same values, a
        fraction of the memory.
        """
        check_grid(x)
        if not torch.compiler.is_compiling() and streams(x, layers := self.as_layers()):
            return stack_forward(x, layers)
        for layer in self.layers:
            x = layer(x)
        return x

    def query_rows(self, x: Tensor, rows: Tensor | Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        """The stack's output at some cells of the a-grid only: `forward(x)` there, but for rounding.

        Computes what these cells read, and the whole where that is most of the grid: measured from 80 times faster than
        the reference (10 points in a block of 8×8 of 32×32 cells) to as slow as `forward` (all over 20×20).

        Args:
            x: (B, C, Ha, Wa, Hb, Wb), any memory order.
            rows: flat cells ha·Wa + wa of the a-grid, (K,) for every item or (B, K), each in 0 … Ha·Wa − 1. A cell may
                come twice. K may be 0.

        Returns:
            (B, K, O, Hb', Wb'): `forward(x)[b, :, ha, wa]` for the k-th cell of item b. Differentiable.

        Raises:
            InputError: rows of another form, or outside the grid.
        """
        return query_rows(x, rows, self.as_layers())


def _positive(name: str, value: int) -> int:
    return whole_numbers(name, value, 1, "a positive whole number")[0]


def _four(kernel_size: int | Sequence[int]) -> tuple[int, int, int, int]:
    expected = "a positive whole number or four (ah, aw, bh, bw)"
    ah, aw, bh, bw = whole_numbers("kernel_size", kernel_size, 4, expected)
    return ah, aw, bh, bw


def _per_layer(name: str, value: int | Sequence[int], count: int) -> list[int]:
    values = list(value) if isinstance(value, Sequence) else [value] * count
    if len(values) != count:
        raise InputError(must_be(name, f"one number or one per layer ({count})", repr(value)))
    return values
