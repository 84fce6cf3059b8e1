"""A run of SPair-71k's size through `kbc eval`: pairs a second, memory over time, and a kill in the middle.

    python tests/benchmarks/spair_sized.py draw spair-sized               # 1,800 drawn images, 12,234 pairs
    python tests/benchmarks/spair_sized.py run spair-sized --out runs/spair-sized
    python tests/benchmarks/spair_sized.py run spair-sized --out runs/spair-killed --kill 0.5
    python tests/benchmarks/spair_sized.py same runs/spair-sized runs/spair-killed

With caches so small that they are soon full, whether memory stays flat: `run … --matcher spair_sized:small_cache
--data-option cache_bytes=20000000`.

The folder has the official layout (test split); the images are drawn scenes of 500×375 pixels. `run` starts `kbc eval
--jobs 2`, adds up the memory of its processes four times a second and, with --kill, kills all of them with SIGKILL once
that share of the pairs is written, then starts the same command again. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import kbc
from kbc.data.scenes.render import Scene, categories, scene_pair
from kbc.images import require_cv2
from kbc.matchers.builtin import hog_features

PAIRS, IMAGES, SIZE_HW = 12_234, 1_800, (375, 500)


def draw(root: Path, pairs: int = PAIRS, images: int = IMAGES) -> None:
    """SPair-71k's layout with drawn scenes, the pairs evenly over the categories."""
    kinds = categories()
    rng = np.random.default_rng(0)
    lines = []
    for place, kind in enumerate(kinds):
        count = images * (place + 1) // len(kinds) - images * place // len(kinds)
        drawn = [_draw(root, kind, place, number) for number in range(count)]
        for _ in range(pairs * (place + 1) // len(kinds) - pairs * place // len(kinds)):
            a, b = rng.choice(count, 2, replace=False)
            lines.append(_pair(root, kind, len(lines) + 1, drawn[a], drawn[b]))
    listing = root / "Layout" / "large" / "test.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text("\n".join(lines) + "\n")


def _draw(root: Path, kind: str, place: int, number: int) -> tuple[str, Scene]:
    """One image and its annotation; both scenes of every drawn pair are used."""
    cv2 = require_cv2()
    made = scene_pair([place, number // 2], size_hw=SIZE_HW, category=kind)
    scene, name = (made.source, made.target)[number % 2], f"2008_{place:02d}{number:04d}"
    picture = root / "JPEGImages" / kind / f"{name}.jpg"
    picture.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(picture), cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR))
    height, width = scene.image.shape[:2]
    fields = {"filename": picture.name, "image_width": width, "image_height": height, "category": kind}
    points = {str(i): [round(float(v), 2) for v in p] for i, p in enumerate(scene.keypoints)}
    flags = {"truncated": 0, "occluded": 0, "difficult": 0}
    _write(
        root / "ImageAnnotation" / kind / f"{name}.json", {**fields, "bndbox": _corners(scene), "kps": points, **flags}
    )
    return name, scene


def _pair(root: Path, kind: str, number: int, source: tuple[str, Scene], target: tuple[str, Scene]) -> str:
    name = f"{number:06d}-{source[0]}-{target[0]}:{kind}"
    fields: dict[str, Any] = {"pair_id": number, "category": kind, "mirror": 0}
    for side, (image, scene) in (("src", source), ("trg", target)):
        fields[f"{side}_imname"] = f"{image}.jpg"
        fields[f"{side}_imsize"] = [SIZE_HW[1], SIZE_HW[0], 3]
        fields[f"{side}_bndbox"] = _corners(scene)
        fields[f"{side}_kps"] = [[round(float(v), 2) for v in p] for p in scene.keypoints]
    fields["kps_ids"] = list(range(len(fields["src_kps"])))
    _write(root / "PairAnnotation" / "test" / f"{name}.json", fields)
    return name


def _corners(scene: Scene) -> list[float]:
    return [round(float(edge), 1) for edge in scene.box.xyxy]


def _write(path: Path, fields: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields))


