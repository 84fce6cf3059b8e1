"""Small stand-ins for the five upstream checkouts: the same modules, signatures, frames and traps, written here.

Their networks are one random convolution on local contrast, which is enough to find the same patch again, so that the
known translation comes back. `write(root)` makes the folders `chm dhpf SCOT MMNet cats`, named as in KBC_UPSTREAM.
"""

from __future__ import annotations

from pathlib import Path

from standin_parts import BOXES, COSINE, ZOO, resnet

CHM = {
    "common/logger.py": """
import logging
from tensorboardX import SummaryWriter


class Logger:
    @classmethod
    def info(cls, message):
        logging.info(message)
""",
    "model/base/backbone.py": resnet(8, by=ZOO),
    "model/base/geometry.py": """
import torch


class Geometry(object):
    @classmethod
    def initialize(cls, img_size):
        cls.img_size = img_size
        cls.spatial_side = int(img_size / 8)
        line = torch.linspace(-1, 1, cls.spatial_side).cuda()
        y, x = torch.meshgrid(line, line, indexing="ij")
        cls.grid = torch.stack([x, y], dim=-1)

    @classmethod
    def normalize_kps(cls, kps):
        kps = kps.clone()
        kps[kps != -2] -= cls.img_size // 2
        kps[kps != -2] /= cls.img_size // 2
        return kps

    @classmethod
    def unnormalize_kps(cls, kps):
        kps = kps.clone()
        kps[kps != -2] *= cls.img_size // 2
        kps[kps != -2] += cls.img_size // 2
        return kps

    @classmethod
    def attentive_indexing(cls, kps, thres=0.1):
        away = ((cls.grid[None] - kps.view(-1, 1, 1, 2)).pow(2).sum(dim=3) + 1e-5).sqrt()
        near = (thres - away).clamp(min=0)
        return near / near.sum(dim=(1, 2), keepdim=True)

    @classmethod
    def transfer_kps(cls, confidence_ts, src_kps, n_pts, normalized):
        if not normalized:
            src_kps = cls.normalize_kps(src_kps)
        where = torch.softmax(confidence_ts, dim=2) @ cls.grid.reshape(-1, 2)
        found = []
        for one, kps, count in zip(where, src_kps, n_pts):
            attention = cls.attentive_indexing(kps[:, :count].t()).flatten(1)
            pads = torch.zeros((2, kps.size(1) - count)).cuda() - 2
            found.append(torch.cat([(attention @ one).t(), pads], dim=1))
        return torch.stack(found)
""",
    "model/base/chm.py": """
import torch
import torch.nn as nn
from common.logger import Logger
from .geometry import Geometry


class CHM(nn.Module):
    def __init__(self, ktype):
        super().__init__()
        self.kernel = torch.ones(1).cuda()  # a plain tensor, which .to() does not move
        self.bias = nn.Parameter(torch.zeros({"psi": 3, "iso": 2, "full": 5}[ktype]))
        Logger.info("%s kernel" % ktype)
""",
    "model/chmlearner.py": """
import torch.nn as nn
from .base.chm import CHM


class CHMLearner(nn.Module):
    def __init__(self, ktype):
        super().__init__()
        self.chm6d = CHM(ktype)
""",
    "model/chmnet.py": f"""
import torch
import torch.nn as nn
import torch.nn.functional as F
from . import chmlearner as chmlearner
from .base import backbone
{COSINE}

class CHMNet(nn.Module):
    def __init__(self, ktype):
        super(CHMNet, self).__init__()
        self.backbone = backbone.resnet101(pretrained=True)
        self.learner = chmlearner.CHMLearner(ktype)

    def forward(self, src_img, trg_img):
        side = -(-src_img.shape[2] // 16) * 2  # of a layer at 1/16, which rounds up, enlarged
        src, trg = (F.interpolate(self.backbone(x), size=(side, side)) for x in (src_img, trg_img))
        corr = cosine(src, trg) * self.learner.chm6d.kernel
        return F.softplus(100 * corr)
""",
}

