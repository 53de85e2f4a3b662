"""From a config to a finished run in its work directory."""

import contextlib
import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax

from agenet.data.config import DatasetConfig
from agenet.data.records import find_prepared
from agenet.distributed.compilation_cache import enable_compilation_cache
from agenet.distributed.coordination import all_gather, broadcast, is_first_process
from agenet.distributed.profiler import Profile, Window
from agenet.errors import UserError
from agenet.evaluation.summary import views_of
from agenet.files import exclusive_lock, write_errors_explained
from agenet.runs.batches import create_batches
from agenet.runs.config import RunConfig, to_dict
from agenet.runs.evaluator import log_results, report_run
from agenet.runs.experiment import (
    Experiment,
    create_experiment,
    take_from_weights,
)
from agenet.runs.identity import (
    check_same_run,
    check_same_weights,
    find_differences,
)
from agenet.runs.logging import Writers, create_writer, log_to
from agenet.runs.loop import Progress, Trainer
from agenet.runs.machine import describe_machine
from agenet.runs.memory import explained
from agenet.training.checkpoints import Checkpoints

log = logging.getLogger(__name__)


def launch(config: RunConfig, workdir: Path, command: str, profile: Window | None = None) -> None:
    """Trains, tests and reports; continues what `workdir` holds of the same run.

    Steps of the window `profile` are traced.

    Raises:
        UserError: anything in the config, the data or the work directory that does not fit.
    """
    # First of all, for processes that do not all do the same would wait for each other.
    check_same_everywhere({"command": "training", "config": to_dict(config)})
    create_workdir(workdir)
    log_file = workdir / "train.log" if is_first_process() else None
    lock = exclusive_lock(workdir) if is_first_process() else contextlib.nullcontext()
    with lock, log_to(log_file, process=jax.process_index()):
        enable_compilation_cache()
        prepare_if_asked(config.dataset)
        saved = read_saved(workdir)
        experiment, identity = open_experiment(config, saved, workdir)
        check_same_everywhere(identity)
        if saved is not None:
            summary = broadcast(read_report(workdir, config.test_views))
            if summary is not None:
                log.info("this run is finished; for another give another --workdir")
                log_results(summary, workdir)
                return
        run = identity | {
            "asked": to_dict(config),
            "command": command,
            "machine": describe_machine(),
            "total_steps": experiment.total_steps,
            "trained_on": saved.get("trained_on", {}) if saved else experiment.trained_on(),
            "initial": saved.get("initial", {}) if saved else experiment.describe_initial(),
        }
        with contextlib.closing(Checkpoints(workdir)) as checkpoints, explained(experiment):
            train_and_test(experiment, checkpoints, workdir, saved, run, profile)


def read_saved(workdir: Path) -> dict[str, Any] | None:
    """What the latest checkpoint in `workdir` was saved with, if there is one; writes nothing."""
    if not broadcast((workdir / "checkpoints").is_dir()):
        return None
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        return checkpoints.read_run("latest")


def open_experiment(
    config: RunConfig, saved: dict[str, Any] | None, workdir: Path
) -> tuple[Experiment, dict[str, Any]]:
    """The run of a config and its identity, which must be those that `saved` in `workdir` tells of.

    Raises:
        UserError: anything that does not fit.
    """
    asked = {"config": to_dict(config)}
    if saved and not find_differences({"config": saved.get("asked", {})}, asked):
        # The weights that the run started from need not be there any more.
        config = take_from_weights(config, saved["config"])
    experiment = create_experiment(config)
    identity = experiment.identity()
    if saved is not None:
        check_same_run(saved, identity, workdir)
        check_same_weights(saved, experiment.config.init, workdir)
    return experiment, identity


def train_and_test(
    experiment: Experiment,
    checkpoints: Checkpoints,
    workdir: Path,
    saved: dict[str, Any] | None,
    run: dict[str, Any],
    profile: Window | None,
) -> None:
    """Trains, from the latest checkpoint if `saved` is what it was saved with, and reports."""
    log_summary(experiment, run["command"])
    show_progress = is_first_process() and sys.stderr.isatty()
    if saved is None:
        state, progress = experiment.create_state(), Progress()
    else:
        state = checkpoints.restore_latest(experiment.abstract_state())
        progress = Progress(**saved["progress"])
        log.info("continuing from step %d of %d", state.step, experiment.total_steps)
    batches = create_batches(
        experiment, state.variables, step=int(state.step), show_progress=show_progress
    )
    if saved is None:
        progress.epochs_found = batches.epochs_found
    if is_first_process():
        tensorboard = experiment.config.tensorboard
        writer = create_writer(workdir, tensorboard=tensorboard, keep=progress.rows)
    else:
        writer = Writers([])
    with contextlib.closing(writer):
        trainer = Trainer(
            experiment,
            batches,
            checkpoints,
            writer,
            run=run,
            progress=progress,
            show_progress=show_progress,
            profile=Profile(workdir / "profile", profile if is_first_process() else None),
        )
        complete = trainer.run(state)
    if complete:
        report_run(experiment, batches, checkpoints, workdir, show_progress=show_progress)
    else:
        log.info("to go on, run the same command again")


