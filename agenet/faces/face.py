"""Types of detected and predicted faces, and the interfaces of detectors and predictors."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
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


class Detector(Protocol):
    """Finds faces in images."""

    name: str

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Returns the faces in an RGB image uint8 [H, W, 3], largest first."""
        ...


@dataclass(frozen=True)
class Prediction:
    """The prediction for one face; None for what the network was not trained to predict.

    Attributes:
        age: the expected age in years.
        age_group: the most probable age group, of `agenet.labels.AGE_GROUPS` by default.
        age_probabilities: by age group; they sum to 1.
        gender: the more probable of `agenet.labels.GENDERS`.
        gender_probability: probability of that gender, 0.5 to 1.
    """

    age: float | None = None
    age_group: str | None = None
    age_probabilities: dict[str, float] | None = None
    gender: str | None = None
    gender_probability: float | None = None

    def asdict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Face:
    """A detected face and its prediction."""

    detection: Detection
    prediction: Prediction

    def asdict(self) -> dict[str, Any]:
        """For JSON: `box` as [left, top, right, bottom], `score`, and the prediction's fields."""
        box = [round(side, 1) for side in self.detection.box]
        return {"box": box, "score": self.detection.score} | self.prediction.asdict()


class FacePredictor(Protocol):
    """What tracking needs of a predictor; implemented by `agenet.inference.predictor.Predictor`."""

    def predict_faces(
        self, image: np.ndarray, detections: Sequence[Detection] | None = None
    ) -> list[Face]:
        """Predicts the given faces of an RGB image uint8 [H, W, 3], or those it detects itself."""
        ...
