"""The numeric arrays of a MATLAB 5 file, and MATLAB's points in this project's convention.

A hundred lines of documented format instead of a dependency: "MAT-File Level 5 File Format" (MathWorks), of which the
benchmarks use compressed and plain numeric matrices only. Nothing in the file is executed.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kbc.errors import DataError
from kbc.geometry import Points

_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15
_NUMERIC_CLASSES = range(6, 16)  # double, single and the integers; cells, structs, text and sparse are passed over
_LIMIT = 64 * 2**20

Array = npt.NDArray[np.float64]


def read_mat(path: Path) -> dict[str, Array]:
    """Name → 2-D float64 array of every real numeric matrix at the top of a MATLAB 5 (not 7.3) file.

    Raises:
        DataError: the file is missing, of another version, or broken.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(data) < 128 or data[126:128] not in (b"IM", b"MI"):
        raise DataError(f"{path}: not a MATLAB 5 file (version 7.3 files are HDF5: save with -v7)")
    order: Literal["<", ">"] = "<" if data[126:128] == b"IM" else ">"
    arrays: dict[str, Array] = {}
    try:
        at = 128
        while at < len(data):
            kind, body, at = _element(data, at, order, padded=False)
            if kind == _COMPRESSED:
                kind, body, _ = _element(_inflate(body), 0, order)
            if kind == _MATRIX:
                named = _matrix(body, order)
                if named is not None:
                    arrays[named[0]] = named[1]
    except (struct.error, zlib.error, ValueError, KeyError, IndexError) as error:
        raise DataError(f"{path}: broken MATLAB file ({error})") from error
    return arrays


def _inflate(body: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(body, _LIMIT)
    if unpacker.unconsumed_tail:
        raise ValueError(f"a matrix of more than {_LIMIT} bytes")
    return data


def _element(data: bytes, at: int, order: str, padded: bool = True) -> tuple[int, bytes, int]:
    """(type, content, where the next element starts); small elements keep their content in the tag."""
    first, size = struct.unpack_from(order + "II", data, at)
    if first >> 16:
        size = first >> 16
        return first & 0xFFFF, data[at + 4 : at + 4 + size], at + 8
    body = data[at + 8 : at + 8 + size]
    if len(body) < size:
        raise ValueError("it ends early")
    end = at + 8 + size
    return first, body, end + (-size % 8 if padded else 0)


def _matrix(body: bytes, order: str) -> tuple[str, Array] | None:
    _, flags, at = _element(body, 0, order)
    (word,) = struct.unpack_from(order + "I", flags)
    if word & 0xFF not in _NUMERIC_CLASSES or word & 0x0800:  # 0x0800: complex
        return None
    _, shape_bytes, at = _element(body, at, order)
    _, name, at = _element(body, at, order)
    kind, content, _ = _element(body, at, order)
    shape = np.frombuffer(shape_bytes, order + "i4")
    values: npt.NDArray[Any] = np.frombuffer(content, order + _TYPES[kind])
    return name.decode("ascii", "replace"), values.reshape(shape, order="F").astype(np.float64)


def from_matlab(points: npt.ArrayLike) -> Points:
    """(N, 2) points counted from 1, as MATLAB does, counted from 0: the one place where this is done."""
    return np.asarray(points, dtype=np.float64).reshape(-1, 2) - 1.0
