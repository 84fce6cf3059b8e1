"""Data sets of image pairs with keypoints, each read from its official layout on disk.

`open_dataset(kind, root)` gives a `Dataset`: a sequence of `PairRecord`s whose images are opened only by `load`.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

from kbc.data.records import BoxKind, Dataset, PairRecord, Problem
from kbc.data.shrink import shrink
from kbc.errors import InputError, must_be, nearest
from kbc.files import as_path

__all__ = ["KINDS", "BoxKind", "Dataset", "PairRecord", "Problem", "open_dataset", "shrink"]

KINDS: dict[str, tuple[str, str]] = {
    "spair": ("kbc.data.spair", "open_spair"),
    "pfpascal": ("kbc.data.pfpascal", "open_pfpascal"),
    "pfwillow": ("kbc.data.pfwillow", "open_pfwillow"),
    "ap10k": ("kbc.data.ap10k", "open_ap10k"),
    "coco": ("kbc.data.coco", "open_coco"),
    "scenes": ("kbc.data.scenes.dataset", "open_scenes"),
}
"""Kind of data set → module and function that opens it."""


def open_dataset(kind: str, root: str | Path | None = None, **options: Any) -> Dataset:
    """Open a data set.

    Args:
        kind: one of `KINDS`: "spair", "pfpascal", "pfwillow", "ap10k", "coco" (your own) or "scenes" (no root).
        root: the folder of the official layout.
        options: keywords of that kind's function, for example `split="test"`; every kind takes `cache_bytes`.

    Raises:
        InputError: an unknown kind or option (the nearest known one is named), or no root.
        DataError: the folder does not hold such a data set.

    >>> dataset = open_dataset("scenes", count=2)
    >>> dataset
    Dataset('scenes', 2 pairs of 4 images)
    >>> dataset[0]
    PairRecord('0', 'plant', source → target, 9 points)
    """
    if kind not in KINDS:
        raise InputError(must_be("kind", "a known kind of data set", repr(kind), nearest(kind, KINDS)))
    module, name = KINDS[kind]
    opener = getattr(importlib.import_module(module), name)
    known = [p.name for p in inspect.signature(opener).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            hint = nearest(option, known)
            raise InputError(must_be(f"option of {kind}", f"one that {kind!r} takes", repr(option), hint))
    if kind == "scenes":
        dataset: Dataset = opener(**options)
        return dataset
    if root is None:
        raise InputError(
            must_be("root", f"the folder of the data set, kind {kind!r}", "nothing", "in the shell --root DIR")
        )
    opened: Dataset = opener(as_path(root, "root"), **options)
    return opened
