"""How does KBC do around a matcher of any strength? A simulated one, weak to near perfect, on real layouts.

    python tests/benchmarks/strength.py --data $KBC_DATA/data --noise 0.6 1.2 1.6 2.0 --pairs 24 [--function]

Nobody here has the weights of today's strong extractors, but their geometry can be had: every annotated photograph is
drawn again as a map of where each pixel lies on the object (a thin-plate spline from its keypoints to the category's
median layout; red, green = place on the object, blue = object or not, texture elsewhere). "Features" are random
Fourier features of that place, averaged over each patch as a network's are, with noise. So poses, sizes, places,
several instances and bent bodies are those of the annotations; only how well the matcher tells places apart is made
up, and `--noise` is the dial (on unshrunk PF-WILLOW the bare matcher has about 98, 80, 37 and 16 PCK@0.1 at 0.6, 1.2,
2.0 and 3.0; ResNet-18 has 47, DINOv2-B 64 to 70). A cell that sees half object, half background gets the mean of
both: small objects fuse as in reality.

`--confuse left-right=0.4` mixes into each place's features so much of its mirror image's on the object, `parts=0.5` of
the place half the object away (the same part twice); with `background=0.3` the ground looks so much like the object.

What it does not model: features that change with scale.
"""

import argparse
import hashlib
import zlib
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import torch

import kbc
from kbc.data import open_dataset

WIDTH, DIMENSIONS, STRIDE, SIZE = 0.12, 64, 16, 256
PAD = 0.25  # how far beyond the layout's box the colours can say a place


def random_features(seed=0):
    g = torch.Generator().manual_seed(seed)
    d = DIMENSIONS // 2
    w = torch.cat([torch.randn(2, d, generator=g) / WIDTH, torch.randn(2, d, generator=g) / (3 * WIDTH)], 1)
    phase = torch.rand(DIMENSIONS, generator=g) * 2 * np.pi

    def unit():
        return torch.nn.functional.normalize(torch.randn(DIMENSIONS, generator=g), dim=0)

    return w, phase, unit(), unit()


W, PHASE, OBJECT, GROUND = random_features()


