"""The things that procedural scenes show: articulated figures of eight categories with named keypoints.

A figure is a stack of painted outlines in its own frame (y down, any unit, facing +x), drawn by `render`.
Two draws of one category differ in the proportions of every part, in joint angles, colours and coats; what tells a
part apart (an eye, a hoof, a lamp's switch, the darker limbs of the far side) stays. All of it is our choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kbc.data.scenes.shapes import (
    BLACK,
    GLASS,
    Paint,
    Part,
    Vector,
    at,
    coat,
    colour,
    contrasting,
    eye,
    heading,
    limb,
    oval,
    polygon,
    smooth,
)
from kbc.geometry import Points

FAR = 0.62  # brightness of limbs on the far side: the one cue that tells them from the near ones


@dataclass(frozen=True, eq=False)
class Figure:
    """Parts from back to front and named keypoints (x, y), in the figure's own frame."""

    parts: tuple[Part, ...]
    keypoints: dict[str, Vector]

    @property
    def points(self) -> Points:
        """(N, 2) the keypoints in their order."""
        return np.array(list(self.keypoints.values()), dtype=np.float64)

    @property
    def outline_points(self) -> Points:
        """(M, 2) the corners of every outline."""
        return np.concatenate([outline for part in self.parts for outline in part.outlines])


def quadruped(rng: np.random.Generator) -> Figure:
    """A horse-, dog- or cow-like animal in profile; far legs are darker."""
    u = rng.uniform
    skin, dark = coat(rng), colour(rng, (0.05, 0.25))
    deep, leg, thick = u(0.2, 0.33), u(0.4, 0.75), u(0.045, 0.085)
    hip, shoulder = at(-0.55, u(-0.06, 0.06)), at(0.5, u(-0.08, 0.05))
    withers, rump = shoulder + at(0, -deep), hip + at(-0.1, -deep * u(0.7, 0.95))
    body = smooth([rump, at(0, -deep * u(0.7, 0.95)), withers, shoulder + at(deep * 0.6, 0.02),
                   shoulder + at(-0.05, deep), at(-0.1, deep * u(0.75, 1.15)), hip + at(0, deep * 0.8),
                   hip + at(-deep * 0.75, 0)])  # fmt: skip
    parts: list[Part] = []
    marks: dict[str, Vector] = {}
    swing = rng.choice([-1, 1], 2)
    for far in (True, False):
        for name, root, way, bend in (("hind", hip, swing[0], 1), ("front", shoulder, swing[1], -1)):
            lean = 90 + (-way if far else way) * u(13, 28)
            knee = root + at(0, deep * 0.5) + heading(lean, leg * 0.5)
            hoof = knee + heading(lean + bend * u(0, 24), leg * 0.5)
            root = root + at(0, deep * 0.35)
            shade = FAR if far else 1.0
            shape = limb([root, knee, hoof], [thick * 1.9, thick * 1.05, thick * 0.8])
            parts.append(Part(shape, skin, shade))
            foot = limb([hoof + at(-0.2 * thick, 0), hoof + at(1.1 * thick, 0.1 * thick)], [thick, thick * 0.8])
            parts.append(Part(foot, dark, shade))
            marks[f"{name}_{'far' if far else 'near'}_hoof"] = hoof
            if not far:
                marks[f"{name}_knee"] = knee
    tail_base = rump + at(-0.1, 0.06)
    tail_bend = tail_base + heading(u(110, 215), u(0.15, 0.25))
    tail_tip = tail_bend + heading(u(80, 200), u(0.15, 0.35))
    parts.append(Part(limb([tail_base, tail_bend, tail_tip], [0.04, 0.03, 0.025]), skin))
    parts.append(Part((oval(tail_tip, u(0.05, 0.09), 0.05),), dark))
    parts.append(Part((body,), skin))
    rise, reach = u(-70, -20), u(0.3, 0.6)
    poll = withers + at(0.06, 0.08) + heading(rise, reach)
    parts.append(Part(limb([shoulder + at(-0.05, -deep * 0.3), poll], [deep * 0.75, u(0.1, 0.15)]), skin))
    down, face = u(5, 55), u(0.22, 0.42)
    nose = poll + heading(down, face)
    parts.append(Part(limb([poll, nose], [u(0.13, 0.18), u(0.07, 0.12)]), skin))
    parts.append(Part((oval(nose + heading(down, 0.05), 0.06, 0.075, down),), contrasting(rng, skin.reshape(-1, 3))))
    ear_base = poll + heading(down - 90, 0.1)
    ear = ear_base + heading(down - u(80, 165), u(0.16, 0.28))
    wide = heading(down, u(0.06, 0.09))
    parts.append(Part((polygon(ear_base - wide, ear, ear_base + wide),), dark))
    gaze = poll + heading(down - 35, 0.1)
    parts += eye(gaze, u(0.035, 0.05))
    marks |= {"nose": nose, "eye": gaze, "ear_tip": ear, "withers": withers, "tail_base": tail_base,
              "tail_tip": tail_tip}  # fmt: skip
    return Figure(tuple(parts), marks)


