"""Matchers by name: ours, third parties', and names and options that are nearly right."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest

import kbc
from kbc.errors import InputError
from kbc.matchers import registry


def test_all_names_are_there_and_load() -> None:
    names = kbc.available_matchers()
    wanted = {"hog", "resnet18", "resnet50", "resnet101", "kbcnet", "chm", "dhpf", "scot", "cats", "mmnet", "dino"}
    assert wanted <= set(names)
    assert names == sorted(names)
    for point in registry._found().values():
        assert callable(point.load())


def constant(*, value: float = 3.0, **anything: Any) -> Any:
    return kbc.as_matcher(lambda source, target, keypoints: np.full(keypoints.shape, value), name="constant")


def strict(*, needed: str) -> Any:
    return constant()


def test_third_parties_register_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint(n, f"{__name__}:{n}", registry.GROUP) for n in ("constant", "strict")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == registry.GROUP else [])
    assert kbc.available_matchers() == ["constant", "strict"]
    blank = np.zeros((8, 8, 3), np.uint8)
    matcher = kbc.load_matcher("constant", value=5.0, whatever=1)
    assert matcher.match([kbc.Pair(blank, blank, [[1, 2]])])[0].keypoints.tolist() == [[5.0, 5.0]]
    with pytest.raises(InputError, match="`needed` must be given to 'strict'"):
        kbc.load_matcher("strict")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet19", {}, "did you mean 'resnet18'"),
        ("xyz", {}, "known: .*hog"),
        ("hog", {"sise": 3}, "'sise'.*did you mean 'size'"),
        ("resnet18", {}, "`weights` must be given to 'resnet18', received nothing; .*--option weights=…"),
        ("hog", {"device": "cuda:99"}, "`device` must be one that torch can use here, received 'cuda:99'"),
        ("hog", {"size": 100_000}, "`size` must be at most 16384 px a side, received 100000"),
        ("resnet18", {"weights": None}, "`weights` must be a path, or 'imagenet', received None"),
        ("resnet18", {"weights": 5}, "`weights` must be a path, received 5"),
        ("resnet18", {"weights": "~nobody-of-that-name/w.pth"}, "`weights` must be a path, received '~nobody"),
        ("kbcnet", {"weights": 5}, "`weights` must be a path, received 5"),
        ("hog", {"votes": "no"}, "`votes` must be true or false, received 'no'"),
        ("hog", {"votes": 1}, "`votes` must be true or false, received 1"),
        ("dino", {"model": "a", "download": "False"}, "`download` must be true or false, received 'False'"),
        ("resnet18", {"weights": "w.pth", "layers": "two"}, "`layers` must be some of 1, 2, 3, 4, received 'two'"),
        ("resnet18", {"weights": "w.pth", "layers": "2,3"}, "`layers` must be some of 1, 2, 3, 4, received '2,3'"),
        ("resnet18", {"weights": "w.pth", "layers": 2.5}, "`layers` must be some of 1, 2, 3, 4, received 2.5"),
        ("resnet18", {"weights": "w.pth", "layers": [[2], [3]]}, "`layers` must be some of 1, 2, 3, 4"),
        ("resnet18", {"weights": "w.pth", "layers": None}, "`layers` must be some of 1, 2, 3, 4, received None"),
        ("chm", {"checkout": None, "checkpoint": "x.pt"}, "`checkout` must be a path, received None"),
    ],
)
def test_near_misses_are_answered_with_what_is_known(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kbc.load_matcher(name, **options)
