"""Runs a training from its configuration to the report in its work directory."""

import contextlib
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from agenet.data.config import DatasetConfig
from agenet.data.records import find_prepared
from agenet.distributed.compilation_cache import enable_compilation_cache
from agenet.distributed.coordination import all_gather, broadcast, is_first_process
from agenet.distributed.profiler import Profile, Window
from agenet.errors import UserError
from agenet.evaluation.comparison import files
from agenet.evaluation.summary import is_finished, views_of
from agenet.files import exclusive_lock, write_errors_explained, write_file, write_json
from agenet.runs.batches import create_batches
from agenet.runs.config import RunConfig, to_dict
from agenet.runs.console import log_start
from agenet.runs.create import create_experiment, take_from_weights
from agenet.runs.description import describe, describe_origin, describe_parameters
from agenet.runs.experiment import Experiment
from agenet.runs.identity import check_same_run, check_same_weights, find_differences
from agenet.runs.initial_state import create_initial_state
from agenet.runs.logging import Writers, create_writer, log_to, quiet_libraries
from agenet.runs.loop import Trainer
from agenet.runs.machine import describe_machine
from agenet.runs.memory import memory_errors_explained
from agenet.runs.reporting import log_results, main_metrics, report_run
from agenet.runs.trackers.create import start_trackers
from agenet.runs.trackers.tracker import TrackedRun
from agenet.training.checkpoints import Checkpoints
from agenet.training.run_record import Progress, parse_progress

log = logging.getLogger(__name__)


def launch(
    config: RunConfig,
    workdir: Path,
    command: str,
    profile: Window | None = None,
    after_save: Callable[[], None] = lambda: None,
) -> None:
    """Trains, tests and reports; resumes the run if `workdir` holds a part of it.

    Args:
        config: of the run.
        workdir: its work directory.
        command: what the user typed, for the report.
        profile: the steps to trace, if any.
        after_save: called after each checkpoint.

    Raises:
        UserError: the config, the data and the work directory do not fit each other.
    """
    quiet_libraries()
    # First of all: processes that do different things would wait for each other forever.
    check_same_everywhere({"command": "training", "config": to_dict(config)})
    create_workdir(workdir)
    log_file = workdir / "train.log" if is_first_process() else None
    lock = exclusive_lock(workdir) if is_first_process() else contextlib.nullcontext()
    with lock, log_to(log_file, process=jax.process_index()):
        enable_compilation_cache()
        prepare_if_asked(config.dataset)
        saved = read_saved(workdir)
        experiment = open_experiment(config, saved, workdir)
        check_same_everywhere(experiment.identity)
        if saved is not None:
            summary = broadcast(read_report(workdir, config.test_views))
            if summary is not None:
                log.info("this run is finished; for a new one, give another --workdir")
                log_results(summary, workdir)
                return
        run = experiment.identity | {
            "asked": to_dict(config),
            "command": command,
            "machine": describe_machine(),
            "total_steps": experiment.plan.total_steps,
        }
        if saved is None:
            run |= describe_origin(experiment)
        else:  # The initial weights need not exist any more; earlier versions recorded none.
            origin = ("trained_on", "initial", *(("teacher",) if "teacher" in saved else ()))
            run |= {name: saved.get(name, {}) for name in origin}
        with (
            contextlib.closing(Checkpoints(workdir, after_save=after_save)) as checkpoints,
            memory_errors_explained(experiment),
        ):
            train_and_test(experiment, checkpoints, workdir, saved, run, profile)


def read_saved(workdir: Path) -> dict[str, Any] | None:
    """What the latest checkpoint in `workdir` was saved with; None without one. Writes nothing."""
    if not broadcast((workdir / "checkpoints").is_dir()):
        return None
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        return checkpoints.read_run("latest")


