"""Predictions of a state for a data set, and their metrics."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from agenet.data.records import Records
from agenet.evaluation.metrics import (
    SUBGROUPS,
    expected_age,
    range_accuracy,
    report_metrics,
)
from agenet.labels import UNKNOWN
from agenet.training.losses import YEARS
from agenet.training.steps import Batch, EvalStep


def predict(
    eval_step: EvalStep,
    variables: Any,
    batches: Iterable[tuple[Batch, np.ndarray]],
    *,
    count: int | None = None,
    stop: Callable[[], object] = lambda: False,
    progress: str = "",
) -> dict[str, np.ndarray] | None:
    """Log-probabilities float32 [N, C] per task for N images, in the order of their batches.

    If age is predicted by year, `years` [N, 101] are among them.

    Args:
        eval_step: from `agenet.training.steps.make_eval_step`.
        variables: parameters and batch statistics.
        batches: with masks bool [B], False for padding, see `agenet.runs.batches`.
        count: N, for the progress bar.
        stop: called before every batch; if it returns a true value, the result is None.
        progress: title of a progress bar; none if empty.
    """
    outputs: list[tuple[Any, np.ndarray]] = []
    options: dict[str, Any] = {"unit": " images", "leave": False, "disable": not progress}
    with tqdm(total=count, desc=progress, **options) as bar:
        for batch, mask in batches:
            if stop():
                return None
            # Fetched one batch later, so that the device always has a batch to work on.
            outputs.append((eval_step(variables, batch), mask))
            if len(outputs) > 1:
                outputs[-2] = jax.device_get(outputs[-2])
            bar.update(int(mask.sum()))
    fetched = [jax.device_get(output) for output in outputs]
    return {
        name: np.concatenate([values[name][mask] for values, mask in fetched])
        for name in fetched[0][0]
    }


def measure_in_full(
    log_probs: Mapping[str, np.ndarray], records: Records, rows: np.ndarray
) -> dict[str, dict[str, Any]]:
    """`report_metrics` of each task.

    If age is predicted by year, `range_accuracy` in the data set's own age ranges is added.

    Args:
        log_probs: [N, C] per task.
        records: the data set.
        rows: of the data set that the predictions are for, [N].
    """
    truth = truth_of(records, rows)
    divisions = [name for name in SUBGROUPS if name in truth]
    results = {
        task: report_metrics(
            task,
            values,
            truth[task],
            truth["subject_id"],
            {name: truth[name] for name in divisions},
            true_age=exact_ages(records, rows) if task == "age" else None,
            predicted_age=predicted_age(log_probs) if task == "age" else None,
        )
        for task, values in log_probs.items()
        if task != "years"
    }
    if "years" in log_probs:
        ends = truth["age_low"], truth["age_high"]
        if found := range_accuracy(log_probs["years"], *ends, truth["subject_id"]):
            value, interval = found
            results["age"] |= value
            results["age"]["intervals"] |= interval
    return results


def predicted_age(log_probs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Years [N]: the mean of the distribution over years or, without one, over age groups."""
    if "years" in log_probs:
        return np.exp(log_probs["years"].astype(np.float64)) @ YEARS
    return expected_age(log_probs["age"])


def age_errors(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """The mean absolute error in years, `mae`, and the share at most 5 years off, `cs5`.

    >>> age_errors(np.array([20.0, 37.0, 50.0]), np.array([22, 30, -1]))
    {'mae': 4.5, 'cs5': 0.5}

    Args:
        predicted: years, float [N].
        true: whole years, int [N], or `UNKNOWN`; {} if no age is known.
    """
    known = true != UNKNOWN
    if not known.any():
        return {}
    errors = np.abs(predicted[known] - true[known])
    return {"mae": float(errors.mean()), "cs5": float((errors <= 5).mean())}


def exact_ages(records: Records, rows: np.ndarray) -> np.ndarray:
    """Whole years [N] of the given rows, `UNKNOWN` where only a range is known, or nothing."""
    low, high = records.age_low[rows], records.age_high[rows]
    return np.where(low == high, low, UNKNOWN)


def truth_of(records: Records, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Subjects, labels, ages and, if the data set has it, race of the given rows, [N] each."""
    columns = {
        "subject_id": records.subject_id,
        **records.labels,
        "age_low": records.age_low,
        "age_high": records.age_high,
    }
    if records.race is not None:
        columns["race"] = records.race
    return {name: values[rows] for name, values in columns.items()}
