"""Pieces that several stand-in checkouts share, as source text."""

from __future__ import annotations

RESNET = """
import torch
import torch.nn as nn
import torch.nn.functional as F
{imports}

model_urls = {{"resnet101": "https://download.invalid/resnet101.pth"}}


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 1, bias=False, groups={groups})
        self.bn1 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 1, bias=False, groups={groups})

    def forward(self, x):
        return x + 1e-3 * self.conv3(self.bn1(self.conv1(x)))


class Net(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        width = 24 * {groups}
        self.conv1 = nn.Conv2d(3 * {groups}, width, 16, {stride}, (16 - {stride}) // 2, bias=False, groups={groups})
        self.bn1 = nn.BatchNorm2d(width)
        for number, count in enumerate(blocks, 1):
            setattr(self, "layer%d" % number, nn.Sequential(*[Block(width) for _ in range(count)]))
        self.fc = nn.Linear(24, 10)

    def forward(self, x):
        x = x - F.avg_pool2d(F.avg_pool2d(x, (15, 1), 1, (7, 0)), (1, 15), 1, (0, 7))
        x = self.bn1(self.conv1(x))
        for number in range(1, 5):
            x = getattr(self, "layer%d" % number)(x)
        return x


def _build(blocks, pretrained):
    net = Net(blocks)
    if pretrained:
        weights = {download}
        for key in weights:
            if {groups} == 2 and not key.startswith("fc."):
                weights[key] = torch.cat([weights[key], weights[key]], dim=0)
        net.load_state_dict(weights)
    return net


def resnet50(pretrained=False):
    return _build([3, 4, 6, 3], pretrained)


def resnet101(pretrained=False):
    return _build([3, 4, 23, 3], pretrained)


def resnext101_32x8d(pretrained=False):
    return _build([3, 4, 23, 3], pretrained)
"""

ZOO = ("import torch.utils.model_zoo as model_zoo", 'model_zoo.load_url(model_urls["resnet101"])')
HUB = ("from torch.hub import load_state_dict_from_url", 'load_state_dict_from_url(model_urls["resnet101"])')


def resnet(stride: int, groups: int = 1, by: tuple[str, str] = HUB) -> str:
    return RESNET.format(stride=stride, groups=groups, imports=by[0], download=by[1])


COSINE = """
def cosine(a, b):
    a, b = F.normalize(a.flatten(2), dim=1), F.normalize(b.flatten(2), dim=1)
    return a.transpose(1, 2) @ b
"""

BOXES = """
def receptive_fields(rfsz, jsz, height, width):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = torch.stack([x, y, x, y], dim=-1).reshape(-1, 4) * jsz
    return (at + torch.tensor([-1, -1, 1, 1]) * (rfsz // 2)).float()


def inside(box, kps):
    x, y = kps[0][:, None], kps[1][:, None]
    near = (x >= box[:, 0]) & (y >= box[:, 1]) & (x <= box[:, 2]) & (y <= box[:, 3])
    return near, near.sum(dim=1)


def moved(source, target, kps, best):
    near, count = inside(source, kps)
    shift = (target[best, :2] - source[:, :2])[None] * near[:, :, None]
    return (kps + (shift.sum(dim=1) / count[:, None]).T)
"""
