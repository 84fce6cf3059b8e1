"""Every trap of the five upstream matchers, by name: that the stand-in has it, and that the adapter avoids it."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_layers import NAMES, Layer, example, shifted
from kbc_adapters.sandbox import Checkout
from kbc_adapters.upstream import pillow_resize, read_checkpoint

from kbc.errors import DataError, InputError, MatcherError
from kbc.types import Pair

CPU = torch.device("cpu")


def running(matcher: Any) -> Any:
    """Upstream's functions, called by a test as the adapter calls them."""
    return matcher.checkout.running(CPU)


def points(*xy: tuple[float, float]) -> torch.Tensor:
    return torch.tensor(xy).T


# What every adapter needs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_trap_cuda_calls_on_a_machine_without_cuda(name: str, matchers: dict[str, Any]) -> None:
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, AssertionError)):
            torch.zeros(1).cuda()
    assert np.isfinite(matchers[name].match([example()])[0].keypoints).all()


def test_trap_the_cuda_mapping_is_thread_local(layer: Layer) -> None:
    loaded: list[Any] = []
    thread = threading.Thread(target=lambda: loaded.append(layer.load("scot")))
    thread.start()
    thread.join()
    found = loaded[0].match([example()])[0].keypoints  # loaded there, used here; SCOT calls .cuda() in its forward
    assert np.abs(found - layer.said["scot", "example"]["keypoints"]).max() <= 1e-3


def test_trap_colliding_top_level_names(layer: Layer) -> None:
    chm, dhpf, scot = (layer.load(name) for name in ("chm", "dhpf", "scot"))
    files = {str(matcher.checkout.module("model.base.geometry").__file__) for matcher in (chm, dhpf)}
    files.add(str(scot.checkout.module("model.geometry").__file__))
    assert len(files) == 3


def test_trap_class_level_state(layer: Layer) -> None:
    first = layer.load("chm")
    alone = first.match([example()])[0].keypoints
    second = layer.load("chm", img_size=256)
    assert (first._geometry.img_size, second._geometry.img_size) == (240, 256)
    np.testing.assert_array_equal(first.match([example()])[0].keypoints, alone)


@pytest.mark.parametrize("name", NAMES)
def test_trap_pretrained_true_is_hard_coded(name: str, layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.utils.model_zoo, "load_url", refuse)
    layer.load(name)


@pytest.mark.parametrize("name", NAMES)
def test_trap_checkpoints_can_hold_code(
    name: str, layer: Layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "it ran"

    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (mark,))

    torch.save({"state_dict": {"weight": Malicious()}}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malicious(), protocol=2))
    for file in ("evil.pth", "plain.pth"):
        with pytest.raises(DataError, match="`checkpoint` must be"):
            layer.load(name, checkpoint=tmp_path / file)
    assert not mark.exists()
    flags: list[object] = []
    original = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: flags.append(k.get("weights_only")) or original(*a, **k))
    layer.load(name)
    assert flags
    assert all(flag is True for flag in flags)


def test_trap_points_scale_without_the_half_pixel(matchers: dict[str, Any]) -> None:
    matcher = matchers["chm"]
    wide = np.zeros((120, 480, 3), np.uint8)
    frame = matcher._to_frame(np.array([[100.0, 60.0], [0.0, 0.0]]), wide)
    np.testing.assert_allclose(frame.numpy(), [[50.0, 0.0], [120.0, 0.0]])


def test_trap_images_are_resized_by_pillow() -> None:
    import PIL
    from PIL import Image

    y_first = int(PIL.__version__.partition(".")[0]) >= 13  # at some sizes: one grey level, see `pillow_resize`
    random = np.random.default_rng(0)
    for height, width, size in [(200, 300, 240), (333, 101, 256), (64, 900, 240), (1, 1, 240), (240, 240, 240)]:
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
        found = pillow_resize(image, (size, size))
        np.testing.assert_allclose(found.astype(int), expected.astype(int), rtol=0, atol=1 if y_first else 0)


# CHM ------------------------------------------------------------------------------------------------------------


