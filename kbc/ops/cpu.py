"""Centre-pivot 4D convolution in plain torch: the reference, and the `torch` backend on channels-last views.

In the memory order (B, Ha, Wa, Hb, Wb, C) both branches are ordinary 2D convolutions on views, with no permuted copy:
the a-branch has an image of Ha rows and Wa·Nb columns and dilation (1, Nb), the b-branch B·Na images of (Hb, Wb).
Work goes in strips of a-rows, so that the sum of the branches is taken while both are still in the cache. A strip reads
more rows than it gives, its halo, of which those outside the grid are zeros that are never stored:

    a-rows of the grid          the window that is read         what is computed
                             ╭╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╮
                             ╎ missing[0] rows of zeros ╎
    0  ────────────────      ├──────────────────────────┤
                             │ halo                     │
       first ──────────      ├──────────────────────────┤       ┌──────────────┐
             the strip       │ the strip's own rows     │   →   │ out          │
       last  ──────────      ├──────────────────────────┤       └──────────────┘
                             │ halo                     │
    Ha ────────────────      └──────────────────────────┘       halo above, with the missing rows: ah,
                                                                below: Kh − 1 − ah; missing[1] is 0 here

The same holds along Wa, where a window either spans the grid ("grid": zeros are taken beyond it) or brings its halo
along ("halo": a rectangle cut out of a buffer).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from kbc.ops.spec import Spec

Columns: TypeAlias = Literal["grid", "halo"]
"""What a window's columns are: those of the grid, or those of the output with their halo."""

# Bytes of one strip's output: small enough for the sum to find both branches in the L2/L3 cache, large enough that a
# conv2d call's fixed 20–40 µs do not show. Found by trial on a 32 MB L3; nothing depends on the exact value.
STRIP_BYTES = 2 << 20
THINNEST_STRIP = 4  # a-rows: a stack copies a layer's halo once a strip, which thinner strips would do too often

# From this many input channels on, one output channel is computed as a matrix product and shifted sums.
ONE_OUTPUT_CHANNELS = 4


def reference(x: Tensor, weight_a: Tensor, weight_b: Tensor, bias: Tensor | None, spec: Spec) -> Tensor:
    """The definition in plain torch: permute, conv2d, permute back, once per grid, then add.

    (B, C, Ha, Wa, Hb, Wb) → (B, O, Ha, Wa, Hb', Wb'), contiguous, on any device. The rest of this file computes
    the same faster.
    """
    b, c, ha, wa, hb, wb = x.shape
    sh, sw = spec.stride
    _, o, _, _, hb_out, wb_out = spec.output_shape(x.shape, weight_a.shape[0])
    pruned = x[..., ::sh, ::sw]

    side_a = pruned.permute(0, 4, 5, 1, 2, 3).reshape(-1, c, ha, wa)
    side_a = F.conv2d(_pad_same(side_a, weight_a, spec.offsets[:2]), weight_a, bias)
    side_a = side_a.view(b, hb_out, wb_out, o, ha, wa).permute(0, 3, 4, 5, 1, 2)

    side_b = x.permute(0, 2, 3, 1, 4, 5).reshape(-1, c, hb, wb)
    side_b = F.conv2d(_pad_same(side_b, weight_b, spec.offsets[2:]), weight_b, stride=spec.stride)
    side_b = side_b.view(b, ha, wa, o, hb_out, wb_out).permute(0, 3, 1, 2, 4, 5)

    y = side_a.contiguous() + side_b.contiguous()
    return y.relu() if spec.relu else y


def _pad_same(x: Tensor, weight: Tensor, offsets: Sequence[int]) -> Tensor:
    kh, kw = weight.shape[-2:]
    oh, ow = offsets
    return F.pad(x, (ow, kw - 1 - ow, oh, kh - 1 - oh))


def empty_channels_last(like: Tensor, shape: Sequence[int]) -> Tensor:
    """An uninitialised (B, C, Ha, Wa, Hb, Wb) tensor whose memory order is (B, Ha, Wa, Hb, Wb, C)."""
    b, c, ha, wa, hb, wb = shape
    return like.new_empty((b, ha, wa, hb, wb, c)).permute(0, 5, 1, 2, 3, 4)


