"""dlib's HOG face detector: finds frontal faces only."""

import threading
from typing import Any, NamedTuple

import numpy as np

from agenet.errors import needs_extra
from agenet.faces.face import Box, Detection
from agenet.faces.pyramid import LARGE_REDUCTION, LARGE_SIDE, MAX_SIDE, reduce_image

# dlib's window is 80 px. A small image is upscaled to the cost of a 640 x 480 frame, which finds
# faces of 40 px in images of 320 x 240; a large one is reduced like for YuNet.
_UPSCALE_TO = 640 * 480
_MAX_UPSCALING = 3.0
# At 0 dlib finds 4 % more of the FairFace faces, but also the astronaut's badge (up to 0.14).
SCORE_THRESHOLD = 0.15
# dlib's five filters are frontal, turned to either side, and rotated to either side. Those for
# turned heads draw larger and higher boxes; these are their size and shift downwards as fractions
# of such a box, in terms of the frontal filter's, by `scripts/measure_margins.py`.
TURNED = (1, 2)
_TURNED_SIZE, _TURNED_SHIFT = 0.918, 0.05


class Found(NamedTuple):
    """A face found by dlib: its box as dlib draws it, and the filter, 0 to 4, that found it."""

    box: Box
    score: float
    filter: int


class Hog:
    """Detects faces with dlib, without landmarks. Each thread has one of dlib's of its own."""

    name = "hog"
    thread_safe = True

    def __init__(self) -> None:
        """Raises `UserError` if dlib is not installed."""
        try:
            import dlib
        except ImportError as error:
            raise needs_extra("webcam", "the HOG face detector", error) from error
        self._create = dlib.get_frontal_face_detector
        self._local = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return Hog, ()

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Returns the faces in an RGB image uint8 [H, W, 3], largest first."""
        faces = map(to_detection, self.search(image))
        return sorted(faces, key=lambda face: -face.box.width * face.box.height)

    def search(self, image: np.ndarray) -> list[Found]:
        """Returns the faces in an RGB image uint8 [H, W, 3] as dlib finds them."""
        if not image.size:
            return []
        if not hasattr(self._local, "detector"):
            self._local.detector = self._create()
        height, width = image.shape[:2]
        upscaling = min((_UPSCALE_TO / (height * width)) ** 0.5, _MAX_UPSCALING)
        longer = max(height, width)
        reduction = LARGE_REDUCTION if longer > LARGE_SIDE else longer / MAX_SIDE
        scale = min(max(upscaling, 1.0), 1 / reduction)
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        resized, (x, y) = reduce_image(np.ascontiguousarray(image), size)
        found = []
        for rectangle, score, index in zip(
            *self._local.detector.run(resized, 0, SCORE_THRESHOLD), strict=True
        ):
            # dlib's right and bottom are inclusive.
            left, top = rectangle.left() * x, rectangle.top() * y
            right, bottom = (rectangle.right() + 1) * x, (rectangle.bottom() + 1) * y
            found.append(Found(Box(left, top, right, bottom), score, index))
        return found


def to_detection(found: Found) -> Detection:
    """A face with the box that the frontal filter would draw."""
    if found.filter not in TURNED:
        return Detection(found.box, found.score)
    (x, y), height = found.box.center, found.box.height
    y, half = y + _TURNED_SHIFT * height, _TURNED_SIZE * height / 2
    return Detection(Box(x - half, y - half, x + half, y + half), found.score)
