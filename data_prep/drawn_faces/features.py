"""Draws the features of a face: wrinkles, beard, eyes, nose, mouth, glasses and earrings.

`p` holds a person's proportions in head units; see `draw`.
"""

import numpy as np

from data_prep.drawn_faces.pen import Pen, Points, mirrored, mix, moved, ring, smooth
from data_prep.drawn_faces.person import Person, View


def head_outline(p: dict[str, float], grow: float = 0.0) -> Points:
    """The contour of the head, clockwise from the right temple: jaw, then skull. `[N, 2]`."""
    angle = np.linspace(0, np.pi, 22)
    power = 2 / p["square"]
    x = np.abs(np.cos(angle)) ** power * np.sign(np.cos(angle))
    y = np.sin(angle) ** power
    jaw = np.stack(
        [
            p["width"] * x * (1 - p["taper"] * y + p["cheeks"] * np.sin(np.pi * y)),
            p["chin"] * y,
        ],
        1,
    )
    skull = np.stack([-p["width"] * np.cos(angle), -1.1 * np.sin(angle)], 1)[1:-1]
    return np.concatenate([jaw, skull]) * (1 + grow)


def draw_lines(pen: Pen, person: Person, p: dict[str, float], rng: np.random.Generator) -> None:
    """Wrinkles: forehead, crow's feet, nose to mouth; age spots, freckles, teenage spots."""
    strength = p["lines"]
    dark = mix(person.skin, (50, 20, 15), 0.42)
    colour = mix(person.skin, dark, min(1, 0.25 + strength))
    if strength > 0.15:
        for k in range(1 + (strength > 0.35) + (strength > 0.65)):
            y, half = -0.42 - 0.13 * k, 0.36 + 0.1 * strength
            arc = np.array([(-1, 0.04), (-0.5, 0), (0, 0.02), (0.5, 0), (1, 0.04)]) * (half, 1)
            pen.line(smooth(moved(arc, 0, y), closed=False), colour, 0.022 + 0.012 * strength)
        bag_curve = smooth([(-0.15, 0.02), (0, 0.07), (0.15, 0.02)], closed=False)
        for side in (-1, 1):
            ends = np.array(
                [(p["nostrils"] + 0.08, p["nose_y"] - 0.08), (p["mouth"] + 0.1, p["mouth_y"])]
            )
            fold = np.insert(ends, 1, moved(ends, 0.07, -0.02).mean(0), 0)
            pen.line(smooth(fold, closed=False) * (side, 1), colour, 0.022 + 0.014 * strength)
            bag = moved(bag_curve, p["eye_x"], p["eye_y"] + p["eye"])
            pen.line(bag * (side, 1), colour, 0.02 + 0.008 * strength)
            for slope in (-0.1, 0.0, 0.1)[: 1 + round(2 * strength)]:
                x = p["eye_x"] + p["eye"] + 0.06
                foot = [(x, p["eye_y"] + slope * 0.4), (x + 0.12, p["eye_y"] + slope * 1.3)]
                pen.line(np.array(foot) * (side, 1), colour, 0.022)
    if strength > 0.85:
        pen.line(np.array([(-0.07, -0.24), (-0.05, -0.12)]), colour, 0.025)
        pen.line(np.array([(0.07, -0.24), (0.05, -0.12)]), colour, 0.025)
    if person.freckles:
        acne = 2.6 < person.stage < 3.7
        tint = (214, 84, 76) if acne else dark
        for x, y in rng.uniform((-0.6, -0.16), (0.6, 0.22), (10, 2)):
            radius = 0.032 if acne else 0.02
            pen.ellipse(x, y + p["nose_y"] - 0.05, radius, radius, mix(person.skin, tint, 0.6))


def draw_beard(pen: Pen, person: Person, p: dict[str, float]) -> None:
    """Beard, moustache or stubble, if the person has one."""
    if person.beard == "none":
        return
    colour = mix(person.hair, (220, 220, 224), person.grey)
    wide, chin, mouth_y, nose_y = p["width"], p["chin"], p["mouth_y"], p["nose_y"]
    if person.beard in ("full", "stubble"):
        jaw = head_outline(p, 0.04 if person.beard == "full" else 0.0)
        jaw = jaw[(jaw[:, 1] > 0.1) & (jaw[:, 0] > 0)]
        cheek = [
            (0.0, nose_y + 0.08),
            (0.3, nose_y + 0.1),
            (0.52, mouth_y - 0.1),
            (wide * 0.86, 0.14),
        ]
        half = np.concatenate([cheek, jaw, [(0.0, jaw[:, 1].max())]])
        pen.fill(mirrored(half), colour, 1.0 if person.beard == "full" else 0.3)
    if person.beard in ("moustache", "goatee"):
        top = nose_y + 0.07
        shape = [(0.0, top), (0.2, top + 0.02), (p["mouth"] + 0.1, mouth_y + 0.02)]
        pen.fill(smooth(mirrored([*shape, (0.1, mouth_y - 0.05), (0.0, mouth_y - 0.06)])), colour)
    if person.beard == "goatee":
        y = (mouth_y + chin) / 2 + 0.1
        pen.ellipse(0, y + 0.04, 0.24, (chin - mouth_y) / 2, colour)


