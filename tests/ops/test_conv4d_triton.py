"""The Triton kernels: values under the interpreter, registers by compiling for sm_90, values on a GPU where one is."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kbc.errors import InputError
from kbc.ops import CenterPivotConv4d, center_pivot_conv4d, trial
from kbc.ops.conv4d import choose_backend

TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not TRITON, reason="triton is not installed: pip install triton")
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: GPU values and launches are not tested here"
)

# Run in a process of its own: TRITON_INTERPRET is read when triton is imported. fp32 and fp16 only, since the
# interpreter's bf16 products are wrong.
INTERPRETED = """
import sys, torch
from kbc.ops import CenterPivotConv4d
from kbc.errors import InputError

torch.manual_seed(0)
torch.set_num_threads(1)
cases = [  # channels, outputs, kernel, stride, padding, dtype, bound
    (3, 2, 3, 1, "same", torch.float32, 2e-6),
    (20, 3, (2, 3, 4, 3), 1, "same", torch.float32, 2e-6),
    (2, 40, (3, 4, 2, 5), (2, 3), "same", torch.float32, 2e-6),
    (1, 1, 3, (2, 1), 0, torch.float32, 2e-6),
    (3, 2, 3, 1, "same", torch.float16, 4e-3),
]
for channels, outputs, kernel, stride, padding, dtype, bound in cases:
    layer = CenterPivotConv4d(channels, outputs, kernel, stride, padding, activation="relu").to(dtype)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, channels, 3, 4, 4, 5).to(dtype).requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in (x, layer.weight_a, layer.weight_b, layer.bias)]
    from kbc.ops import center_pivot_conv4d
    settings = dict(stride=layer.stride, padding=padding, activation="relu")
    want = center_pivot_conv4d(*exact, **settings, backend="reference")
    grad = torch.randn_like(want).to(dtype)
    layer.backend = "triton"
    found = layer(x)
    twice = layer(x)
    assert torch.equal(found, twice)
    assert found.permute(0, 2, 3, 4, 5, 1).is_contiguous()
    wants = [want, *torch.autograd.grad(want, exact, grad.double())]
    mine = [x, *layer.parameters()]
    founds = [found, *torch.autograd.grad(found, mine, grad)]
    again = torch.autograd.grad(twice, mine, grad)
    assert all(torch.equal(a, b) for a, b in zip(founds[1:], again, strict=True)), "not deterministic"
    for name, a, b in zip(("y", "x", "weight_a", "weight_b", "bias"), founds, wants, strict=True):
        error = float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30))
        print(channels, outputs, kernel, dtype, name, error)
        assert error < bound, (channels, outputs, kernel, name, error)
for dtype in (torch.bfloat16, torch.float64):
    try:
        layer.to(dtype)(x.to(dtype))
    except InputError as refused:
        assert "`x` must be" in str(refused)
    else:
        raise AssertionError(f"{dtype} is computed wrongly under the interpreter and must be refused")
print("all agree")
"""

# Prints "name registers stack" per kernel; also its own process, so that no test's environment reaches the compiler.
COMPILED = """
import os, re, subprocess, sys, tempfile
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kbc.ops import triton_kernels as kernels

tool = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")


def report(name, kernel, pointers, sizes, constants, stages):
    count = len(pointers)
    signature = {**pointers, "dims": ("i32",) * sizes, "GEOMETRY": "constexpr", "TILE": "constexpr"}
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(count)}
    values = {(count + 1,): constants[0], (count + 2,): constants[1]}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=aligned)
    options = {"num_warps": 4, "num_stages": stages}
    found = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = dict(re.findall(r"(\\w+):(\\d+)", text))
    tensor_cores = "wgmma" in found.asm["ptx"] or "mma.sync" in found.asm["ptx"]
    print(name, usage["REG"], int(usage["STACK"]) + int(usage["LOCAL"]), int(tensor_cores), sep="\\t")


