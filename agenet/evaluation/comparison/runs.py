"""Reads the runs to be compared from their folders."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from agenet.errors import UserError
from agenet.evaluation.comparison import files
from agenet.evaluation.history import read_history
from agenet.evaluation.summary import views_of
from agenet.files import is_address
from agenet.labels import TASK_CLASSES, UNKNOWN
from agenet.places.fetching import fetch_folder
from agenet.places.stores import parse_address

FOLDS = 5
MAX_RUNS = 20


@dataclass(frozen=True)
class Test:
    """A trained network and its test.

    Attributes:
        workdir: the folder of the run.
        report: the content of report.json, which has at least the fields of `REPORT`.
        history: the rows of metrics.jsonl, numbers only.
    """

    workdir: Path
    report: dict[str, Any]
    history: list[dict[str, float]]

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        return self.report["evaluation"]["tasks"]

    @cached_property
    def predictions(self) -> dict[str, np.ndarray] | None:
        """`index`, `subject_id`, `<task>` [N] and `<task>_log_probs` [N, C]; None without a file.

        Raises:
            UserError: the file is damaged, or belongs to another report.
        """
        return _read_predictions(self)


@dataclass(frozen=True)
class Run:
    """A row of a comparison: one test, or one on each of the folds."""

    name: str
    workdir: Path
    tests: tuple[Test, ...]

    @property
    def first(self) -> dict[str, Any]:
        """The report of the first test."""
        return self.tests[0].report

    @property
    def is_folds(self) -> bool:
        return len(self.tests) > 1

    @property
    def tasks(self) -> list[str]:
        """The tasks with labelled faces."""
        tasks = self.tests[0].tasks
        return [task for task in TASK_CLASSES if task in tasks and tasks[task]["count"]]

    @property
    def seen(self) -> tuple[int, int]:
        """The number of test faces whose subject is in the training data, and of all test faces."""
        leakage = [test.report["dataset"]["leakage"] for test in self.tests]
        return sum(k["seen_subject"] for k in leakage), sum(k["test_faces"] for k in leakage)

    @property
    def leaks(self) -> bool:
        return self.seen[0] > 0 or self.first["dataset"]["protocol"] != "subject"


def read_runs(arguments: Sequence[str]) -> list[Run]:
    """Reads the runs of a command line, each a folder or LABEL=FOLDER.

    Raises:
        UserError: one of them is not a finished run, is damaged, or is given twice.
    """
    if len(arguments) > MAX_RUNS:
        raise UserError(f"{len(arguments)} runs: at most {MAX_RUNS} can be compared on one page")
    labels: list[str] = []
    folders: list[Path] = []
    for argument in arguments:
        label, equals, path = argument.partition("=")
        # The folders of sweeps have "=" in their names, too.
        if not equals or is_address(argument) or Path(argument).exists():
            label, path = "", argument
        labels.append(label)
        folders.append(Path(path))
    known: set[Path] = set()
    for folder in folders:
        if folder.resolve() in known:
            raise UserError(f"{folder} is given twice")
        known.add(folder.resolve())
    given = [label for label in labels if label]
    if len({*given}) < len(given):
        raise UserError(f"labels of runs must differ: {', '.join(given)}")
    names = [label or own for label, own in zip(labels, _short_names(folders), strict=True)]
    return [_read_run(name, find_run(folder)) for name, folder in zip(names, folders, strict=True)]


def find_run(folder: Path) -> Path:
    """The folder of a run on this machine; at an address, a copy without its checkpoints."""
    if not is_address(folder):
        return folder
    return fetch_folder(parse_address(folder), lambda name: not name.startswith("checkpoints/"))


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The ends of the paths, as short as they can be and still differ."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts))):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _read_run(name: str, folder: Path) -> Run:
    name = "".join(c if c.isprintable() else "?" for c in name).strip() or "?"
    name = name if len(name) <= 60 else name[:59] + "…"
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the --workdir of a finished run")
    if (folder / "report.json").is_file():
        return Run(name, folder, (_read_test(folder),))
    if (folder / "folds.json").is_file():
        return Run(name, folder, _read_folds(folder))
    if any((folder / part).exists() for part in ("checkpoints", "metrics.jsonl")):
        raise UserError(f"{folder} is not finished: run its own command again first")
    runs = sorted(p.parent for p in folder.glob("*/report.json"))[:3]
    advice = f": give the runs in it, such as {' '.join(map(str, runs))}" if runs else ""
    raise UserError(f"{folder} is not a run, it has no report.json or folds.json{advice}")


def _read_folds(folder: Path) -> tuple[Test, ...]:
    table = files.read_json(folder / "folds.json")
    if not isinstance(table, dict):
        raise files.damaged(folder / "folds.json", "it is not a table of folds")
    workdirs = [folder / f"fold_{fold}" for fold in range(FOLDS)]
    missing = [path.name for path in workdirs if not (path / "report.json").is_file()]
    if missing or table.get("complete") is not True:
        which = ", ".join(missing) or "see folds.json"
        raise UserError(
            f"{folder} is not finished ({which}): run its own command again first, or give single "
            "folds"
        )
    tests = tuple(_read_test(path) for path in workdirs)
    for fold, test in enumerate(tests):
        for part, name in (("dataset", "name"), ("dataset", "labels"), ("dataset", "protocol")):
            if test.report[part][name] != tests[0].report[part][name]:
                raise UserError(f"{test.workdir}: {part} {name} differs from that of fold_0")
        if views_of(test.report) != views_of(tests[0].report):
            raise UserError(
                f"{test.workdir} is tested in another number of views than fold_0: run the "
                "command of the folds again, which tests again where needed"
            )
        if (
            test.report["dataset"]["test_fold"] != fold
            or test.tasks.keys() != tests[0].tasks.keys()
        ):
            raise UserError(f"{test.workdir} is not the run on fold {fold} that belongs to fold_0")
    return tests


def _read_test(workdir: Path) -> Test:
    path = workdir / "report.json"
    report = files.read_report(path)
    try:
        if not any(metrics["count"] for metrics in report["evaluation"]["tasks"].values()):
            raise ValueError("it tests no task")
        end = _steps(report)
    except (ValueError, KeyError, RecursionError) as error:
        raise files.damaged(path, str(error)) from error
    # A run that stopped early is complete before.
    if not report["training"].get("complete", report["training"]["steps"] >= end):
        raise UserError(
            f"{workdir} is not finished, it was tested before its end: run its own command again "
            "first"
        )
    return Test(workdir, report, read_history(workdir / "metrics.jsonl"))


def _steps(report: dict[str, Any]) -> int:
    """The number of steps of the config's duration."""
    training = report["training"]
    number, _, unit = report["config"]["duration"].partition(" ")
    asked = float(number)
    if not 0 <= asked < files.MAX_NUMBER:
        raise ValueError("config.duration is not a duration")
    if unit.startswith("epoch") and training["epochs"]:
        return round(asked * training["steps"] / training["epochs"])
    return round(asked)


