"""Data sets of image pairs with keypoints, each read from its official layout on disk.

`open_dataset(kind, root)` gives a `Dataset`: a sequence of `PairRecord`s whose images are opened only by `load`.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

import numpy as np
from pydantic import TypeAdapter, ValidationError

from kbc.data.records import BoxKind, Dataset, PairRecord, Problem
from kbc.data.shrink import shrink
from kbc.errors import DataError, InputError, must_be, nearest, requirement
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
        InputError: an unknown kind or option (the nearest known one is named), an option of another type, or no root.
        DataError: the folder does not hold such a data set.

    >>> dataset = open_dataset("scenes", count=2)
    >>> dataset
    Dataset('scenes', 2 pairs of 4 images)
    >>> dataset[0]
    PairRecord('0', 'plant', source → target, 9 points)
    """
    if kind not in KINDS:
        raise InputError(must_be("kind", "a known kind of data set", repr(kind), nearest(str(kind), KINDS)))
    module, name = KINDS[kind]
    opener: Callable[..., Dataset] = getattr(importlib.import_module(module), name)
    _check_options(kind, opener, options)
    if kind == "scenes":
        return opener(**options)
    if root is None:
        raise InputError(
            must_be("root", f"the folder of the data set, kind {kind!r}", "nothing", "in the shell --root DIR")
        )
    folder = as_path(root, "root")
    if not os.path.isdir(folder):
        raise DataError(must_be("root", "an existing folder", repr(str(root))))
    return opener(folder, **options)


def _check_options(kind: str, opener: Callable[..., Dataset], options: dict[str, Any]) -> None:
    parameters, hints = inspect.signature(opener).parameters, get_type_hints(opener)
    known = [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option, value in options.items():
        if option not in known:
            hint = nearest(option, known)
            raise InputError(must_be(f"option of {kind}", f"one that {kind!r} takes", repr(option), hint))
        if get_origin(hints[option]) is Literal:
            continue  # which each kind checks itself
        plain = value.item() if isinstance(value, np.generic) else tuple(value) if isinstance(value, list) else value
        try:
            TypeAdapter(hints[option]).validate_python(plain, strict=True)
        except ValidationError as error:
            expected = requirement(error.errors(include_url=False)[0]["msg"]).removeprefix("must be ")
            raise InputError(must_be(option, expected, f"{value!r:.60}")) from error