def channels_last(x: Tensor) -> Tensor:
    """(B, C, Ha, Wa, Hb, Wb) in any memory order → contiguous (B, Ha, Wa, Hb, Wb, C); a view where it already is."""
    return x.permute(0, 2, 3, 4, 5, 1).contiguous()


def forward(x: Tensor, weight_a: Tensor, weight_b: Tensor, bias: Tensor | None, spec: Spec) -> Tensor:
    """(B, C, Ha, Wa, Hb, Wb) → (B, O, Ha, Wa, Hb', Wb') in channels-last order."""
    xl = channels_last(x)
    y = empty_channels_last(x, spec.output_shape(x.shape, weight_a.shape[0]))
    yl, ha = channels_last(y), x.shape[2]
    rows = strip_rows(yl, weight_a, weight_b)
    for one, result in zip(xl, yl, strict=True):
        for first in range(0, ha, rows):
            last = min(first + rows, ha)
            reads, missing = rows_read(first, last, ha, weight_a.shape[2], spec)
            cross(one[reads], weight_a, weight_b, bias, spec, result[first:last], missing)
    return y


def working_dtype(x: Tensor) -> torch.dtype:
    """fp32 for half precision on a CPU without fast half-precision convolutions (12 times slower on AVX2)."""
    slow = x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16)
    if slow and not (x.dtype == torch.bfloat16 and torch.backends.cpu.get_cpu_capability().startswith("AVX512")):
        return torch.float32
    return x.dtype


