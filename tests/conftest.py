"""Shared fixtures: small drawn pictures, an oracle matcher that knows the true warp, and where real data lies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from kbc.types import Match, Pair


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    torch.set_num_threads(2)
    cv2.setNumThreads(2)


@pytest.fixture(scope="session")
def kbc_data() -> Path:
    """The folder with `data/` and `weights/`, named by KBC_DATA; tests that need it are skipped without."""
    folder = os.environ.get("KBC_DATA")
    if not folder or not (Path(folder) / "data").is_dir():
        pytest.skip("KBC_DATA names no folder with real photographs")
    return Path(folder)


def draw_scene(seed: int, size_hw: tuple[int, int] = (240, 320)) -> np.ndarray:
    """A blurred random texture, uint8 RGB, with structure at several scales."""
    rng = np.random.default_rng(seed)
    image = np.zeros((*size_hw, 3))
    for cells in (4, 9, 20, 45):
        coarse = rng.normal(size=(cells, cells, 3))
        image += cv2.resize(coarse, size_hw[::-1], interpolation=cv2.INTER_CUBIC)
    image -= image.min()
    return np.rint(image / image.max() * 255).astype(np.uint8)


class Oracle:
    """A matcher that knows the warp between two images from how they were cut: it reads places off the pixels.

    Both images carry their own coordinates as colours (a ramp), so the oracle finds, in whatever cut-out it is given,
    the point whose colours equal those the true warp asks for. Through any chain of windows its answer is right only
    if every window is where it says it is.
    """

    name = "oracle"

    def __init__(self, warp: np.ndarray, max_batch: int = 4) -> None:
        self.warp = warp  # (2, 3) affine, source point → target point, original pixels
        self.max_batch = max_batch
        self.seen = 0

    def match(self, pairs: Sequence[Pair]) -> list[Match]:
        self.seen += len(pairs)
        return [Match(self._one(pair)) for pair in pairs]

    def _one(self, pair: Pair) -> np.ndarray:
        known = ~np.isnan(pair.keypoints).any(axis=1)
        answer = np.full(pair.keypoints.shape, np.nan)
        truth = read_ramp(pair.source, pair.keypoints[known]) @ self.warp[:, :2].T + self.warp[:, 2]
        answer[known] = find_ramp(pair.target, truth)
        return answer


RAMP = 1.0
"""Pixels per grey level: images are at most 256 pixels wide, and every pixel's colour is exact."""


def ramp(size_hw: tuple[int, int]) -> np.ndarray:
    """An image whose red is x / RAMP and whose green is y / RAMP; a plane fit reads it back at sub-pixel precision."""
    ys, xs = np.mgrid[: size_hw[0], : size_hw[1]]
    image = np.stack([xs / RAMP, ys / RAMP, np.zeros_like(xs)], axis=-1)
    return np.rint(image).astype(np.uint8)


def _planes(image: np.ndarray) -> np.ndarray:
    """Least-squares (2, 3): image point → original point, from the colours of a ramp cut-out."""
    height, width = image.shape[:2]
    ys, xs = np.mgrid[:height, :width]
    rows = np.stack([xs.ravel(), ys.ravel(), np.ones(xs.size)], axis=1)
    colours = image[..., :2].reshape(-1, 2).astype(np.float64) * RAMP
    solution, *_ = np.linalg.lstsq(rows, colours, rcond=None)
    return solution.T


def read_ramp(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    plane = _planes(image)
    return points @ plane[:, :2].T + plane[:, 2]


def find_ramp(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    plane = _planes(image)
    return (truth - plane[:, 2]) @ np.linalg.inv(plane[:, :2]).T