def at_120(x: float, y: float) -> Pair:
    pair = shifted((240, 240), (32, -24))
    return Pair(pair.source, pair.target, [[x, y]])


def test_trap_chm_118_px_is_taken_for_padding(matchers: dict[str, Any]) -> None:
    matcher = matchers["chm"]
    pair = at_120(118.0, 90.0)
    with running(matcher):
        (found,) = matcher._correlate([pair])
        upstream = matcher._geometry.transfer_kps(found, points((118.0, 90.0))[None], torch.tensor([1]), False)
    assert torch.isnan(upstream).any()
    exact, left, right = (matcher.match([at_120(x, 90.0)])[0].keypoints[0] for x in (118.0, 117.99, 118.01))
    np.testing.assert_allclose(exact, (left + right) / 2, atol=0.01)
    assert np.isfinite(matcher.match([at_120(90.0, 118.0)])[0].keypoints).all()


def test_trap_chm_an_answer_of_minus_2_is_not_unnormalized(matchers: dict[str, Any]) -> None:
    matcher = matchers["chm"]
    assert matcher._geometry.unnormalize_kps(torch.tensor([-2.0])).item() == -2.0  # should be −120
    matcher_answers = matcher._transfer
    geometry = matcher._geometry
    original = geometry.transfer_kps
    geometry.transfer_kps = lambda *a, **k: torch.full((1, 2, 1), -2.0)
    try:
        assert matcher_answers(torch.zeros(1), points((1.0, 1.0))).flatten().tolist() == [-120.0, -120.0]
    finally:
        geometry.transfer_kps = original


def test_trap_chm_12_px_outside_gives_nan(matchers: dict[str, Any]) -> None:
    matcher = matchers["chm"]
    with running(matcher):
        (found,) = matcher._correlate([at_120(5.0, 5.0)])
        assert torch.isnan(matcher._transfer(found, points((-14.0, 5.0)))).all()
    np.testing.assert_array_equal(
        matcher.match([at_120(-14.0, 5.0)])[0].keypoints, matcher.match([at_120(0.0, 5.0)])[0].keypoints
    )


def test_trap_chm_imports_tensorboardx_and_logs_to_the_root_logger(layer: Layer) -> None:
    import logging

    handlers = list(logging.getLogger().handlers)
    layer.load("chm")
    assert logging.getLogger().handlers == handlers


def test_trap_chm_plain_tensors_do_not_move_with_to(layer: Layer) -> None:
    matcher = layer.load("chm")
    kernel = matcher._network.learner.chm6d.kernel
    assert "learner.chm6d.kernel" not in matcher._network.state_dict()
    assert kernel.device.type == "cpu"
    with Checkout(layer.checkout("chm"), matcher.upstream).building(torch.device("meta")):
        assert torch.zeros(1).cuda().device.type == "meta"  # whatever device is asked for


@pytest.mark.parametrize("size", [256, 320])
def test_trap_chm_geometry_must_match_the_size(size: int, layer: Layer) -> None:
    matcher = layer.load("chm", img_size=size)
    pair = shifted((size, size), (32, -24))
    moved = matcher.match([pair])[0].keypoints - pair.keypoints
    assert np.abs(np.median(moved, axis=0) - (32, -24)).max() <= 4.0


def test_trap_chm_250_fails_in_transfer(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="multiple of 16"):
        layer.load("chm", img_size=250)
    monkeypatch.setattr("kbc_adapters.chm.check_side", lambda *unchecked: None)
    with pytest.raises(RuntimeError):
        layer.load("chm", img_size=250).match([example()])


def test_trap_chm_accepts_images_that_are_not_square(matchers: dict[str, Any]) -> None:
    seen: list[torch.Size] = []
    hook = matchers["chm"]._network.backbone.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].shape))
    try:
        matchers["chm"].match([example()])
    finally:
        hook.remove()
    assert seen == [(1, 3, 240, 240)] * 2


