"""The examples that `kbc COMMAND --help` shows run as they stand, in a folder that holds the files they name."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from kbc import cli
from kbc.data.scenes.render import scene_pair
from kbc.files import write_json
from kbc.matchers.resnet import resnet

sys.path.append(str(Path(__file__).parents[1] / "data"))
import layouts  # type: ignore[import-not-found]

EXAMPLES = {example: name for name, command in cli.COMMANDS.items() for example in command.examples}
ELSEWHERE = {
    "kbc train kbcnet --config kbcnet-tiny --out runs/tiny": "takes hours; ten steps of it run",
    "kbc bench conv4d": "takes minutes and is a measurement; with --quick it runs",
    "kbc bench pipeline --inputs 518/14/384 --batch 1,16": "takes minutes and is a measurement",
    "kbc bench pipeline --matcher resnet18 --option weights=resnet18.pth --device cuda --json -": "needs a GPU",
    "kbc demo --pairs 40 --matcher hog --out demo": "takes minutes; the same with eight pairs runs",
}
QUICK = {"matchers", "data", "env", "completion"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that an example names, made once."""
    root = tmp_path_factory.mktemp("examples")
    with contextlib.chdir(root):
        scene = scene_pair(2, variation=0.3, turn=5.0, mirror=0.0)
        for name, image in (("a.jpg", scene.pair.source), ("b.jpg", scene.pair.target)):
            cv2.imwrite(name, image[..., ::-1])
        np.savetxt("points.csv", scene.pair.keypoints, "%.1f", delimiter=",", header="x,y", comments="")
        torch.manual_seed(0)
        torch.save(resnet("resnet18").state_dict(), "resnet18.pth")
        layouts.willow_folders(Path("data/pf-willow"))
        layouts.coco(Path("data/mine"), pairs=False)
        layouts.coco(Path("mine"))
        for number in (1, 2):
            layouts.write_image(Path(f"photos/{number}.jpg"), number, (120, 160))
        layouts.write_image(Path("labelled.jpg"), 3, (120, 160))
        points = [value for x, y in ((40, 30), (90, 40), (70, 80), (50, 90)) for value in (x, y, 2)]
        held = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [30, 20, 80, 80], "keypoints": points}
        category = {"id": 1, "name": "cow", "keypoints": ["nose", "tail", "left", "right"]}
        labelled = {"id": 1, "file_name": "labelled.jpg", "width": 160, "height": 120}
        write_json({"images": [labelled], "annotations": [held], "categories": [category]}, Path("labels.json"))
        found = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [30, 20, 80, 80], "score": 0.9}
        photo = {"id": 1, "file_name": "1.jpg", "width": 160, "height": 120}
        write_json({"images": [photo], "annotations": [found], "categories": [category]}, Path("detections.json"))
    return root


def runnable() -> list[object]:
    return [
        pytest.param(example, marks=[pytest.mark.slow] * (name not in QUICK), id=example)
        for example, name in EXAMPLES.items()
        if name != "ui" and example not in ELSEWHERE
    ]


@pytest.mark.parametrize("example", runnable())
def test_the_example_runs(example: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "--plot" in example or example.startswith("kbc demo"):
        pytest.importorskip("matplotlib")
    if example.startswith("kbc completion"):
        pytest.importorskip("shtab")
    shutil.copytree(folder, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    assert cli.main(shlex.split(example.partition(" > ")[0])[1:]) == 0


@pytest.mark.slow
def test_the_page_opens(folder: Path) -> None:
    pytest.importorskip("gradio", reason="gradio is an extra")
    example = next(example for example in cli.COMMANDS["ui"].examples if "--port 8080" in example)
    words = [sys.executable, "-m", *shlex.split(example)]
    process = subprocess.Popen(words, cwd=folder, env={**os.environ, "BROWSER": "true"}, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(urllib.error.URLError):
                assert b"kbc" in urllib.request.urlopen("http://127.0.0.1:8080", timeout=10).read()
                return
            assert process.poll() is None
            time.sleep(0.2)
        pytest.fail("the page did not open")
    finally:
        process.terminate()
        process.wait()


def test_every_example_is_accounted_for() -> None:
    assert set(ELSEWHERE) <= set(EXAMPLES)
    assert {name for example, name in EXAMPLES.items() if example not in ELSEWHERE} == set(cli.COMMANDS)
