"""Checkpoints: round trips, and every way in which one does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from kbcnet_helpers import shaken, small_config

from kbc.errors import DataError, InputError
from kbc.kbcnet.checkpoint import backbone_digest, empty_network, load_checkpoint, put_backbone, save_checkpoint
from kbc.kbcnet.matcher import BUNDLED, load
from kbc.kbcnet.model import Network
from kbc.kbcnet.training.recipe import read_recipe
from kbc.matchers.resnet import ResNet
from kbc.weights import load_safetensors, save_safetensors


def test_round_trip(checkpoint: Path, network: Network) -> None:
    loaded, card = load_checkpoint(checkpoint)
    assert card.model == network.config
    assert not loaded.training
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), network.state_dict().values(), strict=True)
    )
    assert load_checkpoint(checkpoint.with_suffix(".json"))[1] == card


def test_building_a_network_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    first, second = (empty_network(small_config(), seed=3) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first.state_dict()["csfa.query.weight"], second.state_dict()["csfa.query.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("csfa.query.weight"), "lacks 'csfa.query.weight'"),
        (lambda s: s.update(strange=torch.zeros(1)), "also has 'strange'"),
        (lambda s: s.update({"csfa.query.weight": torch.zeros(2, 2)}), "another shape of 'csfa.query.weight'"),
    ],
)
def test_weights_of_another_network(checkpoint: Path, change: object, message: str) -> None:
    state = load_safetensors(checkpoint)
    change(state)  # type: ignore[operator]
    save_safetensors(checkpoint, state)
    with pytest.raises(DataError, match=message):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["run.v1", "run.v1.safetensors", "run.v1.json", "run"])
def test_names_with_dots_and_names_without_an_ending(name: str, tmp_path: Path, network: Network) -> None:
    save_checkpoint(tmp_path / name, network)
    base = "run" if name == "run" else "run.v1"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{base}.json", f"{base}.safetensors"]
    for given in (base, f"{base}.safetensors", f"{base}.json"):
        assert load_checkpoint(tmp_path / given)[0].config == network.config
        assert load(weights=tmp_path / given).name == f"kbcnet-{base}"


@pytest.mark.parametrize("name", [".", "/", ".."])
def test_a_folder_is_no_checkpoint(name: str) -> None:
    with pytest.raises(InputError, match="`weights` must be an existing KBCNet checkpoint"):
        load_checkpoint(name)
    with pytest.raises(InputError, match="`weights` must be a path, received an empty one"):
        load(weights="")


def test_damaged_or_missing_files(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none"):
        load_checkpoint(tmp_path / "none.safetensors")
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="copy it again"):
        load_checkpoint(checkpoint)
    card = json.loads(checkpoint.with_suffix(".json").read_text())
    for broken, message in (
        ({**card, "format": "kbcnet-9"}, "update kbc"),
        ({**card, "format": "kbcnet-9", "layout": "new"}, "format kbcnet-1, received 'kbcnet-9'; a newer kbc wrote it"),
        ([1, 2], "in which 'the file' must be a valid dictionary$"),
        ({"model": {"backbone": "vgg"}}, "backbone"),
    ):
        checkpoint.with_suffix(".json").write_text(json.dumps(broken))
        with pytest.raises(DataError, match=message):
            load_checkpoint(checkpoint)


@pytest.fixture
def frozen(tmp_path: Path) -> tuple[Path, Path, Network]:
    """A checkpoint without its ResNet-18, the ResNet's truncated weight file, and the network."""
    config = small_config(backbone="resnet18", layers=(2, 3, 4))
    torch.manual_seed(0)
    backbone = ResNet("resnet18")
    state = {k: v for k, v in backbone.state_dict().items() if not k.startswith("layer4.")}
    torch.save(state, tmp_path / "resnet18.pth")
    network = shaken(empty_network(config, learned_coarse=True))
    put_backbone(network, backbone.state_dict())
    save_checkpoint(tmp_path / "net.safetensors", network, with_backbone=False)
    return tmp_path / "net.safetensors", tmp_path / "resnet18.pth", network


def test_a_frozen_backbone_stays_in_its_own_file(frozen: tuple[Path, Path, Network]) -> None:
    path, backbone, network = frozen
    assert not any(name.startswith("backbone.network.") for name in load_safetensors(path))
    loaded, _ = load_checkpoint(path, backbone)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(images, images.flip(-1)).refined, network(images, images.flip(-1)).refined)
    with pytest.raises(InputError, match="backbone_weights"):
        load_checkpoint(path)


def test_another_backbone_is_refused(frozen: tuple[Path, Path, Network]) -> None:
    path, backbone, _ = frozen
    state = torch.load(backbone, weights_only=True)
    state["layer3.0.conv1.weight"] = state["layer3.0.conv1.weight"] + 1e-3
    torch.save(state, backbone)
    with pytest.raises(DataError, match="trained with"):
        load_checkpoint(path, backbone)
    torch.save({k: v for k, v in state.items() if not k.startswith("layer3.")}, backbone)
    with pytest.raises(InputError, match="reaches layer 3"):
        load_checkpoint(path, backbone)


def test_layers_that_are_not_used_are_ignored(frozen: tuple[Path, Path, Network]) -> None:
    """In a whole weight file, and in a checkpoint from when they were kept."""
    path, backbone, network = frozen
    before = backbone_digest(network)
    unused = {k: v + 1 for k, v in ResNet("resnet18").state_dict().items() if k.startswith("layer4.")}
    whole = torch.load(backbone, weights_only=True) | unused
    put_backbone(network, whole)
    assert backbone_digest(network) == before
    torch.save(whole, backbone)
    load_checkpoint(path, backbone)
    save_checkpoint(path, network)
    state = load_safetensors(path)
    assert not any("layer4" in name for name in state)
    save_safetensors(path, state | {f"backbone.network.{k}": v for k, v in unused.items()})
    loaded, _ = load_checkpoint(path)
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


def test_backbone_weights_for_a_checkpoint_that_has_them(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="holds its own"):
        load_checkpoint(checkpoint, "resnet18.pth")


# --- the checkpoint that ships ---------------------------------------------------------------------------------------


def test_the_bundled_checkpoint_is_small_and_says_how_it_was_trained() -> None:
    assert (BUNDLED / "kbcnet-tiny.safetensors").stat().st_size <= 8_000_000
    matcher = load()
    assert matcher.name == "kbcnet-tiny"
    card = load_checkpoint(BUNDLED / "kbcnet-tiny.json")[1]
    assert card.training["recipe"] == read_recipe("kbcnet-tiny").model_dump(mode="json")


def test_the_bundled_checkpoint_matches_close_ups_it_has_not_seen() -> None:
    from kbc.data.scenes.render import scene_pair

    matcher = load()
    right = []
    for seed in range(12):
        scene = scene_pair([977, seed], size_hw=(192, 192), object_fraction=(0.6, 0.8))
        found = matcher.match([scene.pair])[0].keypoints
        span = np.ptp(scene.target_keypoints, axis=0).max()
        right += list(np.linalg.norm(found - scene.target_keypoints, axis=1) <= 0.1 * span)
    assert np.mean(right) > 0.75  # measured 0.865; chance is below 0.05
