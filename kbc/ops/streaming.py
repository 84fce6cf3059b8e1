"""A stack of centre-pivot layers without gradients on the CPU, all layers together, strip by strip of a-rows.

Each layer keeps only the rows that the next strip still reads, so intermediate values stay in the cache and the peak of
memory is the output plus a few rows. Our choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kbc.ops import cpu
from kbc.ops.conv4d import center_pivot_conv4d
from kbc.ops.spec import Activation, Backend, Padding, Spec, autocast_arguments, check_kinds, check_layer


class Layer(NamedTuple):
    """One layer of a stack: the arguments of `center_pivot_conv4d` besides x."""

    weight_a: Tensor
    weight_b: Tensor
    bias: Tensor | None = None
    stride: int | Sequence[int] = 1
    padding: Padding = "same"
    activation: Activation = None
    backend: Backend = "auto"


def one_layer(x: Tensor, layer: Layer) -> Tensor:
    """`center_pivot_conv4d` with a layer's arguments."""
    return center_pivot_conv4d(
        x,
        *layer[:3],
        stride=layer.stride,
        padding=layer.padding,
        activation=layer.activation,
        backend=layer.backend,
    )


def streams(x: Tensor, layers: Sequence[Layer]) -> bool:
    """Whether the layers can run together: on the CPU, nothing to differentiate, no other backend asked for."""
    tensors = [x, *(tensor for layer in layers for tensor in layer[:3] if tensor is not None)]
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return x.device.type == "cpu" and not wanted and all(layer.backend in ("auto", "torch") for layer in layers)


def cast_layers(x: Tensor, layers: Sequence[Layer]) -> tuple[Tensor, list[Layer]]:
    """x and the layers as autocast would have them."""
    casted = []
    for layer in layers:
        _, weight_a, weight_b, bias = autocast_arguments(x, layer.weight_a, layer.weight_b, layer.bias)
        casted.append(layer._replace(weight_a=weight_a, weight_b=weight_b, bias=bias))
    return autocast_arguments(x, *layers[0][:3])[0], casted


def check_chain(x: Tensor, layers: Sequence[Layer]) -> list[Spec]:
    """Check each layer against what the one before gives, without computing anything."""
    shape: tuple[int, ...] = tuple(x.shape)
    specs = []
    for layer in layers:
        blank = x.new_empty((1,)).expand(shape)
        check_kinds(blank, layer.weight_a, layer.weight_b, layer.bias)
        spec = check_layer(blank, *layer[:3], stride=layer.stride, padding=layer.padding, activation=layer.activation)
        specs.append(spec)
        shape = spec.output_shape(shape, layer.weight_a.shape[0])
    return specs


class _Stage:
    """One layer and the input rows it still needs, in a buffer that the layer before writes into."""

    def __init__(self, layer: Layer, spec: Spec, height: int, buffer: Tensor) -> None:
        self.layer, self.spec, self.height, self.buffer = layer, spec, height, buffer
        self.first = 0  # the grid row that lies at the start of the buffer
        self.filled = 0  # rows in the buffer
        self.done = 0  # output rows given so far

    def room(self, count: int) -> Tensor:
        """Where the next `count` input rows belong; they count as filled."""
        self.filled += count
        return self.buffer[self.filled - count : self.filled]

    def ready(self) -> int:
        """How many output rows can be computed now."""
        known = self.first + self.filled
        below = self.layer.weight_a.shape[2] - 1 - self.spec.offsets[0]
        return max(0, (self.height if known == self.height else known - below) - self.done)

    def compute(self, out: Tensor) -> None:
        """Compute the rows that are `ready` into out, and let go of input rows that are not read again."""
        last = self.done + out.shape[0]
        reads, missing = cpu.rows_read(self.done, last, self.height, self.layer.weight_a.shape[2], self.spec)
        window = self.buffer[reads.start - self.first : reads.stop - self.first]
        cpu.cross(window, *self.layer[:3], self.spec, out, missing)
        self.done = last
        start = min(max(last - self.spec.offsets[0], 0), self.first + self.filled)
        keep = self.first + self.filled - start
        if keep:
            self.buffer[:keep] = self.buffer[self.filled - keep : self.filled].clone()  # the two may overlap
        self.first, self.filled = start, keep


def stack_forward(x: Tensor, layers: Sequence[Layer]) -> Tensor:
    """(B, C, Ha, Wa, Hb, Wb) → (B, O, Ha, Wa, Hb', Wb') in channels-last order, as the layers one after the other."""
    x, layers = cast_layers(x, layers)
    specs = check_chain(x, layers)
    shape: tuple[int, ...] = tuple(x.shape)
    rows = ha = x.shape[2]
    for layer, spec in zip(layers, specs, strict=True):
        shape = spec.output_shape(shape, layer.weight_a.shape[0])
        blank = x.new_empty((1,)).expand(shape).permute(0, 2, 3, 4, 5, 1)
        rows = min(rows, cpu.strip_rows(blank, layer.weight_a, layer.weight_b))
    y = cpu.empty_channels_last(x, shape)
    buffers = _buffers(x, layers, specs, rows)
    for item, result in zip(x.permute(0, 2, 3, 4, 5, 1), cpu.channels_last(y), strict=True):
        stages = [_Stage(layer, spec, ha, buf) for layer, spec, buf in zip(layers, specs, buffers, strict=True)]
        for first in range(0, ha, rows):
            last = min(first + rows, ha)
            stages[0].room(last - first).copy_(item[first:last])
            for stage, following in zip(stages, [*stages[1:], None], strict=True):
                count = stage.ready()
                if count:
                    done = stage.done
                    stage.compute(result[done : done + count] if following is None else following.room(count))
    return y


def _buffers(x: Tensor, layers: Sequence[Layer], specs: Sequence[Spec], rows: int) -> list[Tensor]:
    """One per layer, tall enough for what it keeps and the most that can come at once (the last strip brings more)."""
    shape: tuple[int, ...] = tuple(x.shape)
    buffers = []
    for layer, spec in zip(layers, specs, strict=True):
        kept = layer.weight_a.shape[2] - 1
        _, c, ha, *sides = shape
        buffers.append(x.new_empty((min(ha, rows + kept), *sides, c)))
        rows += kept - spec.offsets[0]
        shape = spec.output_shape(shape, layer.weight_a.shape[0])
    return buffers
