import math
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from agenet.faces.detectors import create_detector
from agenet.faces.drawing import (
    COLORS,
    MAX_LONG_LABELS,
    UNCERTAIN_COLOR,
    describe,
    describe_briefly,
    draw_faces,
    is_confident,
)
from agenet.faces.face import Box, Detection, Face, Prediction
from agenet.faces.image_io import read_image

SURE = Prediction(31.6, "25-32", {"25-32": 0.8, "38-43": 0.2}, "female", 0.97)
UNSURE = Prediction(55.2, "48-53", {"48-53": 0.3, "60-100": 0.28}, "male", 0.6)
GREY = 90  # in no label


def face(left: float, top: float, side: float, prediction: Prediction = SURE) -> Face:
    return Face(Detection(Box(left, top, left + side, top + side), 0.9), prediction)


def blank(height: int = 480, width: int = 640) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def has(image: np.ndarray, color: tuple[int, int, int]) -> int:
    """How many pixels are of that colour."""
    return int((image == color).all(-1).sum())


def inside(box: Box, rim: int = 6) -> tuple[slice, slice]:
    return (
        slice(max(0, math.ceil(box.top) + rim), max(0, math.floor(box.bottom) - rim)),
        slice(max(0, math.ceil(box.left) + rim), max(0, math.floor(box.right) - rim)),
    )


def test_input_image_is_not_changed() -> None:
    image = blank()
    view = image[:, ::-1]
    drawn = draw_faces(view, [face(200, 200, 100)], status="23.4 fps")
    assert (image == GREY).all() and drawn.shape == image.shape and drawn.dtype == np.uint8
    assert has(drawn, COLORS[0]) > 500
    assert (drawn[:20, :60].min(-1) > 200).sum() > 20 and has(drawn, (0, 0, 0)) > 500
    np.testing.assert_array_equal(draw_faces(image, []), image)


def test_description_of_predictions() -> None:
    assert describe(SURE) == ["32 years (25-32: 80%)", "female 97%"]
    assert describe(UNSURE) == ["55? years (48-53: 30%)", "male? 60%"]
    assert describe_briefly(UNSURE) == ["55? M?"]
    assert describe(Prediction()) == describe_briefly(Prediction()) == []
    assert describe(Prediction(age=4.4)) == ["4 years"]
    assert describe(Prediction(age_group="0-2", age_probabilities={"0-2": 0.9})) == [
        "0-2 years 90%"
    ]
    assert describe(Prediction(gender="male", gender_probability=0.9999)) == ["male 99%"]
    assert describe(Prediction(gender="male")) == ["male"]
    assert is_confident(SURE) and is_confident(Prediction()) and not is_confident(UNSURE)


def test_colours_follow_track_numbers_and_uncertainty() -> None:
    faces = [face(100, 200, 100), face(400, 200, 100, UNSURE)]
    drawn = draw_faces(blank(), faces, numbers=[8, 9])
    assert has(drawn, COLORS[8 % len(COLORS)]) and has(drawn, UNCERTAIN_COLOR)
    assert not has(drawn, COLORS[0]) and not has(drawn, COLORS[9 % len(COLORS)])
    with pytest.raises(ValueError, match="zip"):
        draw_faces(blank(), faces, numbers=[1])


def test_face_without_prediction_has_a_box() -> None:
    drawn = draw_faces(blank(), [face(100, 200, 100, Prediction())])
    assert 500 < has(drawn, COLORS[0]) < 1500
    assert (drawn[:190] == GREY).all() and (drawn[310:] == GREY).all()


@pytest.mark.parametrize("shape", [(480, 640), (240, 320), (120, 160), (1080, 1920), (640, 100)])
@pytest.mark.parametrize(
    ("x", "y"), [(0.5, 0.5), (0, 0), (0.95, 0), (0, 0.9), (0.95, 0.95), (-0.05, 0.4), (0.4, -0.01)]
)
def test_labels_stay_inside_the_image(shape: tuple[int, int], x: float, y: float) -> None:
    height, width = shape
    side = 0.15 * min(shape)
    one = face(x * width, y * height, side)
    drawn = draw_faces(blank(height, width), [one])
    box = draw_faces(blank(height, width), [face(*one.detection.box[:2], side, Prediction())])
    assert has(drawn, COLORS[0]) > has(box, COLORS[0]) + 200
    np.testing.assert_array_equal(drawn[inside(one.detection.box)], GREY)


