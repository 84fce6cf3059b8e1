"""`kbc transfer`: files out, resumed, alone, and what it says of wrong input."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from rectangles import BOXES, NAMES, find_red, points_of, write_folder, write_labels

from kbc.cli import main
from kbc.data.coco import open_coco
from kbc.errors import InputError
from kbc.labelling import Labeller, Transferred, read_labels
from kbc.labelling.job import WHOLE, Job, Task, Workers, journal_path
from kbc.labelling.output import coco


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path)
    write_labels(tmp_path / "labels.json", {"0.png": BOXES[0]}, tuple(f"{i}.png" for i in range(1, 6)))
    return tmp_path


def transferred(folder: Path, *options: str) -> dict:
    out = folder / "annotations.json"
    assert main(["transfer", str(folder / "labels.json"), "--out", str(out), "--quiet", *options]) == 0
    return json.loads(out.read_text())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_the_output_cannot_hold_is_refused_before_the_work(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "1.png").rename(folder / os.fsdecode(b"caf\xe9.png"))
    for out in ("k.json", "k.csv", "k.slp"):
        assert main(["transfer", str(folder / "labels.json"), str(folder), "--out", str(folder / out)]) == 2
        assert "names are UTF-8" in capsys.readouterr().err
    away = folder / os.fsdecode(b"\xe9")  # a folder of such a name is none of the output's business
    (folder / os.fsdecode(b"caf\xe9.png")).rename(folder / "1.png")
    away.mkdir()
    for path in folder.glob("*.*"):
        path.rename(away / path.name)
    assert len(transferred(away)["annotations"]) == 6


def test_coco_out_is_read_by_coco_tools(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = transferred(folder)
    assert [image["file_name"] for image in data["images"]] == [f"{i}.png" for i in range(6)]
    assert [one["labelled"] for one in data["annotations"]] == [True] + [False] * 5
    assert data["categories"] == [
        {"id": 1, "name": "thing", "supercategory": "thing", "keypoints": list(NAMES), "skeleton": [[1, 2], [3, 4]]}
    ]
    own = np.array(data["annotations"][0]["keypoints"]).reshape(-1, 3)
    np.testing.assert_allclose(own[:, :2], points_of(BOXES[0]))
    assert data["annotations"][0]["keypoint_scores"] == [1.0] * 5
    for one in data["annotations"][1:]:
        assert len(one["keypoint_scores"]) == 5
        assert 0 <= one["score"] <= 1
    assert data["info"]["kbc"]["matcher"] == "hog"
    opened = open_coco(folder)
    assert len(opened) == 15  # every two of six
    assert main(["data", "check", str(folder)]) == 0
    coco_tool = pytest.importorskip("pycocotools.coco")
    read = coco_tool.COCO(str(folder / "annotations.json"))
    assert len(read.loadAnns(read.getAnnIds(catIds=[1]))) == 6


def test_the_table_has_a_row_for_each_picture(folder: Path) -> None:
    out = folder / "points.csv"
    points = " ".join(f"{name}={x},{y}" for name, (x, y) in zip(NAMES, points_of(BOXES[0]).tolist(), strict=True))
    given = ["transfer", str(folder / "0.png"), str(folder), "--points", points, "--out", str(out), "--quiet"]
    assert main(given) == 0
    rows = list(csv.DictReader(out.open()))
    assert [row["image"] for row in rows] == [f"{i}.png" for i in range(6)]
    assert float(rows[0]["head_x"]) == points_of(BOXES[0])[0, 0]
    assert float(rows[0]["head_confidence"]) == 1
    assert all(0 <= float(row["tail_confidence"]) <= 1 for row in rows)


def test_a_bad_picture_is_recorded_and_passed_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "3.png").write_bytes(b"broken")
    data = transferred(folder)
    assert [one["file_name"] for one in data["info"]["skipped"]] == ["3.png"]
    assert [image["file_name"] for image in data["images"]] == [f"{i}.png" for i in (0, 1, 2, 4, 5)]
    assert "3.png was passed over" in capsys.readouterr().err


def test_boxes_of_a_detector_are_kept(folder: Path) -> None:
    boxes = [{"image_id": 3, "bbox": [30, 30, 60, 50], "category_id": 1}]
    (folder / "boxes.json").write_text(json.dumps(boxes))
    data = transferred(folder, "--boxes", str(folder / "boxes.json"))
    found = [one for one in data["annotations"] if not one["labelled"]]
    assert [(one["image_id"], one["bbox"], one["bbox_kind"]) for one in found] == [(3, [30, 30, 60, 50], "annotated")]


class Interrupted(Exception):
    """In place of a kill."""


def test_an_interrupted_job_goes_on_and_gives_the_same_bytes(folder: Path) -> None:
    labels = read_labels(folder / "labels.json")
    images = sorted(labels.numbers.values())
    written: list[str] = []
    asked: list[int] = []

    def counting(source: np.ndarray, target: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        asked[-1] += 1
        return find_red(source, target, keypoints)

    def work(stop_after: int | None, out: Path) -> str:
        asked.append(0)

        def write(results: list[Transferred]) -> None:
            written.append(json.dumps(coco(results, labels, out)))

        def progress(done: int, total: int) -> None:
            if done == stop_after:
                raise Interrupted

        workers = Workers(1, lambda: Labeller(labels.exemplars, counting))
        Job(labels, images, out).run(workers, write, progress)
        return written[-1]

    whole = work(None, folder / "a.json")
    assert not journal_path(folder / "a.json").exists()
    for stop in (2, 4):
        with pytest.raises(Interrupted):
            work(stop, folder / "b.json")
    with journal_path(folder / "b.json").open("a") as file:
        file.write('{"image": "half a li')
    assert work(None, folder / "b.json") == whole
    assert sum(asked[1:]) == asked[0]  # nothing was done twice
    assert not journal_path(folder / "b.json").exists()


def test_a_journal_of_another_job_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = read_labels(folder / "labels.json")
    out = folder / "keypoints.json"

    def stop(done: int, total: int) -> None:
        raise Interrupted

    images = sorted(labels.numbers.values())
    workers = Workers(1, lambda: Labeller(labels.exemplars, find_red))
    with pytest.raises(Interrupted):
        Job(labels, images, out).run(workers, lambda r: None, stop)
    assert main(["transfer", str(folder / "labels.json"), "--out", str(out), "--quiet"]) == 2
    assert "another unfinished transfer" in capsys.readouterr().err
    journal_path(out).write_text("nonsense\n")
    assert main(["transfer", str(folder / "labels.json"), "--out", str(out), "--quiet"]) == 2
    assert "journal" in capsys.readouterr().err


def test_shards_together_write_what_one_run_writes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "4.png").write_bytes(b"broken")
    whole, parts = folder / "whole.json", folder / "parts.json"
    given = ["transfer", str(folder / "labels.json"), "--quiet", "--out"]
    assert main([*given, str(whole)]) == 0
    for shard in ("3/3", "1/3"):
        assert main([*given, str(parts), "--shard", shard]) == 0
        assert not parts.exists()
    assert f"without --shard writes {parts}" in capsys.readouterr().err
    (folder / "parts.json2.journal").write_text("of another output")
    held = journal_path(parts, (0, 3)), journal_path(parts, (2, 3))
    lines = [path.read_bytes() for path in held]
    assert [data.count(b"\n") for data in lines] == [
        2,
        3,
    ]  # head, 3; head, 2, 5
    assert main([*given, str(parts), "--shard", "1/3"]) == 0
    assert [path.read_bytes() for path in held] == lines  # nothing was done twice
    assert main([*given, str(parts)]) == 0  # does the second shard, too
    assert parts.read_bytes() == whole.read_bytes()
    assert sorted(folder.glob("*.journal")) == [folder / "parts.json2.journal"]


def test_the_last_run_asks_about_nothing_that_a_shard_has_done(folder: Path) -> None:
    labels = read_labels(folder / "labels.json")
    images, out = sorted(labels.numbers.values()), folder / "k.json"
    asked: list[Path] = []

    class Counting(Workers):
        def __call__(self, tasks: Sequence[Task]) -> Iterator[Transferred]:
            asked.extend(image for image, _ in tasks)
            return super().__call__(tasks)

    workers = Counting(1, lambda: Labeller(labels.exemplars, find_red))
    written: list[list[Transferred]] = []
    for shard in ((0, 2), (1, 2), WHOLE):
        Job(labels, images, out, shard=shard).run(workers, written.append)
    assert sorted(asked) == images[1:]
    assert [one.image for one in written[0]] == images


SLOW = """
import os, time
from rectangles import find_red

