"""The template and the page that explains it: every block of the page runs."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_layers import example, shifted
from kbc_adapters.TEMPLATE import load

import kbc
from kbc.errors import InputError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "examples/add_a_matcher.md").read_text()


def blocks(language: str = "python") -> dict[str, str]:
    """File name in a block's first line → the block."""
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return {text.splitlines()[0].removeprefix("# "): text for text in found}


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in blocks().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_matchers", None)


def run(path: Path, **names: Any) -> dict[str, Any]:
    space: dict[str, Any] = dict(names)
    exec(compile(path.read_text(), str(path), "exec"), space)
    return space


def test_the_pages_matcher_passes_the_pages_test(page: Path) -> None:
    torch.manual_seed(0)
    space = run(page / "test_toy.py")
    before = example()
    kept = before.keypoints.copy()
    space["toy"].match([before])
    np.testing.assert_array_equal(before.keypoints, kept)


def test_the_page_has_seven_steps_and_the_template_under_60_lines() -> None:
    assert re.findall(r"^## (\d)\.", PAGE, flags=re.MULTILINE) == list("1234567")
    lines = len((ROOT / "adapters/TEMPLATE.py").read_text().splitlines())
    assert lines < 60
    assert f"It is {lines} lines" in PAGE
    assert len(blocks()["my_matchers.py"].splitlines()) < 60


def test_the_page_registers_by_entry_point(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (toml,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    ((name, value),) = tomllib.loads(toml)["project"]["entry-points"]["kbc.matchers"].items()
    point = EntryPoint(name, value, "kbc.matchers")
    monkeypatch.setattr("kbc.matchers.registry._found", lambda: {name: point})
    torch.save({"conv.weight": torch.randn(64, 3, 16, 16)}, page / "toy.pth")
    assert kbc.load_matcher("toy", checkout="toy", checkpoint="toy.pth").name == "toy"
    with pytest.raises(InputError, match="'checkpoint'"):
        kbc.load_matcher("toy", checkout="toy", chekpoint="toy.pth")


def test_the_pages_extractor_recipes_run(page: Path) -> None:
    conv = torch.nn.Conv2d(3, 8, 16, 16)

    class SDFeaturizer:
        def forward(
            self, image: torch.Tensor, prompt: str, t: int, up_ft_index: int, ensemble_size: int
        ) -> torch.Tensor:
            assert image.shape == (3, 768, 768)
            return conv(image[None]).detach()

    pair = shifted((240, 320), (32, -16))
    for name, given in {
        "dift.py": {"SDFeaturizer": SDFeaturizer},
        "sd_dino.py": {
            "stable_diffusion_features": conv,
            "dinov2_features": lambda images: torch.nn.functional.avg_pool2d(images, 14),
        },
    }.items():
        matcher = run(page / name, **given)["matcher"]
        moved = matcher.match([pair])[0].coarse - pair.keypoints
        assert np.abs(np.median(moved, axis=0) - (32, -16)).max() <= 8


def test_the_template_runs(tmp_path: Path) -> None:
    sources = {
        "model/net.py": blocks()["toy/model/net.py"].replace("import torch\n", "import torch\nfrom . import resnet\n"),
        "model/resnet.py": "def resnet101(pretrained=False):\n    assert not pretrained\n",
        "utils.py": blocks()["toy/utils.py"],
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save({"conv.weight": torch.randn(64, 3, 16, 16)}, tmp_path / "weights.pth")
    matcher = load(checkout=tmp_path, checkpoint=tmp_path / "weights.pth")
    pair = shifted((256, 256), (32, -48))
    moved = matcher.match([pair])[0].keypoints - pair.keypoints
    assert np.abs(np.median(moved, axis=0) - (32, -48)).max() <= 8
    (maps,) = matcher.similarity([pair])
    assert maps.shape == (16, 32, 32)