@pytest.mark.parametrize("side", [20, 90, 200, 460])
def test_every_face_gets_a_label(side: int) -> None:
    drawn = draw_faces(blank(), [face((640 - side) / 2, 240 - side / 2, side)])
    without = draw_faces(blank(), [face((640 - side) / 2, 240 - side / 2, side, Prediction())])
    assert has(drawn, COLORS[0]) > has(without, COLORS[0]) + 1000


@pytest.mark.parametrize(
    "box",
    [
        Box(-1e12, -1e12, 1e12, 1e12),
        Box(-500, -500, -400, -400),
        Box(9e9, 10, 9e9 + 50, 60),
        Box(5, 5, 5.01, 5.01),
        Box(600, 440, 900, 900),
    ],
)
def test_extreme_boxes(box: Box) -> None:
    for shape in ((480, 640), (1, 1), (3, 2000)):
        assert draw_faces(blank(*shape), [Face(Detection(box, 1.0), SURE)]).shape == (*shape, 3)


def test_labels_cover_no_other_face() -> None:
    # A column of faces so near to each other that a label above would lie on the next.
    faces = [face(300, 20 + 75 * row, 60) for row in range(6)]
    drawn = draw_faces(blank(), faces)
    for one in faces:
        np.testing.assert_array_equal(drawn[inside(one.detection.box)], GREY)
    assert all(has(drawn, color) > 600 for color in COLORS)


def test_labels_do_not_jump() -> None:
    """Two faces whose sizes tremble: whoever is the larger one, the labels stay."""
    one, two = (face(200, 200, 100 + jitter) for jitter in (0, 1))
    other = face(240, 340, 100.5)
    a = draw_faces(blank(), [one, other], numbers=[1, 2])
    b = draw_faces(blank(), [two, other], numbers=[1, 2])
    assert (a != b).any(-1).mean() < 0.005
    np.testing.assert_array_equal(a, draw_faces(blank(), [other, one], numbers=[2, 1]))


def test_500_faces_are_drawn_quickly() -> None:
    crowd = [
        face(52 * column, 48 * row, 24, UNSURE if row % 2 else SURE)
        for row in range(20)
        for column in range(24)
    ] + [face(1262, 4 + 48 * row, 12) for row in range(20)]
    assert len(crowd) == 500 > MAX_LONG_LABELS
    image = blank(960, 1280)
    began = time.thread_time()  # What else this machine does costs it nothing.
    drawn = draw_faces(image, crowd, status="23.4 fps")
    assert time.thread_time() - began < 0.3
    seen = [drawn[inside(one.detection.box)] for one in crowd[24:480]]
    assert np.mean([(part == GREY).all() for part in seen]) > 0.9
    labels = has(drawn, UNCERTAIN_COLOR)
    assert labels > 10_000


@pytest.mark.parametrize(
    ("picture", "people"),
    [("astronaut.png", 1), ("grace_hopper.jpg", 1), ("classroom.gif", 4)],
)
@pytest.mark.parametrize("height", [180, 480])
def test_labels_of_real_faces_do_not_hide_faces(
    real_data: Path, picture: str, people: int, height: int
) -> None:
    image = read_image(real_data / "media" / picture)
    detections = create_detector("yunet").detect(image)
    assert len(detections) == people
    scale = height / image.shape[0]
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    faces = [
        Face(Detection(Box(*(scale * side for side in detection.box)), 0.9), SURE)
        for detection in detections
    ]
    drawn = draw_faces(image, faces)
    for number, one in enumerate(faces):
        part = inside(one.detection.box, rim=3)
        np.testing.assert_array_equal(drawn[part], image[part])
        assert has(drawn, COLORS[number]) > 300
