"""What `kbc transfer` adds to the matches themselves on a large folder, and its memory on a long one.

Run: python tests/benchmarks/transfer_folder.py [--pictures 1000] [--many 10000] >> examples/results/transfer.md

Pictures are drawn; the matcher is hog at 64 px, the cheapest there is, so that what the transfer adds is seen best. A
picture of the folder is transferred, journal and output included, then matched alone, by turns.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch

import kbc
from kbc.data.scenes.render import scene_pair
from kbc.files import write_json
from kbc.images import load_image
from kbc.labelling import Labeller, Labels
from kbc.labelling.job import Job, Workers, journal_path
from kbc.labelling.labels import label_picture
from kbc.labelling.output import coco
from kbc.pipeline import KBCMatcher
from kbc.types import Pair

SCENES = 20


def write_pictures(folder: Path, count: int, size: tuple[int, int], suffix: str) -> tuple[Labels, list[Path]]:
    """An exemplar's labels, and drawn scenes of this width and height, each moved a little; their paths."""
    scenes = [scene_pair(seed, category="quadruped", object_fraction=(0.12, 0.25)).target for seed in range(SCENES)]
    images = [cv2.resize(scene.image[..., ::-1], size, interpolation=cv2.INTER_AREA) for scene in scenes]
    paths = [folder / f"{number:05}{suffix}" for number in range(count + 1)]
    for number, path in enumerate(paths):
        cv2.imwrite(str(path), np.roll(images[number % SCENES], number // SCENES, axis=1))
    scale = np.array(size) / scenes[0].image.shape[1::-1]
    points = ((scenes[0].keypoints + 0.5) * scale - 0.5).tolist()
    return label_picture(paths[0], dict(zip(scenes[0].names, map(tuple, points), strict=True))), paths[1:]


def matcher() -> KBCMatcher:
    """hog with features that are kept."""
    return kbc.wrap(kbc.load_matcher("hog", size=64))


def transfer(labels: Labels, images: list[Path], wrapped: KBCMatcher, after: Callable[[int], None]) -> None:
    """As the command does it; `after` is called after every picture."""
    out = images[0].parent / "keypoints.json"
    workers = Workers(1, lambda: Labeller(labels.exemplars, wrapped))
    job = Job(labels, images, out)
    results = job.run(workers, lambda found: write_json(coco(found, labels, out), out), lambda done, total: after(done))
    assert not any(one.error for one in results)
    assert not journal_path(out).exists()
    assert len(json.loads(out.read_text())["images"]) == len(images)


def overhead(count: int) -> str:
    """Processor time of the transfer against that of the same matches, by turns."""
    own, other = matcher(), matcher()
    alone = 0.0
    with TemporaryDirectory() as folder:
        labels, images = write_pictures(Path(folder), count, (1280, 720), ".jpg")
        one = labels.exemplars[0]
        source = load_image(one.image)
        other.match([Pair(source, source, one.keypoints)])  # the exemplar is encoded, as the labeller does it too

        def match_alone(done: int) -> None:
            nonlocal alone
            start = time.process_time()
            other.match([Pair(source, load_image(images[done - 1]), one.keypoints)])
            alone += time.process_time() - start

        start = time.process_time()
        transfer(labels, images, own, match_alone)
        whole = time.process_time() - start - alone
    encoded = [wrapped.matcher.encoded for wrapped in (own, other)]  # type: ignore[attr-defined]
    return (
        f"{count:,} pictures of 1280×720 from one exemplar: {1000 * whole / count:.1f} ms of processor time a picture, "
        f"**{whole / alone:.2f} times** that of the same matches ({1000 * alone / count:.1f} ms), reading in both. "
        f"{encoded[0]:,} images and windows were encoded, {encoded[1] - encoded[0]:+,} by the matches alone: the "
        "exemplar's once."
    )


def resident() -> float:
    """Memory of this process, MB."""
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index("VmRSS:") + 1]) / 1000


def memory(count: int) -> list[str]:
    """Memory after every tenth of a folder."""
    seen: dict[int, float] = {}

    def after(done: int) -> None:
        if done % (count // 10) == 0 or done == count // 100:
            seen[done] = resident()

    with TemporaryDirectory() as folder:
        labels, images = write_pictures(Path(folder), count, (96, 72), ".png")
        transfer(labels, images, matcher(), after)
    return [
        "| pictures done | " + " | ".join(f"{done:,}" for done in seen) + " |",
        "|" + "---|" * (len(seen) + 1),
        "| memory, MB | " + " | ".join(f"{value:.0f}" for value in seen.values()) + " |",
    ]


def main() -> None:
    """Measure and print the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000, help="of the folder whose time is measured")
    parser.add_argument("--many", type=int, default=10_000, help="of the folder whose memory is measured")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    command = f"python tests/benchmarks/transfer_folder.py --pictures {args.pictures} --many {args.many}"
    print(f"\n## Cost\n\nMade by `{command}`: drawn pictures, `hog` at 64 px, `fast`.\n")
    print(overhead(args.pictures))
    print(f"\nMemory over {args.many:,} small pictures, those still to be done and the results included:\n", flush=True)
    print("\n".join(memory(args.many)))


if __name__ == "__main__":
    main()
