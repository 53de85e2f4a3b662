"""Metrics of predictors on labelled faces, of subgroups, and differences on the same faces.

Nothing needs probabilities of all classes, so that predictions of other programs, ages and genders
alone, are measured like those of a network.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from agenet.evaluation.bootstrap import (
    MIN_SUBJECTS,
    divide,
    estimate_with_intervals,
    tally,
)
from agenet.evaluation.metrics import task_metrics
from agenet.evaluation.predictors.faces import Division, LabelledFaces
from agenet.evaluation.predictors.predictions import Predictions
from agenet.labels import TASK_CLASSES, UNKNOWN

CLOSE = 5  # years of the cumulative score CS@5
_SMALLEST = 1e-12  # of a probability whose logarithm is taken


@dataclass(frozen=True)
class Metric:
    """A metric and how it is shown.

    Attributes:
        heading: in tables.
        text: what it is.
        factor: what values are multiplied by to be shown: 100 for shares.
        digits: behind the point.
    """

    heading: str
    text: str
    factor: float = 100
    digits: int = 1


METRICS = {
    "gender_accuracy": Metric(
        "Gender accuracy %", "share of faces whose predicted gender is the labelled one."
    ),
    "gender_calibration_error": Metric(
        "Gender calibration error %",
        "expected calibration error, the mean distance of accuracy from the probability of the "
        "predicted gender over 15 equal bins of that probability; without an interval, because it "
        "comes out too large for few faces and in resamples.",
    ),
    "age_accuracy": Metric(
        "Age group accuracy %",
        "share of faces whose predicted one of eight age groups is the labelled one. A label or a "
        "prediction between two groups counts towards the nearer one.",
    ),
    "one_off": Metric("Age group 1-off %", "share of faces at most one of these groups off."),
    "range_error": Metric(
        "Years outside the labelled range",
        "mean distance of the predicted age from the labelled range in years, 0 inside it; the "
        "absolute error where the age is known to the year.",
        1,
        2,
    ),
    "inside": Metric(
        "Inside the labelled range %",
        "share of faces less than half a year outside of the labelled range.",
    ),
    "mae": Metric(
        "MAE, years",
        "mean absolute error of the age, over faces whose age is known to the year.",
        1,
        2,
    ),
    "cs5": Metric(f"CS@{CLOSE} %", f"share of these faces at most {CLOSE} years off."),
    "bias": Metric(
        "Mean error, years",
        "predicted minus labelled age in the mean, over the same faces: positive where people are "
        "predicted too old.",
        1,
        2,
    ),
    "coverage": Metric(
        "80 % interval holds the age %",
        "share of these faces whose age lies in the predicted interval; 80 where the intervals "
        "are right.",
    ),
    "range_coverage": Metric(
        "80 % interval meets the range %",
        "share of faces with a labelled range of several years that the predicted interval "
        "overlaps: an upper bound of the share whose age it holds.",
    ),
}
# Better where they are greater (1) or smaller (-1), of those that are compared in pairs.
COMPARED = {"gender_accuracy": 1, "age_accuracy": 1, "range_error": -1, "mae": -1, "cs5": 1}


@dataclass(frozen=True)
class Estimate:
    """The value of a metric.

    Attributes:
        value: the mean over the faces.
        faces: how many faces have a label and a prediction for it.
        subjects: how many persons they show.
        interval: 95 % by resampled subjects, see `agenet.evaluation.bootstrap`, or None.
    """

    value: float
    faces: int
    subjects: int
    interval: tuple[float, float] | None = None


Estimates = Mapping[str, Estimate]


@dataclass(frozen=True)
class Group:
    """A subgroup: the name of its division, its own, its number of faces, and its metrics."""

    division: str
    name: str
    faces: int
    estimates: Estimates


@dataclass(frozen=True)
class Measured:
    """One predictor on the faces.

    Attributes:
        predictions: what it predicts.
        missing: faces without any prediction.
        estimates: metrics on all faces.
        groups: metrics of the subgroups.
        confusion: by task, counts [C, C] of pairs of true (rows) and predicted class.
        reliability: by task, see `agenet.evaluation.metrics.task_metrics`; only where there are
            probabilities.
    """

    predictions: Predictions
    missing: int
    estimates: Estimates
    groups: tuple[Group, ...]
    confusion: Mapping[str, np.ndarray]
    reliability: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Difference:
    """The second predictor minus the first, on the faces that both predicted."""

    first: str
    second: str
    estimates: Estimates


def measure(
    faces: LabelledFaces,
    predictions: Predictions,
    divisions: Sequence[Division],
    advance: Callable[[int], object] = lambda count: None,
) -> Measured:
    """Measures a predictor on all faces and on each subgroup.

    Args:
        faces: N labelled faces.
        predictions: for these.
        divisions: of these.
        advance: called with the number of groups that were measured since the last call.
    """
    values = face_values(faces, predictions)
    resampled = faces.resampled()

    def among(chosen: np.ndarray) -> Estimates:
        found = estimates({name: v[chosen] for name, v in values.items()}, resampled[chosen])
        calibration = _gender_calibration(faces, predictions, chosen)
        advance(1)
        return _ordered(found | calibration)

    groups = [
        Group(division.name, name, int(members.sum()), among(members))
        for division in divisions
        for index, name in enumerate(division.groups)
        if (members := division.member == index).any()
    ]
    everybody = np.ones(len(faces), bool)
    return Measured(
        predictions=predictions,
        missing=int((~predictions.is_present).sum()),
        estimates=among(everybody),
        groups=tuple(groups),
        confusion={task: _confusion(faces, predictions, task) for task in TASK_CLASSES},
        reliability=_reliability(faces, predictions),
    )


def count_groups(divisions: Sequence[Division]) -> int:
    """How many groups `measure` measures."""
    return 1 + sum(len(division.groups) for division in divisions)


def compare(faces: LabelledFaces, predictors: Sequence[Predictions]) -> list[Difference]:
    """The difference of every two predictors, each face compared with itself."""
    values = [face_values(faces, each) for each in predictors]
    differences = []
    for (a, first), (b, second) in combinations(enumerate(predictors), 2):
        gains = {name: values[b][name] - values[a][name] for name in COMPARED}
        found = estimates(gains, faces.resampled())
        differences.append(Difference(first.name, second.name, found))
    return differences


def face_values(faces: LabelledFaces, predictions: Predictions) -> dict[str, np.ndarray]:
    """The contribution of each face to each metric, float [N]; nan where there is none."""
    low, high, age = faces.age_low, faces.age_high, predictions.age
    labelled = low != UNKNOWN
    outside = np.where(labelled, np.maximum(low - age, age - high), np.nan)
    exact, ranged = faces.is_exact, faces.is_range
    error = np.where(exact, age - low, np.nan)
    steps = np.abs(predictions.age_group - faces.age_group).astype(np.float64)
    steps[(predictions.age_group == UNKNOWN) | (faces.age_group == UNKNOWN)] = np.nan
    correct = (predictions.gender == faces.gender).astype(np.float64)
    correct[(predictions.gender == UNKNOWN) | (faces.gender == UNKNOWN)] = np.nan
    overlaps = (predictions.age_low <= high) & (predictions.age_high >= low)
    meets = _compared(predictions.age_low + predictions.age_high, overlaps)
    return {
        "gender_accuracy": correct,
        "age_accuracy": _compared(steps, steps == 0),
        "one_off": _compared(steps, steps <= 1),
        "range_error": np.maximum(outside, 0),  # nan stays nan.
        # Without ranges the share would be that of ages that are right to the year.
        "inside": _compared(outside, outside < 0.5)
        if ranged.any()
        else np.full(len(faces), np.nan),
        "mae": np.abs(error),
        "cs5": _compared(error, np.abs(error) <= CLOSE),
        "bias": error,
        "coverage": np.where(exact, meets, np.nan),
        "range_coverage": np.where(ranged, meets, np.nan),
    }


def estimates(values: Mapping[str, np.ndarray], subject: np.ndarray) -> dict[str, Estimate]:
    """Means of values float [N] with their intervals; those that are nan throughout are left out.

    All metrics are computed on the same resamples of the subjects, int [N].
    """
    subjects, place = np.unique(subject, return_inverse=True)
    known = {name: ~np.isnan(v) for name, v in values.items()}
    names = [name for name, is_known in known.items() if is_known.any()]
    if not names:
        return {}
    count = len(subjects)
    sums = np.stack([np.bincount(place[known[n]], values[n][known[n]], count) for n in names], 1)
    counts = np.stack([np.bincount(place[known[n]], minlength=count) for n in names], 1)

    def weighted(weights: np.ndarray) -> dict[str, np.ndarray]:
        totals, faces = weights @ sums, weights @ counts
        return {name: divide(totals[:, i], faces[:, i]) for i, name in enumerate(names)}

    means, intervals = estimate_with_intervals(weighted, count)
    found = {}
    for index, name in enumerate(names):
        persons = int((counts[:, index] > 0).sum())
        ends = intervals[name] if persons >= MIN_SUBJECTS else None
        interval = (ends[0], ends[1]) if ends else None
        found[name] = Estimate(means[name] or 0.0, int(known[name].sum()), persons, interval)
    return found


def _compared(value: np.ndarray, result: np.ndarray) -> np.ndarray:
    """A comparison's result [N] as 0 or 1, nan where the compared value is."""
    return np.where(np.isnan(value), np.nan, result.astype(np.float64))


