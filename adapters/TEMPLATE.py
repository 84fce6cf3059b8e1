"""A matcher of your own in under 60 lines: copy, rename, fill in. `examples/add_a_matcher.md` walks through it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from kbc.tensors import usable_device
from kbc.types import Pair

from .sandbox import Checkout, Stub, Upstream  # in a package of your own: from kbc_adapters.sandbox import …
from .upstream import UpstreamMatcher, check_state, read_checkpoint, travels


class Template(UpstreamMatcher):
    """Built by `load`."""

    name = "template"
    upstream = Upstream(
        repository="owner/name",
        entry="model/net.py",  # the file that tells a checkout of it
        licence="none",  # what the repository says
        citation="Authors: Title, Venue Year",
        direction="source → target",  # what upstream's own evaluation predicts
        frame="256 × 256, stretched",
    )
    input_size = 256
    max_batch = 8
    node_first, node_step = 7.5, 16.0  # where the correlation's cells lie in the 256 × 256 frame

    def __init__(self, checkout: Checkout, state: dict[str, Tensor], device: torch.device) -> None:
        super().__init__(checkout, device)
        build = checkout.get("model.net", "Net")
        checkout.untrained("model.resnet", "resnet101")  # ignore upstream's pretrained=True
        with checkout.building(device):
            self._network = build().to(device).eval()
            check_state(self._network.state_dict(), state, self.name)
            self._network.load_state_dict(state)

    def _correlate(self, pairs: Sequence[Pair]) -> list[Tensor]:
        return list(self._network(*self._images(pairs)))  # one (h·w, h·w) per pair: source × target

    def _transfer(self, found: Tensor, points: Tensor) -> Tensor:
        moved: Tensor = self.checkout.get("utils", "transfer")(found, points)  # (2, N) in, (2, N) out, frame pixels
        return moved

    def _rows(self, found: Tensor, points: Tensor) -> Tensor:
        column, row = ((points - self.node_first) / self.node_step).round().long().clamp(0, 15)
        return found[row * 16 + column].reshape(-1, 16, 16)  # (N, h, w): what each point resembles


@travels  # so that it can be pickled
def load(*, checkout: str | Path, checkpoint: str | Path, device: str | torch.device = "cpu") -> Template:
    """The matcher from a checkout and a checkpoint. Say here where both come from."""
    code = Checkout(checkout, Template.upstream, stubs={"tensorboardX": Stub("tensorboardX")})
    return Template(code, read_checkpoint(checkpoint), usable_device(device))
