"""Face tracking with temporal smoothing of predictions."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import cv2
import numpy as np

from agenet.faces.ages import describe_years
from agenet.faces.face import Box, Detection, Face, Prediction
from agenet.labels import GENDERS

# A detection continues a track if the intersection over union of their boxes, both enlarged by
# `ENLARGEMENT` because small faces can move by more than their size, is at least `MIN_OVERLAP`.
ENLARGEMENT = 1.5
MIN_OVERLAP = 0.2
MAX_FORWARD_BACKWARD_ERROR = 1.0  # pixels; points tracked less accurately are ignored
KEEP_SECONDS = 1.0  # a face that is missing for longer loses its number
SHOW_SECONDS = 0.4  # a missing face is shown for so long, because detectors miss single frames
MAX_SCENE_AGE = 2.0  # seconds after which the result of a slow detector is no longer shown
FIRST_PREDICTIONS = 3  # made at once, so that the average settles quickly
PREDICT_EVERY = 0.5  # seconds between later predictions of one face
HALF_LIFE = 2.0  # seconds after which a prediction has half its weight in the average
# Weights of a new detection for position (x, y) and size. Optical flow has moved the box already,
# so small weights remove the detector's jitter without lag.
SMOOTHING = np.array([0.5, 0.5, 0.3, 0.3])
GRAY_SIDE = 640  # pixels; enough for optical flow
MAX_GRID_FACES = 40  # with more faces, only the centre of each is tracked
_FLOW: dict[str, Any] = {"winSize": (15, 15), "maxLevel": 3}


class AveragedPrediction:
    """A weighted average of one face's predictions, with an exponential decay over time.

    Probabilities of years and age groups are averaged as logarithms, those of genders directly. Age
    and group are those of the average, so that they agree as in every prediction.

    Args:
        half_life: seconds after which a prediction has half its weight.
    """

    def __init__(self, half_life: float = HALF_LIFE) -> None:
        self._half_life = half_life
        self._sums: dict[str, np.ndarray] = {}
        self._weights: dict[str, float] = {}
        self._groups: tuple[str, ...] = ()
        self._seconds = 0.0

    def add(self, prediction: Prediction, weight: float, seconds: float) -> None:
        """Adds a prediction.

        Args:
            prediction: of one frame.
            weight: at least 0; the detector's score.
            seconds: time of the frame, not before that of the previous prediction.
        """
        decay = 0.5 ** (max(0.0, seconds - self._seconds) / self._half_life)
        self._seconds = seconds
        values: dict[str, Any] = {"age": prediction.age}
        if prediction.age_probabilities:
            self._groups = tuple(prediction.age_probabilities)
            values["groups"] = np.log(np.maximum(list(prediction.age_probabilities.values()), 1e-6))
        if prediction.age_distribution:
            values["years"] = np.log(np.maximum(prediction.age_distribution, 1e-6))
        if prediction.gender is not None and prediction.gender_probability is not None:
            probability = prediction.gender_probability
            values["male"] = probability if prediction.gender == GENDERS[1] else 1 - probability
        weight = max(weight, 1e-3)
        for name, value in values.items():
            if value is not None:
                self._sums[name] = self._sums.get(name, 0) * decay + weight * np.asarray(value)
                self._weights[name] = self._weights.get(name, 0) * decay + weight

    def get(self) -> Prediction:
        """Returns the average; all fields are None before the first prediction."""
        mean = {name: self._sums[name] / self._weights[name] for name in self._sums}
        result: dict[str, Any] = {}
        if "age" in mean:
            result["age"] = float(mean["age"])
        if "groups" in mean:
            unscaled = np.exp(mean["groups"] - mean["groups"].max())
            probabilities = dict(
                zip(self._groups, (unscaled / unscaled.sum()).tolist(), strict=True)
            )
            result["age_probabilities"] = probabilities
            result["age_group"] = max(probabilities, key=lambda group: probabilities[group])
        if "years" in mean:
            result |= describe_years(np.exp(mean["years"]), self._groups)
        if "male" in mean:
            male = float(mean["male"])
            result["gender"] = GENDERS[int(male > 0.5)]
            result["gender_probability"] = max(male, 1 - male)
        return Prediction(**result)


@dataclass(frozen=True)
class TrackedFace:
    """A face in one frame, with a number that identifies it throughout the video.

    Attributes:
        number: from 1.
        face: smoothed box and averaged prediction.
        unseen: seconds since it was last detected.
    """

    number: int
    face: Face
    unseen: float = 0.0

    def asdict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return {"track": self.number, "unseen": round(self.unseen, 3)} | self.face.asdict()


@dataclass(frozen=True)
class Scene:
    """The faces of one frame, immutable; `at` moves them to a later frame."""

    seconds: float
    gray: np.ndarray
    faces: tuple[TrackedFace, ...]

    def at(self, image: np.ndarray, seconds: float) -> list[TrackedFace]:
        """Moves the faces by optical flow to a later frame uint8 [H, W, 3] at `seconds`."""
        passed = max(0.0, seconds - self.seconds)
        # Faces stay visible between the results of a slow detector, so that they do not flicker.
        shown = self.faces if passed <= MAX_SCENE_AGE else ()
        boxes = np.array([tracked.face.detection.box for tracked in shown], float).reshape(-1, 4)
        moved = _move(boxes, self.gray, _to_gray(image), image.shape)
        return [
            replace(
                tracked,
                unseen=tracked.unseen + passed,
                face=replace(
                    tracked.face, detection=replace(tracked.face.detection, box=Box(*box.tolist()))
                ),
            )
            for tracked, box in zip(shown, moved, strict=True)
        ]


@dataclass
class Track:
    """One face over time.

    Attributes:
        number: from 1.
        box: float [4], smoothed: left, top, right, bottom.
        detection: its latest detection.
        last_seen: time of that detection in seconds.
        last_predicted: time of its latest prediction in seconds.
        prediction_count: number of its predictions.
        average: of its predictions.
    """

    number: int
    box: np.ndarray
    detection: Detection
    last_seen: float
    last_predicted: float = -np.inf
    prediction_count: int = 0
    average: AveragedPrediction = field(default_factory=AveragedPrediction)


class TrackRecorder(Protocol):
    """Is informed of what happens to tracks, which it knows by their numbers."""

    def saw(self, number: int, image: np.ndarray, seconds: float, detection: Detection) -> None: ...

    def predicted(self, number: int, face: Face, seconds: float) -> None: ...

    def end(self, number: int) -> None: ...


class Tracker:
    """Tracks faces from frame to frame. Not thread-safe.

    Args:
        budget: maximum number of faces to predict per frame, which bounds the cost of crowds;
            those predicted longest ago come first.
        recorder: is informed of each track.
    """

    def __init__(self, budget: int, recorder: TrackRecorder | None = None) -> None:
        self._budget, self._recorder = budget, recorder
        self._tracks: list[Track] = []
        self._gray = np.zeros((1, 1), np.uint8)
        self._shape: tuple[int, ...] = ()
        self._seconds = 0.0
        self.count = 0  # number of tracks so far

    def update(
        self, image: np.ndarray | None, seconds: float, detections: Sequence[Detection]
    ) -> None:
        """Updates the tracks with the detections of a frame.

        Args:
            image: the frame, uint8 [H, W, 3]; None if there is none: then no optical flow moves
                the boxes before they are compared with the detections.
            seconds: its time.
            detections: the faces in it.
        """
        boxes = np.array([track.box for track in self._tracks], float).reshape(-1, 4)
        if image is None:
            gray, shape = self._gray, self._shape
        else:
            gray, shape = _to_gray(image), image.shape
            if self._shape and self._shape != shape:  # The video goes on in another size.
                boxes *= np.tile(np.divide(shape[1::-1], self._shape[1::-1]), 2)
            boxes = _move(boxes, self._gray, gray, shape)
        found = np.array([detection.box for detection in detections], float).reshape(-1, 4)
        for track, box in zip(self._tracks, boxes, strict=True):
            track.box = box
        matches = match(boxes, found)
        for row, column in matches:
            track = self._tracks[row]
            track.box = _blend(track.box, found[column])
            track.detection, track.last_seen = detections[column], seconds
        kept = [track for track in self._tracks if seconds - track.last_seen <= KEEP_SECONDS]
        if self._recorder:
            for number in sorted({t.number for t in self._tracks} - {t.number for t in kept}):
                self._recorder.end(number)
        self._tracks = kept
        for column in sorted(set(range(len(found))) - {column for _, column in matches}):
            self.count += 1
            self._tracks.append(Track(self.count, found[column], detections[column], seconds))
        self._gray, self._shape, self._seconds = gray, shape, seconds
        if self._recorder and image is not None:
            for track in self._tracks:
                if track.last_seen == seconds:
                    self._recorder.saw(track.number, image, seconds, track.detection)

    def due_tracks(self) -> list[Track]:
        """Returns the tracks whose faces in this frame should be predicted now."""
        waiting = [
            track
            for track in self._tracks
            if track.last_seen == self._seconds
            and (
                track.prediction_count < FIRST_PREDICTIONS
                or self._seconds - track.last_predicted >= PREDICT_EVERY
            )
        ]
        return sorted(waiting, key=lambda track: track.last_predicted)[: self._budget]

    def add_predictions(
        self, tracks: Sequence[Track], faces: Sequence[Face], seconds: float
    ) -> None:
        """Adds the predictions of `due_tracks`, in their order, of the frame at `seconds`."""
        for track, face in zip(tracks, faces, strict=True):
            track.average.add(face.prediction, face.detection.score, seconds)
            track.last_predicted = seconds
            track.prediction_count += 1
            if self._recorder:
                self._recorder.predicted(track.number, face, seconds)

    def scene(self) -> Scene:
        """Returns the current faces."""
        faces = [
            TrackedFace(
                number=track.number,
                face=Face(
                    Detection(Box(*track.box.tolist()), track.detection.score),
                    track.average.get(),
                ),
                unseen=self._seconds - track.last_seen,
            )
            for track in self._tracks
            if self._seconds - track.last_seen <= SHOW_SECONDS
        ]
        return Scene(self._seconds, self._gray, tuple(faces))


def match(tracks: np.ndarray, found: np.ndarray) -> list[tuple[int, int]]:
    """Pairs boxes float [N, 4] and [M, 4] greedily by overlap; returns (row, column) pairs."""
    tracks, found = _enlarged(tracks), _enlarged(found)
    upper_left = np.maximum(tracks[:, None, :2], found[None, :, :2])
    lower_right = np.minimum(tracks[:, None, 2:], found[None, :, 2:])
    width, height = np.moveaxis(np.maximum(lower_right - upper_left, 0), -1, 0)
    intersection = width * height
    union = _area(tracks)[:, None] + _area(found)[None] - intersection
    overlap = intersection / np.maximum(union, 1e-9)
    rows, columns = np.nonzero(overlap >= MIN_OVERLAP)
    order = np.argsort(-overlap[rows, columns], kind="stable")
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in pairs and column not in taken:
            pairs[row] = column
            taken.add(column)
    return list(pairs.items())


def _enlarged(boxes: np.ndarray) -> np.ndarray:
    more = (ENLARGEMENT - 1) / 2 * (boxes[:, 2:] - boxes[:, :2])
    return np.concatenate([boxes[:, :2] - more, boxes[:, 2:] + more], axis=1)


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(-1)


def _blend(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Exponential smoothing of a box in position and size."""
    old, new = (np.concatenate([(b[:2] + b[2:]) / 2, b[2:] - b[:2]]) for b in (old, new))
    center, size = np.split(old + SMOOTHING * (new - old), 2)
    return np.concatenate([center - size / 2, center + size / 2])


