"""DINOv2 and DINOv3 through transformers: small models with random weights, nothing downloaded."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_layers import NAMES, Layer, example, scene, shifted
from kbc_adapters.dino import Letterboxed, load, squared
from test_sandbox import untouched

import kbc
from kbc.errors import InputError, MatcherError, MissingDependencyError
from kbc.geometry import cell_centres
from kbc.matchers.features import FeatureMatcher
from kbc.matchers.protocol import SimilarityMatcher
from kbc.types import Pair

transformers = pytest.importorskip("transformers", reason="needs the extra: pip install kbc[dino]")

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
KINDS = ("dino", "dinov2", "registers", "dinov3")
FIRST = {"dino": 1, "dinov2": 1, "registers": 5, "dinov3": 5}
PATCH = {"dino": 8, "dinov2": 14, "registers": 14, "dinov3": 16}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("dino")
    v2 = {"image_size": 56, "patch_size": 14, **SMALL}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = {
            "dinov2": transformers.Dinov2Model(transformers.Dinov2Config(**v2)),
            "registers": transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**v2)),
            "dinov3": transformers.DINOv3ViTModel(
                transformers.DINOv3ViTConfig(patch_size=16, num_register_tokens=4, intermediate_size=64, **SMALL)
            ),
            "dino": transformers.ViTModel(
                transformers.ViTConfig(image_size=56, patch_size=8, intermediate_size=64, **SMALL)
            ),
        }
        for name, model in models.items():
            for parameter in model.parameters():  # the library starts some of them at zero
                torch.nn.init.normal_(parameter, std=0.1)
            model.save_pretrained(root / name)
    return {name: root / name for name in models}


def inside(folder: Path, images: torch.Tensor, layer: int) -> Any:
    """What leaves the layer's own module, through the final norm."""
    network = transformers.AutoModel.from_pretrained(str(folder)).eval()
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    (layers,) = [m for m in network.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3]
    left: list[Any] = []
    layers[layer - 1].register_forward_hook(lambda module, inputs, output: left.append(output))
    with torch.inference_mode():
        stretched = {"interpolate_pos_encoding": True} if folder.name == "dino" else {}
        network(pixel_values=(images - mean) / std, **stretched)
        tokens = left[0][0] if isinstance(left[0], tuple) else left[0]
        return (network.layernorm if hasattr(network, "layernorm") else network.norm)(tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_patch_tokens_become_the_map_without_cls_and_registers(kind: str, folders: dict[str, Path]) -> None:
    patch = PATCH[kind]
    matcher = load(model=folders[kind], size=4 * patch, fit="stretch")
    assert isinstance(matcher, FeatureMatcher)
    images = torch.rand(2, 3, 4 * patch, 6 * patch)
    with torch.inference_mode():
        maps = matcher.encode(images)
    tokens = inside(folders[kind], images, 3)
    assert tokens.shape[1] == FIRST[kind] + 24
    assert maps.shape == (2, 32, 4, 6)
    for row, column in [(0, 0), (0, 5), (3, 0), (2, 4)]:
        torch.testing.assert_close(maps[:, :, row, column], tokens[:, FIRST[kind] + 6 * row + column])


@pytest.mark.parametrize("kind", KINDS)
def test_layer_choice(kind: str, folders: dict[str, Path]) -> None:
    size, images = 4 * PATCH[kind], torch.rand(1, 3, 4 * PATCH[kind], 4 * PATCH[kind])
    with torch.inference_mode():
        maps = {
            layer: load(model=folders[kind], size=size, layer=layer, fit="stretch").encode(images)  # type: ignore[union-attr]
            for layer in (-1, 3, 2, -2, 1)
        }
    torch.testing.assert_close(maps[-1], maps[3])
    torch.testing.assert_close(maps[2], maps[-2])
    expected = inside(folders[kind], images, 2)[:, FIRST[kind] :].transpose(1, 2).reshape(1, 32, 4, 4)
    torch.testing.assert_close(maps[2], expected)
    assert not torch.allclose(maps[1], maps[2])
    for layer in (0, 4, -4):
        with pytest.raises(InputError, match=r"`layer` must be 1 … 3"):
            load(model=folders[kind], size=size, layer=layer)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_known_translation(kind: str, fit: Any, folders: dict[str, Path]) -> None:
    size = 8 * PATCH[kind]
    shift = (2 * PATCH[kind], -PATCH[kind])
    pair = shifted((size, size), shift)
    matcher = load(model=folders[kind], size=size, fit=fit)
    moved = matcher.match([pair])[0].keypoints - pair.keypoints
    assert np.abs(np.median(moved, axis=0) - shift).max() <= PATCH[kind] / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_a_drawn_patch_is_found_at_its_centre(kind: str, fit: Any, folders: dict[str, Path]) -> None:
    """One patch of noise on grey. A token too many or too few, or half a patch of offset, would miss the centre."""
    patch = PATCH[kind]
    matcher = load(model=folders[kind], size=8 * patch, fit=fit)
    noise = np.random.default_rng(0).integers(0, 256, (patch // 2, patch // 2, 3), dtype=np.uint8)
    # what the model sees of the images: half of each when letterboxed, one side halved when stretched
    landscape, portrait, cell = ((5, 8), (8, 5.6), (2, 2)) if fit == "letterbox" else ((8, 8), (8, 8), (2, 1))
    block = np.kron(noise, np.ones((2 * cell[0], 2 * cell[1], 1), np.uint8))
    high, wide = block.shape[:2]

    def drawn(grid: tuple[float, float], row: int, column: int) -> tuple[np.ndarray, list[float]]:
        image = np.full((round(grid[0] * high), round(grid[1] * wide), 3), 120, np.uint8)
        image[row * high : (row + 1) * high, column * wide : (column + 1) * wide] = block
        return image, [(column + 0.5) * wide - 0.5, (row + 0.5) * high - 0.5]

    for here, there in [((1, 1), (6, 3)), ((4, 7), (0, 0)), ((0, 0), (7, 4)), ((3, 4), (2, 2))]:
        (source, start), (target, end) = drawn(landscape, *here), drawn(portrait, *there)
        found = matcher.match([Pair(source, target, [start])])[0].keypoints[0]
        assert np.abs((found - end) / (wide, high)).max() <= 0.2


@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_votes_change_the_maps_and_not_where_a_shift_is_found(fit: Any, folders: dict[str, Path]) -> None:
    pair = shifted((112, 112), (28, -14))
    plain = load(model=folders["dinov2"], size=112, fit=fit)
    voting = load(model=folders["dinov2"], size=112, fit=fit, votes=True)
    assert (voting.similarity([pair])[0] - plain.similarity([pair])[0]).abs().max() > 0.01
    moved = voting.match([pair])[0].keypoints - pair.keypoints
    assert np.abs(np.median(moved, axis=0) - (28, -14)).max() <= 7


def test_size_must_be_a_multiple_of_the_patch(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"multiple of the patch, 14, received 512; e\.g\. 518"):
        load(model=folders["dinov2"], size=512)
    assert load(model=folders["dinov2"]).input_size == (518, 518)
    assert load(model=folders["dinov3"]).input_size == (512, 512)


# A network in hand ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_in_hand_is_used_as_it_is(kind: str, folders: dict[str, Path]) -> None:
    network = transformers.AutoModel.from_pretrained(str(folders[kind])).eval()
    size = 4 * PATCH[kind]
    image = torch.rand(1, 3, size, size)
    for layer in (-1, 1):
        own = load(model=network, size=size, layer=layer, fit="stretch")
        read = load(model=folders[kind], size=size, layer=layer, fit="stretch")
        with torch.inference_mode():
            torch.testing.assert_close(own.encode(image), read.encode(image))  # type: ignore[union-attr]
    assert repr(own) == f"FeatureMatcher('dino ({type(network).__name__})', {size}×{size} px)"


class FromHub(torch.nn.Module):
    """The interface of torch.hub's DINOv2: layers count from 0, [CLS] and registers are left out."""

    patch_size, n_blocks = 14, 3

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def get_intermediate_layers(self, x: torch.Tensor, n: Any = 1, reshape: bool = False) -> tuple[torch.Tensor, ...]:
        assert reshape
        states = self.network(pixel_values=x, output_hidden_states=True).hidden_states
        height, width = (side // self.patch_size for side in x.shape[2:])
        tokens = [self.network.layernorm(states[index + 1])[:, 1:] for index in n]
        return tuple(t.transpose(1, 2).reshape(len(x), -1, height, width) for t in tokens)


@pytest.mark.parametrize("layer", [-1, 3, 1])
def test_a_network_of_torch_hub(layer: int, folders: dict[str, Path]) -> None:
    network = FromHub(transformers.AutoModel.from_pretrained(str(folders["dinov2"]))).eval()
    image = torch.rand(2, 3, 56, 84)
    own, read = (load(model=m, size=56, layer=layer, fit="stretch") for m in (network, folders["dinov2"]))
    with torch.inference_mode():
        torch.testing.assert_close(own.encode(image), read.encode(image))  # type: ignore[union-attr]
    assert own.match([example()])[0].keypoints.shape == (12, 2)
    assert repr(load(model=network, size=56)) == "Letterboxed('dino (FromHub)', 56×56 px)"


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (torch.nn.Conv2d(3, 8, 14, 14), {}, "a vision transformer .*, received a Conv2d; from_features"),
        (3, {}, "a model's id, a folder or a torch.nn.Module, received 3"),
        (torch.nn.Conv2d(3, 8, 14, 14), {"download": True}, "`download` must be False with a network in hand"),
    ],
)
def test_other_networks_are_refused(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(model=model, **options)


# Letterbox ------------------------------------------------------------------------------------------------------


def test_letterbox_keeps_the_aspect_and_no_answer_lies_in_the_padding(folders: dict[str, Path]) -> None:
    pair = Pair(scene(1, 100, 300), scene(2, 300, 90), example().keypoints % 90)
    matcher = load(model=folders["dinov2"], size=112)
    assert isinstance(matcher, Letterboxed)
    assert isinstance(matcher, SimilarityMatcher)
    found = matcher.match([pair])[0].keypoints
    assert (found >= -0.5).all()
    assert (found[:, 0] <= 89.5).all()
    assert (found[:, 1] <= 299.5).all()
    (maps,) = matcher.similarity([pair])
    assert maps.shape == (12, 8, 8)


def test_letterbox_of_a_square_is_the_square_matcher(folders: dict[str, Path]) -> None:
    pair = shifted((96, 96), (12, -12))
    boxed = load(model=folders["dinov2"], size=112)
    plain = load(model=folders["dinov2"], size=112, fit="stretch")
    np.testing.assert_allclose(boxed.match([pair])[0].keypoints, plain.match([pair])[0].keypoints, atol=1e-4)
    np.testing.assert_allclose(boxed.similarity([pair])[0], plain.similarity([pair])[0], atol=1e-5)


def test_letterbox_places_a_point_where_it_is(folders: dict[str, Path]) -> None:
    whole = scene(5, 150, 400)
    pair = Pair(whole, whole, [[30.0, 20.0], [200.0, 75.0], [390.0, 140.0]])
    matcher = load(model=folders["dinov2"], size=140)
    cell = 400 / 10
    assert np.abs(matcher.match([pair])[0].keypoints - pair.keypoints).max() <= cell / 2
    (maps,) = matcher.similarity([pair])
    x, y = cell_centres(maps.shape[1:], (150, 400))
    best = maps.reshape(3, -1).argmax(axis=1)
    peaks = np.stack([x[best % len(x)], y[best // len(x)]], axis=1)
    assert np.abs(peaks - pair.keypoints).max() <= cell


def test_padding_is_mean_colour_and_squares_are_not_copied() -> None:
    image = scene(1, 20, 30)
    square = squared(image)
    assert square.shape == (30, 30, 3)
    np.testing.assert_array_equal(square[:20], image)
    assert np.unique(square[20:].reshape(-1, 3), axis=0).tolist() == [[124, 116, 104]]
    assert squared(square) is square


@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_undefined_points_and_none(fit: Any, folders: dict[str, Path]) -> None:
    matcher = load(model=folders["dinov2"], size=56, fit=fit)
    points = example().keypoints.copy()
    points[3] = np.nan
    match = matcher.match([Pair(example().source, example().target, points)])[0]
    assert np.isnan(match.keypoints[3]).all()
    assert np.isfinite(np.delete(match.keypoints, 3, axis=0)).all()
    assert matcher.match([Pair(example().source, example().target, [])])[0].keypoints.shape == (0, 2)


# Loading --------------------------------------------------------------------------------------------------------


def test_loads_by_name_and_runs_with_kbc(folders: dict[str, Path]) -> None:
    matcher = kbc.load_matcher("dino", model=folders["registers"], size=112)
    assert kbc.wrap(matcher).match([example()])[0].keypoints.shape == (12, 2)
    with pytest.raises(InputError, match="'layer'"):
        kbc.load_matcher("dino", model=folders["registers"], layr=2)


def test_own_mean_and_deviation_are_used(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["dinov2"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    statistics = {"image_mean": [0.43, 0.411, 0.296], "image_std": [0.213, 0.156, 0.143]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    image = torch.rand(1, 3, 56, 56)
    mean, std = (torch.tensor(statistics[key])[:, None, None] for key in ("image_mean", "image_std"))
    as_imagenet = (image - mean) / std * torch.tensor((0.229, 0.224, 0.225))[:, None, None]
    as_imagenet += torch.tensor((0.485, 0.456, 0.406))[:, None, None]
    own, other = (load(model=path, size=56, fit="stretch") for path in (tmp_path, folders["dinov2"]))
    with torch.inference_mode():
        torch.testing.assert_close(own.encode(image), other.encode(as_imagenet), rtol=1e-3, atol=1e-4)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"image_mean": 0.5}',
        '{"image_mean": [1, 2]}',
        '{"image_std": ["a", 1, 1]}',
        '{"image_std": [0, 1, 1]}',
    ],
)
def test_a_broken_mean_or_deviation_is_one_sentence(content: str, folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["dinov2"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(InputError, match=r"preprocessor_config\.json"):
        load(model=tmp_path, size=56)


def test_nothing_is_downloaded_unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def caught(*args: object) -> None:
        raise AssertionError(f"a connection: {args}")

    monkeypatch.setattr("socket.socket.connect", caught)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(
        InputError, match=r"`model` must be .* received 'facebook/no-such-model'.*--option download=true"
    ):
        load(model="facebook/no-such-model")


@pytest.mark.parametrize("hub_shows", [True, False])
def test_loading_draws_no_bar_and_leaves_the_process_its_own(
    folders: dict[str, Path], capfd: pytest.CaptureFixture[str], hub_shows: bool
) -> None:
    from huggingface_hub import utils as hub
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled(), hub.are_progress_bars_disabled()
    try:
        logging.enable_progress_bar()
        if not hub_shows:
            hub.disable_progress_bars()
        load(model=folders["dinov2"], size=56)
        assert capfd.readouterr().err == ""
        assert (logging.is_progress_bar_enabled(), hub.are_progress_bars_disabled()) == (True, not hub_shows)
        load(model=folders["dinov2"], size=56, download=True)
        assert "Loading weights" in capfd.readouterr().err
    finally:
        (logging.enable_progress_bar if before[0] else logging.disable_progress_bar)()
        (hub.disable_progress_bars if before[1] else hub.enable_progress_bars)()


def test_a_wrong_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`model` must be a folder with config\.json"):
        load(model=tmp_path)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(vocab_size=10, **small)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"a vision transformer .*, received a BertModel; from_features"):
        load(model=tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda state: {k: v for k, v in state.items() if "layer.2." not in k}, r"18 weights missing .*layer\.2\."),
        (lambda state: {f"other.{k}.name": v for k, v in state.items()}, "60 weights missing"),
        (lambda state: {k: v[..., :1].contiguous() if "norm1" in k else v for k, v in state.items()}, "6 weights"),
    ],
)
def test_weights_of_another_model_are_one_sentence(
    change: Any, expected: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """transformers alone would fill in random ones and go on."""
    safetensors = pytest.importorskip("safetensors.torch")
    (tmp_path / "config.json").write_bytes((folders["dinov2"] / "config.json").read_bytes())
    state = safetensors.load_file(folders["dinov2"] / "model.safetensors")
    safetensors.save_file(change(state), tmp_path / "model.safetensors", metadata={"format": "pt"})
    with untouched(), pytest.raises(InputError, match=f"`model` must be a folder whose weights fit .*{expected}"):
        load(model=tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"0" * 100)
    with pytest.raises(InputError, match=r"`model` must be .*check the name and the files$"):
        load(model=tmp_path)


def test_code_of_the_models_repository_never_runs(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")  # transformers would ask
    config = json.loads((folders["dinov2"] / "config.json").read_text())
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config | own))
    (tmp_path / "mine.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'it ran')!r}).touch()\n")
    with pytest.raises(InputError, match="`model` must be"):
        load(model=tmp_path)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_one_sentence(device: str, folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=rf"`device` must be .* received '{device}'"):
        load(model=folders["dinov2"], device=device)


def test_loading_and_matching_leave_the_process_as_it_was(folders: dict[str, Path]) -> None:
    load(model=folders["dinov2"], size=56).match([example()])
    with untouched():
        load(model=folders["dinov2"], size=56).match([example()])


def test_pickled_weights_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    mark = tmp_path / "it ran"

    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (mark,))

    (tmp_path / "config.json").write_text((folders["dinov2"] / "config.json").read_text())
    torch.save({"weight": Malicious()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load(model=tmp_path)
    assert not mark.exists()


def test_another_number_of_tokens_is_refused(folders: dict[str, Path]) -> None:
    from kbc_adapters.dino import encoder

    network = transformers.AutoModel.from_pretrained(str(folders["registers"])).eval()
    network.config.num_register_tokens = 2
    with pytest.raises(MatcherError, match="3 \\+ 4×4 tokens, received 21"):
        encoder(network, 3, ((0.5,) * 3, (0.2,) * 3))(torch.rand(1, 3, 56, 56))


def test_missing_transformers_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "kbc\[dino\]"'):
        load(model="anything")


def test_lives_with_the_five_in_one_process_and_two_threads(
    layer: Layer, matchers: dict[str, Any], folders: dict[str, Path]
) -> None:
    dino = load(model=folders["dinov2"], size=56)
    alone = {name: matchers[name].match([example()])[0].keypoints for name in NAMES}
    alone["dino"] = dino.match([example()])[0].keypoints
    wrong: list[str] = []

    def work(names: tuple[str, ...]) -> None:
        try:
            for name in names:
                one = load(model=folders["dinov2"], size=56) if name == "dino" else layer.load(name)
                found = one.match([example()])[0].keypoints
                if np.abs(found - alone[name]).max() > 1e-3:
                    wrong.append(name)
        except Exception as error:
            wrong.append(repr(error))

    order = ("dino", *NAMES)
    threads = [threading.Thread(target=work, args=(names,)) for names in (order, order[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