def test_trap_chm_pads_with_minus_2(matchers: dict[str, Any]) -> None:
    pairs = [at_120(50.0, 60.0), Pair(at_120(1, 1).source, at_120(1, 1).target, [[50.0, 60.0], [-1.9, 7.0], [70, 80]])]
    one, three = matchers["chm"].match(pairs)
    assert (len(one.keypoints), len(three.keypoints)) == (1, 3)
    assert np.isfinite(three.keypoints).all()
    np.testing.assert_allclose(one.keypoints[0], three.keypoints[0], atol=1e-3)


def test_trap_chm_kernel_type_must_fit_the_checkpoint(layer: Layer) -> None:
    with pytest.raises(InputError, match=r"chm with ktype='iso'.*of another shape.*try another ktype"):
        layer.load("chm", ktype="iso")


# DHPF -----------------------------------------------------------------------------------------------------------


def test_trap_dhpf_checkpoint_holds_the_learner_only(layer: Layer) -> None:
    assert not any(key.startswith(("backbone", "conv1")) for key in read_checkpoint(layer.file("dhpf")))
    backbone = layer.load("dhpf")._network.backbone.state_dict()
    given = read_checkpoint(layer.file("dhpf", "imagenet"))
    torch.testing.assert_close(backbone["conv1.weight"], torch.cat([given["conv1.weight"]] * 2))


def test_trap_dhpf_num_batches_tracked_crashes_cat(layer: Layer) -> None:
    given = read_checkpoint(layer.file("dhpf", "imagenet"))
    assert any(key.endswith("num_batches_tracked") for key in given)
    matcher = layer.load("dhpf")
    code = Checkout(layer.checkout("dhpf"), matcher.upstream, weights=given)
    with pytest.raises(MatcherError, match=r"zero-dimensional"), code.building(CPU):
        code.get("model.base.resnet", "resnet101")(pretrained=True)


def test_trap_dhpf_fails_on_a_batch(matchers: dict[str, Any]) -> None:
    matcher = matchers["dhpf"]
    pairs = [example(), example()]
    with running(matcher), pytest.raises((RuntimeError, ValueError)):
        matcher._network(*matcher._images(pairs))
    assert matcher.max_batch == 1
    assert len(matcher.match(pairs)) == 2


def test_trap_dhpf_pads_to_400_and_fails_on_more(matchers: dict[str, Any]) -> None:
    matcher = matchers["dhpf"]
    many = torch.rand(1, 2, 401) * 100
    with running(matcher):
        (found,) = matcher._correlate([example()])
        few = matcher._geometry.transfer_kps(found, many[..., :3], torch.tensor([3]))
        assert few.shape == (1, 2, 400)
        with pytest.raises(RuntimeError):
            matcher._geometry.transfer_kps(found, many, torch.tensor([401]))
        assert matcher._transfer(found, many[0]).shape == (2, 401)
        assert matcher._rows(found, many[0]).shape[0] == 401


def test_trap_dhpf_outside_its_boxes_gives_nan(matchers: dict[str, Any]) -> None:
    matcher = matchers["dhpf"]
    with running(matcher):
        (found,) = matcher._correlate([example()])
        assert torch.isnan(matcher._transfer(found, points((-6.0, 20.0), (20.0, 127.0)))).all()
    outside = Pair(example().source, example().target, [[-15.0, 20.0], [20.0, 215.0], [299.4, 199.4]])
    assert np.isfinite(matcher.match([outside])[0].keypoints).all()


def test_trap_dhpf_a_second_model_overwrites_the_receptive_fields(layer: Layer) -> None:
    first = layer.load("dhpf")
    alone = first.match([example()])[0].keypoints
    second = layer.load("dhpf", img_side=160)
    assert (len(first._geometry.rfs), len(second._geometry.rfs)) == (900, 1600)
    np.testing.assert_array_equal(first.match([example()])[0].keypoints, alone)


def test_trap_dhpf_is_no_module(matchers: dict[str, Any]) -> None:
    network = matchers["dhpf"]._network
    assert not isinstance(network, torch.nn.Module)
    assert not network.learner.training
    assert not network.backbone.training


def test_trap_dhpf_evaluation_wants_skimage(layer: Layer) -> None:
    code = layer.load("dhpf").checkout
    assert (code.root / "common/evaluation.py").is_file()
    assert "common.evaluation" not in code._modules
