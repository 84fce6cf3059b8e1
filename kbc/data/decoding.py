"""What decoders warn of: a damaged JPEG or TIFF is often decoded all the same, with other pixels."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_MARK = "\x1e"
_CHILD = f"""
import sys
import cv2, numpy
for name in sys.stdin.buffer.read().split(b"\\0"):
    print("{_MARK}", file=sys.stderr, flush=True)
    try:
        cv2.imdecode(numpy.fromfile(name, numpy.uint8), cv2.IMREAD_REDUCED_COLOR_8)
    except Exception:  # whoever opens the picture is told
        pass
"""


def decoder_warnings(paths: Sequence[Path]) -> dict[Path, str]:
    """Picture → the first line that its decoder writes to the standard error stream, of those where it writes any.

    Libraries in C warn there and nowhere else. A process of its own decodes the pictures once more, so that the
    caller's streams stay as they are. A WebP, and any picture whose damage makes sense to its decoder, goes without a
    word: the formats have no checksum. Nothing is told where no process can be started.

    Args:
        paths: pictures that can be opened.
    """
    if not paths or not sys.executable:
        return {}
    names = b"\0".join(os.fsencode(path) for path in paths)
    environment = {**os.environ, "OPENCV_LOG_LEVEL": "WARNING"}
    try:
        done = subprocess.run([sys.executable, "-c", _CHILD], input=names, env=environment, capture_output=True)
    except OSError:
        return {}
    said = done.stderr.decode(errors="replace").split(_MARK)[1:]
    lines = [text.strip().partition("\n")[0] for text in said]
    return {path: line for path, line in zip(paths, lines, strict=False) if line}