def create_workdir(workdir: Path) -> None:
    """Makes the folder; raises `UserError` if not every process can write there."""
    with write_errors_explained(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=workdir, prefix=".shared-") as file:
            seen = all_gather((workdir / broadcast(Path(file.name).name)).exists())
    if not all(seen):
        raise UserError(
            f"--workdir {workdir} is another one for process {seen.index(False)} than for process "
            "0: name one on a file system that all processes share"
        )


def check_same_everywhere(identity: dict[str, Any]) -> None:
    """Raises `UserError` if this process's settings or data are not those of the first one."""
    differences = find_differences(broadcast(identity), identity, ["config.dataset.data_dir"])
    if differences:
        raise UserError(
            f"all processes must have the same settings and data: {'; '.join(differences)}, where "
            '"there" is process 0'
        )


def prepare_if_asked(dataset: DatasetConfig) -> None:
    """Prepares a data set that is not there, if the config says so.

    The first process does so while others wait, in a process of its own: agenet does not import
    what prepares data.
    """
    if not dataset.prepare:
        return
    if is_first_process():
        for name in dataset.names:
            with contextlib.suppress(UserError):
                find_prepared(name, dataset.data_dir)
                continue
            _prepare(name, dataset.data_dir)
    all_gather(None)


def _prepare(name: str, data_dir: str) -> None:
    builder, _, builder_config = name.partition("/")
    command = [sys.executable, "-m", "agenet.cli", "prepare", builder, f"--config={builder_config}"]
    if data_dir:
        command.append(f"--data_dir={data_dir}")
    log.info("%s is not prepared yet: doing it now", name)
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"{name} could not be prepared, see above")


def read_report(workdir: Path, views: int) -> dict[str, Any] | None:
    """The report of the whole run, tested in so many views, if it is written and not damaged."""
    try:
        summary = json.loads((workdir / "report.json").read_text())
        training = summary["training"]
        complete = training.get("complete", training["steps"] == training["total_steps"])
        return summary if complete and views_of(summary) == views else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def log_summary(experiment: Experiment, command: str) -> None:
    """What is about to happen, on what."""
    summary = experiment.describe()
    log.info("%s", command)
    dataset, machine = summary["dataset"], summary["machine"]
    log.info(
        "devices: %s (%s); mesh: %s",
        machine["devices"],
        machine["processor"],
        dict(experiment.mesh.shape),
    )
    log.info(
        "data: %s, %s labels, protocol %s, test fold %d",
        dataset["name"],
        dataset["labels"],
        dataset["protocol"],
        dataset["test_fold"],
    )
    if dataset["notice"]:
        log.info("NOTE: %s", dataset["notice"])
    for split, counts in dataset["counts"].items():
        per_task = "; ".join(f"{task} {counts[task]}" for task in experiment.tasks)
        log.info(
            "%s: %d faces of %d persons; %s", split, counts["faces"], counts["subjects"], per_task
        )
    leakage = dataset["leakage"]
    log.info(
        "leakage: %d of %d test faces show a person from training",
        leakage["seen_subject"],
        leakage["test_faces"],
    )
    model = summary["model"]
    log.info(
        "model: %s, %s parameters, %s of them trained; initial weights: %s",
        model["name"] + (f" ({model['flavour']})" if model["flavour"] else ""),
        f"{model['parameters']:,}",
        f"{model['trained']:,}",
        model["initial"],
    )
    log.info(
        "training: %s, %d steps of %d pictures, %d an epoch",
        experiment.config.duration,
        experiment.total_steps,
        experiment.config.batch_size,
        experiment.steps_per_epoch,
    )
    config = to_dict(experiment.config)
    sections = {name: value for name, value in config.items() if isinstance(value, dict)}
    fields = {name: value for name, value in config.items() if name not in sections}
    for name, section in {"config": fields, **sections}.items():
        log.info("%s: %s", name, ", ".join(f"{key}={value}" for key, value in section.items()))
