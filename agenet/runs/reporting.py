"""Tests the best state of a run and writes the run's report."""

import functools
import logging
import math
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from agenet.data.decoding import load_faces
from agenet.distributed.coordination import is_first_process
from agenet.distributed.mesh import create_mesh
from agenet.errors import UserError, printable
from agenet.evaluation.bootstrap import LEVEL, MIN_SUBJECTS, RESAMPLES, SEED
from agenet.evaluation.history import read_history
from agenet.evaluation.report import write_report
from agenet.evaluation.summary import views_of
from agenet.runs.batches import AT_ONCE, Batches, ImageBatches
from agenet.runs.config import RunConfig, parse_config, to_dict
from agenet.runs.create import create_experiment
from agenet.runs.description import describe
from agenet.runs.evaluator import measure_in_full, predict, truth_of
from agenet.runs.experiment import Experiment
from agenet.runs.identity import check_same_run
from agenet.runs.memory import is_exhausted
from agenet.training.checkpoints import Checkpoints
from agenet.training.run_record import is_complete, parse_progress

log = logging.getLogger(__name__)


def report_run(
    experiment: Experiment,
    batches: Batches,
    checkpoints: Checkpoints,
    workdir: Path,
    *,
    show_progress: bool,
) -> None:
    """Tests the best state, writes the report into the work directory and logs the main metrics.

    Raises:
        UserError: there is no best state yet.
    """
    best = read_best(checkpoints, workdir)
    trained = max(checkpoints.read_run("latest") or best, best, key=lambda run: run["step"])
    log.info("testing the state of step %d", best["step"])
    variables = checkpoints.restore_best(experiment.abstract_state().variables)
    if experiment.config.test_views > 1:
        batches = _view_batches(experiment, batches)
    start = time.perf_counter()
    rows = experiment.splits.test
    log_probs = predict(
        experiment.test_step,
        variables,
        batches.evaluation(rows),
        count=len(rows),
        progress="testing" if show_progress else "",
    )
    assert log_probs is not None
    if not all(np.isfinite(values).all() for values in log_probs.values()):
        raise UserError(
            f"the best state in {workdir}, of step {best['step']}, gives predictions that are not "
            "finite: restore a copy of its checkpoints, or train it again in another --workdir"
        )
    if not is_first_process():
        return
    seconds = time.perf_counter() - start
    summary = _summarize(experiment, trained, best, log_probs, seconds)
    predictions = {
        "index": rows,
        **truth_of(experiment.records, rows),
        **{f"{name}_log_probs": values for name, values in log_probs.items()},
    }
    history = read_history(workdir / "metrics.jsonl")
    faces = functools.partial(load_faces, experiment.records, size=experiment.config.input.size)
    write_report(workdir, summary, history, predictions, faces)
    log_results(summary, workdir)


def _summarize(
    experiment: Experiment,
    trained: Mapping[str, Any],
    best: Mapping[str, Any],
    log_probs: Mapping[str, np.ndarray],
    seconds: float,
) -> dict[str, Any]:
    """The content of report.json.

    Args:
        experiment: the run.
        trained: what its last checkpoint was saved with.
        best: what its best state was saved with.
        log_probs: of the test images.
        seconds: that the test took.
    """
    progress, steps = parse_progress(trained), trained["step"]
    views = experiment.config.test_views
    trained_as_asked = views == trained["config"].get("test_views", 1)
    option = "" if trained_as_asked else f" --config.test_views={views}"
    images = steps * experiment.config.batch_size
    described = describe(experiment)
    return described | {
        "initial": trained.get("initial", {}),
        "command": trained.get("command", "") + option,
        "machine": trained.get("machine", described["machine"]),
        "training": {
            "seconds": progress.training_seconds + progress.validation_seconds,
            "epochs_found": progress.epochs_found,
            "steps": steps,
            "total_steps": experiment.plan.total_steps,
            "complete": is_complete(trained),
            "epochs": steps / experiment.plan.steps_per_epoch,
            "pictures_per_second": images / max(progress.training_seconds, 1e-6),
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
            "tasks": measure_in_full(log_probs, experiment.records, experiment.splits.test),
        },
    }


def _view_batches(experiment: Experiment, batches: Batches) -> ImageBatches:
    """Batches so small that the views of their images need no more memory than training does."""
    views, devices = experiment.config.test_views, experiment.mesh.size
    images = batches.images if isinstance(batches, ImageBatches) else experiment.stream_images()
    at_once = min(experiment.part_size, AT_ONCE * devices) // views
    part_size = max(at_once // devices, 1) * devices
    return ImageBatches(images, experiment.training_order, part_size)


def report_again(workdir: Path, data_dir: str | None, test_views: int | None = None) -> None:
    """Tests the best state of a run again; its checkpoint holds all that this needs.

    Args:
        workdir: of the run.
        data_dir: the folder of prepared data sets, if it is not the one of the training.
        test_views: number of views of each image, if not that of the config.

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
        check_same_run(best, experiment.identity, workdir)
        batches = ImageBatches(
            experiment.stream_images(), experiment.training_order, experiment.part_size
        )
        show_progress = sys.stderr.isatty()
        try:
            report_run(experiment, batches, checkpoints, workdir, show_progress=show_progress)
        except jax.errors.JaxRuntimeError as error:
            if not is_exhausted(error):
                raise
            raise UserError(
                f"out of memory while testing {experiment.part_size} images at a time: does "
                "another program use the device?"
            ) from error


def _read_config(run: Mapping[str, Any], workdir: Path) -> RunConfig:
    try:
        return parse_config(run["config"])
    except UserError as error:
        raise UserError(
            f"{workdir} was trained by another version of agenet ({printable(str(error), 500)}): "
            "test it with that one, or train it again"
        ) from error


def read_best(checkpoints: Checkpoints, workdir: Path) -> dict[str, Any]:
    """What the best state was saved with.

    Raises:
        UserError: there is no best state yet.
    """
    best = checkpoints.read_run("best")
    if best is None:
        raise UserError(f"{workdir} holds no evaluated state yet: train past the first validation")
    return best


def log_results(summary: dict[str, Any], workdir: Path) -> None:
    """Logs the main metrics of a report and where it is."""
    if views_of(summary) > 1:
        log.info("test: mean of %d views of each image", views_of(summary))
    for task, metrics in summary["evaluation"]["tasks"].items():
        if not metrics["count"]:
            log.info("test, %s: no image has a label", task)
            continue
        one_off = f", 1-off {metrics['one_off']:.2%}" if "one_off" in metrics else ""
        log.info(
            "test, %s: accuracy %.2f%%%s, balanced %.2f%%, loss %.4f (%d images)",
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


def main_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """The scalars of a report, by names such as "test/age_accuracy"."""
    return {
        f"test/{task}_{name}": float(value)
        for task, metrics in summary["evaluation"]["tasks"].items()
        for name, value in metrics.items()
        if isinstance(value, int | float)
    }