def draw_eyes(pen: Pen, person: Person, view: View, p: dict[str, float]) -> None:
    """Eyes with lids, lashes and brows."""
    y, rx = p["eye_y"], p["eye"]
    ry = rx * p["open"]
    ink = mix(person.skin, (30, 16, 14), 0.85)
    brow = mix(mix(person.hair, (30, 22, 20), 0.35), (205, 205, 210), 0.8 * person.grey)
    brow = mix(person.skin, brow, min(1, 0.5 + 0.3 * person.stage))
    lid = mix(person.skin, (90, 40, 30), 0.12)
    angle = np.linspace(np.pi, 2 * np.pi, 14)
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    for side in (-1, 1):
        x = side * p["eye_x"]
        pen.ellipse(x, y, rx, ry, (252, 250, 246))
        gaze = 0.22 * rx * view.gaze
        iris = min(rx * 0.66, ry * 0.98)
        pen.ellipse(x + gaze, y, iris, iris, person.eyes)
        pen.ellipse(x + gaze, y, iris * 0.52, iris * 0.52, (16, 12, 14))
        pen.ellipse(x + gaze + 0.3 * iris, y - 0.35 * iris, iris * 0.28, iris * 0.28, (255,) * 3)
        # The upper lid comes down with age.
        edge = upper * (rx, ry * (1 - 0.55 * p["lines"]))
        pen.fill(moved(np.concatenate([upper * (rx, ry) * 1.05, edge[::-1]]), x, y), lid)
        pen.line(moved(edge, x, y), ink, 0.045 if person.lashes else 0.03)
        if person.lashes:
            for k in (0.55, 0.85):
                root = np.array((np.cos(k) * rx, -np.sin(k) * ry))
                tip = root * (1.35, 1.45)
                pen.line(moved(np.array([root, tip]) * (side, 1), x, y), ink, 0.035)
        height = y - ry - 0.13 - 0.02 * view.smile
        arch = [(-0.95, 0.0), (-0.2, -0.06), (0.5, -0.05), (1.2, 0.09)]
        curve = smooth(arch, closed=False) * (side * max(rx, 0.17), 1)
        pen.line(moved(curve, x, height), brow, p["brow"] * 1.5)


def draw_nose(pen: Pen, person: Person, p: dict[str, float]) -> None:
    """The nose, with a bridge from the teens on."""
    dark = mix(person.skin, (70, 25, 20), 0.4)
    y, half = p["nose_y"], p["nostrils"]
    base = [(-half * 1.25, y - 0.07), (-half, y + 0.02), (0, y + 0.055), (half, y + 0.02)]
    pen.line(smooth([*base, (half * 1.25, y - 0.07)], closed=False), dark, 0.035)
    if person.stage > 2.5:
        bridge = [(half * 0.75, p["eye_y"] + 0.05), (half * 0.6, y - 0.2), (half * 1.2, y - 0.06)]
        pen.line(smooth(bridge, closed=False), mix(person.skin, dark, 0.55), 0.025)


def draw_mouth(pen: Pen, person: Person, view: View, p: dict[str, float]) -> None:
    """The mouth, closed or open by the smile; or a pacifier."""
    y, half = p["mouth_y"], p["mouth"]
    ink = mix(person.skin, (90, 20, 25), 0.6)
    if person.dummy:
        pen.ellipse(0, y, 0.27, 0.17, person.clothes)
        pen.ellipse(0, y, 0.09, 0.09, mix(person.clothes, (255, 255, 255), 0.6))
        return
    curve = 0.04 + 0.1 * view.smile
    lips = (196, 48, 72) if person.lipstick else mix(person.skin, (186, 70, 72), 0.5)
    if view.smile > 0.6:
        corner, low = (half, y - curve / 2), y + curve * 1.3
        shape = smooth(
            [(-half, corner[1]), (0, y - 0.01), corner, (half * 0.55, low), (-half * 0.55, low)]
        )
        pen.fill(shape, (120, 36, 40))
        if person.stage > 0.4:
            top = y - curve * 0.2
            pen.fill(mirrored([(half * 0.66, top), (half * 0.5, y + 0.05)]), (250, 248, 240))
        if person.gap:
            hole = [(0.0, y - 0.04), (0.08, y - 0.04), (0.08, y + 0.055), (0.0, y + 0.055)]
            pen.fill(np.array(hole), (90, 26, 30))
        pen.line(shape, lips, 0.07 if person.lipstick else 0.035, closed=True)
        return
    if person.gender == 0 or person.stage < 0.5:
        full = 0.09 if person.lipstick else 0.06
        lower = [(half * 0.9, y - curve), (half * 0.4, y + full * 1.2)]
        lip = mirrored([(0, y - full * 0.7), (0.07, y - full), *lower])
        pen.fill(smooth(lip), lips)
    gap = [(-half, y - curve), (0, y + curve * 0.6), (half, y - curve)]
    pen.line(smooth(gap, closed=False), ink, 0.04)


def draw_extras(pen: Pen, person: Person, p: dict[str, float]) -> None:
    """Earrings and glasses."""
    if person.earrings and person.headwear != "scarf":
        for side in (-1, 1):
            x, y = side * (p["width"] + 0.08), p["eye_y"] + 0.14 + p["ear"]
            pen.ellipse(x, y + 0.07, 0.075, 0.1, (236, 196, 70))
            pen.ellipse(x, y + 0.05, 0.03, 0.04, (255, 246, 200))
    if person.glasses:
        frame = mix(person.clothes, (30, 30, 36), 0.75)
        rx, ry, y = p["width"] * 0.36, 0.25, p["eye_y"] + 0.03
        for side in (-1, 1):
            rim = moved(ring(rx, ry), side * p["eye_x"] * 1.03, y)
            pen.fill(rim, (235, 245, 250), 0.16)
            pen.line(rim, frame, 0.05, closed=True)
            temple = [(side * (p["eye_x"] + rx), y - 0.05), (side * p["width"] * 1.02, y - 0.06)]
            pen.line(np.array(temple), frame, 0.045)
        pen.line(np.array([(-p["eye_x"] + rx, y - 0.04), (p["eye_x"] - rx, y - 0.04)]), frame, 0.05)
