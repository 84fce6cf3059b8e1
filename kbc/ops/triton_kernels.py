"""The `triton` backend: one fused kernel for the forward pass and the input gradient, one for the weight gradients.

Import this module only where it is used: it imports triton. Everything is channels-last, positions are numbered
((b·Ha + ha)·Wa + wa)·Nb + hb·Wb + wb, and kernel elements a first, then b. Sums are taken in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kbc.errors import InputError, must_be
from kbc.ops import cpu
from kbc.ops.spec import Spec

# (positions, most channels) of one program. fp32 has no tensor cores at full precision, so its operands lie in
# registers: smaller tiles, or it spills. Registers and spills are what a compile for sm_90 shows.
TILE_HALF = (128, 64)
TILE_FP32 = (64, 32)
WGRAD_SPLITS = 64  # partial weight gradients per kernel element; a fixed number, so that sums repeat bit by bit


def _cross_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    dims: tl.tuple,
    GEOMETRY: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """y[m, o] = Σ over kernel elements and c of x[source(m), c] · weight[element, c, o] (+ bias, ReLU).

    The source of output coordinate q for kernel element i is (q·MUL ± (i − p)) / DIV: MUL is the stride in the forward
    pass, DIV is it in the input gradient, where the source exists only if the division is exact.
    """
    positions, ha_size, wa_size, hb_in, wb_in, hb_out, wb_out = dims
    KAH: tl.constexpr = GEOMETRY[0]
    KAW: tl.constexpr = GEOMETRY[1]
    KBH: tl.constexpr = GEOMETRY[2]
    KBW: tl.constexpr = GEOMETRY[3]
    AH: tl.constexpr = GEOMETRY[4]
    AW: tl.constexpr = GEOMETRY[5]
    BH: tl.constexpr = GEOMETRY[6]
    BW: tl.constexpr = GEOMETRY[7]
    SH: tl.constexpr = GEOMETRY[8]
    SW: tl.constexpr = GEOMETRY[9]
    C: tl.constexpr = GEOMETRY[10]
    OUT: tl.constexpr = GEOMETRY[11]
    TRANSPOSED: tl.constexpr = GEOMETRY[12]
    BM: tl.constexpr = TILE[0]
    BC: tl.constexpr = TILE[1]
    BO: tl.constexpr = TILE[2]
    HAS_BIAS: tl.constexpr = TILE[3]
    RELU: tl.constexpr = TILE[4]
    MUL_H: tl.constexpr = 1 if TRANSPOSED else SH
    MUL_W: tl.constexpr = 1 if TRANSPOSED else SW
    DIV_H: tl.constexpr = SH if TRANSPOSED else 1
    DIV_W: tl.constexpr = SW if TRANSPOSED else 1
    SIGN: tl.constexpr = -1 if TRANSPOSED else 1

    m = tl.program_id(0) * BM + tl.arange(0, BM)
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    o_live = o < OUT
    live = m < positions
    wb = m % wb_out
    hb = (m // wb_out) % hb_out
    cell = m // (wb_out * hb_out)
    wa = cell % wa_size
    ha = (cell // wa_size) % ha_size
    nb = hb_in * wb_in
    acc = tl.zeros((BM, BO), dtype=tl.float32)

    # a-branch: the b-coordinates are fixed, the a-cell moves
    hb_source = hb * MUL_H // DIV_H
    wb_source = wb * MUL_W // DIV_W
    exact = live & (hb_source * DIV_H == hb * MUL_H) & (wb_source * DIV_W == wb * MUL_W)
    start = cell.to(tl.int64) * nb + hb_source * wb_in + wb_source
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        c_live = c < C
        for t in range(0, KAH * KAW):
            dh = SIGN * (t // KAW - AH)
            dw = SIGN * (t % KAW - AW)
            inside = exact & (ha + dh >= 0) & (ha + dh < ha_size) & (wa + dw >= 0) & (wa + dw < wa_size)
            at = (start + (dh * wa_size + dw) * nb) * C
            tile = tl.load(x + at[:, None] + c[None, :], mask=inside[:, None] & c_live[None, :], other=0.0)
            w = tl.load(
                weight + (t * C + c[:, None]) * OUT + o[None, :],
                mask=c_live[:, None] & o_live[None, :],
                other=0.0,
            )
            acc = tl.dot(tile, w, acc, input_precision="ieee")

    # b-branch: the a-cell is fixed
    start = cell.to(tl.int64) * nb
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        c_live = c < C
        for t in range(0, KBH * KBW):
            h = hb * MUL_H + SIGN * (t // KBW - BH)
            v = wb * MUL_W + SIGN * (t % KBW - BW)
            hs = h // DIV_H
            vs = v // DIV_W
            inside = live & (h >= 0) & (v >= 0) & (hs < hb_in) & (vs < wb_in)
            inside = inside & (hs * DIV_H == h) & (vs * DIV_W == v)
            at = (start + hs * wb_in + vs) * C
            tile = tl.load(x + at[:, None] + c[None, :], mask=inside[:, None] & c_live[None, :], other=0.0)
            w = tl.load(
                weight + ((KAH * KAW + t) * C + c[:, None]) * OUT + o[None, :],
                mask=c_live[:, None] & o_live[None, :],
                other=0.0,
            )
            acc = tl.dot(tile, w, acc, input_precision="ieee")

    if HAS_BIAS:
        acc += tl.load(bias + o, mask=o_live, other=0.0).to(tl.float32)[None, :]
    if RELU:
        acc = tl.maximum(acc, 0.0)
    target = y + m.to(tl.int64)[:, None] * OUT + o[None, :]
    tl.store(target, acc.to(y.dtype.element_ty), mask=live[:, None] & o_live[None, :])


def _weights_kernel(
    x: tl.tensor,
    grad: tl.tensor,
    partial: tl.tensor,
    dims: tl.tuple,
    GEOMETRY: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """partial[split, element, c, o] = Σ over the split's positions m of x[source(m), c] · grad[m, o].

    One program per kernel element and block of channels; its accumulator is all it holds, so registers stay few.
    """
    positions, ha_size, wa_size, hb_in, wb_in, hb_out, wb_out, per_split = dims
    KAH: tl.constexpr = GEOMETRY[0]
    KAW: tl.constexpr = GEOMETRY[1]
    KBH: tl.constexpr = GEOMETRY[2]
    KBW: tl.constexpr = GEOMETRY[3]
    AH: tl.constexpr = GEOMETRY[4]
    AW: tl.constexpr = GEOMETRY[5]
    BH: tl.constexpr = GEOMETRY[6]
    BW: tl.constexpr = GEOMETRY[7]
    SH: tl.constexpr = GEOMETRY[8]
    SW: tl.constexpr = GEOMETRY[9]
    C: tl.constexpr = GEOMETRY[10]
    OUT: tl.constexpr = GEOMETRY[11]
    BM: tl.constexpr = TILE[0]
    BC: tl.constexpr = TILE[1]
    BO: tl.constexpr = TILE[2]
    TAPS: tl.constexpr = KAH * KAW + KBH * KBW

    t = tl.program_id(0) % TAPS
    c = (tl.program_id(0) // TAPS) * BC + tl.arange(0, BC)
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    split = tl.program_id(2)
    is_a = t < KAH * KAW
    u = t - KAH * KAW
    dha = tl.where(is_a, t // KAW - AH, 0)
    dwa = tl.where(is_a, t % KAW - AW, 0)
    dhb = tl.where(is_a, 0, u // KBW - BH)
    dwb = tl.where(is_a, 0, u % KBW - BW)
    nb = hb_in * wb_in
    acc = tl.zeros((BC, BO), dtype=tl.float32)
    for first in range(0, per_split, BM):
        m = split * per_split + first + tl.arange(0, BM)
        live = (m < positions) & (first + tl.arange(0, BM) < per_split)
        hb = (m // wb_out) % hb_out * SH + dhb
        wb = m % wb_out * SW + dwb
        cell = m // (wb_out * hb_out)
        ha = (cell // wa_size) % ha_size + dha
        wa = cell % wa_size + dwa
        inside = live & (ha >= 0) & (ha < ha_size) & (wa >= 0) & (wa < wa_size)
        inside = inside & (hb >= 0) & (hb < hb_in) & (wb >= 0) & (wb < wb_in)
        at = ((cell + dha * wa_size + dwa).to(tl.int64) * nb + hb * wb_in + wb) * C
        tile = tl.load(x + at[None, :] + c[:, None], mask=inside[None, :] & (c[:, None] < C), other=0.0)
        g = tl.load(
            grad + m.to(tl.int64)[:, None] * OUT + o[None, :],
            mask=live[:, None] & (o[None, :] < OUT),
            other=0.0,
        )
        acc = tl.dot(tile, g, acc, input_precision="ieee")
    target = partial + ((split * TAPS + t) * C + c[:, None]) * OUT + o[None, :]
    tl.store(target, acc, mask=(c[:, None] < C) & (o[None, :] < OUT))


cross_kernel = triton.jit(_cross_kernel)
weights_kernel = triton.jit(_weights_kernel)


def forward(x: Tensor, weight_a: Tensor, weight_b: Tensor, bias: Tensor | None, spec: Spec) -> Tensor:
    """(B, C, Ha, Wa, Hb, Wb) → (B, O, Ha, Wa, Hb', Wb') in channels-last order: one launch."""
    y = cpu.empty_channels_last(x, spec.output_shape(x.shape, weight_a.shape[0]))
    weight = _packed(weight_a, weight_b).transpose(1, 2).contiguous()
    _launch(x, weight, bias, y, geometry(weight_a, weight_b, spec, False), spec.relu)
    return y


def backward(
    grad: Tensor, x: Tensor, weight_a: Tensor, weight_b: Tensor, spec: Spec, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight_a, weight_b and the bias; None where not `wanted` (x, both weights, bias)."""
    dx = da = db = None
    if wanted[0]:
        dx = cpu.empty_channels_last(x, x.shape)
        weight = _packed(weight_a, weight_b).contiguous()  # (elements, O, C): inputs and outputs change places
        _launch(grad, weight, None, dx, geometry(weight_a, weight_b, spec, True), False)
    if wanted[1]:
        da, db = _grad_weights(grad, x, weight_a, weight_b, spec)
    return dx, da, db, grad.sum((0, 2, 3, 4, 5)) if wanted[2] else None


