"""`kbc bench`: the 4D convolution on this machine against its plain formulation, and KBC's own work (bench_pipeline).

`conv4d`: two ways run in turn in one process, one thread, `time.thread_time` (other processes do not count), and the
figure is the ratio of medians over the eager reference formulation (permute → conv2d → permute, twice, then add).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from kbc.cli import bench_pipeline
from kbc.cli.env import processor
from kbc.cli.text import markdown_table
from kbc.files import output_file, write_json
from kbc.ops.conv4d import center_pivot_conv4d
from kbc.ops.modules import CenterPivotConv4d, CenterPivotStack
from kbc.ops.spec import Backend

Run = Callable[[], object]
CHANNELS = (3, 16, 16, 1)

HELP = (
    "Time the 4D convolution on this machine against its plain formulation (conv4d: two to four minutes, one thread), "
    "or KBC's own work against the plain matcher's, stage by stage (pipeline)."
)


@dataclass(frozen=True)
class Row:
    """One thing measured.

    Attributes:
        name: what; rows of memory and of "time over" are better the less they are, all others the more.
        found: the ratio, None where it was not measured.
        note: medians in milliseconds, or why there is no figure.
    """

    name: str
    found: float | None = None
    note: str = ""


def bench_conv4d(*, quick: bool = False) -> list[Row]:
    """Measure what this machine can measure.

    Args:
        quick: tiny grids and one round, to see that everything runs (seconds); the ratios then mean nothing. The full
            bench takes two to four minutes.

    Returns:
        The rows. Threads are set to one while it runs and put back; no seed is touched.
    """
    sides = (6, 7, 8) if quick else (16, 30, 32)
    rounds = (1, 1) if quick else (21, 7)
    with _one_thread(), torch.no_grad():
        rows = _cpu_rows(sides, rounds)
        rows.append(_compiled(sides[1], rounds[1], quick))
        rows.append(_training(sides[0], rounds[0]))
        rows.append(_peak_memory(sides[1]))
        rows.append(_queried(sides[2], rounds[1]))
    rows += _cuda_rows(quick)
    return [replace(row, note=f"quick, no result; {row.note}") if quick else row for row in rows]


# --- the two ways ----------------------------------------------------------------------------------------------------


def _stack(x: Tensor, stack: CenterPivotStack, backend: Backend = "reference") -> Tensor:
    for layer in stack.as_layers():
        x = center_pivot_conv4d(x, *layer[:3], activation=layer.activation, backend=backend)
    return x


def _grid(channels: int, side: int, batch: int = 1) -> Tensor:
    """Random values in channels-last order, as a matcher stacks its correlation levels."""
    return torch.randn(batch, side, side, side, side, channels).permute(0, 5, 1, 2, 3, 4)


def _layer(channels: int, outputs: int, kernel: int, side: int) -> tuple[Run, Run]:
    layer = CenterPivotConv4d(channels, outputs, kernel, activation="relu")
    x = _grid(channels, side)
    weights = layer.as_layer()[:3]
    reference = partial(center_pivot_conv4d, x, *weights, activation="relu", backend="reference")
    return reference, partial(layer, x)


# --- CPU -------------------------------------------------------------------------------------------------------------


def _cpu_rows(sides: tuple[int, int, int], rounds: tuple[int, int]) -> list[Row]:
    small, large, _ = sides
    rows = []
    for side, count in ((small, rounds[0]), (large, rounds[1])):
        stack, x = CenterPivotStack(CHANNELS), _grid(CHANNELS[0], side)
        row = Row(f"CPU stack 3→16→16→1 k3, {side}⁴, fp32")
        rows.append(_ratio(row, partial(_stack, x, stack), partial(stack, x), count))
    for outputs, kernel in ((16, 3), (16, 5), (1, 3)):
        row = Row(f"CPU layer 16→{outputs} k{kernel}, {small}⁴")
        rows.append(_ratio(row, *_layer(16, outputs, kernel, small), rounds[0]))
    return rows


def _compiled(side: int, rounds: int, quick: bool) -> Row:
    row = Row(f"CPU stack against the compiled reference, {side}⁴")
    if quick:
        return replace(row, note="compiling is left out")
    stack, x = CenterPivotStack(CHANNELS), _grid(CHANNELS[0], side)
    compiled = torch.compile(_stack, fullgraph=True)
    try:
        compiled(x, stack)
    except Exception as error:  # no C++ compiler, or one that inductor cannot use: the reason is reported, not hidden
        return replace(row, note=f"torch.compile failed: {type(error).__name__}")
    return _ratio(row, partial(compiled, x, stack), partial(stack, x), rounds)


def _training(side: int, rounds: int) -> Row:
    layer = CenterPivotConv4d(16, 16, 3, activation="relu")
    x = _grid(16, side).requires_grad_()
    grad = _grid(16, side)

    def step(backend: Backend) -> object:
        with torch.enable_grad():
            y = center_pivot_conv4d(x, *layer.as_layer()[:3], activation="relu", backend=backend)
            return torch.autograd.grad(y, [x, *layer.parameters()], grad)

    row = Row(f"CPU forward+backward, layer 16→16 k3, {side}⁴")
    return _ratio(row, partial(step, "reference"), partial(step, "torch"), rounds)


def _queried(side: int, rounds: int) -> Row:
    """Ten cells drawn from a block of a quarter of the side: the keypoints of a small object."""
    stack, x = CenterPivotStack(CHANNELS), _grid(CHANNELS[0], side)
    block = max(4, side // 4)
    first = (side - block) // 2
    drawn = torch.randperm(block * block, generator=torch.Generator().manual_seed(0), device="cpu")[:10]
    rows = (first + drawn // block) * side + first + drawn % block
    row = Row(f"CPU query rows, 10 points in a block of {block}×{block} cells, {side}⁴")
    return _ratio(row, partial(_stack, x, stack), partial(stack.query_rows, x, rows), rounds)


def _peak_memory(side: int) -> Row:
    row = Row(f"CPU peak memory of the stack over the reference, {side}⁴")
    if not Path("/proc/self/clear_refs").exists():
        return replace(row, note="needs Linux's /proc")
    found = []
    for backend in ("reference", "torch"):  # a fresh process each: what one frees, the other would find warm
        command = [sys.executable, "-m", "kbc", "bench", "--peak", backend, "--side", str(side)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return replace(row, note=f"the {backend} process failed: {done.stderr.strip()[-200:]}")
        found.append(int(done.stdout))
    reference, ours = found
    return replace(row, found=ours / reference, note=f"{reference / 2**20:.0f} → {ours / 2**20:.0f} MB above the input")


def _peak_bytes(backend: str, side: int) -> int:
    """Peak resident memory of one stack evaluation above what was resident before it; for a fresh process."""
    stack = CenterPivotStack(CHANNELS)
    run = partial(_stack, stack=stack) if backend == "reference" else stack
    with _one_thread(), torch.no_grad():
        run(_grid(CHANNELS[0], 4))  # libraries load their code and threads
        x = _grid(CHANNELS[0], side)
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        run(x)
        return _status("VmHWM") - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _ratio(row: Row, reference: Run, ours: Run, rounds: int) -> Row:
    slow, fast = _medians([reference, ours], rounds, _thread_seconds)
    return replace(row, found=slow / fast, note=f"{slow * 1e3:.1f} → {fast * 1e3:.1f} ms")


def _medians(runs: Sequence[Run], rounds: int, timed: Callable[[Run], float]) -> list[float]:
    """What `timed` says of each run, the runs taking turns; the first turn is not counted."""
    turns = [[timed(run) for run in runs] for _ in range(rounds + 1)]
    return [statistics.median(mine) for mine in zip(*turns[1:], strict=True)]


def _thread_seconds(run: Run) -> float:
    start = time.thread_time()
    run()
    return time.thread_time() - start


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- CUDA ------------------------------------------------------------------------------------------------------------


def _cuda_rows(quick: bool) -> list[Row]:
    """bf16 on the current CUDA device."""
    side, graph_side, rounds = (6, 5, 2) if quick else (30, 15, 21)
    speed = Row(f"CUDA bf16 stack, {side}⁴")
    roofline = Row(f"CUDA bf16 16→16 k3, {side}⁴, time over that of a copy")
    graphs = Row(f"CUDA bf16 stack, {graph_side}⁴, B=8, under CUDA graphs")
    memory = Row(f"CUDA peak memory of a layer over the reference, above its input, 16→16 k3, {side}⁴")
    if not torch.cuda.is_available():
        return [replace(r, note="not measured: no CUDA device") for r in (speed, roofline, graphs, memory)]
    card = torch.cuda.get_device_name()
    with torch.no_grad():
        stack = CenterPivotStack(CHANNELS).to("cuda", torch.bfloat16)
        x = _grid(CHANNELS[0], side).to("cuda", torch.bfloat16)
        slow, fast = _medians([partial(_stack, x, stack), partial(stack, x)], rounds, _cuda_milliseconds)
        speed = replace(speed, found=slow / fast, note=f"{slow:.3f} → {fast:.3f} ms, {card}")

        layer = CenterPivotConv4d(16, 16, 3, activation="relu").to("cuda", torch.bfloat16)
        x = _grid(16, side).to("cuda", torch.bfloat16)
        y = torch.empty_like(x)
        ours, copy = _medians([partial(layer, x), partial(y.copy_, x)], rounds, _cuda_milliseconds)
        roofline = replace(roofline, found=ours / copy, note=f"{ours:.3f} ms, copy {copy:.3f} ms, {card}")

        reference = partial(center_pivot_conv4d, x, *layer.as_layer()[:3], activation="relu", backend="reference")
        high, low = _cuda_peak(reference), _cuda_peak(partial(layer, x))
        memory = replace(memory, found=low / high, note=f"{high / 2**20:.0f} → {low / 2**20:.0f} MB, {card}")

        x = _grid(CHANNELS[0], graph_side, batch=8).to("cuda", torch.bfloat16)
        replays = [_graphed(run).replay for run in (partial(_stack, x, stack), partial(stack, x))]
        slow, fast = _medians(replays, rounds, _cuda_milliseconds)
        graphs = replace(graphs, found=slow / fast, note=f"{slow:.3f} → {fast:.3f} ms, {card}")
    return [speed, roofline, graphs, memory]


def _cuda_milliseconds(run: Run) -> float:
    """Between CUDA events."""
    start, end = _event(), _event()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    elapsed: float = start.elapsed_time(end)
    return elapsed


def _event() -> torch.cuda.Event:
    make: Callable[..., torch.cuda.Event] = torch.cuda.Event  # torch leaves it untyped
    return make(enable_timing=True)


def _cuda_peak(run: Run) -> int:
    run()  # compile and warm up
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _graphed(run: Run) -> torch.cuda.CUDAGraph:
    make: Callable[[], torch.cuda.Stream] = torch.cuda.Stream  # torch leaves it untyped
    side = make()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # a graph may only capture what has run before, on another stream
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


# --- the table -------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    shown = [(r.name, "–" if r.found is None else f"{r.found:.2f}×", r.note) for r in rows]
    return markdown_table(["measured", "ratio", ""], shown)


def environment() -> str:
    """The machine in one line."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    return f"{processor()} ({torch.backends.cpu.get_cpu_capability()}), one thread; torch {torch.__version__}; {card}"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kbc bench`."""
    add = parser.add_argument
    what = ("conv4d", "pipeline")
    add("what", nargs="?", choices=what, default="conv4d", help="what to time (default: conv4d)")
    add("--quick", action="store_true", help="as little as possible, to see that it runs; no result")
    add("--json", metavar="FILE", help="write the rows as JSON there; - prints them instead of the table")
    add("--peak", choices=("reference", "torch"), help=argparse.SUPPRESS)
    add("--side", type=int, default=30, help=argparse.SUPPRESS)
    bench_pipeline.configure(parser)


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    if args.peak:
        print(_peak_bytes(args.peak, args.side))
        return 0
    if args.json not in (None, "-"):
        output_file(args.json, "json")  # before minutes of work
    if args.what == "pipeline":
        with _one_thread():
            costs = bench_pipeline.measure(args)
        rows, text = [asdict(cost) for cost in costs], bench_pipeline.table(costs)
    else:
        found = bench_conv4d(quick=args.quick)
        rows, text = [asdict(row) for row in found], table(found)
    if args.json is not None:
        write_json({"environment": environment(), "rows": rows}, args.json, "json")
    if args.json != "-":
        print(environment(), text, sep="\n\n")
    return 0
