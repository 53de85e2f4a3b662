"""Metrics of one classification task: accuracy, calibration, errors in years, and subgroups.

All is computed on the host in float64.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agenet.evaluation.bootstrap import (
    Intervals,
    Values,
    WeightedMetrics,
    divide,
    estimate_with_intervals,
    number_or_none,
    tally,
    weighted_means,
)
from agenet.labels import RACES, TASK_CLASSES, UNKNOWN

# Of equal width, over the probability of the predicted class.
CALIBRATION_BINS = 15
# Takes the place of a metric's name where the state at the end is kept, not the best by a metric.
LAST = "last"
# Whole years in the middle of `AGE_GROUPS`. In the last group there are fewer faces the older they
# are: the 38,138 usable rows of the Wikipedia part of IMDb-Wiki from 60 to 100 average 70.3.
AGE_MIDPOINTS = (1.0, 5.0, 10.0, 17.5, 28.5, 40.5, 50.5, 70.0)
SUBGROUPS = TASK_CLASSES | {"race": RACES}


def task_metrics(task: str, log_probs: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Metrics of one task over one set of faces, ready for JSON.

    Faces whose label is `UNKNOWN` contribute nothing. Of equally probable classes the first is
    the prediction. With the number of faces in the denominator throughout, the result does not
    depend on how the faces were batched.

    >>> m = task_metrics("gender", np.log([[0.75, 0.25], [0.4, 0.6], [0.5, 0.5]]), [0, 0, -1])
    >>> m["count"], m["accuracy"], m["recall"], m["confusion"]
    (2, 0.5, [0.5, None], [[1, 1], [0, 0]])

    Args:
        task: "age" or "gender"; its classes are `TASK_CLASSES[task]`.
        log_probs: natural logarithms of the class probabilities, float [N, C].
        labels: true classes, int [N], or `UNKNOWN`.

    Returns:
        A dict of plain Python numbers and lists:
            count: labelled faces, n.
            loss: mean negative log-likelihood of the true class, in nats.
            accuracy: share of faces whose most probable class is the true one.
            one_off (age only): share of faces at most one age group off, the "1-off" of
                Levi & Hassner, "Age and Gender Classification Using Convolutional Neural
                Networks", CVPR Workshops 2015.
            balanced_accuracy: mean of the recalls of those classes that occur (Brodersen et al.,
                "The Balanced Accuracy and Its Posterior Distribution", ICPR 2010).
            calibration_error: expected calibration error over `CALIBRATION_BINS` equal bins of
                the probability of the predicted class (Guo et al., "On Calibration of Modern Neural
                Networks", ICML 2017).
            roc_auc (gender only): share of the pairs of a female and a male face in which the
                male one has the greater odds of being male, ties counted half (the statistic of
                Mann & Whitney); None unless both occur.
            recall: per class [C], the share of its faces that are recognised; None where the
                class does not occur.
            support: faces per class [C].
            confusion: counts [C][C], one row per true class, one column per predicted class.
            reliability: for each bin of the calibration error, `count`, and the means
                `confidence` (probability of the predicted class) and `accuracy`, None where empty.
        Shares are from 0 to 1; loss and shares are None when no face has a label.

    Raises:
        ValueError: shapes do not fit, a label is no class, or a log-probability is not finite.
    """
    classes = len(TASK_CLASSES[task])
    log_probs, labels = _checked(task, log_probs, labels)
    known = labels != UNKNOWN
    log_probs, labels = log_probs[known], labels[known]
    whole = _class_metrics(task, log_probs, labels, np.zeros(labels.size, np.int64), 1)
    values = {name: number_or_none(v[0]) for name, v in whole(np.ones((1, 1))).items()}

    predicted = log_probs.argmax(axis=1)
    confusion = tally(labels, predicted, (classes, classes)).astype(np.int64)
    support = confusion.sum(axis=1)
    confidence, bins = _confidence(log_probs)
    in_bin = np.bincount(bins, minlength=CALIBRATION_BINS)
    return {
        "count": int(labels.size),
        **values,
        "recall": _ratios(confusion.diagonal(), support),
        "support": support.tolist(),
        "confusion": confusion.tolist(),
        "reliability": {
            "count": in_bin.tolist(),
            "confidence": _ratios(np.bincount(bins, confidence, CALIBRATION_BINS), in_bin),
            "accuracy": _ratios(np.bincount(bins, predicted == labels, CALIBRATION_BINS), in_bin),
        },
    }