def bird(rng: np.random.Generator) -> Figure:
    """A bird in profile, wing raised or folded, far leg darker."""
    u = rng.uniform
    skin, feather, horn = coat(rng), coat(rng), colour(rng, (0.6, 0.95))
    long, deep, tilt = u(0.55, 0.75), u(0.28, 0.42), u(-38, 8)
    ahead, up = heading(tilt), heading(tilt - 90)
    tail_base = -ahead * long
    tail_tip = tail_base - heading(tilt + u(-25, 25), u(0.35, 0.8))
    fan, side = u(0.07, 0.2), heading(tilt + 90)
    parts = [Part((smooth([tail_base + side * 0.1, tail_tip + side * fan, tail_tip - side * fan,
                           tail_base - side * 0.1]),), feather)]  # fmt: skip
    marks: dict[str, Vector] = {}
    leg, stance = u(0.3, 0.6), u(0.08, 0.24) * rng.choice([-1, 1])
    for far in (True, False):
        root = at(0, deep * 0.55) - ahead * 0.05
        foot = root + at(-stance if far else stance, leg + (0.0 if far else 0.05))
        shade = FAR if far else 1.0
        parts.append(Part(limb([root, foot], [0.06, 0.03]), horn, shade))
        toes = polygon(foot + at(-0.09, 0.05), foot + at(0, -0.06), foot + at(0.17, 0.05))
        parts.append(Part((toes,), horn, shade))
        marks["far_foot" if far else "near_foot"] = foot
    breast = ahead * long * 0.62 - up * deep * 0.72
    body = smooth([tail_base, -ahead * 0.2 + up * deep * 0.85, ahead * long * 0.6 + up * deep * 0.7,
                   ahead * long * 0.95, breast, -up * deep, -ahead * long * 0.6 - up * deep * 0.55])  # fmt: skip
    parts.append(Part((body,), skin))
    head = ahead * long * 0.75 + up * deep * 0.6 + heading(tilt + u(-75, -15), u(0.1, 0.5))
    size = u(0.19, 0.28)
    parts.append(Part(limb([ahead * long * 0.6, head], [deep * 0.6, size * 0.8]), skin))
    cap = coat(rng)
    look = u(-15, 30)
    parts.append(Part((oval(head, size, size * 0.92),), cap))
    beak = head + heading(look, size + u(0.14, 0.4))
    jaw = heading(look + 90, size * u(0.3, 0.5))
    parts.append(Part((polygon(head + heading(look, size * 0.8) - jaw, beak, head + heading(look, size * 0.8) + jaw),),
                      horn))  # fmt: skip
    gaze = head + heading(look - 40, size * 0.45)
    parts += eye(gaze, size * 0.24)
    crest = head + heading(look - u(100, 150), size + u(0.1, 0.3))
    parts.append(Part((polygon(head + heading(look - 75, size * 0.9), crest, head + heading(look - 165, size * 0.9)),),
                      feather))  # fmt: skip
    shoulder = ahead * long * 0.35 + up * deep * u(0.1, 0.4)
    sweep, span = tilt + 180 + (u(40, 75) if rng.random() < 0.5 else u(-22, 12)), u(0.7, 1.05)
    wing_tip = shoulder + heading(sweep, span)
    bow = heading(sweep - 90, deep * u(0.5, 0.7))
    wing = smooth([shoulder + heading(sweep + 180, 0.12), shoulder + bow * 0.7, (shoulder + wing_tip) / 2 + bow * 0.6,
                   wing_tip, (shoulder + wing_tip) / 2 - bow * 0.9, shoulder - bow * 0.8])  # fmt: skip
    parts.append(Part((wing,), feather))
    parts.append(Part((oval(shoulder, 0.09, 0.09),), contrasting(rng, feather.reshape(-1, 3))))
    marks |= {"beak_tip": beak, "eye": gaze, "crest_tip": crest, "breast": breast, "shoulder": shoulder,
              "wing_tip": wing_tip, "tail_base": tail_base, "tail_tip": tail_tip}  # fmt: skip
    return Figure(tuple(parts), marks)


