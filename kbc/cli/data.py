"""`kbc data check DIR` and `kbc data sources`."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kbc.cli.options import key_values
from kbc.cli.text import turned_note
from kbc.data import KINDS, Dataset, Problem, ap10k, open_dataset, pfwillow
from kbc.data.coco_file import layouts
from kbc.data.decoding import decoder_warnings
from kbc.errors import DataError, InputError, counted, must_be
from kbc.files import visible
from kbc.geometry import looks_per_cent
from kbc.images import image_hw

HELP = "Check a copy of a data set, or print where the official ones come from."

SOURCES = """\
Nothing is downloaded by kbc. Where the official files are, and what is known of their terms:

SPair-71k      https://cvlab.postech.ac.kr/research/SPair-71k/   (SPair-71k.tar.gz)
               No licence is stated for the annotations. Images are from PASCAL VOC 2012 and PASCAL3D+,
               that is from Flickr, whose terms hold.
PF-PASCAL      https://www.di.ens.fr/willow/research/proposalflow/   (PF-dataset-PASCAL.zip)
               Pair lists: https://www.di.ens.fr/willow/research/cnngeometric/
               (other_resources/test_pairs_pf_pascal.csv, val_pairs_pf_pascal.csv)
               No licence is stated. Images are from PASCAL VOC 2011, that is from Flickr, whose terms hold.
PF-WILLOW      https://www.di.ens.fr/willow/research/proposalflow/   (PF-dataset.zip)
               Pair list: https://www.di.ens.fr/willow/research/cnngeometric/ (other_resources/test_pairs_pf.csv)
               No licence is stated.
AP-10K         https://github.com/AlexTheBad/AP-10K   (CC BY 4.0, says its README)
               As correspondence benchmark, with PairAnnotation: https://github.com/Junyi42/GeoAware-SC
               (data/prepare_ap10k.sh names the archive)

