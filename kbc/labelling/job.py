"""A long transfer that can be killed: what is done is kept in a journal beside the output, line by line."""

from __future__ import annotations

import glob
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kbc import __version__
from kbc.errors import DataError, InputError, must_be
from kbc.evaluation.outcomes import points, rows
from kbc.files import LineFile, file_digest, output_file, read_bytes
from kbc.geometry import Box
from kbc.images import image_hw, load_image
from kbc.labelling.detections import Detection
from kbc.labelling.labels import Labels
from kbc.labelling.pipeline import FoundObject, Labeller, Transferred
from kbc.processes import one_thread, worker_processes

Boxes = Mapping[Path, Sequence[Detection]]
Task = tuple[Path, Sequence[Detection] | None]
"""A picture, and its boxes where a detector gave some."""
Shard = tuple[int, int]
"""(i, n): every n-th picture from the i-th."""
WHOLE: Shard = (0, 1)


class Workers:
    """Who is asked about pictures: the labeller here, or several processes with a matcher and one thread each.

    Args:
        jobs: how many processes; 1 for none beside this one.
        build: makes the labeller, here and in each of them; a function of a module, or `functools.partial` of one.
    """

    def __init__(self, jobs: int, build: Callable[[], Labeller]) -> None:
        self.jobs, self.build, self.labeller = jobs, build, build()

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Transferred]:
        """What comes of each picture, in order."""
        if min(self.jobs, len(tasks)) < 2:
            yield from (self.labeller(*task) for task in tasks)
            return
        with worker_processes(min(self.jobs, len(tasks)), _begin, self.build) as pool:
            waiting = deque(pool.submit(_work, task) for task in tasks)  # `map` cancels: a broken pool complains then
            while waiting:
                yield waiting.popleft().result()  # and is forgotten


_labeller: Labeller | None = None


def _begin(build: Callable[[], Labeller]) -> None:
    global _labeller
    one_thread()
    _labeller = build()


def _work(task: Task) -> Transferred:
    assert _labeller is not None
    return _labeller(*task)


def journal_path(out: Path, shard: Shard = WHOLE) -> Path:
    """Where the results of an unfinished job, or of a shard of it, lie."""
    part = "" if shard == WHOLE else f".{shard[0] + 1}-of-{shard[1]}"
    return out.with_name(f"{out.name}{part}.journal")


@dataclass(frozen=True, eq=False)
class Job:
    """Labels, the pictures that they are transferred to, and where the output goes.

    Attributes:
        labels: where the exemplars come from; pictures that they have labels of keep theirs.
        images: each once.
        out: the output; the journals lie beside it until it is written.
        boxes: as in `transfer`.
        settings: what the results depend on beside labels and boxes, JSON-ready: a journal of others is refused.
        shard: do only this part of the pictures.
    """

    labels: Labels
    images: Sequence[Path]
    out: Path
    boxes: Boxes | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    shard: Shard = WHOLE

    def run(
        self,
        workers: Workers,
        write: Callable[[list[Transferred]], None],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Transferred]:
        """Transfer, take up what an interrupted job has done, and write the result.

        A picture's line is in the journal before the next picture is begun, so that a kill costs one picture. What is
        written does not depend on interruptions, nor on shards: each has a journal of its own, and a last job without
        one takes them all up and does what is missing.

        Args:
            workers: labellers made of the labels' exemplars.
            write: writes the output; not called for a shard.
            progress: called with (pictures done, pictures in all).

        Returns:
            What came of the pictures, or of the shard's, in their order.

        Raises:
            InputError: the output cannot be written to, another process is at it, or a journal beside it is of another
                job.
            DataError: a journal is broken.
        """
        output_file(self.out, "--out")
        mine = self.images[self.shard[0] :: self.shard[1]]
        identity = _json({"kbc": self._identity(workers.labeller)})
        with ExitStack() as opened:
            file, journals = self._claim(opened), _journals(self.out)
            done = {line["key"]: line for journal in journals for line in _lines(journal, identity)}
            if not file.path.stat().st_size:
                file.write(identity)
            keys = {image: self._key(image) for image in mine if image not in self.labels.labelled}
            answers = workers([(image, self._boxes(image)) for image, key in keys.items() if key not in done])
            results: list[Transferred] = []
            for image in mine:
                if image not in keys:
                    results.append(_size_only(image))
                    continue
                line = done.get(keys[image])
                if line is None:
                    line = _line(next(answers), keys[image])
                    file.write(_json(line))
                    if progress is not None:
                        progress(len(results) + 1, len(mine))
                results.append(_from_line(line, image, workers.labeller))
            if self.shard != WHOLE:
                return results
            write(results)
            for journal in journals:
                _remove(journal)
        for journal in journals:
            _remove(journal)
        return results

    def _claim(self, opened: ExitStack) -> LineFile:
        """The job's own journal, open for writing; no job on all pictures is at work beside a shard, nor the reverse.

        Raises:
            InputError: one is.
        """
        own, whole = journal_path(self.out, self.shard), journal_path(self.out)
        if own != whole and whole.exists():
            LineFile(whole, alone=True).close()
        file = opened.enter_context(LineFile(own, alone=True))
        for other in _journals(self.out) if own == whole else ():
            if other != own:
                opened.enter_context(LineFile(other, alone=True))
        return file

    def _boxes(self, image: Path) -> Sequence[Detection] | None:
        return None if self.boxes is None else self.boxes.get(image, ())

    def _identity(self, labeller: Labeller) -> str:
        """A digest of what every result depends on."""
        said: list[object] = [__version__, labeller.matcher.config.model_dump(), self.settings]
        said += [labeller.instances, labeller.ask, labeller.min_confidence]
        said += [(one.name, one.keypoints) for one in self.labels.categories]
        for one in labeller.exemplars:
            box = None if one.box is None else one.box.xyxy
            said += [str(one.image), file_digest(Path(str(one.image))), one.category, one.names, box]
            said.append(one.keypoints.tolist())
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()

    def _key(self, image: Path) -> str:
        """What a picture's own result depends on: its name, the file as it is now, and its boxes."""
        try:
            found = image.stat()
            file = [found.st_size, found.st_mtime_ns]
        except OSError:
            file = []
        boxes = self._boxes(image)
        given = None if boxes is None else [[*one.box.xyxy, one.category] for one in boxes]
        return json.dumps([str(image), file, given])