def _read_predictions(test: Test) -> dict[str, np.ndarray] | None:
    path = test.workdir / "predictions.npz"
    if not path.is_file():
        return None
    if path.stat().st_size > files.MAX_ARRAYS:
        raise files.damaged(path, "it is too large")
    names = ["index", "subject_id"]
    for task in test.tasks:
        names += [task, f"{task}_log_probs"]
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name: files.read_array(archive, f"{name}.npy") for name in names}
    except files.BAD_ARCHIVE as error:
        raise files.damaged(path, str(error)) from error
    count = len(arrays["index"])
    for name in ("index", "subject_id", *test.tasks):
        if arrays[name].shape != (count,) or arrays[name].dtype.kind not in "iu":
            raise files.damaged(path, f"{name} is not a list of {count} whole numbers")
    for task, metrics in test.tasks.items():
        labels, log_probs = arrays[task], arrays[f"{task}_log_probs"]
        classes = len(TASK_CLASSES[task])
        if log_probs.shape != (count, classes) or log_probs.dtype.kind != "f":
            raise files.damaged(path, f"{task}_log_probs is not {count} x {classes}")
        known = labels != UNKNOWN
        correct = log_probs.argmax(axis=1) == labels
        of_report = (metrics["count"], sum(np.diagonal(metrics["confusion"]).tolist()))
        if not np.isfinite(log_probs).all() or (known.sum(), correct.sum()) != of_report:
            raise files.damaged(path, f"{task} differs from report.json")
    return arrays