def encoder(noise):
    def encode(images):  # (B, 3, H, W) in [0, 1]
        x = images[..., ::2, ::2]
        place = (x[:, :2] * (1 + 2 * PAD) - PAD).permute(0, 2, 3, 1)
        inside = x[:, 2:3].clamp(0, 1)
        f = torch.cos(place @ W + PHASE).permute(0, 3, 1, 2) * (2 / DIMENSIONS) ** 0.5
        f = inside * (f + 0.7 * OBJECT[:, None, None]) + (1 - inside) * (0.35 * f + 0.7 * GROUND[:, None, None])
        f = torch.nn.functional.avg_pool2d(f, STRIDE // 2)
        for image, cells in zip(
            images, f, strict=False
        ):  # the noise is the image's own: the same image, the same features
            seed = int.from_bytes(hashlib.blake2b(image.numpy().tobytes(), digest_size=6).digest(), "little")
            g = torch.Generator().manual_seed(seed)
            fine = torch.randn(cells.shape, generator=g)
            wide = torch.randn(
                (1, cells.shape[0], max(cells.shape[1] // 4, 1), max(cells.shape[2] // 4, 1)), generator=g
            )
            wide = torch.nn.functional.interpolate(wide, size=cells.shape[1:], mode="bilinear")[0]
            cells += 0.7 * noise * (fine + wide) / DIMENSIONS**0.5
        return f

    return encode


CONFUSIONS = ("left-right", "parts", "background")


def confused(encode, kind, share):
    """An encoder that takes places for others."""

    def encode_confused(images):
        other, inside = images.clone(), images[:, 2] > 0.5
        if kind == "background":
            other[:, 2] = torch.where(inside, images[:, 2], share)
            return encode(other)
        across = images[:, 0] * (1 + 2 * PAD) - PAD
        across = 1 - across if kind == "left-right" else (across + 0.5) % 1
        other[:, 0] = torch.where(inside, (across + PAD) / (1 + 2 * PAD), images[:, 0])
        return (1 - share) * encode(images) + share * encoder(0.0)(other)

    return encode_confused


def spline(source, target, smooth=1e-3):
    """Thin-plate spline (N, 2) -> (N, 2)."""

    def kernel(d):
        return np.where(d > 0, d * d * np.log(d + 1e-12), 0)

    n = len(source)
    k = kernel(np.linalg.norm(source[:, None] - source[None], axis=-1)) + smooth * np.eye(n)
    p = np.c_[np.ones(n), source]
    m = np.block([[k, p], [p.T, np.zeros((3, 3))]])
    c = np.linalg.solve(m + 1e-9 * np.eye(n + 3), np.r_[target, np.zeros((3, 2))])
    return lambda q: (
        kernel(np.linalg.norm(q[:, None] - source[None], axis=-1)) @ c[:n] + np.c_[np.ones(len(q)), q] @ c[n:]
    )


class Drawn:
    """The photographs of a data set, drawn as maps of places."""

    def __init__(self, dataset):
        self.shown, layouts, self.cache = {}, {}, {}
        for r in dataset:
            for path, points in ((r.source_path, r.keypoints), (r.target_path, r.target_keypoints)):
                known = points[~np.isnan(points).any(1)]
                if not len(known):
                    continue
                held = self.shown.setdefault(str(path), {}).setdefault(
                    tuple(known[0].round(1)), [points.copy(), r.category]
                )
                held[0] = np.where(np.isnan(held[0]), points, held[0])
        for instances in self.shown.values():
            for points, category in instances.values():
                low, high = np.nanmin(points, 0), np.nanmax(points, 0)
                layouts.setdefault(category, []).append((points - low) / max((high - low).max(), 1))
        self.layout = {c: np.nanmedian(np.stack(found), 0) for c, found in layouts.items()}

    def __call__(self, path, hw):
        key = str(path)
        if key in self.cache:
            return self.cache[key]
        rng = np.random.default_rng(zlib.crc32(Path(key).name.encode()))
        image = np.zeros((*hw, 3), np.float32)
        image[..., :2] = texture(rng, hw, 2)
        for points, category in self.shown[key].values():
            layout = self.layout[category]
            known = ~np.isnan(points).any(1) & ~np.isnan(layout).any(1)
            if known.sum() < 3:
                continue
            p = points[known]
            low, side = p.min(0), max(np.ptp(p, axis=0).max(), 4)
            mask = np.zeros(hw, np.uint8)
            cv2.fillConvexPoly(mask, cv2.convexHull(p.astype(np.float32)).astype(np.int32), 1)
            reach = max(int(0.1 * side), 1)
            mask = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1,) * 2))
            y, x = np.nonzero(mask)
            place = spline((p - low) / side, layout[known])
            where = np.concatenate([place((np.c_[x, y][i : i + 20000] - low) / side) for i in range(0, len(x), 20000)])
            image[y, x, :2] = ((where + PAD) / (1 + 2 * PAD)).clip(0, 1)
            image[y, x, 2] = 1
        self.cache[key] = (image * 255).round().astype(np.uint8)
        return self.cache[key]


