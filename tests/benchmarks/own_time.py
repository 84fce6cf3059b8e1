"""KBC's own time a pair, of this checkout and of others, in one interleaved run.

    git worktree add --detach ../before 85dd1b8
    python tests/benchmarks/own_time.py --against ../before --out own_time.json
    python tests/benchmarks/own_time.py --photographs $KBC_DATA      # seconds around ResNet-18, network included

Each checkout has a process of its own, in which only its public names are used; the plain matcher, the paper's rule and
each budget take turns in all of them, on the same pairs, with fresh arrays and an empty cache. *Own* is all but the
network; processor time of one thread (`time.thread_time`), median over the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
INPUTS = "256/8/128,518/14/384,518/14/768,840/14/768"
VARIANTS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "paper": {"localizer": "predicted", "passes": 1},
    "fast": {"budget": "fast"},
    "balanced": {"budget": "balanced"},
    "thorough": {"budget": "thorough"},
}
Times: TypeAlias = dict[str, float]
"""By the names of `FIGURES`."""
FIGURES = {
    "own": "own processor time, ms a pair",
    "cpu": "processor time, the network's too, ms a pair",
    "wall": "wall time, ms a pair",
    "cost": "cost",
    "peak": "peak memory above the start, MB",
}


# --- in each checkout's process: nothing but what every version of kbc has ----------------------------------------


def serve(threads: int) -> None:
    """Answer requests, a line of JSON each, until standard input ends."""
    import torch

    import kbc

    torch.set_num_threads(threads)
    print(json.dumps(str(Path(kbc.__file__).parent.parent)), flush=True)
    start = _memory(reset=True)
    matchers: dict[str, Any] = {}
    for line in sys.stdin:
        request = {**json.loads(line), "start": start}
        key = json.dumps(request["matcher"])
        if key not in matchers:
            matchers[key] = _Network(_built(request["matcher"]))
        print(json.dumps(_timed(matchers[key], request)), flush=True)


def _built(asked: dict[str, Any]) -> Any:
    """The matcher: a named one, or one of a patch encoder that costs next to nothing."""
    import torch

    import kbc

    if "name" in asked:
        return kbc.load_matcher(asked["name"], **asked["options"])
    size, stride, channels = asked["patches"]

    def encode(images: Any) -> Any:  # each cell's own pixels, as `kbc bench pipeline` has it
        pixels = torch.nn.functional.pixel_unshuffle(images, stride)
        return pixels[:, torch.linspace(0, pixels.shape[1] - 1, channels).round().long()]

    return kbc.from_features(encode, stride, size=size)


class _Network:
    """A feature matcher whose network is timed."""

    def __init__(self, matcher: Any) -> None:
        self.matcher = matcher
        self.seconds = 0.0
        encode = matcher.encode

        def timed(*args: Any) -> Any:
            begun = time.thread_time()
            found = encode(*args)
            self.seconds += time.thread_time() - begun
            return found

        matcher.encode = timed


def _timed(network: _Network, request: dict[str, Any]) -> Times:
    """What one variant costs over all pairs of a file."""
    import kbc

    matcher, options, batch = network.matcher, request["variant"], request["batch"]
    with np.load(request["pairs"]) as held:
        count = len(held.files) // 3
        pairs = [kbc.Pair(*(held[f"{name}{i}"] for name in ("source", "target", "points"))) for i in range(count)]
    matcher.clear_cache()
    network.seconds = 0.0
    _memory(reset=True)
    cpu, wall = time.thread_time(), time.perf_counter()
    if options is None:
        found = [match for i in range(0, count, batch) for match in matcher.match(pairs[i : i + batch])]
    else:
        found = kbc.wrap(matcher, **options, batch_size=batch).match(pairs)
    cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
    cost = float(np.mean([getattr(match, "cost", 1.0) for match in found]))
    times = {"cpu": cpu, "own": cpu - network.seconds, "wall": wall}
    return {"cost": cost, "peak": _memory() - request["start"], **{name: 1e3 * s / count for name, s in times.items()}}


def _memory(reset: bool = False) -> float:
    """The most resident memory since the last reset, MB; 0 where there is no Linux."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


# --- the process that asks them -----------------------------------------------------------------------------------


