"""How many pixels an image file says that it has, read from its first bytes: known before anything is decoded."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

_PNM = re.compile(rb"P[1-6](?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})")
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
FORMATS = "PNG, JPEG, TIFF, WebP, BMP, GIF, PNM, JPEG 2000 or AVIF"


def stated_size(content: bytes) -> tuple[int, int] | None:
    """(height, width) as the header of a file in one of `FORMATS` states it; None where it is none of them.

    The largest of what it states counts: a TIFF's tiles may be larger than its image. OpenCV decodes the first image
    of a file of several.
    """
    for starts, read in _READERS:
        if content.startswith(starts):
            try:
                return read(content)
            except (struct.error, ValueError, OverflowError):  # OverflowError: a BigTIFF's offset beyond any file
                return None
    if content[4:8] in (b"ftyp", b"jP  "):
        return _boxed(content)
    return None


def start_of_scan(content: bytes) -> int:
    """Where a JPEG's pixels begin: past its headers, whose thumbnail has an end marker of its own."""
    return _markers(content)[1]


def _markers(content: bytes) -> tuple[tuple[int, int] | None, int]:
    """A JPEG's (height, width) and where its scan begins."""
    place, size = 2, None
    while place + 4 <= len(content) and content[place] == 0xFF and content[place + 1] != 0xDA:
        marker = content[place + 1]
        if marker in _START_OF_FRAME and size is None and place + 9 <= len(content):
            height, width = struct.unpack_from(">HH", content, place + 5)
            size = (height, width)
        padded = marker == 0xFF  # any number of 0xFF may stand before a marker
        place += 1 if padded else 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return size, place


def _jpeg(content: bytes) -> tuple[int, int] | None:
    return _markers(content)[0]


def _png(content: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", content, 16)
    return height, width


def _gif(content: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", content, 6)
    return height, width


def _bmp(content: bytes) -> tuple[int, int]:
    form = "<HH" if struct.unpack_from("<I", content, 14)[0] == 12 else "<ii"
    width, height = struct.unpack_from(form, content, 18)
    return abs(height), abs(width)


def _webp(content: bytes) -> tuple[int, int] | None:
    kind = content[12:16]
    if content[8:12] != b"WEBP":
        return None
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", content, 26)
        return height & 0x3FFF, width & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8X":
        return int.from_bytes(content[27:30], "little") + 1, int.from_bytes(content[24:27], "little") + 1
    return None


def _pnm(content: bytes) -> tuple[int, int] | None:
    found = _PNM.match(content)
    return (int(found[2]), int(found[1])) if found else None


def _tiff(content: bytes) -> tuple[int, int] | None:
    order = "<" if content[:2] == b"II" else ">"
    (version,) = struct.unpack_from(order + "H", content, 2)
    big = version == 43
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), content, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), content, at)
    start, step = (at + 8, 20) if big else (at + 2, 12)
    tags: dict[int, int] = {}
    for place in range(start, start + step * min(count, 4096), step):
        tag, kind = struct.unpack_from(order + "HH", content, place)
        form = {3: "H", 4: "I", 16: "Q"}.get(kind)
        if form and tag in (256, 257, 322, 323):
            (tags[tag],) = struct.unpack_from(order + form, content, place + (12 if big else 8))
    if 256 not in tags or 257 not in tags:
        return None
    return max(tags[257], tags.get(323, 0)), max(tags[256], tags.get(322, 0))


def _boxed(content: bytes) -> tuple[int, int] | None:
    """JPEG 2000 and AVIF: the largest of the sizes in their image header boxes."""
    found = []
    for name, skip, form in ((b"ihdr", 4, ">II"), (b"ispe", 8, ">II")):
        for match in re.finditer(name, content[:65536]):
            if match.start() + skip + 8 <= len(content):
                first, second = struct.unpack_from(form, content, match.start() + skip)
                found.append((first, second) if name == b"ihdr" else (second, first))
    return max(found, key=lambda size: size[0] * size[1]) if found else None


_READERS: tuple[tuple[tuple[bytes, ...], Callable[[bytes], tuple[int, int] | None]], ...] = (
    ((b"\x89PNG\r\n\x1a\n",), _png),
    ((b"\xff\xd8\xff",), _jpeg),
    ((b"GIF87a", b"GIF89a"), _gif),
    ((b"BM",), _bmp),
    ((b"RIFF",), _webp),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _tiff),
    ((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"), _pnm),
)
