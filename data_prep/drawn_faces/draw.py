"""Draws a cartoon face whose features depend on age group and gender."""

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.drawn_faces.features import (
    draw_beard,
    draw_extras,
    draw_eyes,
    draw_lines,
    draw_mouth,
    draw_nose,
    head_outline,
)
from data_prep.drawn_faces.hair import Hair
from data_prep.drawn_faces.pen import Pen, mirrored, mix, moved, ring, smooth
from data_prep.drawn_faces.person import Person, View

Image = NDArray[np.uint8]  # [S, S, 3], RGB

_SUPERSAMPLING = 2

# Proportions per age group; a person's apparent age interpolates between them.
_PROPORTIONS = {
    "width": (0.98, 0.94, 0.90, 0.86, 0.84, 0.85, 0.87, 0.86),
    "chin": (0.84, 0.90, 0.98, 1.07, 1.12, 1.14, 1.16, 1.17),
    "cheeks": (0.16, 0.10, 0.05, 0.0, 0.0, 0.01, 0.04, 0.06),
    "taper": (0.10, 0.16, 0.20, 0.22, 0.20, 0.16, 0.12, 0.12),
    "eye_y": (0.24, 0.16, 0.09, 0.02, -0.03, -0.04, -0.04, -0.02),
    "eye": (0.26, 0.225, 0.195, 0.175, 0.16, 0.155, 0.15, 0.14),
    "open": (0.95, 0.88, 0.80, 0.70, 0.66, 0.60, 0.54, 0.46),
    "nose": (0.24, 0.28, 0.34, 0.42, 0.46, 0.48, 0.50, 0.54),
    "nostrils": (0.07, 0.085, 0.105, 0.125, 0.135, 0.145, 0.16, 0.185),
    "mouth": (0.20, 0.24, 0.28, 0.31, 0.33, 0.33, 0.33, 0.31),
    "brow": (0.022, 0.030, 0.040, 0.050, 0.055, 0.058, 0.060, 0.060),
    "neck": (0.34, 0.36, 0.40, 0.44, 0.48, 0.50, 0.52, 0.50),
    "shoulders": (0.72, 0.90, 1.06, 1.28, 1.55, 1.64, 1.70, 1.50),
    "ear": (0.17, 0.18, 0.19, 0.20, 0.20, 0.21, 0.225, 0.25),
    "lines": (0.0, 0.0, 0.0, 0.0, 0.08, 0.46, 0.76, 1.0),
}


def draw_face(person: Person, view: View, size: int = 128) -> Image:
    """Draws a person in a view: RGB uint8 [size, size, 3]."""
    rng = np.random.default_rng(view.seed)
    p = {k: float(np.interp(person.stage, range(8), v)) for k, v in _PROPORTIONS.items()}
    man, grown = person.gender == 1, min(max((person.stage - 2.2) / 1.6, 0), 1)
    width, jaw, eye, distance, nose, mouth = person.traits
    p["width"] *= 1 + 0.03 * width + 0.03 * man * grown
    p["taper"] += 0.02 * jaw + (-0.09 if man else 0.06) * grown
    p["eye"] *= 1 + 0.06 * eye + (-0.04 if man else 0.07) * grown
    p["nostrils"] *= 1 + 0.08 * nose + (0.1 if man else -0.06) * grown
    p["mouth"] *= 1 + 0.06 * mouth
    p["brow"] *= 1 + (0.45 if man else -0.35) * min(1, 0.4 + grown)
    p["neck"] *= 1 + (0.22 if man else -0.22) * grown
    p["shoulders"] *= 1 + (0.12 if man else -0.16) * grown
    p["eye_x"] = p["width"] * 0.44 * (1 + 0.04 * distance)
    p["nose_y"] = p["eye_y"] + p["nose"]
    p["mouth_y"] = p["nose_y"] + 0.42 * (p["chin"] - p["nose_y"])
    p["square"] = 2.0 + 0.5 * man * grown

    canvas = _background(view, size * _SUPERSAMPLING, rng)
    pen = Pen(canvas, view, p["width"])
    hair = Hair(person, p)
    hair.back(pen)
    _body(pen, person, p)
    _head(pen, person, p)
    pen.canvas[:] = _shade(canvas, person, view, p)
    draw_lines(pen, person, p, rng)
    draw_beard(pen, person, p)
    draw_eyes(pen, person, view, p)
    draw_nose(pen, person, p)
    draw_mouth(pen, person, view, p)
    hair.front(pen)
    draw_extras(pen, person, p)
    return _finish(canvas, view, size, rng)


