"""Other tools' files, read back by sleap-io's readers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rectangles import BOXES, NAMES, find_red, picture, points_of, write_folder, write_labels

from kbc.cli import main
from kbc.errors import InputError
from kbc.labelling import Labeller, Transferred, read_labels
from kbc.labelling.formats import deeplabcut, refuse_what_cannot_be_held, write_label_studio, write_sleap
from kbc.labelling.output import coco

sleap = pytest.importorskip("sleap_io")


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Any]:
    """A document of three pictures, one of them labelled, one of another size."""
    folder = tmp_path / "labeled-data" / "photos"
    write_folder(folder, BOXES[:2])
    cv2.imwrite(str(folder / "2.png"), picture(BOXES[2], (130, 170))[..., ::-1])
    labels = read_labels(write_labels(folder / "labels.json", {"0.png": BOXES[0]}, ("1.png", "2.png")))
    labeller = Labeller(labels.exemplars, find_red)
    results = [labeller(path) for path in sorted(labels.numbers.values())]
    results[0] = Transferred(results[0].image, (120, 160))
    points = results[1].objects[0].keypoints
    points[4] = np.nan  # one point is not there
    return {"document": coco(results, labels, folder / "k.json"), "folder": folder, "labels": labels}


def points_by_name(instance: Any) -> dict[str, list[float]]:
    names = instance.skeleton.node_names
    return {name: point.tolist() for name, point in zip(names, instance.numpy(), strict=True) if np.isfinite(point[0])}


def wanted(index: int) -> dict[str, np.ndarray]:
    return {name: p for name, p in zip(NAMES, points_of(BOXES[index]), strict=True) if (index, name) != (1, "middle")}


def same(found: dict[str, list[float]], index: int) -> None:
    assert set(found) == set(wanted(index))
    for name, point in wanted(index).items():
        np.testing.assert_allclose(found[name], point, atol=1.5)


def test_sleap_reads_what_was_written(made: dict[str, Any], tmp_path: Path) -> None:
    write_sleap(made["document"], made["folder"], tmp_path / "k.slp")
    read = sleap.load_slp(str(tmp_path / "k.slp"))
    assert read.skeletons[0].node_names == list(NAMES)
    assert read.skeletons[0].edge_names == [("head", "tail"), ("left", "right")]
    assert [len(video.filename) for video in read.videos] == [2, 1]  # one for each size
    frames = {Path(frame.video.filename[frame.frame_idx]).name: frame for frame in read}
    for index in range(3):
        (instance,) = frames[f"{index}.png"].instances
        same(points_by_name(instance), index)
        assert isinstance(instance, sleap.PredictedInstance) == (index > 0)  # labels are a user's
    given = made["document"]["annotations"][2]
    np.testing.assert_allclose(frames["2.png"].instances[0].points["score"], given["keypoint_scores"], atol=1e-4)


def test_label_studio_reads_what_was_written(made: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "k.json"
    write_label_studio(made["document"], made["folder"], path)
    assert [task["data"] for task in json.loads(path.read_text())] == [{"image": f"{i}.png"} for i in range(3)]
    read = sleap.load_labelstudio(str(path))
    for frame in read:
        index = int(Path(frame.video.filename[0]).stem)
        (instance,) = frame.instances
        same(points_by_name(instance), index)


def test_label_studio_shows_each_object_s_box_in_per_cent_of_the_picture(made: dict[str, Any], tmp_path: Path) -> None:
    document = copy.deepcopy(made["document"])
    document["annotations"].append({**document["annotations"][1], "id": 99, "bbox": [0, 0, 80, 30]})
    write_label_studio(document, made["folder"], tmp_path / "k.json")
    results = json.loads((tmp_path / "k.json").read_text())[1]["annotations"][0]["result"]
    drawn = [[one["value"][k] for k in ("x", "y", "width", "height")] for one in results if "rectangle" in one["type"]]
    x, y, width, height = document["annotations"][1]["bbox"]
    np.testing.assert_allclose(drawn, [[x / 1.6, y / 1.2, width / 1.6, height / 1.2], [0, 0, 50, 25]])  # of 160 × 120


def test_deeplabcuts_table_is_read(made: dict[str, Any]) -> None:
    path = made["folder"] / "CollectedData_kbc.csv"
    path.write_text(deeplabcut(made["document"], "photos"))
    read = sleap.load_dlc(str(path))
    assert set(read.skeletons[0].node_names) == set(NAMES)  # its reader sorts them
    assert len(read) == 3
    for frame in read:
        name = Path(frame.video.filename[frame.frame_idx] if isinstance(frame.video.filename, list) else "").name
        (instance,) = frame.instances
        same(points_by_name(instance), int(Path(name).stem))


def test_what_a_format_cannot_hold_is_said_before_the_work(made: dict[str, Any]) -> None:
    images = sorted(made["labels"].numbers.values())
    with pytest.raises(InputError, match=r"2 called '1\.png'"):  # rows that could not be told apart
        refuse_what_cannot_be_held("dlc", made["labels"], [*images, Path("elsewhere/1.png")], several=False)
    with pytest.raises(InputError, match="several objects"):
        refuse_what_cannot_be_held("dlc", made["labels"], images, several=True)
    refuse_what_cannot_be_held("dlc", made["labels"], images, several=False)
    refuse_what_cannot_be_held("slp", made["labels"], images, several=True)


@pytest.mark.parametrize(
    ("kind", "name"), [("slp", "k.slp"), ("labelstudio", "k.json"), ("dlc", "CollectedData_kbc.csv")]
)
def test_the_command_writes_them(made: dict[str, Any], kind: str, name: str) -> None:
    out = made["folder"] / name
    given = ["transfer", str(made["folder"] / "labels.json"), "--format", kind, "--out", str(out), "--quiet"]
    assert main(given) == 0
    load = {"slp": sleap.load_slp, "labelstudio": sleap.load_labelstudio, "dlc": sleap.load_dlc}[kind]
    assert len(load(str(out))) == 3
    assert main([*given[:-2], str(made["folder"] / "k.txt"), "--quiet"]) == 2
