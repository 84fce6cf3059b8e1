"""Arrays of a MATLAB file, through scipy, and MATLAB's points in this project's convention."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kbc.errors import DataError, MissingDependencyError
from kbc.files import read_bytes
from kbc.geometry import Points

MAX_BYTES = 64 * 2**10
"""Bytes of a `.mat` file: the benchmarks' have about one thousand. Compressed, it unfolds to at most 70 MB."""
_MAX_VALUES = 100_000

Array = npt.NDArray[np.float64]


def read_mat(path: Path, *names: str) -> dict[str, Array]:
    """Those of the named arrays that a MATLAB file (not version 7.3) holds, as float64 of two axes.

    Raises:
        DataError: the file is missing, larger than 64 KiB, of another version or broken, holds a name twice, or one of
            the arrays is not numeric, is complex, infinite or larger than any annotation.
        MissingDependencyError: scipy is not installed.
    """
    try:
        from scipy.io import loadmat, whosmat
    except ImportError as error:
        raise MissingDependencyError(
            f"reading {path.name} needs scipy, which is not installed; run: pip install 'kbc[data]'"
        ) from error
    content = read_bytes(path, MAX_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy warns of arrays that it leaves out; they are refused below
            listed = [entry for entry in whosmat(io.BytesIO(content)) if entry[0] in names]
            for name, shape, _ in listed:
                if math.prod(shape) > _MAX_VALUES or [entry[0] for entry in listed].count(name) > 1:
                    raise DataError(f"{path}: field {name!r} must be one small array, received {shape} or two")
            held = loadmat(io.BytesIO(content), variable_names=[entry[0] for entry in listed])
    except DataError:
        raise
    except Exception as error:  # a broken file fails in scipy in as many ways as it can be broken
        hint = "save it with -v7" if content[:6] == b"\x89HDF\r\n" or b"7.3 MAT" in content[:128] else "copy it again"
        raise DataError(f"{path}: broken or no MATLAB 5 file ({error}); {hint}") from error
    return {name: _numbers(path, name, held.get(name)) for name, _, _ in listed}


def _numbers(path: Path, name: str, value: object) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" or array.ndim != 2 or array.size > _MAX_VALUES:
        received = f"{array.dtype} {array.shape}"
        raise DataError(f"{path}: field {name!r} must be an array of real numbers with two axes, received {received}")
    numbers = array.astype(np.float64)
    if np.isinf(numbers).any() or (np.abs(numbers) > 1e9).any():
        raise DataError(f"{path}: field {name!r} has values that are infinite or beyond any image")
    return numbers


def from_matlab(points: npt.ArrayLike) -> Points:
    """(N, 2) points counted from 1, as MATLAB does, counted from 0: the one place where this is done."""
    return np.asarray(points, dtype=np.float64).reshape(-1, 2) - 1.0
