from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kbcnet_helpers import shaken, small_config

from kbc.kbcnet.checkpoint import empty_network, save_checkpoint
from kbc.kbcnet.model import Network


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small only lose by threads, and sums are taken in the same order as in a process of one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def network() -> Network:
    return shaken(empty_network(small_config()))


@pytest.fixture
def checkpoint(tmp_path: Path, network: Network) -> Path:
    path = tmp_path / "kbcnet-small.safetensors"
    save_checkpoint(path, network)
    return path