def person(rng: np.random.Generator) -> Figure:
    """A person turned half to the side: the face looks to +x, the far arm and leg are darker."""
    u = rng.uniform
    shirt, trousers, skin = coat(rng), coat(rng), colour(rng, (0.45, 0.95), 0.45)
    hair, shoe = colour(rng, (0.05, 0.7)), colour(rng, (0.1, 0.9))
    torso, broad, thick = u(0.5, 0.7), u(0.17, 0.27), u(0.07, 0.1)
    lean = u(-14, 14)
    pelvis = at(0, 0)
    neck = pelvis + heading(lean - 90, torso)
    across = heading(lean, broad)
    marks: dict[str, Vector] = {}
    far_limbs: list[Part] = []
    near_limbs: list[Part] = []
    stride, reach = rng.choice([-1, 1]), rng.choice([-1, 1])
    for far, limbs in ((True, far_limbs), (False, near_limbs)):
        side, shade = ("far", FAR) if far else ("near", 1.0)
        turn = -1 if far else 1
        root = pelvis + at(-turn * 0.07, 0)
        leg, swing = u(0.38, 0.5), 90 + turn * stride * u(8, 38)
        knee = root + heading(swing, leg)
        foot = knee + heading(swing + u(0, 38), leg)
        limbs.append(Part(limb([root, knee, foot], [thick * 1.35, thick, thick * 0.75]), trousers, shade))
        limbs.append(Part(limb([foot, foot + at(0.12, 0.02)], [0.075, 0.05]), shoe, shade))
        top = neck - turn * across * 0.75 + heading(lean + 90, 0.09)
        arm, raised = u(0.27, 0.36), 90 + turn * reach * u(20, 85)
        elbow = top + heading(raised, arm)
        hand = elbow + heading(raised - u(0, 75), arm)
        limbs.append(Part(limb([elbow, hand], [thick * 0.75, thick * 0.6]), skin, shade))
        limbs.append(Part((oval(hand, 0.07, 0.07),), skin, shade))
        limbs.append(Part(limb([top, elbow], [thick * 0.95, thick * 0.85]), shirt, shade))
        marks |= {f"{side}_shoulder": top, f"{side}_elbow": elbow, f"{side}_hand": hand, f"{side}_knee": knee,
                  f"{side}_foot": foot}  # fmt: skip
    waist = heading(lean, broad * u(0.65, 0.95))
    trunk = smooth([neck - across, neck + across, pelvis + waist + at(0, 0.08), pelvis - waist + at(0, 0.08)])
    belt = limb([pelvis - waist * 0.8, pelvis + waist * 0.8], [0.045, 0.045])
    round_, nod = u(0.15, 0.21), lean + u(-12, 12)
    head = neck + heading(nod - 90, round_ + 0.1)
    crown = head + heading(nod - 90, round_)
    nose = head + heading(nod + 10, round_ * 1.12)
    face = [
        Part(limb([neck, head], [0.075, 0.075]), skin),
        Part((oval(head, round_ * 0.88, round_, nod),), skin),
        Part((oval(nose - heading(nod + 10, 0.03), 0.05, 0.035, nod),), skin),
        Part((smooth([crown + heading(nod, round_ * 0.55), crown + heading(nod - 90, u(0.01, 0.08)),
                      head - heading(nod, round_ * u(1.0, 1.25)), head - heading(nod, round_ * 0.4)]),), hair),
        *eye(head + heading(nod - 12, round_ * 0.45), round_ * 0.2),
    ]  # fmt: skip
    parts = [*far_limbs, Part((trunk,), shirt), Part(belt, contrasting(rng, shirt.reshape(-1, 3))), *near_limbs, *face]
    return Figure(tuple(parts), marks | {"crown": crown, "nose": nose, "pelvis": pelvis})


