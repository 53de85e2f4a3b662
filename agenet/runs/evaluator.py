"""Evaluation of a state on faces it was not trained on, and the report of a run's best state."""

import functools
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from agenet.data.decoding import load_faces
from agenet.data.records import Records
from agenet.distributed.coordination import is_first_process
from agenet.distributed.mesh import create_mesh
from agenet.errors import UserError
from agenet.evaluation.bootstrap import LEVEL, MIN_SUBJECTS, RESAMPLES, SEED
from agenet.evaluation.metrics import (
    SUBGROUPS,
    expected_age,
    range_accuracy,
    report_metrics,
    task_metrics,
)
from agenet.evaluation.report import write_report
from agenet.evaluation.summary import views_of
from agenet.files import read_json_lines
from agenet.labels import UNKNOWN
from agenet.runs.batches import AT_ONCE, Batches, PictureBatches
from agenet.runs.config import RunConfig, parse_config, to_dict
from agenet.runs.experiment import Experiment, create_experiment
from agenet.runs.identity import check_same_run
from agenet.runs.memory import is_exhausted
from agenet.training.checkpoints import Checkpoints, is_complete
from agenet.training.losses import YEARS
from agenet.training.steps import Batch, EvalStep

log = logging.getLogger(__name__)


def predict(
    eval_step: EvalStep,
    variables: Any,
    batches: Iterable[tuple[Batch, np.ndarray]],
    *,
    faces: int | None = None,
    stop: Callable[[], object] = lambda: False,
    progress: str = "",
) -> dict[str, np.ndarray] | None:
    """Log-probabilities float32 [N, C] per task for N faces, in the order of their batches.

    `years` [N, 101] are among them where ages are told by year.

    Args:
        eval_step: from `agenet.training.steps.make_eval_step`.
        variables: parameters and batch statistics.
        batches: with masks bool [B], False for padding, see `agenet.runs.batches`.
        faces: N, for the progress bar.
        stop: asked before every batch; if it says yes the result is None.
        progress: title of a progress bar; none if empty.
    """
    outputs: list[tuple[Any, np.ndarray]] = []
    with tqdm(total=faces, desc=progress, unit=" faces", leave=False, disable=not progress) as bar:
        for batch, mask in batches:
            if stop():
                return None
            # Fetched later, so that the device has its next batch while this one is under way.
            outputs.append((eval_step(variables, batch), mask))
            if len(outputs) > 1:
                outputs[-2] = _fetch(*outputs[-2])
            bar.update(int(mask.sum()))
    fetched = [_fetch(*output) for output in outputs]
    return {
        name: np.concatenate([values[name][mask] for values, mask in fetched])
        for name in fetched[0][0]
    }


