"""Numbers as they come: any floating type, default dtype, autocast, device, batch; and matchers that fail or waver."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import kbc
from kbc.errors import InputError, KBCError, MatcherError
from kbc.matchers.builtin import hog_features
from kbc.matchers.resnet import ResNet
from kbc.matchers.voting import _displacements
from kbc.tensors import to_array, to_tensor
from tests.conftest import draw_scene

POINTS = np.array([[60.0, 70.0], [90.0, 64.0], [71.0, 93.0], [88.0, 90.0]])


def patches(images: torch.Tensor) -> torch.Tensor:
    return hog_features(images * 0.22 + 0.45)  # which wants values in [0, 1]


def correlated(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    normalise = torch.nn.functional.normalize
    return torch.einsum("bcij,bckl->bijkl", normalise(patches(source), dim=1), normalise(patches(target), dim=1))


def still(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(source), 2, 16, 16)


MATCHERS: dict[str, Callable[[], Any]] = {
    "hog": lambda: kbc.load_matcher("hog"),
    "votes": lambda: kbc.load_matcher("hog", votes=True),
    "features": lambda: kbc.from_features(patches, 8, size=128),
    "correlation": lambda: kbc.from_correlation(correlated, size=128),
    "flow": lambda: kbc.from_flow(still, size=128),
    "function": lambda: kbc.as_matcher(lambda source, target, keypoints: keypoints, image="tensor"),
    "kbcnet": lambda: kbc.load_matcher("kbcnet"),
}


def pair() -> kbc.Pair:
    coarse = np.random.default_rng(0).integers(0, 256, (20, 25, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (200, 160), interpolation=cv2.INTER_CUBIC)  # no two places are alike
    return kbc.Pair(image, image, POINTS)


def answer(name: str) -> np.ndarray:
    return kbc.wrap(MATCHERS[name](), budget="fast").match([pair()])[0].keypoints


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", sorted(MATCHERS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_of_the_caller(name: str, dtype: torch.dtype) -> None:
    plain = answer(name)
    with torch.autocast("cpu", dtype):
        cast = answer(name)
    assert np.abs(cast - plain).max() < 2.0  # features may be rounded, places are not


@pytest.mark.parametrize("name", sorted(MATCHERS))
def test_float64_as_the_default_dtype(name: str, float64_by_default: None) -> None:
    found = answer(name)
    torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(found, answer(name), atol=1e-3)


@pytest.mark.parametrize("name", sorted(MATCHERS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_coarse_default_dtype_changes_nothing(name: str, dtype: torch.dtype, float64_by_default: None) -> None:
    torch.set_default_dtype(dtype)
    found = answer(name)
    torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(found, answer(name))


def test_votes_are_counted_by_the_same_displacements_whatever_the_default_dtype_is(float64_by_default: None) -> None:
    exact = _displacements(90, 75, torch.device("cpu"))
    torch.set_default_dtype(torch.bfloat16)
    assert torch.equal(_displacements(90, 75, torch.device("cpu")), exact)


@pytest.mark.parametrize("name", ["kbcnet", "resnet18"])
def test_a_network_is_loaded_on_the_cpu_whatever_the_default_device_is(name: str, tmp_path: Path) -> None:
    options = {}
    if name == "resnet18":
        torch.save(ResNet().state_dict(), tmp_path / "resnet18.pth")
        options = {"weights": str(tmp_path / "resnet18.pth")}
    with torch.device("meta"):  # as set_default_device("cuda") does, and holds no numbers
        found = kbc.load_matcher(name, **options).match([pair()])[0].keypoints
    np.testing.assert_array_equal(found, kbc.load_matcher(name, **options).match([pair()])[0].keypoints)


@pytest.mark.parametrize("name", ["hog", "function", "kbcnet"])
def test_numpy_told_to_raise_at_every_floating_point_event(name: str) -> None:
    plain = answer(name)
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(answer(name), plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_may_give_any_floating_type(dtype: torch.dtype) -> None:
    x, y = np.array([3, 9, 7, 12]), np.array([4, 5, 11, 8])
    centres = np.stack([(8 * x + 4) * 200 / 128 - 0.5, (8 * y + 4) * 160 / 128 - 0.5], axis=1)
    asked = kbc.Pair(pair().source, pair().target, centres)
    for build, function in (
        (kbc.from_correlation, lambda s, t: correlated(s, t).to(dtype)),
        (kbc.from_flow, lambda s, t: still(s, t).to(dtype)),
    ):
        found = build(function, size=128).match([asked])[0].keypoints
        assert np.abs(found - centres).max() < 6  # half a cell of 8 px at 128 px, in an image 200 px wide
    found = kbc.from_features(lambda x: patches(x).to(dtype), 8, size=128).match([asked])[0].keypoints
    assert np.abs(found - centres).max() < 6


class Held(torch.nn.Module):
    """A network that computes in the type that its weights have, and takes no other."""

    def __init__(self, compute: Callable[..., Any]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.compute = compute

    def forward(self, *given: Any) -> Any:
        assert all(one.dtype == self.weight.dtype for one in given if one.ndim > 2)
        return self.compute(*(one.float() for one in given)).to(self.weight.dtype)

    def encode(self, images: Any) -> Any:
        return self.forward(images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_are_given_the_floating_type_of_their_weights(dtype: torch.dtype) -> None:
    for build in (
        lambda: kbc.from_features(Held(patches).to(dtype), 8, size=128),
        lambda: kbc.from_features(Held(patches).to(dtype).encode, 8, size=128),
        lambda: kbc.from_correlation(Held(correlated).to(dtype), size=128),
        lambda: kbc.from_flow(Held(still).to(dtype), size=128),
        lambda: kbc.as_matcher(Held(lambda source, target, points: points).to(dtype), image="tensor"),
    ):
        found = kbc.wrap(build(), budget="fast").match([pair()])[0].keypoints
        assert np.abs(found - POINTS).max() < 6


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda x: x.to(torch.complex64), "complex numbers"),
        (lambda x: x.to(torch.float8_e4m3fn), "fp8 numbers"),
        (lambda x: x.to("meta"), "meta device, which holds no numbers"),
        (lambda x: x.to_sparse(), "sparse"),
    ],
)
def test_what_are_no_real_numbers_is_refused_by_its_name(change: Callable[[Any], Any], cause: str) -> None:
    for matcher in (
        kbc.from_features(lambda x: change(patches(x)), 8, size=128),
        kbc.from_correlation(lambda s, t: change(correlated(s, t)), size=128),
        kbc.from_flow(lambda s, t: change(still(s, t)), size=128),
        kbc.as_matcher(lambda s, t, k: change(k), image="tensor"),
    ):
        with pytest.raises(MatcherError, match=f"(?s)must give numbers.*{cause}"):
            kbc.wrap(matcher).match([pair()])
    with pytest.raises(InputError, match=f"`keypoints` must be numbers.*{cause}"):
        kbc.Pair(pair().source, pair().target, change(torch.tensor(POINTS)))


class Elsewhere:
    """Stands for a tensor on another device: its numbers are there after `.cpu()` alone."""

    ndim = 2

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def __getattr__(self, name: str) -> Any:
        return getattr(self.values, name)

    def detach(self) -> Elsewhere:
        return self

    def float(self) -> Elsewhere:
        return Elsewhere(self.values.float())

    def cpu(self) -> torch.Tensor:
        return self.values

    def __array__(self, *_: object) -> np.ndarray:
        raise TypeError("can't convert a tensor on another device; use Tensor.cpu()")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_numbers_on_another_device_in_any_nesting(dtype: torch.dtype) -> None:
    far = Elsewhere(torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=dtype))
    for values in (far, [Elsewhere(row) for row in far.values], [[Elsewhere(x) for x in row] for row in far.values]):
        np.testing.assert_array_equal(to_array(values), [[1, 2], [3, 4]])


def test_an_array_is_what_every_kind_of_numbers_becomes() -> None:
    learned = torch.ones(2, 2, requires_grad=True)
    np.testing.assert_array_equal(to_array(learned), np.ones((2, 2)))
    np.testing.assert_array_equal(to_array(np.ma.array([1, 2], mask=[0, 1])), [1, np.nan])
    assert to_tensor([[1, 2]]).dtype == torch.float32
    assert to_tensor(np.array([1e308])).isinf().all()  # without a warning
    assert to_tensor(np.arange(4, dtype=">f8")[::-1]).tolist() == [3, 2, 1, 0]
    with pytest.raises(TypeError, match="complex"):
        to_array(np.array([1j]))


def test_an_answer_of_any_type_from_a_function() -> None:
    for give in (torch.bfloat16, torch.float16, torch.int32):
        wrapped = kbc.wrap(lambda source, target, keypoints, give=give: torch.as_tensor(keypoints).to(give))
        found = wrapped.match([pair()])[0].coarse
        np.testing.assert_allclose(found, POINTS, atol=0.5)


@pytest.mark.parametrize("value", [1e308, -1e308, np.finfo(np.float64).max])
def test_answers_beyond_all_bounds_are_refused_without_a_warning(value: float) -> None:
    wrapped = kbc.wrap(lambda source, target, keypoints: keypoints + value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(MatcherError, match=r"must answer in the target's pixels"):
            wrapped.match([pair()])


# Batches ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", ["raises", "gives one"])
def test_encoders_and_networks_of_one_image_at_a_time(fails: str) -> None:
    def alone(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def run(*images: torch.Tensor) -> torch.Tensor:
            if len(images[0]) > 1 and fails == "raises":
                raise RuntimeError("shape '[1, 3, 128, 128]' is invalid")
            return function(*(image[:1] for image in images))

        return run

    second = kbc.Pair(draw_scene(3, (160, 200)), draw_scene(3, (160, 200)), POINTS)
    for build in (
        lambda f=patches, w=alone: kbc.from_features(w(f), 8, size=128),
        lambda f=correlated, w=alone: kbc.from_correlation(w(f), size=128),
        lambda f=still, w=alone: kbc.from_flow(w(f), size=128),
    ):
        whole = build(w=lambda function: function).match([pair(), second])  # type: ignore[call-arg]
        for one, other in zip(build().match([pair(), second]), whole, strict=True):
            np.testing.assert_allclose(one.keypoints, other.keypoints, atol=1e-4)


def test_an_encoder_that_fails_at_every_batch_says_why() -> None:
    def broken(images: torch.Tensor) -> torch.Tensor:
        raise ValueError(f"{len(images)} images")

    with pytest.raises(MatcherError, match="ValueError: 2 images"):
        kbc.wrap(kbc.from_features(broken, 8, size=128)).match(
            [kbc.Pair(pair().source, draw_scene(3, (90, 80)), POINTS)]
        )


def test_a_wavering_encoder_is_warned_of_once() -> None:
    dropout = torch.nn.Dropout(0.5)
    calls: list[int] = []
    for encode in (
        lambda x: dropout(patches(x)),
        lambda x: patches(x).roll(calls.append(1) or len(calls), 1),  # type: ignore[func-returns-value]
    ):
        matcher = kbc.from_features(encode, 8, size=128)
        with pytest.warns(UserWarning, match="answers otherwise when it is asked again"):
            matcher.match([pair()])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            matcher.match([kbc.Pair(draw_scene(5, (80, 90)), pair().target, POINTS)])
    steady = kbc.from_features(patches, 8, size=128)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steady.match([pair()])


# Fine passes and support points -------------------------------------------------------------------------------------


def small() -> kbc.Pair:
    image = draw_scene(1, (400, 500))
    return kbc.Pair(image, image, POINTS + 100)


@pytest.mark.parametrize("error", [InputError, KBCError, MatcherError, ValueError, SystemExit, MemoryError])
def test_a_fine_pass_that_raises_anything_keeps_the_coarse_answer(error: type[BaseException]) -> None:
    def coarse_only(source: np.ndarray, target: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        if source.shape[:2] != (400, 500):
            raise error("only whole images")
        return keypoints

    result = kbc.wrap(coarse_only).match([small()])[0]
    np.testing.assert_array_equal(result.keypoints, POINTS + 100)
    assert result.origin == ("coarse: failed",) * 4
    assert any("a fine pass failed (it asks for" in note and "only whole images" in note for note in result.notes)


def wild(keypoints: np.ndarray, value: float) -> np.ndarray:
    """Right for the user's points; what it says of any other is nonsense."""
    own = (np.abs(keypoints[:, None] - (POINTS + 100)).max(axis=2) < 1e-6).any(axis=1)
    return np.where(own[:, None], keypoints, value)


@pytest.mark.parametrize("value", [-1e4, 1e308, np.inf, np.nan])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_nonsense_about_support_points_is_no_answer(value: float, count: int) -> None:
    asked = kbc.Pair(small().source, small().target, (POINTS + 100)[:count])
    result = kbc.wrap(lambda source, target, keypoints: wild(keypoints, value), passes=1).match([asked])[0]
    np.testing.assert_array_equal(result.coarse, (POINTS + 100)[:count])
    assert result.support > 0


def test_a_matcher_that_fails_at_support_points_is_asked_for_the_keypoints_alone() -> None:
    def strict(source: np.ndarray, target: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        if len(keypoints) != 4:
            raise ValueError("four points, please")
        return keypoints

    result, other = kbc.wrap(strict, batch_size=2).match([small(), small()])
    for one in (result, other):
        np.testing.assert_array_equal(one.coarse, POINTS + 100)
        assert one.support == 0
        assert any("four points, please" in note for note in one.notes)


def test_a_matcher_that_fails_at_the_keypoints_is_an_error() -> None:
    with pytest.raises(MatcherError, match=r"received \[9999.0, 9999.0\]"):
        kbc.wrap(lambda source, target, keypoints: keypoints * 0 + 9999).match([small()])
