"""Time and parameters of each part of a KBCNet for one pair, one CPU thread, random weights.

python examples/kbcnet/time_parts.py --config kbcnet-resnet18 --size 256
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch

from kbc.kbcnet.checkpoint import empty_network
from kbc.kbcnet.training.recipe import read_recipe


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Median CPU time of the calling thread, after one call to warm up."""
    work()
    taken = []
    for _ in range(repeats):
        started = time.thread_time()
        work()
        taken.append(time.thread_time() - started)
    return 1000 * statistics.median(taken)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="kbcnet-resnet18")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--points", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    network = empty_network(read_recipe(args.config).model).eval()
    images = torch.randn(2, 3, args.size, args.size)
    with torch.inference_mode():
        raw = network.backbone.raw(images)
        both = network.align_scales(raw)
        source, target = [m[:1] for m in both], [m[1:] for m in both]
        plain, channels = network.compare(source, target)
        cells = torch.rand(1, args.points, 2) * (plain.shape[1] - 1)
        parts = {
            "backbone, two images": (lambda: network.backbone.raw(images), network.backbone),
            "CSFA, two images": (lambda: network.align_scales(raw), network.csfa),
            "correlation and channels": (lambda: network.compare(source, target), None),
            "decoder, whole": (lambda: network.refine(plain, channels), network.decoder),
        }
        rows = {name: milliseconds(work, args.repeats) for name, (work, _) in parts.items()}
        query = milliseconds(lambda: network.query(source, target, cells), args.repeats)
    total = sum(rows.values())
    print(f"| {args.config}, {args.size} px, grid {plain.shape[1]}×{plain.shape[2]} | ms | share | parameters |")
    print("|---|---|---|---|")
    for name, (_, module) in parts.items():
        count = sum(p.numel() for p in module.parameters()) if module is not None else 0
        print(f"| {name} | {rows[name]:.1f} | {100 * rows[name] / total:.0f} % | {count:,} |")
    print(f"| all | {total:.1f} | | {sum(p.numel() for p in network.parameters()):,} |")
    print(f"| correlation and decoder for {args.points} points only | {query:.1f} | | |")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
