"""What the adapters' tests share: photograph-like scenes, and a `Layer` of five checkouts with checkpoints."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from kbc.images import require_cv2
from kbc.types import Pair

NAMES = ("chm", "cats", "dhpf", "scot", "mmnet")
FOLDERS = {"chm": "chm", "cats": "cats", "dhpf": "dhpf", "scot": "SCOT", "mmnet": "MMNet"}
REFERENCE = Path(__file__).with_name("reference.py")
SMALLER: dict[str, dict[str, Any]] = {"scot": {"layers": (4, 5)}, "dhpf": {"img_side": 120}}
"""The stand-ins at a quarter of the cells or fewer: the same code paths in less time."""


def scene(seed: int, height: int, width: int) -> np.ndarray:
    """Coloured noise on several scales: every place looks different, like a photograph's texture."""
    random = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cell in (8, 16, 40, 90):
        coarse = random.uniform(-1, 1, (height // cell + 2, width // cell + 2, 3))
        total += require_cv2().resize(coarse, (width, height), interpolation=2)
    return np.clip(128 + 60 * total, 0, 255).astype(np.uint8)


def example() -> Pair:
    """Two unlike images of unlike sizes; fractional points, corners included."""
    random = np.random.default_rng(3)
    points = random.uniform([4, 4], [290, 190], (9, 2))
    corners = [[0, 0], [299, 0], [299, 199]]
    return Pair(scene(1, 200, 300), scene(2, 260, 330), np.concatenate([points, corners]))


def shifted(size_hw: tuple[int, int], shift: tuple[int, int], image: np.ndarray | None = None) -> Pair:
    """One picture seen through two windows: every target point is the source point plus `shift` (x, y)."""
    height, width = size_hw
    dx, dy = shift
    whole = scene(7, height + abs(dy), width + abs(dx)) if image is None else image
    cut = [(max(dy, 0), max(dx, 0)), (max(-dy, 0), max(-dx, 0))]
    source, target = (np.ascontiguousarray(whole[y : y + height, x : x + width]) for y, x in cut)
    x, y = np.meshgrid(np.linspace(0.3, 0.7, 4) * width, np.linspace(0.3, 0.7, 4) * height)
    points = np.stack([x.ravel(), y.ravel()], axis=1) - np.array(shift) / 2
    return Pair(source, target, points)


class Layer:
    """Five checkouts, checkpoints of random weights for them, and upstream's own answers.

    Attributes:
        root: holds the checkouts, named as in KBC_UPSTREAM.
        files: holds the checkpoints.
        more: options per matcher, e.g. a smaller size.
        said: what `run` found, kept here by the fixtures.
    """

    def __init__(self, root: Path, files: Path, more: dict[str, dict[str, Any]]) -> None:
        self.root, self.files, self.more = root, files, more
        self.said: dict[tuple[str, str], dict[str, Any]] = {}

    def checkout(self, name: str) -> Path:
        return self.root / FOLDERS[name]

    def file(self, name: str, kind: str = "checkpoint") -> Path:
        return self.files / f"{name}-{kind}.pth"

    def options(self, name: str, **more: Any) -> dict[str, Any]:
        """What `load_matcher(name, …)` needs, with upstream's exact behaviour."""
        options: dict[str, Any] = {"checkout": self.checkout(name), "checkpoint": self.file(name)}
        if name == "scot":
            options |= {"checkpoint": self.file(name, "imagenet"), "preset": "pf"}
        elif name == "dhpf":
            options["backbone_weights"] = self.file(name, "imagenet")
        elif name == "cats":
            options["truncate"] = True
        return options | self.more.get(name, {}) | more

    def load(self, name: str, **more: Any) -> Any:
        return importlib.import_module(f"kbc_adapters.{name}").load(**self.options(name, **more))

    def job(self, name: str, **rest: Any) -> dict[str, Any]:
        layers = self.more.get("scot", {}).get("layers", (2, 22, 24, 25, 27, 28, 29))
        options = {"layers": str(layers), "exp2": 0.5, "side": self.more.get("dhpf", {}).get("img_side", 240)}
        files = {kind: str(self.file(name, kind)) for kind in ("checkpoint", "imagenet")}
        return {"name": name, "checkout": str(self.checkout(name)), "options": options, **files, **rest}

    def run(self, pairs: dict[str, Pair], names: tuple[str, ...] = NAMES) -> dict[tuple[str, str], dict[str, Any]]:
        """Upstream in a process of its own, without kbc: make the checkpoints and predict.

        Returns:
            (matcher, pair) → upstream's keypoints (N, 2) in the target's pixels, and its seconds.
        """
        files = {label: self.files / f"{label}.npz" for label in pairs}
        for label, pair in pairs.items():
            np.savez(files[label], source=pair.source, target=pair.target, keypoints=pair.keypoints)
        jobs = []
        for name in names:
            jobs.append(self.job(name, do="make", pair=str(next(iter(files.values())))))
            for label, file in files.items():
                jobs.append(self.job(name, do="predict", pair=str(file), out=str(self.files / f"{name}-{label}.npz")))
        path = self.files / "jobs.json"
        path.write_text(json.dumps(jobs))
        done = subprocess.run([sys.executable, str(REFERENCE), str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = {}
        for label in pairs:
            for name in names:
                with np.load(self.files / f"{name}-{label}.npz") as out:
                    found[name, label] = {"keypoints": out["keypoints"], "seconds": float(out["seconds"])}
        return found


def many_points() -> Pair:
    """More points than DHPF takes at once."""
    points = np.random.default_rng(5).uniform([0, 0], [299, 199], (430, 2))
    return Pair(example().source, example().target, points)
