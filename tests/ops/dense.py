"""The oracle: a centre-pivot layer as the dense 4D convolution with a cross-shaped kernel, slow on purpose."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kbc.ops import CenterPivotConv4d


def dense(layer: CenterPivotConv4d, x: Tensor) -> Tensor:
    """(B, C, Ha, Wa, Hb, Wb) → (B, O, Ha, Wa, Hb', Wb') without activation, differentiable."""
    sides = layer.kernel_size
    kah, kaw, kbh, kbw = sides
    ah, aw, bh, bw = ((k - 1) // 2 if layer.padding == "same" else int(layer.padding) for k in sides)
    weight = torch.zeros(layer.out_channels, layer.in_channels, *sides).to(layer.weight_a)
    weight[:, :, :, :, bh, bw] += layer.weight_a.detach()
    weight[:, :, ah, aw] += layer.weight_b.detach()
    b, _, ha, wa = x.shape[:4]
    padded = F.pad(x, (bw, kbw - 1 - bw, bh, kbh - 1 - bh, aw, kaw - 1 - aw, ah, kah - 1 - ah))
    taps = []
    for i in range(kah):
        for j in range(kaw):
            images = padded[:, :, i : i + ha, j : j + wa].permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
            taps.append(F.conv2d(images, weight[:, :, i, j], stride=layer.stride))
    total = torch.stack(taps).sum(0)
    y = total.view(b, ha, wa, -1, *total.shape[-2:]).permute(0, 3, 1, 2, 4, 5)
    return y if layer.bias is None else y + layer.bias.detach().view(-1, 1, 1, 1, 1)
