"""Metrics of a classification task, with bootstrap intervals by person, on the host in float64."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from agenet.labels import RACES, TASK_CLASSES, UNKNOWN

# Of equal width, over the probability of the predicted class.
CALIBRATION_BINS = 15
# In the place of a metric's name: the state kept is not the best by one, but that at the end.
LAST = "last"
RESAMPLES, LEVEL, SEED = 1000, 0.95, 0
# The percentiles of fewer persons than this lie far too close together.
MIN_SUBJECTS = 10
# Whole years in the middle of `AGE_GROUPS`. The last group thins out with the years: among the
# 38,138 usable rows of the Wikipedia part of IMDb-Wiki, those from 60 to 100 are 70.3 on average.
AGE_MIDPOINTS = (1.0, 5.0, 10.0, 17.5, 28.5, 40.5, 50.5, 70.0)
SUBGROUPS = TASK_CLASSES | {"race": RACES}

# Of few faces it comes out too large, and of resamples, which hold fewer distinct ones, even more:
# percentiles would not cover it.
_WITHOUT_INTERVAL = ("calibration_error",)

# The main figures [R], nan where undefined, of R weightings of P persons [R, P].
Figures = Callable[[np.ndarray], dict[str, np.ndarray]]


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
                the predicted class's probability (Guo et al., "On Calibration of Modern Neural
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
    everyone = _class_figures(task, log_probs, labels, np.zeros(labels.size, np.int64), 1)
    main = {name: _number(value[0]) for name, value in everyone(np.ones((1, 1))).items()}

    predicted = log_probs.argmax(axis=1)
    confusion = _tally(labels, predicted, (classes, classes)).astype(np.int64)
    support = confusion.sum(axis=1)
    confidence, bins = _confidence(log_probs)
    in_bin = np.bincount(bins, minlength=CALIBRATION_BINS)
    return {
        "count": int(labels.size),
        **main,
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
    """`task_metrics`, errors in years, intervals, and the main figures of subgroups.

    The intervals are percentiles of the bootstrap (Efron, "Bootstrap Methods", 1979) over
    persons: the pictures of one person are alike, so a person is drawn with all of them or not at
    all (Field & Welsh, "Bootstrapping Clustered Data", 2007). The draws depend on nothing but the
    persons, so that two runs that are tested on the same faces are resampled alike.

    Args:
        task, log_probs, labels: as for `task_metrics`.
        subject_id: the person shown, int [N].
        groups: name of a division to each face's place in `SUBGROUPS[name]`, int [N], or
            `UNKNOWN`.
        true_age: whole years, int [N], or `UNKNOWN` where they are not known exactly.
        predicted_age: years, float [N]; goes with `true_age`.

    Returns:
        The result of `task_metrics` and besides
            subjects: persons with a labelled face.
            exact_ages, mae, cs5 (only where faces have an exact age): how many do, whether
                they have a label of the task or not; their mean absolute error in years; the
                share of them, from 0 to 1, that is at most 5 years off (cumulative score).
            intervals: for each main figure [low, high], the middle `LEVEL` of `RESAMPLES`
                resamples; None for the calibration error, where the figure is None, where fewer
                than `MIN_SUBJECTS` persons are behind it, or where it is undefined in more than
                one resample in twenty.
            subgroups: for each division, a list of dicts: `name`, `count`, `subjects`, the main
                figures and `intervals`, all as above, of the faces of that group only. Groups
                without a face are left out.

    Raises:
        ValueError: as `task_metrics`.
    """
    metrics = task_metrics(task, log_probs, labels)
    log_probs, labels = _checked(task, log_probs, labels)

    def main_figures(chosen: np.ndarray) -> dict[str, Any]:
        known = chosen & (labels != UNKNOWN)
        subjects, person = np.unique(subject_id[known], return_inverse=True)
        figures = _class_figures(task, log_probs[known], labels[known], person, len(subjects))
        values, intervals = estimate_with_intervals(figures, len(subjects))
        found: dict[str, Any] = {"count": int(known.sum()), "subjects": len(subjects), **values}
        if true_age is not None and predicted_age is not None:
            exact = chosen & (true_age != UNKNOWN)
            subjects, person = np.unique(subject_id[exact], return_inverse=True)
            if exact.any():
                errors = np.abs(predicted_age[exact] - true_age[exact])
                figures = mean_figures({"mae": errors, "cs5": errors <= 5}, person)
                values, more = estimate_with_intervals(figures, len(subjects))
                found |= {"exact_ages": int(exact.sum()), **values}
                intervals |= more
        return found | {"intervals": intervals}

    subgroups = {}
    for division, places in groups.items():
        subgroups[division] = [
            {"name": name, **main_figures(places == place)}
            for place, name in enumerate(SUBGROUPS[division])
            if (labels[places == place] != UNKNOWN).any()
        ]
    everyone = main_figures(np.ones(len(labels), bool))
    return metrics | everyone | {"subgroups": subgroups}


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
) -> tuple[dict[str, float | None], dict[str, list[float] | None]] | None:
    """`range_accuracy`, the share of faces whose most probable age range is the true one.

    The choice is between those ranges that occur; None if they overlap, or are single years.

    Args:
        log_probs: of 0 to 100 years [N, 101].
        low, high: first and last year [N] that the true age lies between, or `UNKNOWN`.
        subject_id: the person shown, int [N].

    Returns:
        The figure and its interval, see `estimate_with_intervals`.
    """
    known = low != UNKNOWN
    ranges, place = np.unique(np.stack([low[known], high[known]], 1), axis=0, return_inverse=True)
    if (
        len(ranges) < 2
        or (ranges[1:, 0] <= ranges[:-1, 1]).any()
        or (ranges.T[0] == ranges.T[1]).any()
    ):
        return None
    right = in_ranges(log_probs[known], ranges.tolist()).argmax(1) == place.ravel()
    subjects, person = np.unique(subject_id[known], return_inverse=True)
    return estimate_with_intervals(mean_figures({"range_accuracy": right}, person), len(subjects))


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


def _class_figures(
    task: str, log_probs: np.ndarray, labels: np.ndarray, person: np.ndarray, persons: int
) -> Figures:
    """Of labelled faces, `person` [N] being their places among the weights."""
    faces, classes = log_probs.shape
    predicted = log_probs.argmax(axis=1)
    right = predicted == labels
    confidence, bins = _confidence(log_probs)
    loss = -log_probs[np.arange(faces), labels]
    # What a figure needs of a person are a few sums, whatever the weights.
    support_of = _tally(person, labels, (persons, classes))
    hits_of = _tally(person, labels, (persons, classes), right)
    gap_of = _tally(person, bins, (persons, CALIBRATION_BINS), confidence - right)
    loss_of = np.bincount(person, loss, persons)
    near_of = np.bincount(person, np.abs(predicted - labels) <= 1, persons)
    score = log_probs[:, -1] - log_probs[:, 0]

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        support, hits = weights @ support_of, weights @ hits_of
        count, occurs = support.sum(axis=1), support > 0
        recalls = np.divide(hits, support, out=np.zeros_like(hits), where=occurs)
        found = {
            "loss": _divide(weights @ loss_of, count),
            "accuracy": _divide(hits.sum(axis=1), count),
        }
        if task == "age":
            found["one_off"] = _divide(weights @ near_of, count)
        found["balanced_accuracy"] = _divide(recalls.sum(axis=1), occurs.sum(axis=1))
        found["calibration_error"] = _divide(np.abs(weights @ gap_of).sum(axis=1), count)
        if task == "gender":
            found["roc_auc"] = _roc_auc(score, labels == 1, person, weights)
        return found

    return figures


def mean_figures(values: Mapping[str, np.ndarray], person: np.ndarray) -> Figures:
    """The means over faces of each of the values [N], `person` [N] being as above."""
    sums = np.stack([np.bincount(person, v) for v in (*values.values(), person >= 0)], axis=1)

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        *totals, count = (weights @ sums).T
        return {name: _divide(total, count) for name, total in zip(values, totals, strict=True)}

    return figures


def _roc_auc(
    score: np.ndarray, positive: np.ndarray, person: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Area under the curve [R] of scores [N], a face weighing as much as its person."""
    order = np.argsort(score)
    score, positive, person = score[order], positive[order], person[order]
    below, up_to = np.searchsorted(score, score), np.searchsorted(score, score, "right")
    areas = np.full(len(weights), np.nan)
    for row, weight in enumerate(weights):
        positives = weight[person] * positive
        negatives = np.concatenate([[0.0], np.cumsum(weight[person] * ~positive)])
        pairs = positives.sum() * negatives[-1]
        if pairs:
            areas[row] = positives @ (negatives[below] + negatives[up_to]) / 2 / pairs
    return areas


