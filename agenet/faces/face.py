"""What is said of faces: where they are, and what the network tells of them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np


class Box(NamedTuple):
    """An upright rectangle in pixels of its picture; it may reach over the picture's border."""

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
        """The middle, (x, y)."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


@dataclass(frozen=True)
class Detection:
    """A face that a detector found.

    Attributes:
        box: where.
        score: how sure the detector is; comparable within one detector only.
        landmarks: the middle of the eye left in the picture, of the one right in it, the tip of
            the nose and the corners of the mouth, left and right, float [5, 2] as (x, y); None
            from a detector that does not tell them.
    """

    box: Box
    score: float
    landmarks: np.ndarray | None = None


class Detector(Protocol):
    """Finds faces."""

    name: str

    def detect(self, image: np.ndarray) -> list[Detection]:
        """The faces in an RGB picture uint8 [H, W, 3], the largest first."""
        ...


@dataclass(frozen=True)
class Prediction:
    """What the network tells of one face; None for what it was not trained to tell.

    Attributes:
        age: the expected age in years.
        age_group: the most probable of `agenet.labels.AGE_GROUPS`.
        age_probabilities: of all groups, of sum 1.
        gender: the more probable of `agenet.labels.GENDERS`.
        gender_probability: of that gender, 0.5 to 1.
    """

    age: float | None = None
    age_group: str | None = None
    age_probabilities: dict[str, float] | None = None
    gender: str | None = None
    gender_probability: float | None = None

    def asdict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Face:
    """A face of a picture and what is told of it."""

    detection: Detection
    prediction: Prediction

    def asdict(self) -> dict[str, Any]:
        """For JSON: `box` as [left, top, right, bottom], `score`, and the prediction's fields."""
        box = [round(side, 1) for side in self.detection.box]
        return {"box": box, "score": self.detection.score} | self.prediction.asdict()


class FacePredictor(Protocol):
    """What programs need of a predictor; `agenet.inference.predictor.Predictor` is one."""

    def predict_faces(
        self, image: np.ndarray, detections: Sequence[Detection] | None = None
    ) -> list[Face]:
        """What the network tells of the faces of an RGB picture uint8 [H, W, 3].

        Of those given, or else of those that its detector finds, in that order.
        """
        ...