DHPF = {
    "model/base/resnet.py": resnet(4, groups=2, by=ZOO),
    "model/base/geometry.py": f"""
import torch
{BOXES}

class Geometry:
    @classmethod
    def initialize(cls, feat_size, device):
        cls.max_pts = 400
        cls.rfs = receptive_fields(11, 4, *feat_size).to(device)

    @classmethod
    def neighbours(cls, box, kps):
        return inside(box, kps)

    @classmethod
    def transfer_kps(cls, correlation_matrix, kps, n_pts):
        found = []
        for corr, kp, count in zip(correlation_matrix, kps, n_pts):
            one = moved(cls.rfs, cls.rfs, kp.narrow_copy(1, 0, count), corr.max(dim=1)[1])
            found.append(torch.cat([one, torch.zeros((2, cls.max_pts - count)) - 1], dim=1))
        return torch.stack(found)
""",
    "model/dhpf.py": f"""
import torch
import torch.nn as nn
import torch.nn.functional as F
from .base.geometry import Geometry
from .base import resnet
{COSINE}

class Gating(nn.Module):
    def __init__(self):
        super().__init__()
        self.reduction_ffns = nn.ModuleList([nn.Sequential(nn.Conv2d(24, 24, 1), nn.Dropout(0.5))])
        self.gumbel_ffns = nn.ModuleList([nn.Sequential(nn.Conv2d(24, 2, 1))])


class DynamicHPF:
    def __init__(self, backbone, device, img_side=240):
        self.backbone = {{"resnet50": resnet.resnet50, "resnet101": resnet.resnet101}}[backbone](pretrained=True)
        self.backbone.to(device).eval()
        self.learner = Gating().to(device)
        self.upsample_size = [int(img_side / 4)] * 2
        Geometry.initialize(self.upsample_size, device)

    def __call__(self, src_img, trg_img):
        both = self.backbone(torch.cat([src_img, trg_img], dim=1))
        a, b = (self.learner.reduction_ffns[0](half) for half in both.chunk(2, dim=1))
        gate = self.learner.gumbel_ffns[0](a.mean((2, 3), keepdim=True)).squeeze()
        gate.max(dim=0)[1].item()  # one pair at a time
        return cosine(a, b).clamp(min=0).pow(2), gate

    def state_dict(self):
        return self.learner.state_dict()

    def load_state_dict(self, state_dict):
        self.learner.load_state_dict(state_dict)

    def eval(self):
        self.learner.eval()
""",
    "common/evaluation.py": "from skimage import draw\n",
}

SCOT = {
    "model/resnet.py": resnet(8),
    "model/util.py": """
import re
import torch
import torch.nn.functional as F


def parse_hyperpixel(text):
    return list(map(int, re.findall(r"\\d+", text)))


def resize(img, kps, side_thres=300):
    imsize = torch.tensor(img.size()).float()
    ratio = side_thres / torch.max(imsize)
    size = (int(imsize[2] * ratio), int(imsize[3] * ratio))
    img = F.interpolate(img, size=size, mode="bilinear", align_corners=False)
    kps *= ratio
    return img.squeeze(0), kps, ratio
""",
    "model/geometry.py": f"""
import torch
from . import util
{BOXES}

def neighbours(box, kps):
    return inside(box, kps)


def predict_kps(src_box, trg_box, src_kps, confidence_ts):
    return moved(src_box, trg_box, src_kps, confidence_ts.max(dim=1)[1])
""",
    "model/rhm_map.py": """
import torch


def rhm(src_hyperpixels, trg_hyperpixels, sim, exp1, exp2, eps):
    a, b = src_hyperpixels[1], trg_hyperpixels[1]
    cost = 1 - (a @ b.t()) / (a.norm(dim=1)[:, None] * b.norm(dim=1)[None])
    for _ in range(2000):
        plan = torch.exp(-cost / eps) * torch.ones(1).cuda()
        if not torch.isnan(plan).any():
            return plan.pow(exp2)
        eps *= 2.0
    raise RuntimeError("upstream would loop for ever")
""",
    "model/scot_CAM.py": """
import torch
import torch.nn.functional as F
import gluoncvth as gcv
from . import geometry
from . import util
from . import rhm_map
from . import resnet


class SCOT_CAM:
    def __init__(self, backbone, hyperpixel_ids, benchmark, device, cam):
        if backbone == "fcn101":
            self.backbone = gcv.models.get_fcn_resnet101_voc(pretrained=True).to(device).pretrained
        else:
            self.backbone = getattr(resnet, backbone)(pretrained=True).to(device)
        self.backbone.eval()
        self.hyperpixel_ids = util.parse_hyperpixel(hyperpixel_ids)
        self.jsz = torch.tensor([4, 4, 4, 4, 8, 8, 8, 8, 16, 16]).to(device)
        self.rfsz = torch.tensor([11, 19, 27, 35, 43, 59, 75, 91, 107, 139]).to(device)

    def __call__(self, *args):
        a, b = (self.extract_hyperpixel(image, args[6]) for image in args[:2])
        return rhm_map.rhm(a, b, *args[2:6]), a[0], b[0]

    def extract_hyperpixel(self, img, maptype):
        jsz, rfsz = self.jsz[self.hyperpixel_ids[0]], self.rfsz[self.hyperpixel_ids[0]]
        feat = self.backbone(img.unsqueeze(0))
        if maptype == 1:
            self.get_CAM_multi(feat, img.shape[1:])
        box = geometry.receptive_fields(rfsz, jsz, *feat.shape[2:])
        return box, feat.flatten(2)[0].t(), img.shape[1:]

    def get_CAM_multi(self, feat, sz):
        self.backbone.fc(feat.mean((2, 3)))
        for scale in (1.0, 1.5, 2.0):
            if scale * scale * sz[0] * sz[1] > 800 * 800:
                scale = min(800 / img_h, 800 / img_w)
""",
}

