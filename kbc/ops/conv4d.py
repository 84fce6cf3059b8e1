"""Centre-pivot 4D convolution: the functional API, and the operator that torch.compile and autograd see.

The `torch` and `triton` backends keep the memory order (B, Ha, Wa, Hb, Wb, C), "channels last", and return it;
`reference` returns a contiguous tensor. Every backend takes any memory order. The shapes' convention is that of
`kbc.ops.spec`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kbc.errors import InputError, must_be
from kbc.ops import cpu, trial
from kbc.ops.spec import BACKENDS, Activation, Backend, Padding, Spec, autocast_arguments, check_kinds, check_layer


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
            (CUDA, or any device under TRITON_INTERPRET=1), or "auto": triton on CUDA when it is installed, the dtype is
            not fp64 and the layer's kernel proved right there on a small input (`kbc.ops.trial`), else torch.

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
        return cpu.reference(*tensors, spec)
    y: Tensor = _op(*tensors, list(spec.stride), list(spec.offsets), spec.relu, chosen)
    return y


def choose_backend(backend: Backend, x: Tensor) -> Backend:
    """The backend that runs for this tensor; "auto" where each of triton's kernels has still to prove right.

    Raises:
        InputError: an unknown name, or triton where it cannot run.
    """
    if backend == "reference" or backend == "torch":
        return backend
    if backend == "auto":
        # fp64 is for checks and has no tensor cores: the library's convolution is as good
        return "auto" if x.is_cuda and x.dtype != torch.float64 and triton_installed() else "torch"
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


def _kernels(
    backend: str, part: trial.Part, x: Tensor, weight_a: Tensor, weight_b: Tensor, bias: Tensor | None, spec: Spec
) -> ModuleType:
    """The module whose `forward` or `backward` computes this part of this layer."""
    by_triton = backend == "triton" or (backend == "auto" and trial.trusted(part, x, weight_a, weight_b, bias, spec))
    return trial.triton_module() if by_triton else cpu


def _spec(stride: Sequence[int], offsets: Sequence[int], relu: bool) -> Spec:
    sh, sw = stride
    ah, aw, bh, bw = offsets
    return Spec((sh, sw), (ah, aw, bh, bw), relu)


# The operator: one forward and one backward, so that torch.compile and fake tensors see two opaque calls. Its arguments
# are what an operator's schema may have, hence lists instead of a `Spec`.


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
    # Triton launches on the current device, which need not be x's
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        spec = _spec(stride, offsets, relu)
        kernels = _kernels(backend, "forward", x, weight_a, weight_b, bias, spec)
        y: Tensor = kernels.forward(x, weight_a, weight_b, bias, spec)
        return y


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
    return cpu.empty_channels_last(x, _spec(stride, offsets, relu).output_shape(x.shape, weight_a.shape[0]))


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
    found: list[Tensor | None] = [None] * 4
    parts: tuple[tuple[trial.Part, bool], ...] = (("input gradient", needs[0]), ("weight gradients", needs[1]))
    for part, needed in parts:
        if needed:
            wanted = (part == "input gradient", part == "weight gradients", False)
            kernels = _kernels(backend, part, x, weight_a, weight_b, None, spec)
            gradients = kernels.backward(grad, x, weight_a, weight_b, spec, wanted)
            found = [new if new is not None else old for new, old in zip(gradients, found, strict=True)]
    if needs[2]:
        found[3] = grad.sum((0, 2, 3, 4, 5))
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
