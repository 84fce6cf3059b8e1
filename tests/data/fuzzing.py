"""Files damaged in bytes and in values, and what counts how a reader takes them."""

from __future__ import annotations

import json
import os
import resource
import warnings
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kbc.errors import KBCError

EXAMPLES = int(os.environ.get("KBC_FUZZ_EXAMPLES", "20000"))
MOST_MIB = 1024
"""Memory that a damaged file of a few kilobytes may make the process grow by."""

Target = tuple[Path, Callable[[Path], object]]
ODD: tuple[Any, ...] = (
    None, True, [], {}, "", "x", -1, 0, 0.5, 1e308, -1e308, float("nan"), float("inf"), 10**18, 10**400, "a" * 300,
    "a\0b", "../x", "/etc/passwd", "https://a.org/x", "²", [[[[[]]]]], [1], {"id": 1}, "1",
)  # fmt: skip
TOKENS = (
    b"",
    b"\0",
    b"9" * 5000,
    b"[" * 3000,
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b'"',
    b"\xe9",
    b",",
    b"\n",
    b";",
    b"1e999",
)


@st.composite
def damaged(draw: st.DrawFn, sound: bytes) -> bytes:
    """A file with up to four bytes changed, pieces left out, doubled or replaced, or cut short."""
    content = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        end = min(len(content), place + draw(st.integers(1, 40)))
        what = draw(st.sampled_from(("flip", "set", "drop", "double", "token", "cut")))
        if what == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif what == "set" and content:
            content[place] = draw(st.integers(0, 255))
        elif what == "double":
            content[end:end] = content[place:end]
        elif what == "cut":
            del content[place:]
        elif what in ("drop", "token"):
            content[place:end] = draw(st.sampled_from(TOKENS)) if what == "token" else b""
    return bytes(content)


@st.composite
def odd_values(draw: st.DrawFn, sound: bytes) -> bytes:
    """A JSON file in which up to three values are replaced, left out or doubled."""
    data = json.loads(sound)
    for _ in range(draw(st.integers(1, 3))):
        places: list[tuple[Any, Any]] = []
        heap = [data]
        while heap:
            node = heap.pop()
            items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
            places += [(node, key) for key, _ in items]
            heap += [value for _, value in items] if isinstance(node, dict) else list(node) if items else []
        if not places:
            break
        node, key = draw(st.sampled_from(places))
        what = draw(st.sampled_from(("replace", "replace", "drop", "double")))
        if what == "drop":
            del node[key]
        elif what == "double" and isinstance(node, list):
            node.append(deepcopy(node[key]))
        else:
            node[key] = deepcopy(draw(st.sampled_from(ODD)))
    return json.dumps(data).encode()


def fuzz(
    target: Target, strategy: Callable[[bytes], st.SearchStrategy[bytes]], examples: int, fresh: bool
) -> Counter[str]:
    """How many damaged files were read and how many refused; anything but kbc's own errors fails."""
    path, read = target
    sound, seen = path.read_bytes(), Counter[str]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=not fresh,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy(sound))
    def once(content: bytes) -> None:
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                read(path)
                seen["read"] += 1
            except KBCError:
                seen["refused"] += 1

    try:
        once()
    finally:
        path.write_bytes(sound)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MOST_MIB
    return seen