def _ordered(found: Mapping[str, Estimate]) -> dict[str, Estimate]:
    return {name: found[name] for name in METRICS if name in found}


def _confusion(faces: LabelledFaces, predictions: Predictions, task: str) -> np.ndarray:
    true, predicted = faces.label(task), predictions.predicted(task)
    known = (true != UNKNOWN) & (predicted != UNKNOWN)
    classes = len(TASK_CLASSES[task])
    return tally(true[known], predicted[known], (classes, classes)).astype(np.int64)


def _gender_calibration(
    faces: LabelledFaces, predictions: Predictions, chosen: np.ndarray
) -> dict[str, Estimate]:
    known = chosen & _has_probability(faces, predictions, "gender")
    if not known.any():
        return {}
    log_probs = _log_probs(predictions.gender[known], predictions.gender_probability[known], 2)
    value = task_metrics("gender", log_probs, faces.gender[known])["calibration_error"]
    subjects = len(np.unique(faces.resampled()[known]))
    return {"gender_calibration_error": Estimate(value, int(known.sum()), subjects)}


def _reliability(faces: LabelledFaces, predictions: Predictions) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for task, classes in TASK_CLASSES.items():
        known = _has_probability(faces, predictions, task)
        if known.any():
            predicted = predictions.predicted(task)[known]
            log_probs = _log_probs(predicted, predictions.probability(task)[known], len(classes))
            found[task] = task_metrics(task, log_probs, faces.label(task)[known])
    return found


def _has_probability(faces: LabelledFaces, predictions: Predictions, task: str) -> np.ndarray:
    return (faces.label(task) != UNKNOWN) & ~np.isnan(predictions.probability(task))


def _log_probs(predicted: np.ndarray, probability: np.ndarray, classes: int) -> np.ndarray:
    """Log-probabilities [N, C] with this probability for the predicted class.

    The rest is divided equally among the other classes. Where that would make one of them more
    probable the predicted class stays the greatest, by a hair: only its own probability counts.
    """
    rest = np.minimum((1 - probability) / (classes - 1), probability - _SMALLEST)
    probs = np.repeat(np.maximum(rest, _SMALLEST)[:, None], classes, axis=1)
    probs[np.arange(len(predicted)), predicted] = probability
    return np.log(np.maximum(probs, _SMALLEST))
