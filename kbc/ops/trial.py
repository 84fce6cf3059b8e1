"""Whether a Triton kernel computes what it should on this device: tried on a small input before it is first used.

A kernel is compiled for one kind of layer (kernel sides, stride, channels, dtype), and may fail for one kind alone:
each is tried by itself, once per process, against the definition in double precision on the CPU; the verdict is kept.
A kernel that is wrong or does not compile is not used: `backend="auto"` then computes in torch. Nothing can be done
about a kernel that makes the device itself fail.
"""

from __future__ import annotations

import threading
import warnings
from contextlib import nullcontext
from importlib import import_module
from types import ModuleType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from kbc.ops import cpu
from kbc.ops.spec import Spec

Part: TypeAlias = Literal["forward", "input gradient", "weight gradients"]
"""What a kernel computes."""

KERNELS: dict[Part, str] = {
    "forward": "cross_kernel",
    "input gradient": "cross_kernel, transposed",
    "weight gradients": "weights_kernel",
}
BOUNDS = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far a value may lie from the right one, over the largest: far above rounding, far below a wrong index."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_SHAPE = (2, 3, 4, 6, 5)  # batch and sides: several programs of a kernel, the last one not full

_verdicts: dict[tuple[object, ...], str] = {}
_warned: set[Part] = set()
_lock = threading.RLock()


def triton_module() -> ModuleType:
    """The kernels; imports triton."""
    return import_module("kbc.ops.triton_kernels")


def trusted(part: Part, x: Tensor, weight_a: Tensor, weight_b: Tensor, bias: Tensor | None, spec: Spec) -> bool:
    """Whether this layer's kernel computes what it should on x's device; tried at the first call.

    Warns the first time that a kernel does not, once for each of the three. False while a CUDA graph is captured and
    it has not been tried: nothing can be compiled or compared then.
    """
    key = (part, x.device, x.dtype, weight_a.shape, weight_b.shape, bias is None, spec)
    with _lock:
        if key not in _verdicts:
            if x.is_cuda and torch.cuda.is_current_stream_capturing():
                return False
            _verdicts[key] = _tried(part, x.device, x.dtype, weight_a, weight_b, bias is not None, spec)
            if _verdicts[key] and part not in _warned:
                _warned.add(part)
                warnings.warn(
                    f"kbc.ops: the Triton kernel of the {part} ({KERNELS[part]}) {_verdicts[key]} on {x.device}, "
                    "so torch computes it instead, correctly and more slowly; `kbc env` tries all kernels",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return not _verdicts[key]


def examine(device: torch.device) -> dict[str, str]:
    """What is wrong with each kernel on a device, tried on a layer of 16 → 16 channels in every dtype; none when right.

    Returns:
        e.g. "forward (cross_kernel), float16" → "failed (CompilationError: …)".
    """
    found = {}
    weight = torch.empty(16, 16, 3, 3)
    for dtype in DTYPES:
        for part, kernel in KERNELS.items():
            spec = Spec((1, 1), (1, 1, 1, 1), part == "forward")
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                wrong = _tried(part, device, dtype, weight, weight, True, spec)
            if wrong:
                found[f"{part} ({kernel}), {str(dtype).removeprefix('torch.')}"] = wrong
    return found


def _tried(
    part: Part,
    device: torch.device,
    dtype: torch.dtype,
    weight_a: Tensor,
    weight_b: Tensor,
    has_bias: bool,
    spec: Spec,
) -> str:
    """What is wrong with a kernel, in words that follow its name; nothing when it is right."""
    outputs, channels = weight_a.shape[:2]
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu").to(dtype)

    x = drawn(_SHAPE[0], channels, *_SHAPE[1:])
    layer = [drawn(*weight_a.shape), drawn(*weight_b.shape), drawn(outputs) if has_bias else None]
    grad = drawn(*spec.output_shape(x.shape, outputs))
    given = [x, *layer] if part == "forward" else [grad, x, *layer[:2]]
    exact: list[Any] = [None if tensor is None else tensor.double() for tensor in given]
    there: list[Any] = [None if tensor is None else tensor.to(device) for tensor in given]
    if part == "forward":
        wanted = [cpu.reference(exact[0], exact[1], exact[2], exact[3], spec)]
    else:
        wanted = _gradients(cpu, part, exact, spec)
    try:
        kernels = triton_module()
        found = [kernels.forward(*there, spec)] if part == "forward" else _gradients(kernels, part, there, spec)
        pairs = [(a.double().cpu(), b) for a, b in zip(found, wanted, strict=True)]
    except Exception as error:  # of the compiler, the driver or the launch: what follows is the same
        lines = str(error).strip().splitlines() or [""]
        return f"failed ({type(error).__name__}: {lines[0]:.200})"
    worst = max(float((a - b).abs().max() / b.abs().max()) if a.isfinite().all() else float("inf") for a, b in pairs)
    return "" if worst <= BOUNDS[dtype] else f"is wrong (by {worst:.1g} of the largest value, {dtype})"


def _gradients(kernels: ModuleType, part: Part, given: list[Any], spec: Spec) -> list[Tensor]:
    wanted = (part == "input gradient", part == "weight gradients", False)
    return [tensor for tensor in kernels.backward(*given, spec, wanted) if tensor is not None]
