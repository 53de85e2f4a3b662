"""Metrics of several runs: over folds, pooled, by subgroup, and of two runs on the same faces."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from statistics import fmean, stdev
from typing import Any

import numpy as np

from agenet.evaluation.bootstrap import estimate_with_intervals, weighted_means
from agenet.evaluation.comparison.runs import Run, Test
from agenet.evaluation.metrics import largest_class_share
from agenet.labels import TASK_CLASSES, UNKNOWN


@dataclass(frozen=True)
class Estimate:
    """A metric with its interval by subject, or with its standard deviation over folds."""

    value: float
    interval: tuple[float, float] | None = None
    deviation: float | None = None

    @property
    def ends(self) -> tuple[float, float] | None:
        """Of an error bar."""
        if self.deviation is not None:
            return self.value - self.deviation, self.value + self.deviation
        return self.interval


@dataclass(frozen=True)
class Bar:
    """Accuracy among the faces of a subgroup, pooled over the tests.

    Attributes:
        accuracy: from 0 to 1.
        count: faces.
        interval: by subject; None for folds and for reports that have none.
        folds: accuracy on each fold where the group occurs; empty for a single test.
    """

    accuracy: float
    count: int
    interval: tuple[float, float] | None
    folds: tuple[float, ...]


@dataclass(frozen=True)
class Difference:
    """The second run minus the first, on the faces that both were tested on.

    Attributes:
        first, second: the runs.
        faces, subjects: how many were tested.
        accuracy, loss: mean difference, with a bootstrap interval by subject.
        only_first, only_second: faces that only one of them classifies correctly.
    """

    first: Run
    second: Run
    faces: int
    subjects: int
    accuracy: Estimate
    loss: Estimate
    only_first: int
    only_second: int


def estimate(run: Run, task: str, name: str) -> Estimate | None:
    """A main metric of a task; None where the report of any fold lacks it."""
    tests = [test.tasks[task] for test in run.tests if task in test.tasks]
    values = [metrics.get(name) for metrics in tests]
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    if run.is_folds:
        # Of a sample, n - 1 in the denominator, as agenet folds has it.
        return Estimate(fmean(known), deviation=stdev(known))
    return Estimate(known[0], interval=_pair(tests[0].get("intervals", {}).get(name)))


def largest_class(run: Run, task: str) -> float | None:
    """Mean over the tests of `largest_class_share` of the tested faces."""
    if task not in run.tasks:
        return None
    return fmean(largest_class_share(test.tasks[task]["support"]) or 0.0 for test in run.tests)


def training_mean(run: Run, name: str) -> float:
    """Mean over the tests of a number in `training` of the report."""
    return fmean(test.report["training"][name] for test in run.tests)


def confusion(run: Run, task: str) -> np.ndarray:
    """Counts [C, C], a row for each true class, summed over the tests."""
    return np.sum([np.array(test.tasks[task]["confusion"]) for test in run.tests], axis=0)


def reliability(run: Run, task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Faces, mean probability and accuracy [K] of the bins with faces, pooled over the tests.

    None where the report of any test lacks it, or tests have different bins.
    """
    bins = [test.tasks[task].get("reliability") for test in run.tests]
    if not all(bins) or len({len(b["count"]) for b in bins if b}) != 1:
        return None
    counts = np.array([b["count"] for b in bins if b], np.float64)

    def sums(name: str) -> np.ndarray:
        values = [[value or 0.0 for value in b[name]] for b in bins if b]
        return (counts * np.array(values)).sum(axis=0)

    total = counts.sum(axis=0)
    filled = total > 0
    confidence, accuracy = sums("confidence")[filled], sums("accuracy")[filled]
    return total[filled], confidence / total[filled], accuracy / total[filled]


def subgroups(run: Run, task: str, division: str) -> dict[str, Bar]:
    """Accuracy in each group that occurs of a division, "age", "gender" or "race".

    Where a report is too old to have the division by the task's own classes, the recalls take its
    place: among the faces of one class, recall is accuracy.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for test in run.tests:
        for group in _groups(test.tasks[task], task, division):
            if group["count"]:
                found.setdefault(group["name"], []).append(group)
    bars = {}
    for name, groups in found.items():
        count = sum(group["count"] for group in groups)
        ends = groups[0].get("intervals", {}).get("accuracy")
        bars[name] = Bar(
            accuracy=sum(group["count"] * group["accuracy"] for group in groups) / count,
            count=count,
            interval=None if run.is_folds else _pair(ends),
            folds=tuple(group["accuracy"] for group in groups) if run.is_folds else (),
        )
    return bars


def _groups(metrics: dict[str, Any], task: str, division: str) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] | None = metrics.get("subgroups", {}).get(division)
    if groups is not None or division != task:
        return groups or []
    recalls = zip(TASK_CLASSES[task], metrics["support"], metrics["recall"], strict=True)
    return [{"name": name, "count": n, "accuracy": recall} for name, n, recall in recalls]


def differences(runs: Sequence[Run], task: str) -> tuple[list[Difference], list[tuple[Run, Run]]]:
    """The differences of all pairs that were tested on the same faces, and the other pairs."""
    found, apart = [], []
    for first, second in combinations([run for run in runs if task in run.tasks], 2):
        difference = _difference(first, second, task)
        if difference is None:
            apart.append((first, second))
        else:
            found.append(difference)
    return found, apart


def _difference(first: Run, second: Run, task: str) -> Difference | None:
    """None unless a test of each is on the same faces with the same labels.

    Faces without a label do not matter: a run of one task is not tested on them.
    """
    subjects, gains, losses = [], [], []
    for a, b in product(*([_labelled(test, task) for test in r.tests] for r in (first, second))):
        if not a or not b:
            continue
        if not all(np.array_equal(a[k], b[k]) for k in ("index", "subject_id", task)):
            continue
        labels, rows = a[task], np.arange(len(a[task]))
        log_probs = [p[f"{task}_log_probs"].astype(np.float64) for p in (a, b)]
        correct = [(values.argmax(axis=1) == labels).astype(np.int64) for values in log_probs]
        subjects.append(a["subject_id"])
        gains.append(correct[1] - correct[0])
        losses.append(log_probs[0][rows, labels] - log_probs[1][rows, labels])
    if not subjects:
        return None
    gain, loss = np.concatenate(gains), np.concatenate(losses)
    known, subject = np.unique(np.concatenate(subjects), return_inverse=True)
    # These are the resamples of the reports' own intervals, where the labels are the same.
    differences = weighted_means({"accuracy": gain, "loss": loss}, subject)
    values, intervals = estimate_with_intervals(differences, len(known))
    accuracy, loss_difference = (
        Estimate(values[name] or 0.0, _pair(intervals[name])) for name in ("accuracy", "loss")
    )
    return Difference(
        first=first,
        second=second,
        faces=len(gain),
        subjects=len(known),
        accuracy=accuracy,
        loss=loss_difference,
        only_first=int((gain < 0).sum()),
        only_second=int((gain > 0).sum()),
    )


def _labelled(test: Test, task: str) -> dict[str, np.ndarray]:
    """The predictions for the faces that have a label of the task; empty if there are none."""
    predictions = test.predictions or {}
    known = predictions.get(task, np.empty(0)) != UNKNOWN
    names = ("index", "subject_id", task, f"{task}_log_probs")
    return {name: predictions[name][known] for name in names} if known.any() else {}


def _pair(ends: Any) -> tuple[float, float] | None:
    return (ends[0], ends[1]) if ends else None
