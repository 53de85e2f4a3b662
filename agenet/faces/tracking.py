"""The same face from frame to frame, and what is told of it averaged over time."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np

from agenet.faces.face import Box, Detection, Face, Prediction
from agenet.labels import GENDERS

# Small faces leave their boxes from one detection to the next: enlarged by `GROW`, those boxes
# continue a track whose intersection over union is at least `MIN_OVERLAP`.
GROW = 1.5
MIN_OVERLAP = 0.2
MAX_RETURN = 1.0  # pixels by which a point may miss its start when it is followed back
KEPT = 1.0  # seconds that a face may be missing and still keep its number
SHOWN = 0.4  # seconds that a missing face is still shown: a detector misses single frames
OUTDATED = 2.0  # seconds after which a slow detector's word is shown no more
FIRST_PREDICTIONS = 3  # taken without a pause, so that the average settles soon
PREDICT_EVERY = 0.5  # seconds between later predictions of one face
HALF_LIFE = 2.0  # seconds after which a prediction counts half in the average
# How far position and size follow a new detection; the flow has moved the box already, so that
# a small share takes out the detector's jitter without lagging behind.
FOLLOW = np.array([0.5, 0.5, 0.3, 0.3])
GRAY_SIDE = 640  # pixels; the optical flow needs no more
FEW = 40  # faces from which on the optical flow of each is that of its middle
_FLOW: dict[str, Any] = {"winSize": (15, 15), "maxLevel": 3}


class AveragedPrediction:
    """The average of one face's predictions: recent and sharp pictures count more.

    Ages and gender's probabilities are averaged as they are, the groups' by their logarithms.
    """

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._weights: dict[str, float] = {}
        self._groups: tuple[str, ...] = ()
        self._seconds = 0.0

    def add(self, prediction: Prediction, weight: float, seconds: float) -> None:
        """Takes a prediction in.

        Args:
            weight: at least 0; the detector's score.
            seconds: when; not before the one that was added last.
        """
        decay = 0.5 ** (max(0.0, seconds - self._seconds) / HALF_LIFE)
        self._seconds = seconds
        values: dict[str, Any] = {"age": prediction.age}
        if prediction.age_probabilities:
            self._groups = tuple(prediction.age_probabilities)
            values["groups"] = np.log(np.maximum(list(prediction.age_probabilities.values()), 1e-6))
        if prediction.gender is not None and prediction.gender_probability is not None:
            probability = prediction.gender_probability
            values["male"] = probability if prediction.gender == GENDERS[1] else 1 - probability
        weight = max(weight, 1e-3)
        for name, value in values.items():
            if value is not None:
                self._sums[name] = self._sums.get(name, 0) * decay + weight * np.asarray(value)
                self._weights[name] = self._weights.get(name, 0) * decay + weight

    def get(self) -> Prediction:
        """The average; all None before the first."""
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
        if "male" in mean:
            male = float(mean["male"])
            result["gender"] = GENDERS[int(male > 0.5)]
            result["gender_probability"] = max(male, 1 - male)
        return Prediction(**result)


@dataclass(frozen=True)
class TrackedFace:
    """A face that keeps its number from frame to frame.

    Attributes:
        number: from 1, of this video.
        face: its smoothed box and averaged prediction.
        unseen: seconds since the detector last found it.
    """

    number: int
    face: Face
    unseen: float = 0.0

    def asdict(self) -> dict[str, Any]:
        """For JSON."""
        return {"track": self.number, "unseen": round(self.unseen, 3)} | self.face.asdict()


@dataclass(frozen=True)
class Scene:
    """The faces of one frame; tells where they are in a later one. Never changes."""

    seconds: float
    gray: np.ndarray
    faces: tuple[TrackedFace, ...]

    def at(self, image: np.ndarray, seconds: float) -> list[TrackedFace]:
        """The faces as the optical flow moved them, in a frame uint8 [H, W, 3] some time later."""
        passed = max(0.0, seconds - self.seconds)
        # Nobody looked meanwhile: a slow detector must not make faces blink.
        shown = self.faces if passed <= OUTDATED else ()
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
        box: float [4], smoothed: left, top, right, bottom.
        detection: the detector's latest word.
        seen: seconds, when that was.
        predicted: seconds, when it was last predicted.
        predictions: how many.
    """

    number: int
    box: np.ndarray
    detection: Detection
    seen: float
    predicted: float = -np.inf
    predictions: int = 0
    average: AveragedPrediction = field(default_factory=AveragedPrediction)


