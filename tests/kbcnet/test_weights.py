"""kbc/weights.py: weight files are read without running anything from them."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
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


def test_safetensors_round_trip(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "a.safetensors", TENSORS, {"about": "ä"})
    save_safetensors(tmp_path / "b.safetensors", TENSORS)
    assert same(load_weights(tmp_path / "a.safetensors"), TENSORS)
    assert load_metadata(tmp_path / "a.safetensors") == {"about": "ä"}
    assert load_metadata(tmp_path / "b.safetensors") == {}


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
    for name, reason in (("evil.pth", "STACK_GLOBAL"), ("evil2.pth", "exec; save its"), ("evil.npz", "[Oo]bject")):
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
    (tmp_path / "empty.pth").touch()
    with pytest.raises(DataError, match="it is empty"):
        load_weights(tmp_path / "empty.pth")
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
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',  # a hole
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},'
        b' "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',  # an overlap
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},'
        b' "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',  # a repeated name
        b'{"a": {"dtype": "F32", "shape": [4611686018427387904, 8], "data_offsets": [0, 8]}}',
        b"[" * 100_000,
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


def test_tensors_that_share_memory_are_written_each(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    save_safetensors(tmp_path / "s.safetensors", {"a": whole, "b": whole, "c": whole[2:]})
    assert same(load_weights(tmp_path / "s.safetensors"), {"a": whole, "b": whole, "c": whole[2:]})


@pytest.mark.parametrize("legacy", [False, True])
def test_both_forms_of_pth(tmp_path: Path, legacy: bool) -> None:
    plain = {"a": torch.nn.Parameter(torch.arange(3.0)), "n": torch.tensor(2**40), "b": torch.ones(2).bfloat16()}
    torch.save(plain, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    assert same(load_weights(tmp_path / "w.pth"), {k: v.detach() for k, v in plain.items()})


class Allocates:
    def __reduce__(self) -> tuple[object, tuple[int]]:
        return (bytearray, (10**6,))


def test_a_pth_that_would_allocate_is_refused(tmp_path: Path) -> None:
    for legacy in (False, True):
        torch.save({"a": Allocates()}, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(DataError, match="bytearray"):
            load_weights(tmp_path / "w.pth")
    torch.save({"a": torch.ones(1).expand(10**6)}, tmp_path / "stride.pth")
    with pytest.raises(DataError, match="larger than the file"):
        load_weights(tmp_path / "stride.pth")
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "sparse.pth")
    with pytest.raises(DataError, match="sparse"):
        load_weights(tmp_path / "sparse.pth")
    torch.save({"a": torch.ones(3, device="meta")}, tmp_path / "meta.pth")
    with pytest.raises(DataError, match="meta"):
        load_weights(tmp_path / "meta.pth")


def test_what_torch_reads_is_what_was_checked(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "zip.pth")
    torch.save({"a": Allocates()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    both = (tmp_path / "old.pth").read_bytes() + (tmp_path / "zip.pth").read_bytes()  # a pickle with a zip at its end
    (tmp_path / "both.pth").write_bytes(both)
    with pytest.raises(DataError, match="bytearray"):
        load_weights(tmp_path / "both.pth")
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    parts = (tmp_path / "old.pth").read_bytes()
    last = pickle.dumps(["0"], 2)  # the storages' names, the fifth pickle, which torch reads as well
    keys = parts.rindex(b"\x80\x02]q\x00")
    (tmp_path / "fifth.pth").write_bytes(parts[:keys] + pickle.dumps([Allocates()], 2) + parts[keys + len(last) :])
    with pytest.raises(DataError, match="bytearray"):
        load_weights(tmp_path / "fifth.pth")


def test_a_flipped_bit_in_a_pth_is_noticed(tmp_path: Path) -> None:
    torch.save({"a": torch.full((1000,), 0.5)}, tmp_path / "w.pth")
    whole = bytearray((tmp_path / "w.pth").read_bytes())
    whole[whole.index(np.float32(0.5).tobytes() * 9) + 9] ^= 1
    (tmp_path / "w.pth").write_bytes(whole)
    with pytest.raises(DataError, match="CRC-32"):
        load_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_numbers_that_a_network_would_cut_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"a": torch.ones(2).to(dtype)}
    torch.save(tensors, tmp_path / "w.pth")
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    for suffix in (".pth", ".safetensors"):
        with pytest.raises(DataError, match=str(dtype).removeprefix("torch.")):
            load_weights(tmp_path / f"w{suffix}")
    np.savez(tmp_path / "w.npz", a=np.ones(2, complex))
    with pytest.raises(DataError, match="complex128"):
        load_weights(tmp_path / "w.npz")


def test_a_torchscript_archive_is_called_one(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("w/constants.pkl", pickle.dumps((), 2))
        archive.writestr("w/data.pkl", pickle.dumps({}, 2))
    with pytest.raises(DataError, match="TorchScript archive; save its state_dict alone"):
        load_weights(tmp_path / "w.pt")


def test_a_compressed_pth_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(10**5)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(tmp_path / "bomb.pth", "w", 8) as bomb:
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
    with pytest.raises(DataError, match="compressed"):
        load_weights(tmp_path / "bomb.pth")


def test_an_npz_that_unfolds_too_far_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "w.npz", a=np.zeros(3_000_000))
    with pytest.raises(DataError, match="unfolds to 24,000,"):
        load_weights(tmp_path / "w.npz")
    np.savez_compressed(tmp_path / "w.npz", a=np.zeros(1000))
    assert load_weights(tmp_path / "w.npz")["a"].shape == (1000,)


def test_an_npz_whose_header_claims_too_much_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("a.npy", header.getvalue())
    with pytest.raises(DataError, match="unfolds to 8,000,"):
        load_weights(tmp_path / "w.npz")


@pytest.mark.parametrize("name", ["a\0.pth", "a" * 300 + ".pth"])
def test_a_name_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="existing weight file"):
        load_weights(tmp_path / name)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz"])
def test_damaged_files_only_fail_with_a_kbc_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_safetensors(path, TENSORS)
    elif suffix == ".pth":
        torch.save(TENSORS, path)
    else:
        np.savez_compressed(path, a=np.arange(50.0), b=np.ones((3, 3), np.float32))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            load_weights(path)
        except DataError:
            refused += 1
    assert refused > 0
