"""Draws hair in two layers: behind the head and in front of it."""

import numpy as np

from data_prep.drawn_faces.pen import Pen, Points, mirrored, mix, moved, ring, smooth
from data_prep.drawn_faces.person import Colour, Person

_TOP = -1.1  # of the skull
_WHITE = (226, 226, 230)


class Hair:
    """The hair of a person with proportions `p`, drawn in two layers."""

    def __init__(self, person: Person, p: dict[str, float]) -> None:
        self._person, self._p = person, p
        self._style = person.hairstyle
        self._colour = mix(person.hair, _WHITE, person.grey)
        self._shadow = mix(self._colour, (16, 10, 16), 0.28)
        self._strand = mix(self._colour, (255, 246, 232), 0.2)
        volumes = {"buzz": 0.03, "wisp": 0.02, "short": 0.1, "bun": 0.09, "spiky": 0.12}
        self._volume = volumes.get(self._style, 0.13) + 0.04 * person.curly * (
            self._style not in ("buzz", "wisp")
        )

    def back(self, pen: Pen) -> None:
        """Hair behind head and shoulders."""
        w, style = self._p["width"], self._style
        if self._person.headwear == "scarf":
            return
        if style in ("long", "bob"):
            length = 1.75 if style == "long" else 0.72
            side = w + (0.38 if self._person.curly else 0.28)
            half = [(0, _TOP - 0.15), (w * 0.8, -0.95), (side, -0.3), (side + 0.05, 0.4)]
            half += [(side + (0.02 if style == "long" else -0.06), length), (0.3, length + 0.1)]
            self._mass(pen, smooth(mirrored(half)), self._shadow)
        elif style == "bun":
            self._mass(pen, moved(ring(0.34, 0.28), 0, _TOP - 0.2), self._colour)
        elif style == "ponytail":
            side = 1 if self._person.parting > 0 else -1
            tail = [(0.5, -1.0), (w + 0.34, -0.75), (w + 0.46, 0.1), (w + 0.3, 1.0), (w + 0.1, 0.2)]
            self._mass(pen, smooth(np.array([*tail, (w * 0.7, -0.5)]) * (side, 1)), self._shadow)
        elif style == "pigtails":
            for side in (-1, 1):
                self._mass(pen, moved(ring(0.24, 0.46), side * (w + 0.26), 0.22), self._colour)
                pen.ellipse(side * (w + 0.13), -0.16, 0.09, 0.09, self._person.clothes)

    def front(self, pen: Pen) -> None:
        """Hair on the head, over the face."""
        w, style, person = self._p["width"], self._style, self._person
        if person.headwear == "scarf":
            self._scarf(pen)
            return
        if style == "wisp":
            pen.fill(self._cap(-0.92), mix(person.skin, self._colour, 0.4), 0.6)
            for x in (-0.12, 0.0, 0.14):
                curl = [(x, _TOP + 0.1), (x - 0.1, _TOP - 0.12), (x + 0.12, _TOP - 0.16)]
                pen.line(smooth(curl, closed=False), self._colour, 0.045)
        elif person.receding > 0.7:
            for side in (-1, 1):
                patch = [(w * 1.0, 0.2), (w * 1.07, -0.1), (w * 1.02, -0.55), (w * 0.84, -0.62)]
                outline = smooth(np.array([*patch, (w * 0.86, -0.1)]) * (side, 1))
                self._mass(pen, outline, self._colour)
        else:
            low = {"fringe": -0.32, "pigtails": -0.5, "bob": -0.42}.get(style, -0.62)
            low -= 0.4 * person.receding
            cap = self._cap(low)
            if style == "buzz":
                pen.fill(cap, mix(person.skin, self._colour, 0.75))
            else:
                self._mass(pen, cap, self._colour)
                self._strands(pen, low)
            if style == "spiky":
                for x in np.linspace(-0.7, 0.7, 7):
                    y = _TOP * np.sqrt(1 - (x / w * 0.92) ** 2)
                    spike = [(x - 0.17, y + 0.14), (x + 0.03, y - 0.34), (x + 0.17, y + 0.14)]
                    pen.fill(np.array(spike), self._colour)
            if style in ("long", "bob"):
                self._locks(pen, 1.5 if style == "long" else 0.62)
        self._headwear(pen)

    def _cap(self, low: float) -> Points:
        """From one sideburn over the skull to the other, and back along the hairline at `low`."""
        w, receding, v = self._p["width"], self._person.receding, self._volume
        angle = np.linspace(-0.53 * np.pi, 0.53 * np.pi, 22)
        outer = np.stack([(w + v) * np.sin(angle), (_TOP - v) * np.cos(angle)], 1)
        part = 0.45 * self._person.parting
        temple = -0.5 - 0.42 * receding
        line = [(w * 0.97, 0.1), (w * 0.9, -0.3), (w * 0.74, temple), (0.3 + part * 0.4, low)]
        line += [(part - 0.1, low - 0.06), (-0.35 + part * 0.3, low), (-w * 0.74, temple)]
        line += [(-w * 0.9, -0.3), (-w * 0.97, 0.1)]
        return np.concatenate([outer, smooth(line, closed=False)])

    def _mass(self, pen: Pen, outline: Points, colour: Colour) -> None:
        pen.fill(outline, colour)
        pen.line(outline, self._shadow, 0.025, closed=True)
        if self._person.curly:
            for x, y in outline[:: max(1, len(outline) // 26)]:
                pen.ellipse(x, y, 0.1, 0.1, colour)

    def _strands(self, pen: Pen, low: float) -> None:
        w = self._p["width"]
        part = 0.5 * self._person.parting
        for k, end in enumerate(np.linspace(-0.85, 0.85, 7)):
            tip = (end * w, min(-0.2, low - 0.05) - 0.25 * (1 - abs(end)))
            middle = ((part + 1.2 * end) * 0.55, _TOP + 0.05 + 0.2 * abs(end))
            curve = smooth([(part * 0.8, _TOP - 0.04), middle, tip], closed=False)
            pen.line(curve, self._strand if k % 2 else self._shadow, 0.022)

    def _locks(self, pen: Pen, length: float) -> None:
        w = self._p["width"]
        for side in (-1, 1):
            lock = [(w * 0.5, -0.85), (w + 0.14, -0.6), (w + 0.24, 0.1), (w + 0.2, length)]
            lock += [(w * 0.86, length + 0.06), (w * 0.9, 0.2), (w * 0.78, -0.35)]
            shape = smooth(np.array(lock) * (side, 1))
            self._mass(pen, shape, self._colour)
            line = [(w * 0.8, -0.6), (w + 0.06, 0.1), (w + 0.05, length - 0.1)]
            pen.line(smooth(np.array(line) * (side, 1), closed=False), self._strand, 0.025)

    def _headwear(self, pen: Pen) -> None:
        w, kind = self._p["width"], self._person.headwear
        cloth = mix(self._person.clothes, (230, 60, 110), 0.5)
        if kind == "bow":
            self._bow(pen, 0.5 * (1 if self._person.parting > 0 else -1), _TOP + 0.14, cloth)
        elif kind == "band":
            angle = np.linspace(-0.47 * np.pi, 0.47 * np.pi, 20)
            arc = np.stack([np.sin(angle) * (w + 0.1), -np.cos(angle)], 1)
            band = [arc * (1, 0.86), arc[::-1] * (1, 0.66)]
            pen.fill(np.concatenate(band), cloth)
            self._bow(pen, 0.25, -0.84, mix(cloth, (255, 255, 255), 0.25))
        elif kind == "cap":
            colour = self._person.clothes
            v = self._volume + 0.05
            angle = np.linspace(-0.5 * np.pi, 0.5 * np.pi, 22)
            dome = np.stack([(w + v) * np.sin(angle), -0.5 + (_TOP + 0.38 - v) * np.cos(angle)], 1)
            pen.fill(dome, colour)
            side = 0.1 * self._person.parting
            brim = [(-w * 1.0, -0.56), (side, -0.68), (w * 1.0, -0.56), (w * 0.95, -0.4)]
            brim += [(side, -0.5), (-w * 0.95, -0.4)]
            pen.fill(smooth(brim), mix(colour, (20, 20, 30), 0.35))
            pen.ellipse(0, _TOP - v - 0.02, 0.06, 0.04, mix(colour, (20, 20, 30), 0.35))

    @staticmethod
    def _bow(pen: Pen, x: float, y: float, colour: Colour) -> None:
        for side in (-1, 1):
            loop = [(0, 0), (0.3, -0.2), (0.36, 0.0), (0.3, 0.2)]
            pen.fill(moved(smooth(np.array(loop) * (side, 1)), x, y), colour)
        pen.ellipse(x, y, 0.07, 0.08, mix(colour, (40, 0, 20), 0.35))

    def _scarf(self, pen: Pen) -> None:
        w, chin, colour = self._p["width"], self._p["chin"], self._person.clothes
        colour = mix(colour, (250, 244, 236), 0.35)
        angle = np.linspace(0, np.pi, 18)
        outer = np.stack([-(w + 0.2) * np.cos(angle), (_TOP - 0.14) * np.sin(angle)], 1)
        low = [(w + 0.2, 0.5), (w + 0.1, chin + 0.35), (w * 0.9, chin + 0.7)]
        outer = np.concatenate([outer, low, np.array(low)[::-1] * (-1, 1)])
        opening = moved(ring(w * 0.86, (chin + 0.6) / 2 + 0.02), 0, (chin - 0.6) / 2)
        # One polygon with a slit, since the face must show through.
        pen.fill(np.concatenate([outer, outer[:1], opening[::-1], opening[-1:]]), colour)
        shadow = mix(colour, (30, 20, 40), 0.3)
        pen.line(opening, shadow, 0.04, closed=True)
        for y in (0.1, 0.25):
            fold = [(-w * 0.7, chin + y), (0, chin + y + 0.14), (w * 0.8, chin + y - 0.05)]
            pen.line(smooth(fold, closed=False), shadow, 0.025)
