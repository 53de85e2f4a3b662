"""Metrics of a classification task from log-probabilities and labels, in float64."""

from typing import Any

import numpy as np

from agenet.labels import TASK_CLASSES, UNKNOWN


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
            recall: per class [C], the share of its faces that are recognised; None where the
                class does not occur.
            support: faces per class [C].
            confusion: counts [C][C], one row per true class, one column per predicted class.
        Shares are from 0 to 1; loss and shares are None when no face has a label.

    Raises:
        ValueError: shapes do not fit, a label is no class, or a log-probability is not finite.
    """
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
    known = labels != UNKNOWN
    log_probs, labels = log_probs[known], labels[known]
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(f"{task}: labels outside 0 to {classes - 1}")

    predicted = log_probs.argmax(axis=1) if labels.size else labels
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    support = confusion.sum(axis=1)
    occurs = support > 0
    recall = confusion.diagonal()[occurs] / support[occurs]

    def mean(values: np.ndarray) -> float | None:
        return float(values.mean()) if values.size else None

    by_class = np.full(classes, None, dtype=object)
    by_class[occurs] = recall
    metrics: dict[str, Any] = {
        "count": int(labels.size),
        "loss": mean(-log_probs[np.arange(labels.size), labels]),
        "accuracy": mean(predicted == labels),
    }
    if task == "age":
        metrics["one_off"] = mean(np.abs(predicted - labels) <= 1)
    return metrics | {
        "balanced_accuracy": mean(recall),
        "recall": by_class.tolist(),
        "support": support.tolist(),
        "confusion": confusion.tolist(),
    }
