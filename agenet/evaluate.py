"""Evaluation of a run on faces it was not trained on, and the report of it.

python -m agenet.evaluate --workdir=RUN
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from agenet.checkpoint import Checkpoints
from agenet.data.order import evaluation_batches
from agenet.data.resident import Resident
from agenet.errors import UserError
from agenet.experiment import Experiment
from agenet.metrics import task_metrics
from agenet.report import write_report
from agenet.steps import Batch, EvalStep
from agenet.writers import read_json_lines

GetBatch = Callable[[np.ndarray, np.ndarray], Batch]


def predict(
    eval_step: EvalStep,
    variables: Any,
    get_batch: GetBatch,
    rows: np.ndarray,
    batch_size: int,
    *,
    stop: Callable[[], object] = lambda: False,
    progress: str = "",
) -> dict[str, np.ndarray] | None:
    """Log-probabilities float32 [N, C] per task for the given rows [N], each exactly once.

    Args:
        eval_step: from `agenet.steps.make_eval_step`.
        variables: parameters and batch statistics.
        get_batch: gives the batch of given rows [B] and mask [B].
        rows: of the data set.
        batch_size: how many at a time; the last batch is padded.
        stop: asked before every batch; if it says yes the result is None.
        progress: title of a progress bar; none if empty.
    """
    outputs = []
    batches = list(evaluation_batches(rows, batch_size))
    for part, mask in tqdm(
        batches, desc=progress, unit=" batches", leave=False, disable=not progress
    ):
        if stop():
            return None
        # Fetched later, so that the device has its next batch while this one is under way.
        outputs.append((eval_step(variables, get_batch(part, mask)), mask))
        if len(outputs) > 1:
            outputs[-2] = _fetch(*outputs[-2])
    fetched = [_fetch(*output) for output in outputs]
    return {
        task: np.concatenate([log_probs[task][mask] for log_probs, mask in fetched])
        for task in fetched[0][0]
    }


def _fetch(log_probs: Any, mask: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    return jax.device_get(log_probs), mask


def measure(
    experiment: Experiment, log_probs: dict[str, np.ndarray], rows: np.ndarray
) -> dict[str, dict[str, Any]]:
    """`agenet.metrics.task_metrics` per task of the predictions [N, C] for the given rows [N]."""
    labels = experiment.records.labels
    return {task: task_metrics(task, log_probs[task], labels[task][rows]) for task in log_probs}


def report_run(
    experiment: Experiment,
    pictures: Resident,
    checkpoints: Checkpoints,
    workdir: Path,
    *,
    show_progress: bool,
) -> dict[str, Any]:
    """Tests the best state and writes the report into the work directory.

    Returns:
        The summary that `report.json` holds.

    Raises:
        UserError: there is no best state yet.
    """
    best, latest = checkpoints.read_run("best"), checkpoints.read_run("latest")
    if best is None:
        raise UserError(f"{workdir} holds no evaluated state yet: train past the first validation")
    progress = (latest or best).get("progress", {})
    variables = checkpoints.restore_best(experiment.create_state().variables)
    start = time.perf_counter()
    rows = experiment.splits.test
    log_probs = predict(
        experiment.eval_step,
        variables,
        pictures.batch,
        rows,
        experiment.config.batch_size,
        progress="testing" if show_progress else "",
    )
    assert log_probs is not None
    seconds = time.perf_counter() - start
    steps = checkpoints.latest_step or best["step"]
    batch_size = experiment.config.batch_size
    summary = experiment.describe() | {
        "command": best["command"],
        "training": {
            "seconds": progress.get("seconds", 0.0),
            "steps": steps,
            "epochs": steps / experiment.steps_per_epoch,
            "pictures_per_second": steps * batch_size / max(progress.get("seconds", 0.0), 1e-9),
            "best_step": best["step"],
            "best_metric": best["metric"],
            "best_value": best["value"],
        },
        "evaluation": {
            "split": "test",
            "step": best["step"],
            "seconds": seconds,
            "tasks": measure(experiment, log_probs, rows),
        },
    }
    labels = {task: experiment.records.labels[task][rows] for task in log_probs}
    predictions = {
        "index": rows,
        "subject_id": experiment.records.subject_id[rows],
        **labels,
        **{f"{task}_log_probs": values for task, values in log_probs.items()},
    }
    history = read_json_lines(workdir / "metrics.jsonl")
    write_report(workdir, summary, history, predictions, pictures.faces)
    return summary
