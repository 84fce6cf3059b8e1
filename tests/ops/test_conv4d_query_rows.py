"""Rows of a stack's output alone: exactly what the whole evaluation gives there, and only the work they need."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kbc.errors import InputError
from kbc.ops import CenterPivotStack, Layer, cpu, query_rows
from kbc.ops.query_rows import rectangles

STACKS = [
    {"channels": (3, 6, 6, 1)},
    {"channels": (2, 5, 3), "kernel_size": (2, 5), "final_activation": "relu"},
    {"channels": (2, 4, 4, 2), "stride": (2, 1, 2), "activation": None},
    {"channels": (4, 1), "kernel_size": 1},
]
ROWS = [
    [0],  # a corner
    [27, 27, 3],  # a cell twice, in no order
    [[0, 1, 2], [24, 30, 12]],  # each item its own
    list(range(35)),  # everything
]


def whole(stack: CenterPivotStack, x: Tensor, rows: Tensor) -> Tensor:
    y = stack(x).flatten(2, 3)
    return torch.stack([item[:, mine].transpose(0, 1) for item, mine in zip(y, rows.expand(len(x), -1), strict=True)])


@pytest.mark.parametrize("settings", STACKS, ids=str)
@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("grads", [True, False])
def test_rows_are_exact(settings: dict, rows: list, grads: bool) -> None:
    stack = CenterPivotStack(**settings).double()
    x = torch.randn(2, settings["channels"][0], 5, 7, 4, 6, dtype=torch.float64)
    with torch.set_grad_enabled(grads):
        found = stack.query_rows(x, rows)
        assert found.requires_grad == grads
        torch.testing.assert_close(found, whole(stack, x, torch.tensor(rows)), rtol=0, atol=1e-12)


def test_gradients_are_those_of_the_whole() -> None:
    stack = CenterPivotStack((2, 4, 4, 1)).double()
    x = torch.randn(2, 2, 6, 5, 4, 3, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([[0, 7, 8], [29, 3, 3]])
    wanted = [x, *stack.parameters()]
    target = torch.randn(2, 3, 1, 4, 3, dtype=torch.float64)
    few = torch.autograd.grad((stack.query_rows(x, rows) - target).square().sum(), wanted)
    all_ = torch.autograd.grad((whole(stack, x, rows) - target).square().sum(), wanted)
    for one, other in zip(few, all_, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_far_values_are_never_read() -> None:
    """NaN outside of what three 3×3 layers reach does not get in; NaN just inside does."""
    stack = CenterPivotStack((1, 2, 2, 1))
    x = torch.randn(1, 1, 12, 12, 3, 3)
    x[:, :, 4:] = x[:, :, :, 4:] = float("nan")
    for grads in (True, False):
        with torch.set_grad_enabled(grads):
            assert stack.query_rows(x, [0]).isfinite().all()
            assert not stack.query_rows(x, [1 * 12 + 1]).isfinite().all()


def test_only_needed_cells_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    plain = cpu.cross

    def counting(*args: Any, **modes: Any) -> Tensor:
        out = args[5]
        computed.append(out.shape[0] * out.shape[1])
        return plain(*args, **modes)

    monkeypatch.setattr(cpu, "cross", counting)
    stack = CenterPivotStack((1, 2, 2, 1))
    with torch.no_grad():
        stack.query_rows(torch.randn(1, 1, 20, 20, 3, 3), [5 * 20 + 5, 14 * 20 + 15])
    assert sum(computed) == 2 * (25 + 9 + 1)  # two far cells, each with its own neighbourhood and nothing between


def test_where_most_cells_are_needed_the_whole_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scattered cells would make a rectangle each; three layers of a small grid are three calls."""
    calls = []
    plain = cpu.cross
    monkeypatch.setattr(cpu, "cross", lambda *args, **modes: calls.append(1) or plain(*args, **modes))  # type: ignore[func-returns-value]
    stack = CenterPivotStack((1, 2, 2, 1))
    x = torch.randn(1, 1, 12, 12, 3, 3)
    rows = [a * 12 + b for a in range(0, 12, 4) for b in range(0, 12, 4)]
    with torch.no_grad():
        found = stack.query_rows(x, rows)
        assert len(calls) == 3
        torch.testing.assert_close(found, whole(stack, x, torch.tensor(rows)))
        calls.clear()
        stack.query_rows(x, rows[:2])
        assert len(calls) > 3


@pytest.mark.parametrize("grads", [True, False])
def test_a_layers_backend_is_honoured(grads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    plain = cpu.reference
    monkeypatch.setattr(cpu, "reference", lambda *args: calls.append(1) or plain(*args))  # type: ignore[func-returns-value]
    stack = CenterPivotStack((1, 2, 2, 1))
    x = torch.randn(1, 1, 5, 6, 3, 3)
    for layer in stack.layers[:2]:
        layer.backend = "reference"  # type: ignore[assignment]
    with torch.set_grad_enabled(grads):
        found = stack.query_rows(x, [0, 17])
        assert len(calls) == 2
        torch.testing.assert_close(found, whole(stack, x, torch.tensor([0, 17])))
        stack.layers[2].backend = "cudnn"  # type: ignore[assignment]
        with pytest.raises(InputError, match="`backend` must be"):
            stack.query_rows(x, [0])


def test_rectangles_cover_a_mask_once() -> None:
    generator = torch.Generator().manual_seed(0)
    for share in (0.1, 0.5, 0.95):
        mask = torch.rand(9, 8, generator=generator) < share
        count = torch.zeros(9, 8, dtype=torch.int64)
        for box in rectangles(mask):
            count[box.top : box.bottom, box.left : box.right] += 1
        assert bool((count[mask] == 1).all())
        assert int(count.max()) == 1
        if share < 0.9:
            assert bool((count[~mask] == 0).all())


def test_no_rows() -> None:
    stack = CenterPivotStack((2, 3, 4), stride=2)
    assert stack.query_rows(torch.randn(2, 2, 3, 3, 5, 5), []).shape == (2, 0, 4, 2, 2)
    assert stack.query_rows(torch.randn(0, 2, 3, 3, 5, 5), [1]).shape == (0, 1, 4, 2, 2)


@pytest.mark.parametrize("rows", [[9], [-1], [0.5], [[0], [1], [2]], [[[0]]], [[0], [1, 2]], "ab", None], ids=str)
def test_wrong_rows_are_named(rows: list) -> None:
    with pytest.raises(InputError, match="`rows` must be"):
        CenterPivotStack((2, 1)).query_rows(torch.zeros(2, 2, 3, 3, 2, 2), rows)


def test_wrong_chain_is_named() -> None:
    x = torch.zeros(1, 2, 3, 3, 2, 2)
    with pytest.raises(InputError, match="`layers` must be"):
        query_rows(x, [0], [])
    first, second = (Layer(torch.zeros(3, c, 3, 3), torch.zeros(3, c, 3, 3)) for c in (2, 4))
    for grads in (True, False):
        with torch.set_grad_enabled(grads), pytest.raises(InputError, match=r"`weight_a` must be .*3 channels"):
            query_rows(x, [0], [first, second])
