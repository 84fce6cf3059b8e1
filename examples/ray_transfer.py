"""`kbc transfer` over a cluster with Ray: the same command, the same bytes, as many machines as there are.

    pip install "kbc[ray]"
    python examples/ray_transfer.py labels.json photos --out keypoints.json --matcher hog --jobs 4

`--jobs` is the number of workers; each loads the matcher once. The journal lies where this runs: killed and started
again, it goes on where it was. The pictures must be files that every worker sees under the same path. On a cluster
start it on the head node (`ray start --head`) with `--address auto`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from kbc.cli import MISSING, transfer
from kbc.labelling import Labeller, Transferred
from kbc.labelling.job import Task, Workers


class Worker:
    """One process of the pool: the exemplars and a matcher of its own."""

    def __init__(self, build: Callable[[], Labeller]) -> None:
        self.labeller = build()

    def ask(self, task: Task) -> Transferred:
        """What comes of a picture."""
        return self.labeller(*task)


class RayWorkers(Workers):
    """`Workers` anywhere in a cluster; `gpus` is the share of a GPU that each asks for."""

    def __init__(self, jobs: int, build: Callable[[], Labeller], gpus: float = 0) -> None:
        super().__init__(jobs, build)
        self.gpus = gpus

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Transferred]:
        """What comes of each picture, in order."""
        import ray
        from ray.util import ActorPool

        actor = ray.remote(num_gpus=self.gpus)(Worker)
        pool = ActorPool([actor.remote(self.build) for _ in range(min(self.jobs, len(tasks)))])
        yield from pool.map(lambda worker, task: worker.ask.remote(task), tasks)


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="kbc transfer over a cluster.")
    transfer.configure(parser)
    parser.add_argument("--gpus", type=float, default=0, help="share of a GPU for each worker")
    parser.add_argument("--address", help="of a running cluster, or auto; default: a local Ray")
    args = parser.parse_args(arguments)
    try:
        import ray
    except ImportError:
        print('ray_transfer: Ray is missing: pip install "kbc[ray]"', file=sys.stderr)
        return MISSING
    ray.init(address=args.address, include_dashboard=False, ignore_reinit_error=True)
    return transfer.run(args, partial(RayWorkers, gpus=args.gpus))


if __name__ == "__main__":
    raise SystemExit(main())
