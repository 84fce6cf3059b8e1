"""PF-WILLOW (Ham, Cho, Schmid, Ponce: Proposal Flow, CVPR 2016): 10 categories, 100 images, 900 pairs."""

from __future__ import annotations

from contextlib import suppress
from itertools import permutations
from pathlib import Path

import numpy as np

from kbc.data.annotations import FAR, Zeros, existing, inside, namesake
from kbc.data.matlab import from_matlab, read_mat
from kbc.data.records import CACHE_BYTES, Dataset, PairRecord, Problems
from kbc.errors import DataError, must_be
from kbc.files import read_table, visible
from kbc.geometry import Box, Points, defined

_POINTS = 10
FOLDERS = ("PF-dataset-WILLOW", "PF-dataset", "PF-WILLOW")
_PAIR_FILES = ("test_pairs.csv", "test_pairs_pf.csv")
_COLUMNS = ("imageA", "imageB", *(f"{axis}{side}{i}" for side in "AB" for axis in "XY" for i in range(1, _POINTS + 1)))


def open_pfwillow(root: str | Path, *, pairs: str | None = None, cache_bytes: int = CACHE_BYTES) -> Dataset:
    """PF-WILLOW from either of its layouts.

    With a CSV (`imageA, imageB, XA1…XA10, YA1…YA10, XB1…, YB1…`, the list that the literature evaluates on) its rows
    are the pairs and its columns the points. Without one, the original layout `<class>/<name>.png` and `.mat` is read
    and every ordered pair of two images of a class is taken: 10·10·9 = 900 pairs. Points are MATLAB's, counted from
    1, in both (the evaluation code that came with the CSV, of the weakalign family, normalises them as such), and are
    given here counted from 0. There are no annotated boxes: the box is the extent of the ten points.

    Args:
        root: the folder that holds `PF-dataset-WILLOW` (or `PF-dataset`), or that folder itself.
        pairs: name of the CSV below `root`; by default `test_pairs.csv` or `test_pairs_pf.csv` if there.
        cache_bytes: memory for decoded images.

    Raises:
        DataError: the folder or the CSV as a whole cannot be used. Single broken entries become `problems`.
    """
    base = Path(root)
    if not base.is_dir():
        raise DataError(must_be("root", "an existing folder", repr(str(root))))
    folder = next((base / name for name in FOLDERS if (base / name).is_dir()), base)
    problems = Problems()
    if pairs is not None:
        listed: Path | None = existing(inside(base, pairs, "pairs"))
    else:
        listed = next((d / name for d in (base, folder) for name in _PAIR_FILES if (d / name).is_file()), None)
    records = _from_csv(listed, base, folder, problems) if listed else _from_folders(folder, problems)
    return Dataset("pf-willow", records, problems, cache_bytes=cache_bytes)


def _record(number: str, category: str, source: tuple[Path, Points], target: tuple[Path, Points]) -> PairRecord:
    record = PairRecord(
        id=number,
        source_path=source[0],
        target_path=target[0],
        keypoints=source[1],
        target_keypoints=target[1],
        source_box=Box.around(source[1]),
        target_box=Box.around(target[1]),
        bbox_kind="keypoint-extent",
        category=category,
    )
    if np.isnan(record.keypoints).all():
        raise DataError("no point is annotated in both images")
    return record


def _from_csv(path: Path, base: Path, folder: Path, problems: Problems) -> list[PairRecord]:
    records = []
    zeros = Zeros("object")
    (_, header), *rows = read_table(path) or [(0, [])]
    places = _places(path, header)
    for number, (line, cells) in enumerate(rows, 1):
        try:
            if len(cells) < len(header):
                raise DataError(f"must have {len(header)} columns, received {len(cells)}")
            row = [cells[place] for place in places]
            sides = []
            for name, start in ((row[0], 2), (row[1], 2 + 2 * _POINTS)):
                given = _numbers(row[start : start + 2 * _POINTS]).reshape(2, _POINTS).T
                points = from_matlab(zeros.absent(given, f"{name} in line {line}"))
                sides.append((_image(base, folder, name), points))
            category = sides[0][0].parent.name
            records.append(_record(f"{number:04d}", category, sides[0], sides[1]))
        except DataError as error:
            problems.add(f"{path.name}, line {line}", error, 1)
    zeros.report(path.name, problems)
    return records


