"""The real repositories, when KBC_UPSTREAM names a folder with `chm dhpf SCOT MMNet cats`; random weights.

    KBC_UPSTREAM=… KBC_DATA=… pytest tests/adapters/test_real.py -s

`-s` shows one line per matcher: seconds and the largest difference, which examples/results/adapters.md records.
"""

from __future__ import annotations

import os
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from adapter_layers import FOLDERS, NAMES, Layer, example, scene, shifted
from kbc_adapters.mmnet import MMNet
from kbc_adapters.sandbox import Checkout
from kbc_adapters.upstream import packages
from test_adapters import small_object

import kbc
from kbc.types import Pair

pytestmark = [pytest.mark.upstream, pytest.mark.slow]

FRAMES = {"chm": (240, 240), "dhpf": (240, 240), "cats": (256, 256), "mmnet": (224, 320), "scot": (240, 300)}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Layer:
    root = Path(os.environ.get("KBC_UPSTREAM", "/nowhere"))
    missing = [folder for folder in FOLDERS.values() if not (root / folder).is_dir()]
    if missing:
        pytest.skip(f"needs upstream checkouts in KBC_UPSTREAM: {', '.join(missing)}")
    found = Layer(root, tmp_path_factory.mktemp("real"), {})
    found.said = found.run({"photographs": photographs()})
    return found


@pytest.fixture(scope="module")
def loaded(real: Layer) -> dict[str, Any]:
    return {name: real.load(name) for name in NAMES}


def photographs() -> Pair:
    """Two photographs of cars from PF-WILLOW where there are any, else two drawn scenes."""
    root = Path(os.environ.get("KBC_DATA", "/nowhere")) / "data"
    if not root.is_dir():
        return example()
    return willow(root)


def willow(root: Path) -> Pair:
    import json

    folder = root / "pf-willow"
    annotations = json.loads((folder / "annotations.json").read_text())
    images = {image["id"]: image for image in annotations["images"]}
    by_id = {found["id"]: found for found in annotations["annotations"]}
    source, target = (by_id[i] for i in json.loads((folder / "pairs.json").read_text())["pairs"][5])
    points = np.array(source["keypoints"], dtype=float).reshape(-1, 3)[:, :2]
    return Pair(*(str(folder / images[a["image_id"]]["file_name"]) for a in (source, target)), points)


@pytest.mark.parametrize("name", NAMES)
def test_real_equals_upstreams_own_predict_path(name: str, real: Layer, loaded: dict[str, Any]) -> None:
    start = time.perf_counter()
    found = loaded[name].match([photographs()])[0].keypoints
    seconds = time.perf_counter() - start
    said = real.said[name, "photographs"]
    worst = np.abs(found - said["keypoints"]).max()
    print(f"\n{name}: largest difference {worst:.1e} px; {seconds:.1f} s, upstream {said['seconds']:.1f} s", end=" ")
    assert worst <= 1e-3


def test_real_cats_departs_by_the_fraction_alone(real: Layer, loaded: dict[str, Any]) -> None:
    pair = photographs()
    kept = real.load("cats", truncate=False).match([pair])[0].keypoints
    height, width = pair.source.shape[:2]
    in_frame = pair.keypoints * (256 / width, 256 / height)
    fraction = (in_frame - np.floor(in_frame)) * (pair.target.shape[1] / 256, pair.target.shape[0] / 256)
    departure = kept - real.said["cats", "photographs"]["keypoints"]
    print(f"\ncats keeps the fraction: departs by up to {np.abs(departure).max():.3f} px", end=" ")
    np.testing.assert_allclose(departure, fraction, atol=1e-3)


