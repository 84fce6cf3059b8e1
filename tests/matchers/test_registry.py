"""Matchers by name: ours, third parties', and names and options that are nearly right."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest
import torch

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


matching = kbc.as_matcher(lambda source, target, keypoints: keypoints + 2, name="matching")


def adds_one(source: Any, target: Any, keypoints: Any) -> Any:
    return keypoints + 1


def by_position(value: float, name: str = "a", device: str = "cpu") -> Any:
    return constant(value=value)


def gives_a_function(*, step: float = 4.0) -> Any:
    return lambda source, target, keypoints: keypoints + step


nothing = 3
network = torch.nn.Conv2d(3, 8, 4)


@pytest.mark.parametrize(
    ("name", "options", "answer"),
    [
        ("adds_one", {}, [2.0, 3.0]),
        ("matching", {}, [3.0, 4.0]),
        ("constant", {"value": 7.0}, [7.0, 7.0]),
        ("by_position", {"value": 5.0}, [5.0, 5.0]),
        ("gives_a_function", {"step": 10.0}, [11.0, 12.0]),
    ],
)
def test_a_matcher_of_ones_own_is_named_by_its_module(name: str, options: dict[str, Any], answer: list[float]) -> None:
    blank = np.zeros((8, 8, 3), np.uint8)
    matcher = kbc.load_matcher(f"{__name__}:{name}", **options)
    assert matcher.match([kbc.Pair(blank, blank, [[1, 2]])])[0].keypoints.tolist() == [answer]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nowhere_to_be_found:load", {}, "package.module:function that can be imported, .*its folder must be"),
        (f"{__name__}:absent", {}, r"must be package.module:function, received .*has no attribute 'absent'"),
        ("kbc..x:load", {}, "must be package.module:function"),
        (f"{__name__}:", {}, "must be package.module:function"),
        (
            f"{__name__}:adds_one",
            {"size": 3},
            r"`options` must be none, for .* is a matcher already, received \['size'\]",
        ),
        (f"{__name__}:constant", {"device": "cuda:99"}, "`device` must be one"),
        (f"{__name__}:strict", {}, "`needed` must be given"),
        (f"{__name__}:nothing", {}, "that of a matcher or a function, received .*, a int"),
        (f"{__name__}:network", {}, "an object of type Conv2d; a feature extractor becomes a matcher by from_features"),
        ("math:pow", {}, "of what takes its options by name, received 'math:pow'"),
        ("hog", {"name": 5}, "ones that 'hog' takes, received 'name'"),
        (5, {}, "`name` must be text, received int"),
    ],
)
def test_what_a_module_does_not_hold_is_said(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kbc.load_matcher(name, **options)


def test_what_a_found_module_itself_lacks_is_its_own_error(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lacks_something.py").write_text("import absent_package_of_theirs\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="absent_package_of_theirs"):
        kbc.load_matcher("lacks_something:load")
