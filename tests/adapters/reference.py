"""Upstream's own predict path, run the plain way in a process of its own: `python reference.py jobs.json`.

Nothing of `kbc` or `kbc_adapters` is imported: the checkout goes first on `sys.path`, `.cuda()` is patched away,
missing packages are mocks, images are resized by Pillow, points are scaled and padded as upstream's data sets do. What
comes out is what the adapters must equal. A job either makes a checkpoint of random weights in upstream's layout, or
predicts.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

MOCKS = ("tensorboardX", "gluoncvth", "timm", "timm.models", "timm.models.layers", "torchvision", "torchvision.models")
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


# Preprocessing, as in upstream's data sets ----------------------------------------------------------------------


def to_tensor(image):
    return (torch.tensor(image.transpose(2, 0, 1).astype(np.float32)) / 255.0 - MEAN) / STD


def stretched(image, side):
    return to_tensor(np.asarray(Image.fromarray(image).resize((side, side), Image.BILINEAR)))[None]


def scaled(points, image, width, height, pad=None):
    points = torch.tensor(points.T.astype(np.float32))
    points = torch.stack([points[0] * (width / image.shape[1]), points[1] * (height / image.shape[0])])
    if pad is None:
        return points
    rest = torch.zeros(2, max(40, points.shape[1]) - points.shape[1]) + pad
    return torch.cat([points, rest], dim=1)[None]


def back(points, image, width, height):
    return points.detach().double().numpy().T / (width / image.shape[1], height / image.shape[0])


# Models ---------------------------------------------------------------------------------------------------------


def untrained(module, name):
    original = getattr(module, name)
    setattr(module, name, lambda pretrained=False, **options: original(pretrained=False, **options))


def with_weights(module, weights):
    if hasattr(module, "model_zoo"):
        module.model_zoo = SimpleNamespace(load_url=lambda *a, **k: dict(weights))
    if hasattr(module, "load_state_dict_from_url"):
        module.load_state_dict_from_url = lambda *a, **k: dict(weights)


def build_chm(options):
    untrained(importlib.import_module("model.base.backbone"), "resnet101")
    return importlib.import_module("model.chmnet").CHMNet(options.get("ktype", "psi"))


def build_dhpf(options, weights):
    with_weights(importlib.import_module("model.base.resnet"), weights)
    return importlib.import_module("model.dhpf").DynamicHPF("resnet101", torch.device("cpu"), options["side"])


def build_scot(options, weights):
    with_weights(importlib.import_module("model.resnet"), weights)
    build = importlib.import_module("model.scot_CAM").SCOT_CAM
    return build("resnet101", options["layers"], "pfpascal", torch.device("cpu"), "")


def build_mmnet(options):
    untrained(importlib.import_module("models.resnet"), "resnet101")
    opt = SimpleNamespace(backbone_name="resnet101", ms_rate=4, feature_channel=21)
    return importlib.import_module("models.Model").MMNet(opt, "cpu")


def build_cats(options):
    untrained(importlib.import_module("models.feature_backbones.resnet"), "resnet101")
    return importlib.import_module("models.cats").CATs(depth=options.get("depth", 1))


def torch_load(path):
    return torch.load(path, map_location="cpu", weights_only=True)


# Predict --------------------------------------------------------------------------------------------------------


def predict_chm(job, source, target, points):
    model = build_chm(job["options"])
    model.load_state_dict(torch_load(job["checkpoint"]))
    model.eval()
    geometry = importlib.import_module("model.base.geometry").Geometry
    geometry.initialize(img_size=240)
    correlation = model(stretched(source, 240), stretched(target, 240))
    count = torch.tensor([len(points)])
    moved = geometry.transfer_kps(correlation, scaled(points, source, 240, 240, -2), count, normalized=False)
    return back(geometry.unnormalize_kps(moved)[0, :, : len(points)], target, 240, 240)


def predict_dhpf(job, source, target, points):
    weights = {k: v for k, v in torch_load(job["imagenet"]).items() if not k.endswith("num_batches_tracked")}
    model = build_dhpf(job["options"], weights)
    model.load_state_dict(torch_load(job["checkpoint"]))
    model.eval()
    side, geometry = job["options"]["side"], importlib.import_module("model.base.geometry").Geometry
    correlation, _ = model(stretched(source, side), stretched(target, side))
    kept = []
    for start in range(0, len(points), 400):  # upstream's own limit; its benchmarks have 40 points
        part = points[start : start + 400]
        moved = geometry.transfer_kps(correlation, scaled(part, source, side, side, -1), torch.tensor([len(part)]))
        kept.append(moved[0, :, : len(part)])
    return back(torch.cat(kept, dim=1), target, side, side)


def predict_scot(job, source, target, points):
    model = build_scot(job["options"], torch_load(job["imagenet"]))
    geometry, util = importlib.import_module("model.geometry"), importlib.import_module("model.util")
    images = []
    for image in (source, target):
        kps = torch.tensor(points.T.astype(np.float32)) if image is source else torch.zeros(2, 1)
        images.append(util.resize(to_tensor(image)[None], kps))
    (src, kps, _), (trg, _, ratio) = images
    options = ("OTGeo", 1.0, job["options"]["exp2"], 0.05, 1, None, None, None, None, "resnet101")
    confidence, source_boxes, target_boxes = model(src, trg, *options)
    moved = geometry.predict_kps(source_boxes, target_boxes, kps, confidence)
    return moved.double().numpy().T / float(ratio)


def predict_mmnet(job, source, target, points):
    model = build_mmnet(job["options"])
    model.backbone.eval()
    model.load_state_dict(torch_load(job["checkpoint"]))
    geometry = importlib.import_module("utils.geometry")
    images = [functional.interpolate(to_tensor(image)[None], (224, 320), mode="bilinear") for image in (source, target)]
    levels = model({"src_img": images[0], "trg_img": images[1]})
    moved = geometry.predict_kps(scaled(points, source, 320, 224), levels[2][0][0], originalShape=[320, 224])
    return back(torch.tensor(np.array(moved)), target, 320, 224)


def predict_cats(job, source, target, points):
    model = build_cats(job["options"])
    model.load_state_dict(torch_load(job["checkpoint"])["state_dict"])
    model.eval()
    flow2kps = importlib.import_module("utils_training.utils").flow2kps
    # upstream predicts from what it calls target to what it calls source: the roles are given the other way round
    flow = model(stretched(source, 256), stretched(target, 256))
    moved = flow2kps(scaled(points, source, 256, 256, -1), flow, torch.tensor([len(points)]))
    return back(moved[0, :, : len(points)], target, 256, 256)


# Checkpoints of random weights ----------------------------------------------------------------------------------


def thin(state, keys):
    """Weights that a forward pass never reads, as zeros that take no room on disk."""
    return {k: v.new_zeros(1).expand(v.shape) if k.startswith(keys) else v for k, v in state.items()}


@contextlib.contextmanager
def calibrating(backbone):
    """Let a backbone's batch norms take the statistics of what they see, or random features are alike everywhere."""
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    backbone.train()
    for norm in norms:
        norm.momentum = 1.0
    yield
    backbone.eval()