def _background(view: View, size: int, rng: np.random.Generator) -> Image:
    """A smooth gradient with a few soft discs, `[size, size, 3]`."""
    small = np.empty((2, 2, 3), np.float32)
    small[0], small[1] = view.background
    small[:, 1] *= rng.uniform(0.8, 1.2)
    canvas: NDArray = cv2.resize(small, (32, 32), interpolation=cv2.INTER_LINEAR)
    for _ in range(rng.integers(0, 6)):
        x, y, radius = rng.integers(0, 32), rng.integers(0, 32), rng.integers(3, 8)
        shade = rng.uniform(0.85, 1.18)
        cv2.circle(canvas, (int(x), int(y)), int(radius), (canvas[y, x] * shade).tolist(), -1)
    canvas = cv2.GaussianBlur(canvas, (0, 0), 1.2)
    canvas = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_CUBIC)
    return canvas.clip(0, 255).astype(np.uint8)


def _body(pen: Pen, person: Person, p: dict[str, float]) -> None:
    neck, wide, chin = p["neck"], p["shoulders"], p["chin"]
    top = chin + 0.22
    clothes, edge = person.clothes, mix(person.clothes, (20, 20, 30), 0.35)
    skin = mix(person.skin, (60, 20, 10), 0.22)
    pen.fill(mirrored([(neck, 0.3), (neck, top + 0.1), (neck * 0.9, top + 0.3)]), skin)
    shoulder = [(neck * 0.95, top - 0.02), (wide * 0.72, top + 0.16), (wide, top + 0.5)]
    half = [(neck * 0.5, top + 0.1), *shoulder, (wide, 3.0), (wide, 3.2)]
    pen.fill(smooth(mirrored(half)), clothes)
    if person.outfit == "stripes":
        for y in (0.25, 0.5, 0.75, 1.0):
            x = wide * min(0.99, 0.62 + 0.5 * y)
            band = [(x, top + y), (x + 0.02, top + y + 0.12)]
            pen.fill(mirrored(band), mix(clothes, (255, 255, 255), 0.65))
    elif person.outfit == "bib":
        pen.ellipse(0, top + 0.25, 0.52, 0.42, (250, 248, 240))
        pen.line(moved(ring(0.52, 0.42), 0, top + 0.25), edge, 0.03, closed=True)
    elif person.outfit == "hood":
        hood = [(neck, top - 0.2), (neck + 0.35, top + 0.05), (0.3, top + 0.42), (0, top + 0.48)]
        pen.fill(smooth(mirrored(hood)), edge)
        for side in (-1, 1):
            cord = np.array([(0.16, top + 0.3), (0.18, top + 0.9)])
            pen.line(cord * (side, 1), (245, 245, 245), 0.04)
    if person.outfit in ("collar", "v", "cardigan"):
        depth = 0.55 if person.outfit != "collar" else 0.3
        pen.fill(np.array([(-neck, top - 0.04), (neck, top - 0.04), (0, top + depth)]), skin)
    if person.outfit == "collar":
        for side in (-1, 1):
            flap = [(neck, -0.12), (neck * 1.25, 0.1), (0.25, 0.45), (0, 0.3)]
            outline = moved(np.array(flap) * (side, 1), 0, top)
            pen.fill(outline, (246, 246, 244))
            pen.line(outline, (150, 150, 160), 0.02, closed=True)
        if person.gender == 1:
            tie = [(0.1, top + 0.3), (0.06, top + 0.42), (0.16, top + 1.2)]
            pen.fill(mirrored(tie), edge)
    if person.outfit == "cardigan":
        pen.line(np.array([(-neck, top), (0, top + depth), (neck, top)]), edge, 0.09)
        pen.line(np.array([(0, top + depth), (0, 3.0)]), edge, 0.05)
        pen.ellipse(0.1, top + depth + 0.15, 0.04, 0.04, (240, 230, 200))