def open_experiment(config: RunConfig, saved: dict[str, Any] | None, workdir: Path) -> Experiment:
    """Creates the experiment of a config and checks that it is the one saved in `workdir`.

    Args:
        config: of the run.
        saved: what the latest checkpoint in `workdir` was saved with, if there is one.
        workdir: the work directory.

    Raises:
        UserError: the config, the data and the checkpoint do not fit each other.
    """
    asked = {"config": to_dict(config)}
    if saved and not find_differences({"config": saved.get("asked", {})}, asked):
        # The initial weights need not exist any more.
        config = take_from_weights(config, saved["config"])
    experiment = create_experiment(config)
    if saved is not None:
        check_same_run(saved, experiment.identity, workdir)
        check_same_weights(
            saved, experiment.config.init, workdir, experiment.config.distill.teacher
        )
    return experiment


def train_and_test(
    experiment: Experiment,
    checkpoints: Checkpoints,
    workdir: Path,
    saved: dict[str, Any] | None,
    run: dict[str, Any],
    profile: Window | None,
) -> None:
    """Trains from the latest checkpoint, if there is one, then tests and reports.

    Args:
        experiment: what to train.
        checkpoints: in the work directory.
        workdir: the work directory.
        saved: what the latest checkpoint was saved with; None without one.
        run: what new checkpoints are saved with.
        profile: the steps to trace, if any.
    """
    log_start(describe(experiment), experiment.plan, experiment.mesh, workdir, run["command"])
    if is_first_process():
        write_json(workdir / "config.json", to_dict(experiment.config))
        write_file(workdir / "parameters.txt", describe_parameters(experiment).encode())
    show_progress = is_first_process() and sys.stderr.isatty()
    if saved is None:
        state, progress = create_initial_state(experiment), Progress()
    else:
        state = checkpoints.restore_latest(experiment.abstract_state())
        progress = parse_progress(saved)
        log.info("resuming from step %d of %d", state.step, experiment.plan.total_steps)
    batches = create_batches(
        experiment, state.variables, step=int(state.step), show_progress=show_progress
    )
    if saved is None:
        progress.epochs_found = batches.epochs_found
    names = experiment.config.trackers if is_first_process() else ()
    lineage = {name: run[name] for name in ("dataset", "splits", "initial", "trained_on")}
    tracked = TrackedRun(workdir, to_dict(experiment.config), lineage, int(state.step))
    with contextlib.closing(start_trackers(names, tracked)) as trackers:
        rows = create_writer(workdir, progress) if is_first_process() else Writers([])
        with contextlib.closing(rows):
            trainer = Trainer(
                experiment,
                batches,
                checkpoints,
                Writers([rows, trackers]),
                record=run,
                progress=progress,
                show_progress=show_progress,
                profile=Profile(workdir / "profile", profile if is_first_process() else None),
            )
            complete = trainer.run(state)
        if not complete:
            log.info("to resume, run the same command again")
            return
        report_run(experiment, batches, checkpoints, workdir, show_progress=show_progress)
        if is_first_process() and (summary := read_report(workdir, experiment.config.test_views)):
            trackers.write_report(summary["training"]["steps"], main_metrics(summary))


def create_workdir(workdir: Path) -> None:
    """Creates the folder; raises `UserError` unless all processes can write to the same one."""
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
    """Raises `UserError` if settings or data of this process differ from those of the first one."""
    differences = find_differences(broadcast(identity), identity, ["config.dataset.data_dir"])
    if differences:
        raise UserError(
            f"all processes must have the same settings and data: {'; '.join(differences)}, where "
            '"there" is process 0'
        )


def prepare_if_asked(dataset: DatasetConfig) -> None:
    """Prepares data sets that are missing, if the config says so.

    The first process starts a program that does it while the others wait: builders need
    TensorFlow, which agenet does not import.
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
    """The report of a finished run, tested in so many views; None if there is none."""
    with contextlib.suppress(UserError):  # A damaged one is written again, by another test.
        summary = files.read_report(workdir / "report.json")
        return summary if is_finished(summary) and views_of(summary) == views else None
    return None
