"""A long transfer that can be killed: what is done is kept in a journal beside the output, line by line."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kbc import __version__
from kbc.errors import DataError, InputError, must_be
from kbc.evaluation.outcomes import points, rows
from kbc.files import LineFile, file_digest, output_file, read_bytes
from kbc.geometry import Box
from kbc.images import image_hw, load_image, require_cv2
from kbc.labelling.detections import Detection
from kbc.labelling.labels import Labels
from kbc.labelling.pipeline import FoundObject, Labeller, Transferred

Boxes = Mapping[Path, Sequence[Detection]]
Task = tuple[Path, Sequence[Detection] | None]
"""A picture, and its boxes where a detector gave some."""
Ask = Callable[[Sequence[Task]], Iterator[Transferred]]


class Workers:
    """Several processes that ask about pictures, each with a matcher of its own and one thread.

    Args:
        jobs: how many.
        build: makes the labeller, here and in each of them; a function of a module, or `functools.partial` of one.
    """

    def __init__(self, jobs: int, build: Callable[[], Labeller]) -> None:
        self.jobs, self.build, self.labeller = jobs, build, build()

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Transferred]:
        """What comes of each picture, in order."""
        if not tasks:
            return
        context = multiprocessing.get_context("spawn")  # a fork would copy the threads of torch and OpenCV
        with context.Pool(min(self.jobs, len(tasks)), _begin, (self.build,)) as pool:
            yield from pool.imap(_work, tasks)


_labeller: Labeller | None = None


def _begin(build: Callable[[], Labeller]) -> None:
    global _labeller
    torch.set_num_threads(1)
    require_cv2().setNumThreads(1)
    _labeller = build()


def _work(task: Task) -> Transferred:
    assert _labeller is not None
    return _labeller(*task)


def journal_path(out: Path) -> Path:
    """Where the results of an unfinished job lie."""
    return out.with_name(out.name + ".journal")


def label_pictures(
    labeller: Labeller | Workers,
    labels: Labels,
    images: Sequence[Path],
    out: Path,
    write: Callable[[list[Transferred]], None],
    *,
    boxes: Boxes | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Transferred]:
    """Transfer the labels to the pictures, take up what an interrupted job has done, and write the result.

    Pictures that `labels` has labels of are passed over: they have theirs. A picture's line is in the journal before
    the next picture is begun, so that a kill costs one picture. What is written does not depend on interruptions.

    Args:
        labeller: made of `labels.exemplars`; or several processes with one each.
        images: each once.
        out: the output; the journal lies beside it and goes when `write` is done.
        write: writes the output.
        boxes: as in `transfer`.
        settings: what the results depend on beside labels and boxes, JSON-ready: a journal of others is refused.
        progress: called with (pictures done, pictures in all).

    Raises:
        InputError: the output cannot be written to, another process is at it, or the journal beside it is of another
            job.
        DataError: the journal is broken.
    """
    output_file(out, "--out")
    journal = journal_path(out)
    own = labeller.labeller if isinstance(labeller, Workers) else labeller
    ask: Ask = labeller if isinstance(labeller, Workers) else partial(map, lambda task: own(*task))
    with LineFile(journal, alone=True) as file:
        done = _take_up(file, journal, _identity(labels, own, settings or {}), boxes)
        results: list[Transferred] = []
        stamps = {image: _stamp(image, boxes) for image in images if image not in labels.labelled}
        held = {image: done.get(str(image)) for image in stamps}
        new = {image for image, line in held.items() if line is None or line["stamp"] != stamps[image]}
        tasks = [(image, None if boxes is None else boxes.get(image, ())) for image in images if image in new]
        answers = ask(tasks)
        for image in images:
            if image in labels.labelled:
                results.append(_size_only(image))
                continue
            fresh, line = image in new, held[image]
            if fresh:
                line = _line(next(answers), stamps[image])
                file.write(_json(line))
            assert line is not None
            results.append(_from_line(line, image, own))
            if fresh and progress is not None:
                progress(len(results), len(images))
        write(results)
        _remove(journal)
    _remove(journal)
    return results


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except PermissionError:  # Windows: while it is open; it goes once it is closed
        return


def _identity(labels: Labels, labeller: Labeller, settings: Mapping[str, Any]) -> str:
    """A digest of what every result depends on."""
    content = hashlib.sha256()
    for one in labeller.exemplars:
        box = None if one.box is None else one.box.xyxy
        said = [str(one.image), file_digest(Path(str(one.image))), one.category, one.names, one.keypoints.tolist(), box]
        content.update(repr(said).encode())
    config = labeller.matcher.config.model_dump()
    numbers = [labeller.instances, labeller.ask, labeller.min_confidence]
    content.update(repr([__version__, config, numbers]).encode())
    content.update(json.dumps(settings, sort_keys=True, default=str).encode())
    content.update(repr([(one.name, one.keypoints) for one in labels.categories]).encode())
    return content.hexdigest()


def _take_up(file: LineFile, path: Path, identity: str, boxes: Boxes | None) -> dict[str, dict[str, Any]]:
    """The lines of an interrupted job, by picture; begins the journal where there is none."""
    lines = read_bytes(path).split(b"\n")[:-1]
    if not lines:
        file.write(_json({"kbc": identity}))
        return {}
    for number, line in enumerate(lines, 1):
        text, _, check = line.rpartition(b"\t")
        if _checksum(text) != check:
            hint = f"remove {str(path)!r} to begin anew"
            received = f"another or a damaged line {number}"
            raise DataError(must_be(str(path), "the journal of an interrupted transfer", received, hint))
    before, *held = (json.loads(line.rpartition(b"\t")[0]) for line in lines)
    done = {line["image"]: line for line in held}
    if before != {"kbc": identity}:
        hint = f"remove {str(path)!r} to begin anew, or choose another --out"
        received = "results of other labels, exemplars, matcher or options"
        raise InputError(must_be("--out", "free of another unfinished transfer", received, hint))
    return done


def _stamp(image: Path, boxes: Boxes | None) -> list[Any]:
    """What a picture's own result depends on: the file as it is now, and its boxes."""
    try:
        found = image.stat()
        file = [found.st_size, found.st_mtime_ns]
    except OSError:
        file = []
    given = None if boxes is None else [[*one.box.xyxy, one.category] for one in boxes.get(image, ())]
    return [file, given]


