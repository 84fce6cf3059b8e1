"""Outputs: whole or not at all, in their place, and what is no regular file stays what it is."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kbc.errors import InputError
from kbc.files import (
    LineFile,
    in_use,
    output_file,
    output_folder,
    refuse_overwriting,
    tree_digest,
    write_json,
    written_whole,
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_device_stays_a_device() -> None:
    write_json({"a": 1}, "/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_pipe_is_written_into_and_stays(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    write_json({"a": 1}, pipe)
    reader.join()
    assert json.loads(got[0]) == {"a": 1}
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_dev_stdout_is_written_to_where_it_is_a_file_too(tmp_path: Path) -> None:
    code = "import kbc.files; print('before', flush=True); kbc.files.write_json([1], '/dev/stdout'); print('after')"
    with (tmp_path / "out").open("ab") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_text().split() == ["before", "[", "1", "]", "after"]


@pytest.mark.parametrize("target_is_there", [True, False])
def test_a_link_stays_and_its_target_is_written(tmp_path: Path, target_is_there: bool) -> None:
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "link.json", tmp_path / "there" / "target.json"
    if target_is_there:
        target.write_text("old")
    link.symlink_to(Path("there") / "target.json")
    write_json([2], link)
    assert link.is_symlink()
    assert json.loads(target.read_text()) == [2]
    assert os.listdir(tmp_path / "there") == ["target.json"]


def test_the_mode_is_kept_from_the_first_byte_on(tmp_path: Path) -> None:
    path = tmp_path / "secret.json"
    path.write_text("old")
    path.chmod(0o600)
    with written_whole(path) as file:
        file.write(b"new")
        assert [mode(part) for part in tmp_path.glob(".*.part")] == [0o600]
    assert (mode(path), path.read_bytes()) == (0o600, b"new")


def test_a_new_file_has_the_mode_of_new_files(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_json([], tmp_path / "written")
    assert mode(tmp_path / "written") == mode(tmp_path / "plain")


@pytest.mark.parametrize("length", [240, 255])
def test_a_name_as_long_as_the_file_system_takes(tmp_path: Path, length: int) -> None:
    write_json([1], tmp_path / ("a" * length))
    assert json.loads((tmp_path / ("a" * length)).read_text()) == [1]


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "a" * 300 + "/b"])
def test_names_that_cannot_be_are_refused(tmp_path: Path, name: str) -> None:
    for refuse in (output_file, write_json_to):
        with pytest.raises(InputError, match="`--json` must be"):
            refuse(f"{tmp_path}/{name}", "--json")
    with pytest.raises(InputError, match="`--out` must be a folder that can be written to"):
        output_folder(f"{tmp_path}/{name}", "--out")


def test_an_output_that_is_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("a.json")
    for name in ("a.json", "link.json", "sub/../a.json"):
        with pytest.raises(InputError, match="`--out` must be a file of its own"):
            refuse_overwriting({"--out": tmp_path / name}, [None, tmp_path / "a.json"])
    with pytest.raises(InputError, match=r"`--review` must be a file of its own.*as --out is"):
        refuse_overwriting({"--out": tmp_path / "b", "--review": tmp_path / "c" / ".." / "b"}, [])
    refuse_overwriting({"--json": "/dev/stdout", "--plot": "/dev/stdout", "--out": "-", "--review": None}, ["-"])


def write_json_to(path: str, argument: str) -> None:
    write_json([], path, argument)


def test_file_names_that_are_no_utf8_can_be_written_about(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    write_json({"source": name}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"source": name}


@pytest.mark.skipif(sys.platform == "win32", reason="no limit to set")
def test_a_full_disk_leaves_the_file_that_was_there_and_names_it(tmp_path: Path) -> None:
    script = """
import resource, signal, sys
from kbc.files import write_json

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # as a disk with room for 100 bytes
try:
    write_json(list(range(1000)), sys.argv[1])
except OSError as error:
    print(error)
"""
    path = tmp_path / "report.json"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert done.stdout == f"[Errno 27] File too large: '{path}'\n"
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="no limit to set")
def test_a_full_disk_leaves_whole_lines_and_is_named(tmp_path: Path) -> None:
    script = """
import resource, signal, sys
from pathlib import Path
from kbc.files import LineFile

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # as a disk with room for 100 bytes
with LineFile(Path(sys.argv[1])) as file:
    for line in ("a" * 80, "b" * 80, "c" * 10):
        try:
            file.write(line + "\\n")
        except OSError as error:
            print(error)
"""
    path = tmp_path / "lines"
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert done.stdout == f"[Errno 27] File too large: '{path}'\n"
    assert path.read_text() == "a" * 80 + "\n" + "c" * 10 + "\n"


def test_a_file_of_lines_is_one_process_s_and_said_to_be_in_use(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    with LineFile(path, alone=True):
        assert in_use(path)
        with pytest.raises(InputError, match="written by one process at a time"):
            LineFile(path, alone=True)
    assert not in_use(path)
    LineFile(path, alone=True).close()


@pytest.mark.skipif(sys.platform == "win32", reason="locks differ")
def test_where_a_file_system_has_no_locks_nobody_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with LineFile(tmp_path / "lines", alone=True) as file:
        file.write("a\n")
    assert not in_use(tmp_path / "lines")


def test_an_output_folder_without_a_name_is_not_the_one_one_is_in() -> None:
    with pytest.raises(InputError, match=r"`--out` must be a path, received an empty one; '\.' is this folder"):
        output_folder("", "--out")
    assert output_folder(".", "--out") == Path()


def test_a_folder_counts_by_its_code_and_its_weights(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "code.py").write_text("1")
    held = [tree_digest(tmp_path)]
    (tmp_path / "README.md").write_text("1")
    assert tree_digest(tmp_path) == held[0]
    for name in ("model.safetensors", "config.json", "net/code.py"):
        (tmp_path / name).write_text(f"other {name}")
        held.append(tree_digest(tmp_path))
    assert len(set(held)) == 4
