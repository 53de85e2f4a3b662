"""Trains several runs, one after the other in each worker, and remembers which are finished.

Shared by `agenet.runs.folds` and `agenet.runs.sweep`.
"""

import contextlib
import json
import math
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from agenet.errors import UserError, say
from agenet.evaluation.comparison import files
from agenet.evaluation.history import read_history
from agenet.evaluation.summary import is_finished
from agenet.files import hash_file, write_json
from agenet.runs.child_process import RunError, StoppedError, run_in_child
from agenet.runs.config import RunConfig, to_dict
from agenet.runs.identity import digest_data, digest_weights, find_differences
from agenet.runs.workers import POLL_SECONDS, Workers

# Task and figure of the tables, of validation and of test; the report's have gender first.
FIGURES = (("gender", "accuracy"), ("age", "accuracy"))
FINISHED = "finished.json"
TIME = "time.json"
_LARGEST_NOTE = 1 << 20  # bytes
# Errors of reading a file that is missing, or is not the JSON that was written.
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
    OverflowError,
)


@dataclass(frozen=True)
class Run:
    """One run of a series.

    Attributes:
        name: shown to the user.
        workdir: its work directory.
        flags: `--config=FILE` and any `--config.FIELD=VALUE`, the last of which counts.
        config: what the flags stand for.
    """

    name: str
    workdir: Path
    flags: tuple[str, ...]
    config: RunConfig

    def report(self) -> dict[str, Any] | None:
        """The report, if exactly this run was finished here; None otherwise.

        The config is compared with the one that `record_finished` wrote, not with the one in the
        report, which includes what the run took from its initial weights. If weights or data seem
        to have changed since then, the result is None, and the run itself finds out whether they
        have.
        """
        path = self.workdir / "report.json"
        try:
            finished = self._read_note(FINISHED)
            report = files.read_report(path)
            config = {"config": to_dict(self.config)}
            same = not find_differences({"config": finished["config"]}, config, may_differ=())
            same = same and finished["report"] == hash_file(path)
            # What an earlier version did not record counts as unchanged.
            then, now = finished.get("sources", {}), self._digest_sources()
            same = same and all(then.get(name, digest) == digest for name, digest in now.items())
            return report if same else None
        except (UserError, *UNREADABLE):
            return None

    def record_finished(self) -> dict[str, Any] | None:
        """Marks the run as finished; to be called when its process has ended without an error.

        Returns:
            The report; None if the run was stopped before its end.

        Raises:
            UserError: the report is damaged.
        """
        path = self.workdir / "report.json"
        if not path.exists():
            return None
        report = files.read_report(path)
        if not is_finished(report):
            return None
        finished = {
            "config": to_dict(self.config),
            "report": hash_file(path),
            "sources": self._digest_sources(),
        }
        write_json(self.workdir / FINISHED, finished)
        return report

    def _digest_sources(self) -> dict[str, str]:
        """Digests of the initial weights and the data sets that exist."""
        dataset = self.config.dataset
        found = {name: digest_data(name, dataset.data_dir) for name in dataset.names}
        found["init"] = digest_weights(self.config.init)
        return {name: digest for name, digest in found.items() if digest}

    def seconds(self, report: Mapping[str, Any]) -> float:
        """Seconds from start to end of all processes of this run, including interrupted ones.

        It is at least the time that the report states for training, validation and test: the run
        may have been trained elsewhere and moved here.
        """
        reported = report["training"]["seconds"] + report["evaluation"]["seconds"]
        return max(self.spent_seconds(), reported)

    def add_seconds(self, seconds: float) -> None:
        """Adds the time of one more process, if the work directory exists."""
        # The run itself reports a full disk.
        with contextlib.suppress(OSError):
            total = self.spent_seconds() + seconds
            write_json(self.workdir / TIME, {"seconds": total})

    def spent_seconds(self) -> float:
        """Seconds of all processes of this run that were measured here."""
        try:
            seconds = float(self._read_note(TIME)["seconds"])
            return seconds if 0 <= seconds < math.inf else 0.0
        except UNREADABLE:
            return 0.0

    def _read_note(self, name: str) -> Any:
        path = self.workdir / name
        if not path.is_file() or path.stat().st_size > _LARGEST_NOTE:
            raise ValueError(f"{path} is not a file, or too large")
        return json.loads(path.read_bytes())


ReadConfig = Callable[[Sequence[str]], RunConfig]


def check_fields(arguments: Sequence[str], fixed: Sequence[str] = ()) -> None:
    """Raises `UserError` for arguments other than `--config.FIELD=VALUE`, or a fixed field."""
    for argument in arguments:
        found = re.match(r"--config\.([\w.]+)=", argument)
        if not found:
            raise UserError(
                f"{argument} is not a flag: fields are set with --config.FIELD=VALUE, see --help"
            )
        if found[1] in fixed:
            raise UserError(f"{argument}: {found[1]} is set by this command, leave it out")


