"""Which of the faces that a detector finds are predicted, by their score, size and number."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agenet.faces.face import Detection, Detector


@dataclass(frozen=True)
class FaceSelection:
    """Keeps the faces that pass all thresholds.

    Attributes:
        min_score: the least score. YuNet gives none below 0.6 and dlib none below 0.15.
        min_size: the least width and height of a box, in pixels of the file or frame.
        max_faces: the number of faces in an image, of which the largest are kept; None: all.
    """

    min_score: float = 0.0
    min_size: float = 0.0
    max_faces: int | None = None

    def __call__(self, detections: Sequence[Detection], reduction: int = 1) -> list[Detection]:
        """Returns the faces to keep, in their order.

        Args:
            detections: largest first.
            reduction: the factor by which the sides of their image were divided.
        """
        kept = [
            detection
            for detection in detections
            if detection.score >= self.min_score
            and reduction * min(detection.box.width, detection.box.height) >= self.min_size
        ]
        return kept[: self.max_faces]


ALL_FACES = FaceSelection()


class SelectiveDetector:
    """A detector that finds only the faces of a selection, in images that were not reduced."""

    def __init__(self, detector: Detector, select: FaceSelection) -> None:
        self._detector, self._select = detector, select
        self.name = detector.name
        self.thread_safe = getattr(detector, "thread_safe", False)

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Returns the selected faces in an RGB image uint8 [H, W, 3], largest first."""
        return self._select(self._detector.detect(image))
