"""Weight files: read .safetensors, .pth and .npz without ever running code from them, and write .safetensors.

The safetensors format (https://github.com/huggingface/safetensors, "Format") is eight bytes of little-endian header
length, a JSON header and raw little-endian bytes. It is read and written here so that a bundled checkpoint loads with
the run-time dependencies alone.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kbc.errors import DataError, InputError, must_be
from kbc.files import as_path, written_whole

if TYPE_CHECKING:
    import torch

MAX_HEADER = 100_000_000
"""Bytes; the format's own limit, so that a broken length does not allocate the machine's memory."""

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def load_weights(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Tensors of a weight file by name, on the CPU. The ending decides: .safetensors, .npz, .pth / .pt / .bin.

    A .pth may hold the tensors at the top or under "state_dict", "model_state_dict" or "model". It is read with
    `weights_only=True`: nothing in it can run.

    Raises:
        InputError: no such file, or an ending that is not known.
        DataError: the file is truncated or damaged, or holds anything but tensors.
    """
    path = as_path(path, "weights")
    readers = {".safetensors": load_safetensors, ".npz": _load_npz, ".pth": _load_pth, ".pt": _load_pth}
    readers[".bin"] = _load_pth
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(must_be("weights", f"a file ending in {', '.join(readers)}", repr(str(path))))
    _require_file(path)
    return reader(path)


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Tensors of a .safetensors file by name, on the CPU. Errors as `load_weights`."""
    import torch

    path = as_path(path, "path")
    header, start = _read_header(path)
    data = bytearray(path.read_bytes()[start:])
    tensors: dict[str, torch.Tensor] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, begin, end = _checked_entry(path, name, entry, len(data))
        if begin == end:
            tensors[name] = torch.empty(shape, dtype=dtype)
            continue
        flat = torch.frombuffer(data, dtype=torch.uint8, count=end - begin, offset=begin).clone()
        tensors[name] = _native(flat, dtype).view(dtype).reshape(shape)
    return tensors


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The `__metadata__` strings of a .safetensors file, without reading its tensors. Errors as `load_weights`."""
    header, _ = _read_header(as_path(path, "path"))
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise DataError(must_be("weights", "a safetensors file whose metadata are strings", repr(str(path))))
    return metadata


def save_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, sorted by name, so that the same tensors give the same bytes.

    The file appears whole or not at all: it is written beside its place and moved there.

    Raises:
        InputError: a dtype that the format does not know, or a folder that is not there.
    """
    import torch

    codes = {getattr(torch, name): code for code, name in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    blobs: list[bytes] = []
    end = 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        if tensor.dtype not in codes:
            raise InputError(must_be(f"tensors[{name!r}]", f"one of {', '.join(_DTYPES)}", tensor.dtype))
        flat = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)
        blobs.append(_native(flat, tensor.dtype).numpy().tobytes())
        begin, end = end, end + len(blobs[-1])
        header[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with written_whole(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(blobs)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(must_be("weights", "an existing weight file", repr(str(path)), "check the path"))


def _broken(path: Path, why: object) -> DataError:
    return DataError(must_be("weights", "a complete weight file", f"{str(path)!r}: {why}", "copy it again"))


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header and the offset at which the tensors' bytes begin."""
    _require_file(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise _broken(path, f"{size} bytes, of which {length} should be the header")
        try:
            header = json.loads(file.read(length))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise _broken(path, f"the header is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise _broken(path, "the header is no JSON object")
    return header, 8 + length


def _checked_entry(path: Path, name: str, entry: Any, available: int) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    import torch

    try:
        code, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise _broken(path, f"tensor {name!r} is not described") from error
    if code not in _DTYPES:
        raise DataError(must_be(f"weights[{name!r}]", f"one of {', '.join(_DTYPES)}", repr(code)))
    dtype: torch.dtype = getattr(torch, _DTYPES[code])
    whole = all(isinstance(value, int) and value >= 0 for value in (*shape, begin, end))
    if not whole or end > available or end - begin != int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise _broken(path, f"tensor {name!r} of shape {shape} lies at bytes {begin} to {end} of {available}")
    return dtype, shape, begin, end


def _native(flat: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Raw bytes between the file's little-endian order and this machine's."""
    if sys.byteorder == "little" or dtype.itemsize == 1:
        return flat
    return flat.view(-1, dtype.itemsize).flip(1).reshape(-1)


def _load_npz(path: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: torch.from_numpy(np.array(archive[name])) for name in archive.files}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise _broken(path, error) from error


def _load_pth(path: Path) -> dict[str, torch.Tensor]:
    import torch

    with path.open("rb") as file:
        start = file.read(16)
    if not start.startswith((b"PK", b"\x80")):  # a zip archive, or the pickle of torch before 1.6
        raise _broken(path, f"no file of torch.save, it begins with {start!r}")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        told = re.search(r"WeightsUnpickler error:\s*(.*?)(?: was not an allowed|\n|$)", str(error))
        reason = told[1] if told else str(error).splitlines()[0]  # torch's first line is advice
        raise DataError(
            must_be("weights", "a .pth file of plain tensors", f"{str(path)!r}: {reason}", "save its state_dict alone")
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise _broken(path, error) from error
    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise DataError(must_be("weights", "a .pth file of tensors by name", f"{str(path)!r}: {type(loaded).__name__}"))
    return {str(name): value for name, value in loaded.items()}
