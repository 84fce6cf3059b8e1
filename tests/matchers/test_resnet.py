"""The ResNets: torchvision's names and sizes, weights from every kind of file, errors that say what is wrong."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

import kbc
from kbc.errors import DataError, InputError
from kbc.matchers.builtin import resnet18
from kbc.matchers.resnet import resnet
from kbc.weights import save_safetensors

PARAMETERS = {"resnet18": 11_176_512, "resnet50": 23_508_032, "resnet101": 42_500_160}
"""torchvision's documented totals (11,689,512; 25,557,032; 44,549,160) less the classifier's."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_as_many_parameters_as_torchvisions(name: str) -> None:
    assert sum(p.numel() for p in resnet(name).parameters()) == PARAMETERS[name]  # type: ignore[arg-type]


def test_keys_are_torchvisions() -> None:
    keys = set(resnet("resnet50").state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer1.0.downsample.1.bias", "layer4.2.conv3.weight"} <= keys


def test_maps_have_their_strides_and_channels() -> None:
    maps = resnet("resnet18")(torch.zeros(1, 3, 97, 130), (1, 2, 3, 4))
    assert {k: tuple(v.shape[1:]) for k, v in maps.items()} == {
        1: (64, 25, 33),
        2: (128, 13, 17),
        3: (256, 7, 9),
        4: (512, 4, 5),
    }


def test_cells_are_centred_on_multiples_of_the_stride() -> None:
    """A blob at pixel (64, 48) is brightest in the cell (64/16, 48/16) of the difference it makes."""
    torch.manual_seed(0)
    network = resnet("resnet18")
    image = torch.zeros(1, 3, 128, 128)
    spotted = image.clone()
    spotted[:, :, 47:50, 63:66] = 3.0
    with torch.inference_mode():
        change = (network(spotted, (3,))[3] - network(image, (3,))[3]).abs().sum(1)[0]
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    centre = torch.stack([(change * x).sum(), (change * y).sum()]) / change.sum()
    assert centre.tolist() == pytest.approx([4.0, 3.0], abs=0.35)


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".npz"])
def test_weights_from_every_kind_of_file(ending: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = {k: v for k, v in resnet("resnet18").state_dict().items() if not k.startswith("layer4.")}
    state |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    path = tmp_path / f"weights{ending}"
    if ending == ".pth":
        torch.save(state, path)
    elif ending == ".npz":
        np.savez(path, **{k: v.numpy() for k, v in state.items()})
    else:
        save_safetensors(path, state)
    network = resnet("resnet18", path)
    assert network.available == (1, 2, 3)
    assert torch.equal(network.state_dict()["layer3.1.conv2.weight"], state["layer3.1.conv2.weight"])
    with pytest.raises(InputError, match=r"among \(1, 2, 3\)"):
        network(torch.zeros(1, 3, 64, 64), (3, 4))
    with pytest.raises(InputError, match=r"among \(1, 2, 3\)"):  # before the first match
        resnet18(weights=path, layers=(3, 4))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.pth"
    torch.save(resnet("resnet50").state_dict(), path)
    with pytest.raises(DataError, match=r"those of a resnet18.*deep\.pth"):
        resnet("resnet18", path)
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(DataError, match="at least layer1"):
        resnet("resnet18", path)


def test_unknown_names_and_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="resnet18, resnet50, resnet101"):
        resnet("resnet34")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`layers`"):
        resnet18(weights="any.pth", layers=(2, 5))
    with pytest.raises(InputError, match=r"`path`|`weights`"):
        kbc.load_matcher("resnet18", weights=tmp_path / "absent.pth")


def test_no_weights_are_ever_downloaded_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("downloaded")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    resnet("resnet18")
    with pytest.raises(InputError, match="weights"):
        kbc.load_matcher("resnet18")


@pytest.mark.parametrize(
    "problem",
    [URLError(OSError(-2, "Name or service not known")), RuntimeError("invalid hash value"), PermissionError()],
)
def test_a_download_that_fails_says_how_to_do_without(problem: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **options: object) -> None:
        raise problem

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fails)
    monkeypatch.setattr("torch.hub.get_dir", lambda: "/home/me/hub")
    with pytest.raises(DataError) as caught:
        kbc.load_matcher("resnet18", weights="imagenet")
    said = str(caught.value)
    assert "download https://download.pytorch.org/models/resnet18-f37072fd.pth elsewhere" in said
    assert "weights=/path/to/resnet18-f37072fd.pth" in said
    assert str(Path("/home/me/hub/checkpoints")) in said
