"""What every adapter promises, on stand-in checkouts: `test_real.py` asks the same of the real ones."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_layers import NAMES, Layer, example, many_points, shifted

import kbc
from kbc.errors import DataError, InputError
from kbc.geometry import cell_centres
from kbc.matchers.protocol import SimilarityMatcher, run_matcher
from kbc.types import Pair

SIZES = {"chm": (240, 240), "dhpf": (120, 120), "cats": (256, 256), "mmnet": (224, 320), "scot": (224, 300)}
SHIFTS = {"chm": (32, -24), "dhpf": (16, -12), "cats": (32, -48), "mmnet": (32, -24), "scot": (32, -24)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("label", ["example", "many"])
def test_equals_upstreams_own_predict_path(name: str, label: str, layer: Layer, matchers: dict[str, Any]) -> None:
    pair = {"example": example, "many": many_points}[label]()
    found = matchers[name].match([pair])[0].keypoints
    assert np.abs(found - layer.said[name, label]["keypoints"]).max() <= 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_known_translation_has_the_right_sign_and_size(name: str, matchers: dict[str, Any]) -> None:
    pair = shifted(SIZES[name], SHIFTS[name])
    moved = matchers[name].match([pair])[0].keypoints - pair.keypoints
    assert np.abs(np.median(moved, axis=0) - SHIFTS[name]).max() <= 4.0
    assert np.mean(np.abs(moved - SHIFTS[name]).max(axis=1) <= 16) >= 0.6  # the points each, not their middle alone


@pytest.mark.parametrize("name", NAMES)
def test_similarity_covers_the_target_and_peaks_where_the_answer_is(name: str, matchers: dict[str, Any]) -> None:
    pair = shifted(SIZES[name], SHIFTS[name])
    large = Pair(pair.source, np.kron(pair.target, np.ones((2, 3, 1), np.uint8)), pair.keypoints)  # another scale
    matcher = matchers[name]
    assert isinstance(matcher, SimilarityMatcher)
    (maps,) = matcher.similarity([large])
    assert maps.dtype == np.float32
    assert np.isfinite(maps).all()
    x, y = cell_centres(maps.shape[1:], large.target.shape[:2])
    best = maps.reshape(len(maps), -1).argmax(axis=1)
    peak = np.stack([x[best % len(x)], y[best // len(x)]], axis=1)
    expected = (pair.keypoints + SHIFTS[name]) * (3, 2)
    node = 2 * np.array([x[1] - x[0], y[1] - y[0]])
    if name == "scot":  # keeps the aspect, so the squeezed target differs in content; only its frame is checked
        assert maps.shape[1] < maps.shape[2]
        return
    assert np.abs(np.median(peak - expected, axis=0) / node).max() <= 1.0


@pytest.mark.parametrize("name", NAMES)
def test_similarity_after_match_is_free_and_the_same(name: str, matchers: dict[str, Any]) -> None:
    matcher, pair = matchers[name], example()
    fresh = matcher.similarity([pair])[0]
    matcher.match([pair])
    calls: list[int] = []
    original = matcher._correlate
    matcher._correlate = lambda pairs: calls.append(len(pairs)) or original(pairs)
    try:
        again = matcher.similarity([pair])[0]
    finally:
        del matcher._correlate
    assert not calls
    np.testing.assert_array_equal(again, fresh)


@pytest.mark.parametrize("name", NAMES)
def test_undefined_points_are_nan_and_the_rest_unchanged(name: str, matchers: dict[str, Any]) -> None:
    pair = example()
    points = np.array(pair.keypoints)
    points[[0, 5]] = np.nan
    matcher = matchers[name]
    whole, part = matcher.match([pair])[0], matcher.match([Pair(pair.source, pair.target, points)])[0]
    assert np.isnan(part.keypoints[[0, 5]]).all()
    assert np.isnan(part.score[[0, 5]]).all()
    keep = [i for i in range(len(points)) if i not in (0, 5)]
    np.testing.assert_allclose(part.keypoints[keep], whole.keypoints[keep], atol=1e-3)
    (maps,) = matcher.similarity([Pair(pair.source, pair.target, points)])
    assert np.isnan(maps[[0, 5]]).all()
    assert np.isfinite(maps[keep]).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("points", [np.empty((0, 2)), np.full((2, 2), np.nan)])
def test_no_points_ask_for_nothing(name: str, points: np.ndarray, matchers: dict[str, Any]) -> None:
    pair = Pair(example().source, example().target, points)
    match = matchers[name].match([pair])[0]
    assert match.keypoints.shape == points.shape
    assert np.isnan(match.keypoints).all()
    (maps,) = matchers[name].similarity([pair])
    assert maps.shape[0] == len(points)
    assert maps.ndim == 3


@pytest.mark.parametrize("name", NAMES)
def test_points_outside_are_clamped_into_the_frame(name: str, matchers: dict[str, Any]) -> None:
    pair = example()
    outside = np.array([[-200.0, 50], [-9, 50], [300, 50], [590, 410], [150, -0.5], [150, 199.5]])
    edge = np.array([[0.0, 50], [0, 50], [299.9999, 50], [299.9999, 199.9999], [150, 0], [150, 199.5]])
    found = matchers[name].match([Pair(pair.source, pair.target, outside)])[0].keypoints
    expected = matchers[name].match([Pair(pair.source, pair.target, edge)])[0].keypoints
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, atol=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_mutates_nothing_it_is_given(name: str, matchers: dict[str, Any]) -> None:
    given = example()
    pair = Pair(given.source.copy(), given.target.copy(), given.keypoints)
    matchers[name].match([pair])
    matchers[name].similarity([pair])
    np.testing.assert_array_equal(pair.source, given.source)
    np.testing.assert_array_equal(pair.target, given.target)
    np.testing.assert_array_equal(pair.keypoints, given.keypoints)
    frozen = Pair(given.source, given.target, given.keypoints)
    frozen.source.setflags(write=False)
    matchers[name].match([frozen])


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_equals_one_by_one(name: str, matchers: dict[str, Any]) -> None:
    pair = example()
    pairs = [pair, Pair(pair.target, pair.source, pair.keypoints[:4]), Pair(pair.source, pair.source, [[7.0, 9.0]])]
    together = run_matcher(matchers[name], pairs)
    for one, match in zip(pairs, together, strict=True):
        np.testing.assert_allclose(match.keypoints, matchers[name].match([one])[0].keypoints, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_runs_in_eval_and_keeps_no_gradients(name: str, matchers: dict[str, Any]) -> None:
    matcher = matchers[name]
    first, second = (matcher.match([example()])[0].keypoints for _ in range(2))
    np.testing.assert_array_equal(first, second)  # the stand-in of DHPF has a dropout
    networks = [v for v in vars(matcher._network).values() if isinstance(v, torch.nn.Module)]
    networks += [matcher._network] if isinstance(matcher._network, torch.nn.Module) else []
    assert networks
    assert not any(net.training for net in networks)
    assert all(p.grad is None for net in networks for p in net.parameters())


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1], ("scot", "chm", "mmnet", "dhpf", "cats")])
def test_all_five_live_in_one_process_in_any_order(order: tuple[str, ...], layer: Layer) -> None:
    loaded = {name: layer.load(name) for name in order}
    for name in reversed(order):
        found = loaded[name].match([example()])[0].keypoints
        assert np.abs(found - layer.said[name, "example"]["keypoints"]).max() <= 1e-3


def test_two_threads_load_and_match_at_once(layer: Layer) -> None:
    wrong: list[str] = []

    def work(order: tuple[str, ...]) -> None:
        try:
            for name in order:
                found = layer.load(name).match([example()])[0].keypoints
                if np.abs(found - layer.said[name, "example"]["keypoints"]).max() > 1e-3:
                    wrong.append(name)
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(order,)) for order in (NAMES, NAMES[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_two_threads_share_one_instance(layer: Layer, matchers: dict[str, Any]) -> None:
    found: list[np.ndarray] = []

    def work() -> None:
        found.append(matchers["cats"].match([example()])[0].keypoints)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(np.abs(one - layer.said["cats", "example"]["keypoints"]).max() <= 1e-3 for one in found)


def test_two_threads_may_keep_maps_of_one_instance(layer: Layer) -> None:
    matcher, given = layer.load("cats"), example()
    match = matcher.match([given])[0]
    matcher._answers = lambda pairs: [(match, np.zeros(1, np.float32))] * len(pairs)  # no work: threads meet often
    wrong: list[str] = []

    def work() -> None:
        try:
            pairs = [Pair(given.source, given.target, given.keypoints) for _ in range(400)]
            for pair in pairs:
                matcher.match([pair])
            matcher.similarity(pairs)
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


@pytest.mark.parametrize("name", NAMES)
def test_declares_what_it_runs(name: str, matchers: dict[str, Any]) -> None:
    matcher = matchers[name]
    licences = {"chm": "none", "dhpf": "Apache-2.0", "scot": "none", "mmnet": "none", "cats": "GPL-3.0"}
    assert matcher.name == name
    assert matcher.upstream.licence == licences[name]
    assert matcher.upstream.direction == ("target → source" if name == "cats" else "source → target")
    assert matcher.upstream.repository.count("/") == 1
    assert "20" in matcher.upstream.citation
    sizes = {"chm": 240, "dhpf": 120, "cats": 256, "scot": 300, "mmnet": (224, 320)}
    assert matcher.input_size == sizes[name]
    assert matcher.max_batch == (1 if name in ("dhpf", "scot") else matcher.max_batch)
    assert matcher.max_batch >= 1


# Loading by name ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_loads_by_name(name: str, layer: Layer) -> None:
    assert name in kbc.available_matchers()
    assert kbc.load_matcher(name, **layer.options(name)).match([example()])[0].keypoints.shape == (12, 2)


def test_unknown_names_and_options_answer_with_the_nearest(layer: Layer) -> None:
    for name in ("mnet", "MMNet"):
        with pytest.raises(InputError, match="did you mean 'mmnet'"):
            kbc.load_matcher(name)
    with pytest.raises(InputError, match="'checkpoint'"):
        kbc.load_matcher("chm", checkout=layer.checkout("chm"), chekpoint=layer.file("chm"))
    with pytest.raises(InputError, match="backbone_weights"):
        kbc.load_matcher("dhpf", checkout=layer.checkout("dhpf"), checkpoint=layer.file("dhpf"))


@pytest.mark.parametrize(
    ("name", "option", "value", "expected"),
    [
        ("chm", "ktype", "sip", "'psi'"),
        ("chm", "img_size", 250, "multiple of 16"),
        ("dhpf", "backbone", "vgg", "resnet101"),
        ("dhpf", "img_side", 250, "multiple of 4"),
        ("chm", "img_size", "240", "multiple of 16"),
        ("mmnet", "level", 4, "0, 1, 2 or 3"),
        ("mmnet", "level", 2.0, "0, 1, 2 or 3"),
        ("cats", "num_heads", "6", "divisor"),
        ("cats", "hyperpixels", 8, "whole numbers"),
        ("scot", "layers", "(2, 3)", "whole numbers"),
        ("scot", "side", 300.5, "whole number"),
        ("cats", "num_heads", 7, "divisor"),
        ("cats", "hyperpixels", (0, 8), "8 layers"),
        ("scot", "preset", "pf-pascal", "'spair' with 'resnet101'"),
        ("scot", "layers", (3, 2), "rising"),
        ("cats", "checkpoint", None, "a path"),
        ("chm", "checkpoint", 7, "a path"),
    ],
)
def test_option_values_are_checked(name: str, option: str, value: object, expected: str, layer: Layer) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        layer.load(name, **{option: value})
    assert f"`{option}` must be" in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("other", NAMES)
def test_a_checkpoint_of_another_model_is_one_sentence(name: str, other: str, layer: Layer) -> None:
    if name == other:
        return
    file = layer.file(other, "imagenet" if other == "scot" else "checkpoint")
    with pytest.raises(InputError, match=r"`checkpoint` must be") as caught:
        layer.load(name, checkpoint=file)
    assert len(str(caught.value)) < 400
    assert f"received one of {'an ImageNet ResNet' if other == 'scot' else other}" in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_or_broken_file_is_one_sentence(name: str, layer: Layer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="existing checkpoint file"):
        layer.load(name, checkpoint=tmp_path / "no.pth")
    (tmp_path / "model.pkl").touch()
    with pytest.raises(InputError, match="`checkpoint` must be a file ending in"):
        layer.load(name, checkpoint=tmp_path / "model.pkl")
    (tmp_path / "page.pth").write_text("<html>please sign in</html>")
    with pytest.raises(DataError, match=r"`checkpoint` must be .*begins with b'<html>.*copy it again$"):
        layer.load(name, checkpoint=tmp_path / "page.pth")
    broken = tmp_path / "broken.pth"
    broken.write_bytes(layer.file(name, "imagenet" if name == "scot" else "checkpoint").read_bytes()[:5000])
    with pytest.raises(DataError, match="`checkpoint` must be"):
        layer.load(name, checkpoint=broken)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_one_sentence(name: str, device: str, layer: Layer) -> None:
    with pytest.raises(InputError, match=rf"`device` must be .* received '{device}' \("):
        layer.load(name, device=device)


def test_wrong_backbone_weights_are_one_sentence(layer: Layer) -> None:
    with pytest.raises(InputError, match="`backbone_weights` must be an ImageNet resnet101"):
        layer.load("dhpf", backbone_weights=layer.file("dhpf"))
    with pytest.raises(InputError, match="`backbone_weights` must be an ImageNet resnet50"):
        layer.load("dhpf", backbone="resnet50")


# With KBC on ----------------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize("name", NAMES)
def test_kbc_on_runs_on_a_real_small_object(name: str, matchers: dict[str, Any], data: Path) -> None:
    pair = small_object(data)
    for options in ({"passes": 0}, {"localizer": "consensus"}, {"localizer": "best"}, {"localizer": "predicted"}):
        result = kbc.wrap(matchers[name], **options).match([pair])[0]
        assert result.keypoints.shape == pair.keypoints.shape
        assert np.isfinite(result.keypoints).all()
        if options == {"passes": 0}:
            np.testing.assert_allclose(result.keypoints, matchers[name].match([pair])[0].keypoints, atol=1e-6)


def small_object(data: Path) -> Pair:
    """Two cows, each about a fifth of its photograph's width and height."""
    import json

    folder = data / "livestock-small"
    annotations = json.loads((folder / "annotations.json").read_text())
    images = {image["id"]: image for image in annotations["images"]}
    by_id = {found["id"]: found for found in annotations["annotations"]}
    source, target = (by_id[i] for i in json.loads((folder / "pairs.json").read_text())["pairs"][0])
    points = np.array(source["keypoints"], dtype=float).reshape(-1, 3)[:, :2]
    return Pair(*(str(folder / images[a["image_id"]]["file_name"]) for a in (source, target)), points)