for short, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
    layers = ((16, 16, 3, 1), (3, 16, 3, 1), (16, 1, 3, 1), (16, 16, 5, 1), (64, 64, 3, 1), (16, 16, 3, 2))
    for c, o, k, stride in layers:
        tile = kernels.tile(c, o, dtype)
        for transposed in (0, 1) if stride == 2 else (0,):
            shape = (k, k, k, k, *((k - 1) // 2,) * 4, stride, stride, c, o, transposed)
            pointers = dict.fromkeys(("x", "weight", "bias", "y"), "*" + short)
            name = f"cross {short} {c} {o} k{k} s{stride} t{transposed}"
            report(name, kernels.cross_kernel, pointers, 7, (shape, (*tile, 1, 1)), 1)
        pointers = {"x": "*" + short, "grad": "*" + short, "partial": "*fp32"}
        report(f"weights {short} {c} {o} k{k} s{stride}", kernels.weights_kernel, pointers, 8, (shape, tile), 2)
"""


def in_a_process(code: str, **environment: str) -> str:
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join([root, *([os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else [])])
    given = {**os.environ, "PYTHONPATH": paths, **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=given, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@needs_triton
def test_kernels_agree_under_the_interpreter() -> None:
    # A jitted function's source is read from its file; the kernels lie in a module, so `python -c` can call them.
    assert "all agree" in in_a_process(INTERPRETED, TRITON_INTERPRET="1")


@pytest.mark.slow
@needs_triton
def test_compiled_for_sm_90_without_spills() -> None:
    """No GPU needed. Half precision must use tensor cores; registers bounded so that ≥ 2 programs fit where C ≤ 16."""
    if sys.platform != "linux":
        pytest.skip("triton's compiler for CUDA runs on Linux")
    lines = [line.split("\t") for line in in_a_process(COMPILED, TRITON_INTERPRET="0").strip().splitlines()]
    assert len(lines) == 2 * (7 + 6)
    for name, registers, spilled, tensor_cores in lines:
        assert int(spilled) == 0, f"{name} spills {spilled} bytes"
        wide = " 64 64 " in name
        bound = 224 if wide else 168 if "weights" in name and " 3 16 " in name else 128
        assert int(registers) <= bound, f"{name} takes {registers} registers, more than {bound}"
        assert int(tensor_cores) == ("bf16" in name), f"{name}: tensor cores {tensor_cores}"


def test_triton_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x = torch.zeros(1, 1, 2, 2, 2, 2)
    weight = torch.zeros(1, 1, 3, 3)
    with pytest.raises(InputError, match="`backend` must be"):
        center_pivot_conv4d(x, weight, weight, backend="triton")
    assert choose_backend("auto", x) == "torch"
    assert not re.search(r"^(import|from) triton", Path(choose_backend.__code__.co_filename).read_text(), re.MULTILINE)


@pytest.mark.gpu
@needs_triton
@needs_gpu
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "stride"),
    [(3, 16, 3, 1), (16, 16, 3, 1), (16, 1, 3, 1), (16, 16, (2, 3, 4, 5), (2, 3)), (96, 80, 3, 1)],
)
def test_gpu_agrees_with_the_reference(
    channels: int, outputs: int, kernel: object, stride: object, dtype: torch.dtype, bound: float
) -> None:
    layer = CenterPivotConv4d(channels, outputs, kernel, stride, activation="relu").to("cuda", dtype)  # type: ignore[arg-type]
    x = torch.randn(2, channels, 7, 6, 8, 9, device="cuda").to(dtype).requires_grad_()
    exact = [t.detach().double().cpu().requires_grad_() for t in (x, layer.weight_a, layer.weight_b, layer.bias)]
    want = center_pivot_conv4d(*exact, stride=layer.stride, activation="relu", backend="reference")
    grad = torch.randn_like(want).to(dtype)
    wants = [want, *torch.autograd.grad(want, exact, grad.double())]
    for backend in ("triton", "torch"):
        layer.backend = backend  # type: ignore[assignment]
        y = layer(x)
        founds = [y, *torch.autograd.grad(y, [x, *layer.parameters()], grad.cuda())]
        for found, exactly in zip(founds, wants, strict=True):
            assert float((found.detach().double().cpu() - exactly).abs().max() / exactly.abs().max()) < bound


@pytest.mark.gpu
@needs_triton
@needs_gpu
def test_gpu_gradients_repeat_bit_by_bit_and_compile() -> None:
    layer = CenterPivotConv4d(16, 16, activation="relu").to("cuda", torch.bfloat16)
    x = torch.randn(1, 16, 12, 12, 12, 12, device="cuda", dtype=torch.bfloat16)
    first, second = (torch.autograd.grad(layer(x).float().square().sum(), list(layer.parameters())) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x))


@pytest.mark.gpu
@needs_triton
@needs_gpu
def test_gpu_kernels_prove_right() -> None:
    assert trial.examine(torch.device("cuda", 0)) == {}