def _fetch(log_probs: Any, mask: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    return jax.device_get(log_probs), mask


def measure(
    experiment: Experiment, log_probs: dict[str, np.ndarray], rows: np.ndarray
) -> dict[str, dict[str, Any]]:
    """`task_metrics` of each task for the predictions [N, C] for the given rows [N]."""
    labels = experiment.records.labels
    return {
        task: task_metrics(task, log_probs[task], labels[task][rows]) for task in experiment.tasks
    }


def measure_in_full(
    experiment: Experiment, log_probs: dict[str, np.ndarray], rows: np.ndarray
) -> dict[str, dict[str, Any]]:
    """`report_metrics` of each task for the predictions [N, C] for the given rows [N].

    Where ages are told by year, `range_accuracy` in the data set's own age ranges is added.
    """
    truth = truth_of(experiment.records, rows)
    divisions = [name for name in SUBGROUPS if name in truth]
    exact = truth["age_low"] == truth["age_high"]
    results = {
        task: report_metrics(
            task,
            values,
            truth[task],
            truth["subject_id"],
            {name: truth[name] for name in divisions},
            true_age=np.where(exact, truth["age_low"], UNKNOWN) if task == "age" else None,
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
    """Years [N]: the mean under the probabilities of the years, or else of the age groups."""
    if "years" in log_probs:
        return np.exp(log_probs["years"].astype(np.float64)) @ YEARS
    return expected_age(log_probs["age"])


def truth_of(records: Records, rows: np.ndarray) -> dict[str, np.ndarray]:
    """What the data set says of the given rows [N]: `subject_id`, labels, ages and race, [N]."""
    columns = {
        "subject_id": records.subject_id,
        **records.labels,
        "age_low": records.age_low,
        "age_high": records.age_high,
    }
    if records.race is not None:
        columns["race"] = records.race
    return {name: values[rows] for name, values in columns.items()}


def report_run(
    experiment: Experiment,
    batches: Batches,
    checkpoints: Checkpoints,
    workdir: Path,
    *,
    show_progress: bool,
) -> None:
    """Tests the best state, writes the report into the work directory and logs the figures.

    Raises:
        UserError: there is no best state yet.
    """
    best = read_best(checkpoints, workdir)
    trained = max(checkpoints.read_run("latest") or best, best, key=lambda run: run["step"])
    progress, steps = trained["progress"], trained["step"]
    log.info("testing the state of step %d", best["step"])
    variables = checkpoints.restore_best(experiment.abstract_state().variables)
    views = experiment.config.test_views
    if views > 1:
        batches = _view_batches(experiment, batches, views)
    start = time.perf_counter()
    rows = experiment.splits.test
    log_probs = predict(
        experiment.test_step,
        variables,
        batches.evaluation(rows),
        faces=len(rows),
        progress="testing" if show_progress else "",
    )
    assert log_probs is not None
    if not is_first_process():
        return
    seconds = time.perf_counter() - start
    pictures_trained = steps * experiment.config.batch_size
    asked = views == trained["config"].get("test_views", 1)
    summary = experiment.describe() | {
        "initial": trained.get("initial", {}),
        "command": trained["command"] + ("" if asked else f" --config.test_views={views}"),
        "machine": trained["machine"],
        "training": {
            "seconds": progress["training_seconds"] + progress["validation_seconds"],
            "epochs_found": progress.get("epochs_found", 0),
            "steps": steps,
            "total_steps": experiment.total_steps,
            "complete": is_complete(trained),
            "epochs": steps / experiment.steps_per_epoch,
            "pictures_per_second": pictures_trained / progress["training_seconds"],
            "best_step": best["step"],
            "best_metric": best["metric"],
            "best_value": best["value"],
        },
        "evaluation": {
            "split": "test",
            "views": views,
            "step": best["step"],
            "seconds": seconds,
            "bootstrap": {
                "by": "person",
                "resamples": RESAMPLES,
                "level": LEVEL,
                "seed": SEED,
                "min_subjects": MIN_SUBJECTS,
            },
            "tasks": measure_in_full(experiment, log_probs, rows),
        },
    }
    predictions = {
        "index": rows,
        **truth_of(experiment.records, rows),
        **{f"{name}_log_probs": values for name, values in log_probs.items()},
    }
    history = read_json_lines(workdir / "metrics.jsonl")
    faces = functools.partial(load_faces, experiment.records, size=experiment.config.input.size)
    write_report(workdir, summary, history, predictions, faces)
    log_results(summary, workdir)


def _view_batches(experiment: Experiment, batches: Batches, views: int) -> PictureBatches:
    """Of as few pictures that their views take no more memory than other steps do."""
    known = batches.pictures if isinstance(batches, PictureBatches) else None
    devices = experiment.mesh.size
    at_once = min(experiment.part_size, AT_ONCE * devices) // views
    part_size = max(at_once // devices, 1) * devices
    return PictureBatches(experiment, known or experiment.stream_images(), part_size)


def report_again(workdir: Path, data_dir: str | None, test_views: int | None = None) -> None:
    """Tests the best state of a run again, all that is needed being read from its checkpoint.

    Args:
        workdir: of the run.
        data_dir: the folder of prepared data sets, if it is not the one of the training.
        test_views: of each face, if not as many as the config says.

    Raises:
        UserError: there is no best state, or the data set is not the one of the training.
    """
    with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        best = read_best(checkpoints, workdir)
        config = _read_config(best, workdir)
        if data_dir is not None:
            config = replace(config, dataset=replace(config.dataset, data_dir=data_dir))
        if test_views is not None:  # It does not affect training.
            config = parse_config(to_dict(config) | {"test_views": test_views})
        # The machine may have more or fewer devices than the one that trained.
        devices = jax.devices()
        part_size = config.batch_size // config.accumulate
        mesh = create_mesh(devices[: math.gcd(len(devices), part_size)])
        experiment = create_experiment(config, mesh)
        check_same_run(best, experiment.identity(), workdir)
        show_progress = sys.stderr.isatty()
        batches = PictureBatches(experiment, experiment.stream_images())
        try:
            report_run(experiment, batches, checkpoints, workdir, show_progress=show_progress)
        except jax.errors.JaxRuntimeError as error:
            if not is_exhausted(error):
                raise
            raise UserError(
                f"out of memory while testing {experiment.part_size} pictures at a time: does "
                "another program use the device?"
            ) from error


def _read_config(run: Mapping[str, Any], workdir: Path) -> RunConfig:
    try:
        return parse_config(run["config"])
    except UserError as error:
        raise UserError(
            f"{workdir} was trained by another version of agenet ({error}): test it with that "
            "one, or train it again"
        ) from error


def read_best(checkpoints: Checkpoints, workdir: Path) -> dict[str, Any]:
    """The run that the best state was saved with; raises `UserError` if there is none."""
    best = checkpoints.read_run("best")
    if best is None:
        raise UserError(f"{workdir} holds no evaluated state yet: train past the first validation")
    return best


def log_results(summary: dict[str, Any], workdir: Path) -> None:
    """The main figures of a report, and where it is."""
    if views_of(summary) > 1:
        log.info("test: means over %d views of each face", views_of(summary))
    for task, metrics in summary["evaluation"]["tasks"].items():
        one_off = f", 1-off {metrics['one_off']:.2%}" if "one_off" in metrics else ""
        log.info(
            "test, %s: accuracy %.2f%%%s, balanced %.2f%%, loss %.4f (%d faces)",
            task,
            100 * metrics["accuracy"],
            one_off,
            100 * metrics["balanced_accuracy"],
            metrics["loss"],
            metrics["count"],
        )
    if summary["dataset"]["notice"]:
        log.info("NOTE: %s", summary["dataset"]["notice"])
    log.info("report: %s", workdir / "report.html")