def car(rng: np.random.Generator) -> Figure:
    """A car in profile: saloon, estate, van or coupé by proportions; bonnet to +x."""
    u = rng.uniform
    paint, trim = coat(rng), colour(rng, (0.08, 0.3), 0.3)
    tall, sill, wheel = u(0.2, 0.3), 0.0, u(0.15, 0.22)
    cabin, ratio = u(0.2, 0.36), u(-0.5, -0.1)
    front, rear = at(1.0, -tall * u(0.3, 0.6)), at(-1.0, -tall * u(0.4, 0.7))
    screen_base, screen_top = at(u(0.28, 0.5), -tall), at(u(-0.02, 0.25), -tall - cabin)
    roof_rear = at(ratio - u(0.1, 0.35), -tall - cabin * u(0.9, 1.0))
    rear_base = at(max(roof_rear[0] - u(0.02, 0.35), -0.97), -tall * u(0.95, 1.05))
    hull = polygon(at(0.98, sill), front, at(0.92, -tall * 0.72), screen_base, rear_base, at(-0.97, -tall * 0.85), rear,
                   at(-0.98, sill))  # fmt: skip
    roof = polygon(screen_base, screen_top, roof_rear, rear_base)
    middle = roof.mean(axis=0)
    glass = middle + (roof - middle) * at(0.84, 0.72)
    pillar = (screen_top + roof_rear) / 2
    parts = [
        Part((roof,), paint),
        Part((glass,), GLASS, u(0.5, 1.0)),
        Part(limb([pillar, at(pillar[0], -tall)], [0.022, 0.022]), paint, rim=False),
        Part((hull,), paint),
        Part(limb([at(-0.97, -0.02), at(0.97, -0.02)], [0.035, 0.035]), trim),
    ]
    lamp, tail = at(0.91, -tall * 0.52), at(-0.92, -tall * 0.62)
    parts.append(Part((oval(lamp, 0.075, 0.05),), np.array([255, 240, 170], np.uint8)))
    parts.append(Part((oval(tail, 0.045, 0.075),), np.array([205, 30, 30], np.uint8)))
    handle = at(u(-0.3, -0.12), -tall * 0.74)
    parts.append(Part(limb([handle - at(0.05, 0), handle + at(0.05, 0)], [0.022, 0.022]),
                      contrasting(rng, paint.reshape(-1, 3)), rim=False))  # fmt: skip
    parts.append(Part((oval(screen_base + at(-0.06, -0.03), 0.07, 0.045),), trim))
    marks = {"headlight": lamp, "tail_light": tail, "screen_base": screen_base, "screen_top": screen_top,
             "roof_rear": roof_rear, "rear_base": rear_base, "handle": handle}  # fmt: skip
    hub = colour(rng, (0.6, 0.95), 0.3)
    for name, x in (("front_wheel", u(0.52, 0.68)), ("rear_wheel", u(-0.7, -0.55))):
        centre = at(x, sill + u(0.0, 0.03))
        parts.append(Part((oval(centre, wheel, wheel),), BLACK))
        parts.append(Part((oval(centre, wheel * 0.58, wheel * 0.58),), hub))
        parts.append(Part((oval(centre, wheel * 0.15, wheel * 0.15),), BLACK, rim=False))
        marks[name] = centre
    aerial = roof_rear + at(0.06, 0.0)
    aerial_tip = aerial + heading(-90 - u(5, 40), u(0.15, 0.32))
    parts.append(Part(limb([aerial, aerial_tip], [0.02, 0.016]), trim, rim=False))
    return Figure(tuple(parts), marks | {"aerial_tip": aerial_tip})