def _journals(out: Path) -> list[Path]:
    """Those of the whole job and of its shards."""
    found = (out.parent.glob(glob.escape(out.name) + end) for end in (".journal", ".[0-9]*-of-[0-9]*.journal"))
    return sorted(path for paths in found for path in paths)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except PermissionError:  # Windows: while it is open; it goes once it is closed
        return


def _lines(path: Path, identity: str) -> Iterator[dict[str, Any]]:
    """The lines of an interrupted job; one that is being written, or was when it was killed, is passed over."""
    for number, line in enumerate(read_bytes(path).split(b"\n")[:-1]):
        text, _, check = line.rpartition(b"\t")
        hint = f"remove {str(path)!r} to begin anew"
        if _checksum(text) != check:
            received = f"another or a damaged line {number + 1}"
            raise DataError(must_be(str(path), "the journal of an interrupted transfer", received, hint))
        if number:
            yield json.loads(text)
        elif line + b"\n" != identity.encode():
            received = "results of other labels, exemplars, matcher or options"
            hint += ", or choose another --out"
            raise InputError(must_be("--out", "free of another unfinished transfer", received, hint))


def _json(line: Mapping[str, Any]) -> str:
    """A line of the journal: JSON, a tab and its checksum, so that what has one is as it was written."""
    text = json.dumps(line, separators=(",", ":"), allow_nan=False)
    return f"{text}\t{_checksum(text.encode()).decode()}\n"


def _checksum(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=8).hexdigest().encode()


def _line(result: Transferred, key: str) -> dict[str, Any]:
    found = [
        {
            **{name: value for name, value in vars(one).items() if name != "names"},  # the category's
            "keypoints": rows(one.keypoints),
            "confidence": np.nan_to_num(one.confidence).tolist(),
            "box": one.box.xyxy,
            "window": None if one.window is None else one.window.xyxy,
        }
        for one in result.objects
    ]
    said = {"error": result.error, "problems": result.problems}
    return {"key": key, "size_hw": result.size_hw, **said, "objects": found}


def _from_line(line: Mapping[str, Any], image: Path, labeller: Labeller) -> Transferred:
    names = {one.name: one.keypoints for one in labeller.categories}
    found = [
        FoundObject(
            **one
            | {
                "names": names[one["category"]],
                "keypoints": points(one["keypoints"]),
                "confidence": np.array(one["confidence"], dtype=np.float64),
                "box": Box.of(one["box"]),
                "window": None if one["window"] is None else Box.of(one["window"]),
            }
        )
        for one in line["objects"]
    ]
    height, width = line["size_hw"]
    problems = tuple(line.get("problems", ()))  # journals from before boxes had any
    return Transferred(image, (height, width), tuple(found), line["error"], problems)


def _size_only(image: Path) -> Transferred:
    """A picture that has labels: only its size is asked for."""
    try:
        return Transferred(image, image_hw(load_image(image)))
    except InputError as error:
        return Transferred(image, (0, 0), error=str(error))
