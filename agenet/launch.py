"""From a config to a finished run in its work directory."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_collections
from tqdm.contrib.logging import logging_redirect_tqdm

from agenet.checkpoint import Checkpoints, check_same_run
from agenet.data.records import find_prepared
from agenet.errors import UserError
from agenet.evaluate import report_run
from agenet.experiment import Experiment, create_experiment
from agenet.train import Progress, Trainer
from agenet.writers import create_writer

log = logging.getLogger(__name__)


def launch(config: ml_collections.ConfigDict, workdir: Path, command: str) -> None:
    """Trains, tests and reports; continues what `workdir` holds of the same run.

    Raises:
        UserError: anything in the config, the data or the work directory that does not fit.
    """
    create_workdir(workdir)
    show_progress = sys.stderr.isatty()
    with log_to(workdir / "train.log"):
        log.info("%s", command)
        prepare_if_asked(config.dataset)
        experiment = create_experiment(config)
        summary = experiment.describe()
        checkpoints = Checkpoints(workdir)
        run = experiment.identity() | {"command": command}
        saved = checkpoints.read_run("latest")
        if saved is not None:
            check_same_run(saved, run, workdir)
            if is_finished(workdir, experiment):
                log.info("this run is finished: see %s", workdir / "report.md")
                log_results(json.loads((workdir / "report.json").read_text()))
                return
        log_summary(experiment, summary)
        pictures = experiment.load_pictures(progress=show_progress)
        log.info(
            "pictures: %.2f GB as uint8 %s",
            pictures.nbytes / 1e9,
            "on the devices"
            if pictures.on_device
            else "on the host, sent batch by batch: the devices have too little memory",
        )
        state = experiment.create_state()
        progress = Progress()
        if saved is not None:
            state = checkpoints.restore_latest(state)
            progress = Progress(**saved["progress"])
            log.info("continuing from step %d of %d", state.step, experiment.total_steps)
        writer = create_writer(workdir, tensorboard=config.tensorboard, resume_step=int(state.step))
        trainer = Trainer(
            experiment,
            pictures.batch,
            checkpoints,
            writer,
            run=run,
            progress=progress,
            show_progress=show_progress,
        )
        try:
            complete = trainer.run(state)
        finally:
            writer.close()
        if complete:
            log.info("testing the state of step %d", checkpoints.best_step)
            log_results(
                report_run(experiment, pictures, checkpoints, workdir, show_progress=show_progress)
            )
            log.info("report: %s", workdir / "report.md")
        else:
            log.info("to go on, run the same command again")
        checkpoints.close()


def create_workdir(workdir: Path) -> None:
    """Makes the folder; raises `UserError` if nothing can be written there."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".probe-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"--workdir {workdir} cannot be written to ({error.strerror}): name another one"
        ) from error


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Sends what agenet logs to the terminal, around progress bars, and to a file."""
    logger = logging.getLogger("agenet")
    handlers = [logging.StreamHandler(), logging.FileHandler(path)]
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
    handlers[1].setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        with logging_redirect_tqdm([logger]):
            yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


def prepare_if_asked(dataset: ml_collections.ConfigDict) -> None:
    """Prepares a data set that is not there if the config says so; in a process of its own, for
    only preparation needs TensorFlow.
    """
    try:
        find_prepared(dataset.name, dataset.data_dir)
    except UserError:
        if not dataset.prepare:
            raise
        builder, _, builder_config = dataset.name.partition("/")
        script = Path(__file__).resolve().parents[1] / "scripts" / "prepare.py"
        command = [sys.executable, str(script), builder, f"--config={builder_config}"]
        if dataset.data_dir:
            command.append(f"--data_dir={dataset.data_dir}")
        log.info("%s is not prepared yet: doing it now", dataset.name)
        if subprocess.run(command, check=False).returncode:
            raise UserError(f"{dataset.name} could not be prepared, see above") from None


def is_finished(workdir: Path, experiment: Experiment) -> bool:
    """Whether the report of the whole run is written."""
    report = workdir / "report.json"
    if not report.exists():
        return False
    return json.loads(report.read_text())["training"]["steps"] >= experiment.total_steps


def log_summary(experiment: Experiment, summary: dict[str, Any]) -> None:
    """What is about to happen, on what."""
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
    log.info(
        "model: %s, %s parameters", summary["model"]["name"], f"{summary['model']['parameters']:,}"
    )
    log.info(
        "training: %s, %d steps of %d pictures, %d an epoch",
        experiment.config.duration,
        experiment.total_steps,
        experiment.config.batch_size,
        experiment.steps_per_epoch,
    )
    log.info("config:\n%s", experiment.config)


def log_results(summary: dict[str, Any]) -> None:
    """The main figures of a report."""
    dataset = summary["dataset"]
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
    if dataset["notice"]:
        log.info("NOTE: %s", dataset["notice"])
