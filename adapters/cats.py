"""CATs: cost aggregation transformers, run from the user's checkout (GPL-3.0: nothing of it is copied here)."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kbc.errors import InputError, must_be
from kbc.files import as_path
from kbc.tensors import sample, usable_device
from kbc.types import Pair

from .sandbox import Checkout, Stub, Upstream
from .upstream import UpstreamMatcher, check_state, looks_like, read_checkpoint, travels, whole_numbers

HYPERPIXELS = (0, 8, 20, 21, 26, 28, 29, 30)


class CATs(UpstreamMatcher):
    """Built by `load`."""

    name = "cats"
    upstream = Upstream(
        repository="SunghwanHong/Cost-Aggregation-transformers",
        entry="models/cats.py",
        licence="GPL-3.0",
        citation="Cho, Hong, Jeon, Lee, Sohn, Kim: CATs, NeurIPS 2021, arXiv 2106.02520",
        direction="target → source",
        frame="256 × 256, stretched",
    )
    input_size = 256
    max_batch = 16

    def __init__(
        self, checkout: Checkout, sizes: dict[str, Any], state: dict[str, Tensor], device: torch.device, truncate: bool
    ) -> None:
        super().__init__(checkout, device)
        self.truncate = truncate
        build = checkout.get("models.cats", "CATs")
        self._flow2kps = checkout.get("utils_training.utils", "flow2kps")
        checkout.untrained("models.feature_backbones.resnet", "resnet101")
        with checkout.building(device):
            self._network = build(**sizes).to(device).eval()
            check_state(self._network.state_dict(), state, "cats", "give `hyperpixels` as it was trained")
            self._network.load_state_dict(state)
        side = int(sizes["feature_size"])
        self.node_step = 256 / side
        self.node_first = (self.node_step - 1) / 2

    def _correlate(self, pairs: Sequence[Pair]) -> list[tuple[Tensor, Tensor]]:
        source, target = self._images(pairs)
        kept: list[Tensor] = []
        hook = self._network.decoder.register_forward_hook(lambda module, inputs, output: kept.append(output))
        try:
            # the first image is the one whose grid carries the flow; upstream calls it target
            flow = self._network(source, target)
        finally:
            hook.remove()
        return list(zip(flow.split(1), kept[0], strict=True))

    def _transfer(self, found: tuple[Tensor, Tensor], points: Tensor) -> Tensor:
        count = torch.tensor([points.shape[1]])
        moved: Tensor = self._flow2kps(points[None], found[0], count, upsample_size=(256, 256))
        if self.truncate:
            return moved[0]
        return moved[0] + (points - points.floor()).where(points < 255, points - 255)

    def _rows(self, found: tuple[Tensor, Tensor], points: Tensor) -> Tensor:
        side = int(self._network.feature_size)
        correlation = found[1].reshape(-1, side, side)  # target cells × the source's grid
        return sample(correlation, (points.T - self.node_first) / self.node_step).T.reshape(-1, side, side)


@travels
def load(
    *,
    checkout: str | Path,
    checkpoint: str | Path,
    num_heads: int = 6,
    hyperpixels: Sequence[int] = HYPERPIXELS,
    truncate: bool = False,
    device: str | torch.device = "cpu",
) -> CATs:
    """CATs from a checkout and a checkpoint.

    Depth and widths are read off the checkpoint; upstream's pickled `args.pkl` is not needed and never opened.

    Args:
        checkout: a clone of github.com/SunghwanHong/Cost-Aggregation-transformers (GPL-3.0).
        checkpoint: `model_best.pth`, or the folder that holds it.
        num_heads, hyperpixels: as it was trained; the checkpoint does not say.
        truncate: cut keypoints to whole pixels of the 256 × 256 frame, as upstream does, instead of carrying the
            fraction over to the answer.
        device: where it runs.

    Raises:
        InputError: a wrong checkout, checkpoint or option.
        DataError: a checkpoint that cannot be read without unpickling.
    """
    path = as_path(checkpoint, "checkpoint")
    state = read_checkpoint(path / "model_best.pth" if path.is_dir() else path)
    layers = list(whole_numbers("hyperpixels", hyperpixels))
    options = {**_sizes(state), "num_heads": num_heads, "hyperpixel_ids": layers}
    projected = sum(key.startswith("proj.") and key.endswith(".weight") for key in state)
    if projected != len(layers):
        raise InputError(must_be("hyperpixels", f"the {projected} layers of this checkpoint", layers))
    width = options["feature_size"] ** 2 + options["feature_proj_dim"]
    if not isinstance(num_heads, Integral) or num_heads < 1 or width % num_heads:
        expected = f"a divisor of {width}, the width of this checkpoint"
        raise InputError(must_be("num_heads", expected, repr(num_heads)))
    # upstream uses one function of timm, which is torch's
    timm = Stub("timm", trunc_normal_=torch.nn.init.trunc_normal_)
    code = Checkout(checkout, CATs.upstream, stubs={"timm": timm, "torchvision": Stub("torchvision")})
    return CATs(code, options, state, usable_device(device), truncate)


def _sizes(state: dict[str, Tensor]) -> dict[str, Any]:
    """The constructor's numbers that shapes of the checkpoint give away."""
    try:
        blocks = {key.split(".")[2] for key in state if key.startswith("decoder.blocks.")}
        hidden, width = state["decoder.blocks.0.mlp.fc1.weight"].shape
        return {
            "feature_size": len(state["x_normal"]),
            "feature_proj_dim": len(state["proj.0.weight"]),
            "depth": len(blocks),
            "mlp_ratio": hidden / width,
        }
    except KeyError as error:
        guess = looks_like(state)
        received = f"one of {guess}" if guess else f"one without {error}"
        raise InputError(must_be("checkpoint", "a checkpoint of cats", received)) from error