def fish(rng: np.random.Generator) -> Figure:
    """A fish in profile, its spine bent."""
    u = rng.uniform
    skin, fin, bend = coat(rng), coat(rng), u(-0.3, 0.3)

    def bent(points: Points) -> Points:
        x = points[..., 0:1]
        return np.concatenate([x, points[..., 1:] + bend * (x - 0.3) ** 2], axis=-1)

    deep, belly = u(0.25, 0.5), u(0.25, 0.5)
    mouth, stalk = at(1.0, u(-0.05, 0.1)), at(-0.72, 0)
    lobe, fork = u(0.25, 0.5), u(0.0, 0.22)
    tail_top, tail_bottom = at(-1.0 - u(0, 0.2), -lobe), at(-1.0 - u(0, 0.2), lobe * u(0.7, 1.1))
    dorsal = at(u(-0.2, 0.1), -deep - u(0.14, 0.4))
    dorsal_front = at(u(0.28, 0.42), -deep * 0.82)
    anal = at(u(-0.45, -0.2), belly + u(0.08, 0.3))
    body = smooth([mouth, at(0.6, -deep * 0.72), at(0.15, -deep), at(-0.35, -deep * 0.62), stalk + at(0, -0.08),
                   stalk + at(0, 0.08), at(-0.35, belly * 0.62), at(0.15, belly), at(0.65, belly * 0.6)])  # fmt: skip
    gaze = at(0.68, -deep * 0.28)
    flap = at(u(0.28, 0.36), u(0.0, 0.1))
    pectoral = flap + heading(u(115, 190), u(0.25, 0.42))
    wide = heading(np.degrees(np.arctan2(*(pectoral - flap)[::-1])) + 90, u(0.07, 0.11))
    gill = limb([at(0.46, -deep * 0.42), at(0.4, 0.02), at(0.46, belly * 0.42)], [0.02, 0.026, 0.02])
    tail = smooth([stalk + at(0.06, -0.06), tail_top, at(-1.0 + fork, 0), tail_bottom, stalk + at(0.06, 0.06)])
    shapes: list[tuple[tuple[Points, ...], Paint, float]] = [
        ((tail,), fin, 1),
        ((polygon(dorsal_front, dorsal, at(-0.5, -deep * 0.4)),), fin, 1),
        ((polygon(at(0.05, belly * 0.85), anal, at(-0.5, belly * 0.35)),), fin, 0.8),
        ((body,), skin, 1),
        (gill, contrasting(rng, skin.reshape(-1, 3)), 1),
        ((smooth([flap - wide * 0.6, pectoral - wide, pectoral, pectoral + wide, flap + wide * 0.6]),), fin, 1.1),
        (limb([mouth - at(0.1, -0.04), mouth], [0.02, 0.045]), contrasting(rng, skin.reshape(-1, 3)), 1),
    ]  # fmt: skip
    parts = [Part(tuple(bent(o) for o in outlines), paint, shade) for outlines, paint, shade in shapes]
    parts += eye(bent(gaze), u(0.055, 0.09))
    marks = {"mouth": mouth, "eye": gaze, "gill": at(0.4, 0.02), "dorsal_front": dorsal_front, "dorsal_tip": dorsal,
             "tail_stalk": stalk, "tail_top": tail_top, "tail_bottom": tail_bottom, "belly_fin": anal,
             "pectoral_tip": pectoral}  # fmt: skip
    return Figure(tuple(parts), {name: bent(point) for name, point in marks.items()})