Your own data: COCO keypoints JSON as annotations.json, or as CVAT, Roboflow and COCO itself
lay it out, and if you like pairs.json with
{"pairs": [[source annotation id, target annotation id], …]}; see kbc.data.coco.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kbc data`."""
    actions = parser.add_subparsers(dest="action", required=True)
    epilog = "example: kbc data check data/pf-willow --kind pfwillow"
    check = actions.add_parser("check", help="open everything and say what is wrong", epilog=epilog)
    check.add_argument("folder", metavar="DIR", nargs="?", help="the data set's folder")
    check.add_argument("--root", metavar="DIR", help="the same, as in kbc eval")
    check.add_argument("--kind", choices=[kind for kind in KINDS if kind != "scenes"], help="default: by the layout")
    check.add_argument(
        "--data-option", action="append", default=[], metavar="KEY=VALUE", help="as in kbc eval, e.g. occluded=true"
    )
    actions.add_parser("sources", help="where the official data sets come from, and their terms")


def run(args: argparse.Namespace) -> int:
    """0 when nothing is wrong, 1 otherwise."""
    if args.action == "sources":
        print(SOURCES, end="")
        return 0
    given = [name for name in (args.folder, args.root) if name is not None]
    if len(given) != 1:
        raise InputError(must_be("DIR", "given once", given or "nothing", "for instance kbc data check data/pf-willow"))
    folder = Path(given[0])
    kind = args.kind or detect(folder)
    wrong = 0
    parts = _parts(kind, folder, key_values(args.data_option, "--data-option"))
    for options in parts:
        try:
            dataset = open_dataset(kind, folder, **options)
        except DataError as error:
            if len(parts) == 1:
                raise
            print(f"{' '.join(options.values())}: cannot be used\n  {error}")
            wrong += 1
            continue
        problems = dataset.check()
        images, unreadable = len(dataset.images()), _unreadable(dataset, problems)
        usable = counted(len(dataset) - unreadable, "usable pair")
        lost = counted(sum(problem.pairs for problem in dataset.problems) + unreadable, "pair")
        print(f"{dataset.name}: {usable} of {counted(images, 'image')}, {lost} left out")
        for problem in problems:
            print(f"  {problem}")
        found = [*turned_note(dataset.turned(), images), *_warned(dataset, problems), *_per_cent(dataset)]
        for note in [*dataset.notes, *found]:
            print(f"  note: {note}")
        wrong += len(problems)
    print(counted(wrong) if wrong else "nothing wrong")
    return 1 if wrong else 0


def _unreadable(dataset: Dataset, problems: list[Problem]) -> int:
    """How many pairs have a picture that cannot be read: a pair of two such pictures counts once."""
    broken = {problem.where for problem in problems if problem.pairs}
    return sum(any(str(path) in broken for path, _ in record.sides) for record in dataset)


def _warned(dataset: Dataset, problems: Sequence[Problem]) -> list[str]:
    broken = {problem.where for problem in problems}
    found = decoder_warnings([path for path in dataset.images() if path.is_file() and str(path) not in broken])
    if not found:
        return []
    path, said = next(iter(found.items()))
    return [
        f"{len(found)} of {counted(len(dataset.images()), 'image')} opened with a warning of their decoder, e.g. "
        f"{path.name} ({said}): perhaps damaged, with pixels that are not the picture's"
    ]


def _per_cent(dataset: Dataset) -> list[str]:
    """A note where the points of every pair may be per cent: one object may lie in a corner, all of them hardly."""
    points = np.concatenate([np.empty((0, 2)), *(points for record in dataset for _, points in record.sides)])
    if not looks_per_cent(points, (300, 300)):
        return []
    try:
        sides = [min(image_hw(dataset.image(path))) for path in dataset.images()]
    except (InputError, OSError):  # it is among the problems
        return []
    if len(sides) < 3 or min(sides) < 300:
        return []
    return ["all points lie within 100 px of the top left corner: if they are per cent, multiply by the picture's size"]


def detect(folder: Path) -> str:
    """The kind of data set a folder holds, by its layout.

    Raises:
        DataError: no folder, none of the known layouts, or several data sets, which are named.
    """
    if not os.path.isdir(folder):
        raise DataError(must_be("DIR", "an existing folder", repr(str(folder)), "check the path"))
    kind = _kind(folder)
    own = (
        path
        for name in ("JPEGImages", "PairAnnotation", "annotations.json", "*_pairs*.csv")
        for path in folder.glob(name)
    )
    if kind and any(own):
        return kind
    below = {path: found for path in visible(folder.iterdir()) if path.is_dir() and (found := _kind(path))}
    if kind and set(below.values()) <= {kind}:  # its own folders
        return kind
    if below:
        held = ", ".join(f"{path.name} ({found})" for path, found in below.items())
        hint = f"name one of them, for instance kbc data check {shlex.quote(str(next(iter(below))))}"
        raise DataError(must_be("DIR", "the folder of one data set", f"{str(folder)!r}, which holds {held}", hint))
    known = ", ".join(kind for kind in KINDS if kind != "scenes")
    hint = "name the layout with --kind; `kbc data sources` says where each comes from"
    raise DataError(must_be("DIR", f"a folder in one of the layouts {known}", repr(str(folder)), hint))


def _kind(folder: Path) -> str | None:
    if (folder / "PairAnnotation").is_dir():
        is_spair = (folder / "Layout").exists() or any(folder.glob("JPEGImages/*/*.jpg"))  # AP-10K's lie deeper
        return "spair" if is_spair else "ap10k"
    if (folder / "JPEGImages").is_dir() or (folder / "PF-dataset-PASCAL").is_dir():
        return "pfpascal"
    if any((folder / name).is_dir() for name in pfwillow.FOLDERS) or any(folder.glob("*/*.mat")):
        return "pfwillow"
    return "coco" if layouts(folder) else None


def _parts(kind: str, folder: Path, given: dict[str, Any]) -> list[dict[str, Any]]:
    """The options that open every split there is; at least one."""
    options: list[dict[str, Any]] = [{}]
    if kind == "spair":
        options = [{"split": split} for split in _splits(folder)]
    elif kind == "pfpascal":
        places = (folder, folder / "PF-dataset-PASCAL")
        options = [
            {"split": split}
            for split, words in (("trn", ("trn", "train")), ("val", ("val",)), ("test", ("test",)))
            if any(any(place.glob(f"{word}_pairs*.csv")) for place in places for word in words)
        ]
    elif kind == "ap10k":
        options = [
            {"split": split, "benchmark": benchmark}
            for benchmark, tail in ap10k.FOLDERS.items()
            for split in _splits(folder, tail)
        ]
    elif kind == "coco" and "annotations" not in given:
        options = [{"annotations": part} for part in layouts(folder)]
    return [{**chosen, **given} for chosen in options or [{}]]


def _splits(folder: Path, tail: str = "") -> list[str]:
    return [split for split in ("trn", "val", "test") if (folder / "PairAnnotation" / (split + tail)).is_dir()]
