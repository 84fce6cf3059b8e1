"""kbc/weights.py: weight files are read without running anything from them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from kbc.errors import DataError, InputError
from kbc.weights import load_metadata, load_safetensors, load_weights, save_safetensors

TENSORS = {
    "half": torch.arange(3).half(),
    "brain": torch.tensor([1.5, -2.0]).bfloat16(),
    "double": torch.tensor(2.5, dtype=torch.float64),
    "float": torch.arange(12.0).reshape(3, 4),
    "empty": torch.zeros(0, 3),
    "flags": torch.tensor([True, False]),
    "bytes": torch.tensor([1, 255], dtype=torch.uint8),
    "long": torch.tensor([[-1, 2**40]]),
}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[k], second[k]) and first[k].dtype == second[k].dtype for k in first
    )


def test_safetensors_round_trip_and_agreement_with_the_reference_package(tmp_path: Path) -> None:
    reference = pytest.importorskip("safetensors.torch")
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    save_safetensors(ours, TENSORS, {"about": "ä"})
    reference.save_file(TENSORS, theirs)
    assert same(load_weights(ours), TENSORS)
    assert same(load_weights(theirs), TENSORS)
    assert same(reference.load_file(ours), TENSORS)
    assert load_metadata(ours) == {"about": "ä"}
    assert load_metadata(theirs) == {}


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "a.safetensors", TENSORS)
    save_safetensors(tmp_path / "b.safetensors", dict(reversed(TENSORS.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_transposed_tensor_is_written_as_it_reads(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "t.safetensors", {"t": TENSORS["float"].T})
    assert torch.equal(load_weights(tmp_path / "t.safetensors")["t"], TENSORS["float"].T)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_pth(tmp_path: Path, wrapper: str | None) -> None:
    plain = {k: TENSORS[k] for k in ("float", "half")}
    torch.save({wrapper: plain, "epoch": 3} if wrapper else plain, tmp_path / "w.pth")
    assert same(load_weights(tmp_path / "w.pth"), plain)


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.arange(4.0), b=np.ones((2, 2), np.float32))
    loaded = load_weights(tmp_path / "w.npz")
    assert torch.equal(loaded["a"], torch.arange(4.0, dtype=torch.float64))
    assert loaded["b"].dtype == torch.float32


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('ran')",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"a": Trap()}))
    torch.save({"a": Trap()}, tmp_path / "evil2.pth")
    np.savez(tmp_path / "evil.npz", a=np.array([Trap()], dtype=object))
    for name, reason in (("evil.pth", "Unsupported"), ("evil2.pth", "GLOBAL .*; save its"), ("evil.npz", "pickle")):
        with pytest.raises(DataError, match=f"{name}.*{reason}"):
            load_weights(tmp_path / name)


def test_missing_unknown_and_tensorless_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="existing weight file"):
        load_weights(tmp_path / "none.pth")
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(InputError, match=r"\.safetensors"):
        load_weights(tmp_path / "w.onnx")
    for read in (load_weights, load_safetensors, load_metadata):
        with pytest.raises(InputError, match="must be a path, received 5"):
            read(5)  # type: ignore[arg-type]
    (tmp_path / "page.pth").write_text("<html>please sign in</html>")
    with pytest.raises(DataError, match="begins with b'<html>"):
        load_weights(tmp_path / "page.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(DataError, match="tensors by name"):
        load_weights(tmp_path / "list.pth")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz"])
@pytest.mark.parametrize("keep", [0, 5, 60, -3])
def test_truncated_files(tmp_path: Path, suffix: str, keep: int) -> None:
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".safetensors":
        save_safetensors(whole, {"a": torch.ones(50)})
    elif suffix == ".pth":
        torch.save({"a": torch.ones(50)}, whole)
    else:
        np.savez(whole, a=np.ones(50))
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[:keep])
    with pytest.raises(DataError, match="cut"):
        load_weights(cut)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 9]}}',
        b'{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}',
        b'{"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}',
        b'{"a": {"shape": [2], "data_offsets": [0, 8]}}',
        b'{"a": 3}',
    ],
)
def test_headers_that_lie(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "lie.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(DataError):
        load_weights(path)


def test_an_absurd_header_length_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(DataError, match="header"):
        load_weights(path)


def test_a_dtype_the_format_lacks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="complex"):
        save_safetensors(tmp_path / "c.safetensors", {"c": torch.zeros(1, dtype=torch.complex64)})
    assert not list(tmp_path.iterdir())
