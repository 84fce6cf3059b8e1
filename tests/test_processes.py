"""Worker processes: one that dies ends the work with a message, never with a hang."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from kbc.errors import MatcherError
from kbc.processes import one_thread, worker_processes
from kbc.progress import progress_bar


def test_the_processes_work_and_are_gone_afterwards() -> None:
    with worker_processes(2, one_thread) as pool:
        assert list(pool.map(abs, [-1, 2, -3])) == [1, 2, 3]
        children = {pool.submit(os.getpid).result() for _ in range(4)}
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


def test_what_a_process_raises_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError), worker_processes(1, one_thread) as pool:
        list(pool.map(divmod, [1], [0]))


@pytest.mark.parametrize("death", ["at work", "at the beginning"])
def test_a_process_that_dies_is_an_error_that_says_what_to_do(death: str) -> None:
    begin = partial(os._exit, 9) if death == "at the beginning" else one_thread
    told = r"of --jobs ended before its work was done.*fewer --jobs"
    with pytest.raises(MatcherError, match=told), worker_processes(2, begin) as pool:
        list(pool.map(os._exit, [9, 9]))


def test_a_bar_may_begin_with_nothing_done(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    with progress_bar() as show:  # as `kbc eval --jobs` does
        show(0, 40, "2 processes")
        show(1, 40, "2 processes")
    said = capfd.readouterr().err
    assert "-1/40" not in said
    assert "1/40" in said


KILLED = """
import os, signal, sys
from kbc.processes import one_thread, worker_processes

if __name__ == "__main__":
    with worker_processes(2, one_thread) as pool:
        print(*{pool.submit(os.getpid).result() for _ in range(4)}, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_the_processes_end_when_the_one_above_is_killed(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    done = subprocess.run([sys.executable, str(tmp_path / "killed.py")], stdout=subprocess.PIPE, timeout=120)
    assert done.stdout  # read to its end: the processes below, which hold the pipe as well, have ended


TRANSFER = """
import os, sys, time
from pathlib import Path
from kbc.errors import MatcherError
from kbc.labelling.job import Workers

def work(image, boxes=None):
    if image.stem == "dies":
        os._exit(9)
    time.sleep(0.2)

def build():
    return work

if __name__ == "__main__":
    try:
        for _ in Workers(2, build)([(Path(name), None) for name in sys.argv[1:]]):
            raise KeyboardInterrupt
    except (MatcherError, KeyboardInterrupt) as error:
        print(repr(error))
"""


def test_a_transfer_whose_process_is_killed_or_that_is_interrupted_ends(tmp_path: Path) -> None:
    script = tmp_path / "transfer.py"
    script.write_text(TRANSFER)
    command = [sys.executable, str(script)]
    done = subprocess.run([*command, "dies", "dies"], capture_output=True, text=True, timeout=120)
    assert "ended before its work was done" in done.stdout
    done = subprocess.run([*command, *"abcdefgh"], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("KeyboardInterrupt()\n", "")
