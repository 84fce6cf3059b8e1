"""Every block of the documentation's pages runs as it stands, in order, from such a folder as each says."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from kbc.data.scenes.render import scene_pair
from kbc.matchers.resnet import _HUB, resnet
from tests.pages import DOCS, blocks, run_page

sys.path.append(str(Path(__file__).parent / "data"))
import layouts  # type: ignore[import-not-found]


def empty() -> None:
    """The page needs nothing."""


def photographs() -> None:
    """Three pictures and points, as a reader has them."""
    scenes = [scene_pair(number, variation=0.3, turn=5.0, mirror=0.0) for number in (2, 3)]
    images = [scenes[0].pair.source, scenes[0].pair.target, scenes[1].pair.target]
    for name, image in zip(["a.png", "b.png", "c.png"], images, strict=True):
        cv2.imwrite(name, image[..., ::-1])
    cv2.imwrite("source.png", images[0][..., ::-1])
    cv2.imwrite("target.png", images[1][..., ::-1])
    np.savetxt("points.csv", scenes[0].pair.keypoints, "%.1f", delimiter=",", header="x,y", comments="")


def data_sets() -> None:
    """Small copies of the official layouts, and an ImageNet file of random weights."""
    torch.manual_seed(0)
    torch.save(resnet("resnet18").state_dict(), "resnet18.pth")
    layouts.spair(Path("SPair-71k"))
    layouts.pascal(Path("PF-PASCAL"))
    layouts.willow_folders(Path("PF-WILLOW"))
    layouts.ap10k(Path("AP-10K"))
    layouts.coco(Path("my_photos"), pairs=False)


def two_photographs() -> None:
    """Two pictures, and torch's cache with an ImageNet file in it: nothing is downloaded."""
    photographs()
    for name in ("a", "b"):
        shutil.copy(f"{name}.png", f"{name}.jpg")
    downloaded()


def downloaded() -> None:
    """What `weights=imagenet` leaves in torch's cache (TORCH_HOME), of random weights."""
    torch.manual_seed(0)
    Path("torch/hub/checkpoints").mkdir(parents=True)
    torch.save(resnet("resnet18").state_dict(), Path("torch/hub/checkpoints", _HUB["resnet18"].rpartition("/")[2]))


def to_label() -> None:
    """A folder of three pictures, and torch's cache with an ImageNet file."""
    downloaded()
    Path("photos").mkdir()
    for number in (1, 2, 3):
        image = scene_pair(number, variation=0.3).source.image
        cv2.imwrite(f"photos/{number:03}.jpg", image[..., ::-1])


def to_train() -> None:
    """Photographs, and annotated ones with an ImageNet file."""
    photographs()
    data_sets()


PAGES: dict[str, Callable[[], None]] = {
    "index.md": two_photographs,
    "getting_started.md": empty,
    "coordinates.md": empty,
    "transfer.md": to_label,
    "how_to/wrap.md": empty,
    "how_to/evaluate.md": data_sets,
    "how_to/report.md": empty,
    "how_to/bad_data.md": empty,
    "how_to/choose.md": empty,
    "how_to/confidence.md": empty,
    "how_to/workers.md": photographs,
    "how_to/many.md": data_sets,
    "how_to/train.md": to_train,
}
QUICK = {"index.md", "getting_started.md", "coordinates.md", "how_to/wrap.md", "how_to/bad_data.md"}
ELSEWHERE = {"how_to/adapters.md"}
"""Its stand-ins for the upstream clones are in tests/adapters, and so is its test."""


@pytest.mark.parametrize("page", [pytest.param(p, marks=[pytest.mark.slow] * (p not in QUICK)) for p in PAGES])
def test_the_blocks_run_in_order(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="the pages install the extra viz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    PAGES[page]()
    run_page(DOCS / page)
    if page == "getting_started.md":
        assert (tmp_path / "match.png").stat().st_size > 10_000


def test_every_page_with_blocks_to_paste_is_run() -> None:
    pages = {
        path.relative_to(DOCS).as_posix()
        for path in DOCS.rglob("*.md")
        if {"python", "bash"} & {language for language, _ in blocks(path)}
    }
    assert pages == set(PAGES) | ELSEWHERE


@pytest.mark.parametrize("page", sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")))
def test_links_and_pictures_lead_to_files(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        assert link.startswith("https://") or (DOCS / page).parent.joinpath(link).exists(), link
