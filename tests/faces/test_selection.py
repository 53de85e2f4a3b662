import numpy as np

from agenet.faces.face import Box, Detection
from agenet.faces.selection import ALL_FACES, FaceSelection, SelectiveDetector

LARGE = Detection(Box(0, 0, 40, 50), 0.7)
WIDE = Detection(Box(0, 0, 60, 20), 0.9)
SMALL = Detection(Box(5, 5, 15, 15), 0.8)
FOUND = [LARGE, WIDE, SMALL]


def test_thresholds() -> None:
    assert ALL_FACES(FOUND) == FOUND
    assert FaceSelection(min_score=0.8)(FOUND) == [WIDE, SMALL]
    assert FaceSelection(min_size=20)(FOUND) == [LARGE, WIDE]
    assert FaceSelection(min_size=20.5)(FOUND) == [LARGE]
    assert FaceSelection(max_faces=2)(FOUND) == [LARGE, WIDE]
    # The largest of those that pass, not those that pass of the largest.
    assert FaceSelection(min_score=0.8, max_faces=1)(FOUND) == [WIDE]


def test_size_is_that_in_the_file() -> None:
    assert FaceSelection(min_size=40)(FOUND, reduction=2) == [LARGE, WIDE]


def test_detector_of_a_selection() -> None:
    class Finds:
        name = "yunet"
        thread_safe = True

        def detect(self, image: np.ndarray) -> list[Detection]:
            return FOUND

    detector = SelectiveDetector(Finds(), FaceSelection(max_faces=1))
    assert detector.detect(np.zeros((9, 9, 3), np.uint8)) == [LARGE]
    assert (detector.name, detector.thread_safe) == ("yunet", True)