def insect(rng: np.random.Generator) -> Figure:
    """A grasshopper- or ant-like insect in profile; three near legs carry keypoints, the far ones are darker."""
    u = rng.uniform
    shell, plate, horn = coat(rng), coat(rng), colour(rng, (0.15, 0.6))
    waist, raised = at(-0.2, 0.0), u(-22, 18)
    rear = waist - heading(raised, u(0.7, 1.0))
    fat = u(0.15, 0.27)
    chest = at(0.12, u(-0.08, 0.0))
    head = chest + heading(u(-40, 5), u(0.4, 0.5))
    size = u(0.14, 0.21)
    parts: list[Part] = []
    marks: dict[str, Vector] = {}
    height = u(0.42, 0.62)
    for far in (True, False):
        shade = FAR if far else 1.0
        for name, x, lean in (("front", 0.25, u(0.1, 0.35)), ("middle", 0.08, u(-0.18, 0.12)),
                              ("hind", -0.12, u(-0.62, -0.3))):  # fmt: skip
            root = at(x, 0.06)
            lift = u(0.28, 0.5) if name == "hind" else u(-0.02, 0.1)
            knee = root + at(lean * 0.6, -lift if name == "hind" else height * 0.35 - lift)
            foot = at(x + lean * u(1.0, 1.35) + (0.06 if far else 0.0), height)
            fat_thigh = 0.075 if name == "hind" else 0.045
            parts.append(Part(limb([root, knee], [fat_thigh, 0.04]), plate if name == "hind" else horn, shade))
            parts.append(Part(limb([knee, foot, foot + at(0.08, 0.0)], [0.035, 0.026, 0.024]), horn, shade))
            if not far:
                marks[f"{name}_foot"] = foot
                if name == "hind":
                    marks["hind_knee"] = knee
        if far:
            along, across = heading(raised, 1.0), heading(raised + 90, 1.0)
            middle = (waist + rear) / 2
            parts.append(Part((smooth([waist, middle - across * fat, rear + along * 0.12 - across * fat * 0.6, rear,
                                       middle + across * fat * 0.9]),), shell))  # fmt: skip
            sting = rear - heading(raised + u(-20, 20), u(0.1, 0.22))
            parts.append(Part((polygon(rear - across * 0.06, sting, rear + across * 0.06),), horn))
            parts.append(Part((oval(chest, u(0.27, 0.33), u(0.17, 0.24), -8),), plate))
    parts.append(Part((oval(head, size * 1.05, size, 20),), shell))
    jaw = head + heading(u(45, 80), size + u(0.07, 0.13))
    parts.append(Part((polygon(head + heading(20, size * 0.8), jaw, head + heading(110, size * 0.8)),), horn))
    gaze = head + heading(-15, size * 0.5)
    parts += eye(gaze, size * 0.33)
    feeler_root = head + heading(-65, size * 0.9)
    bow = feeler_root + heading(u(-100, -50), u(0.2, 0.32))
    feeler = bow + heading(u(-50, 25), u(0.2, 0.35))
    parts.append(Part(limb([feeler_root, bow, feeler], [0.028, 0.024, 0.02]), horn))
    parts.append(Part((oval(feeler, 0.045, 0.045),), contrasting(rng, horn)))
    saddle = chest + at(-0.02, -0.17)
    parts.append(Part((oval(saddle, 0.09, 0.055),), contrasting(rng, plate.reshape(-1, 3))))
    marks |= {"eye": gaze, "jaw": jaw, "feeler_bow": bow, "feeler_tip": feeler, "saddle": saddle, "waist": waist,
              "sting": sting}  # fmt: skip
    return Figure(tuple(parts), marks)


def lamp(rng: np.random.Generator) -> Figure:
    """A desk lamp with two arms, a shade with its bulb, a switch in front and a cable behind."""
    u = rng.uniform
    shade_coat, metal, foot = coat(rng), colour(rng, (0.35, 0.9), 0.4), coat(rng)
    wide = u(0.28, 0.45)
    pivot = at(u(-0.1, 0.05), -0.12)
    elbow = pivot + heading(u(-135, -95), u(0.6, 0.95))
    neck = elbow + heading(u(-60, 5), u(0.55, 0.85))
    aim = u(35, 90)
    back = neck - heading(aim, 0.1)
    ahead, side = heading(aim), heading(aim + 90)
    long, flare = u(0.3, 0.5), u(0.2, 0.34)
    mouth = back + ahead * (long + 0.08)
    rim_low, rim_high = mouth + side * flare, mouth - side * flare
    bulb = mouth + ahead * 0.03
    plug = at(-wide - u(0.3, 0.6), u(-0.02, 0.06))
    switch = at(wide * 0.62, -0.13)
    bar, joint = u(0.03, 0.05), u(0.065, 0.095)
    bright = np.array([255, 236, 150], np.uint8)
    parts = [
        Part(limb([at(-wide * 0.8, -0.02), at(-wide - 0.15, u(-0.1, 0.05)), plug], [0.022, 0.022, 0.022]), BLACK),
        Part(limb([plug, plug + at(-0.1, 0)], [0.065, 0.05]), colour(rng, (0.6, 0.95))),
        Part((smooth([at(-wide, 0.04), at(-wide * 0.7, -0.1), at(wide * 0.7, -0.1), at(wide, 0.04)]),), foot),
        Part(limb([switch, switch + at(0, 0.03)], [0.06, 0.06]), np.array([205, 40, 40], np.uint8)),
        Part(limb([pivot, elbow], [bar * 1.2, bar]), metal),
        Part(limb([elbow, neck], [bar, bar * 0.9]), metal, 0.85),
        Part((oval(pivot, joint, joint),), contrasting(rng, metal)),
        Part((oval(elbow, joint, joint),), contrasting(rng, metal)),
        Part((oval(bulb, flare * 0.42, flare * 0.5, aim),), bright),
        Part((polygon(back - side * 0.08, rim_high, rim_low, back + side * 0.08),), shade_coat),
        Part(limb([back - ahead * 0.06, back], [0.06, 0.09]), metal),
    ]
    marks = {"plug": plug, "switch": switch, "base_rear": at(-wide, 0.04), "pivot": pivot, "elbow": elbow,
             "shade_back": back - ahead * 0.06, "rim_high": rim_high, "rim_low": rim_low, "bulb": bulb}  # fmt: skip
    return Figure(tuple(parts), marks)