MMNET = {
    "models/__init__.py": "",
    "models/resnet.py": resnet(8),
    "models/Model.py": """
import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision import models
import gluoncvth as gcv
from . import resnet


class Level(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(24, 24, 1)


class MMNet(nn.Module):
    def __init__(self, opt=None, device="cuda:0"):
        super(MMNet, self).__init__()
        names = {"resnet50": "resnet50", "resnet101": "resnet101", "resnext-101": "resnext101_32x8d"}
        if opt.backbone_name == "fcn-resnet101":
            self.backbone = gcv.models.get_fcn_resnet101_voc(pretrained=True).to(device).pretrained
        else:
            self.backbone = getattr(resnet, names[opt.backbone_name])(pretrained=True).to(device)
        self.msblock0 = Level()

    def forward(self, x):
        if x["src_img"].shape[2] % 32:
            raise RuntimeError("sizes of tensors must match")
        a, b = (F.normalize(self.backbone(x[key]), dim=1) for key in ("src_img", "trg_img"))
        levels = []
        for scale in (0.25, 0.5, 1):
            u, v = (F.interpolate(f, scale_factor=scale) for f in (a, b))
            levels.append([torch.einsum("ijkl,ijmn->iklmn", p, q) for p, q in ((u, v), (v, u))])
        fine = torch.zeros(1).expand(len(a), 56, 80, 56, 80)
        return [*levels, [fine, fine]]
""",
    "utils/__init__.py": "",
    "utils/geometry.py": """
import math
import torch


def BilinearInterpolate(kps, correlationMap, originalShape):
    x, y = kps.copy()
    h, w = correlationMap.shape[:2]
    correlationMap = correlationMap.view(h, w, -1)
    x *= w / float(originalShape[0])
    y *= h / float(originalShape[1])
    fx, x0 = math.modf(x)
    fy, y0 = math.modf(y)
    x0, y0 = int(x0), int(y0)
    found = correlationMap[y0, x0] * (1 - fx) * (1 - fy)
    if x0 + 1 < w:
        found = found + correlationMap[y0, x0 + 1] * fx * (1 - fy)
    if y0 + 1 < h:
        found = found + correlationMap[y0 + 1, x0] * (1 - fx) * fy
    if x0 + 1 < w and y0 + 1 < h:
        found = found + correlationMap[y0 + 1, x0 + 1] * fx * fy
    return found


def predict_kps(src_kps, confidence_ts, originalShape):
    src_kps = src_kps.cpu().detach().numpy()
    h, w = confidence_ts.shape[:2]
    xs, ys = [], []
    for i in range(len(src_kps[0])):
        best = BilinearInterpolate([src_kps[0, i], src_kps[1, i]], confidence_ts, originalShape).argmax()
        xs.append(int(best % w) * originalShape[0] / w)
        ys.append(int(best // w) * originalShape[1] / h)
    return [xs, ys]
""",
}

