"""`kbc transfer`: one labelled picture, or a few, → the whole folder."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kbc.cli.options import add_kbc_options, add_matcher_options, kbc_options, key_values, parse_box
from kbc.cli.points import NAMED_POINTS_HELP, parse_named_points
from kbc.cli.text import say_problems, turned_note
from kbc.data.records import Problems
from kbc.errors import InputError, as_text, counted, must_be
from kbc.evaluation.plan import parse_shard
from kbc.files import is_file, output_file, refuse_overwriting, write_json, written_whole
from kbc.images import turned
from kbc.labelling import Labeller, Labels, Transferred, find_images, read_detections, read_labels
from kbc.labelling.editing import LabelFile
from kbc.labelling.formats import deeplabcut, refuse_what_cannot_be_held, write_label_studio, write_sleap
from kbc.labelling.job import WHOLE, Boxes, Job, Workers
from kbc.labelling.labels import Exemplar, label_picture
from kbc.labelling.output import coco, file_name, image_base, named, table
from kbc.labelling.pipeline import ASK
from kbc.labelling.review import review_page
from kbc.matchers.registry import content_digests
from kbc.progress import progress_bar

HELP = (
    "Carry the points of labelled pictures over to other pictures, each with the probability that it is right. "
    "Interrupted, it goes on where it was when it is called again."
)

FORMATS = {".json": "coco", ".csv": "csv", ".slp": "slp"}
"""Suffix of the output → its format, where none is named."""
SUFFIXES = {"coco": ".json", "csv": ".csv", "slp": ".slp", "labelstudio": ".json", "dlc": ".csv"}
"""Format → the suffix that its readers want."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kbc transfer`."""
    add = parser.add_argument
    add("labels", metavar="LABELS", help="COCO keypoints JSON, or a picture with --points")
    add(
        "images", metavar="IMAGES", nargs="*",
        help="files, folders, globs or .txt lists of pictures; without any, those that the COCO file names",
    )  # fmt: skip
    add("--out", required=True, metavar="FILE", help="what to write: .json (COCO), .csv or .slp (SLEAP)")
    add(
        "--format",
        choices=sorted(SUFFIXES),
        help="default: by the suffix. CVAT reads coco; dlc is DeepLabCut's CollectedData_kbc.csv",
    )
    add("--review", metavar="FILE", help="a page to look at: .html, the most doubtful objects first")

    add = parser.add_argument_group("labels").add_argument
    add("--points", help="the points of LABELS, where it is a picture: see below")
    add("--source-box", metavar="X0,Y0,X1,Y1", help="where their object is, pixel edges")
    add(
        "--root",
        metavar="DIR",
        help="folder that the COCO file's file names start from; default what it names, or its own",
    )

    add = parser.add_argument_group("how").add_argument
    add("--boxes", metavar="FILE", help="a detector's boxes, COCO JSON: one set of points for each")
    add("--instances", type=int, default=1, help="objects of a category in a picture at most (default 1)")
    add(
        "--exemplars", type=int, default=ASK, metavar="N",
        help=f"labelled objects that are asked about a picture, the likest first (default {ASK})",
    )  # fmt: skip
    add("--min-confidence", type=float, default=0.0, metavar="P", help="leave out less sure points (default 0: none)")
    add("--jobs", type=int, default=1, metavar="N", help="processes at work, each with a matcher of its own")
    add("--shard", help="i/n: only this part, no output; a last run without --shard writes it")
    add_matcher_options(parser)
    add_kbc_options(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress, no summary")
    parser.epilog = NAMED_POINTS_HELP


def run(args: argparse.Namespace, make: Callable[[int, Callable[[], Labeller]], Workers] = Workers) -> int:
    """Transfer, and say what came of it; 1 when no picture could be done. `make` takes --jobs and makes the workers."""
    out, kind = _output(args)
    review = None if args.review is None else output_file(args.review, "--review")
    labels = _labels(args)
    images = _pictures(args, labels)
    _refuse_unwritable_names(images, out, kind)
    refuse_overwriting(
        {"--out": out, "--review": review},
        [args.labels, args.boxes, args.points, *images, *(one.image for one in labels.exemplars)],
    )
    _refuse_losing_corrections(out, kind, labels)
    for option, value in (("--instances", args.instances), ("--exemplars", args.exemplars), ("--jobs", args.jobs)):
        if value < 1:
            raise InputError(must_be(option, "at least 1", value))
    boxes = _boxes(args, images, labels)
    refuse_what_cannot_be_held(kind, labels, images, args.instances > 1 or boxes is not None)
    options, config = key_values(args.option), kbc_options(args)
    numbers = (args.instances, args.exemplars, args.min_confidence)
    build = partial(build_labeller, labels.exemplars, args.matcher, options, config, numbers)
    workers = make(args.jobs, build)
    made_by = {"matcher": args.matcher, "options": options, "config": config}
    provenance = _provenance(args, made_by, labels)

    def write(results: list[Transferred]) -> None:
        _write(results, labels, out, kind, provenance)
        if review is not None:
            fresh = [one for one in results if one.path not in labels.labelled]
            with written_whole(review, "--review") as file:
                file.writelines(piece.encode() for piece in review_page(fresh, labels.exemplars))

    settings = {**made_by, "content": content_digests(args.matcher, options)}
    job = Job(labels, images, out, boxes, settings, parse_shard(args.shard) if args.shard else WHOLE)
    with progress_bar("picture", not args.quiet) as bar:
        results = job.run(workers, write, lambda done, total: bar(done, total, ""))
    return _report(args, results, labels, out)


def build_labeller(
    exemplars: Sequence[Exemplar],
    matcher: str,
    options: Mapping[str, Any],
    config: Mapping[str, Any],
    numbers: tuple[int, int, float],
) -> Labeller:
    """The labeller of a command; `numbers` are its instances, exemplars asked, and least confidence."""
    from kbc import load_matcher, wrap

    return Labeller(exemplars, wrap(load_matcher(matcher, **options), **config), *numbers)


def _output(args: argparse.Namespace) -> tuple[Path, str]:
    """The file to write, and its format."""
    out = output_file(args.out, "--out")
    kind = args.format or FORMATS.get(out.suffix.lower())
    if kind is None:
        raise InputError(must_be("--out", f"a file named {', '.join(FORMATS)}", repr(args.out), "or give --format"))
    if out.suffix.lower() != SUFFIXES[kind]:
        raise InputError(must_be("--out", f"a {SUFFIXES[kind]} file for format {kind}", repr(args.out)))
    return out, kind


def _pictures(args: argparse.Namespace, labels: Labels) -> list[Path]:
    """The pictures that are named, or those that the COCO file names; at least one of them without labels."""
    images = find_images(args.images) if args.images else sorted(set(labels.numbers.values()))
    if all(image in labels.labelled for image in images):
        hint = "name others" if args.images else "name pictures after LABELS"
        raise InputError(must_be("IMAGES", "pictures that are not labelled yet", "none", hint))
    return images


def _boxes(args: argparse.Namespace, images: Sequence[Path], labels: Labels) -> Boxes | None:
    """A detector's boxes, where given. What was passed over in them, and in the labels, is said."""
    problems = Problems(labels.problems)
    boxes = read_detections(Path(args.boxes), images, labels, problems) if args.boxes else None
    turning = [path for path in labels.labelled if turned(path)]
    say_problems([*problems, *turned_note(turning, len(labels.labelled))])
    if boxes is not None and args.instances != 1:
        raise InputError(must_be("--instances", "not given together with --boxes", args.instances))
    return boxes


def _refuse_losing_corrections(out: Path, kind: str, labels: Labels) -> None:
    """Refuse an output with points that a person has put right, which LABELS does not have."""
    if kind != "coco" or not is_file(out):
        return
    try:
        corrected = LabelFile(out).corrected()
    except InputError:  # another file; it is replaced
        return
    lost = [image for image, at in corrected if at not in [one.keypoints for one in labels.labelled.get(image, ())]]
    if lost:
        received = f"{str(out)!r} with {counted(len(lost), 'object')} put right by hand, such as in {lost[0].name}"
        hint = "choose another name; what was put right counts where that file is given as LABELS"
        raise InputError(must_be("--out", "a file whose corrections LABELS has, too", received, hint))


def _refuse_unwritable_names(images: Sequence[Path], out: Path, kind: str) -> None:
    """Refuse a picture whose name, as the output will hold it, is no UTF-8."""
    base = image_base(out, images)
    relative = base == out.absolute().parent and kind not in ("slp", "labelstudio")
    for image in images:
        name = file_name(image, base) if relative else str(image)
        if as_text(name) != name:
            expected = "pictures whose names are UTF-8, as the output is"
            raise InputError(must_be("IMAGES", expected, as_text(repr(name)), "rename them"))


def _labels(args: argparse.Namespace) -> Labels:
    """The labels, from a COCO file or a picture with points."""
    path = Path(args.labels)
    is_coco = path.suffix.lower() == ".json"
    for option, given, wanted in (
        ("--points", args.points, not is_coco),
        ("--source-box", args.source_box, not is_coco),
        ("--root", args.root, is_coco),
    ):
        if given and not wanted:
            kind = "a COCO file" if is_coco else "a picture"
            raise InputError(must_be(option, f"left out where LABELS is {kind}", repr(given)))
    if is_coco:
        return read_labels(path, None if args.root is None else Path(args.root))
    if not args.points:
        hint = 'for instance --points "nose=120,80 tail=134,92"; COCO labels are a .json file'
        raise InputError(must_be("--points", "given where LABELS is a picture", "nothing", hint))
    if not args.images:
        raise InputError(must_be("IMAGES", "given where LABELS is a picture", "nothing", "name a folder of pictures"))
    return label_picture(path, parse_named_points(args.points), parse_box(args.source_box, "--source-box"))


def _provenance(args: argparse.Namespace, made_by: dict[str, Any], labels: Labels) -> dict[str, Any]:
    """How the output was made, for its `info`."""
    from kbc import __version__

    return {
        "version": __version__,
        **made_by,
        "labels": Path(args.labels).name,
        "boxes": Path(args.boxes).name if args.boxes else None,
        "instances": args.instances,
        "asked": args.exemplars,
        "min_confidence": args.min_confidence,
        "exemplars": named(labels.exemplars),
    }


def _write(results: list[Transferred], labels: Labels, out: Path, kind: str, provenance: dict[str, Any]) -> None:
    document = coco(results, labels, out, provenance)
    if kind == "coco":
        write_json(document, out, "--out")
    elif kind in ("csv", "dlc"):
        text = table(document) if kind == "csv" else deeplabcut(document, out.absolute().parent.name)
        with written_whole(out, "--out") as file:
            file.write(text.encode())
    else:
        base = image_base(out, [one.path for one in results])
        with tempfile.TemporaryDirectory() as folder, written_whole(out, "--out") as file:
            part = Path(folder) / out.name  # sleap-io wants a path
            (write_sleap if kind == "slp" else write_label_studio)(document, base, part)
            file.write(part.read_bytes())


def _report(args: argparse.Namespace, results: list[Transferred], labels: Labels, out: Path) -> int:
    """Say what came of the pictures; 1 when none could be done."""
    failed = [one for one in results if one.error]
    for one in failed:
        print(f"note: {one.image} was passed over: {one.error}", file=sys.stderr)
    say_problems(f"a box in {one.image}: {problem}" for one in results for problem in one.problems)
    if args.shard:
        print(f"shard {args.shard} is done; a last run without --shard writes {out}", file=sys.stderr)
    elif not args.quiet:
        print(_summary(results, labels, out))
    return 1 if results and len(failed) == len(results) else 0


def _summary(results: list[Transferred], labels: Labels, out: Path) -> str:
    """What was found, in a line or two."""
    fresh = [one for one in results if not one.error and one.path not in labels.labelled]
    objects = [found for one in fresh for found in one.objects]
    line = f"{out}: {counted(len(objects), 'object')} in {counted(len(fresh), 'picture')}"
    kept = sum(not one.error for one in results) - len(fresh)
    if kept:
        line += f"; {counted(kept, 'labelled picture')} as labelled"
    if objects:
        sure = sorted(found.sureness for found in objects)
        line += f"; mean confidence {sum(sure) / len(sure):.2f}, of the least sure tenth {sure[len(sure) // 10]:.2f}"
    return line
