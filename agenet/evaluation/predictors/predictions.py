"""What a predictor says about N faces, as arrays."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from agenet.faces.face import Prediction
from agenet.labels import AGE_GROUPS, GENDERS, UNKNOWN, nearest_age_group


@dataclass(frozen=True)
class Predictions:
    """Predictions for N faces; any part of them may be missing.

    Attributes:
        name: of the predictor, unique on a page.
        age: years, float [N]; nan if there is none.
        age_low, age_high: first and last year of the interval that should hold 80 % of the
            probability, float [N], or nan.
        age_group: index into `agenet.labels.AGE_GROUPS`, int [N], or `UNKNOWN`.
        age_probability: of that group, float [N], or nan.
        gender: index into `agenet.labels.GENDERS`, int [N], or `UNKNOWN`.
        gender_probability: of that gender, float [N], or nan.
        source: what the predictor is, for the report.
        notes: what readers must know about these predictions.
    """

    name: str
    age: np.ndarray
    age_low: np.ndarray
    age_high: np.ndarray
    age_group: np.ndarray
    age_probability: np.ndarray
    gender: np.ndarray
    gender_probability: np.ndarray
    source: str = ""
    notes: tuple[str, ...] = ()

    def predicted(self, task: str) -> np.ndarray:
        """Predicted classes of "age" or "gender", int [N], or `UNKNOWN`."""
        return self.gender if task == "gender" else self.age_group

    def probability(self, task: str) -> np.ndarray:
        """Of the predicted class, float [N], or nan."""
        return self.gender_probability if task == "gender" else self.age_probability

    @property
    def is_present(self) -> np.ndarray:
        """Whether anything is predicted, bool [N]."""
        return (self.gender != UNKNOWN) | (self.age_group != UNKNOWN)

    def with_notes(self, *notes: str) -> "Predictions":
        return replace(self, notes=(*self.notes, *notes))


def from_predictions(
    name: str, predictions: Sequence[Prediction | None], source: str = ""
) -> Predictions:
    """Puts the predictions of N faces into arrays; None for a face without any.

    A face with an age but without a group of `AGE_GROUPS` gets the group nearest to its age.
    """
    found = [Prediction() if each is None else each for each in predictions]
    groups = [_group_of(each) for each in found]
    probabilities = [
        (each.age_probabilities or {}).get(each.age_group or "") if group != UNKNOWN else None
        for each, group in zip(found, groups, strict=True)
    ]
    return Predictions(
        name=name,
        age=_floats(each.age for each in found),
        age_low=_floats(each.age_interval and each.age_interval[0] for each in found),
        age_high=_floats(each.age_interval and each.age_interval[1] for each in found),
        age_group=np.array(groups, np.int64),
        age_probability=_floats(probabilities),
        gender=np.array([GENDERS.index(p.gender) if p.gender else UNKNOWN for p in found], int),
        gender_probability=_floats(each.gender_probability for each in found),
        source=source,
    )


def _group_of(prediction: Prediction) -> int:
    if prediction.age_group in AGE_GROUPS:
        return AGE_GROUPS.index(prediction.age_group)
    return UNKNOWN if prediction.age is None else nearest_age_group(prediction.age)


def _floats(values: Iterable[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], np.float64)
