"""Trains several runs one after the other and remembers which are finished.

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
from typing import Any

from agenet.errors import UserError
from agenet.evaluation.comparison import files
from agenet.evaluation.history import read_history
from agenet.evaluation.summary import is_finished
from agenet.files import exclusive_lock, hash_file, write_errors_explained, write_json
from agenet.runs.child_process import RunError, StoppedError, run_in_child
from agenet.runs.config import RunConfig, to_dict
from agenet.runs.identity import digest_data, digest_weights, find_differences

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
        return max(self._measured_seconds(), reported)

    def add_seconds(self, seconds: float) -> None:
        """Adds the time of one more process, if the work directory exists."""
        # The run itself reports a full disk.
        with contextlib.suppress(OSError):
            total = self._measured_seconds() + seconds
            write_json(self.workdir / TIME, {"seconds": total})

    def _measured_seconds(self) -> float:
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
    """Trains the runs that are not finished yet, in order.

    If a run is asked to stop, the program exits with the code that shells expect after a signal.

    Args:
        runs: the runs.
        workdir: the folder of all runs; it is created, and locked against other processes.
        failed: called with a run that ended with an error, and its message.

    Yields:
        Each run that succeeded and its report, to which `seconds` is added, see `Run.seconds`.

    Raises:
        UserError: the folder cannot be written to, or another process uses it.
    """
    with write_errors_explained(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(workdir):
        for number, run in enumerate(runs, 1):
            report = run.report()
            what = "finished before" if report else str(run.workdir)
            print(f"run {number} of {len(runs)}: {run.name}: {what}", file=sys.stderr, flush=True)
            if report is None:
                try:
                    report = _train(run)
                except RunError as error:
                    failed(run, str(error))
                    continue
                except StoppedError as stopped:
                    print(
                        f"{run.name}: stopped; to resume, run the same command again",
                        file=sys.stderr,
                    )
                    sys.exit(128 + stopped.number if stopped.number else 1)
            yield run, report | {"seconds": run.seconds(report)}


def _train(run: Run) -> dict[str, Any]:
    start = time.monotonic()
    try:
        train_in_child(run)
    finally:
        run.add_seconds(time.monotonic() - start)
    report = run.record_finished()
    if report is None:
        raise StoppedError
    return report


def train_in_child(run: Run) -> None:
    """Trains a run in a process of its own.

    Raises:
        RunError: it ended with an error.
        StoppedError: this program received a signal.
    """
    command = shlex.join(["python", "-m", "agenet.main", *run.flags, f"--workdir={run.workdir}"])
    run_in_child(_launch, run.config, run.workdir, command)


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


def time_cell(seconds: float, stopped_early: str) -> str:
    """A table's cell with the time of a run, and how much of it was trained if not all."""
    return f"{seconds:,.0f}" + (f" ({stopped_early})" if stopped_early else "")
