"""`kbc train kbcnet`: the loop. A recipe gives the same weights, killed in between or not, on one process or several.

Pair i of a run is determined by i alone and step s takes pairs s·batch … (s + 1)·batch − 1, so resuming needs nothing
but the step, the weights and AdamW's moments. The loss is a mean over pairs and nothing in the network looks across a
batch, so processes that share a batch evenly average to the gradient of the whole.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kbc.errors import InputError, KBCError, must_be, whole_number
from kbc.files import LineFile, output_file, output_folder
from kbc.kbcnet.model import Network, rows_at
from kbc.kbcnet.training.batches import Batch, Mixture, batches, held_out, indices_of, on_device, workers_told
from kbc.kbcnet.training.logs import Log
from kbc.kbcnet.training.objective import Objective
from kbc.kbcnet.training.pool import FeaturePool
from kbc.kbcnet.training.recipe import Recipe
from kbc.kbcnet.training.state import State, finish, initial_network, learning_rate, read, restore, save
from kbc.progress import progress_bar
from kbc.tensors import soft_peak, usable_device


class TrainingError(KBCError, RuntimeError):
    """Training cannot go on: the loss or a gradient is not finite."""


@dataclass(frozen=True)
class Options:
    """What a run may choose beside the recipe.

    Of these only `device`, `amp` and `compile` change the weights: other arithmetic rounds otherwise, bfloat16 most.

    Attributes:
        out: folder of the checkpoints and logs.
        device: "cpu", "cuda", "cuda:1", …; under torchrun "cpu" or "cuda", of which each process takes its own.
        workers: processes that draw training pairs; 0 draws them between the steps.
        amp: bfloat16 autocast.
        compile: run the network through torch.compile.
        tensorboard: also write TensorBoard's event files.
        progress: show a bar.
        cache: folder in which a frozen backbone's features of the pool are kept for further runs.
        stop_after: stop (and save) after this many steps in all, as if killed.
    """

    out: Path
    device: str = "cpu"
    workers: int = 1
    amp: bool = False
    compile: bool = False
    tensorboard: bool = False
    progress: bool = True
    cache: Path | None = None
    stop_after: int | None = None


def train(recipe: Recipe, options: Options, environment: dict[str, str] | None = None) -> Path:
    """Train, or go on with a run that was interrupted, and write `<out>/<name>.safetensors` and `.json`.

    Under `torchrun` every process calls this; the batch is shared between them. Process 0 alone reads and writes the
    folder, so on several machines it need not be shared.

    Args:
        environment: where KBC_DATA is looked up; `os.environ` by default.

    Returns:
        path of the checkpoint (of `last.safetensors` when `stop_after` ended the run).

    Raises:
        TrainingError: the loss or the gradient is no longer finite; the last checkpoint stays.
        InputError, DataError: data, weights, an interrupted run or a number of processes that do not fit the recipe; a
            device that is not there, folders that cannot be written to.
    """
    environment = dict(os.environ) if environment is None else environment
    if options.stop_after is not None and options.stop_after < 1:
        raise InputError(must_be("stop_after", "at least 1", options.stop_after))
    if isinstance(options.workers, bool) or not isinstance(options.workers, int) or options.workers < 0:
        raise InputError(must_be("workers", "a whole number, not negative", repr(options.workers)))
    with _Processes(options.device) as world:
        return run(recipe, options, environment, world)


class World(NamedTuple):
    """This process among those that train together.

    Attributes:
        rank, size: which one, of how many; 0 of 1 without torchrun.
        device: its own.
    """

    rank: int
    size: int
    device: torch.device


class _Processes:
    """Joins the process group that torchrun announces, or none."""

    def __init__(self, device: str) -> None:
        self.size = whole_number("WORLD_SIZE", os.environ.get("WORLD_SIZE", "1"))
        own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device
        self.device = usable_device(own)
        if self.size > 1 and device not in ("cpu", "cuda"):
            raise InputError(must_be("device", "'cpu' or 'cuda' under torchrun", repr(device)))

    def __enter__(self) -> World:
        if self.size == 1:
            return World(0, 1, self.device)
        if self.device.type == "cuda":  # NCCL's own buffers would all lie on device 0
            torch.cuda.set_device(self.device)
        torch.distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        return World(torch.distributed.get_rank(), self.size, self.device)

    def __exit__(self, *_: object) -> None:
        if self.size > 1:
            torch.distributed.destroy_process_group()


def run(recipe: Recipe, options: Options, environment: dict[str, str], world: World) -> Path:
    """`train` as one of the processes."""
    if recipe.batch % world.size:
        hint = f"for instance --set batch={world.size * max(1, recipe.batch // world.size)}"
        raise InputError(must_be("batch", f"a multiple of the {world.size} processes", recipe.batch, hint))
    network = initial_network(recipe, environment).to(world.device)
    mixture = Mixture(recipe, environment)
    objective = Objective(network, recipe, len(mixture.names), options.compile).to(world.device)
    state = State(network, objective, recipe, mixture.content())
    for name, folder in (("out", options.out), ("cache", options.cache)):
        if folder is not None and world.rank == 0:
            output_folder(folder, name)
    last, result = options.out / "last.safetensors", options.out / f"{recipe.name}.safetensors"
    with _alone(last, result) if world.rank == 0 else nullcontext():
        _resume(state, last, world)
        _loop(state, mixture, options, world, last)
        if state.step < recipe.steps:
            return last
        if world.rank == 0:
            finish(state, result)
    if world.size > 1:
        torch.distributed.barrier()
    return result


@contextmanager
def _alone(last: Path, result: Path) -> Iterator[None]:
    """Nobody else trains into the folder, and what is to be written can be: asked before the first step."""
    log = last.with_name("log.csv")
    for path in (last, result, result.with_name(f"{result.stem}.json"), log):
        output_file(path, "out")
    with LineFile(log, alone=True):
        yield


def _resume(state: State, path: Path, world: World) -> None:
    """Go on where process 0 finds an interrupted run; the others need not see its folder."""
    found: list[Any] = [read(path) if world.rank == 0 else None]
    if world.size > 1:
        torch.distributed.broadcast_object_list(found, src=0, device=world.device)
    if found[0] is not None:
        restore(state, found[0], path)


def _loop(state: State, mixture: Mixture, options: Options, world: World, last: Path) -> None:
    """Train to the last step, or to `stop_after`; process 0 validates, logs and saves."""
    recipe, first = state.recipe, world.rank == 0
    end = min(recipe.steps, options.stop_after or recipe.steps)
    objective = _shared(state.objective, recipe, world)
    validation = held_out(mixture, recipe.validate_pairs) if first else []
    log = Log(options.out, state.step, options.tensorboard) if first else None
    pool: FeaturePool | None = None
    if recipe.pool is not None and recipe.frozen_backbone:
        pool = FeaturePool.of(state.network, mixture, recipe, state.content, options.cache, options.progress)
    share = recipe.batch // world.size
    own = slice(world.rank * share, (world.rank + 1) * share)
    steps = range(state.step, end)
    started = time.monotonic()
    chosen = (indices_of(recipe, step)[own] for step in steps)  # one after the other: there may be millions
    drawn = batches(mixture, pool, chosen, options.workers)
    with progress_bar("step", options.progress and first) as show, workers_told():
        for batch in drawn:
            values = update(state, objective, on_device(batch, world.device), options.amp)
            if log is None:
                continue
            if validation and state.step % recipe.validate_every == 0:
                state.pck = validate(state, validation, world.device)
            log.row(state.step, values | {"pck": state.pck, "seconds": time.monotonic() - started})
            pck = "" if math.isnan(state.pck) else f", pck {state.pck:.1f}"
            show(state.step, end, f"loss {values['loss']:.2f}{pck}")
            if state.step % recipe.save_every == 0 or state.step == end:
                save(state, last)
    if log is not None:
        log.close()


def _shared(objective: Objective, recipe: Recipe, world: World) -> nn.Module:
    """The objective, with gradients averaged over the processes where there are several."""
    if world.size == 1:
        return objective
    # No gradient: the decoder before `decoder_start`; without CSFA a layer that is in no hypercolumn.
    unused = recipe.decoder_start > 0 or not recipe.model.csfa
    return nn.parallel.DistributedDataParallel(objective, find_unused_parameters=unused)


def update(state: State, objective: nn.Module, batch: Batch, amp: bool) -> dict[str, float]:
    """One step: loss, gradients, AdamW. Figures of the step for the log.

    Raises:
        TrainingError: the loss or the gradient is not finite.
    """
    recipe, rate = state.recipe, learning_rate(state.recipe, state.step)
    state.set_rate(rate)
    with torch.autocast(state.network.log_temperature.device.type, torch.bfloat16, enabled=amp):
        terms: dict[str, Tensor] = objective(batch, state.step >= recipe.decoder_start * recipe.steps)
    state.optimizer.zero_grad(set_to_none=True)
    terms["loss"].backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(state.trained.values(), recipe.clip)
    if not bool(torch.isfinite(terms["loss"]) & torch.isfinite(norm)):
        raise TrainingError(
            f"step {state.step}: loss {float(terms['loss'].detach())}, gradient norm {float(norm)}; lower `lr`, "
            "or train without --amp. last.safetensors holds the last good state"
        )
    state.advance()
    values = {name: float(term.detach()) for name, term in terms.items()}
    temperature = float(state.network.temperature.detach())
    return values | {"grad": float(norm), "lr": rate * recipe.lr, "temperature": temperature}


@torch.no_grad()
def validate(state: State, pairs: list[Batch], device: torch.device) -> float:
    """PCK@0.1 (of the longest side of the true points' box) of the resulting weights on held-out pairs, per cent."""
    right = total = 0
    with state.holding_result():
        for part in pairs:
            batch = on_device(part, device)
            found = answers(state.network, batch)
            truth = torch.where(batch["keypoints"].isnan(), torch.nan, batch["truth"])
            known = ~truth.isnan().any(-1)
            low, high = truth.nan_to_num(torch.inf).amin(1), truth.nan_to_num(-torch.inf).amax(1)
            bound = 0.1 * (high - low).amax(-1, keepdim=True)
            right += int((((found - truth).norm(dim=-1) <= bound) & known).sum())
            total += int(known.sum())
    return 100 * right / max(total, 1)


def answers(network: Network, batch: Batch) -> Tensor:
    """(B, K, 2): where the network puts the keypoints, input pixels."""
    scores = network(batch["source"], batch["target"])
    rows = rows_at(scores.refined, network.grid.to_cells(batch["keypoints"]))
    cells, _ = soft_peak(rows.flatten(0, 1), network.config.reach, float(network.temperature))
    return network.grid.to_pixels(cells).view_as(batch["truth"])
