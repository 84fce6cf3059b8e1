"""Weight files: read .safetensors, .pth and .npz without ever running code from them, and write .safetensors.

What a file unfolds to in memory is known before it is read: a .safetensors and a .pth hold their tensors uncompressed,
so never more than the file's own size; a compressed .npz may be `MAX_UNFOLD` times its size.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from kbc.errors import DataError, InputError, must_be
from kbc.files import as_path, is_file, written_whole

if TYPE_CHECKING:
    import torch

MAX_UNFOLD = 20
"""How many times its own size a compressed file may take in memory (trained weights: about 1.1). Our choice."""

SMALL = 16_000_000
"""Bytes that any file may unfold to, however small it is. Our choice."""

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_DTYPES = (
    *("float64", "float32", "float16", "bfloat16"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
_PLAIN = "a .pth file of plain tensors"
_RESAVE = (
    "save its state_dict alone: if you trust where it comes from, "
    "torch.save(torch.load(file, weights_only=False)['state_dict'], new_file)"
)
_SCRIPT = "save its state_dict alone: torch.save(torch.jit.load(file).state_dict(), new_file)"
_PICKLED = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._utils", "_rebuild_parameter"),
}
"""All that tensors by name need, besides storages and dtypes. torch's own list is longer: `bytearray` allocates what a
400-byte file asks for, and sparse, quantised and meta tensors are no weights."""


def load_weights(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Tensors of a weight file by name, on the CPU. The ending decides: .safetensors, .npz, .pth / .pt / .bin.

    A .pth may hold the tensors at the top or under "state_dict", "model_state_dict" or "model". It is read with
    `weights_only=True`: nothing in it can run.

    Raises:
        InputError: no such file, or an ending that is not known.
        DataError: the file is truncated or damaged, holds anything but tensors, or would unfold to far more memory
            than its size.
    """
    path = as_path(path, "weights")
    readers = {".safetensors": load_safetensors, ".npz": _load_npz, ".pth": _load_pth, ".pt": _load_pth}
    readers[".bin"] = _load_pth
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(must_be("weights", f"a file ending in {', '.join(readers)}", repr(str(path))))
    return _of_known_dtypes(path, reader(_existing(path)))


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Tensors of a .safetensors file by name, on the CPU. Errors as `load_weights`."""
    import safetensors.torch

    path = _existing(as_path(path, "path"))
    try:
        loaded: dict[str, torch.Tensor] = safetensors.torch.load(path.read_bytes())
    except Exception as error:  # a hostile file makes the library raise errors of many kinds
        raise _broken(path, error) from error
    return _of_known_dtypes(path, loaded)


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The `__metadata__` strings of a .safetensors file, without reading its tensors. Errors as `load_weights`."""
    import safetensors

    path = _existing(as_path(path, "path"))
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:  # as above
        raise _broken(path, error) from error


def save_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, so that the same tensors give the same bytes (but for the order of several metadata).

    The file appears whole or not at all: it is written beside its place and moved there.

    Raises:
        InputError: a dtype that is not one of weights, or a folder that is not there.
    """
    import safetensors.torch
    import torch

    for name, tensor in tensors.items():
        if not _known_dtype(tensor):
            raise InputError(must_be(f"tensors[{name!r}]", f"one of {', '.join(_DTYPES)}", tensor.dtype))
    copies = {  # the library refuses tensors that share memory
        name: tensors[name].detach().cpu().clone(memory_format=torch.contiguous_format) for name in sorted(tensors)
    }
    content = safetensors.torch.save(copies, dict(metadata) if metadata else None)
    with written_whole(path) as file:
        file.write(content)


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of names and values, whatever their order: a file in which a bit has flipped reads as other values."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(tensors.items()):
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(name.encode() + flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _existing(path: Path) -> Path:
    if not is_file(path):
        raise InputError(must_be("weights", "an existing weight file", repr(str(path)), "check the path"))
    return path


def _broken(path: Path, why: object) -> DataError:
    return DataError(must_be("weights", "a complete weight file", f"{str(path)!r}: {why}", "copy it again"))


def _of_known_dtypes(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Complex and fp8 numbers would be cut or misread where a network takes them over."""
    for name, tensor in tensors.items():
        if not _known_dtype(tensor):
            received = f"{tensor.dtype} in {str(path)!r}"
            raise DataError(
                must_be(f"weights[{name!r}]", f"one of {', '.join(_DTYPES)}", received, "save it as float32")
            )
    return tensors


