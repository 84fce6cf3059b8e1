"""Fixtures of the adapters' tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import standins
import torch
from adapter_layers import NAMES, SMALLER, Layer, example, many_points


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two busy cores spin on more threads than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Layer:
    """The stand-ins, and in `layer.said` upstream's answers to `example()` and to 430 points."""
    found = Layer(standins.write(tmp_path_factory.mktemp("standins")), tmp_path_factory.mktemp("files"), SMALLER)
    found.said = found.run({"example": example(), "many": many_points()})
    return found


@pytest.fixture(scope="session")
def matchers(layer: Layer) -> dict[str, Any]:
    """All five in this process."""
    return {name: layer.load(name) for name in NAMES}


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real photographs."""
    root = Path(os.environ.get("KBC_DATA", "/nowhere")) / "data"
    if not root.is_dir():
        pytest.skip("needs the photographs in KBC_DATA")
    return root