def strip_rows(y: Tensor, weight_a: Tensor, weight_b: Tensor) -> int:
    """How many a-rows of y (B, Ha, Wa, Hb', Wb', O) are worked on at once."""
    row_bytes = math.prod(y.shape[2:]) * y.element_size()
    if weight_a.shape[0] == 1:
        # a plane per kernel element, which lie in the cache one at a time
        row_bytes *= max(1, (weight_a[0, 0].numel() + weight_b[0, 0].numel()) // 4)
    strips = max(1, -(-y.shape[1] * row_bytes // STRIP_BYTES))
    return min(y.shape[1], max(THINNEST_STRIP, -(-y.shape[1] // strips)))


def rows_read(first: int, last: int, height: int, kernel: int, spec: Spec) -> tuple[slice, tuple[int, int]]:
    """The input rows behind the output rows first … last − 1, and how many more lie above and below the grid."""
    low, high = first - spec.offsets[0], last - spec.offsets[0] + kernel - 1
    return slice(max(low, 0), min(high, height)), (max(-low, 0), max(high - height, 0))


def cross(
    window: Tensor,
    weight_a: Tensor,
    weight_b: Tensor,
    bias: Tensor | None,
    spec: Spec,
    out: Tensor,
    missing: tuple[int, int] = (0, 0),
    columns: Columns = "grid",
) -> Tensor:
    """One strip of the layer, as drawn above.

    Args:
        window: (H, Wa, Hb, Wb, C) with H + sum(missing) = rows + Kh − 1; of "halo" columns Wa + Kw − 1.
        weight_a, weight_b, bias, spec: as for `forward`.
        out: (rows, Wa, Hb', Wb', O), overwritten.
        missing: rows of zeros to imagine above and below the window.
        columns: what the window's columns are.
    """
    rows, wa = out.shape[:2]
    sh, sw = spec.stride
    ah, aw, _, _ = spec.offsets
    above, left = ah - missing[0], aw if columns == "halo" else 0  # where the strip's own cells begin in the window
    own = (slice(above, above + rows), slice(left, left + wa))
    if out.shape[-1] == 1 and sh == sw == 1 and window.shape[-1] >= ONE_OUTPUT_CHANNELS:
        return _one_output(window, weight_a, weight_b, bias, spec, out, own)
    kind = working_dtype(window)
    window, weight_a, weight_b = window.to(kind), weight_a.to(kind), weight_b.to(kind)
    bias = None if bias is None else bias.to(kind)
    pruned = window if sh == sw == 1 else window[:, :, ::sh, ::sw]
    side_a = _side_a(pruned.flatten(2, 3), weight_a, bias, aw, missing, columns)
    image_b, pad_b = _image_b(window[own].flatten(0, 1), weight_b, spec)
    weight_b = weight_b.contiguous(memory_format=torch.channels_last)
    side_b = F.conv2d(_nchw(image_b), weight_b, None, spec.stride, pad_b).permute(0, 2, 3, 1)
    torch.add(side_a.reshape(out.shape), side_b.reshape(out.shape), out=out)
    return out.relu_() if spec.relu else out


def _image_b(images: Tensor, weight: Tensor, spec: Spec) -> tuple[Tensor, tuple[int, int]]:
    """(N, Hb, Wb, C) as conv2d takes it, and the padding to ask it for: it can only pad both ends alike."""
    (_, _, bh, bw), (kh, kw) = spec.offsets, weight.shape[-2:]
    if (2 * bh, 2 * bw) == (kh - 1, kw - 1):
        return images, (bh, bw)
    return F.pad(images, (0, 0, bw, kw - 1 - bw, bh, kh - 1 - bh)), (0, 0)


def _one_output(
    window: Tensor,
    weight_a: Tensor,
    weight_b: Tensor,
    bias: Tensor | None,
    spec: Spec,
    out: Tensor,
    own: tuple[slice, slice],
) -> Tensor:
    """`cross` for one output channel: one matrix product gives a plane per kernel element, then shifted sums.

    A convolution with one output channel would compute eight and throw seven away. `own` is where the strip's own cells
    lie in the window.
    """
    height, width, hb, wb, c = window.shape
    rows, wa = out.shape[:2]
    ah, aw, bh, bw = spec.offsets
    (kah, kaw), (kbh, kbw) = weight_a.shape[-2:], weight_b.shape[-2:]
    # Half precision is summed in fp32: dozens of roundings would add up.
    kind = torch.promote_types(window.dtype, torch.float32)
    taps = torch.cat([weight_a[0].flatten(1).t(), weight_b[0].flatten(1).t()]).to(kind)
    planes = torch.mm(taps, window.reshape(-1, c).to(kind).t()).view(-1, height, width, hb, wb)

    core = planes[:, own[0], own[1]]
    total = out[..., 0] if kind == out.dtype else out.new_empty(out.shape[:-1], dtype=kind)
    centre = core[kah * kaw + bh * kbw + bw]
    if bias is None:
        total.copy_(centre)
    else:
        torch.add(centre, bias, out=total)
    for i in range(kah):
        for j in range(kaw):
            to_h, of_h = _shift(i - ah + own[0].start, rows, height)
            to_w, of_w = _shift(j - aw + own[1].start, wa, width)
            total[to_h, to_w] += planes[i * kaw + j, of_h, of_w]
    for i in range(kbh):
        for j in range(kbw):
            if (i, j) != (bh, bw):
                to_h, of_h = _shift(i - bh, hb, hb)
                to_w, of_w = _shift(j - bw, wb, wb)
                total[:, :, to_h, to_w] += core[kah * kaw + i * kbw + j, :, :, of_h, of_w]
    if spec.relu:
        total.relu_()
    return out if kind == out.dtype else out.copy_(total[..., None])


def _shift(by: int, to_size: int, of_size: int) -> tuple[slice, slice]:
    """Where t lands and what it reads when t reads t + by: both slices inside their sizes, perhaps empty."""
    first, last = max(0, -by), min(to_size, of_size - by)
    last = max(first, last)
    return slice(first, last), slice(first + by, last + by)


def _side_a(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offset: int,
    missing: tuple[int, int],
    columns: Columns = "grid",
) -> Tensor:
    """(H, Wa, Nb, C) → (rows, Wa·Nb, O), arguments as in `cross`; `offset` is p along Wa."""
    height, _, nb, c = rows.shape
    kh, kw = weight.shape[2:]
    pad = offset * nb if columns == "grid" else 0
    if columns == "grid" and 2 * offset != kw - 1:
        rows = F.pad(rows, (0, 0, 0, 0, offset, kw - 1 - offset))
        pad = 0
    above, below = missing
    tall = max(above, below)  # conv2d pads both ends alike: pad by more, cut the rest off
    image = _nchw(rows.reshape(1, height, -1, c))
    weight = weight.contiguous(memory_format=torch.channels_last)
    found = F.conv2d(image, weight, bias, 1, (tall, pad), (1, nb)).permute(0, 2, 3, 1)[0]
    count = height + above + below - (kh - 1)
    return found[tall - above : tall - above + count]


def backward(
    grad: Tensor, x: Tensor, weight_a: Tensor, weight_b: Tensor, spec: Spec, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight_a, weight_b and the bias; None where not `wanted` (x, both weights, bias).

    Autograd cannot run inside an operator's body, so the library's gradients are called by name.
    """
    dx = grad_input(grad, x.shape, weight_a, weight_b, spec) if wanted[0] else None
    da, db = grad_weights(grad, x, weight_a, weight_b, spec) if wanted[1] else (None, None)
    dbias = grad.sum((0, 2, 3, 4, 5)) if wanted[2] else None
    return dx, da, db, dbias


def grad_input(grad: Tensor, shape: Sequence[int], weight_a: Tensor, weight_b: Tensor, spec: Spec) -> Tensor:
    """The same operation with flipped kernels; with a stride on the b-grid, its branch is a transposed convolution."""
    ah, aw, bh, bw = spec.offsets
    (kah, kaw), (kbh, kbw) = weight_a.shape[-2:], weight_b.shape[-2:]
    flip_a = weight_a.flip(2, 3).transpose(0, 1)
    if spec.stride == (1, 1):
        flip_b = weight_b.flip(2, 3).transpose(0, 1)
        flipped = spec._replace(offsets=(kah - 1 - ah, kaw - 1 - aw, kbh - 1 - bh, kbw - 1 - bw), relu=False)
        return forward(grad, flip_a, flip_b, None, flipped)
    gl = channels_last(grad)
    b, c, ha, wa, hb, wb = shape
    sh, sw = spec.stride
    # The b-branch saw the image padded to `low` before and the rest behind; its gradient is cut back to the image.
    padded = (hb + kbh - 1, wb + kbw - 1)
    blank = grad.new_empty((1,)).expand(b * ha * wa, c, *padded)
    dx_padded: Tensor = torch.ops.aten.convolution_backward(
        _nchw(gl.flatten(0, 2)),
        blank,
        weight_b,
        None,
        (sh, sw),
        (0, 0),
        (1, 1),
        False,
        (0, 0),
        1,
        (True, False, False),
    )[0]
    dx = dx_padded[:, :, bh : bh + hb, bw : bw + wb].permute(0, 2, 3, 1).contiguous().view(b, ha, wa, hb, wb, c)
    for one, result in zip(gl, dx, strict=True):
        side_a = _side_a(one.flatten(2, 3), flip_a, None, kaw - 1 - aw, (kah - 1 - ah, ah))
        result[:, :, ::sh, ::sw] += side_a.reshape(ha, wa, gl.shape[3], gl.shape[4], c)
    return dx.permute(0, 5, 1, 2, 3, 4)


def grad_weights(grad: Tensor, x: Tensor, weight_a: Tensor, weight_b: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
    """conv2d's weight gradients on views, computed in `working_dtype`; what is added up here is added up in fp32."""
    kind, given = working_dtype(x), weight_a.dtype
    xl, gl = channels_last(x).to(kind), channels_last(grad).to(kind)
    weight_a, weight_b = weight_a.to(kind), weight_b.to(kind)
    if gl.shape[-1] == 1 and spec.stride == (1, 1):
        da, db = _one_output_grad_weights(gl[..., 0], xl, weight_a, weight_b, spec)
        return da.to(given), db.to(given)
    sh, sw = spec.stride
    image, padding = _image_b(xl.flatten(0, 2), weight_b, spec)
    db = _wgrad(gl.flatten(0, 2), image, weight_b, (sh, sw), padding)
    da = _grad_weight_a(gl.flatten(3, 4), xl[:, :, :, ::sh, ::sw].flatten(3, 4), weight_a, spec)
    return da.to(given), db.contiguous().to(given)


def _grad_weight_a(grad: Tensor, x: Tensor, weight: Tensor, spec: Spec) -> Tensor:
    """grad (B, Ha, Wa, Nb, O) and x (B, Ha, Wa, Nb, C) → (O, C, Kh, Kw).

    One row of the kernel at a time: with the a-rows as the batch no dilation is left, and oneDNN has no fast weight
    gradient for dilated convolutions (ten times slower).
    """
    ah, aw, _, _ = spec.offsets
    ha = x.shape[1]
    kh, kw = weight.shape[-2:]
    pad = aw
    if 2 * aw != kw - 1:
        x = F.pad(x, (0, 0, 0, 0, aw, kw - 1 - aw))
        pad = 0
    row = weight[:, :, :1].transpose(2, 3)  # Kw lies along the images' height: (O, C, Kw, 1)
    found = weight.new_zeros((kh, *row.shape), dtype=torch.promote_types(weight.dtype, torch.float32))
    for i in range(kh):
        to, of = _shift(i - ah, ha, ha)
        for one_grad, one_x in zip(grad, x, strict=True):
            if to.start < to.stop:
                found[i] += _wgrad(one_grad[to], one_x[of], row, (1, 1), (pad, 0))
    return found[..., 0].permute(1, 2, 0, 3).contiguous()


def _one_output_grad_weights(
    grad: Tensor, x: Tensor, weight_a: Tensor, weight_b: Tensor, spec: Spec
) -> tuple[Tensor, Tensor]:
    """The adjoint of `_one_output`: a shifted plane of grad (B, Ha, Wa, Hb, Wb) per kernel element, one product."""
    ah, aw, bh, bw = spec.offsets
    (kah, kaw), (kbh, kbw) = weight_a.shape[-2:], weight_b.shape[-2:]
    b, ha, wa, hb, wb, c = x.shape
    taps = kah * kaw + kbh * kbw
    kind = torch.promote_types(x.dtype, torch.float32)
    total = x.new_zeros((taps, c), dtype=kind)
    rows = strip_rows(grad[..., None], weight_a, weight_b)
    for item in range(b):
        for first in range(0, ha, rows):
            strip = x[item, first : first + rows]
            planes = x.new_zeros((taps, *strip.shape[:-1]), dtype=kind)
            for t in range(kah * kaw):
                i, j = divmod(t, kaw)
                of_h, to_h = _shift(i - ah - first, ha, strip.shape[0])
                of_w, to_w = _shift(j - aw, wa, wa)
                planes[t, to_h, to_w] = grad[item, of_h, of_w]
            for t in range(kbh * kbw):
                i, j = divmod(t, kbw)
                of_h, to_h = _shift(i - bh, hb, hb)
                of_w, to_w = _shift(j - bw, wb, wb)
                planes[kah * kaw + t, :, :, to_h, to_w] = grad[item, first : first + rows, :, of_h, of_w]
            total.addmm_(planes.view(taps, -1), strip.reshape(-1, c).to(kind))
    whole = torch.contiguous_format  # an operator's results share no memory
    da = total[: kah * kaw].t().clone(memory_format=whole)
    db = total[kah * kaw :].t().clone(memory_format=whole)
    return da.view(weight_a.shape), db.view(weight_b.shape)


def _wgrad(grad: Tensor, image: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    weight = weight.contiguous(memory_format=torch.channels_last)
    outputs = torch.ops.aten.convolution_backward(
        _nchw(grad),
        _nchw(image),
        weight,
        None,
        stride,
        padding,
        (1, 1),
        False,
        (0, 0),
        1,
        (False, True, False),
    )
    found: Tensor = outputs[1]
    return found


def _nchw(image: Tensor) -> Tensor:
    return image.permute(0, 3, 1, 2)
