"""Paths as users give them, one door for every text file that is read, and output files that are there whole or not."""

from __future__ import annotations

import codecs
import csv
import errno
import hashlib
import io
import json
import os
import secrets
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Self

from pydantic_core import from_json

from kbc.errors import DataError, InputError, as_text, must_be


def as_path(path: object, argument: str) -> Path:
    """A path that a user gave, with `~` expanded.

    Raises:
        InputError: neither text nor a path, or an empty one: a variable of the shell that is not set, not this folder.
    """
    if path == "":
        raise InputError(must_be(argument, "a path", "an empty one", "'.' is this folder"))
    try:
        return Path(path).expanduser()  # type: ignore[arg-type]
    except (TypeError, RuntimeError) as error:  # no path at all; a home that is not known
        raise InputError(must_be(argument, "a path", repr(path))) from error


def absolute(path: str | os.PathLike[str]) -> Path:
    """One name for one file, whatever folder it is named from; links stay."""
    return Path(os.path.abspath(path))


MAX_BYTES = 512 * 2**20
"""Bytes that a file of annotations, pairs or points may have; COCO's largest official one has 470 million."""


def is_file(path: Path) -> bool:
    """Whether a regular file is there; False too for a name that the file system cannot hold, or with a NUL."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def visible(paths: Iterable[Path]) -> list[Path]:
    """Paths in order, without hidden ones: macOS leaves a `._name` beside every file that it copies or archives."""
    return sorted(path for path in paths if not path.name.startswith("."))


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        DataError: the file is missing, no regular one (a pipe or a device, which may never end), too large, or cannot
            be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
            raise DataError(f"{path}: must be a regular file, received {kind}; write its content into a file first")
        if status.st_size > most:
            raise DataError(f"{path}: must have at most {most:,} bytes, received {status.st_size:,}")
        with path.open("rb") as file:
            content = file.read(status.st_size + 1)  # Python sets aside what it is asked for
            if len(content) > status.st_size:  # it has grown meanwhile, or its size is not told (/proc)
                content += file.read(most + 1 - len(content))
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(content) > most:
        raise DataError(f"{path}: must have at most {most:,} bytes, received more")
    return content


def read_text(path: Path) -> str:
    """A text file, decoded once: UTF-8, with or without a byte-order mark, or UTF-16 with one.

    Raises:
        DataError: as `read_bytes`, or in another encoding.
    """
    content = read_bytes(path)
    encoding = "utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        received = (
            f"byte 0x{content[error.start]:02X} at {error.start}" if error.start < len(content) else "half a sign"
        )
        raise DataError(f"{path}: must be text in UTF-8, received {received}; save it again as UTF-8") from error


def read_json(path: Path) -> Any:
    """A JSON file as plain data.

    Raises:
        DataError: as `read_text`, or empty, not JSON, nested more than 200 deep, or with a number of thousands of
            digits.
    """
    text = read_text(path)
    if not text.strip():
        raise DataError(f"{path}: must be a JSON file, received an empty one")
    try:
        return from_json(text)
    except ValueError as error:
        raise DataError(f"{path}: must be JSON, received what cannot be read as such ({error})") from error


def read_table(path: Path) -> list[tuple[int, list[str]]]:
    """The rows of a CSV file and the lines they end in, fields stripped, blank rows left out.

    Fields are separated by commas; by `;` or tabs where the first line has no comma.

    Raises:
        DataError: as `read_text`, or a field of more than 131,072 characters.
    """
    text = read_text(path)
    first = text.lstrip().partition("\n")[0]
    separator = next((sign for sign in (",", ";", "\t") if sign in first), ",")
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        stripped = [(rows.line_num, [field.strip() for field in row]) for row in rows]
    except csv.Error as error:
        raise DataError(f"{path}: must be a CSV file, received what cannot be read as such ({error})") from error
    return [(line, row) for line, row in stripped if any(row) or len(row) > 1]


def output_file(path: str | os.PathLike[str], argument: str = "path") -> Path:
    """The path of a file that can be written; to be asked before the work whose result goes there.

    Raises:
        InputError: the folder does not exist, cannot be written to, or `path` is a folder.
    """
    path = as_path(path, argument)
    try:
        is_folder, straight, folder = path.is_dir(), _written_straight(path), _resolved(path).parent
        exists = folder.is_dir()
    except (OSError, ValueError) as error:  # too long for the file system; a NUL
        raise _unwritable(path, argument, error) from error
    if is_folder:
        raise InputError(must_be(argument, "a file's name", f"the folder {str(path)!r}"))
    if not straight and not (exists and os.access(folder, os.W_OK)):
        hint = "check the path" if exists else "make the folder first"
        raise InputError(must_be(argument, "in a folder that can be written to", repr(str(path)), hint))
    return path


def refuse_overwriting(outputs: Mapping[str, object], inputs: Iterable[object]) -> None:
    """Refuse to write into what is read, or two results into one file; to be asked before the work.

    Args:
        outputs: option → path; None and "-" are no files.
        inputs: paths of what is read; None is none.

    Raises:
        InputError: an output is one of the inputs, under whatever name, or another output.
    """
    taken = {_resolved(Path(str(path))): f"{str(path)!r}, which is read" for path in inputs if path is not None}
    for option, given in outputs.items():
        if given is None or str(given) == "-" or _written_straight(Path(str(given))):
            continue
        path = _resolved(Path(str(given)))
        if path in taken:
            raise InputError(must_be(option, "a file of its own", taken[path], "choose another name"))
        taken[path] = f"{str(given)!r}, as {option} is"


def output_folder(path: str | os.PathLike[str], argument: str) -> Path:
    """A folder for results, made when it is not there.

    Raises:
        InputError: it can be neither made nor written to.
    """
    path = as_path(path, argument)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError
    except (OSError, ValueError) as error:  # ValueError: a NUL
        received = f"{str(path)!r} ({getattr(error, 'strerror', error) or 'not writable'})"
        raise InputError(must_be(argument, "a folder that can be written to", received)) from error
    return path


@contextmanager
def written_whole(path: str | os.PathLike[str], argument: str = "path") -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends, and vanishes when it raises (Ctrl-C, too).

    A symbolic link stays one and what it points to is replaced; a file that is replaced hands on its permissions.
    Devices, pipes and what the process has open (/dev/stdout) are written to as they are.

    Raises:
        InputError: as `output_file`, naming `argument`.
    """
    path = output_file(path, argument)
    straight, place = _written_straight(path), _resolved(path)
    part = path if straight else place.with_name(f".{secrets.token_hex(8)}.part")
    try:
        file = part.open("ab" if straight else "xb")
    except OSError as error:
        raise _unwritable(path, argument, error) from error
    if straight:
        with file:
            yield file
        return
    try:
        with file:
            _hand_on_permissions(place, part)
            yield file
        part.replace(place)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # the disk is full, say
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _written_straight(path: Path) -> bool:
    """Whether a path is there and is no regular file that another may take the place of."""
    if os.path.abspath(path).startswith(("/dev/fd/", "/dev/std", "/proc/")):
        return path.exists()
    return path.exists() and not path.is_file()