def load():
    return slowly

def slowly(source, target, keypoints):
    time.sleep(float(os.environ["PAUSE"]))
    return find_red(source, target, keypoints)
"""


class Process:
    """A transfer in a process of its own, with a matcher that takes its time."""

    def __init__(self, folder: Path, out: Path, pause: float, *options: str) -> None:
        (folder / "slow.py").write_text(SLOW)
        self.journals = [out.parent / f"{out.name}.journal", *(journal_path(out, (i, 2)) for i in (0, 1))]
        path = os.pathsep.join([str(folder), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "kbc", "transfer", str(folder / "labels.json"), "--quiet", "--out", str(out)]
        self.process = subprocess.Popen(
            [*command, "--matcher", "slow:load", *options],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PAUSE": str(pause)},
            stderr=subprocess.PIPE,
        )

    def lines(self) -> int:
        return sum(path.read_bytes().count(b"\n") for path in self.journals if path.exists())

    def at_work(self) -> bool:
        """Waits for a line more than there was; False where it ended before."""
        before = self.lines()
        while self.lines() <= before and self.process.poll() is None:
            time.sleep(0.01)
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize("first", [[], ["--shard", "2/2"]])
def test_two_processes_on_one_output_refuse_clearly(
    folder: Path, capsys: pytest.CaptureFixture[str], first: list[str]
) -> None:
    out = folder / "keypoints.json"
    job = Process(folder, out, 60.0, *first)
    given = ["transfer", str(folder / "labels.json"), "--out", str(out), "--quiet"]
    try:
        assert job.at_work()
        for options in ([], first):
            assert main([*given, *options]) == 2
            assert "one process at a time" in capsys.readouterr().err
    finally:
        job.kill()
    assert main([*given, "--matcher", "rectangles:find_red"]) == 2
    assert "another unfinished transfer" in capsys.readouterr().err  # the lock died with it, what it was about did not


@pytest.mark.slow
@pytest.mark.parametrize(
    "turns", [[[]], [["--jobs", "2"]], [["--shard", "1/2"], ["--shard", "2/2"], []]], ids=["alone", "jobs", "shards"]
)
def test_killed_at_ten_moments_the_output_is_the_same(folder: Path, turns: list[list[str]]) -> None:
    paths = write_folder(folder, [BOXES[i % len(BOXES)] for i in range(25)])
    write_labels(folder / "labels.json", {"0.png": BOXES[0]}, tuple(path.name for path in paths[1:]))
    whole, out = folder / "whole.json", folder / "killed.json"
    assert Process(folder, whole, 0.0).process.wait() == 0
    rng = np.random.default_rng(0)
    killed = 0
    while killed < 10:
        job = Process(folder, out, 0.05, *turns[killed % len(turns)])
        if job.at_work():
            time.sleep(rng.uniform(0, 0.3))
            killed += job.process.poll() is None
        job.kill()
        if out.exists():  # it was done before it was killed
            assert out.read_bytes() == whole.read_bytes()
            out.unlink()
    for options in turns:
        assert Process(folder, out, 0.0, *options).process.wait() == 0
    assert out.read_bytes() == whole.read_bytes()
    assert not list(folder.glob("*.journal"))


@pytest.mark.slow
def test_several_processes_write_the_same_bytes(folder: Path) -> None:
    (folder / "4.png").write_bytes(b"broken")
    alone, together = folder / "alone.json", folder / "together.json"
    given = ["transfer", str(folder / "labels.json"), "--quiet", "--out"]
    assert main([*given, str(alone)]) == 0
    assert main([*given, str(together), "--jobs", "2"]) == 0
    assert together.read_bytes() == alone.read_bytes()
    assert not journal_path(together).exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["{}/labels.json", "--out", "{}/no/k.json"], "--out"),
        (["{}/labels.json", "--out", "{}/k.txt"], "--out"),
        (["{}/labels.json", "{}/empty", "--out", "{}/k.json"], "a folder with pictures"),
        (["{}/labels.json", "{}/0.png", "--out", "{}/k.json"], "not labelled yet"),
        (["{}/labels.json", "--out", "{}/k.json", "--points", "a=1,2"], "--points"),
        (["{}/0.png", "{}", "--out", "{}/k.json"], "--points"),
        (["{}/0.png", "--points", "a=1,2", "--out", "{}/k.json"], "IMAGES"),
        (["{}/0.png", "{}", "--points", "1,2", "--out", "{}/k.json"], "name=x,y"),
        (["{}/labels.json", "--out", "{}/k.json", "--min-confidence", "2"], "min_confidence"),
        (["{}/labels.json", "--out", "{}/k.json", "--exemplars", "0"], "--exemplars"),
        (["{}/labels.json", "--out", "{}/k.json", "--jobs", "0"], "--jobs"),
        (["{}/labels.json", "--out", "{}/k.json", "--shard", "3/2"], "i/n"),
        (["{}/labels.json", "--out", "{}"], "--out"),
        (["{}/labels.json", "--out", "{}/k.json", "--review", "{}/no/r.html"], "--review"),
        (["{}/labels.json", "--out", "{}/k.json", "--set", "passes=0"], "how sure"),
    ],
)
def test_wrong_input_is_refused_before_work_starts(
    folder: Path, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    (folder / "empty").mkdir()
    assert main(["transfer", *(word.format(folder) for word in given)]) == 2
    assert said in capsys.readouterr().err
    assert not (folder / "k.json").exists()
    assert not (folder / "k.json.journal").exists()


def test_the_exit_code_tells_when_nothing_could_be_done(folder: Path) -> None:
    for index in range(1, 6):
        (folder / f"{index}.png").write_bytes(b"broken")
    pictures = [str(folder / f"{index}.png") for index in range(1, 6)]
    assert main(["transfer", str(folder / "labels.json"), *pictures, "--out", str(folder / "k.json"), "--quiet"]) == 1


@pytest.mark.parametrize("target", ["{}", "{}/*.png", "{}/list.txt"])
def test_match_points_to_transfer_for_many_pictures(
    folder: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    assert main(["match", str(folder / "0.png"), target.format(folder), "--points", "1,2"]) == 2
    assert "kbc transfer" in capsys.readouterr().err


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "options",
    [
        ["--out", "labels.json"],
        ["--out", "boxes.json", "--boxes", "boxes.json"],
        ["--out", "new.json", "--review", "3.png"],
        ["--out", "new.json", "--review", "new.json"],
        ["--out", "new.json", "--review", "labels.json"],
        ["--out", "link.json"],
    ],
)
def test_no_output_takes_the_place_of_what_is_read(
    folder: Path, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (folder / "boxes.json").write_text(json.dumps([{"image_id": 3, "bbox": [30, 30, 60, 50]}]))
    (folder / "link.json").symlink_to("labels.json")
    before = contents(folder)
    assert main(["transfer", "labels.json", *options, "--quiet"]) == 2
    assert "a file of its own" in capsys.readouterr().err
    assert contents(folder) == before


def test_broken_labels_and_boxes_are_named_and_the_rest_is_used(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads((folder / "labels.json").read_text())
    data["annotations"].append({"id": 9, "image_id": 2, "caption": "a thing"})
    data["annotations"][0]["keypoints"][:3] = [float("nan"), float("nan"), 0]
    data["images"].append({**data["images"][2], "id": 77})  # the same picture under a second number
    (folder / "labels.json").write_text(json.dumps(data))
    boxes = [{"image_id": 3, "bbox": [30, 30, 60, 50]}, {"image_id": 3, "bbox": [30, 30, 0, 50]}]
    (folder / "boxes.json").write_text(json.dumps(boxes))
    found = transferred(folder, "--boxes", str(folder / "boxes.json"))
    assert [image["file_name"] for image in found["images"]] == [f"{i}.png" for i in range(6)]
    assert found["annotations"][0]["keypoints"][:3] == [0, 0, 0]
    assert len(found["annotations"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if line.startswith("note: ")]) == 2


@pytest.mark.parametrize("suffix", ["slp", "json"])
def test_a_link_stays_and_a_file_keeps_its_mode_in_other_formats(folder: Path, suffix: str) -> None:
    pytest.importorskip("sleap_io")
    (folder / "there").mkdir()
    target = folder / "there" / f"found.{suffix}"
    target.write_bytes(b"old")
    target.chmod(0o600)
    (folder / f"link.{suffix}").symlink_to(target)
    kind = "slp" if suffix == "slp" else "labelstudio"
    given = ["transfer", str(folder / "labels.json"), "--out", str(folder / f"link.{suffix}"), "--format", kind]
    assert main([*given, "--quiet"]) == 0
    assert (folder / f"link.{suffix}").is_symlink()
    assert len(target.read_bytes()) > 3
    assert target.stat().st_mode & 0o777 == 0o600


def test_a_journal_of_other_weights_or_code_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(folder))
    code = folder / "own_matcher.py"
    text = "def load(weights=''):\n    return lambda source, target, keypoints: keypoints\n"
    code.write_text(text)
    weights = folder / "w.bin"
    weights.write_bytes(b"first")
    given = ["transfer", str(folder / "labels.json"), "--out", str(folder / "out.json"), "--quiet"]
    given += ["--matcher", "own_matcher:load", "--option", f"weights={weights}"]
    assert main([*given, "--shard", "1/2"]) == 0
    for path, now, before in ((weights, b"second", b"first"), (code, text.encode() + b"# changed\n", text.encode())):
        path.write_bytes(now)
        assert main(given) == 2
        assert "unfinished transfer" in capsys.readouterr().err
        path.write_bytes(before)
    assert main(given) == 0


def test_a_shard_beside_a_whole_job_is_refused(folder: Path) -> None:
    labels = read_labels(folder / "labels.json")
    images = sorted(labels.numbers.values())
    workers = Workers(1, lambda: Labeller(labels.exemplars, find_red))

    def begin_a_shard(done: int, total: int) -> None:
        with pytest.raises(InputError, match="one process at a time"):
            Job(labels, images, folder / "out.json", shard=(0, 2)).run(workers, lambda _: None)
        refused.append(done)

    refused: list[int] = []
    Job(labels, images, folder / "out.json").run(workers, lambda _: None, begin_a_shard)
    assert len(refused) == 5
    assert not list(folder.glob("*.journal"))


@pytest.mark.parametrize("shard", ["²/4", "1/²", "1/" + "9" * 5000, "0/2", "3/2", "1/2/3", "-1/2", ""])
def test_a_shard_that_is_none_is_refused(folder: Path, shard: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["transfer", str(folder / "labels.json"), "--out", str(folder / "out.json"), f"--shard={shard or 'x'}"]
    assert main(given) == 2
    assert "`shard` must be i/n" in capsys.readouterr().err


def test_a_box_that_only_the_opened_picture_shows_to_be_outside_is_named_and_the_rest_is_used(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file states it upright, as a tag could turn it; what a journal holds is said and written again."""
    images = [{"id": 1, "file_name": "2.png", "width": 120, "height": 160}]
    boxes = [[30, 30, 60, 50], [30, 130, 40, 25], [40, 30, 60, 50]]
    content = {"images": images, "annotations": [{"id": i, "image_id": 1, "bbox": b} for i, b in enumerate(boxes, 1)]}
    (folder / "boxes.json").write_text(json.dumps(content))
    given = ["transfer", str(folder / "labels.json"), "--out", str(folder / "k.json"), "--quiet", "--review"]
    given += [str(folder / "r.html"), "--boxes", str(folder / "boxes.json")]
    for more in (["--shard", "1/2"], ["--shard", "2/2"], []):
        assert main([*given, *more]) == 0
    found = json.loads((folder / "k.json").read_text())
    assert [one["bbox"] for one in found["annotations"][1:]] == [boxes[0], boxes[2]]
    assert found["info"]["skipped"] == []
    said = f"a box in {folder / '2.png'}: `box` must be a box that meets the image (160×120), received (30.0, 130.0, "
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2  # of its shard, and of the last run
    assert all(said in note for note in notes)


