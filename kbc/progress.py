"""How far long work is, its rate and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def progress_bar(unit: str = "pair", wanted: bool = True) -> Iterator[Callable[[int, int, str], None]]:
    """A tqdm bar from the first one on when it is installed, else a line every ten seconds; nothing when not wanted.

    What it gives is called with (done, in all, what is running); what was done before the first call has no rate.
    """
    if not wanted:
        yield lambda done, total, label: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        yield _Lines(unit)
        return
    with ExitStack() as stack:  # whatever ends the run, what is said next stands on a line of its own
        bar: Any = None

        def draw(done: int, total: int, label: str) -> None:
            nonlocal bar
            bar = bar or stack.enter_context(tqdm(unit=unit, dynamic_ncols=True, total=total, initial=max(done - 1, 0)))
            bar.set_description(label, refresh=False)
            bar.update(done - bar.n)

        yield draw


class _Lines:
    """The same as lines of text."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.begun = self.last = time.monotonic()
        self.before: int | None = None

    def __call__(self, done: int, total: int, label: str) -> None:
        now = time.monotonic()
        self.before = done - 1 if self.before is None else self.before
        if done < total and now - self.last < 10:
            return
        self.last = now
        rate = (done - self.before) / max(now - self.begun, 1e-9)
        left = (total - done) / max(rate, 1e-9)
        each = f"{rate:.1f} {self.unit}s/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.1f} s/{self.unit}"
        print(f"{done}/{total} {label} {each}, {left / 60:.0f} min left", file=sys.stderr)
