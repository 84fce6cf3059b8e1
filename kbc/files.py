"""Output files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from kbc.errors import InputError, must_be


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends, and vanishes when it raises (Ctrl-C, too).

    Raises:
        InputError: the folder does not exist, cannot be written to, or `path` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(must_be("path", "a file's name", f"the folder {str(path)!r}"))
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        file = part.open("xb")
    except OSError as error:
        hint = "make the folder first"
        raise InputError(must_be("path", "in a folder that can be written to", repr(str(path)), hint)) from error
    try:
        with file:
            yield file
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_json(data: object, path: str | os.PathLike[str]) -> None:
    """Write strict JSON (UTF-8, no NaN) to a file, whole or not at all, or to standard output for "-"."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    with written_whole(path) as file:
        file.write(text.encode())