def estimate_with_intervals(
    figures: Figures, persons: int
) -> tuple[dict[str, float | None], dict[str, list[float] | None]]:
    """The figures with every person counted once, and their intervals."""
    once = figures(np.ones((1, persons)))
    values = {name: _number(value[0]) for name, value in once.items()}
    if persons < MIN_SUBJECTS:
        return values, dict.fromkeys(values)
    rng = np.random.default_rng(SEED)
    # A few at a time: all weights of ten thousand persons would fill 80 MB.
    parts = [figures(_draw(rng, 100, persons)) for _ in range(RESAMPLES // 100)]
    intervals: dict[str, list[float] | None] = {}
    tails = (50 * (1 - LEVEL), 50 * (1 + LEVEL))
    for name, value in values.items():
        drawn = np.concatenate([part[name] for part in parts])
        drawn = drawn[np.isfinite(drawn)]
        enough = (
            value is not None and name not in _WITHOUT_INTERVAL and len(drawn) >= 0.95 * RESAMPLES
        )
        intervals[name] = np.percentile(drawn, tails).tolist() if enough else None
    return values, intervals


def _draw(rng: np.random.Generator, resamples: int, persons: int) -> np.ndarray:
    """How often each person is drawn [R, P] where as many are drawn as there are."""
    drawn = rng.integers(persons, size=(resamples, persons))
    rows = np.broadcast_to(np.arange(resamples)[:, None], drawn.shape)
    return _tally(rows.ravel(), drawn.ravel(), drawn.shape)


def _confidence(log_probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the predicted class [N], and its bin [N], which includes its upper end."""
    confidence = np.exp(log_probs.max(axis=1))
    bins = np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1
    return confidence, bins.clip(0, CALIBRATION_BINS - 1)


def _tally(
    row: np.ndarray, column: np.ndarray, shape: tuple[int, ...], values: np.ndarray | None = None
) -> np.ndarray:
    """Sums of values [N], or counts, in each cell of a table, float64."""
    cells = row * shape[1] + column
    return np.bincount(cells, values, shape[0] * shape[1]).reshape(shape).astype(np.float64)


def _divide(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)


def _ratios(sums: np.ndarray, counts: np.ndarray) -> list[float | None]:
    return [_number(value) for value in _divide(np.asarray(sums, np.float64), counts)]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