def _known_dtype(tensor: torch.Tensor) -> bool:
    return str(tensor.dtype).removeprefix("torch.") in _DTYPES


def _load_npz(path: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            unfolded = sum(max(member.file_size, _declared(archive, member)) for member in archive.infolist())
        allowed = max(SMALL, MAX_UNFOLD * path.stat().st_size)
        if unfolded > allowed:
            hint = "if you trust it, save it again with np.savez, uncompressed"
            received = f"{str(path)!r}, which unfolds to {unfolded:,} bytes"
            raise DataError(must_be("weights", f"at most {allowed:,} bytes in memory", received, hint))
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    except DataError:
        raise
    except Exception as error:  # a hostile file makes zipfile, zlib and NumPy raise errors of many kinds
        raise _broken(path, error) from error


def _declared(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Bytes of the array that a .npy header speaks of: NumPy allocates them before it reads any."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return math.prod(shape) * dtype.itemsize


def _load_pth(path: Path) -> dict[str, torch.Tensor]:
    import torch

    with path.open("rb") as file:
        start = file.read(16)
    try:
        if start.startswith(b"PK\x03\x04"):  # as torch tells its two forms apart
            checked = _checked_archive(path)
        elif start.startswith(b"\x80"):
            checked = _checked_pickles(path)
        else:
            raise _broken(path, f"no file of torch.save, it begins with {start!r}" if start else "it is empty")
        loaded = torch.load(checked, map_location="cpu", weights_only=True)
    except DataError:
        raise
    except Exception as error:  # a hostile file makes zipfile and torch raise errors of many kinds
        raise _broken(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise DataError(must_be("weights", "a .pth file of tensors by name", f"{str(path)!r}: {type(loaded).__name__}"))
    size = path.stat().st_size
    for name, tensor in loaded.items():
        if tensor.numel() * tensor.element_size() > size:  # strides of 0: one value that claims to be many
            raise _broken(path, f"tensor {name!r} of shape {tuple(tensor.shape)} is larger than the file")
    return {str(name): value for name, value in loaded.items()}


def _checked_archive(path: Path) -> io.BytesIO:
    """The zip archive of torch.save, packed again from its checked members.

    Their CRC-32 was compared, and torch's own zip reader cannot see anything else in the file than was checked.
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(packed, "w") as copy:
        members = archive.infolist()
        names = [member.filename for member in members]
        if any(name.endswith("/constants.pkl") for name in names):
            raise DataError(must_be("weights", _PLAIN, f"{str(path)!r}, a TorchScript archive", _SCRIPT))
        if any(member.compress_type != zipfile.ZIP_STORED for member in members) or len(set(names)) < len(names):
            raise _broken(path, "compressed or repeated members, which torch.save never writes")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise _broken(path, "its members are larger than the file")
        for member in members:
            content = archive.read(member)
            if member.filename.endswith(".pkl"):
                _check_pickle(path, io.BytesIO(content), None)
            copy.writestr(member.filename, content)
    packed.seek(0)
    return packed


def _checked_pickles(path: Path) -> io.BytesIO:
    """The file of torch before 1.6: five pickles (a number, a version, the machine, tensors, storages), then bytes."""
    content = io.BytesIO(path.read_bytes())
    for part in ("number", "version", "machine", "tensors", "storages"):
        _check_pickle(path, content, content.getbuffer().nbytes if part == "tensors" else None)
    content.seek(0)
    return content


def _check_pickle(path: Path, file: IO[bytes], most: int | None) -> None:
    """One pickle: only known names, and where `most` is given no number above it (a storage's length, for one)."""
    import torch

    for module, name in _globals(path, file, most):
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        plain = dtype or (module in ("torch", "torch.storage") and name.endswith("Storage"))
        if (module, name) not in _PICKLED and not plain:
            raise DataError(must_be("weights", _PLAIN, f"{str(path)!r}, which holds {module}.{name}", _RESAVE))


def _globals(path: Path, file: IO[bytes], most: int | None) -> Iterator[tuple[str, str]]:
    for opcode, value, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            module, _, name = str(value).partition(" ")
            yield module, name
        elif opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):  # torch.save writes none of them
            yield "pickle", opcode.name
        elif most is not None and isinstance(value, int) and value > most:
            raise _broken(path, f"a length of {value} in a file of {most} bytes")
