"""Processes that work for this one and end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from kbc.errors import MatcherError


@contextmanager
def worker_processes(count: int, begin: Callable[..., object], *given: Any) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes, each of which begins with `begin(*given)`; whatever ends the block ends them too.

    Raises:
        MatcherError: one of them died, or could not begin.
    """
    context = multiprocessing.get_context("spawn")  # a forked child has torch's and OpenCV's locks without the threads
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(count, context, _begin, (begin, *given)) as pool:
        try:
            yield pool
        except BaseException as error:  # Ctrl-C, too, does not wait for what they are doing
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            if isinstance(error, BrokenProcessPool):
                hint = "what it wrote above says why; without a word the memory was full: take fewer --jobs"
                raise MatcherError(
                    f"one of the {count} processes of --jobs ended before its work was done; {hint}"
                ) from error
            raise


def _begin(begin: Callable[..., object], *given: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the process above answers for all
    threading.Thread(target=_end_with_parent, daemon=True).start()
    begin(*given)


def _end_with_parent() -> None:
    """A process that is killed cannot end its workers, which would wait for ever for what to do next."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def one_thread(*_: object) -> None:
    """Give this process one thread: others of the same job have theirs."""
    import torch

    from kbc.images import require_cv2

    torch.set_num_threads(1)
    require_cv2().setNumThreads(1)
