"""What opening, matching and drawing may take: counted, and at full size the memory of a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import pytest

from kbc import files
from kbc.data import open_dataset
from kbc.data.coco import CocoReader
from tests.data import layouts


def spair_of(root: Path, images: int, pairs: int) -> Path:
    """SPair-71k's layout with so many pictures, which are one file, and pairs."""
    layouts.spair(root)
    pictures, about, listed = (root / part for part in ("JPEGImages/cat", "ImageAnnotation/cat", "PairAnnotation/test"))
    image, annotation = pictures / "2008_000001.jpg", (about / "2008_000001.json").read_text()
    pair = json.loads(next(listed.iterdir()).read_text())
    annotation = json.dumps({**json.loads(annotation), "bndbox": pair["src_bndbox"]})
    for number in range(images):
        os.link(image, pictures / f"{number}.jpg")
        (about / f"{number}.json").write_text(annotation)
    lines = []
    for count, (a, b) in enumerate(islice(permutations(range(images), 2), pairs)):
        lines.append(f"{count:06d}-{a}-{b}:cat")
        changes = {"src_imname": f"{a}.jpg", "trg_imname": f"{b}.jpg", "trg_bndbox": pair["src_bndbox"]}
        (listed / f"{lines[-1]}.json").write_text(json.dumps({**pair, **changes}))
    (root / "Layout/large/test.txt").write_text("\n".join(lines))
    return root


def coco_of(root: Path, instances: int) -> Path:
    """A COCO file without a list of pairs, with so many instances of one category, each on a picture of its own."""
    layouts.coco(root, pairs=False)

    def grow(content: dict[str, Any]) -> None:
        image, annotation = content["images"][0], content["annotations"][0]
        content["images"] = [{**image, "id": i, "file_name": f"images/n{i}.jpg"} for i in range(instances)]
        content["annotations"] = [{**annotation, "id": i, "image_id": i} for i in range(instances)]
        content["categories"] = content["categories"][:1]

    layouts.edit_json(root / "annotations.json", grow)
    for number in range(instances):
        os.link(root / "images/1.jpg", root / f"images/n{number}.jpg")
    return root


def test_opening_spair_reads_each_file_once_and_holds_little_a_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[Path] = Counter()
    original = files.read_bytes

    def counting(path: Path, *bounds: int) -> bytes:
        read[path] += 1
        return original(path, *bounds)

    monkeypatch.setattr(files, "read_bytes", counting)
    spair_of(tmp_path, images=20, pairs=300)
    tracemalloc.start()
    dataset = open_dataset("spair", tmp_path)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(dataset), dataset.problems) == (300, ())
    assert set(read.values()) == {1}
    assert sum(read.values()) == 300 + 20 + 1  # pairs, pictures' annotations, the list; no picture
    assert held < 300 * 10_000


def test_opening_coco_forms_no_more_pairs_than_asked_and_looks_at_each_instance_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: Counter[str] = Counter()
    for name in ("_side", "record"):
        original = getattr(CocoReader, name)

        def counting(self: CocoReader, *ids: int, name: str = name, original: Any = original) -> Any:
            looked[name] += 1
            return original(self, *ids)

        monkeypatch.setattr(CocoReader, name, counting)
    dataset = open_dataset("coco", coco_of(tmp_path, 300), max_pairs=50)  # of 44,850
    assert len(dataset) == 50
    assert looked == {"_side": 300, "record": 50}


PEAK = """
import sys
{work}
held = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]  # of this program alone:
print(int(held[0]) // 1024)  # ru_maxrss begins with what the process had that started it
"""


def peak_mib(work: str, *words: str) -> int:
    """MiB that a process of its own held at most."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of one program's memory is read off /proc")
    command = [sys.executable, "-c", PEAK.format(work=work), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_opening_a_set_of_spairs_size_takes_little_memory(tmp_path: Path) -> None:
    spair_of(tmp_path, images=150, pairs=12_234)
    assert (
        peak_mib(
            "from kbc.data import open_dataset\nassert len(open_dataset('spair', sys.argv[1])) == 12234", str(tmp_path)
        )
        < 300
    )


@pytest.mark.slow
def test_opening_ten_thousand_instances_takes_little_memory(tmp_path: Path) -> None:
    coco_of(tmp_path, 10_000)
    work = "from kbc.data import open_dataset\nassert len(open_dataset('coco', sys.argv[1]).limited(100)) == 100"
    assert peak_mib(work, str(tmp_path)) < 300


DRAWN = """
import cv2, numpy as np
from kbc.cli import main
small = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
for name in "ab":
    cv2.imwrite(sys.argv[1] + "/" + name + ".jpg", cv2.resize(small, (8000, 6000)))
a, b, plot = (sys.argv[1] + "/" + name for name in ("a.jpg", "b.jpg", "c.png"))
points = "4000,3000 4200,3100 4100,3300 4300,3250"
assert main(["match", a, b, "--points", points, "--matcher", "hog", "--plot", plot]) == 0
"""


@pytest.mark.slow
def test_drawing_two_photographs_of_48_megapixels_takes_little_more_than_opening_them(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert peak_mib(DRAWN, str(tmp_path)) < 1600  # 1,170 measured; each is 144 MB


MANY = """
import numpy as np, kbc
images = np.random.default_rng(0).integers(0, 255, (2, 768, 1024, 3), dtype=np.uint8)
points = np.random.default_rng(1).uniform((10, 10), (1000, 750), (500, 2))
kbc.wrap(kbc.load_matcher("hog", size=1024))(*images, points)
"""


@pytest.mark.slow
def test_five_hundred_points_on_a_fine_grid_take_little_memory() -> None:
    assert peak_mib(MANY) < 1000  # 610 measured
