"""What changes while a run trains, and the file that it goes on from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kbc import __version__
from kbc.errors import DataError, InputError, must_be
from kbc.kbcnet.backbone import resnet_weights
from kbc.kbcnet.checkpoint import backbone_digest, empty_network, fill, put_backbone, save_checkpoint
from kbc.kbcnet.model import Network
from kbc.kbcnet.training.objective import Objective
from kbc.kbcnet.training.recipe import Recipe
from kbc.kbcnet.training.sources import expanded
from kbc.weights import load_metadata, load_safetensors, save_safetensors, tensors_digest

_WHOLE, _ANEW = "a folder with a whole last.safetensors", "remove it to begin anew"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class State:
    """The weights, their mean, AdamW's moments, how far the run is, and what validation said last.

    Args:
        network: with its initial weights, on the device.
        objective: the network with its loss, on the device; its parameters are what is trained.
        recipe: learning rates.
        content: `Mixture.content` of what is trained on.

    Attributes:
        trained: name → parameter, those with a gradient.
        initial, ema: name → value at the start, and the mean over the steps.
        backbone: digest of the weights that the recipe names by their file; "" without.
        step: how many are done.
        pck: per cent, NaN before the first validation.
    """

    def __init__(self, network: Network, objective: Objective, recipe: Recipe, content: str = "") -> None:
        self.network, self.objective, self.recipe, self.content = network, objective, recipe, content
        self.trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(_groups(self.trained, recipe), betas=(0.9, 0.98))
        self.initial = {name: p.detach().clone() for name, p in self.trained.items()}
        self.ema = {name: value.clone() for name, value in self.initial.items()}
        self.backbone = backbone_digest(network) if recipe.backbone_weights else ""
        self.step, self.pck = 0, math.nan

    def set_rate(self, share: float) -> None:
        """Every group's learning rate as a share of its peak."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share

    @torch.no_grad()
    def advance(self) -> None:
        """A step of AdamW along the gradients, and of the mean after it; early on the mean forgets faster."""
        self.optimizer.step()
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        for name, parameter in self.trained.items():
            self.ema[name].lerp_(parameter, 1 - decay)
        self.step += 1

    def result(self) -> dict[str, Tensor]:
        """The weights that the run would give now: between the initial and the mean ones, see `Recipe.blend`."""
        return {name: torch.lerp(self.initial[name], mean, self.recipe.blend) for name, mean in self.ema.items()}

    @contextmanager
    def holding_result(self) -> Iterator[None]:
        """The network has the weights of `result` within the block."""
        kept = {name: p.detach().clone() for name, p in self.trained.items()}
        self._put(self.result())
        try:
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.trained.items():
            parameter.copy_(values[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Everything but step and pck: "model/…", "ema/…", and AdamW's "step/…", "exp_avg/…", "exp_avg_sq/…"."""
        tensors = {f"ema/{name}": value for name, value in self.ema.items()}
        for name, parameter in self.trained.items():
            tensors[f"model/{name}"] = parameter
            tensors |= {f"{key}/{name}": value for key, value in self.optimizer.state.get(parameter, {}).items()}
        return tensors

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`.

        Raises:
            KeyError, RuntimeError: tensors are missing or of another shape.
        """
        self._put({name: tensors[f"model/{name}"] for name in self.trained})
        for name, parameter in self.trained.items():
            self.ema[name].copy_(tensors[f"ema/{name}"])
            if f"exp_avg/{name}" in tensors:
                moments = {key: tensors[f"{key}/{name}"] for key in _MOMENTS}
                self.optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device) for key, value in moments.items()
                }


def save(state: State, path: Path) -> None:
    """Everything to go on from, in one file that appears whole or not at all."""
    tensors = state.state_dict()
    about = {"step": str(state.step), "recipe": state.recipe.digest(), "pck": str(state.pck)}
    about |= {"kbc": __version__, "backbone": state.backbone, "content": state.content}
    save_safetensors(path, tensors, about | {"digest": tensors_digest(tensors)})


Saved = tuple[dict[str, str], dict[str, Tensor]]
"""What `save` wrote: what it says of the run, and the tensors."""


def read(path: Path) -> Saved | None:
    """What `save` wrote there; None where nothing is.

    Raises:
        DataError: something else is.
    """
    try:
        return (load_metadata(path), load_safetensors(path)) if path.is_file() else None
    except DataError as error:
        raise DataError(must_be("out", _WHOLE, str(error).partition(", received ")[2], f"or {_ANEW}")) from error


def restore(state: State, saved: Saved, path: Path) -> None:
    """Go on from what was saved.

    Args:
        path: where it lies, for messages.

    Raises:
        InputError: it is of another recipe, by another version of kbc, on other backbone weights or photographs.
        DataError: it is not whole.
    """
    about, tensors = saved
    now = {"recipe": state.recipe.digest(), "kbc": __version__, "backbone": state.backbone, "content": state.content}
    names = {
        "recipe": "recipe",
        "kbc": "version of kbc",
        "backbone": "backbone weights",
        "content": "photographs and points",
    }
    for key, name in names.items():
        if about.get(key, now[key] if key != "recipe" else None) != now[key]:  # files of before have the recipe alone
            hint = f"choose another --out, or remove {path}"
            raise InputError(must_be("out", f"a folder of a run under the same {name}", repr(str(path.parent)), hint))
    try:
        state.step, state.pck = int(about["step"]), float(about.get("pck", "nan"))
        if not 0 <= state.step <= state.recipe.steps:
            raise ValueError(f"it is at step {state.step} of {state.recipe.steps}")
        if about.get("digest") != tensors_digest(tensors):
            raise ValueError("its values are not those that were written")
        counted = max((int(value) for name, value in tensors.items() if name.startswith("step/")), default=0)
        if counted != state.step:
            raise ValueError(f"it says step {state.step}, and AdamW has done {counted}")
        state.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError) as error:
        raise DataError(must_be("out", _WHOLE, f"{path} ({error})", _ANEW)) from error


def finish(state: State, path: Path) -> None:
    """Write the checkpoint that the run is for; a frozen backbone stays out of it."""
    recipe, network = state.recipe, state.network
    learned = {
        name.removeprefix("network."): value for name, value in state.result().items() if name.startswith("network.")
    }
    result = empty_network(recipe.model, learned_coarse=network.backbone.learned_coarse)
    fill(result, network.state_dict() | learned, str(path))
    about = {"recipe": recipe.model_dump(mode="json"), "steps": state.step}
    if not math.isnan(state.pck):
        about["validation_pck"] = round(state.pck, 2)
    save_checkpoint(path, result, training=about, with_backbone=not recipe.frozen_backbone)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Share of the peak rate at a step: a linear rise, then a cosine to zero."""
    at = (step + 1) / recipe.steps
    if at < recipe.warmup:
        return at / recipe.warmup
    return 0.5 * (1 + math.cos(math.pi * (at - recipe.warmup) / (1 - recipe.warmup)))


def initial_network(recipe: Recipe, environment: dict[str, str]) -> Network:
    """The network before the first step: random from the seed, or with a ResNet's weights.

    Raises:
        InputError, DataError: weights that are not there or not a ResNet's.
    """
    if recipe.backbone_weights is None:
        return empty_network(recipe.model, seed=recipe.seed)
    path = expanded(recipe.backbone_weights, environment)
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
