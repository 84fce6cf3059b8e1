"""The page on published matchers runs as it stands, with the stand-ins in the place of the five clones."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from adapter_layers import FOLDERS, Layer, example

from tests.pages import DOCS, run_page


@pytest.mark.slow
def test_the_blocks_run_in_order(layer: Layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, folder in {**FOLDERS, "cats": "CATs"}.items():
        shutil.copytree(layer.checkout(name), folder)
    files = {
        "cats_spair/model_best.pth": layer.file("cats"),
        "chm_spair.pth": layer.file("chm"),
        "dhpf_spair.pth": layer.file("dhpf"),
        "mmnet.pth": layer.file("mmnet"),
        "resnet101.pth": layer.file("dhpf", "imagenet"),
    }
    Path("cats_spair").mkdir()
    for name, file in files.items():
        shutil.copy(file, name)
    pair = example()
    cv2.imwrite("a.png", pair.source[..., ::-1])
    cv2.imwrite("b.png", pair.target[..., ::-1])
    np.savetxt("points.csv", pair.keypoints[:6], "%.1f", delimiter=",", header="x,y", comments="")
    printed = run_page(DOCS / "how_to" / "adapters.md")
    assert printed.count("plain matches") == 4
