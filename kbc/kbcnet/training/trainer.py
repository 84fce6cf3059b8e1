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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kbc.errors import DataError, InputError, KBCError, must_be
from kbc.files import output_folder
from kbc.kbcnet.backbone import normalised, resnet_weights
from kbc.kbcnet.checkpoint import empty_network, fill, put_backbone, save_checkpoint
from kbc.kbcnet.model import Network, rows_at
from kbc.kbcnet.training.logs import Log, progress_bar, show
from kbc.kbcnet.training.objective import cell_loss, end_point_loss
from kbc.kbcnet.training.pool import FeaturePool
from kbc.kbcnet.training.recipe import Recipe
from kbc.kbcnet.training.sources import HELD_OUT, PairSource, pair_source
from kbc.tensors import soft_peak, usable_device
from kbc.weights import load_metadata, load_safetensors, save_safetensors


class TrainingError(KBCError, RuntimeError):
    """Training cannot go on: the loss or a gradient is not finite."""


@dataclass(frozen=True)
class Options:
    """What a run may choose beside the recipe. Of these only `device`, `amp` and `compile` change the weights: other
    arithmetic rounds otherwise, bfloat16 most of all.

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


class Mixture(Dataset[dict[str, Tensor]]):
    """All of a recipe's training pairs by index, as tensors."""

    def __init__(self, recipe: Recipe, environment: dict[str, str]) -> None:
        self._made_from = (recipe, environment)
        early: list[PairSource] = [pair_source(data, environment) for data in recipe.data]
        late = early if recipe.late_size is None else [pair_source(data, environment) for data in recipe.late_data]
        self.sources, self.first_late = (early, late), recipe.first_late
        self.seed, self.shares = recipe.seed, recipe.shares
        self.names = [name for source in early for name in source.names]
        self.first = np.cumsum([0, *(len(source.names) for source in early)])

    def __reduce__(self) -> tuple[Any, ...]:
        """Worker processes open the data anew instead of receiving caches and locks."""
        return (Mixture, self._made_from)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Pair `index`: source and target (3, S, S) uint8; keypoints and truth (K, 2) float32, NaN where undefined;
        parts (K,) int64, which named point of `names` each is, −1 where it has no name.
        """
        at = 0
        sources = self.sources[index >= self.first_late]
        if len(sources) > 1:  # two by two: the pairs of a recipe stay what they were
            at = int(np.random.default_rng([self.seed, index // 2, 3]).choice(len(sources), p=self.shares))
        sample = sources[at](index)
        return {
            "source": torch.from_numpy(np.ascontiguousarray(sample.source.transpose(2, 0, 1))),
            "target": torch.from_numpy(np.ascontiguousarray(sample.target.transpose(2, 0, 1))),
            "keypoints": torch.from_numpy(sample.keypoints).float(),
            "truth": torch.from_numpy(sample.target_keypoints).float(),
            "parts": torch.from_numpy(np.where(sample.parts >= 0, sample.parts + self.first[at], -1)),
        }


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
    if isinstance(options.workers, bool) or not isinstance(options.workers, int) or options.workers < 0:
        raise InputError(must_be("workers", "a whole number, not negative", repr(options.workers)))
    with _processes(options.device) as (rank, world):
        return _Run(recipe, options, environment, rank, world).run()


class _processes:
    """Joins the process group that torchrun announces, or none."""

    def __init__(self, device: str) -> None:
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.device = usable_device(_local_device(device))
        if self.world > 1 and device not in ("cpu", "cuda"):
            raise InputError(must_be("device", "'cpu' or 'cuda' under torchrun", repr(device)))

    def __enter__(self) -> tuple[int, int]:
        if self.world == 1:
            return 0, 1
        if self.device.type == "cuda":  # NCCL's own buffers would all lie on device 0
            torch.cuda.set_device(self.device)
        torch.distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        return torch.distributed.get_rank(), self.world

    def __exit__(self, *_: object) -> None:
        if self.world > 1:
            torch.distributed.destroy_process_group()


class Objective(nn.Module):
    """The network and its loss in one module, as distributed training wants it.

    Args:
        network: what is trained.
        recipe: weights of the terms.
        names: how many named points there are: each has a prototype, a feature that is learned along.
        compiled: run the network through torch.compile.
    """

    def __init__(self, network: Network, recipe: Recipe, names: int, compiled: bool = False) -> None:
        super().__init__()
        self.network, self.recipe = network, recipe
        self.run = torch.compile(network) if compiled else network
        start = torch.randn(names, network.width, generator=torch.Generator().manual_seed(recipe.seed))
        self.parts = nn.Parameter(start * 0.1, requires_grad=recipe.part_weight > 0)

    def forward(self, batch: dict[str, Any], decode: bool) -> dict[str, Tensor]:
        """The terms of the loss and their weighted sum "loss".

        Args:
            batch: source and target as `Network.forward` takes them, keypoints and truth (B, K, 2) in input pixels.
            decode: run the decoder.
        """
        recipe, network = self.recipe, self.network
        scores = self.run(batch["source"], batch["target"], decode)
        plain, refined = scores.plain, scores.refined
        with torch.autocast(refined.device.type, enabled=False):
            grid, temperature = network.grid, network.temperature
            source, truth = grid.to_cells(batch["keypoints"]), grid.to_cells(batch["truth"])
            known = ~(source.isnan() | truth.isnan()).any(-1)
            rows = rows_at(refined, source)
            forth = cell_loss(rows_at(plain, source), truth, known, temperature)
            back = cell_loss(rows_at(plain.permute(0, 3, 4, 1, 2), truth), source, known, temperature)
            terms = {
                "refined": cell_loss(rows, truth, known, temperature),
                "plain": forth + back,
                "end_point": end_point_loss(rows, truth, known, temperature, network.config.reach),
            }
            total = terms["refined"] + recipe.plain_weight * terms["plain"]
            total = total + recipe.end_point_weight * terms["end_point"]
            if recipe.part_weight:
                named = known & (batch["parts"] >= 0)
                wanted = nn.functional.normalize(self.parts, dim=1)[batch["parts"].clamp_min(0)]
                terms["parts"] = torch.stack(
                    [
                        cell_loss(torch.einsum("bkc,bchw->bkhw", wanted, maps.float()), at, named, temperature)
                        for maps, at in ((scores.source, source), (scores.target, truth))
                    ]
                ).sum()
                total = total + recipe.part_weight * terms["parts"]
            return {"loss": total} | terms


class _Run:
    def __init__(self, recipe: Recipe, options: Options, environment: dict[str, str], rank: int, world: int) -> None:
        if recipe.batch % world:
            raise InputError(must_be("batch", f"a multiple of the {world} processes", recipe.batch))
        self.recipe, self.options, self.rank, self.world = recipe, options, rank, world
        self.device = torch.device(_local_device(options.device))
        self.network = _initial(recipe, environment).to(self.device)
        self.mixture = Mixture(recipe, environment)
        self.objective: nn.Module = Objective(self.network, recipe, len(self.mixture.names), options.compile)
        self.objective.to(self.device)
        self.trained = {name: p for name, p in self.objective.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(_groups(self.trained, recipe), betas=(0.9, 0.98))
        self.initial = {name: p.detach().clone() for name, p in self.trained.items()}
        self.ema = {name: value.clone() for name, value in self.initial.items()}
        self.step, self.pck = 0, math.nan
        if rank == 0:
            for name, folder in (("out", options.out), ("cache", options.cache)):
                if folder is not None:
                    output_folder(folder, name)
        self.last = options.out / "last.safetensors"
        self._resume()
        if world > 1:
            # No gradient: the decoder before `decoder_start`; without CSFA a layer that is in no hypercolumn.
            unused = recipe.decoder_start > 0 or not recipe.model.csfa
            self.objective = nn.parallel.DistributedDataParallel(self.objective, find_unused_parameters=unused)
        self.held_out: list[dict[str, Any]] = []
        if rank == 0:
            pairs = [self.mixture[HELD_OUT + i] for i in range(recipe.validate_pairs)]
            self.held_out = [torch.utils.data.default_collate(pairs[i : i + 8]) for i in range(0, len(pairs), 8)]
        self.pool: FeaturePool | None = None

    def run(self) -> Path:
        recipe, options = self.recipe, self.options
        end = min(recipe.steps, options.stop_after or recipe.steps)
        log = Log(options.out, self.step, options.tensorboard) if self.rank == 0 else None
        if recipe.pool is not None and recipe.frozen_backbone:
            self.pool = FeaturePool.of(self.network, self.mixture, recipe, options.cache, options.progress)
        bar = progress_bar(range(self.step, end), options.progress and self.rank == 0)
        started = time.monotonic()
        for batch, _ in zip(self._batches(self.step, end), bar, strict=True):
            values = self._update(batch)
            self.step += 1
            if self.rank == 0 and recipe.validate_pairs and self._due(recipe.validate_every):
                self.pck = self.validate()
            if log is not None:
                values |= {"pck": self.pck, "seconds": time.monotonic() - started}
                log.row(self.step, values)
                show(bar, {"loss": values["loss"], "pck": self.pck})
            if self.rank == 0 and (self._due(recipe.save_every) or self.step == end):
                self._save()
        if log is not None:
            log.close()
        if end < recipe.steps:
            return self.last
        result = options.out / f"{recipe.name}.safetensors"
        if self.rank == 0:
            self._finish(result)
        if self.world > 1:
            torch.distributed.barrier()
        return result

    def _update(self, batch: dict[str, Any]) -> dict[str, float]:
        recipe = self.recipe
        rate = learning_rate(recipe, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        decode = self.step >= recipe.decoder_start * recipe.steps
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.amp):
            terms: dict[str, Tensor] = self.objective(batch, decode)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.trained.values(), recipe.clip)
        if not bool(torch.isfinite(terms["loss"]) & torch.isfinite(norm)):
            raise TrainingError(
                f"step {self.step}: loss {float(terms['loss'].detach())}, gradient norm {float(norm)}; lower `lr`, "
                f"or train without --amp. {self.last} holds the last good state"
            )
        self.optimizer.step()
        decay = min(recipe.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, parameter in self.trained.items():
                self.ema[name].lerp_(parameter, 1 - decay)
        values = {name: float(term.detach()) for name, term in terms.items()}
        return values | {
            "grad": float(norm),
            "lr": rate * recipe.lr,
            "temperature": float(self.network.temperature.detach()),
        }

    @torch.no_grad()
    def validate(self) -> float:
        """PCK@0.1 (of the longest side of the true points' box) of the resulting weights on held-out pairs, percent."""
        kept = {name: p.detach().clone() for name, p in self.trained.items()}
        self._put(self._result())
        right = total = 0
        for part in self.held_out:
            batch = self._to_device(part)
            scores = self.network(batch["source"], batch["target"])
            rows = rows_at(scores.refined, self.network.grid.to_cells(batch["keypoints"]))
            config = self.network.config
            cells, _ = soft_peak(rows.flatten(0, 1), config.reach, float(self.network.temperature))
            found = self.network.grid.to_pixels(cells).view_as(batch["truth"])
            truth = torch.where(batch["keypoints"].isnan(), torch.nan, batch["truth"])
            known = ~truth.isnan().any(-1)
            low = truth.nan_to_num(torch.inf).amin(1)
            high = truth.nan_to_num(-torch.inf).amax(1)
            bound = 0.1 * (high - low).amax(-1, keepdim=True)
            right += int((((found - truth).norm(dim=-1) <= bound) & known).sum())
            total += int(known.sum())
        self._put(kept)
        return 100 * right / max(total, 1)

    def _batches(self, start: int, end: int) -> Iterator[dict[str, Any]]:
        recipe = self.recipe
        share = recipe.batch // self.world
        own = slice(self.rank * share, (self.rank + 1) * share)
        chosen = [indices_of(recipe, step)[own] for step in range(start, end)]
        if self.pool is not None:
            for indices in chosen:
                yield self._to_device(self.pool.batch(indices))
            return
        loader = DataLoader(
            self.mixture,
            batch_sampler=chosen,
            num_workers=self.options.workers,
            worker_init_fn=_one_thread,
            prefetch_factor=4 if self.options.workers else None,
            # a fork inherits OpenCV's and OpenMP's thread pools without their threads and may wait for them forever
            multiprocessing_context="spawn" if self.options.workers else None,
        )
        for batch in loader:
            yield self._to_device(batch)

    def _to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        ready: dict[str, Any] = {}
        for name, value in batch.items():
            if isinstance(value, list):
                ready[name] = [level.to(self.device).float() for level in value]
            else:
                moved = value.to(self.device)
                ready[name] = normalised(moved) if moved.dtype == torch.uint8 else moved
        return ready

    def _due(self, every: int) -> bool:
        return self.step % every == 0

    def _result(self) -> dict[str, Tensor]:
        return {name: torch.lerp(self.initial[name], mean, self.recipe.blend) for name, mean in self.ema.items()}

    def _put(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(values[name])

    def _save(self) -> None:
        """Everything to go on from, in one file that appears whole or not at all."""
        tensors = {f"ema/{name}": value for name, value in self.ema.items()}
        for name, parameter in self.trained.items():
            tensors[f"model/{name}"] = parameter
            tensors |= {f"{key}/{name}": value for key, value in self.optimizer.state.get(parameter, {}).items()}
        about = {"step": str(self.step), "recipe": self.recipe.digest(), "pck": str(self.pck)}
        save_safetensors(self.last, tensors, about)

    def _resume(self) -> None:
        """Go on where process 0 finds an interrupted run; the others need not see its folder."""
        found: list[Any] = [None]
        if self.rank == 0 and self.last.is_file():
            found = [(load_metadata(self.last), load_safetensors(self.last))]
        if self.world > 1:
            torch.distributed.broadcast_object_list(found, src=0, device=self.device)
        if found[0] is None:
            return
        about, tensors = found[0]
        if about.get("recipe") != self.recipe.digest():
            hint = f"choose another --out, or remove {self.last}"
            raise InputError(
                must_be("out", "a folder of a run under the same recipe", repr(str(self.last.parent)), hint)
            )
        try:
            self.step, self.pck = int(about["step"]), float(about.get("pck", "nan"))
            for name, parameter in self.trained.items():
                with torch.no_grad():
                    parameter.copy_(tensors[f"model/{name}"])
                self.ema[name].copy_(tensors[f"ema/{name}"])
                if f"exp_avg/{name}" in tensors:
                    state = {key: tensors[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
                    self.optimizer.state[parameter] = {
                        key: value if key == "step" else value.to(self.device) for key, value in state.items()
                    }
        except (KeyError, ValueError, RuntimeError) as error:
            raise DataError(
                must_be("out", "a folder with a whole last.safetensors", f"{self.last} ({error})")
            ) from error

    def _finish(self, path: Path) -> None:
        learned = {
            name.removeprefix("network."): value
            for name, value in self._result().items()
            if name.startswith("network.")
        }
        network = empty_network(self.recipe.model, learned_coarse=self.network.backbone.learned_coarse)
        fill(network, self.network.state_dict() | learned, str(path))
        frozen = self.recipe.frozen_backbone
        about = {"recipe": self.recipe.model_dump(mode="json"), "steps": self.step}
        if not math.isnan(self.pck):
            about["validation_pck"] = round(self.pck, 2)
        save_checkpoint(path, network, training=about, with_backbone=not frozen)


def indices_of(recipe: Recipe, step: int) -> list[int]:
    """The pairs of a step: the next ones, or a draw from the pool."""
    if recipe.pool is None:
        return list(range(step * recipe.batch, (step + 1) * recipe.batch))
    return [int(i) for i in np.random.default_rng([recipe.seed, step, 1]).integers(recipe.pool, size=recipe.batch)]


def learning_rate(recipe: Recipe, step: int) -> float:
    """Share of the peak rate at a step: a linear rise, then a cosine to zero."""
    at = (step + 1) / recipe.steps
    if at < recipe.warmup:
        return at / recipe.warmup
    return 0.5 * (1 + math.cos(math.pi * (at - recipe.warmup) / (1 - recipe.warmup)))


def _initial(recipe: Recipe, environment: dict[str, str]) -> Network:
    if recipe.backbone_weights is None:
        return empty_network(recipe.model, seed=recipe.seed)
    path = recipe.backbone_weights
    if "$KBC_DATA" in path:
        if "KBC_DATA" not in environment:
            raise InputError(must_be("KBC_DATA", "set to the folder that holds data/ and weights/", "nothing"))
        path = path.replace("$KBC_DATA", environment["KBC_DATA"])
    state, learned_coarse = resnet_weights(recipe.model, path)
    network = empty_network(recipe.model, learned_coarse=learned_coarse, seed=recipe.seed)
    put_backbone(network, state)
    if recipe.frozen_backbone:
        network.backbone.network.requires_grad_(False)
    return network


def _groups(trained: dict[str, nn.Parameter], recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters by learning rate; gains, biases, the temperature and the prototypes do not decay."""
    rates = {"network.backbone.network.": recipe.backbone_lr, "network.decoder.": recipe.decoder_lr, "": recipe.lr}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        rate = next(rate for prefix, rate in rates.items() if name.startswith(prefix))
        decay = recipe.weight_decay if parameter.dim() > 1 and name != "parts" else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": p, "peak": rate, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


def _local_device(device: str) -> str:
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


def _one_thread(_: int) -> None:
    """In a worker process: one thread, for the training process needs the others."""
    from kbc.images import require_cv2

    torch.set_num_threads(1)
    require_cv2().setNumThreads(1)
