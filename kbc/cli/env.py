"""`kbc env`: what a bug report should say about the machine."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from kbc.files import write_json

if TYPE_CHECKING:
    import torch

HELP = "Print versions and devices; paste it into a bug report. Nothing is sent anywhere."

PACKAGES = ("kbc", "torch", "numpy", "opencv-python", "opencv-python-headless", "pydantic", "matplotlib", "tqdm",
            "safetensors", "transformers", "triton", "gradio", "ray", "tensorboard")  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kbc env`."""
    parser.add_argument("--json", metavar="FILE", help="write it as JSON; - for standard output")


def run(args: argparse.Namespace) -> int:
    """Print one line per fact."""
    facts = collect()
    if args.json:
        write_json(facts, args.json, "--json")
    if args.json != "-":
        width = max(map(len, facts))
        print("\n".join(f"{key:<{width}}  {value}" for key, value in facts.items()))
    return 0


def collect() -> dict[str, str]:
    """Fact → value, all text."""
    facts = {
        "python": f"{sys.version.split()[0]} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "processor": f"{processor()}, {os.cpu_count()} threads",
    }
    facts |= {name: _version(name) for name in PACKAGES}
    facts["cv2"] = _cv2()
    facts |= _torch()
    facts |= {name: os.environ.get(name, "not set") for name in ("KBC_DATA", "KBC_UPSTREAM")}
    return facts


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _cv2() -> str:
    from kbc.errors import MissingDependencyError
    from kbc.images import require_cv2

    try:
        return str(require_cv2().__version__)
    except MissingDependencyError as error:
        return str(error)


def _torch() -> dict[str, str]:
    try:
        import torch
    except ImportError as error:
        return {"torch import": f"failed: {error}"}
    facts = {"torch threads": str(torch.get_num_threads()), "torch cuda build": str(torch.version.cuda or "none")}
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        facts[f"cuda:{index}"] = f"{card.name}, sm_{card.major}{card.minor}, {card.total_memory / 2**30:.0f} GiB"
        facts[f"triton kernels, cuda:{index}"] = _kernels(torch.device("cuda", index))
    if not torch.cuda.is_available():
        facts |= {"cuda": "no device", "triton kernels": "not tried: no CUDA device"}
    return facts


def _kernels(device: torch.device) -> str:
    """Whether the 4D convolution's Triton kernels compute what they should there."""
    from kbc.ops import trial
    from kbc.ops.conv4d import triton_installed

    if not triton_installed():
        return "not tried: triton is not installed"
    wrong = trial.examine(device)
    named = "; ".join(f"{kernel} {what}" for kernel, what in wrong.items())
    return f"{named}; torch computes these instead" if wrong else "all right"


def processor() -> str:
    """The name of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