def test_real_chm_departs_at_118_px_alone(loaded: dict[str, Any]) -> None:
    photos = photographs()
    square = Pair(photos.source[:200, :240], photos.target, [[118.0, 60.0], [117.999, 60.0], [118.001, 60.0]])
    found = loaded["chm"].match([square])[0].keypoints
    chm = loaded["chm"]
    with chm.checkout.running(torch.device("cpu")):
        (corr,) = chm._correlate([square])
        frame = chm._to_frame(square.keypoints, square.source)
        upstream = chm._geometry.transfer_kps(corr, frame[None], torch.tensor([3]), normalized=False)[0]
    print(f"\nchm at 118 px: upstream {upstream[:, 0].tolist()}, here {found[0].round(2).tolist()}", end=" ")
    assert torch.isnan(upstream[:, 0]).all()
    assert torch.isfinite(upstream[:, 1:]).all()
    np.testing.assert_allclose(found[0], (found[1] + found[2]) / 2, atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_real_known_translation(name: str, loaded: dict[str, Any]) -> None:
    height, width = FRAMES[name]
    photo = os.environ.get("KBC_DATA") and large_photograph(Path(os.environ["KBC_DATA"]) / "data")
    image = photo if isinstance(photo, np.ndarray) else scene(7, 480, 480)
    pair = shifted((height, width), (48, -32), image)
    moved = loaded[name].match([pair])[0].keypoints - pair.keypoints
    near = np.mean(np.abs(moved - (48, -32)).max(axis=1) <= 16)
    x, y = np.median(moved, axis=0)
    print(f"\n{name}: shifted by (48, -32), found ({x:.1f}, {y:.1f}); {near:.0%} of the points within 16 px", end=" ")
    assert np.abs((x - 48, y + 32)).max() <= 16
    assert near >= 0.3  # chance is 0.02; a matcher that always answers the middle would have the sign right


def large_photograph(root: Path) -> np.ndarray:
    return kbc.load_image(sorted((root / "livestock-mid" / "images").iterdir())[0])


@pytest.mark.data
@pytest.mark.parametrize("name", NAMES)
def test_real_kbc_on_a_small_object(name: str, loaded: dict[str, Any], data: Path) -> None:
    pair = small_object(data)
    start = time.perf_counter()
    result = kbc.wrap(loaded[name]).match([pair])[0]
    spent = time.perf_counter() - start
    print(f"\n{name} with KBC: {spent:.1f} s, {result.calls} calls, kept {sorted(set(result.origin))}", end=" ")
    assert np.isfinite(result.keypoints).all()


def test_real_models_load_and_match_from_two_threads_in_any_order(real: Layer) -> None:
    wrong: list[str] = []

    def work(names: tuple[str, ...]) -> None:
        try:
            for name in names:
                found = real.load(name).match([photographs()])[0].keypoints
                if np.abs(found - real.said[name, "photographs"]["keypoints"]).max() > 1e-3:
                    wrong.append(name)
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(names,)) for names in (NAMES, NAMES[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_real_cats_depth_and_layers_are_read_off(real: Layer, loaded: dict[str, Any]) -> None:
    assert len(loaded["cats"]._network.decoder.blocks) == 1
    assert len(loaded["cats"]._network.proj) == 8


def test_real_fcn_backbones_run_with_gluoncv(real: Layer, tmp_path: Path) -> None:
    """What MMNet's released models need. Equal to upstream's own transfer of upstream's own forward pass."""
    if find_spec("gluoncvth") is None:
        pytest.skip("needs gluoncv-torch: pip install --no-deps gluoncv-torch==0.0.5")
    code = Checkout(real.checkout("mmnet"), MMNet.upstream, **packages(fcn=True))
    code.untrained("gluoncvth.models", "get_fcn_resnet101_voc")
    options = SimpleNamespace(backbone_name="fcn-resnet101", ms_rate=4, feature_channel=21)
    with code.building(torch.device("cpu")):
        torch.manual_seed(0)
        network = code.get("models.Model", "MMNet")(options, "cpu").eval()
        fcn = code.get("gluoncvth.models", "get_fcn_resnet101_voc")()
    unread = ("upsample_", "backbone.fc")
    whole = network.state_dict()
    state = {k: v.new_zeros(1).expand(v.shape) if k.startswith(unread) else v for k, v in whole.items()}
    torch.save(state, tmp_path / "mmnet.pth")
    torch.save(fcn.state_dict(), tmp_path / "fcn.pth")
    pair = example()
    matcher = real.load("mmnet", checkpoint=tmp_path / "mmnet.pth")
    found = matcher.match([pair])[0].keypoints
    with matcher.checkout.running(torch.device("cpu")):
        images = {"src_img": matcher._image(pair.source), "trg_img": matcher._image(pair.target)}
        frame = matcher._to_frame(pair.keypoints, pair.source)
        said = code.get("utils.geometry", "predict_kps")(frame, network(images)[2][0][0], originalShape=[320, 224])
    np.testing.assert_allclose(found, np.array(said).T / matcher._scale(pair.target), atol=1e-3)
    scot = real.load("scot", backbone="fcn101", checkpoint=tmp_path / "fcn.pth")
    assert np.isfinite(scot.match([pair])[0].keypoints).all()