def _places(path: Path, header: list[str]) -> list[int]:
    """Where each of `_COLUMNS` stands: by its name, or in their order where the first line has other names."""
    names, wanted = [name.lower() for name in header], [name.lower() for name in _COLUMNS]
    if set(wanted) <= set(names):
        return [names.index(name) for name in wanted]
    if len(header) < len(wanted) or (header[2][-1:].isdigit() and header[2][:1] in "-.0123456789"):
        expected = f"the {len(wanted)} columns {', '.join(_COLUMNS[:3])} … {_COLUMNS[-1]}"
        received = f"{len(header)}, {', '.join(header[:3])} …" if header else "an empty file"
        raise DataError(f"{path}: must name {expected} in its first line, received {received}")
    return list(range(len(wanted)))


def _numbers(cells: list[str]) -> Points:
    try:
        values = np.array([float(cell) for cell in cells], dtype=np.float64)
    except ValueError as error:
        raise DataError(f"a coordinate is not a number ({error})") from error
    if len(values) != 2 * _POINTS or not (np.abs(values) < FAR).all():
        raise DataError(f"must have {2 * _POINTS} finite coordinates a side, received {cells}")
    return values


def _image(base: Path, folder: Path, name: str) -> Path:
    """The CSV names images from above the data set's folder, whose name differs between copies."""
    below = name.split("/", 1)[1] if "/" in name else name
    paths = (inside(base, name), inside(folder, below), inside(folder, name))
    for path in paths:
        with suppress(DataError):
            return existing(path)
    near = next((hint for path in paths if (hint := namesake(path))), "")
    raise DataError(f"{name}: no such file below {base}{near}")


def _from_folders(folder: Path, problems: Problems) -> list[PairRecord]:
    records = []
    zeros = Zeros("file")
    for group in visible(entry for entry in folder.iterdir() if entry.is_dir()):
        sides = []
        for image in visible({path.with_suffix(".png") for path in (*group.glob("*.png"), *group.glob("*.mat"))}):
            try:
                sides.append((existing(image), _points(image.with_suffix(".mat"), zeros)))
            except DataError as error:
                problems.add(f"category {group.name!r}", error)
        if len(sides) == 1:
            problems.add(f"category {group.name!r}", "it has one usable image, so it gives no pair")
        for source, target in permutations(sides, 2):
            number = f"{group.name}/{source[0].stem}-{target[0].stem}"
            try:
                records.append(_record(number, group.name, source, target))
            except DataError as error:
                problems.add(number, error, 1)
    zeros.report(str(folder), problems)
    if not records:
        why = f"; {next(iter(problems))}" if problems else ""
        raise DataError(
            f"{folder}: neither a pair list ({', '.join(_PAIR_FILES)}) nor <class>/<name>.png with .mat{why}"
        )
    return records


def _points(path: Path, zeros: Zeros) -> Points:
    arrays = read_mat(path, "pts_coord", "kps")
    found = next((arrays[name] for name in ("pts_coord", "kps") if name in arrays), None)
    if found is None:
        raise DataError(f"{path}: field 'pts_coord' is missing, received neither it nor 'kps'")
    if found.shape[0] == 2 and found.shape[1] != 2:
        found = found.T  # the files hold 2 × 10
    if found.shape[1] != 2:
        raise DataError(f"{path}: field 'pts_coord' must be of shape (2, N), received {found.shape}")
    if not defined(found).all():
        raise DataError(f"{path}: field 'pts_coord' has NaN")
    return from_matlab(zeros.absent(found, f"{path.parent.name}/{path.name}"))