def _to_gray(image: np.ndarray) -> np.ndarray:
    """Greyscale uint8 [H, W], at most `GRAY_SIDE` pixels on each side."""
    height, width = image.shape[:2]
    scale = GRAY_SIDE / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _move(
    boxes: np.ndarray, before: np.ndarray, after: np.ndarray, shape: Sequence[int]
) -> np.ndarray:
    """Moves boxes float [N, 4] by the optical flow between two greyscale images.

    The shift is the median of a grid of nine points (in a crowd, the centre alone), tracked with
    the pyramidal Lucas-Kanade method; points with a large forward-backward error are ignored. On
    the test clips this overlaps more with later detections than constant velocity or no motion.
    """
    if not len(boxes) or before.shape != after.shape or min(before.shape) < 16:
        return boxes
    scale = np.array([after.shape[1] / shape[1], after.shape[0] / shape[0]])
    side = 3 if len(boxes) <= MAX_GRID_FACES else 1
    steps = np.arange(1, side + 1) / (side + 1)
    grid = np.stack(np.meshgrid(steps, steps), -1).reshape(1, -1, 2)
    upper_left, lower_right = boxes[:, None, :2], boxes[:, None, 2:]
    points = ((upper_left + grid * (lower_right - upper_left)) * scale).astype(np.float32)
    points = points.reshape(-1, 1, 2)
    forth, found, _ = cv2.calcOpticalFlowPyrLK(before, after, points, None, **_FLOW)
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(after, before, forth, None, **_FLOW)
    error = np.linalg.norm(back - points, axis=-1)
    known = ((found == 1) & (found_back == 1) & (error <= MAX_FORWARD_BACKWARD_ERROR)).reshape(
        len(boxes), -1, 1
    )
    shift = np.where(known, (forth - points).reshape(len(boxes), -1, 2) / scale, np.nan)
    moving = known.any((1, 2))
    result = boxes.copy()
    result[moving] += np.tile(np.nanmedian(shift[moving], axis=1), 2)
    return result
