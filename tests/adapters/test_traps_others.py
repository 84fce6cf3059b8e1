"""The traps of SCOT, MMNet and CATs, by name; see `test_traps.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_layers import Layer, example, shifted
from kbc_adapters.sandbox import Checkout
from kbc_adapters.upstream import normalised, read_checkpoint

from kbc.errors import DataError, InputError, MatcherError, MissingDependencyError
from kbc.types import Pair

CPU = torch.device("cpu")


def running(matcher: Any) -> Any:
    """Upstream's functions, called by a test as the adapter calls them."""
    return matcher.checkout.running(CPU)


def points(*xy: tuple[float, float]) -> torch.Tensor:
    return torch.tensor(xy).T


# SCOT -----------------------------------------------------------------------------------------------------------


def test_trap_scot_scales_the_callers_keypoints_in_place(matchers: dict[str, Any]) -> None:
    matcher = matchers["scot"]
    mine = points((100.0, 50.0))
    matcher._resize(normalised(example().source, CPU)[None], mine, 150)
    assert mine.flatten().tolist() == [50.0, 25.0]  # upstream does
    pair = example()
    before = pair.keypoints.copy()
    first, second = (matcher.match([pair])[0].keypoints for _ in range(2))
    np.testing.assert_array_equal(pair.keypoints, before)
    np.testing.assert_array_equal(first, second)


def test_trap_scot_answers_in_the_resized_target(matchers: dict[str, Any]) -> None:
    pair = shifted((224, 300), (32, -24))
    doubled = Pair(pair.source, np.kron(pair.target, np.ones((2, 2, 1), np.uint8)), pair.keypoints)
    plain, large = (matchers["scot"].match([one])[0].keypoints for one in (pair, doubled))
    np.testing.assert_allclose(large, plain * 2, atol=2.0)


def test_trap_scot_sizes_may_differ_and_the_aspect_is_kept(matchers: dict[str, Any]) -> None:
    matcher = matchers["scot"]
    assert matcher._image(example().source).shape == (3, 200, 300)
    assert matcher._image(example().target).shape == (3, 236, 300)
    assert matcher._scale(example().target) == pytest.approx((300 / 330, 300 / 330))


