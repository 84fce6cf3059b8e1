from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kbc.kbcnet.config import ModelConfig
from kbc.kbcnet.model import Network
from kbc.kbcnet.training.recipe import Recipe

SMALL: dict[str, Any] = {
    "backbone": "tiny",
    "layers": (1, 2, 3),
    "hypercolumn": (2, 3),
    "input_size": 64,
    "widths": (8, 8, 16),
    "blocks": (1, 1, 1),
    "csfa_dim": 16,
    "csfa_heads": 2,
    "decoder": (4,),
}


def small_config(**changes: Any) -> ModelConfig:
    return ModelConfig(**(SMALL | changes))


def shaken(network: Network, seed: int = 0) -> Network:
    """The network with all weights moved, so that no part is at its zero start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name != "log_temperature":
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network.eval()


def turnable(module: torch.nn.Module) -> torch.nn.Module:
    """The same with kernels that look alike upside down: an image that is turned by 180° gives maps that are turned."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.Conv2d):
                part.weight.copy_((part.weight + part.weight.flip(-1, -2)) / 2)
    return module.eval()


def small_recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "small",
        "model": SMALL,
        "data": [{"kind": "scenes", "views": {"size": 64}, "heights": [64]}],
        "steps": 6,
        "batch": 4,
        "decoder_start": 0.5,
        "validate_every": 3,
        "validate_pairs": 4,
        "save_every": 2,
    }
    return Recipe.model_validate(values | changes)


def blob_image(points: np.ndarray, size_hw: tuple[int, int], radius: float = 2.0) -> np.ndarray:
    """White Gaussian blobs on black at sub-pixel places."""
    y, x = np.mgrid[: size_hw[0], : size_hw[1]]
    image = np.zeros(size_hw)
    for px, py in points:
        image = np.maximum(image, np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * radius**2)))
    return np.repeat((image * 255).round().astype(np.uint8)[:, :, None], 3, axis=2)


def centroid(image: np.ndarray, near: np.ndarray, reach: int) -> np.ndarray:
    """Centre of mass (x, y) of the light around a place."""
    grey = image[:, :, 0].astype(float)
    x0, y0 = (max(int(v) - reach, 0) for v in near)
    part = grey[y0 : int(near[1]) + reach + 1, x0 : int(near[0]) + reach + 1]
    part = np.where(part > 60, part, 0)
    y, x = np.mgrid[: part.shape[0], : part.shape[1]]
    return np.array([(x * part).sum(), (y * part).sum()]) / part.sum() + (x0, y0)