class Tracker:
    """Follows faces from frame to frame. Belongs to one thread.

    Args:
        budget: faces to predict after one frame, at most, so that a crowd costs no more than
            that; whoever waits longest comes first.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._tracks: list[Track] = []
        self._gray = np.zeros((1, 1), np.uint8)
        self._seconds = 0.0
        self.count = 0  # of all faces so far

    def update(self, image: np.ndarray, seconds: float, detections: Sequence[Detection]) -> None:
        """Takes in what the detector found in a frame uint8 [H, W, 3] at some second."""
        gray = _to_gray(image)
        boxes = np.array([track.box for track in self._tracks], float).reshape(-1, 4)
        boxes = _move(boxes, self._gray, gray, image.shape)
        found = np.array([detection.box for detection in detections], float).reshape(-1, 4)
        for track, box in zip(self._tracks, boxes, strict=True):
            track.box = box
        matches = match(boxes, found)
        for row, column in matches:
            track = self._tracks[row]
            track.box = _blend(track.box, found[column])
            track.detection, track.seen = detections[column], seconds
        self._tracks = [track for track in self._tracks if seconds - track.seen <= KEPT]
        for column in sorted(set(range(len(found))) - {column for _, column in matches}):
            self.count += 1
            self._tracks.append(Track(self.count, found[column], detections[column], seconds))
        self._gray, self._seconds = gray, seconds

    def due(self) -> list[Track]:
        """Whose faces in this frame to predict now."""
        waiting = [
            track
            for track in self._tracks
            if track.seen == self._seconds
            and (
                track.predictions < FIRST_PREDICTIONS
                or self._seconds - track.predicted >= PREDICT_EVERY
            )
        ]
        return sorted(waiting, key=lambda track: track.predicted)[: self._budget]

    def learn(self, tracks: Sequence[Track], faces: Sequence[Face], seconds: float) -> None:
        """Takes in the predictions of `due` tracks of the frame at that second, in their order."""
        for track, face in zip(tracks, faces, strict=True):
            track.average.add(face.prediction, face.detection.score, seconds)
            track.predicted = seconds
            track.predictions += 1

    def scene(self) -> Scene:
        """What is known now."""
        faces = [
            TrackedFace(
                number=track.number,
                face=Face(
                    Detection(Box(*track.box.tolist()), track.detection.score),
                    track.average.get(),
                ),
                unseen=self._seconds - track.seen,
            )
            for track in self._tracks
            if self._seconds - track.seen <= SHOWN
        ]
        return Scene(self._seconds, self._gray, tuple(faces))


def match(tracks: np.ndarray, found: np.ndarray) -> list[tuple[int, int]]:
    """Pairs boxes float [N, 4] and [M, 4], those that overlap most first: (row, column) each."""
    tracks, found = _grown(tracks), _grown(found)
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


def _grown(boxes: np.ndarray) -> np.ndarray:
    more = (GROW - 1) / 2 * (boxes[:, 2:] - boxes[:, :2])
    return np.concatenate([boxes[:, :2] - more, boxes[:, 2:] + more], axis=1)


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(-1)


def _blend(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Follows a detection part of the way, in position and in size."""
    old, new = (np.concatenate([(b[:2] + b[2:]) / 2, b[2:] - b[:2]]) for b in (old, new))
    center, size = np.split(old + FOLLOW * (new - old), 2)
    return np.concatenate([center - size / 2, center + size / 2])


def _to_gray(image: np.ndarray) -> np.ndarray:
    """[H, W] of at most `GRAY_SIDE` pixels a side."""
    height, width = image.shape[:2]
    scale = GRAY_SIDE / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _move(
    boxes: np.ndarray, before: np.ndarray, after: np.ndarray, shape: Sequence[int]
) -> np.ndarray:
    """Moves boxes float [N, 4] as the middle of each moved between two grey pictures.

    The median of nine points, in a crowd that of the middle alone, by Lucas and Kanade's pyramidal
    method, without those that, followed back, do not come to where they were. On the clips with
    faces it keeps more overlap with the detector's later boxes than a constant speed or none.
    """
    if not len(boxes) or before.shape != after.shape or min(before.shape) < 16:
        return boxes
    scale = np.array([after.shape[1] / shape[1], after.shape[0] / shape[0]])
    side = 3 if len(boxes) <= FEW else 1
    steps = np.arange(1, side + 1) / (side + 1)
    grid = np.stack(np.meshgrid(steps, steps), -1).reshape(1, -1, 2)
    upper_left, lower_right = boxes[:, None, :2], boxes[:, None, 2:]
    points = ((upper_left + grid * (lower_right - upper_left)) * scale).astype(np.float32)
    points = points.reshape(-1, 1, 2)
    forth, found, _ = cv2.calcOpticalFlowPyrLK(before, after, points, None, **_FLOW)
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(after, before, forth, None, **_FLOW)
    missed = np.linalg.norm(back - points, axis=-1)
    known = ((found == 1) & (found_back == 1) & (missed <= MAX_RETURN)).reshape(len(boxes), -1, 1)
    shift = np.where(known, (forth - points).reshape(len(boxes), -1, 2) / scale, np.nan)
    moving = known.any((1, 2))
    result = boxes.copy()
    result[moving] += np.tile(np.nanmedian(shift[moving], axis=1), 2)
    return result