def _json(line: Mapping[str, Any]) -> str:
    """A line of the journal: JSON, a tab and its checksum, so that what has one is as it was written."""
    text = json.dumps(line, separators=(",", ":"), allow_nan=False)
    return f"{text}\t{_checksum(text.encode()).decode()}\n"


def _checksum(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=8).hexdigest().encode()


def _line(result: Transferred, stamp: list[Any]) -> dict[str, Any]:
    return {
        "image": str(result.image),
        "stamp": stamp,
        "size_hw": list(result.size_hw),
        "error": result.error,
        "objects": [
            {
                "category": one.category,
                "keypoints": rows(one.keypoints),
                "confidence": [float(value) for value in np.nan_to_num(one.confidence)],
                "box": list(one.box.xyxy),
                "given": one.given,
                "exemplar": one.exemplar,
                "window": None if one.window is None else list(one.window.xyxy),
            }
            for one in result.objects
        ],
    }


def _from_line(line: Mapping[str, Any], image: Path, labeller: Labeller) -> Transferred:
    names = {one.name: one.keypoints for one in labeller.categories}
    found = [
        FoundObject(
            one["category"],
            names[one["category"]],
            points(one["keypoints"]),
            np.array(one["confidence"], dtype=np.float64),
            Box.of(one["box"]),
            one["given"],
            one["exemplar"],
            None if one["window"] is None else Box.of(one["window"]),
        )
        for one in line["objects"]
    ]
    height, width = line["size_hw"]
    return Transferred(image, (height, width), tuple(found), line["error"])


def _size_only(image: Path) -> Transferred:
    """A picture that has labels: only its size is asked for."""
    try:
        return Transferred(image, image_hw(load_image(image)))
    except InputError as error:
        return Transferred(image, (0, 0), error=str(error))
