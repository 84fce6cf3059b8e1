"""Every block of Getting started and of the how-to pages runs as it stands, in order, from such a folder as it says."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from kbc.data.scenes.render import scene_pair
from kbc.matchers.resnet import resnet
from tests.pages import DOCS, run_page

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


def to_train() -> None:
    """Photographs, and annotated ones with an ImageNet file."""
    photographs()
    data_sets()


PAGES: dict[str, Callable[[], None]] = {
    "getting_started.md": empty,
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
QUICK = {"getting_started.md", "how_to/wrap.md", "how_to/bad_data.md"}
ELSEWHERE = {"how_to/adapters.md"}
"""Its stand-ins for the upstream clones are in tests/adapters, and so is its test."""


@pytest.mark.parametrize("page", [pytest.param(p, marks=[pytest.mark.slow] * (p not in QUICK)) for p in PAGES])
def test_the_blocks_run_in_order(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="the pages install the extra viz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    PAGES[page]()
    run_page(DOCS / page)
    if page == "getting_started.md":
        assert (tmp_path / "match.png").stat().st_size > 10_000


def test_every_how_to_page_is_run() -> None:
    pages = {f"how_to/{path.name}" for path in (DOCS / "how_to").glob("*.md")}
    assert pages <= set(PAGES) | ELSEWHERE


@pytest.mark.parametrize("page", sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")))
def test_links_and_pictures_lead_to_files(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        assert link.startswith("https://") or (DOCS / page).parent.joinpath(link).exists(), link