def test_many_broken_boxes_are_counted_and_not_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = [{"image_id": 1000 + i, "bbox": [1, 2, 3, 4]} for i in range(500)]
    (folder / "boxes.json").write_text(json.dumps([{"image_id": 3, "bbox": [30, 30, 60, 50]}, *broken]))
    transferred(folder, "--boxes", str(folder / "boxes.json"))
    said = capsys.readouterr().err.splitlines()
    assert (len(said), said[-1]) == (21, "note: and 480 problems more")


def test_labelled_pictures_that_their_tag_turns_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A turn by 180° keeps the size, so that nothing else tells that the labels may be of the picture as it lies."""
    pillow = pytest.importorskip("PIL.Image", reason="Pillow comes with matplotlib, an extra")
    exif = pillow.Exif()
    exif[0x0112] = 3
    picture = next(folder.rglob("0.png"))
    pillow.open(picture).save(picture, exif=exif)
    transferred(folder, "--matcher", "hog")
    assert "note: 1 of 1 image turned by their EXIF tag when opened, e.g. 0.png" in capsys.readouterr().err


def test_measuring_by_points_that_kbc_found_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transferred(folder)
    said = "the points of 5 of 6 objects are those that kbc transfer found: to measure by them compares kbc with itself"
    assert main(["data", "check", str(folder)]) == 0
    assert f"  note: {said}" in capsys.readouterr().out
    given = [
        "eval",
        "--data",
        "coco",
        "--root",
        str(folder),
        "--limit",
        "1",
        "--localizer",
        "best",
        "--figures",
        "none",
    ]
    assert main([*given, "--quiet", "--out", str(tmp_path / "run")]) == 0
    assert f": {said}" in capsys.readouterr().err
