"""`examples/ray_transfer.py` writes what `kbc transfer` writes."""

from __future__ import annotations

import pickle
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from rectangles import BOXES, write_folder, write_labels

from kbc.cli import MISSING, main
from kbc.cli.transfer import build_labeller
from kbc.labelling import read_labels
from tests.examples import load_example


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_example("ray_transfer", monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path)
    write_labels(tmp_path / "labels.json", {"0.png": BOXES[0]}, tuple(f"{i}.png" for i in range(1, 6)))
    return tmp_path


def test_without_ray_a_worker_does_the_same(folder: Path, example: ModuleType) -> None:
    labels = read_labels(folder / "labels.json")
    build = partial(build_labeller, labels.exemplars, "hog", {}, {}, (1, 3, 0.0))
    worker = example.Worker(pickle.loads(pickle.dumps(build)))  # as it travels
    task = (folder / "3.png", None)
    found, wanted = pickle.loads(pickle.dumps(worker.ask(task))), build()(*task)
    assert found.image == folder / "3.png"
    assert found.objects[0].keypoints.tolist() == wanted.objects[0].keypoints.tolist()
    assert found.objects[0].confidence.tolist() == wanted.objects[0].confidence.tolist()


def test_without_ray_it_says_what_to_install(
    folder: Path, example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    out = folder / "keypoints.json"
    assert example.main([str(folder / "labels.json"), "--out", str(out)]) == MISSING
    assert 'pip install "kbc[ray]"' in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_on_a_local_ray(folder: Path, example: ModuleType) -> None:
    ray = pytest.importorskip("ray")
    alone, together = folder / "alone.json", folder / "together.json"
    (folder / "4.png").write_bytes(b"broken")
    given = [str(folder / "labels.json"), "--quiet", "--out"]
    assert main(["transfer", *given, str(alone)]) == 0
    try:
        assert example.main([*given, str(together), "--jobs", "2"]) == 0
    finally:
        ray.shutdown()
    assert together.read_bytes() == alone.read_bytes()
    assert not list(folder.glob("*.journal"))
