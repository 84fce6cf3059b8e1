"""Paths as users give them, and output files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from kbc.errors import InputError, must_be


def as_path(path: object, argument: str) -> Path:
    """A path that a user gave, with `~` expanded.

    Raises:
        InputError: neither text nor a path.
    """
    try:
        return Path(path).expanduser()  # type: ignore[arg-type]
    except (TypeError, RuntimeError) as error:  # no path at all; a home that is not known
        raise InputError(must_be(argument, "a path", repr(path))) from error


def output_file(path: str | os.PathLike[str], argument: str = "path") -> Path:
    """The path of a file that can be written; to be asked before the work whose result goes there.

    Raises:
        InputError: the folder does not exist, cannot be written to, or `path` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(must_be(argument, "a file's name", f"the folder {str(path)!r}"))
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        hint = "check the path" if path.parent.is_dir() else "make the folder first"
        raise InputError(must_be(argument, "in a folder that can be written to", repr(str(path)), hint))
    return path


def output_folder(path: str | os.PathLike[str], argument: str) -> Path:
    """A folder for results, made when it is not there.

    Raises:
        InputError: it can be neither made nor written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError
    except OSError as error:
        received = f"{str(path)!r} ({error.strerror or 'not writable'})"
        raise InputError(must_be(argument, "a folder that can be written to", received)) from error
    return path


@contextmanager
def written_whole(path: str | os.PathLike[str], argument: str = "path") -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends, and vanishes when it raises (Ctrl-C, too).

    Raises:
        InputError: as `output_file`, naming `argument`.
    """
    path = output_file(path, argument)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        file = part.open("xb")
    except OSError as error:
        received = f"{str(path)!r} ({error.strerror})"
        raise InputError(must_be(argument, "a file that can be written", received)) from error
    try:
        with file:
            yield file
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_json(data: object, path: str | os.PathLike[str], argument: str = "path") -> None:
    """Write strict JSON (UTF-8, no NaN) to a file, whole or not at all, or to standard output for "-"."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    with written_whole(path, argument) as file:
        file.write(text.encode())


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes; "" where there is no regular file that can be read."""
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):  # ValueError: a name with a NUL
        return ""


def tree_digest(path: Path) -> str:
    """`file_digest` of a file, or of a folder's Python files by their names; "" where there is neither."""
    try:
        if not path.is_dir():
            return file_digest(path)
    except OSError:  # a name longer than the file system takes
        return ""
    code = sorted(path.rglob("*.py"))
    return hashlib.sha256(repr([(str(p.relative_to(path)), file_digest(p)) for p in code]).encode()).hexdigest()