def report_metrics(
    task: str,
    log_probs: np.ndarray,
    labels: np.ndarray,
    subject_id: np.ndarray,
    groups: Mapping[str, np.ndarray],
    *,
    true_age: np.ndarray | None = None,
    predicted_age: np.ndarray | None = None,
) -> dict[str, Any]:
    """`task_metrics`, errors in years, bootstrap intervals, and the main metrics of subgroups.

    Args:
        task, log_probs, labels: as for `task_metrics`.
        subject_id: the subject shown, int [N].
        groups: maps the name of a division to each face's index in `SUBGROUPS[name]`, int [N],
            or `UNKNOWN`.
        true_age: whole years, int [N], or `UNKNOWN` where they are not known exactly.
        predicted_age: years, float [N]; needed with `true_age`.

    Returns:
        The result of `task_metrics` and also
            subjects: subjects with a labelled face.
            exact_ages, mae, cs5 (only if any face has an exact age): the number of such faces,
                with or without a label of the task; their mean absolute error in years; the
                share of them, from 0 to 1, that is at most 5 years off (cumulative score).
            intervals: maps each main metric to its interval [low, high] or None, see
                `agenet.evaluation.bootstrap.estimate_with_intervals`.
            subgroups: for each division a list of dicts: `name`, `count`, `subjects`, the main
                metrics and `intervals`, all as above, of the faces of that group only. Groups
                without a face are left out.

    Raises:
        ValueError: as `task_metrics`.
    """
    metrics = task_metrics(task, log_probs, labels)
    log_probs, labels = _checked(task, log_probs, labels)

    def main_metrics(chosen: np.ndarray) -> dict[str, Any]:
        known = chosen & (labels != UNKNOWN)
        subjects, subject = np.unique(subject_id[known], return_inverse=True)
        weighted = _class_metrics(task, log_probs[known], labels[known], subject, len(subjects))
        values, intervals = estimate_with_intervals(weighted, len(subjects))
        found: dict[str, Any] = {"count": int(known.sum()), "subjects": len(subjects), **values}
        if true_age is not None and predicted_age is not None:
            exact = chosen & (true_age != UNKNOWN)
            if exact.any():
                subjects, subject = np.unique(subject_id[exact], return_inverse=True)
                errors = np.abs(predicted_age[exact] - true_age[exact])
                weighted = weighted_means({"mae": errors, "cs5": errors <= 5}, subject)
                values, more = estimate_with_intervals(weighted, len(subjects))
                found |= {"exact_ages": int(exact.sum()), **values}
                intervals |= more
        return found | {"intervals": intervals}

    subgroups = {
        division: [
            {"name": name, **main_metrics(members == index)}
            for index, name in enumerate(SUBGROUPS[division])
            if (labels[members == index] != UNKNOWN).any()
        ]
        for division, members in groups.items()
    }
    return metrics | main_metrics(np.ones(len(labels), bool)) | {"subgroups": subgroups}


def largest_class_share(counts: Sequence[int] | np.ndarray) -> float | None:
    """Accuracy of always predicting the most frequent class, from the faces of each class [C].

    >>> largest_class_share([1, 3]), largest_class_share([0, 0])
    (0.75, None)
    """
    total = sum(counts)
    return float(max(counts) / total) if total else None


def expected_age(log_probs: np.ndarray) -> np.ndarray:
    """Years [N], the mean of `AGE_MIDPOINTS` under log-probabilities of the age groups [N, C].

    >>> expected_age(np.log([[0.5, 0.5, 1e-9, 1e-9, 1e-9, 1e-9, 1e-9, 1e-9]])).round(3).tolist()
    [3.0]
    """
    probs = np.exp(np.asarray(log_probs, np.float64))
    return probs @ np.array(AGE_MIDPOINTS) / probs.sum(axis=1)


