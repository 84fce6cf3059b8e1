"""Arrays of a MATLAB file, and MATLAB's points in this project's convention.

The format is MathWorks' "MAT-File Format" (level 5). It is read here and not by scipy, whose `loadmat` looks up an
element's type in a C array without a bound: one changed byte in a file of annotations ends the whole process there.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kbc.data.annotations import FAR
from kbc.errors import DataError
from kbc.files import read_bytes
from kbc.geometry import Points

MAX_BYTES = 64 * 2**10
"""Bytes of a `.mat` file: the benchmarks' have about one thousand."""
_MAX_VALUES = 100_000
_MAX_UNFOLDED = 8 * _MAX_VALUES + 1024  # bytes of a compressed array of so many doubles, with its header

_MATRIX, _COMPRESSED, _INT8, _INT32, _UINT32, _UTF8 = 14, 15, 1, 5, 6, 16  # types of elements
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}  # of those, too
_FIRST_CLASS, _LAST_CLASS = 6, 15  # of arrays: double, single, int8 … uint64; before them cells, structs, text, sparse
_COMPLEX = 0x800

Array = npt.NDArray[np.float64]


class _BrokenError(Exception):
    """The bytes are not what the format says."""


def read_mat(path: Path, *names: str) -> dict[str, Array]:
    """Those of the named arrays that a MATLAB file (not version 7.3) holds, as float64 of two axes.

    Raises:
        DataError: the file is missing, larger than 64 KiB, of another version or broken, holds a name twice, or one of
            the arrays is not numeric, is complex, infinite or larger than any annotation.
    """
    content = read_bytes(path, MAX_BYTES)
    found: dict[str, Array] = {}
    try:
        order = _byte_order(content)
        for kind, element in _elements(content[128:], order, padded=False):
            name, flags, shape = _header(kind, element, order)
            if name not in names:
                continue
            if math.prod(shape) > _MAX_VALUES or name in found:
                raise DataError(f"{path}: field {name!r} must be one small array, received {shape} or two")
            if not _FIRST_CLASS <= flags & 0xFF <= _LAST_CLASS or flags & _COMPLEX or len(shape) != 2:
                received = f"{'complex ones' if flags & _COMPLEX else f'class {flags & 0xFF}'} of shape {shape}"
                expected = "an array of real numbers with two axes"
                raise DataError(f"{path}: field {name!r} must be {expected}, received {received}")
            found[name] = _numbers(kind, element, order, shape)
            if (np.abs(found[name]) > FAR).any():
                raise DataError(f"{path}: field {name!r} has values that are infinite or beyond any image")
    except (_BrokenError, struct.error, zlib.error) as error:
        hint = "save it with -v7" if content[:6] == b"\x89HDF\r\n" or b"7.3 MAT" in content[:128] else "copy it again"
        raise DataError(f"{path}: broken or no MATLAB 5 file ({error}); {hint}") from error
    return found


def _byte_order(content: bytes) -> str:
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None or struct.unpack_from(order + "H", content, 124) != (0x0100,):
        raise _BrokenError("its first 128 bytes are not a MATLAB 5 file's")
    return order


def _elements(content: bytes, order: str, padded: bool = True) -> Iterator[tuple[int, bytes]]:
    """The elements that stand one after the other in these bytes, each with its type.

    Those inside an array are padded to multiples of eight bytes, the arrays of a file are not.
    """
    place = 0
    while place < len(content):
        kind, size = struct.unpack_from(order + "II", content, place)
        start = place + 8
        if kind >> 16:  # a small one: up to four bytes in the place of its size
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
        end = start + size
        if end > len(content) or (start == place + 4 and size > 4):
            raise _BrokenError(f"an element of {size} bytes at {place} of {len(content)}")
        yield kind, content[start:end]
        place = end + (place - end) % 8 if padded else end


def _first(count: int, content: bytes, order: str) -> list[tuple[int, bytes]]:
    found = list(islice(_elements(content, order), count))
    if len(found) < count:
        raise _BrokenError("an array without flags, shape, name and values")
    return found


def _header(kind: int, element: bytes, order: str) -> tuple[str, int, tuple[int, ...]]:
    """Name, class and flags, and shape of an array; of a compressed one no more than 1 KiB is unfolded for it."""
    if kind not in (_MATRIX, _COMPRESSED):
        raise _BrokenError(f"an element of type {kind} in the place of an array")
    start = element if kind == _MATRIX else zlib.decompressobj().decompress(element, 1024)[8:]
    (flags_type, flags), (shape_type, shape), (name_type, name) = _first(3, start, order)
    if (flags_type, len(flags), shape_type) != (_UINT32, 8, _INT32) or name_type not in (_INT8, _UTF8):
        raise _BrokenError("an array without flags, shape, name and values")
    sizes = struct.unpack(f"{order}{len(shape) // 4}i", shape)
    if min(sizes, default=-1) < 0:
        raise _BrokenError(f"an array of shape {sizes}")
    return name.decode("utf-8", "replace"), struct.unpack_from(order + "I", flags)[0], sizes


def _numbers(kind: int, element: bytes, order: str, shape: tuple[int, ...]) -> Array:
    """The values of an array whose header is known."""
    if kind == _COMPRESSED:
        unfolding = zlib.decompressobj()
        element = unfolding.decompress(element, _MAX_UNFOLDED)
        if not unfolding.eof or struct.unpack_from(order + "II", element) != (_MATRIX, len(element) - 8):
            raise _BrokenError("a compressed array that does not end where it says")
        element = element[8:]
    kind, values = _first(4, element, order)[3]
    form = np.dtype(order + _NUMBERS[kind]) if kind in _NUMBERS else None
    if form is None or len(values) != math.prod(shape) * form.itemsize:
        raise _BrokenError(f"{len(values)} bytes of type {kind} for an array of shape {shape}")
    return np.frombuffer(values, form).astype(np.float64).reshape(shape, order="F")


def from_matlab(points: npt.ArrayLike) -> Points:
    """(N, 2) points counted from 1, as MATLAB does, counted from 0: the one place where this is done."""
    return np.asarray(points, dtype=np.float64).reshape(-1, 2) - 1.0