def _resolved(path: Path) -> Path:
    """Where a path leads, through symbolic links, be there something or not."""
    return Path(os.path.realpath(path))


def _hand_on_permissions(old: Path, new: Path) -> None:
    """Owner and mode of a file for the one that replaces it, before anything stands in that."""
    try:
        had = old.stat()
    except FileNotFoundError:
        return
    with suppress(OSError, AttributeError):  # only root gives files away; Windows has no owners
        os.chown(new, had.st_uid, had.st_gid)
    new.chmod(stat.S_IMODE(had.st_mode))


def _unwritable(path: Path, argument: str, error: Exception) -> InputError:
    why = getattr(error, "strerror", None) or error
    return InputError(must_be(argument, "a file that can be written", f"{str(path)!r} ({why})"))


def write_json(data: object, path: str | os.PathLike[str], argument: str = "path") -> None:
    """Write strict JSON (UTF-8, no NaN) to a file, whole or not at all, or to standard output for "-"."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    text = as_text(text)
    if str(path) == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    with written_whole(path, argument) as file:
        file.write(text.encode())


class LineFile:
    """A file of lines that is only ever appended to, whole lines at a time.

    A process that is killed while writing leaves at most one half line at the end; it is cut off when the file is
    opened for writing again.

    Args:
        path: the file; made when it is not there, with its folder.
        alone: refuse to open it while another process has it open so; the system frees a killed process's.

    Raises:
        InputError: `alone`, and another process writes to it.
    """

    def __init__(self, path: Path, alone: bool = False) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        if alone:
            self._claim()
        self._trim()

    def write(self, lines: str) -> None:
        """Append whole lines in one system call.

        Raises:
            OSError: they cannot be written (the disk is full, say), and nothing of them stands in the file.
        """
        data, before = lines.encode(), os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            os.ftruncate(self._file, before)
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        """Flush to the disk and close."""
        os.fsync(self._file)
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _trim(self) -> None:
        data = self.path.read_bytes()
        if data and not data.endswith(b"\n"):
            os.truncate(self.path, data.rfind(b"\n") + 1)

    def _claim(self) -> None:
        while True:
            if not _lock(self._file, tries=3):  # `in_use` holds it for a moment
                os.close(self._file)
                hint = "wait for it, or choose another output"
                raise InputError(must_be(str(self.path), "written by one process at a time", "another's", hint))
            if self.path.exists() and os.path.samestat(os.fstat(self._file), self.path.stat()):
                return
            os.close(self._file)  # whoever held it has removed it since
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)


def in_use(path: Path) -> bool:
    """Whether a `LineFile` that is alone has this file open, here or in another process."""
    file = os.open(path, os.O_RDWR)
    try:
        return not _lock(file)
    finally:
        os.close(file)


def _lock(file: int, tries: int = 1) -> bool:
    """Lock an open file for this process, almost without waiting; False where another has it.

    On a file system without locks nothing is locked, and nobody is refused.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(file, 2**31 - 2, os.SEEK_SET)  # a byte that nobody reads: Windows' locks keep readers out
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if tries > 1:
            time.sleep(0.02)
            return _lock(file, tries - 1)
        return error.errno in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)
    return True


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes; "" where there is no regular file that can be read."""
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):  # ValueError: a name with a NUL
        return ""


_WEIGHTS = (".json", ".safetensors", ".bin", ".pt", ".pth", ".npz", ".ckpt")


def tree_digest(path: Path) -> str:
    """`file_digest` of a file, or of a folder's content by its names; "" where there is neither.

    Of a folder count the Python files, however deep, and weights with their settings that lie in it directly, as
    transformers keeps a model.
    """
    try:
        if not path.is_dir():
            return file_digest(path)
    except OSError:  # a name longer than the file system takes
        return ""
    counts = sorted({*path.rglob("*.py"), *(one for one in path.iterdir() if one.suffix in _WEIGHTS)})
    return hashlib.sha256(repr([(str(p.relative_to(path)), file_digest(p)) for p in counts]).encode()).hexdigest()