CATS = {
    "models/feature_backbones/resnet.py": resnet(16),
    "models/mod.py": """
def unnormalise(mapping, side):
    import models.feature_backbones.resnet  # an import at run time
    return (mapping + 1) * (side - 1) / 2
""",
    "models/cats.py": f"""
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.models.layers import DropPath, trunc_normal_
import torchvision.models as models
from models.feature_backbones import resnet
from models.mod import unnormalise
{COSINE}

class Block(nn.Module):
    def __init__(self, width, ratio):
        super().__init__()
        self.mlp = nn.ModuleDict({{"fc1": nn.Linear(width, int(width * ratio))}})


class Decoder(nn.Module):
    def __init__(self, layers, side, width, depth, ratio):
        super().__init__()
        self.pos_embed_x = nn.Parameter(torch.zeros(1, layers, 1, side, width // 2))
        trunc_normal_(self.pos_embed_x, std=0.02)
        self.blocks = nn.Sequential(*[Block(width, ratio) for _ in range(depth)])

    def forward(self, corr):
        return 4 * corr


class CATs(nn.Module):
    def __init__(self, feature_size=16, feature_proj_dim=128, depth=4, num_heads=6, mlp_ratio=4,
                 hyperpixel_ids=[0, 8, 20, 21, 26, 28, 29, 30], freeze=True):
        super().__init__()
        self.feature_size = feature_size
        width = feature_size ** 2 + feature_proj_dim
        assert width % num_heads == 0
        self.backbone = resnet.resnet101(pretrained=True)
        self.proj = nn.ModuleList([nn.Linear(24, feature_proj_dim) for _ in hyperpixel_ids])
        self.decoder = Decoder(len(hyperpixel_ids), feature_size, width, depth, mlp_ratio)
        self.x_normal = nn.Parameter(torch.linspace(-1, 1, feature_size))

    def forward(self, target, source):
        side = self.feature_size
        corr = self.decoder(cosine(self.backbone(source), self.backbone(target)))
        pdf = torch.softmax(corr / 0.02, dim=1).view(-1, side, side, side, side)
        x = (pdf.sum(dim=1) * self.x_normal.view(1, side, 1, 1)).sum(dim=1)
        y = (pdf.sum(dim=2) * self.x_normal.view(1, side, 1, 1)).sum(dim=1)
        mapping = unnormalise(torch.stack([x, y], dim=1), side)
        cells = torch.arange(side).to(mapping)
        grid = torch.stack([cells.expand(side, -1), cells[:, None].expand(-1, side)])
        return mapping - grid
""",
    "utils_training/__init__.py": "",
    "utils_training/utils.py": """
import torch
import torch.nn.functional as F


def flow2kps(trg_kps, flow, n_pts, upsample_size=(256, 256)):
    flow = F.interpolate(flow, upsample_size, mode="bilinear") * (upsample_size[0] / flow.shape[2])
    found = []
    for kps, one, count in zip(trg_kps.long(), flow, n_pts):
        kp = torch.clamp(kps.narrow_copy(1, 0, count), 0, upsample_size[0] - 1)
        pads = torch.ones(2, kps.size(1) - count).cuda() * -1
        found.append(torch.cat((kp + one[:, kp[1, :], kp[0, :]], pads), dim=1))
    return torch.stack(found)
""",
}

CHECKOUTS = {"chm": CHM, "dhpf": DHPF, "SCOT": SCOT, "MMNet": MMNET, "cats": CATS}


def write(root: Path) -> Path:
    """Write the five stand-ins under `root`."""
    for folder, files in CHECKOUTS.items():
        for name, text in files.items():
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.lstrip("\n"))
    return root
