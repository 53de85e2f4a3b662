"""dlib's HOG detector of frontal faces: needs no download, and misses turned faces."""

import cv2
import numpy as np

from agenet.errors import needs_extra
from agenet.faces.face import Box, Detection

# dlib's window is 80 px. A small picture is enlarged to what a camera's plain frame costs, which
# reaches faces of 40 px in pictures of 320 x 240; a large one is searched at a size that costs at
# most about 0.1 s.
_ENLARGE_TO = 640 * 480
_LARGEST_ENLARGEMENT = 3.0
_MAX_SIDE = 1280
# At 0 dlib finds four of a hundred FairFace faces more, and the astronaut's badge (up to 0.14).
SCORE_THRESHOLD = 0.15


class Hog:
    """Faces by dlib, without landmarks. Not for two threads at once: each needs its own."""

    name = "hog"

    def __init__(self) -> None:
        """Raises UserError where dlib is not installed."""
        try:
            import dlib
        except ImportError as error:
            raise needs_extra("webcam", "the HOG face detector", error) from error
        self._detector = dlib.get_frontal_face_detector()

    def detect(self, image: np.ndarray) -> list[Detection]:
        """The faces in an RGB picture uint8 [H, W, 3], the largest first."""
        if not image.size:
            return []
        height, width = image.shape[:2]
        enlargement = min((_ENLARGE_TO / (height * width)) ** 0.5, _LARGEST_ENLARGEMENT)
        scale = min(max(enlargement, 1.0), _MAX_SIDE / max(height, width))
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        resized = cv2.resize(np.ascontiguousarray(image), size, interpolation=method)
        x, y = width / size[0], height / size[1]
        # dlib's rectangles include their last row and column.
        found = [
            Detection(
                Box(r.left() * x, r.top() * y, (r.right() + 1) * x, (r.bottom() + 1) * y), score
            )
            for r, score in zip(*self._detector.run(resized, 0, SCORE_THRESHOLD)[:2], strict=True)
        ]
        return sorted(found, key=lambda face: -face.box.width * face.box.height)