def test_trap_scot_normalises_at_the_original_size_and_resizes_without_a_filter(matchers: dict[str, Any]) -> None:
    whole = normalised(example().target, CPU)[None]
    expected = torch.nn.functional.interpolate(whole, size=(236, 300), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(matchers["scot"]._image(example().target), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_trap_scot_hangs_on_features_that_are_not_finite(value: float, layer: Layer) -> None:
    matcher = layer.load("scot")
    network = matcher._network
    original = network.extract_hyperpixel

    def spoilt(image: torch.Tensor, maptype: int) -> Any:
        box, features, size = original(image, maptype)
        features[5] = value
        return box, features, size

    network.extract_hyperpixel = spoilt
    with pytest.raises(MatcherError, match="SCOT's features must be finite"):
        matcher.match([example()])
    unguarded = Checkout(layer.checkout("scot"), matcher.upstream)
    features = torch.ones(4, 2)
    features[1] = value
    with running(matcher), pytest.raises(RuntimeError, match="for ever"):
        unguarded.module("model.rhm_map").rhm((None, features), (None, torch.ones(4, 2)), "OTGeo", 1.0, 1.0, 0.05)


def test_trap_scot_first_layer_must_be_at_most_9(layer: Layer) -> None:
    with pytest.raises(InputError, match="the first at most 9"):
        layer.load("scot", layers=(10, 20))
    code = layer.load("scot").checkout
    network = code.get("model.scot_CAM", "SCOT_CAM")("resnet101", "(10, 20)", "pfpascal", CPU, "")
    with pytest.raises(IndexError):
        network.extract_hyperpixel(torch.zeros(3, 64, 64), 0)


def test_trap_scot_imports_gluoncvth_unconditionally(layer: Layer) -> None:
    assert "import gluoncvth" in (layer.checkout("scot") / "model/scot_CAM.py").read_text()
    layer.load("scot")


def test_trap_scot_needs_fc_for_cam(layer: Layer, tmp_path: Path) -> None:
    state = read_checkpoint(layer.file("scot", "imagenet"))
    torch.save({key: value for key, value in state.items() if not key.startswith("fc.")}, tmp_path / "headless.pth")
    with pytest.raises(InputError, match=r"`fc` included.*without fc\.weight"):
        layer.load("scot", checkpoint=tmp_path / "headless.pth")


def test_trap_scot_img_h_is_undefined_for_large_sides(layer: Layer) -> None:
    with pytest.raises(InputError, match=r"whole number between 64 and 400.*cam=False"):
        layer.load("scot", side=440)
    square = np.zeros((440, 440, 3), np.uint8)
    matcher = layer.load("scot")
    with running(matcher), pytest.raises(NameError, match="img_h"):
        matcher._network.extract_hyperpixel(normalised(square, CPU), 1)
    found = layer.load("scot", side=440, cam=False)
    assert found.input_size == 440


def test_trap_scot_one_pair_at_a_time(matchers: dict[str, Any]) -> None:
    assert matchers["scot"].max_batch == 1
    assert len(matchers["scot"].match([example()] * 3)) == 3


def test_trap_scot_fcn_needs_gluoncv(layer: Layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kbc_adapters.upstream.find_spec", lambda name: None)
    torch.save({"head.conv5.0.weight": torch.zeros(1)}, tmp_path / "fcn.pth")
    with pytest.raises(MissingDependencyError, match="pip install --no-deps gluoncv-torch"):
        layer.load("scot", backbone="fcn101", layers=None, checkpoint=tmp_path / "fcn.pth")
    with pytest.raises(InputError, match="FCN"):
        layer.load("scot", backbone="fcn101", layers=None)


# MMNet ----------------------------------------------------------------------------------------------------------


def test_trap_mmnet_device_defaults_to_cuda(layer: Layer) -> None:
    matcher = layer.load("mmnet")
    build = matcher.checkout.get("models.Model", "MMNet")
    if not torch.cuda.is_available():
        from types import SimpleNamespace

        with pytest.raises((RuntimeError, AssertionError)):
            build(SimpleNamespace(backbone_name="resnet101", ms_rate=4, feature_channel=21))
    assert next(matcher._network.parameters()).device == CPU


def test_trap_mmnet_normalises_before_it_resizes(matchers: dict[str, Any]) -> None:
    prepared = matchers["mmnet"]._image(example().target)
    whole = normalised(example().target, CPU)[None]
    expected = torch.nn.functional.interpolate(whole, size=(224, 320), mode="bilinear", align_corners=False)
    torch.testing.assert_close(prepared, expected[0])


def test_trap_mmnet_is_wider_than_high_and_needs_multiples_of_32(matchers: dict[str, Any]) -> None:
    matcher = matchers["mmnet"]
    assert matcher.input_size == (224, 320)
    square = torch.zeros(1, 3, 240, 240)
    with running(matcher), pytest.raises(RuntimeError):
        matcher._network({"src_img": square, "trg_img": square})


def test_trap_mmnet_right_edge_is_an_index_error_and_left_wraps(matchers: dict[str, Any]) -> None:
    matcher = matchers["mmnet"]
    pair = shifted((224, 320), (0, 0))
    with running(matcher):
        (found,) = matcher._correlate([pair])
        with pytest.raises(IndexError):
            matcher._transfer(found, points((320.0, 50.0)))
        wrapped = matcher._transfer(found, points((-9.0, 48.0)))
    assert wrapped[0].item() > 160
    edges = Pair(pair.source, pair.target, [[319.5, 48.0], [319.99, 223.9], [-9.0, 48.0], [-40.0, -40.0]])
    moved = matcher.match([edges])[0].keypoints
    np.testing.assert_allclose(moved, [[312, 48], [312, 216], [0, 48], [0, 0]], atol=8.0)


def test_trap_mmnet_quantises_to_8_px(layer: Layer, matchers: dict[str, Any]) -> None:
    found = matchers["mmnet"].match([shifted((224, 320), (32, -24))])[0].keypoints
    np.testing.assert_allclose(found % 8, 0, atol=1e-6)
    assert [layer.load("mmnet", level=level).node_step for level in (0, 1, 2, 3)] == [32, 16, 8, 4]


def test_trap_mmnet_gives_levels_and_both_directions(matchers: dict[str, Any]) -> None:
    matcher = matchers["mmnet"]
    with running(matcher):
        (found,) = matcher._correlate([shifted((224, 320), (32, -24))])
    assert found.shape == (28, 40, 28, 40)
    moved = matcher.match([shifted((224, 320), (32, -24))])[0].keypoints
    shift = np.median(moved - shifted((224, 320), (32, -24)).keypoints, axis=0)
    assert np.abs(shift - (32, -24)).max() <= 8  # the first of the two: source → target


def test_trap_mmnet_scales_points_it_is_given_in_place(matchers: dict[str, Any]) -> None:
    given = points((100.0, 50.0))
    with running(matchers["mmnet"]):
        (found,) = matchers["mmnet"]._correlate([example()])
        matchers["mmnet"]._rows(found, given)
        matchers["mmnet"]._transfer(found, given)
    assert given.flatten().tolist() == [100.0, 50.0]


def test_trap_mmnet_released_models_need_gluoncv(layer: Layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kbc_adapters.upstream.find_spec", lambda name: None)
    state = read_checkpoint(layer.file("mmnet")) | {"backbone.conv1.0.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "fcn.pth")
    with pytest.raises(MissingDependencyError, match="pip install --no-deps gluoncv-torch"):
        layer.load("mmnet", checkpoint=tmp_path / "fcn.pth")


def test_trap_mmnet_gluoncv_would_download(layer: Layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "gluoncvth"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("from . import models\n")
    (package / "models/__init__.py").write_text(
        "import requests, torchvision.transforms\n"
        "def get_fcn_resnet101_voc(pretrained=True):\n"
        "    raise ConnectionError('a download') if pretrained else NotImplementedError('reached, without weights')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(read_checkpoint(layer.file("mmnet")) | {"backbone.conv1.0.weight": torch.zeros(1)}, tmp_path / "f.pth")
    with pytest.raises(MatcherError, match="reached, without weights"):
        layer.load("mmnet", checkpoint=tmp_path / "f.pth")


# CATs -----------------------------------------------------------------------------------------------------------


def test_trap_cats_direction_is_reversed(matchers: dict[str, Any]) -> None:
    matcher = matchers["cats"]
    pair = shifted((256, 256), (32, -48))
    with running(matcher):
        source, target = matcher._images([pair])
        as_named = matcher._network(target, source)  # forward(target, source), as its parameters are called
    flow = as_named[0].flatten(1).median(dim=1).values * 16
    assert np.abs(flow.numpy() - (-32, 48)).max() <= 8
    moved = matcher.match([pair])[0].keypoints - pair.keypoints
    assert np.abs(np.median(moved, axis=0) - (32, -48)).max() <= 8


def test_trap_cats_truncates_keypoints(layer: Layer, matchers: dict[str, Any]) -> None:
    pair = shifted((256, 256), (32, -48))
    fractions = Pair(pair.source, pair.target, [[100.0, 120.0], [100.75, 120.5], [101.0, 121.0]])
    exact = matchers["cats"].match([fractions])[0].keypoints  # truncate=True: upstream's own behaviour
    np.testing.assert_array_equal(exact[1], exact[0])
    kept = layer.load("cats", truncate=False).match([fractions])[0].keypoints
    np.testing.assert_allclose(kept[1] - kept[0], (0.75, 0.5), atol=1e-4)
    np.testing.assert_allclose(kept[[0, 2]], exact[[0, 2]], atol=1e-4)


def test_trap_cats_clamps_to_255(layer: Layer) -> None:
    pair = shifted((256, 256), (0, 0))
    edges = Pair(pair.source, pair.target, [[254.0, 9.0], [255.0, 9.0], [255.4, 9.0]])
    found = layer.load("cats", truncate=False).match([edges])[0].keypoints
    np.testing.assert_allclose(found[2] - found[1], (0.4, 0.0), atol=1e-3)


def test_trap_cats_depth_is_1_in_training_and_4_in_the_constructor(layer: Layer, tmp_path: Path) -> None:
    assert len(layer.load("cats")._network.decoder.blocks) == 1
    code = layer.load("cats").checkout
    code.untrained("models.feature_backbones.resnet", "resnet101")
    with code.building(CPU):
        deep = code.get("models.cats", "CATs")(depth=4)
    torch.save({"state_dict": deep.state_dict()}, tmp_path / "deep.pth")
    assert len(layer.load("cats", checkpoint=tmp_path / "deep.pth")._network.decoder.blocks) == 4


def test_trap_cats_options_are_in_a_pickled_file(layer: Layer, tmp_path: Path) -> None:
    (tmp_path / "args.pkl").write_bytes(b"cposix\nsystem\n(S'exit 1'\ntR.")
    (tmp_path / "model_best.pth").write_bytes(layer.file("cats").read_bytes())
    assert layer.load("cats", checkpoint=tmp_path).name == "cats"  # the folder; args.pkl stays closed


def test_trap_cats_numpy_best_loss_fails_weights_only(layer: Layer, tmp_path: Path) -> None:
    state = read_checkpoint(layer.file("cats"))
    torch.save({"state_dict": state, "best_loss": np.float64(1.5)}, tmp_path / "model_best.pth")
    with pytest.raises(DataError, match=r"holds numpy\S+scalar; .*weights_only=False"):
        layer.load("cats", checkpoint=tmp_path / "model_best.pth")
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "parallel.pth")
    assert layer.load("cats", checkpoint=tmp_path / "parallel.pth").name == "cats"


def test_trap_cats_imports_timm_and_torchvision(layer: Layer) -> None:
    text = (layer.checkout("cats") / "models/cats.py").read_text()
    assert "from timm.models.layers import" in text
    assert "import torchvision" in text
    layer.load("cats")


def test_trap_cats_imports_at_run_time(matchers: dict[str, Any]) -> None:
    assert np.isfinite(matchers["cats"].match([example()])[0].keypoints).all()


def test_trap_cats_batch_is_exact(matchers: dict[str, Any]) -> None:
    pairs = [example(), shifted((256, 256), (32, -48)), example()]
    together = matchers["cats"].match(pairs)
    for pair, match in zip(pairs, together, strict=True):
        np.testing.assert_allclose(match.keypoints, matchers["cats"].match([pair])[0].keypoints, atol=1e-3)
