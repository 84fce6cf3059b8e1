"""Damaged files of kbc's own making, and weights: what training, evaluation and transfer go on from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layouts  # type: ignore[import-not-found]
import numpy as np
import pytest
import torch
from fuzzing import EXAMPLES, Target, damaged, fuzz, odd_values  # type: ignore[import-not-found]

from kbc.data.records import Problems
from kbc.evaluation import Protocol
from kbc.evaluation.outcomes import Outcome, read_outcomes
from kbc.evaluation.plan import Plan, Run, Source
from kbc.kbcnet.checkpoint import load_checkpoint, save_checkpoint
from kbc.kbcnet.model import Network
from kbc.kbcnet.training.logs import Log
from kbc.kbcnet.training.objective import Objective
from kbc.kbcnet.training.recipe import read_recipe
from kbc.kbcnet.training.sources import read_split
from kbc.kbcnet.training.state import State, read, restore, save
from kbc.labelling import Labeller, Labels, read_labels
from kbc.labelling.detections import read_detections
from kbc.labelling.job import Job, Workers
from kbc.weights import load_weights
from tests.kbcnet.kbcnet_helpers import small_config, small_recipe

NAMES = ("safetensors", "pth", "old pth", "npz", "checkpoint", "card", "recipe", "split", "last", "log", "plan",
         "results", "detections", "detections file", "journal")  # fmt: skip
WITH_JSON = ("card", "recipe", "split", "plan", "detections", "detections file")


def weight_files(base: Path) -> dict[str, Path]:
    tensors = {"a.weight": torch.arange(24.0).reshape(4, 6), "a.bias": torch.arange(4).half(), "n": torch.tensor(3)}
    files = {name: base / f"w.{name}" for name in ("safetensors", "pth", "npz")} | {"old pth": base / "old.pth"}
    import safetensors.torch

    safetensors.torch.save_file(tensors, files["safetensors"])
    torch.save(tensors, files["pth"])
    torch.save(tensors, files["old pth"], _use_new_zipfile_serialization=False)
    np.savez(files["npz"], **{name: value.numpy() for name, value in tensors.items()})
    return files


def resumed(path: Path) -> object:
    recipe = small_recipe(steps=1)
    network = Network(recipe.model)
    saved = read(path)
    assert saved is not None
    return restore(State(network, Objective(network, recipe, 0), recipe), saved, path)


def measured(path: Path) -> object:
    outcomes = [one for one in read_outcomes(path.parent).values() if one.counts]
    return [(one.counts, one.size, one.cells((8, 8), 1.0), one.correct(Protocol())) for one in outcomes]


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    """Name → a sound file and what reads it."""
    base = tmp_path_factory.mktemp("own")
    found: dict[str, Target] = {name: (path, load_weights) for name, path in weight_files(base).items()}
    torch.manual_seed(0)
    save_checkpoint(base / "net", Network(small_config()))
    found["checkpoint"] = (base / "net.safetensors", load_checkpoint)
    found["card"] = (base / "net.json", load_checkpoint)
    recipe = small_recipe(steps=1)
    (base / "recipe.json").write_text(recipe.model_dump_json())
    found["recipe"] = (base / "recipe.json", lambda path: read_recipe(path).digest())
    (base / "split.json").write_text('{"cats": {"train": ["a.png", "b.png"], "test": ["c.png"]}}')
    found["split"] = (base / "split.json", lambda path: read_split(str(path)))
    network = Network(recipe.model)
    save(State(network, Objective(network, recipe, 0), recipe), base / "last.safetensors")
    found["last"] = (base / "last.safetensors", resumed)
    (base / "log.csv").write_text("step,loss,pck\n1,0.5,\n2,0.25,17.5\n")
    found["log"] = (base / "log.csv", lambda path: Log(path.parent, 2, tensorboard=False).close())
    found |= evaluated(base / "run", layouts.coco(base / "coco"))
    found |= transferred(layouts.coco(base / "labelled"))
    return found


def evaluated(out: Path, root: Path) -> dict[str, Target]:
    """The files in the folder of an evaluation."""
    plan = Plan((Source("coco", str(root)),), (Run("hog"),))
    datasets = plan.open()
    plan.claim(out, datasets)
    point = ((1.0, 2.0), None)
    outcomes = [Outcome("coco", "hog", str(i), i, "cow", point, point, size_hw=(40, 60)) for i in range(3)]
    (out / "pairs.jsonl").write_text("".join(one.to_json() + "\n" for one in outcomes))
    return {
        "plan": (out / "plan.json", lambda path: plan.claim(path.parent, datasets)),
        "results": (out / "pairs.jsonl", measured),
    }


def transferred(root: Path) -> dict[str, Target]:
    """The files that a transfer takes: boxes of a detector, and its journal."""
    layouts.edit_json(root / "annotations.json", lambda content: content["annotations"].pop())
    labels = read_labels(root / "annotations.json")
    image = root / "images" / "new.jpg"
    shutil.copy(root / "images" / "1.jpg", image)
    boxes = [{"image_id": "new.jpg", "bbox": [1, 2, 30, 40], "category_id": 1, "score": 0.5}]
    (root / "boxes.json").write_text(json.dumps(boxes))
    whole = {
        "images": [{"id": 1, "file_name": "new.jpg", "width": 80, "height": 60}],
        "annotations": [{"id": 1, "image_id": 1, "bbox": [1, 2, 30, 40], "category_id": 1}],
        "categories": [{"id": 1, "name": "cow"}],
    }
    (root / "whole.json").write_text(json.dumps(whole))
    detections: Callable[[Path], object] = lambda path: read_detections(path, [image], labels, Problems())  # noqa: E731
    return {
        "detections": (root / "boxes.json", detections),
        "detections file": (root / "whole.json", detections),
        "journal": journal(root, labels, image),
    }


class _StoppedError(Exception):
    pass


def journal(root: Path, labels: Labels, image: Path) -> Target:
    """The journal of a transfer that was interrupted; reading it is going on from it."""

    def stop(*_: Any) -> None:
        raise _StoppedError

    def same(source: np.ndarray, target: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        return keypoints

    workers, out = Workers(1, lambda: Labeller(labels.exemplars, same)), root / "out.json"
    with pytest.raises(_StoppedError):
        Job(labels, [image], out).run(workers, lambda _: None, stop)
    return root / "out.json.journal", lambda _: Job(labels, [], out).run(workers, lambda _: None)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_of_its_own_are_read_or_refused(targets: dict[str, Target], name: str) -> None:
    seen = fuzz(targets[name], damaged, 60, fresh=False)
    assert seen["refused"] + seen["read"] >= 60


@pytest.mark.parametrize("name", WITH_JSON)
def test_odd_values_in_files_of_its_own_are_read_or_refused(targets: dict[str, Target], name: str) -> None:
    seen = fuzz(targets[name], odd_values, 60, fresh=False)
    assert seen["refused"] + seen["read"] >= 60


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_damaged_files_of_its_own(targets: dict[str, Target], name: str) -> None:
    print(name, dict(fuzz(targets[name], damaged, EXAMPLES, fresh=True)), flush=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_JSON)
def test_many_odd_values_in_files_of_its_own(targets: dict[str, Target], name: str) -> None:
    print(name, "odd values", dict(fuzz(targets[name], odd_values, EXAMPLES, fresh=True)), flush=True)
