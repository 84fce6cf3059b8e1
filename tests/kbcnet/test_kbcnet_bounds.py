"""What a checkpoint's or a recipe's JSON may ask for is known before anything is built; damaged runs are refused."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from kbc.errors import DataError, InputError
from kbc.kbcnet.checkpoint import load_checkpoint, read_card
from kbc.kbcnet.matcher import BUNDLED
from kbc.kbcnet.training.recipe import read_recipe
from kbc.weights import load_metadata, load_safetensors, save_safetensors

TINY = BUNDLED / "kbcnet-tiny"


def copied(folder: Path, **model: Any) -> Path:
    """The bundled checkpoint with other fields in its JSON."""
    card = json.loads(TINY.with_suffix(".json").read_text())
    card["model"] |= model
    (folder / "net.json").write_text(json.dumps(card))
    (folder / "net.safetensors").write_bytes(TINY.with_suffix(".safetensors").read_bytes())
    return folder / "net.safetensors"


@pytest.mark.parametrize(
    "model",
    [
        {"widths": [8000, 8000, 8000]},
        {"widths": [2048, 2048, 2048]},
        {"blocks": [0, 10**7, 3]},
        {"blocks": [64, 64, 64], "widths": [2048] * 3},
        {"widths": [8] * 10**5, "blocks": [1] * 10**5},
        {"reach": 10**9},
        {"csfa_dim": 2**20},
        {"csfa_heads": 10**9, "csfa_dim": 4 * 10**9},
        {"decoder": [10**6]},
        {"decoder": [256] * 1000},
        {"input_size": 10**6},
        {"votes": [[0.1, 0.1]] * 10**4},
        {"votes": [[1e30, 0.1]]},
        {"temperature": float("inf")},
        {"vote_pool": 10**9},
    ],
)
def test_a_card_that_asks_for_too_much_is_refused_before_it_is_built(tmp_path: Path, model: dict[str, Any]) -> None:
    path = copied(tmp_path, **model)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="`weights` must be a KBCNet checkpoint"):
            load_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"format": ' + b"9" * 5000, b"\xff\xfe", b"", b"null", b"[]"])
def test_a_card_that_is_none_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.json").write_bytes(content)
    with pytest.raises(DataError, match="`weights` must be a KBCNet checkpoint"):
        read_card(tmp_path / "net.json")
    (tmp_path / "recipe.json").write_bytes(content)
    with pytest.raises(InputError, match="`config` must be"):
        read_recipe(tmp_path / "recipe.json")


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(InputError, match="`weights` must be a KBCNet checkpoint"):
        read_card(f"{name}.json")
    with pytest.raises(InputError, match="`config` must be a JSON file"):
        read_recipe(name)


def test_a_flipped_bit_in_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    path = copied(tmp_path)
    load_checkpoint(path)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"others in .*take weights_digest out of net\.json"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 10**9),
        ("batch", 10**9),
        ("pool", 10**12),
        ("validate_pairs", 10**9),
        ("name", "last"),
        ("name", "LAST"),
        ("name", "a" * 300),
        ("model.widths", [8000] * 3),
        ("seed", 2**63),
        ("lr", "inf"),
        ("lr", float("nan")),
        ("clip", float("inf")),
        ("weight_decay", float("inf")),
        ("plain_weight", float("inf")),
    ],
)
def test_a_recipe_that_asks_for_too_much_is_refused(field: str, value: object) -> None:
    with pytest.raises(InputError, match=f"`config` must be .*{field.split('.')[-1]}"):
        read_recipe("kbcnet-tiny", {field: value})


def test_the_bundled_recipes_keep_within_the_bounds() -> None:
    for name in ("kbcnet-tiny", "kbcnet-resnet18"):
        assert read_recipe(name).steps > 0


@pytest.mark.parametrize("fault", ["beyond", "before", "no number", "another value", "no digest"])
def test_a_run_that_claims_what_cannot_be_is_refused(tmp_path: Path, fault: str) -> None:
    from kbc.kbcnet.training.trainer import Options, train

    recipe = read_recipe("kbcnet-tiny", {"steps": 60, "batch": 2, "validate_pairs": 0, "save_every": 1, "name": "run"})
    options = Options(tmp_path, workers=0, progress=False, stop_after=1)
    last = train(recipe, options)
    about, tensors = load_metadata(last), load_safetensors(last)
    assert about["step"] == "1"
    if fault == "another value":
        first = sorted(tensors)[0]
        tensors[first].reshape(-1)[0] = 1e3
    about |= {"beyond": {"step": "99"}, "before": {"step": "-1"}, "no number": {"step": "x"}}.get(fault, {})
    if fault == "no digest":
        del about["digest"]
    save_safetensors(last, tensors, about)
    with pytest.raises(DataError, match=r"`out` must be a folder with a whole last\.safetensors"):
        train(recipe, options)