def make(job):
    torch.manual_seed(job.get("seed", 0))
    name, options = job["name"], job["options"]
    with np.load(job["pair"]) as pair:
        source, target = pair["source"], pair["target"]
    with torch.no_grad():
        if name == "scot":
            net = importlib.import_module("model.resnet").resnet101(pretrained=False)
            with calibrating(net):
                net(stretched(source, 288))
            torch.save(net.state_dict(), job["imagenet"])
        elif name == "dhpf":
            make_dhpf(job, source, target)
        elif name == "cats":
            model, side = build_cats(options), 256
            with calibrating(model):
                model(stretched(source, side), stretched(target, side))
            rest = {"epoch": 1, "optimizer": {}, "scheduler": {}, "best_loss": 1.5}
            torch.save({"state_dict": model.state_dict(), **rest}, job["checkpoint"])
        elif name == "mmnet":
            model = build_mmnet(options)
            images = [functional.interpolate(to_tensor(image)[None], (224, 320)) for image in (source, target)]
            even_heads(model)
            with calibrating(model.backbone):
                model({"src_img": images[0], "trg_img": images[1]})
            torch.save(thin(model.state_dict(), ("upsample_", "backbone.fc")), job["checkpoint"])
        else:
            model = build_chm(options)
            importlib.import_module("model.base.geometry").Geometry.initialize(img_size=240)
            tie_halves(model.backbone)
            with calibrating(model.backbone):
                model(stretched(source, 240), stretched(target, 240))
            tie_halves(model.backbone)
            pass_through(model.learner)
            torch.save(model.state_dict(), job["checkpoint"])


