"""Centre-pivot 4D convolution: the functional API, its checks, the reference backend and the registration.

Convention: the logical shape is (B, C, Ha, Wa, Hb, Wb) everywhere: a is the source grid, b the target grid. The `torch`
and `triton` backends keep the memory order (B, Ha, Wa, Hb, Wb, C), "channels last", and return it; `reference` returns
a contiguous tensor. Every backend takes any memory order.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from kbc.errors import InputError, must_be
from kbc.ops import cpu

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


def center_pivot_conv4d(
    x: Tensor,
    weight_a: Tensor,
    weight_b: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = "same",
    activation: Activation = None,
    backend: Backend = "auto",
) -> Tensor:
    """Convolve a 4D grid with a cross-shaped kernel: one 2D kernel on the a-grid plus one on the b-grid.

    y[·,o,ha,wa,hb,wb] = Σ weight_a[o,c,i,j] · x[·,c, ha+i−p, wa+j−p, s·hb, s·wb]
                       + Σ weight_b[o,c,i,j] · x[·,c, ha, wa, s·hb+i−p, s·wb+j−p] + bias[o], zeros outside the grid.
    Definition: HSNet, arXiv 2104.01538; free choice of p, kernels of two sizes and the layouts are our choice.

    Args:
        x: (B, C, Ha, Wa, Hb, Wb), fp32, bf16, fp16 or fp64; on the meta device only shapes are computed. On a CPU the
            "torch" backend computes fp16 in fp32, and bf16 too where there is no AVX-512.
        weight_a: (O, C, Kh, Kw), the kernel on the a-grid, odd or even, its two sides need not agree.
        weight_b: (O, C, Kh', Kw'), the kernel on the b-grid.
        bias: (O,) or None.
        stride: s in cells of the b-grid, one or (sh, sw). The a-grid always has stride 1.
        padding: "same" puts kernel element (K−1)//2 on the position; a number p puts element p there (0 ≤ p < K).
            The output grid is the (strided) input grid either way.
        activation: None or "relu".
        backend: "reference" (permute + conv2d, any device, autograd by torch), "torch" (channels-last views), "triton"
            (CUDA, or any device under TRITON_INTERPRET=1), or "auto": triton on CUDA when it is installed and
            the dtype is not fp64, else torch.

    Returns:
        (B, O, Ha, Wa, ceil(Hb/sh), ceil(Wb/sw)), the dtype of x. Under autocast: the autocast dtype (fp64 is kept).

    Raises:
        InputError: no tensor, or a shape, dtype, device, stride, padding, activation or backend that does not fit.
    """
    spec = check_layer(x, weight_a, weight_b, bias, stride=stride, padding=padding, activation=activation)
    tensors = autocast_arguments(x, weight_a, weight_b, bias)
    check_kinds(*tensors)
    chosen = choose_backend(backend, tensors[0])
    if chosen == "reference":
        return _reference(*tensors, spec)
    y: Tensor = _op(*tensors, list(spec.stride), list(spec.offsets), spec.relu, chosen)
    return y


def _reference(x: Tensor, weight_a: Tensor, weight_b: Tensor, bias: Tensor | None, spec: Spec) -> Tensor:
    """The definition in plain torch: permute, conv2d, permute back, once per grid, then add."""
    b, c, ha, wa, hb, wb = x.shape
    sh, sw = spec.stride
    pruned = x[..., ::sh, ::sw]
    hb_out, wb_out = pruned.shape[-2:]
    o = weight_a.shape[0]

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


# --- the operator: one forward and one backward, so that torch.compile and fake tensors see two opaque calls ---------


@torch.library.custom_op("kbc::center_pivot_conv4d", mutates_args=())
def _op(
    x: Tensor,
    weight_a: Tensor,
    weight_b: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    offsets: Sequence[int],
    relu: bool,
    backend: str,
) -> Tensor:
    spec = _spec(stride, offsets, relu)
    if backend == "triton":
        from kbc.ops import triton_kernels

        return triton_kernels.forward(x, weight_a, weight_b, bias, spec)
    return cpu.forward(x, weight_a, weight_b, bias, spec)


@_op.register_kernel("cuda")
def _op_cuda(
    x: Tensor,
    weight_a: Tensor,
    weight_b: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    offsets: Sequence[int],
    relu: bool,
    backend: str,
) -> Tensor:
    spec = _spec(stride, offsets, relu)
    with torch.cuda.device(x.device):  # Triton launches on the current device, which need not be x's
        if backend == "triton":
            from kbc.ops import triton_kernels

            return triton_kernels.forward(x, weight_a, weight_b, bias, spec)
        return cpu.forward(x, weight_a, weight_b, bias, spec)


@_op.register_fake
def _op_fake(
    x: Tensor,
    weight_a: Tensor,
    weight_b: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    offsets: Sequence[int],
    relu: bool,
    backend: str,
) -> Tensor:
    b, _, ha, wa, hb, wb = x.shape
    sh, sw = stride
    return cpu.empty_channels_last(x, (b, weight_a.shape[0], ha, wa, -(-hb // sh), -(-wb // sw)))


@torch.library.custom_op("kbc::center_pivot_conv4d_backward", mutates_args=())
def _op_backward(
    grad: Tensor,
    x: Tensor,
    weight_a: Tensor,
    weight_b: Tensor,
    stride: Sequence[int],
    offsets: Sequence[int],
    needs: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    """Gradients of x, weight_a, weight_b and bias; an empty tensor where `needs` says no.

    `weight_a` alone tells the number of outputs; `grad` already has the ReLU's mask applied.
    """
    spec = _spec(stride, offsets, False)
    wanted = (bool(needs[0]), bool(needs[1]), bool(needs[2]))
    if backend == "triton":
        from kbc.ops import triton_kernels

        found = triton_kernels.backward(grad, x, weight_a, weight_b, spec, wanted)
    else:
        found = cpu.backward(grad, x, weight_a, weight_b, spec, wanted)
    return [x.new_empty(0) if g is None else g for g in found]


@_op_backward.register_fake
def _op_backward_fake(
    grad: Tensor,
    x: Tensor,
    weight_a: Tensor,
    weight_b: Tensor,
    stride: Sequence[int],
    offsets: Sequence[int],
    needs: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    nothing = x.new_empty(0)
    return [
        cpu.empty_channels_last(x, x.shape) if needs[0] else nothing,
        weight_a.new_empty(weight_a.shape) if needs[1] else x.new_empty(0),
        weight_b.new_empty(weight_b.shape) if needs[1] else x.new_empty(0),
        weight_a.new_empty(weight_a.shape[:1]) if needs[2] else x.new_empty(0),
    ]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight_a, weight_b, bias, stride, offsets, relu, backend = inputs
    ctx.save_for_backward(x, weight_a, weight_b, output if relu else None)
    ctx.stride, ctx.offsets, ctx.backend = list(stride), list(offsets), backend
    ctx.has_bias = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight_a, weight_b, output = ctx.saved_tensors
    if output is not None:
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
    need_x, need_a, need_b, need_bias = ctx.needs_input_grad[:4]
    needs = [need_x, need_a or need_b, need_bias and ctx.has_bias]
    dx, da, db, dbias = _op_backward(grad, x, weight_a, weight_b, ctx.stride, ctx.offsets, needs, ctx.backend)
    return (
        dx if need_x else None,
        da if need_a else None,
        db if need_b else None,
        dbias if needs[2] else None,
        *(None,) * 4,
    )


_op.register_autograd(_backward, setup_context=_setup)


# --- checks ----------------------------------------------------------------------------------------------------------


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


def choose_backend(backend: Backend, x: Tensor) -> Literal["reference", "torch", "triton"]:
    """The backend that runs for this tensor.

    Raises:
        InputError: an unknown name, or triton where it cannot run.
    """
    if backend == "reference" or backend == "torch":
        return backend
    if backend == "auto":
        # fp64 is for checks and has no tensor cores: the library's convolution is as good
        return "triton" if x.is_cuda and x.dtype != torch.float64 and triton_installed() else "torch"
    if backend != "triton":
        raise InputError(must_be("backend", f"one of {', '.join(BACKENDS)}", repr(backend)))
    if not triton_installed():
        raise InputError(must_be("backend", "one that is installed", "'triton'", "pip install triton, or use 'auto'"))
    if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        hint = "use 'auto', or set TRITON_INTERPRET=1 before the first import of triton"
        raise InputError(must_be("backend", f"'torch' or 'reference' on {x.device}", "'triton'", hint))
    return "triton"


def triton_installed() -> bool:
    """Whether `import triton` would find something; does not import it."""
    from importlib.util import find_spec

    return find_spec("triton") is not None


def _spec(stride: Sequence[int], offsets: Sequence[int], relu: bool) -> Spec:
    sh, sw = stride
    ah, aw, bh, bw = offsets
    return Spec((sh, sw), (ah, aw, bh, bw), relu)
