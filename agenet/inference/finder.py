"""Finds faces in whole images and cuts them out as a network takes them."""

from collections.abc import Sequence

import numpy as np

from agenet.faces.crop import crop_face, face_square
from agenet.faces.face import Detection, Detector
from agenet.inference.shared_detector import SharedDetector

# Side of a crop, in pixels of the image, from which twice as many hardly matter; relative to the
# crop's size. From 1 on ages still differ by 0.5 years in the mean, from 1.4 on by 0.15; moving the
# box by 0.5 % of its width makes 0.6.
ENOUGH_PIXELS = 1.4


class FaceFinder:
    """Finds and crops faces; for any number of threads if the detector is.

    Args:
        detector: finds faces in whole images.
        size: side of the crops in pixels, see `TrainedNetwork.stored_size`.
        align: rotate faces upright by their landmarks, if the detector provides them.
    """

    def __init__(self, detector: Detector | SharedDetector, size: int, align: bool = True) -> None:
        self._detector, self.size, self._align = detector, size, align

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Returns the faces in an RGB image uint8 [H, W, 3], largest first.

        Raises:
            UserError: no detector is available.
        """
        return self._detector.detect(image)

    def is_coarse(self, detection: Detection) -> bool:
        """Whether more pixels of a face that `detect` found would change its prediction."""
        return face_square(detection, self._detector.name).side < ENOUGH_PIXELS * self.size

    def crop(self, image: np.ndarray, detections: Sequence[Detection]) -> list[np.ndarray]:
        """Cuts N faces out of an RGB image uint8 [H, W, 3]: N images uint8 [S, S, 3]."""
        name = self._detector.name if detections else ""
        return [
            crop_face(image, detection, self.size, detector_name=name, align=self._align)
            for detection in detections
        ]
