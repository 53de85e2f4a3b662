"""dlib's HOG face detector: needs no download, but finds frontal faces only."""

import cv2
import numpy as np

from agenet.errors import needs_extra
from agenet.faces.face import Box, Detection

# dlib's window is 80 px. A small image is upscaled to the cost of a 640 x 480 frame, which finds
# faces of 40 px in images of 320 x 240; a large one is downscaled so that it takes at most about
# 0.1 s.
_UPSCALE_TO = 640 * 480
_MAX_UPSCALING = 3.0
_MAX_SIDE = 1280
# At 0 dlib finds 4 % more of the FairFace faces, but also the astronaut's badge (up to 0.14).
SCORE_THRESHOLD = 0.15


class Hog:
    """Detects faces with dlib, without landmarks. Not thread-safe: one instance per thread."""

    name = "hog"

    def __init__(self) -> None:
        """Raises `UserError` if dlib is not installed."""
        try:
            import dlib
        except ImportError as error:
            raise needs_extra("webcam", "the HOG face detector", error) from error
        self._detector = dlib.get_frontal_face_detector()

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Returns the faces in an RGB image uint8 [H, W, 3], largest first."""
        if not image.size:
            return []
        height, width = image.shape[:2]
        upscaling = min((_UPSCALE_TO / (height * width)) ** 0.5, _MAX_UPSCALING)
        scale = min(max(upscaling, 1.0), _MAX_SIDE / max(height, width))
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        resized = cv2.resize(np.ascontiguousarray(image), size, interpolation=method)
        x, y = width / size[0], height / size[1]
        # dlib's right and bottom are inclusive.
        found = [
            Detection(
                Box(r.left() * x, r.top() * y, (r.right() + 1) * x, (r.bottom() + 1) * y), score
            )
            for r, score in zip(*self._detector.run(resized, 0, SCORE_THRESHOLD)[:2], strict=True)
        ]
        return sorted(found, key=lambda face: -face.box.width * face.box.height)
