"""Pairs whose answer is known exactly: does KBC keep what the matcher had right?

    python tests/benchmarks/exact.py --scenes 200 --weights resnet18.pth --out exact.md

Scenes are textures of 240×320 px, with eight points drawn in a square of 20 to 80 px. An answer is right within one
cell of what the matcher saw: through its window, or of the whole image where there is none or the answer is not from
there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import kbc
from tests.conftest import draw_scene

SIZE_HW = (240, 320)
BUDGETS = ("fast", "balanced", "thorough")
MATCHERS = ("hog", "function", "resnet18", "kbcnet")
Case = tuple[kbc.Pair, np.ndarray]


def identity(seed: int) -> Case:
    """The same picture on both sides."""
    scene = draw_scene(seed, SIZE_HW)
    points = _points(seed)
    return kbc.Pair(scene, scene, points), points


def mirrored(seed: int) -> Case:
    """The picture and its mirror image."""
    scene = draw_scene(seed, SIZE_HW)
    points = _points(seed)
    return kbc.Pair(scene, scene[:, ::-1].copy(), points), np.stack([SIZE_HW[1] - 1 - points[:, 0], points[:, 1]], 1)


def shifted(seed: int) -> Case:
    """Two cut-outs of one larger picture."""
    step = np.random.default_rng(seed).integers(5, 45, 2)
    scene = draw_scene(seed, (SIZE_HW[0] + 50, SIZE_HW[1] + 50))
    target = scene[step[1] : step[1] + SIZE_HW[0], step[0] : step[0] + SIZE_HW[1]]
    points = np.maximum(_points(seed), step + 8)
    return kbc.Pair(scene[: SIZE_HW[0], : SIZE_HW[1]].copy(), target.copy(), points), points - step


def pasted(seed: int) -> Case:
    """A square around the points, pasted elsewhere into another picture."""
    rng = np.random.default_rng(seed)
    source, target, points = draw_scene(seed, SIZE_HW), draw_scene(seed + 100_000, SIZE_HW), _points(seed)
    first = np.maximum(np.floor(points.min(0)).astype(int) - 12, 0)
    last = np.minimum(np.ceil(points.max(0)).astype(int) + 13, SIZE_HW[::-1])
    place = rng.integers((0, 0), np.array(SIZE_HW[::-1]) - (last - first))
    end = place + last - first
    target[place[1] : end[1], place[0] : end[0]] = source[first[1] : last[1], first[0] : last[0]]
    return kbc.Pair(source, target, points), points + place - first


CASES: dict[str, Callable[[int], Case]] = {
    "identity": identity, "mirrored": mirrored, "shifted": shifted, "pasted": pasted,
}  # fmt: skip


def _points(seed: int) -> np.ndarray:
    """(8, 2) in a square of 20 to 80 px somewhere in the picture, at least 8 px from its border."""
    rng = np.random.default_rng(seed)
    side = rng.uniform(20, 80)
    corner = rng.uniform((8, 8), np.array(SIZE_HW[::-1]) - side - 8)
    return np.round(corner + rng.uniform(0, side, (8, 2)), 1)


@dataclass(frozen=True)
class Kept:
    """What became of the points of one pair, (8,) each: whether the coarse answer and KBC's lie within one cell."""

    coarse: np.ndarray
    kbc: np.ndarray

    @property
    def moved(self) -> np.ndarray:
        """Where a right answer was made a wrong one."""
        return self.coarse & ~self.kbc


def kept(result: Any, truth: np.ndarray, grid: int) -> Kept:
    """Answers within one cell of what the matcher saw; KBC's also where they are as near as the coarse ones.

    Args:
        grid: cells along a side of what the matcher sees.
    """
    error = np.linalg.norm(result.keypoints - truth, axis=1)
    coarse = np.linalg.norm(result.coarse - truth, axis=1)
    whole = max(SIZE_HW) / grid
    cell = whole if result.target_window is None else result.target_window.box.longest / grid
    cells = np.where([origin == "fine" for origin in result.origin], cell, whole)
    return Kept(coarse <= whole, error <= np.maximum(cells, np.where(coarse <= whole, coarse, 0)))


def matchers(names: Sequence[str], weights: Path | None) -> dict[str, tuple[Any, int]]:
    """Name → matcher and the cells along a side of what it sees."""
    hog = kbc.load_matcher("hog")

    def function(source: np.ndarray, target: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        return np.asarray(hog.match([kbc.Pair(source, target, keypoints)])[0].keypoints)

    makers: dict[str, Callable[[], tuple[Any, int]]] = {
        "hog": lambda: (hog, 32),
        "function": lambda: (kbc.as_matcher(function), 32),  # hog without its maps: 256 px in cells of 8
        "resnet18": lambda: (kbc.load_matcher("resnet18", weights=str(weights)), 16),
        "kbcnet": lambda: (kbc.load_matcher("kbcnet"), 10),
    }
    return {name: makers[name]() for name in names}


def table(found: dict[tuple[str, str, str], list[Kept]]) -> str:
    """Markdown; shares in per cent of all points."""
    lines = [
        "| matcher | budget | pair | scenes | coarse within a cell | KBC within a cell | right ones moved |",
        "|---|---|---|---|---|---|---|",
    ]
    for names, scenes in found.items():
        shares = [100 * np.mean([getattr(one, name) for one in scenes]) for name in ("coarse", "kbc", "moved")]
        lines.append(f"| {' | '.join(names)} | {len(scenes)} | {' | '.join(f'{share:.1f}' for share in shares)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--matchers", default=",".join(MATCHERS))
    parser.add_argument("--weights", type=Path, help="of the ResNet-18")
    parser.add_argument("--out", type=Path, required=True, help="the table, written anew after every scene")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    chosen = matchers(args.matchers.split(","), args.weights)
    found: dict[tuple[str, str, str], list[Kept]] = {
        (name, budget, case): [] for name in chosen for case in CASES for budget in BUDGETS
    }
    for seed in range(args.scenes):
        for label, case in CASES.items():
            pair, truth = case(seed)
            for name, (matcher, grid) in chosen.items():
                for budget in BUDGETS:
                    result = kbc.wrap(matcher, budget=budget).match([pair])[0]
                    found[name, budget, label].append(kept(result, truth, grid))
        args.out.write_text(table(found))


if __name__ == "__main__":
    main()