def _head(pen: Pen, person: Person, p: dict[str, float]) -> None:
    skin, dark = person.skin, mix(person.skin, (70, 25, 15), 0.3)
    for side in (-1, 1):
        x = side * (p["width"] * 0.99 + 0.03)
        y = p["eye_y"] + 0.14
        pen.ellipse(x, y, p["ear"] * 0.62 + 0.025, p["ear"] + 0.025, dark)
        pen.ellipse(x, y, p["ear"] * 0.62, p["ear"], skin)
        pen.ellipse(x, y, p["ear"] * 0.3, p["ear"] * 0.6, mix(skin, dark, 0.5))
    pen.fill(head_outline(p, 0.018), dark)
    pen.fill(head_outline(p), skin)


def _shade(canvas: Image, person: Person, view: View, p: dict[str, float]) -> Image:
    """Soft shadows and blush: drawn small, blurred and multiplied onto the canvas."""
    light: NDArray = np.ones((48, 48, 3), np.float32)
    pen = Pen(light, view, p["width"])
    lines, old = p["lines"], min(max(person.stage - 5.5, 0), 1)
    cheek = p["mouth_y"] - 0.26
    young = 1 - min(max(person.stage / 3.5, 0), 1)
    blush = 0.06 + 0.16 * young + 0.06 * person.lipstick
    for side in (-1, 1):
        x = side * p["eye_x"]
        pen.ellipse(side * p["width"] * 0.58, cheek, 0.24, 0.2, (1.0, 1 - blush, 1 - blush))
        # Bags under the eyes, hollows beside the mouth and sagging jowls come with age.
        pen.ellipse(x, p["eye_y"] + p["eye"] * 0.95, 0.2, 0.1, (1 - 0.28 * lines,) * 3)
        fold = [(0.2, p["nose_y"] - 0.12), (0.5, p["mouth_y"] - 0.02), (0.42, p["mouth_y"] + 0.2)]
        pen.fill(np.array(fold) * (side, 1), (1 - 0.28 * lines,) * 3)
        pen.ellipse(side * p["width"] * 0.62, p["chin"] * 0.62, 0.12, 0.2, (1 - 0.24 * old,) * 3)
    pen.ellipse(0, p["chin"] + 0.12, p["neck"] * 0.8, 0.16, (0.72,) * 3)
    pen.ellipse(0, p["mouth_y"] + 0.22, 0.2, 0.06, (0.9,) * 3)
    pen.ellipse(0, -0.5, 0.45, 0.25, (1.05,) * 3)
    pen.ellipse(0, p["nose_y"] - 0.1, 0.07, 0.16, (1.06,) * 3)
    light = cv2.GaussianBlur(light, (0, 0), 1.1)
    light = cv2.resize(light, canvas.shape[:2], interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.multiply(canvas, light, dtype=cv2.CV_8U), np.uint8)


def _finish(canvas: Image, view: View, size: int, rng: np.random.Generator) -> Image:
    """Shrinks the canvas and adds light, colour cast, blur and noise."""
    image: NDArray = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    image = image.astype(np.float32)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    light = view.exposure + view.light[0] * ramp + view.light[1] * ramp[:, None]
    image *= light[:, :, None] * np.array(view.cast, np.float32)
    if view.blur > 0.15:
        image = cv2.GaussianBlur(image, (0, 0), view.blur * size / 128)
    image += view.noise * rng.standard_normal((size, size, 1), np.float32)
    return image.clip(0, 255).astype(np.uint8)
