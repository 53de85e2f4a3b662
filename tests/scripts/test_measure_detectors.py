"""The figures of scripts/measure_detectors.py, from known detections and predictions."""

import numpy as np
import pytest

from agenet.faces.crop import Square, crop_square
from agenet.faces.face import Box, Detection, Prediction
from scripts.measure_detectors import Labelled, line, nearest, place


def test_placed_images_are_where_it_says() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        image = np.full((120, 120, 3), 250, np.uint8)
        larger, square = place(image, rng)
        assert larger.shape == (480, 640, 3)
        # But for the outermost pixels, which are blended with what is around.
        assert crop_square(larger, square, 50)[1:-1, 1:-1].min() > 230
        assert (larger == 250).all(2).sum() == pytest.approx(square.side**2, rel=0.02)


def test_nearest() -> None:
    square = Square(100, 100, 80)
    near = Detection(Box(70, 75, 125, 130), 0.7)
    far = Detection(Box(200, 75, 255, 130), 0.9)
    assert nearest([far, near], square) == near
    assert nearest([far], square) is nearest([], square) is None


def test_line() -> None:
    image = np.zeros((1, 1, 3), np.uint8)
    faces = [Labelled(image, 1, 20, 29), Labelled(image, 0, -1, -1), Labelled(image, 0, 5, 5)]
    placed = [Prediction(age=25, gender=g) for g in ("male", "female", "female")]
    crops = [Prediction(age=33, gender="male"), Prediction(age=25, gender="male"), None]
    predictions = {"placed": placed, "hog": crops}
    chosen = [True, True, False]
    assert line("hog", faces, predictions, chosen) == ["hog", "50.0", "4.00", "50.0", "4.00"]
    assert line("placed", faces, predictions, chosen) == ["placed", "100.0", "0.00", "0.0", "0.00"]
