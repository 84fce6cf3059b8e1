"""Matchers, pairs and data sets travel to other processes and give the same answers there."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import kbc
from kbc.data import open_dataset
from tests.conftest import draw_scene

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


def test_a_data_set_travels() -> None:
    dataset = open_dataset("scenes", count=2)
    dataset.load(dataset[0])
    there = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(there.load(there[1]).source, dataset.load(dataset[1]).source)


def test_a_spawned_process_gives_the_same_answer() -> None:
    matcher, asked = kbc.wrap(kbc.load_matcher("hog")), pair()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (there,) = pool.map(matcher.match, [[asked]])
    assert np.allclose(there[0].keypoints, answer(matcher, asked), atol=1e-6)


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
