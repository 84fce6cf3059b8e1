"""Lines of Python per concern at some commits: `python tests/benchmarks/lines.py 85dd1b8 HEAD`.

A concern is named by paths below `kbc/` of the layout in rooms and of the flat one before it; the first that fits
counts.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from fnmatch import fnmatch

CONCERNS = {
    "labelling (`kbc transfer`)": "labelling/* cli/transfer.py",
    "command line, page": "cli/* cli.py cli_* demo.py ui.py __main__.py data/command.py evaluation/command.py "
    "kbcnet/command.py ops/bench.py",
    "pictures": "viz.py",
    "evaluation": "evaluation/*",
    "drawn scenes": "data/scenes/* data/figures.py data/scenes.py data/scenery.py data/shapes.py",
    "data sets": "data/*",
    "training": "kbcnet/training/* kbcnet/logs.py kbcnet/losses.py kbcnet/pool.py kbcnet/recipe.py kbcnet/samples.py "
    "kbcnet/training.py",
    "KBCNet": "kbcnet/*",
    "4D convolution": "ops/*",
    "matchers": "matchers/* builtin.py features.py matcher.py networks.py registry.py resnet.py voting.py",
    "KBC itself": "config.py tuning.py cropping.py support.py layout.py probe.py localize.py confidence.py verify.py "
    "judge.py pipeline.py",
    "ground": "*",
}


def concern(path: str) -> str:
    if path.startswith("adapters/"):
        return "adapters"
    short = path.removeprefix("kbc/")
    return next(name for name, globs in CONCERNS.items() if any(fnmatch(short, glob) for glob in globs.split()))


def lines(commit: str) -> Counter[str]:
    """Concern → lines, blank ones and comments included."""
    command = ["git", "grep", "-c", "", commit, "--", "kbc/*.py", "adapters/*.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: Counter[str] = Counter()
    for row in done.stdout.splitlines():
        _, path, count = row.split(":")
        found[concern(path)] += int(count)
    return found


def main(commits: list[str]) -> None:
    found = [lines(commit) for commit in commits]
    print("| concern | " + " | ".join(commits) + " |", "|---" * (len(commits) + 1) + "|", sep="\n")
    for name in [*CONCERNS, "adapters"]:
        print(f"| {name} | " + " | ".join(str(counts[name]) for counts in found) + " |")
    print("| **all** | " + " | ".join(str(counts.total()) for counts in found) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