def plant(rng: np.random.Generator) -> Figure:
    """A flower in a jug: spout and bud on one side, handle and the big leaf on the other."""
    u = rng.uniform
    green, clay, petal = colour(rng, (0.3, 0.75)), coat(rng), coat(rng)
    leaf_coat = coat(rng, green)
    wide, low = u(0.24, 0.36), u(0.42, 0.62)
    rim = at(0, 0)
    lean = u(-16, 16)
    fork = rim + heading(-90 + lean, u(0.3, 0.45))
    bloom = fork + heading(-90 + lean + u(-22, 12), u(0.4, 0.65))
    bud = fork + heading(u(-62, -22), u(0.3, 0.5))
    knot = rim + heading(-90 + lean, u(0.1, 0.18))
    leaf = knot + heading(u(185, 235), u(0.5, 0.75))
    along = leaf - knot
    across = np.array([-along[1], along[0]]) * u(0.2, 0.32)
    spout = at(wide + u(0.12, 0.26), -u(0.0, 0.12))
    handle = at(-wide - u(0.14, 0.26), low * u(0.35, 0.5))
    emblem = at(0.0, low * u(0.45, 0.6))
    stem = u(0.025, 0.045)
    parts = [
        Part(limb([rim + at(0, 0.1), knot, fork, bloom], [stem * 1.3, stem * 1.2, stem, stem]), green),
        Part(limb([fork, bud], [stem, stem * 0.8]), green, 0.85),
        Part((smooth([knot, knot + along * 0.5 + across, leaf, knot + along * 0.5 - across]),), leaf_coat),
        Part(limb([knot, knot + along * 0.9], [0.016, 0.01]), green, 0.6, rim=False),
        Part((oval(bud, 0.085, 0.12, u(-30, 30)),), petal),
        Part(limb([at(-wide * 0.8, 0.1), handle, at(-wide * 0.7, low * 0.8)], [0.04, 0.045, 0.04]), clay, 0.85),
        Part((polygon(at(wide * 0.6, 0.0), spout, at(wide * 0.8, low * 0.5)),), clay, 0.9),
        Part((smooth([at(-wide, 0.0), at(wide, 0.0), at(wide * u(1.0, 1.25), low * 0.6), at(wide * 0.7, low),
                      at(-wide * 0.7, low), at(-wide * u(1.0, 1.25), low * 0.6)]),), clay),
        Part(limb([at(-wide, 0.02), at(wide, 0.02)], [0.04, 0.04]), contrasting(rng, clay.reshape(-1, 3))),
        Part((oval(emblem, 0.08, 0.08),), contrasting(rng, clay.reshape(-1, 3))),
    ]  # fmt: skip
    count, size, turn = int(rng.integers(5, 9)), u(0.12, 0.19), u(0, 60)
    ring = tuple(oval(bloom + heading(turn + 360 * i / count, size), size * 0.8, size * 0.5, turn + 360 * i / count)
                 for i in range(count))  # fmt: skip
    parts += [Part((outline,), petal, 0.85 + 0.2 * (i % 2)) for i, outline in enumerate(ring)]
    parts.append(Part((oval(bloom, size * 0.5, size * 0.5),), contrasting(rng, petal.reshape(-1, 3))))
    foot = at(0, low)
    marks = {"bloom": bloom, "bud": bud, "fork": fork, "leaf_tip": leaf, "leaf_base": knot, "spout": spout,
             "handle": handle, "emblem": emblem, "foot": foot}  # fmt: skip
    return Figure(tuple(parts), marks)


CATEGORIES: dict[str, Callable[[np.random.Generator], Figure]] = {
    category.__name__: category for category in (quadruped, bird, person, car, fish, insect, lamp, plant)
}
"""Category name → drawing of one instance. The keypoints' names and order are the same for every draw."""
