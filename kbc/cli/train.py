"""`kbc train kbcnet`: train the reference model from a recipe."""

from __future__ import annotations

import argparse
from pathlib import Path

from kbc.cli.options import key_values
from kbc.errors import InputError, must_be

HELP = "Train KBCNet from a recipe; a run that was interrupted goes on where its last checkpoint stands."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kbc train`."""
    add = parser.add_argument
    add("model", choices=("kbcnet",), help="what to train")
    add("--config", default="kbcnet-tiny", help="a recipe's JSON file, or kbcnet-tiny, kbcnet-resnet18")
    add("--out", help="folder for checkpoints and logs (default runs/<name of the recipe>)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a field of the recipe, e.g. model.csfa=false; may be repeated",
    )
    add("--device", default="cpu", help="cpu (default), cuda, cuda:1; under torchrun: cuda or cpu")
    add("--threads", type=int, help="CPU threads of the training process (default: torch's own choice)")
    add("--workers", type=int, default=1, help="processes that draw training pairs (default 1)")
    add("--amp", action="store_true", help="bfloat16 autocast")
    add("--compile", action="store_true", help="run the network through torch.compile")
    add("--tensorboard", action="store_true", help="also write TensorBoard's files")
    add("--cache", help="folder that keeps a frozen backbone's features for further runs")
    add("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Train, and print where the checkpoint is."""
    import torch

    from kbc.kbcnet.training.recipe import read_recipe
    from kbc.kbcnet.training.trainer import Options, train

    recipe = read_recipe(args.config, key_values(args.set, "--set"))
    if args.threads is not None:
        if args.threads < 1:
            raise InputError(must_be("--threads", "at least 1", args.threads))
        torch.set_num_threads(args.threads)
    options = Options(
        Path(args.out or f"runs/{recipe.name}"),
        device=args.device,
        workers=args.workers,
        amp=args.amp,
        compile=args.compile,
        tensorboard=args.tensorboard,
        progress=not args.quiet,
        cache=Path(args.cache) if args.cache else None,
    )
    print(train(recipe, options))
    return 0