def texture(rng, hw, channels):
    small = rng.random((max(hw[0] // 24, 2), max(hw[1] // 24, 2), channels)).astype(np.float32)
    return cv2.resize(small, hw[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)


def pasted(rng, image, points, factor):
    """The drawing somewhere in one `factor` times larger."""
    h, w = image.shape[:2]
    ground = texture(rng, (factor * h, factor * w), 3)
    ground[..., 2] = 0
    ground = (ground * 255).astype(np.uint8)
    y, x = rng.integers(0, (factor - 1) * h + 1), rng.integers(0, (factor - 1) * w + 1)
    ground[y : y + h, x : x + w] = image
    return ground, points + np.array([x, y])


def pck(matcher, examples):
    """PCK@0.1 on the box of the true keypoints, per cent, of each (source, target, points, truth)."""
    shares = []
    for source, target, points, truth in examples:
        known = ~np.isnan(points).any(1) & ~np.isnan(truth).any(1)
        box = kbc.Box.around(truth[known])
        off = np.linalg.norm(matcher(source, target, points)[known] - truth[known], axis=1)
        shares.append(100 * np.mean(off <= 0.1 * max(box.longest, 1)))
    return np.array(shares)


def hidden(matcher):
    """The matcher as a bare function, without its similarity maps."""

    def function(source, target, keypoints):
        return matcher.match([kbc.Pair(source, target, keypoints)])[0].keypoints

    return kbc.as_matcher(function, name="function", input_size=SIZE)


ROWS = {
    "no KBC": dict(passes=0),
    "predicted": dict(localizer="predicted", passes=1),
    "fast": {},
    "balanced": dict(budget="balanced"),
    "thorough": dict(budget="thorough"),
    "true window": dict(localizer="given", joint=False, mirror=False, passes=1),
}


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--data", required=True, type=Path)
    a.add_argument("--noise", nargs="+", type=float, default=[0.6, 1.2, 2.0])
    a.add_argument("--pairs", type=int, default=12)
    a.add_argument("--rows", nargs="+", default=[r for r in ROWS if r != "thorough"])
    a.add_argument(
        "--sets",
        nargs="+",
        default=["livestock-small", "livestock-mid", "dlc-openfield", "treadscan", "willow1", "willow3"],
    )
    a.add_argument("--function", action="store_true", help="hide the similarity maps: the matcher as a bare function")
    a.add_argument("--confuse", metavar="KIND=SHARE", help=f"KIND: {', '.join(CONFUSIONS)}")
    a.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="FIELD=VALUE",
        help="KBCConfig fields for every KBC row, e.g. joint=false",
    )
    a = a.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    extra = {k: {"true": True, "false": False}.get(v, v) for k, v in (s.split("=", 1) for s in a.set)}
    for noise in a.noise:
        for name in a.sets:
            willow = name.startswith("willow")
            factor = int(name[6:]) if willow else 1
            data = open_dataset("pfwillow", a.data / "pf-willow") if willow else open_dataset("coco", a.data / name)
            seen = Counter(p for p, _ in {(r.target_path, r.target_box) for r in data})
            drawn, asked = Drawn(data), [r for r in data if seen[r.target_path] == 1 or willow]
            asked = asked[:: max(len(asked) // a.pairs, 1)][: a.pairs]
            encode = encoder(noise)
            if a.confuse:
                kind, share = a.confuse.split("=")
                encode = confused(encode, kind, float(share))
            matcher = kbc.from_features(encode, stride=STRIDE, size=SIZE, normalise=False)
            if a.function:
                inner = matcher
                matcher = hidden(inner)
            kbc_rows = {
                r: kbc.wrap(matcher, **(ROWS[r] | (extra if ROWS[r].get("passes") != 0 else {}))) for r in a.rows
            }
            scores, rng = {r: [] for r in a.rows}, np.random.default_rng(3)
            for record in asked:
                pair = data.load(record)
                source, target = (
                    drawn(record.source_path, pair.source.shape[:2]),
                    drawn(record.target_path, pair.target.shape[:2]),
                )
                points, truth = record.keypoints, record.target_keypoints
                if factor > 1:
                    source, points = pasted(rng, source, points, factor)
                    target, truth = pasted(rng, target, truth, factor)
                known = ~np.isnan(points).any(1) & ~np.isnan(truth).any(1)
                box = kbc.Box.around(truth[known])
                side = max(box.longest, 1)
                for row, wrapped in kbc_rows.items():
                    given = (
                        kbc.Box.centered(box.center, max(box.width, 1), max(box.height, 1))
                        if row == "true window"
                        else None
                    )
                    found = wrapped.match([kbc.Pair(source, target, points, None, given)])[0].keypoints
                    scores[row].append(100 * np.mean(np.linalg.norm(found[known] - truth[known], axis=1) <= 0.1 * side))
            plain = np.array(scores[a.rows[0]])
            print(
                f"noise {noise:<4} {name:16s} {len(plain):3d}  "
                + "  ".join(
                    f"{r} {np.mean(v):5.1f} ({np.mean(np.array(v) < plain - 10):4.0%})" for r, v in scores.items()
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