def even_heads(model):
    """MMNet compares by plain dot products: without this the strongest cell would answer for every point."""
    for name, parameter in model.named_parameters():
        if name.startswith(("msblock", "conv", "wa_")):
            if parameter.ndim == 4 and name.endswith(("_down.weight", ".conv.weight")):
                parameter -= parameter.mean(dim=1, keepdim=True)
            elif parameter.ndim == 1:
                parameter.zero_()


def tie_halves(backbone):
    """CHM's backbone holds ImageNet's weights twice, for source and target: random ones must be alike too."""
    if backbone.conv1.groups == 1:
        return  # the stand-in has one backbone
    for name, value in backbone.state_dict().items():
        if value.ndim and not name.startswith("fc."):
            value[len(value) // 2 :] = value[: len(value) // 2]


def pass_through(learner):
    """CHM's learner as a plain correlation, sharpened. Random weights blur it, compare unlike scales by unlike
    convolutions, and leave the softmax flat: nothing would be found again.
    """
    if not hasattr(learner, "chm4d"):
        return  # the stand-in has none
    middle = 5**4 // 2
    group = [middle in group.tolist() for group in learner.chm4d.param_idx].index(True)
    learner.chm4d.weight.zero_()[group] = 200.0
    for parameter in learner.chm6d.param:
        parameter.zero_()
    learner.chm6d.param[0][group] = 5.0
    shared = learner.conv2ds[0].weight
    shared -= shared.mean(dim=1, keepdim=True)  # what all places share tells nothing
    for conv in learner.conv2ds:
        conv.weight.copy_(shared)


def make_dhpf(job, source, target):
    """The learner alone, and one half of the doubled backbone in torchvision's layout."""
    net = importlib.import_module("model.base.resnet").resnet101(pretrained=False)

    def halved():
        return {
            key: value.clone() if key.startswith("fc.") or value.ndim == 0 else value[: len(value) // 2].clone()
            for key, value in net.state_dict().items()
        }

    def without_counters():
        return {k: v for k, v in halved().items() if not k.endswith("num_batches_tracked")}

    model, side = build_dhpf(job["options"], without_counters()), job["options"]["side"]
    model.eval()
    with calibrating(model.backbone):
        model(stretched(source, side), stretched(target, side))
    net = model.backbone
    torch.save(halved(), job["imagenet"])
    torch.save(model.state_dict(), job["checkpoint"])


def run(job):
    if job["do"] == "make":
        return make(job)
    with np.load(job["pair"]) as pair:
        arguments = (pair["source"], pair["target"], pair["keypoints"])
    start = time.perf_counter()
    with torch.no_grad():
        found = globals()[f"predict_{job['name']}"](job, *arguments)
    np.savez(job["out"], keypoints=np.asarray(found), seconds=time.perf_counter() - start)
    return None


@contextlib.contextmanager
def on_path(checkout):
    sys.path.insert(0, checkout)
    try:
        yield
    finally:
        sys.path.remove(checkout)
        own = {path.stem for path in Path(checkout).iterdir()}
        for name in [name for name in sys.modules if name.partition(".")[0] in own]:
            del sys.modules[name]


def main():
    for name in MOCKS:
        sys.modules[name] = MagicMock()
    sys.modules["timm.models.layers"].trunc_normal_ = nn.init.trunc_normal_
    torch.Tensor.cuda = lambda self, *args, **options: self
    torch.set_num_threads(1)  # a script: two busy cores spin on more
    for job in json.loads(Path(sys.argv[1]).read_text()):
        with on_path(job["checkout"]):
            run(job)


if __name__ == "__main__":
    main()
