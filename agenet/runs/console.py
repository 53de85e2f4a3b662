"""What a run shows on the terminal and in train.log: a summary at its start, then rows of figures.

Everything fits into 100 columns, the time before each line included.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from agenet.runs.experiment import Plan

log = logging.getLogger(__name__)

_HEADER_EVERY = 20  # rows


def log_start(
    description: Mapping[str, Any], plan: Plan, mesh: Mesh, workdir: Path, command: str
) -> None:
    """Logs the data, the model, the devices, the schedule and where the run writes.

    Args:
        description: of the run, see `agenet.runs.description.describe`.
        plan: of its steps.
        mesh: its devices.
        workdir: its work directory.
        command: what the user typed.
    """
    log.info("%s", command)
    for name, text in _summary(description, plan, mesh):
        log.info("%-9s %s", name, text)
    log.info("%-9s %s (settings: config.json, network: parameters.txt)", "writes to", workdir)


def _summary(description: Mapping[str, Any], plan: Plan, mesh: Mesh) -> Iterator[tuple[str, str]]:
    dataset, model = description["dataset"], description["model"]
    machine, config = description["machine"], description["config"]
    yield (
        "data",
        f"{dataset['name']}, {dataset['labels']} labels, protocol {dataset['protocol']}, "
        f"test fold {dataset['test_fold']}",
    )
    for split, counts in dataset["counts"].items():
        yield "", f"{split:<10} {counts['faces']:>7,} images of {counts['subjects']:,} subjects"
    leakage = dataset["leakage"]
    yield (
        "",
        f"{leakage['seen_subject']:,} of {leakage['test_faces']:,} test images show a subject "
        "from training",
    )
    if dataset["notice"]:
        yield "", f"NOTE: {dataset['notice']}"
    flavour = f" ({model['flavour']})" if model["flavour"] else ""
    trained = "all" if model["trained"] == model["parameters"] else f"{model['trained']:,}"
    yield (
        "model",
        f"{model['name']}{flavour}, {model['parameters']:,} parameters, {trained} trained; "
        f"initial weights: {model['initial']}",
    )
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    yield "devices", f"{machine['devices']} ({machine['processor']}); mesh: {axes}"
    yield (
        "schedule",
        f"{config['duration']}: {plan.total_steps:,} steps of {config['batch_size']} images, "
        f"{plan.steps_per_epoch:,} an epoch",
    )
    schedule = config["schedule"]
    yield (
        "",
        f"{config['optimizer']['name']}, learning rate {schedule['learning_rate']:g} "
        f"{schedule['name']}, warm-up {schedule['warmup']}",
    )


class Rows:
    """Logs a row of aligned figures for each row of training and of validation.

    >>> rows = Rows(["age", "gender"], total_steps=400)
    >>> rows.format(200, {"epoch": 1.0, "validation/loss": 2.5, "validation/age_loss": 1.75,
    ...     "validation/age_accuracy": 0.25, "validation/age_one_off": 1.0})
    'valid   200   1.00  2.500 |    1.750  25.0% 100.0% |                    |'
    """

    def __init__(self, tasks: Sequence[str], total_steps: int):
        """For a run that trains the given tasks for so many steps."""
        self._tasks = tasks
        self._step = max(len(f"{total_steps}"), len("step")) + 1  # width of that column
        self._until_header = 0

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Logs a row, and from time to time the header above it.

        Args:
            step: number of the step.
            row: the scalars that are written to metrics.jsonl.
        """
        if self._until_header == 0:
            self._until_header = _HEADER_EVERY
            log.info("%s", self._header())
        self._until_header -= 1
        log.info("%s", self.format(step, row))

    def _header(self) -> str:
        groups = [f"{'':<6}{'step':>{self._step}}{'epoch':>7}{'loss':>7}"]
        for task in self._tasks:
            groups.append(f"{f'{task} loss':>{len(task) + 6}}{'acc':>7}")
            groups[-1] += f"{'1-off':>7}" if task == "age" else ""
        return " |".join([*groups, f"{'rate':>8}{'img/s':>7}"])

    def format(self, step: int, row: Mapping[str, float]) -> str:
        """A line whose columns are blank where the row has no such figure."""
        split = "validation" if "validation/loss" in row else "train"

        def cell(name: str, width: int, form: str) -> str:
            return f"{row[name]:>{width}{form}}" if name in row else " " * width

        groups = [f"{split[:5]:<6}{step:>{self._step}}"]
        groups[0] += cell("epoch", 7, ".2f") + cell(f"{split}/loss", 7, ".3f")
        for task in self._tasks:
            cells = cell(f"{split}/{task}_loss", len(task) + 6, ".3f")
            cells += cell(f"{split}/{task}_accuracy", 7, ".1%")
            cells += cell(f"{split}/{task}_one_off", 7, ".1%") if task == "age" else ""
            groups.append(cells)
        last = cell("learning_rate", 8, ".1e") + cell("pictures_per_second", 7, ",.0f")
        if "validation/age_mae" in row:  # In the columns of training alone: a line has no more.
            last = f"{'MAE':>8}{row['validation/age_mae']:>7.2f}"
        return " |".join([*groups, last]).rstrip()