def geometry(weight_a: Tensor, weight_b: Tensor, spec: Spec, transposed: bool) -> tuple[int, ...]:
    """What a kernel is compiled for: kernel sides, offsets, stride, channels in and out, direction.

    The grid's sizes are not among it: a new image size compiles nothing.
    """
    o, c = weight_a.shape[:2]
    channels = (o, c) if transposed else (c, o)
    return (
        *weight_a.shape[-2:],
        *weight_b.shape[-2:],
        *spec.offsets,
        *spec.stride,
        *channels,
        int(transposed),
    )


def tile(channels: int, outputs: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """(positions, input channels, output channels) of one program; `tl.dot` wants at least 16 each."""
    positions, most = TILE_FP32 if dtype == torch.float32 else TILE_HALF
    return positions, min(most, max(16, _power(channels))), min(most, max(16, _power(outputs)))


def _launch(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, shape: tuple[int, ...], relu: bool) -> None:
    """Run `cross_kernel`; weight is (elements, C, O) for x with C channels and y with O."""
    _check(x)
    _check(y)
    xl = cpu.channels_last(x)
    positions = y.numel() // y.shape[1]
    if not positions:
        return
    c, o = weight.shape[1:]
    bm, bc, bo = tile(c, o, x.dtype)
    dims = (positions, *y.shape[2:4], *x.shape[4:], *y.shape[4:])
    settings = (bm, bc, bo, int(bias is not None), int(relu))
    grid = (triton.cdiv(positions, bm), triton.cdiv(o, bo))
    # One stage: neighbouring taps hit the same lines in L1, and more stages would cost the registers that keep
    # several programs on a multiprocessor.
    cross_kernel[grid](
        xl, weight, weight if bias is None else bias, y, dims, shape, settings, num_warps=4, num_stages=1
    )


def _grad_weights(grad: Tensor, x: Tensor, weight_a: Tensor, weight_b: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
    _check(x)
    xl, gl = cpu.channels_last(x), cpu.channels_last(grad)
    o, c = weight_a.shape[:2]
    taps_a = weight_a.shape[2] * weight_a.shape[3]
    taps = taps_a + weight_b.shape[2] * weight_b.shape[3]
    positions = gl.numel() // o
    bm, bc, bo = tile(c, o, x.dtype)
    splits = max(1, min(WGRAD_SPLITS, triton.cdiv(positions, bm)))
    partial = x.new_empty((splits, taps, c, o), dtype=torch.float32)
    dims = (positions, *x.shape[2:4], *x.shape[4:], *grad.shape[4:], triton.cdiv(positions, splits))
    grid = (taps * triton.cdiv(c, bc), triton.cdiv(o, bo), splits)
    shape = geometry(weight_a, weight_b, spec, False)
    weights_kernel[grid](xl, gl, partial, dims, shape, (bm, bc, bo), num_warps=4, num_stages=2)
    total = partial.sum(0).permute(2, 1, 0).to(x.dtype)  # (O, C, elements); a fixed order, so the same bits every time
    da, db = total[..., :taps_a].clone(), total[..., taps_a:].clone()
    return da.reshape(weight_a.shape).contiguous(), db.reshape(weight_b.shape).contiguous()


def _packed(weight_a: Tensor, weight_b: Tensor) -> Tensor:
    """(elements, O, C), a's kernel elements first."""
    return torch.cat([weight_a.flatten(2), weight_b.flatten(2)], 2).permute(2, 0, 1)


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _check(x: Tensor) -> None:
    """Refuse what the kernels would compute wrongly."""
    if x.dtype == torch.float64:
        hint = "use backend='auto' or 'torch'"
        raise InputError(must_be("x", "fp32, bf16 or fp16 for backend='triton'", x.dtype, hint))
    if x.dtype == torch.bfloat16 and not x.is_cuda:
        hint = "its bf16 products are wrong"
        raise InputError(must_be("x", "fp32 or fp16 under Triton's interpreter", x.dtype, hint))
    if x.numel() // x.shape[1] >= 2**31 - TILE_HALF[0]:
        raise InputError(
            must_be("x", "fewer than 2³¹ positions for backend='triton'", tuple(x.shape), "split the batch")
        )


__all__: Sequence[str] = ("backward", "cross_kernel", "forward", "geometry", "tile", "weights_kernel")