class Checkout:
    """The process of one checkout."""

    def __init__(self, path: Path, threads: int) -> None:
        environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, __file__, "--serve", "--threads", str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=path
        )
        if Path(self._answer()) != path:
            raise SystemExit(f"another kbc than that of {path} is imported there")

    def ask(self, request: dict[str, Any]) -> Times:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()  # type: ignore[no-any-return]

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process ended with {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self._process.communicate()


def save_scenes(folder: Path, count: int, points: int | None) -> Path:
    """Drawn pairs of 640×480 pixels, with their own 8 to 14 points or so many between them."""
    from kbc.data.scenes.render import scene_pair

    drawn = [scene_pair(seed).pair for seed in range(count)]
    asked = [pair.keypoints for pair in drawn]
    if points is not None:
        rngs = [np.random.default_rng(seed) for seed in range(count)]
        asked = [r.dirichlet(np.ones(len(p)), points) @ p for r, p in zip(rngs, asked, strict=True)]
    return _saved(folder / f"scenes-{points}.npz", [(p.source, p.target, k) for p, k in zip(drawn, asked, strict=True)])


def save_photographs(folder: Path, data: Path, count: int) -> Path:
    """Pairs of the small-object sets of localize.py, as many of each."""
    from localize import SINGLE, open_sets, usable

    held = []
    for name, opened in open_sets(data / "data", count):
        if name in (*SINGLE, "pf-willow f=1", "pf-willow f=3"):
            dataset = opened().limited(count)
            held += [(p.source, p.target, usable(r)) for r in dataset for p in [dataset.load(r)]]
    return _saved(folder / "photographs.npz", held)


def _saved(path: Path, pairs: list[tuple[Any, Any, Any]]) -> Path:
    names = ("source", "target", "points")
    np.savez(
        path, **{f"{name}{i}": part for i, pair in enumerate(pairs) for name, part in zip(names, pair, strict=True)}
    )
    return path


def interleaved(
    checkouts: dict[str, Checkout], requests: dict[str, dict[str, Any]], variants: list[str], rounds: int
) -> dict[str, dict[str, dict[str, Times]]]:
    """Setting → checkout → variant → medians over the turns.

    One more turn before them does not count, but for the memory: later a process holds what earlier turns left free.
    For the memory measure one setting at a time, the variants from the plain matcher on.
    """
    turns: dict[tuple[str, str, str], list[Times]] = {}
    for number in range(rounds + 1):
        for setting, request in requests.items():
            for variant in variants:
                for name in sorted(checkouts, reverse=bool(number % 2)):
                    found = checkouts[name].ask({**request, "variant": VARIANTS[variant]})
                    turns.setdefault((setting, name, variant), []).append(found)
    return {s: {c: {v: _median(*turns[s, c, v]) for v in variants} for c in checkouts} for s in requests}


def _median(first: Times, *turns: Times) -> Times:
    return {**{key: statistics.median(turn[key] for turn in turns) for key in first}, "peak": first["peak"]}


def table(found: dict[str, dict[str, dict[str, Times]]], key: str, what: str) -> str:
    """One of the figures as a Markdown table, with ratios to plain and of other checkouts to this one."""
    variants = list(next(iter(next(iter(found.values())).values())))
    lines = [f"| {what} (× plain) | | " + " | ".join(variants) + " |", "|---|---" + "|---" * len(variants) + "|"]
    for setting, checkouts in found.items():
        mine = checkouts["this"]
        for name, times in checkouts.items():
            plain = times["plain"][key] if "plain" in times else 0.0
            cells = [f"{times[v][key]:.1f}" + (f" ({times[v][key] / plain:.1f})" if plain else "") for v in variants]
            lines.append(f"| {setting} | {name} | " + " | ".join(cells) + " |")
            if times is not mine:
                less = (f"{times[v][key] / max(mine[v][key], 1e-9):.1f}×" for v in variants)
                lines.append("| | over this | " + " | ".join(less) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, action="append", default=[], help="another checkout; may be repeated")
    parser.add_argument(
        "--inputs", default=INPUTS, help=f"size/stride/channels of the patch encoder (default {INPUTS})"
    )
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--points", default="own", help="a pair, several with commas (default: the scenes' own)")
    parser.add_argument("--batch", default="1", help="pairs a call, several with commas")
    parser.add_argument("--pairs", type=int, default=6, help="drawn ones, or photographs of each set")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch; with more, read the wall time")
    parser.add_argument("--photographs", type=Path, help="the folder with data/ and weights/: ResNet-18 on photographs")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.threads)
        return
    others = {path.name: Checkout(path.resolve(), args.threads) for path in args.against}
    checkouts = {"this": Checkout(ROOT, args.threads), **others}
    with tempfile.TemporaryDirectory() as kept:
        requests = _requests(args, Path(kept))
        found = interleaved(checkouts, requests, args.variants.split(","), args.rounds)
    for checkout in checkouts.values():
        checkout.close()
    print(*(table(found, key, what) for key, what in FIGURES.items()), sep="\n\n")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))


def _requests(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """What is measured, by name."""
    found = {}
    if args.photographs:
        data = args.photographs.resolve()
        weights = str(data / "weights" / "resnet18-imagenet-to-layer3.pth")
        matchers = {"resnet18": {"name": "resnet18", "options": {"weights": weights}}}
        sets = {"": save_photographs(folder, data, args.pairs)}
    else:
        matchers = {one: {"patches": [int(word) for word in one.split("/")]} for one in args.inputs.split(",")}
        counts = {one: None if one == "own" else int(one) for one in args.points.split(",")}
        sets = {f", {one} points": save_scenes(folder, args.pairs, count) for one, count in counts.items()}
    for name, matcher in matchers.items():
        for asked, pairs in sets.items():
            for batch in args.batch.split(","):
                key = f"{name}{asked}" + f", {batch} a call" * (args.batch != "1")
                found[key] = {"matcher": matcher, "pairs": str(pairs), "batch": int(batch)}
    return found


if __name__ == "__main__":
    main()
