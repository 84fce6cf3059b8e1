"""The centre-pivot convolution: against loops over the definition, the dense oracle, other backends and torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from dense import dense  # type: ignore[import-not-found]
from torch import Tensor

from kbc.errors import InputError
from kbc.ops import CenterPivotConv4d, CenterPivotStack, center_pivot_conv4d, cpu
from kbc.ops.conv4d import _op, _op_backward

# (channels, outputs, kernel (ah, aw, bh, bw), stride, padding): odd, even, unlike, larger than the grid, strided
LAYERS = [
    (3, 4, (3, 3, 3, 3), 1, "same"),
    (5, 1, (3, 3, 3, 3), 1, "same"),
    (5, 1, (2, 3, 4, 3), 1, 1),
    (4, 1, (3, 5, 3, 1), 2, "same"),
    (2, 3, (3, 4, 2, 5), (2, 3), "same"),
    (1, 2, (3, 3, 3, 3), (1, 2), 0),
    (1, 1, (1, 1, 1, 1), 3, "same"),
    (2, 2, (5, 4, 7, 5), 1, "same"),
    (17, 3, (4, 4, 4, 4), 1, 2),
]
GRID = (2, 4, 3, 5, 4)  # batch, Ha, Wa, Hb, Wb: no two alike


def make(
    channels: int,
    outputs: int,
    kernel: tuple[int, ...],
    stride: object,
    padding: object,
    dtype: torch.dtype = torch.float64,
) -> tuple[CenterPivotConv4d, Tensor]:
    generator = torch.Generator().manual_seed(sum(kernel) + channels)
    layer = CenterPivotConv4d(channels, outputs, kernel, stride, padding).to(dtype)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    b, *sides = GRID
    return layer, torch.randn((b, channels, *sides), generator=generator, dtype=torch.float64).to(dtype)


def by_loops(layer: CenterPivotConv4d, x: Tensor) -> Tensor:
    """The definition, cell by cell."""
    sh, sw = layer.stride
    kah, kaw, kbh, kbw = layer.kernel_size
    ps = [(k - 1) // 2 if layer.padding == "same" else layer.padding for k in layer.kernel_size]
    b, _, ha, wa, hb, wb = x.shape
    assert layer.bias is not None
    y = layer.bias.detach().view(1, -1, 1, 1, 1, 1).repeat(b, 1, ha, wa, -(-hb // sh), -(-wb // sw))
    for h, w, u, v in itertools.product(range(ha), range(wa), range(y.shape[4]), range(y.shape[5])):
        for i, j in itertools.product(range(kah), range(kaw)):
            if 0 <= h + i - ps[0] < ha and 0 <= w + j - ps[1] < wa:
                y[:, :, h, w, u, v] += (
                    x[:, :, h + i - ps[0], w + j - ps[1], sh * u, sw * v] @ layer.weight_a[:, :, i, j].T
                )
        for i, j in itertools.product(range(kbh), range(kbw)):
            r, c = sh * u + i - ps[2], sw * v + j - ps[3]
            if 0 <= r < hb and 0 <= c < wb:
                y[:, :, h, w, u, v] += x[:, :, h, w, r, c] @ layer.weight_b[:, :, i, j].T
    return y


@pytest.mark.parametrize("case", [LAYERS[i] for i in (0, 2, 4)], ids=str)
def test_oracle_is_the_definition(case: tuple) -> None:
    layer, x = make(*case)
    with torch.no_grad():
        torch.testing.assert_close(dense(layer, x), by_loops(layer, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("backend", "strip_bytes"), [("reference", 0), ("torch", 1), ("torch", 2 << 20)])
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_backends_agree_with_the_oracle(
    case: tuple, backend: str, strip_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and the gradient of x, from both memory orders; with strips of one a-row and with a single strip."""
    monkeypatch.setattr(cpu, "STRIP_BYTES", strip_bytes)
    monkeypatch.setattr(cpu, "THINNEST_STRIP", 1)
    layer, x = make(*case)
    layer.backend = backend  # type: ignore[assignment]
    want_x = x.clone().requires_grad_()
    want = dense(layer, want_x)
    grad = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    want.backward(grad)
    for given in (x.clone(), cpu.channels_last(x).permute(0, 5, 1, 2, 3, 4)):
        given.requires_grad_()
        y = layer(given)
        y.backward(grad)
        torch.testing.assert_close(y, want, rtol=0, atol=1e-12)
        torch.testing.assert_close(given.grad, want_x.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_weight_gradients_agree(case: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "STRIP_BYTES", 1)
    layer, x = make(*case)
    found: dict[str, list[Tensor]] = {}
    for backend in ("reference", "torch"):
        y = center_pivot_conv4d(
            x, *layer.as_layer()[:3], stride=layer.stride, padding=layer.padding, activation="relu", backend=backend
        )
        assert 0 < int((y > 0).sum()) < y.numel()  # the ReLU's mask does something
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
        found[backend] = list(torch.autograd.grad(y, list(layer.parameters()), grad))
    for one, other in zip(found["torch"], found["reference"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("case", [LAYERS[i] for i in (0, 1, 4)], ids=str)
def test_gradcheck(case: tuple) -> None:
    layer, _ = make(*case)
    x = torch.randn(1, case[0], 2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    inputs = (x, *layer.parameters())

    def run(*tensors: Tensor) -> Tensor:
        return center_pivot_conv4d(*tensors, stride=layer.stride, padding=layer.padding, backend="torch")

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_gradients_only_where_asked() -> None:
    layer, x = make(*LAYERS[0])
    layer.weight_a.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight_a.grad is None
    assert layer.weight_b.grad is not None
    assert x.grad is None


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
@pytest.mark.parametrize("outputs", [1, 4])
def test_dtypes(dtype: torch.dtype, bound: float, outputs: int) -> None:
    """Half precision is summed in fp32 and rounded once; gradients come in the same dtype."""
    layer, x = make(6, outputs, (3, 3, 3, 3), 1, "same", dtype)
    exact = center_pivot_conv4d(x.double(), *(p.detach().double() for p in layer.parameters()))
    x.requires_grad_()
    y = layer(x)
    assert y.dtype == dtype
    assert float((y.detach().double() - exact).abs().max() / exact.abs().max()) < bound
    y.float().square().mean().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert layer.weight_a.grad is not None
    assert layer.weight_a.grad.dtype == dtype


def test_half_precision_without_the_detour(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CPU with fast bf16 convolutions runs."""
    layer, x = make(6, 4, (3, 3, 3, 3), 1, "same", torch.bfloat16)
    detour = layer(x)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert cpu.working_dtype(x) == torch.bfloat16
    torch.testing.assert_close(layer(x), detour, rtol=2e-2, atol=6e-2)


@pytest.mark.parametrize(("channels", "outputs", "batch"), [(16, 16, 16), (16, 1, 8), (5, 1, 30), (3, 4, 32)])
def test_half_precision_weight_gradients_are_added_up_in_fp32(
    channels: int, outputs: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values of one sign: a sum in bf16 stops growing. A rounding of each summand and of the sum is allowed.

    As this CPU computes it: with AVX-512 in bf16, elsewhere in fp32.
    """
    monkeypatch.setattr(cpu, "STRIP_BYTES", 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((batch, channels, 6, 6, 6, 6), generator=generator) + 0.5
    grad = torch.rand((batch, outputs, 6, 6, 6, 6), generator=generator)
    weights = [torch.randn((outputs, channels, 3, 3), generator=generator) for _ in range(2)]
    found = []
    for dtype in (torch.float64, torch.bfloat16):
        a, b = (weight.bfloat16().to(dtype).requires_grad_() for weight in weights)
        y = center_pivot_conv4d(x.bfloat16().to(dtype), a, b)
        found.append(torch.autograd.grad(y, (a, b), grad.bfloat16().to(dtype)))
    for exact, rounded in zip(*found, strict=True):
        assert float((rounded.double() - exact).abs().max() / exact.abs().max()) < 6e-3  # in bf16: up to 2e-2


def test_output_is_channels_last_and_small_sizes_work() -> None:
    layer = CenterPivotConv4d(3, 5, stride=2)
    y = layer(torch.randn(2, 3, 1, 4, 3, 1))
    assert y.shape == (2, 5, 1, 4, 2, 1)
    assert y.permute(0, 2, 3, 4, 5, 1).is_contiguous()
    assert layer(torch.randn(0, 3, 2, 2, 2, 2)).shape == (0, 5, 2, 2, 1, 1)


def test_strided_layer_takes_any_size_twice() -> None:
    """The usual implementation caches its pruning at the first call."""
    layer = CenterPivotConv4d(2, 3, stride=(2, 1))
    for side in (4, 7, 5):
        assert layer(torch.randn(1, 2, 3, 3, side, side)).shape == (1, 3, 3, 3, (side + 1) // 2, side)


# --- torch's own checks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [(3, 4, 3, 2), (5, 1, 3, 1)], ids=str)
def test_opcheck(case: tuple[int, int, int, int]) -> None:
    """Everything opcheck knows for one case (tracing takes seconds); schema and fake tensors for all."""
    brief = ("test_schema", "test_faketensor")
    every = (*brief, "test_autograd_registration", "test_aot_dispatch_dynamic")
    channels, outputs, kernel, stride = case
    layer = CenterPivotConv4d(channels, outputs, kernel, stride)
    x = torch.randn(2, channels, 3, 2, 4, 3, requires_grad=True)
    settings = ([stride] * 2, [1] * 4)
    arguments = (x, layer.weight_a, layer.weight_b, layer.bias, *settings, True, "torch")
    torch.library.opcheck(_op, arguments, test_utils=every if stride == 2 else brief)
    grad = torch.randn_like(layer(x))
    tensors = [t.detach() for t in (grad, x, layer.weight_a, layer.weight_b)]
    torch.library.opcheck(_op_backward, (*tensors, *settings, [True, True, True], "torch"), test_utils=brief)


def test_compiles_in_one_graph() -> None:
    stack = CenterPivotStack((2, 4, 1))
    compiled = torch.compile(stack, fullgraph=True, backend="aot_eager")  # the graph is the question, not code
    x = torch.randn(1, 2, 3, 4, 4, 3, requires_grad=True)
    (mine,) = torch.autograd.grad(stack(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(compiled(x).square().sum(), x)
    torch.testing.assert_close(theirs, mine)


@pytest.mark.parametrize("grads", [True, False])
def test_autocast(grads: bool) -> None:
    stack = CenterPivotStack((2, 4, 1))
    x = torch.randn(1, 2, 3, 4, 4, 3)
    with torch.set_grad_enabled(grads):
        exact = stack(x)
        with torch.autocast("cpu", torch.bfloat16):
            y = stack(x)
            rows = stack.query_rows(x, [0, 5])
            assert stack.double()(x.double()).dtype == torch.float64
    assert y.dtype == rows.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.05)


def test_no_side_effects() -> None:
    layer, x = make(*LAYERS[0])
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    layer(x.requires_grad_()).sum().backward()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


# --- stack, state dicts, errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("strip_bytes", [1, 3000, 2 << 20])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), ([2, 5, 4], 1), (3, [2, 1, 2]), ([1, 3, 1], 1)])
def test_streamed_stack_is_the_layers_one_by_one(
    kernel: object, stride: object, strip_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "STRIP_BYTES", strip_bytes)
    monkeypatch.setattr(cpu, "THINNEST_STRIP", 1)
    stack = CenterPivotStack((2, 5, 4, 1), kernel, stride=stride, final_activation="relu").double()  # type: ignore[arg-type]
    x = torch.randn(2, 2, 7, 4, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        streamed = stack(x)
        torch.testing.assert_close(streamed, stack(x.permute(0, 2, 3, 4, 5, 1).contiguous().permute(0, 5, 1, 2, 3, 4)))
    one_by_one = stack(x)  # gradients are on: layer by layer
    assert one_by_one.requires_grad
    torch.testing.assert_close(streamed, one_by_one.detach(), rtol=0, atol=1e-13)
    assert streamed.stride() == one_by_one.stride()


def test_loads_the_usual_layout() -> None:
    conv1, conv2 = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(3, 4, 5)
    usual = {f"{n}.{k}": v for n, c in (("conv1", conv1), ("conv2", conv2)) for k, v in c.state_dict().items()}
    layer = CenterPivotConv4d(3, 4, (3, 3, 5, 5))
    layer.load_state_dict(usual)
    assert set(usual) == {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"}  # the caller's dict is as it was
    assert torch.equal(layer.weight_a, conv1.weight)
    assert torch.equal(layer.weight_b, conv2.weight)
    assert torch.equal(layer.bias, conv1.bias + conv2.bias)
    stack = CenterPivotStack((3, 4), 3)
    stack.load_state_dict({f"layers.0.{k}": v[..., 1:4, 1:4] if v.shape[-1] == 5 else v for k, v in usual.items()})
    assert torch.equal(stack.layers[0].weight_a, conv1.weight)
    again = CenterPivotConv4d(3, 4, (3, 3, 5, 5))
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.weight_b, layer.weight_b)
    with pytest.raises(RuntimeError, match=r"weight_a.*size mismatch|size mismatch.*weight_a"):
        CenterPivotConv4d(2, 4, (3, 3, 5, 5)).load_state_dict(usual)


X = torch.zeros(1, 2, 3, 3, 3, 3)
W = torch.zeros(4, 2, 3, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: center_pivot_conv4d(X[0], W, W), r"`x` must be \(B, C, Ha, Wa, Hb, Wb\)"),
        (lambda: center_pivot_conv4d(X[:, :, :0], W, W), "`x` must be at least one"),
        (lambda: center_pivot_conv4d(X, W[0], W), "`weight_a` must be"),
        (lambda: center_pivot_conv4d(X, W[:, :1], W), "`weight_a` must be .*2 channels"),
        (lambda: center_pivot_conv4d(X, W, W[:3]), "`weight_b` must be .*like `weight_a`"),
        (lambda: center_pivot_conv4d(X, W, W, torch.zeros(3)), r"`bias` must be \(4,\) or None"),
        (lambda: center_pivot_conv4d(X, W, W, stride=0), "`stride` must be"),
        (lambda: center_pivot_conv4d(X, W, W, stride=(1, 1, 2, 2)), "`stride` must be"),
        (lambda: center_pivot_conv4d(X, W, W, padding=3), "`padding` must be"),
        (lambda: center_pivot_conv4d(X, W, W, padding="valid"), "`padding` must be"),
        (lambda: center_pivot_conv4d(X, W, W, activation="gelu"), "`activation` must be"),
        (lambda: center_pivot_conv4d(X, W, W, backend="cudnn"), "`backend` must be"),
        (lambda: center_pivot_conv4d(X.double(), W, W), "`weight_a` must be torch.float64"),
        (lambda: center_pivot_conv4d(X.int(), W.int(), W.int()), "`x` must be fp32"),
        (lambda: center_pivot_conv4d(X, W.to("meta"), W), "`weight_a` must be .*on cpu"),
        (lambda: center_pivot_conv4d(X.to("meta"), W, W), "`weight_a` must be .*on meta"),
        (lambda: center_pivot_conv4d(X.numpy(), W, W), "`x` must be a dense torch tensor, received ndarray"),
        (lambda: center_pivot_conv4d(X.to_sparse(), W, W), "`x` must be a dense torch tensor"),
        (lambda: center_pivot_conv4d(X, W.numpy(), W), "`weight_a` must be a dense torch tensor"),
        (lambda: center_pivot_conv4d(X, W, W, W[:, 0, 0, 0].numpy()), "`bias` must be a dense torch tensor"),
        (lambda: center_pivot_conv4d(X, W, W, stride=1.5), "`stride` must be .*received 1.5"),
        (lambda: center_pivot_conv4d(X, W, W, stride=None), "`stride` must be"),
        (lambda: center_pivot_conv4d(X, W, W, padding=1.0), "`padding` must be"),
        (lambda: CenterPivotConv4d(0, 1), "`in_channels` must be"),
        (lambda: CenterPivotConv4d(1, 1, 3.0), "`kernel_size` must be .*received 3.0"),
        (lambda: CenterPivotConv4d(1, 1, (3, 3, 3, 0)), "`kernel_size` must be"),
        (lambda: CenterPivotConv4d(1, 1, (3, 3, 3, 2.5)), "`kernel_size` must be"),
        (lambda: CenterPivotConv4d(1, 1, (3, 3)), "`kernel_size` must be"),
        (lambda: CenterPivotConv4d(1, 1, 2, padding=2), "`padding` must be"),
        (lambda: CenterPivotConv4d(1, 1, activation="gelu"), "`activation` must be"),
        (lambda: CenterPivotStack((3,)), "`channels` must be"),
        (lambda: CenterPivotStack((3, 1), kernel_size=(3, 3)), "`kernel_size` must be"),
        (lambda: CenterPivotStack((3, 1), kernel_size=3.0), "`kernel_size` must be"),
        (lambda: CenterPivotStack((3, 1), stride=1.5), "`stride` must be"),
        (lambda: CenterPivotStack(3), "`channels` must be"),
        (lambda: CenterPivotStack((2, 1))(X.numpy()), "`x` must be a dense torch tensor"),
        (lambda: CenterPivotStack((2, 1)).query_rows(X.numpy(), [0]), "`x` must be a dense torch tensor"),
    ],
)
def test_wrong_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_on_the_meta_device_only_shapes_are_computed(backend: str) -> None:
    x, w = X.to("meta"), W.to("meta")
    y = center_pivot_conv4d(x, w, w, stride=2, backend=backend)  # type: ignore[arg-type]
    assert (y.device.type, y.shape) == ("meta", (1, 4, 3, 3, 2, 2))
    stack = CenterPivotStack((2, 3, 1)).to("meta")
    assert stack(x).shape == (1, 1, 3, 3, 3, 3)
    assert stack.query_rows(x, [0, 4]).shape == (1, 2, 1, 3, 3)
