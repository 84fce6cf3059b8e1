"""Exact evaluation of a centre-pivot stack at only some cells of the a-grid.

A cell's output needs its neighbours' values one layer back, those need theirs, and so on: the mask of needed cells is
carried back through the layers and only those cells are computed. Exact because the b-branch stays inside one a-cell
and only pointwise activations stand between the layers. The scheme is our choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from kbc.errors import InputError, must_be
from kbc.ops import cpu
from kbc.ops.spec import Spec, check_grid
from kbc.ops.streaming import Layer, cast_layers, check_chain, one_layer, stack_forward, streams

# A rectangle of which this share is needed is computed whole: fewer, larger calls win over a few cells saved.
FULL_ENOUGH = 0.7
# From this share of cells on that the first layer reads, the stack is streamed whole. Rectangles took as long at 0.65
# to 0.85 (grids of 16, 20 and 32 a side, two and three layers), and up to 2.7 times as long where nearly all are read.
WHOLE_FROM = 0.7


class Box(NamedTuple):
    """Cells of the a-grid, half-open."""

    top: int
    left: int
    bottom: int
    right: int


def query_rows(x: Tensor, rows: Tensor | Sequence[int] | Sequence[Sequence[int]], layers: Sequence[Layer]) -> Tensor:
    """The output of `layers`, one after the other, at some cells of the a-grid only.

    Saves what the cells do not read: much for points that lie together, nothing for points all over a small grid.

    Args:
        x: (B, C, Ha, Wa, Hb, Wb), any memory order.
        rows: flat cells ha·Wa + wa, (K,) for every item or (B, K), each in 0 … Ha·Wa − 1; repeats are allowed.
        layers: at least one.

    Returns:
        (B, K, O, Hb', Wb'), what the whole evaluation gives at [b, :, ha, wa]. Differentiable with respect to x and
        the weights.

    Raises:
        InputError: no layers, rows of another form or outside the grid, or layers that do not fit each other.
    """
    if not layers:
        raise InputError(must_be("layers", "at least one layer", "none"))
    check_grid(x)
    cells = check_rows(rows, x)
    x, layers = cast_layers(x, layers)
    if cells.numel() == 0:
        return _no_rows(x, cells.shape[1], layers)
    one = _by_rectangles if streams(x, layers) else _by_crop
    return torch.stack([one(item, asked, layers) for item, asked in zip(x, cells, strict=True)])


def check_rows(rows: Tensor | Sequence[int] | Sequence[Sequence[int]], x: Tensor) -> Tensor:
    """(B, K) int64 on the CPU, every cell inside the a-grid of x."""
    hint = "give ha·Wa + wa for each asked cell"
    try:
        cells = torch.as_tensor(rows, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:  # ragged, no numbers, or on the meta device
        reason = str(error).splitlines()[0]
        raise InputError(
            must_be("rows", "(K,) or (B, K) whole numbers", f"{type(rows).__name__} ({reason})", hint)
        ) from error
    b, _, ha, wa = x.shape[:4]
    if cells.numel() == 0:
        cells = cells.long()
    if cells.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
        raise InputError(must_be("rows", "whole numbers", cells.dtype, hint))
    if cells.dim() == 1:
        cells = cells.expand(b, -1)
    if cells.dim() != 2 or cells.shape[0] != b:
        raise InputError(must_be("rows", f"(K,) or ({b}, K)", tuple(cells.shape), hint))
    if cells.numel() and not 0 <= int(cells.min()) <= int(cells.max()) < ha * wa:
        found = f"{int(cells.min())} … {int(cells.max())}"
        raise InputError(must_be("rows", f"within 0 … {ha * wa - 1}, the cells of a {ha}×{wa} grid", found, hint))
    return cells.long()


def _no_rows(x: Tensor, count: int, layers: Sequence[Layer]) -> Tensor:
    shape: tuple[int, ...] = tuple(x.shape)
    for layer, spec in zip(layers, check_chain(x, layers), strict=True):
        shape = spec.output_shape(shape, layer.weight_a.shape[0])
    return x.new_zeros((shape[0], count, shape[1], *shape[4:]))


def _by_crop(x: Tensor, cells: Tensor, layers: Sequence[Layer]) -> Tensor:
    """(C, Ha, Wa, Hb, Wb) and (K,) → (K, O, Hb', Wb'), differentiable: the stack on the box around what is needed.

    Padding puts zeros beside a cut that is no border of the grid; the cells this spoils are cut off after each layer.
    """
    ha, wa = x.shape[1:3]
    boxes = [_bounds(_mask(cells, ha, wa))]
    for layer, spec in zip(reversed(layers), reversed(check_chain(x[None], layers)), strict=True):
        boxes.insert(0, _clip(_grown(boxes[0], layer, spec), ha, wa))
    y = x[None, :, boxes[0].top : boxes[0].bottom, boxes[0].left : boxes[0].right]
    for layer, now, then in zip(layers, boxes[:-1], boxes[1:], strict=True):
        y = one_layer(y, layer)[
            :, :, then.top - now.top : then.bottom - now.top, then.left - now.left : then.right - now.left
        ]
    cells = cells.to(x.device)
    return y[0, :, cells // wa - boxes[-1].top, cells % wa - boxes[-1].left].transpose(0, 1)


def _by_rectangles(x: Tensor, cells: Tensor, layers: Sequence[Layer]) -> Tensor:
    """The same without gradients: only needed cells, rectangle by rectangle, in channels-last buffers.

    A buffer covers its layer's needed cells and their neighbours, zero where that reaches outside the grid. Where most
    cells are needed, the whole is computed.
    """
    ha, wa = x.shape[1:3]
    specs = check_chain(x[None], layers)
    masks = [_mask(cells, ha, wa)]
    for layer, spec in zip(reversed(layers), reversed(specs), strict=True):
        masks.insert(0, _spread(masks[0], layer, spec))
    if int(masks[0].sum()) >= WHOLE_FROM * ha * wa:
        return stack_forward(x[None], layers)[0].flatten(1, 2)[:, cells].transpose(0, 1)

    origin = _grown(_bounds(masks[1]), layers[0], specs[0])
    inside = _clip(origin, ha, wa)
    crop = x[:, inside.top : inside.bottom, inside.left : inside.right].permute(1, 2, 3, 4, 0)
    values = _buffer(crop, origin, x.shape[0], (x.shape[-2], x.shape[-1]))
    _part(values, origin, inside).copy_(crop)
    for step, (layer, spec) in enumerate(zip(layers, specs, strict=True)):
        needed = _bounds(masks[step + 1])
        target = _grown(needed, layers[step + 1], specs[step + 1]) if step + 1 < len(layers) else needed
        hb, wb = values.shape[2:4]
        sides = (-(-hb // spec.stride[0]), -(-wb // spec.stride[1]))
        result = _buffer(values, target, layer.weight_a.shape[0], sides)
        for box in rectangles(masks[step + 1]):
            window = _part(values, origin, _grown(box, layer, spec))
            cpu.cross(window, *layer[:3], spec, _part(result, target, box), columns="halo")
        values, origin = result, target
    return values[cells // wa - origin.top, cells % wa - origin.left].permute(0, 3, 1, 2)


def rectangles(mask: Tensor) -> list[Box]:
    """Disjoint boxes that cover a bool (Ha, Wa) mask, and little else: runs of each row, joined downwards.

    A mask that nearly fills its bounds is covered by them; values computed in excess are never read.
    """
    bounds = _bounds(mask)
    area = (bounds.bottom - bounds.top) * (bounds.right - bounds.left)
    if int(mask.sum()) >= FULL_ENOUGH * area:
        return [bounds]
    done: list[Box] = []
    open_runs: dict[tuple[int, int], int] = {}  # (left, right) → top
    for row in range(bounds.top, bounds.bottom + 1):
        runs = _runs(mask[row].tolist()) if row < bounds.bottom else []
        for run in [r for r in open_runs if r not in runs]:
            done.append(Box(open_runs.pop(run), run[0], row, run[1]))
        for run in runs:
            open_runs.setdefault(run, row)
    return done


def _runs(row: list[bool]) -> list[tuple[int, int]]:
    edges = [i for i, (a, b) in enumerate(zip([False, *row], [*row, False], strict=True)) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _mask(cells: Tensor, ha: int, wa: int) -> Tensor:
    mask = torch.zeros(ha * wa, dtype=torch.bool, device="cpu")
    mask[cells] = True
    return mask.view(ha, wa)


def _spread(mask: Tensor, layer: Layer, spec: Spec) -> Tensor:
    """The cells that a layer reads to compute `mask`."""
    ah, aw = spec.offsets[:2]
    kh, kw = layer.weight_a.shape[-2:]
    padded = functional.pad(mask[None].float(), (kw - 1 - aw, aw, kh - 1 - ah, ah))
    return functional.max_pool2d(padded, (kh, kw), 1)[0] > 0


def _grown(box: Box, layer: Layer, spec: Spec) -> Box:
    """The box with the neighbours that a layer reads, not clipped to the grid."""
    ah, aw = spec.offsets[:2]
    kh, kw = layer.weight_a.shape[-2:]
    return Box(box.top - ah, box.left - aw, box.bottom + kh - 1 - ah, box.right + kw - 1 - aw)


def _clip(box: Box, ha: int, wa: int) -> Box:
    return Box(max(box.top, 0), max(box.left, 0), min(box.bottom, ha), min(box.right, wa))


def _bounds(mask: Tensor) -> Box:
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def _buffer(like: Tensor, box: Box, channels: int, sides: tuple[int, int]) -> Tensor:
    return like.new_zeros((box.bottom - box.top, box.right - box.left, *sides, channels))


def _part(buffer: Tensor, origin: Box, box: Box) -> Tensor:
    top, left = box.top - origin.top, box.left - origin.left
    return buffer[top : top + box.bottom - box.top, left : left + box.right - box.left]