def in_ranges(log_probs: np.ndarray, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Log-probabilities [N, R] of ranges of ages, from those of 0 to 100 years [N, 101].

    >>> in_ranges(np.log(np.full((1, 101), 1 / 101)), [(0, 2), (3, 9)]).round(2).tolist()
    [[-3.52, -2.67]]

    Args:
        log_probs: natural logarithms.
        ranges: first and last year, both included.
    """
    parts = [log_probs[:, low : high + 1] for low, high in ranges]
    return np.stack([np.logaddexp.reduce(part, axis=1) for part in parts], axis=1)


def range_accuracy(
    log_probs: np.ndarray, low: np.ndarray, high: np.ndarray, subject_id: np.ndarray
) -> tuple[Values, Intervals] | None:
    """`range_accuracy`, the share of faces whose most probable age range is the true one.

    The choice is between those ranges that occur; None if they overlap, or are single years.

    Args:
        log_probs: of 0 to 100 years [N, 101].
        low, high: first and last year [N] that the true age lies between, or `UNKNOWN`.
        subject_id: the subject shown, int [N].

    Returns:
        The metric and its interval, see `estimate_with_intervals`.
    """
    known = low != UNKNOWN
    ranges, place = np.unique(np.stack([low[known], high[known]], 1), axis=0, return_inverse=True)
    if (
        len(ranges) < 2
        or (ranges[1:, 0] <= ranges[:-1, 1]).any()
        or (ranges.T[0] == ranges.T[1]).any()
    ):
        return None
    correct = in_ranges(log_probs[known], ranges.tolist()).argmax(1) == place.ravel()
    subjects, subject = np.unique(subject_id[known], return_inverse=True)
    return estimate_with_intervals(
        weighted_means({"range_accuracy": correct}, subject), len(subjects)
    )


def _checked(task: str, log_probs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    classes = len(TASK_CLASSES[task])
    log_probs = np.asarray(log_probs, dtype=np.float64)
    labels = np.asarray(labels)
    if log_probs.shape != (len(labels), classes):
        raise ValueError(
            f"{task}: log_probs of shape {log_probs.shape} for {len(labels)} labels of "
            f"{classes} classes"
        )
    if not np.isfinite(log_probs).all():
        raise ValueError(f"{task}: log-probabilities that are not finite")
    if labels.size and (labels.min() < UNKNOWN or labels.max() >= classes):
        raise ValueError(f"{task}: labels outside 0 to {classes - 1}")
    return log_probs, labels


def _class_metrics(
    task: str, log_probs: np.ndarray, labels: np.ndarray, subject: np.ndarray, subjects: int
) -> WeightedMetrics:
    """Metrics of labelled faces; `subject` [N] gives their places among the weights."""
    faces, classes = log_probs.shape
    predicted = log_probs.argmax(axis=1)
    correct = predicted == labels
    confidence, bins = _confidence(log_probs)
    loss = -log_probs[np.arange(faces), labels]
    # All that the metrics need of a subject are a few sums, whatever the weights.
    support_of = tally(subject, labels, (subjects, classes))
    hits_of = tally(subject, labels, (subjects, classes), correct)
    gap_of = tally(subject, bins, (subjects, CALIBRATION_BINS), confidence - correct)
    loss_of = np.bincount(subject, loss, subjects)
    one_off_of = np.bincount(subject, np.abs(predicted - labels) <= 1, subjects)
    score = log_probs[:, -1] - log_probs[:, 0]

    def metrics(weights: np.ndarray) -> dict[str, np.ndarray]:
        support, hits = weights @ support_of, weights @ hits_of
        count, occurs = support.sum(axis=1), support > 0
        recalls = np.divide(hits, support, out=np.zeros_like(hits), where=occurs)
        found = {
            "loss": divide(weights @ loss_of, count),
            "accuracy": divide(hits.sum(axis=1), count),
        }
        if task == "age":
            found["one_off"] = divide(weights @ one_off_of, count)
        found["balanced_accuracy"] = divide(recalls.sum(axis=1), occurs.sum(axis=1))
        found["calibration_error"] = divide(np.abs(weights @ gap_of).sum(axis=1), count)
        if task == "gender":
            found["roc_auc"] = _roc_auc(score, labels == 1, subject, weights)
        return found

    return metrics


def _roc_auc(
    score: np.ndarray, positive: np.ndarray, subject: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Area under the curve [R] of scores [N], a face weighing as much as its subject."""
    order = np.argsort(score)
    score, positive, subject = score[order], positive[order], subject[order]
    below, up_to = np.searchsorted(score, score), np.searchsorted(score, score, "right")
    areas = np.full(len(weights), np.nan)
    for row, weight in enumerate(weights):
        positives = weight[subject] * positive
        negatives = np.concatenate([[0.0], np.cumsum(weight[subject] * ~positive)])
        pairs = positives.sum() * negatives[-1]
        if pairs:
            areas[row] = positives @ (negatives[below] + negatives[up_to]) / 2 / pairs
    return areas


def _confidence(log_probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the predicted class [N], and its bin [N], which includes its upper end."""
    confidence = np.exp(log_probs.max(axis=1))
    bins = np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1
    return confidence, bins.clip(0, CALIBRATION_BINS - 1)


def _ratios(sums: np.ndarray, counts: np.ndarray) -> list[float | None]:
    return [number_or_none(value) for value in divide(np.asarray(sums, np.float64), counts)]