def run_all(
    runs: Sequence[Run], workdir: Path, failed: Callable[[Run, str], None]
) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Trains the runs that are not finished yet, in order, but for those that other workers have.

    If a run is asked to stop, the program exits with the code that shells expect after a signal.

    Args:
        runs: the runs.
        workdir: the folder of all runs; it is created. Several processes may share its runs.
        failed: called with a run that ended with an error, and its message.

    Yields:
        Each run that succeeded and its report, to which `seconds` is added, see `Run.seconds`.

    Raises:
        UserError: the folder cannot be written to.
    """
    workers = Workers(workdir)
    numbers = {run.name: f"run {n} of {len(runs)}: {run.name}" for n, run in enumerate(runs, 1)}
    left, waits = list(runs), set[str]()
    while left:
        for run in [*left]:
            with workers.claim(run.workdir) as mine:
                if not mine:
                    if run.name not in waits:
                        say(f"{numbers[run.name]}: another worker trains it")
                    waits.add(run.name)
                    continue
                left.remove(run)
                report, message = run.report(), workers.failure(run.workdir)
                if report or message is None:
                    what = "finished before" if report else str(run.workdir)
                    say(f"{numbers[run.name]}: {what}")
                if report is None and message is None:
                    try:
                        report = train(run)
                    except RunError as error:
                        message = str(error)
                        workers.note_failure(run.workdir, message)
            if report is not None:
                yield run, report | {"seconds": run.seconds(report)}
            elif message is not None:
                failed(run, message)
        if left:
            time.sleep(POLL_SECONDS)


def train(run: Run, watch: Callable[[], bool] | None = None) -> dict[str, Any] | None:
    """Trains a run in a process of its own and records that it is finished.

    If the program is asked to stop, it exits with the code that shells expect after a signal.

    Args:
        run: the run; it is resumed if its folder holds a part of it.
        watch: asks for the run's end by returning True, see `run_in_child`.

    Returns:
        Its report; None if `watch` ended it before it was finished.

    Raises:
        RunError: it ended with an error.
    """
    start, asked = time.monotonic(), False

    def watched() -> bool:
        nonlocal asked
        asked = watch is not None and watch()
        return asked

    try:
        train_in_child(run, watched) if watch else train_in_child(run)
        report = run.record_finished()
    except RunError:
        if not asked:
            raise
        return run.record_finished()
    except StoppedError as stopped:
        _exit_stopped(run, stopped.number)
    finally:
        run.add_seconds(time.monotonic() - start)
    if report is None and not asked:
        _exit_stopped(run, None)
    return report


def _exit_stopped(run: Run, number: int | None) -> NoReturn:
    say(f"{run.name}: stopped; to resume, run the same command again")
    sys.exit(128 + number if number else 1)


def train_in_child(run: Run, watch: Callable[[], bool] | None = None) -> None:
    """Trains a run in a process of its own, see `run_in_child`.

    Raises:
        RunError: it ended with an error.
        StoppedError: this program received a signal.
    """
    command = shlex.join(["python", "-m", "agenet.main", *run.flags, f"--workdir={run.workdir}"])
    run_in_child(_launch, run.config, run.workdir, command, watch=watch)


def _launch(config: RunConfig, workdir: Path, command: str) -> None:
    # Imported here, not above: the parent process needs none of it.
    from agenet.runs.launch import launch

    launch(config, workdir, command)


def test_figures(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The metrics of each task on the test set that are single numbers other than counts."""
    return {
        task: {name: value for name, value in metrics.items() if isinstance(value, float)}
        for task, metrics in report["evaluation"]["tasks"].items()
    }


def validation_figures(workdir: Path, step: int) -> dict[str, float]:
    """The scalars of the validation at a step, without their prefix "validation/"."""
    rows = [row for row in read_history(workdir / "metrics.jsonl") if row["step"] == step]
    return {
        name.removeprefix("validation/"): value
        for row in rows
        for name, value in row.items()
        if name.startswith("validation/")
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table whose columns are aligned, so that it is readable in a terminal."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        " | ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in (header, rule, *rows)
    ]
    return "\n".join(f"| {line} |" for line in lines)


def command_line(program: str, arguments: Sequence[str]) -> str:
    """The command that a user types, quoted for a shell."""
    return shlex.join(["agenet", program, *arguments])


def stopped_early(training: Mapping[str, Any]) -> str:
    """For a report's `training`: "60 of 100 steps" if patience ended it, otherwise ""."""
    steps, total = training["steps"], training.get("total_steps")
    return f"{steps:,} of {total:,} steps" if total and steps < total else ""


def both(values: Sequence[float | None]) -> str:
    """The text of the shares of `FIGURES`, in per cent."""
    return " / ".join("–" if value is None else f"{100 * value:.2f}" for value in values)


def time_cell(seconds: float, stopped_early: str) -> str:
    """A table's cell with the time of a run, and how much of it was trained if not all."""
    return f"{seconds:,.0f}" + (f" ({stopped_early})" if stopped_early else "")
