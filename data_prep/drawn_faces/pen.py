"""Draws shapes given in head units, and creates smooth curves and outlines.

Head units: the origin is the centre of the head, x points right and y down, and an adult's head
is about 1.7 wide and 2.2 high.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.drawn_faces.person import Colour, View

Points = NDArray[np.float64]  # [N, 2]
_VIEW_HALF = 1.9  # head units from the centre of the image to its border


class Pen:
    """Draws shapes given in head units on an image, transformed by a view."""

    def __init__(self, canvas: NDArray, view: View, head_width: float) -> None:
        self.canvas = canvas
        half = canvas.shape[0] / 2
        self.scale = half / _VIEW_HALF * view.scale
        angle = np.deg2rad(view.tilt)
        cos, sin = self.scale * np.cos(angle), self.scale * np.sin(angle)
        self._matrix = np.array([[cos, sin], [-sin, cos]])
        self._origin = half * (1 + np.array([view.shift[0], view.shift[1] - 0.03]))
        self._turn = np.array([0.5 * np.sin(np.deg2rad(view.yaw)), 0.07 * view.pitch])
        self._head = np.array([head_width, 1.15])

    def _pixels(self, points: Points) -> NDArray[np.int32]:
        # Turning the head moves what is near its middle, and leaves the outline where it is.
        dome = np.sqrt(np.clip(1 - ((points / self._head) ** 2).sum(1, keepdims=True), 0, 1))
        xy = (points + dome * self._turn) @ self._matrix + self._origin
        return np.round((xy - 0.5) * 16).astype(np.int32)

    def fill(self, points: Points, colour: Colour, alpha: float = 1.0) -> None:
        """Fills the polygon `points` `[N, 2]`; `alpha` is its opacity."""
        target = self.canvas if alpha >= 1 else self.canvas.copy()
        cv2.fillPoly(target, [self._pixels(points)], colour, cv2.LINE_AA, 4)
        if alpha < 1:
            cv2.addWeighted(target, alpha, self.canvas, 1 - alpha, 0, self.canvas)

    def line(self, points: Points, colour: Colour, width: float, closed: bool = False) -> None:
        """Draws a line through `points` `[N, 2]`; `width` is in head units."""
        thickness = max(1, round(width * self.scale))
        pixels = [self._pixels(points)]
        cv2.polylines(self.canvas, pixels, closed, colour, thickness, cv2.LINE_AA, 4)

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, colour: Colour, alpha: float = 1.0
    ) -> None:
        """Fills an ellipse with centre `(x, y)` and half axes `rx` and `ry`."""
        self.fill(moved(ring(rx, ry), x, y), colour, alpha)


_ANGLES = np.linspace(0, 2 * np.pi, 32, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Colour `share` of the way from `a` to `b`."""
    return tuple(float(x + (y - x) * share) for x, y in zip(a, b, strict=True))


def smooth(points: list[tuple[float, float]] | Points, closed: bool = True) -> Points:
    """A smooth curve near the points (Chaikin's corner cutting, 1974). `[N, 2]`."""
    curve = np.asarray(points, float)
    for _ in range(3):
        following = np.roll(curve, -1, 0) if closed else curve[1:]
        start = curve if closed else curve[:-1]
        cut = np.stack([0.75 * start + 0.25 * following, 0.25 * start + 0.75 * following], 1)
        inner = cut.reshape(-1, 2)
        curve = inner if closed else np.concatenate([curve[:1], inner, curve[-1:]])
    return curve


def mirrored(points: list[tuple[float, float]] | Points) -> Points:
    """A symmetric outline: the right half, top to bottom, followed by its mirror image."""
    right = np.asarray(points, float)
    return np.concatenate([right, right[::-1] * (-1, 1)])


def ring(rx: float, ry: float) -> Points:
    """An ellipse around the origin, `[N, 2]`."""
    return _CIRCLE * (rx, ry)


def moved(points: Points, x: float, y: float) -> Points:
    """The points, moved by `x` and `y`. `[N, 2]`."""
    return points + np.array((x, y))