def small_cache(*, size: int = 64, cache_bytes: int = 2**24) -> kbc.Matcher:
    """`hog` with so small a cache that it is soon full: `--matcher spair_sized:small_cache`."""
    return kbc.from_features(hog_features, 8, size=size, normalise=False, cache_bytes=cache_bytes)


def run(root: Path, out: Path, kill: float | None, options: list[str]) -> None:
    """`kbc eval` over the folder, watched; killed once on the way if asked."""
    command = [sys.executable, "-m", "kbc", "eval", "--data", "spair", "--root", str(root.resolve())]
    command += ["--out", str(out.resolve()), "--jobs", "2", "--figures", "none", "--quiet", *options]
    found = [_watched(command, out, kill)]
    if kill is not None:
        found.append(_watched(command, out, None))
    for number, one in enumerate(found):
        memory = one["memory"]
        third = max(len(memory) // 3, 1)
        peaks = [max(memory[i : i + third]) for i in range(0, third * 3, third) if memory[i : i + third]]
        one["peak MB by thirds of the time"] = [round(peak) for peak in peaks]
        del one["memory"]
        print(f"part {number + 1}: {json.dumps(one)}")


def _watched(command: list[str], out: Path, kill: float | None) -> dict[str, Any]:
    before, begun, first = _written(out), time.perf_counter(), 0.0
    process = subprocess.Popen(command, start_new_session=True, cwd=Path(__file__).parent)
    memory: list[float] = []
    total = PAIRS
    while process.poll() is None:
        time.sleep(0.25)
        done = _written(out) - before
        if done and not first:
            first = time.perf_counter() - begun
        memory.append(_resident_mb(process.pid))
        if kill is not None and done + before > kill * total:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            break
    seconds, done = time.perf_counter() - begun, _written(out) - before
    return {
        "pairs": done,
        "seconds": round(seconds, 1),
        "until the first results, s": round(first, 1),
        "pairs a second after them": round(done / max(seconds - first, 1e-9), 1),
        "ended with": process.returncode,
        "memory": memory,
    }


def _written(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in out.glob("pairs*.jsonl"))


def _resident_mb(group: int) -> float:
    """Proportional share of memory of all processes of a group, so that shared pages count once."""
    found = 0.0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(path.name)) == group:
                lines = (path / "smaps_rollup").read_text().splitlines()
                found += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
        except (OSError, ProcessLookupError):
            continue
    return found


def same(first: Path, second: Path) -> None:
    """Whether two reports agree but for their seconds, their command and what is made of them; every answer too."""
    reports = [_timeless(json.loads((out / "report.json").read_text())) for out in (first, second)]
    answers = [
        {
            (row["run"], row["pair"]): _timeless(row)
            for path in sorted(out.glob("pairs*.jsonl"))
            for row in map(json.loads, path.read_text().splitlines())
        }
        for out in (first, second)
    ]
    print(f"{len(answers[0])} and {len(answers[1])} answers, the same: {answers[0] == answers[1]}")
    print(f"the same report: {reports[0] == reports[1]}")


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in ("seconds", "own_seconds", "time", "command")}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    drawing = commands.add_parser("draw")
    drawing.add_argument("root", type=Path)
    running = commands.add_parser("run", epilog="further options go to kbc eval")
    running.add_argument("root", type=Path)
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--kill", type=float, help="share of the pairs after which all processes are killed")
    comparing = commands.add_parser("same")
    comparing.add_argument("first", type=Path)
    comparing.add_argument("second", type=Path)
    args, further = parser.parse_known_args()
    if args.what == "draw":
        draw(args.root)
    elif args.what == "run":
        run(args.root, args.out, args.kill, further)
    else:
        same(args.first, args.second)


if __name__ == "__main__":
    main()
