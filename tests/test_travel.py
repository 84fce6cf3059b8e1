"""Matchers, pairs and data sets travel to other processes and give the same answers there."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kbc
from kbc.data import Dataset, open_dataset, shrink
from tests.conftest import draw_scene
from tests.data import layouts

POINTS = [[60.0, 70.0], [90.0, 64.0], [71.0, 93.0], [88.0, 90.0]]


def pooled(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(images, 8)


def correlated(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bcij,bckl->bijkl", pooled(source), pooled(target))


def still(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(source), 2, 16, 16)


def same(source: np.ndarray, target: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    return keypoints


BUILDERS: dict[str, Callable[[], Any]] = {
    "hog": lambda: kbc.load_matcher("hog"),
    "votes": lambda: kbc.load_matcher("hog", votes=True),
    "features": lambda: kbc.from_features(pooled, 8, size=128),
    "correlation": lambda: kbc.from_correlation(correlated, size=128),
    "flow": lambda: kbc.from_flow(still, size=128),
    "function": lambda: kbc.as_matcher(same),
    "kbcnet": lambda: kbc.load_matcher("kbcnet"),
    "wrapped": lambda: kbc.wrap(kbc.load_matcher("hog"), budget="balanced"),
}


def pair() -> kbc.Pair:
    return kbc.Pair(draw_scene(1, (160, 200)), draw_scene(2, (160, 200)), POINTS)


def answer(matcher: Any, asked: kbc.Pair) -> np.ndarray:
    return matcher.match([asked])[0].keypoints  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", sorted(BUILDERS))
@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
def test_a_used_matcher_travels_without_its_cache(name: str, way: str) -> None:
    matcher, asked = BUILDERS[name](), pair()
    before = answer(matcher, asked)
    sent = pickle.dumps(matcher)
    assert len(sent) < 20 * 2**20
    there = pickle.loads(sent) if way == "pickle" else copy.deepcopy(matcher)
    assert np.array_equal(answer(there, asked), before)
    assert np.array_equal(answer(matcher, asked), before)


def test_a_pair_travels_and_stays_read_only() -> None:
    there = pickle.loads(pickle.dumps(pair()))
    assert np.array_equal(there.source, pair().source)
    for array in (there.source, there.target, there.keypoints):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


DATA: dict[str, Callable[[Path], Dataset]] = {
    "scenes": lambda root: open_dataset("scenes", count=3),
    "coco": lambda root: open_dataset("coco", layouts.coco(root)),
    "coco without a list": lambda root: open_dataset("coco", layouts.coco(root, pairs=False)),
    "spair": lambda root: open_dataset("spair", layouts.spair(root)),
    "pfpascal": lambda root: open_dataset("pfpascal", layouts.pascal(root), split="trn"),  # mirrored pictures, too
    "pfwillow": lambda root: open_dataset("pfwillow", layouts.willow_folders(root)),
    "pfwillow csv": lambda root: open_dataset("pfwillow", layouts.willow_csv(root)),
    "ap10k": lambda root: open_dataset("ap10k", layouts.ap10k(root)),
    "shrunk": lambda root: shrink(open_dataset("coco", layouts.coco(root)), 2.0),
    "part": lambda root: open_dataset("spair", layouts.spair(root)).limited(2).shard(0, 2),
}


def contents(dataset: Dataset) -> list[tuple[Any, ...]]:
    pairs = [dataset.load(record, "both") for record in dataset]
    seen = [(p.source.tobytes(), p.target.tobytes(), p.source_box, p.target_box, str(p.keypoints)) for p in pairs]
    return [(len(dataset), [str(problem) for problem in dataset.problems], dataset.notes), *seen]


@pytest.mark.parametrize("kind", DATA)
def test_a_data_set_travels(tmp_path: Path, kind: str) -> None:
    dataset = DATA[kind](tmp_path)
    before = contents(dataset)  # with images in its cache
    sent = pickle.dumps(dataset)
    assert len(sent) < 100_000
    for there in (pickle.loads(sent), copy.deepcopy(dataset)):
        assert contents(there) == before
        assert there.digest() == dataset.digest()
        with pytest.raises(ValueError, match="read-only"):
            there[0].keypoints[0] = 0


class Loaded(torch.utils.data.Dataset[np.ndarray]):
    """What a training script writes around a data set."""

    def __init__(self, dataset: Dataset, matcher: Any) -> None:
        self.dataset, self.matcher = dataset, matcher

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> np.ndarray:
        return answer(self.matcher, self.dataset.load(self.dataset[index]))


def test_workers_of_a_spawning_data_loader_give_the_same_answers() -> None:
    loaded = Loaded(open_dataset("scenes", count=3), kbc.load_matcher("hog"))
    loader = torch.utils.data.DataLoader(
        loaded, batch_size=None, num_workers=1, multiprocessing_context="spawn", collate_fn=None
    )
    for there, here in zip(loader, [loaded[i] for i in range(3)], strict=True):
        np.testing.assert_allclose(np.asarray(there), here, atol=1e-3)  # px; a float32 is exact to 6e-5 here


def test_a_spawned_process_gives_the_same_answer() -> None:
    matcher, asked = kbc.wrap(kbc.load_matcher("hog")), pair()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (there,) = pool.map(matcher.match, [[asked]])
    assert np.allclose(there[0].keypoints, answer(matcher, asked), atol=1e-6)


@pytest.mark.slow
def test_a_spawned_process_gives_every_matchers_answers() -> None:
    matchers, asked = {name: build() for name, build in BUILDERS.items()}, pair()
    for matcher in matchers.values():
        answer(matcher, asked)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.starmap(answer, [(matcher, asked) for matcher in matchers.values()])
    for matcher, there in zip(matchers.values(), found, strict=True):
        np.testing.assert_allclose(there, answer(matcher, asked), atol=1e-4)


def test_pairs_may_come_from_a_generator() -> None:
    wrapped = kbc.wrap(same)
    assert len(wrapped.match(pair() for _ in range(3))) == 3


FORKED = """
import os, sys
import numpy as np, torch, kbc
torch.set_num_threads(2)
image = np.zeros((60, 80, 3), np.uint8)
matcher = kbc.wrap(kbc.load_matcher("hog"))
match = lambda: matcher(image, image, [[20, 30], [40, 35], [30, 50], [50, 20]])
if sys.argv[1] == "after": match()
if os.fork() == 0:
    if sys.argv[2] == "one thread": torch.set_num_threads(1)
    try:
        match()
        print("matched", flush=True)
    except kbc.errors.MatcherError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize(
    ("when", "threads", "expected"),
    [
        ("after", "as they are", "forked from one that had matched"),
        ("after", "one thread", "matched"),
        ("before", "as they are", "matched"),
    ],
)
def test_a_process_that_is_forked_after_a_match_says_so_instead_of_hanging(
    when: str, threads: str, expected: str
) -> None:
    done = subprocess.run([sys.executable, "-c", FORKED, when, threads], capture_output=True, text=True, check=True)
    assert expected in done.stdout


@pytest.mark.parametrize("name", ["cloudpickle", "joblib"])
def test_a_matcher_of_a_closure_travels_by_what_can_send_closures(name: str) -> None:
    package = pytest.importorskip(name)
    matcher = kbc.wrap(lambda source, target, keypoints: keypoints + 1, passes=0)
    if name == "cloudpickle":
        there = pickle.loads(package.dumps(matcher))
        np.testing.assert_array_equal(answer(there, pair()), answer(matcher, pair()))
    else:
        (there,) = package.Parallel(n_jobs=2)([package.delayed(answer)(matcher, pair())])
        np.testing.assert_array_equal(there, answer(matcher, pair()))
