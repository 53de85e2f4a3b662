from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from agenet.faces.ages import describe_years
from agenet.faces.detectors import create_detector
from agenet.faces.face import Box, Detection, Face, Prediction
from agenet.faces.frames import Frame
from agenet.faces.tracking import (
    HALF_LIFE,
    KEEP_SECONDS,
    MAX_SCENE_AGE,
    PREDICT_EVERY,
    SHOW_SECONDS,
    AveragedPrediction,
    Tracker,
    match,
)
from agenet.faces.video import open_video
from agenet.labels import AGE_GROUPS

# As a person sees them, in every frame.
PEOPLE = {
    "classroom": 4,
    "face-demographics-walking": 2,
    "head-pose-face-detection-female-and-male": 2,
}


def texture(shape: tuple[int, int] = (480, 640), seed: int = 0) -> np.ndarray:
    """An image with enough texture for optical flow, RGB uint8."""
    grey = np.random.default_rng(seed).integers(0, 256, (shape[0] // 8, shape[1] // 8), np.uint8)
    return np.repeat(cv2.resize(grey, shape[::-1])[..., None], 3, axis=2)


def at(x: float, y: float, side: float = 80.0, score: float = 0.9) -> Detection:
    return Detection(Box(x, y, x + side, y + side), score)


def frames(real_data: Path, clip: str) -> list[Frame]:
    source = open_video(str(real_data / "media" / f"{clip}.gif"))
    found = []
    while (frame := source.read()) is not None:
        found.append(frame)
    source.close()
    return found


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union, the slow way."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


# The average.


def test_average_of_no_and_one_prediction() -> None:
    average = AveragedPrediction()
    assert average.get() == Prediction()
    predicted = Prediction(30.0, "25-32", {"15-20": 0.25, "25-32": 0.75}, "female", 0.9)
    average.add(predicted, 0.5, 0.0)
    found = average.get()
    assert found.age == 30.0 and found.age_group == "25-32" and found.gender == "female"
    assert found.gender_probability == pytest.approx(0.9)
    assert found.age_probabilities == pytest.approx(predicted.age_probabilities)


def test_old_predictions_decay() -> None:
    average = AveragedPrediction()
    average.add(Prediction(age=20.0), 1.0, 0.0)
    average.add(Prediction(age=50.0), 1.0, HALF_LIFE)
    assert average.get().age == pytest.approx((0.5 * 20 + 50) / 1.5)
    average.add(Prediction(age=50.0), 1.0, 100 * HALF_LIFE)
    assert average.get().age == pytest.approx(50)


def test_confident_detections_have_more_weight() -> None:
    average = AveragedPrediction()
    average.add(Prediction(gender="male", gender_probability=0.9), 0.2, 0.0)
    average.add(Prediction(gender="female", gender_probability=0.7), 0.8, 0.0)
    predicted = average.get()
    assert (
        predicted.gender == "female"
        and predicted.age is None
        and predicted.age_probabilities is None
    )
    assert predicted.gender_probability == pytest.approx(0.2 * 0.1 + 0.8 * 0.7)
    average.add(Prediction(), 0.0, 1.0)  # A network that tells nothing, and no weight.
    assert average.get() == predicted


def test_averaged_age_and_group_agree() -> None:
    """Of a face that is judged 31 and 39 in turns, the mean 35 would be in neither group."""
    years = np.arange(101)
    average = AveragedPrediction()
    for number, age in enumerate([31, 39, 31, 39, 39]):
        shape = np.exp(-0.5 * ((years - age) / 4) ** 2)
        average.add(Prediction(**describe_years(shape, AGE_GROUPS)), 0.9, 0.1 * number)
    found = average.get()
    assert found.age_group == "38-43" and found.age == 38
    assert found.age_interval is not None and found.age_interval[0] <= 38 <= found.age_interval[1]
    assert found.age_distribution is not None and sum(found.age_distribution) == pytest.approx(1)


def test_labels_do_not_flicker() -> None:
    """Of predictions that jump, what is shown settles; half a minute at 20 frames per second."""
    rng = np.random.default_rng(0)
    image, tracker = texture((96, 128)), Tracker(4)
    raw: list[Prediction] = []
    shown: list[Prediction] = []
    for number in range(600):
        seconds = number / 20
        tracker.update(image, seconds, [at(20, 10)])
        male = 1 / (1 + np.exp(-rng.normal(0.8, 1.5)))
        old = 1 / (1 + np.exp(-rng.normal(0.8, 1.5)))
        predicted = Prediction(
            age=float(rng.normal(30, 8)),
            age_group="25-32" if old < 0.5 else "38-43",
            age_probabilities={"25-32": 1 - old, "38-43": old},
            gender="male" if male > 0.5 else "female",
            gender_probability=max(male, 1 - male),
        )
        raw.append(predicted)
        due = tracker.due_tracks()
        tracker.add_predictions(due, [Face(track.detection, predicted) for track in due], seconds)
        shown.append(tracker.scene().faces[0].face.prediction)

    def changes(predicted: Sequence[Prediction], name: str) -> int:
        values = [getattr(prediction, name) for prediction in predicted]
        return sum(a != b for a, b in pairwise(values))

    for name in ("gender", "age_group"):
        assert changes(raw, name) > 150 and changes(shown, name) <= 4, name
    ages = [prediction.age for prediction in shown[60:]]
    assert np.std(ages) < 4 and changes(shown, "age") < 30 / PREDICT_EVERY + 5


# Faces over time.


def test_boxes_are_matched_by_overlap() -> None:
    boxes = np.array([[0, 0, 10, 10], [8, 0, 18, 10], [50, 50, 60, 60]], float)
    found = np.array([[7, 0, 17, 10], [1, 0, 11, 10], [90, 0, 99, 9]], float)
    assert sorted(match(boxes, found)) == [(0, 1), (1, 0)]
    assert match(boxes[:0], found) == match(boxes, found[:0]) == []
    assert match(np.zeros((1, 4)), np.zeros((1, 4))) == []


@pytest.mark.parametrize("clip", PEOPLE)
def test_faces_keep_their_numbers_in_real_clips(real_data: Path, clip: str) -> None:
    detector = create_detector("yunet")
    tracker = Tracker(32)
    for frame in frames(real_data, clip):
        tracker.update(frame.image, frame.seconds, detector.detect(frame.image))
        numbers = [face.number for face in tracker.scene().faces]
        assert numbers == [*range(1, PEOPLE[clip] + 1)], frame.number
    assert tracker.count == PEOPLE[clip]


@pytest.mark.parametrize("clip", PEOPLE)
def test_faces_are_tracked_between_detections(real_data: Path, clip: str) -> None:
    """The detector looks at every fifth frame; boxes move with the faces in between."""
    detector = create_detector("yunet")
    tracker = Tracker(32)
    moved, stayed = [], []
    for frame in frames(real_data, clip):
        found = [detection.box for detection in detector.detect(frame.image)]
        if frame.number % 5 == 0:
            tracker.update(frame.image, frame.seconds, [Detection(box, 0.9) for box in found])
            scene = tracker.scene()
            continue
        for was, now in zip(scene.faces, scene.at(frame.image, frame.seconds), strict=True):
            moved.append(max(overlap(now.face.detection.box, box) for box in found))
            stayed.append(max(overlap(was.face.detection.box, box) for box in found))
    assert np.mean(moved) > np.mean(stayed) and np.mean(moved) > 0.7
    assert tracker.count == PEOPLE[clip]


def test_box_moves_with_the_image() -> None:
    image, tracker = texture(), Tracker(4)
    tracker.update(image, 0.0, [at(300, 200)])
    scene = tracker.scene()
    (face,) = scene.at(np.roll(image, (6, 10), (0, 1)), 0.05)
    assert np.array(face.face.detection.box) == pytest.approx([310, 206, 390, 286], abs=1)
    # Of another size, with nothing in it, tiny: the box stays.
    for other in (texture((300, 400)), np.zeros_like(image), np.zeros((1, 1, 3), np.uint8)):
        (face,) = scene.at(other, 0.05)
        assert face.face.detection.box == (300, 200, 380, 280)


def test_faces_stay_where_they_are_when_the_size_changes() -> None:
    tracker = Tracker(4)
    tracker.update(texture((480, 640)), 0.0, [at(320, 240)])
    tracker.update(texture((240, 320)), 0.04, [])
    (tracked,) = tracker.scene().faces
    assert tracked.face.detection.box == pytest.approx((160, 120, 200, 160), abs=2)


def test_boxes_are_smoothed() -> None:
    rng = np.random.default_rng(0)
    image, tracker = texture(), Tracker(4)
    raw, shown = [], []
    for number in range(100):
        x, y, side = rng.normal((200, 200, 80), 3)
        tracker.update(image, number / 25, [at(x, y, side)])
        raw.append([x, y, x + side, y + side])
        shown.append(tracker.scene().faces[0].face.detection.box)
    assert (np.std(shown, axis=0) < 0.7 * np.std(raw, axis=0)).all()
    assert np.mean(shown, axis=0) == pytest.approx(np.mean(raw, axis=0), abs=1)
    assert tracker.count == 1


def test_face_that_is_missed_and_detected_again() -> None:
    image, tracker = texture(), Tracker(4)
    tracker.update(image, 0.0, [at(100, 100), at(400, 100)])
    for seconds, numbers in (
        (0.1, [1, 2]),
        (SHOW_SECONDS - 0.01, [1, 2]),
        (SHOW_SECONDS + 0.01, [1]),
    ):
        tracker.update(image, seconds, [at(100, 100)])
        assert [face.number for face in tracker.scene().faces] == numbers
        assert tracker.scene().faces[-1].unseen == pytest.approx(seconds if 2 in numbers else 0)
    tracker.update(image, KEEP_SECONDS - 0.01, [at(100, 100), at(400, 100)])
    assert [face.number for face in tracker.scene().faces] == [1, 2]
    tracker.update(image, 2 * KEEP_SECONDS, [])
    tracker.update(image, 2 * KEEP_SECONDS, [at(400, 100)])
    assert [face.number for face in tracker.scene().faces] == [3]


def test_slow_detector_does_not_make_faces_flicker() -> None:
    image, tracker = texture(), Tracker(4)
    tracker.update(image, 0.0, [at(100, 100)])
    scene = tracker.scene()
    assert len(scene.at(image, 3 * SHOW_SECONDS)) == 1
    assert scene.at(image, MAX_SCENE_AGE + 0.1) == []
    assert len(scene.at(image, -1.0)) == 1  # A clock that was set back.


def test_crowd_is_predicted_in_turns() -> None:
    """500 faces cost no more at once than the budget, and everybody has a turn."""
    image, tracker = texture((960, 1280)), Tracker(100)
    crowd = [at(50 * column, 46 * row, 30) for row in range(20) for column in range(25)]
    seen: set[int] = set()
    for number in range(5):
        tracker.update(image, number / 25, crowd)
        due = tracker.due_tracks()
        assert len(due) == 100
        seen |= {track.number for track in due}
        tracker.add_predictions(
            due, [Face(track.detection, Prediction(age=9.0)) for track in due], 0.0
        )
    assert len(seen) == tracker.count == 500
    assert {face.face.prediction.age for face in tracker.scene().faces} == {9.0}


def test_later_predictions_are_less_frequent() -> None:
    image, tracker = texture(), Tracker(4)
    predicted = []
    for number in range(101):
        seconds = number / 25
        tracker.update(image, seconds, [at(100, 100)])
        if due := tracker.due_tracks():
            predicted.append(seconds)
            tracker.add_predictions(due, [Face(due[0].detection, Prediction(age=9.0))], seconds)
    assert predicted[:3] == [0, 0.04, 0.08]
    assert np.diff(predicted[2:]) == pytest.approx(PREDICT_EVERY, abs=0.05)
    tracker.update(image, 9.0, [])
    assert tracker.due_tracks() == []  # There is no face to look at.
