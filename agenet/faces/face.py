"""Types of detected and predicted faces, and the interfaces of detectors and predictors."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np


class Box(NamedTuple):
    """An axis-aligned rectangle in pixels of its image; it may extend over the image border."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def center(self) -> tuple[float, float]:
        """(x, y)."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


@dataclass(frozen=True)
class Detection:
    """A face found by a detector.

    Attributes:
        box: its bounding box.
        score: confidence; comparable within one detector only.
        landmarks: float [5, 2] as (x, y): the centres of the left and right eye as seen in the
            image, the tip of the nose, and the left and right corner of the mouth; None from a
            detector without landmarks.
    """

    box: Box
    score: float
    landmarks: np.ndarray | None = None

    def scaled(self, times: float) -> "Detection":
        """The same face in an image that is so many times as large."""
        if times == 1:
            return self
        landmarks = None if self.landmarks is None else self.landmarks * times
        return replace(self, box=Box(*(times * side for side in self.box)), landmarks=landmarks)


class Detector(Protocol):
    """Finds faces in images.

    An attribute `thread_safe = True` says that several threads may call `detect` at once. Without
    it a `Predictor` lets them take turns.
    """

    name: str

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Returns the faces in an RGB image uint8 [H, W, 3], largest first."""
        ...


@dataclass(frozen=True)
class Prediction:
    """The prediction for one face; None for what the network was not trained to predict.

    `agenet.faces.ages.describe_years` states the rule by which age, group and interval agree.

    Attributes:
        age: in whole years, inside `age_group`.
        age_group: the most probable age group, of `agenet.labels.AGE_GROUPS` by default.
        age_probabilities: by age group; they sum to 1.
        gender: the more probable of `agenet.labels.GENDERS`.
        gender_probability: probability of that gender, 0.5 to 1.
        age_interval: first and last year of the shortest interval around `age` that holds 80 % of
            the probability.
        age_distribution: the probability of each year from 0 to `agenet.labels.MAX_AGE`.
    """

    age: float | None = None
    age_group: str | None = None
    age_probabilities: dict[str, float] | None = None
    gender: str | None = None
    gender_probability: float | None = None
    age_interval: tuple[int, int] | None = None
    age_distribution: tuple[float, ...] | None = field(default=None, repr=False)

    def asdict(self, *, distribution: bool = False) -> dict[str, Any]:
        """The fields, for JSON; without the 101 numbers of `age_distribution` by default."""
        interval = None if self.age_interval is None else list(self.age_interval)
        fields: dict[str, Any] = {
            "age": self.age,
            "age_interval": interval,
            "age_group": self.age_group,
            "age_probabilities": self.age_probabilities and dict(self.age_probabilities),
            "gender": self.gender,
            "gender_probability": self.gender_probability,
        }
        if distribution:
            fields["age_distribution"] = self.age_distribution and list(self.age_distribution)
        return fields


@dataclass(frozen=True)
class Face:
    """A detected face and its prediction."""

    detection: Detection
    prediction: Prediction

    def asdict(self, *, distribution: bool = False) -> dict[str, Any]:
        """For JSON, with the prediction's fields.

        `box` is [left, top, right, bottom], `landmarks` five [x, y] or None.
        """
        box = [round(side, 1) for side in self.detection.box]
        predicted = self.prediction.asdict(distribution=distribution)
        points = self.detection.landmarks
        landmarks = None if points is None else np.round(points, 1).tolist()
        return {"box": box, "score": self.detection.score} | predicted | {"landmarks": landmarks}


class FacePredictor(Protocol):
    """What tracking needs of a predictor; implemented by `agenet.inference.predictor.Predictor`."""

    def predict_faces(
        self, image: np.ndarray, detections: Sequence[Detection] | None = None
    ) -> list[Face]:
        """Predicts the given faces of an RGB image uint8 [H, W, 3], or those it detects itself."""
        ...
