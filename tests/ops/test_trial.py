"""Triton kernels are tried before they are used: wrong and failing ones are not used, and it is said once."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from itertools import chain
from types import ModuleType
from typing import Any

import pytest
import torch

from kbc.cli import env
from kbc.ops import CenterPivotConv4d, conv4d, cpu, trial
from tests.ops.test_conv4d_triton import in_a_process, needs_triton

assert importlib.util.find_spec("kbc.ops.triton_kernels")  # what is stood in for below
CPU = torch.device("cpu")


class Kernels(ModuleType):
    """Stands in for the Triton kernels: torch's own results, spoilt as asked, and every call counted."""

    def __init__(self) -> None:
        super().__init__("kbc.ops.triton_kernels")
        self.calls: list[str] = []
        self.spoil: dict[str, Callable[[Any], Any]] = {}

    def forward(self, *given: Any) -> Any:
        self.calls.append("forward")
        return self.spoil.get("forward", lambda y: y)(cpu.forward(*given))

    def backward(self, *given: Any) -> Any:
        part = "input gradient" if given[-1][0] else "weight gradients"
        self.calls.append(part)
        spoil = self.spoil.get(part, lambda g: g)
        return tuple(None if g is None else spoil(g) for g in cpu.backward(*given))


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """As on a CUDA device with triton: `auto` may use the kernels, and nothing has been tried."""
    stand_in = Kernels()
    monkeypatch.setitem(sys.modules, "kbc.ops.triton_kernels", stand_in)
    monkeypatch.setattr(conv4d, "choose_backend", lambda backend, x: backend)
    monkeypatch.setattr(trial, "_verdicts", {})
    monkeypatch.setattr(trial, "_warned", set())
    return stand_in


def run(layer: CenterPivotConv4d, backend: str = "auto") -> list[torch.Tensor]:
    """Values and gradients of a layer on a fixed input."""
    layer.backend = backend  # type: ignore[assignment]
    x = torch.randn(1, layer.in_channels, 4, 3, 3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    y = layer(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]


def boom(_: object) -> Any:
    raise RuntimeError("out of resource: shared memory\nmore lines")


def test_right_kernels_are_used_and_tried_once(kernels: Kernels) -> None:
    layer = CenterPivotConv4d(2, 3, stride=(2, 1), activation="relu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run(layer)
        first = list(kernels.calls)
        run(layer)
    parts = ["forward", "input gradient", "weight gradients"]
    assert sorted(first) == sorted(parts * 2)  # tried, then used
    assert kernels.calls[len(first) :] == parts
    for mine, theirs in zip(found, run(layer, "torch"), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_another_kind_of_layer_is_tried_by_itself(kernels: Kernels) -> None:
    for layer in (CenterPivotConv4d(2, 3), CenterPivotConv4d(2, 3, 5), CenterPivotConv4d(2, 3).half()):
        before = len(kernels.calls)
        layer.backend = "auto"
        with torch.no_grad():
            layer(torch.zeros(1, 2, 3, 3, 3, 3, dtype=layer.weight_a.dtype))
        assert kernels.calls[before:] == ["forward"] * 2


@pytest.mark.parametrize("part", list(trial.KERNELS))
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda values: values + 0.5 * values.abs().max(), "is wrong"),
        (lambda values: values * torch.nan, "is wrong"),
        (boom, r"failed \(RuntimeError: out of resource: shared memory\)"),
    ],
    ids=["wrong", "nan", "raises"],
)
def test_a_bad_kernel_is_named_once_and_torch_computes(
    kernels: Kernels, part: trial.Part, spoil: Callable[[Any], Any], said: str
) -> None:
    kernels.spoil[part] = spoil
    layers = [CenterPivotConv4d(2, 3), CenterPivotConv4d(3, 2)]
    with pytest.warns(RuntimeWarning, match=f"{part} .*{trial.KERNELS[part].split(',')[0]}.*{said}") as told:
        found = [run(layer) for layer in layers for _ in range(2)]
    assert len(told) == 1
    assert kernels.calls.count(part) == 2  # each layer's trial and no more
    wanted = [run(layer, "torch") for layer in layers for _ in range(2)]
    for mine, theirs in zip(chain(*found), chain(*wanted), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_who_asks_for_triton_gets_it_untried(kernels: Kernels) -> None:
    kernels.spoil["forward"] = torch.zeros_like
    with torch.no_grad():
        layer = CenterPivotConv4d(2, 3)
        layer.backend = "triton"
        assert not layer(torch.ones(1, 2, 3, 3, 3, 3)).any()
    assert kernels.calls == ["forward"]


def test_env_names_what_is_wrong(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trial.examine(CPU) == {}
    assert len(kernels.calls) == 3 * len(trial.DTYPES)
    monkeypatch.setattr(conv4d, "triton_installed", lambda: True)
    assert env._kernels(CPU) == "all right"
    kernels.spoil["weight gradients"] = boom
    shown = env._kernels(CPU)
    assert shown.count("weight gradients (weights_kernel), ") == 3
    assert shown.endswith("torch computes these instead")
    monkeypatch.setattr(conv4d, "triton_installed", lambda: False)
    assert env._kernels(CPU) == "not tried: triton is not installed"


def test_env_says_that_nothing_was_tried_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert env.collect()["triton kernels"] == "not tried: no CUDA device"


# The kernels themselves, and one whose sums are wrong, on the CPU through Triton's interpreter.
INTERPRETED = """
import warnings
import torch
from kbc.ops import CenterPivotConv4d, conv4d, trial

torch.set_num_threads(1)
cpu = torch.device("cpu")
trial.DTYPES = (torch.float32, torch.float16)  # bf16 is wrong in the interpreter
assert trial.examine(cpu) == {}, trial.examine(cpu)
conv4d.choose_backend = lambda backend, x: backend
layer, x = CenterPivotConv4d(2, 3), torch.randn(1, 2, 3, 3, 3, 3)
layer.backend = "torch"
want = layer(x)
layer.backend = "auto"
with warnings.catch_warnings():
    warnings.simplefilter("error")
    torch.testing.assert_close(layer(x), want)

import triton
import triton.language as tl
from kbc.ops import triton_kernels

right = triton_kernels.cross_kernel


class Wrong:
    def __getitem__(self, grid):
        def launch(x, weight, bias, y, dims, shape, settings, **options):
            shape = (*shape[:4], shape[4] + 1, *shape[5:])  # one row of the a-grid off
            right[grid](x, weight, bias, y, dims, shape, settings, **options)
        return launch


triton_kernels.cross_kernel = Wrong()
trial._verdicts.clear()
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    torch.testing.assert_close(layer(x), want)
    torch.testing.assert_close(layer(x), want)
assert len(told) == 1 and "cross_kernel" in str(told[0].message) and "is wrong" in str(told[0].message), told
assert set(trial.examine(cpu)) == {
    f"{part}, {dtype}"
    for part in ("forward (cross_kernel)", "input gradient (cross_kernel, transposed)")
    for dtype in ("float32", "float16")
}
print("all agree")
"""


@pytest.mark.slow
@needs_triton
def test_the_kernels_themselves_under_the_interpreter() -> None:
    assert "all agree" in in_a_process(INTERPRETED, TRITON_INTERPRET="1")
