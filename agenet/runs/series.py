"""Several runs of agenet.main, one after the other: what run_folds.py and sweep.py share."""

import contextlib
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from agenet.errors import UserError
from agenet.files import (
    exclusive_lock,
    hash_text,
    read_json_lines,
    write_errors_explained,
    write_json,
)
from agenet.main import LARGE_PAGES, config_error
from agenet.runs.identity import data_set_names, digest_data, digest_weights, find_differences
from agenet.runs.run_server import Forked, RunServer

ROOT = Path(__file__).resolve().parents[2]
FINISHED = "finished.json"
TIME = "time.json"
_TAIL = 20_000  # bytes of what a run printed last, in which the reason of a failure is looked for
_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|out of memory|MemoryError|bad_alloc", re.I)


@dataclass(frozen=True)
class Run:
    """One call of agenet.main.

    Attributes:
        name: for people.
        workdir: where it is kept.
        flags: `--config=FILE` and any `--config.FIELD=VALUE`, of which the last one counts.
    """

    name: str
    workdir: Path
    flags: tuple[str, ...]

    @cached_property
    def config(self) -> ConfigDict:
        """What the flags ask for; raises `UserError` for a mistake in them."""
        return read_config(self.flags)

    def report(self) -> dict[str, Any] | None:
        """The report, if this very run was trained to its end here; costs no start-up.

        It is compared with what `record_finished` left, not with the config in the report, into
        which the run has filled what the flags left open. If weights or data seem to have changed
        since then, agenet.main is to find out whether they have.
        """
        try:
            text = (self.workdir / "report.json").read_text()
            finished = json.loads((self.workdir / FINISHED).read_text())
            config = {"config": _plain(self.config)}
            same = not find_differences({"config": finished["config"]}, config, may_differ=())
            same = same and finished["report"] == hash_text(text)
            # What an earlier version did not record is taken to be the same.
            then, now = finished.get("sources", {}), self._digest_sources()
            same = same and all(then.get(name, digest) == digest for name, digest in now.items())
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return json.loads(text) if same else None

    def record_finished(self) -> dict[str, Any] | None:
        """To be called when agenet.main has ended well: the report, None if it was only stopped.

        agenet.main has then made sure that what lies here is of this config.
        """
        try:
            text = (self.workdir / "report.json").read_text()
        except FileNotFoundError:
            return None
        report = json.loads(text)
        if not _is_whole(report):
            return None
        finished = {
            "config": _plain(self.config),
            "report": hash_text(text),
            "sources": self._digest_sources(),
        }
        write_json(self.workdir / FINISHED, finished)
        return report

    def _digest_sources(self) -> dict[str, str]:
        """Of the initial weights and the data sets, as far as they are there."""
        dataset = self.config.dataset
        found = {name: digest_data(name, dataset.data_dir) for name in data_set_names(dataset)}
        found["init"] = digest_weights(self.config.init)
        return {name: digest for name, digest in found.items() if digest}

    def seconds(self, report: Mapping[str, Any]) -> float:
        """What its processes took from their start to their end, whatever interrupted it.

        At the least it is what the report tells of training, validating and testing: a run may
        have been trained elsewhere and only been found finished here.
        """
        told = report["training"]["seconds"] + report["evaluation"]["seconds"]
        return max(self._measured_seconds(), told)

    def add_seconds(self, seconds: float) -> None:
        """Adds what one more process took, if it has left a folder."""
        # A full disk is told of by the run that met it, and more than a time is lost then.
        with contextlib.suppress(OSError):
            total = self._measured_seconds() + seconds
            write_json(self.workdir / TIME, {"seconds": total})

    def _measured_seconds(self) -> float:
        try:
            return float(json.loads((self.workdir / TIME).read_text())["seconds"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 0.0


class RunError(Exception):
    """A run ended with an error: its message in one line."""


class StoppedError(Exception):
    """A run was told to stop; the signal's number, if it came to this program."""

    def __init__(self, number: int | None = None):
        self.number = number


Train = Callable[[Run], None]
Child = Forked | subprocess.Popen

_server: RunServer | None = None  # started by the first run


def read_config(arguments: Sequence[str]) -> ConfigDict:
    """The config that flags of agenet.main stand for.

    Raises:
        UserError: there is no such file, or no such field.
    """
    values = flags.FlagValues()
    argv = ["", *arguments]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
        if isinstance(holder.value, ConfigDict):
            return holder.value
        error: Exception = UserError("--config is not the file of a ConfigDict")
    except Exception as raised:  # The flags of a config raise as the file or the fields do.
        error = raised
    message = str(error).strip().splitlines() or [type(error).__name__]
    raise config_error(argv) or UserError(message[-1]) from error


def check_fields(arguments: Sequence[str], fixed: Sequence[str] = ()) -> None:
    """Raises `UserError` for arguments that are no `--config.FIELD=VALUE`, or set a fixed field."""
    for argument in arguments:
        found = re.match(r"--config\.([\w.]+)=", argument)
        if not found:
            raise UserError(
                f"{argument} is not a flag: fields are set with --config.FIELD=VALUE, see --help"
            )
        if found[1] in fixed:
            raise UserError(f"{argument}: {found[1]} is set by this program, leave it out")


@contextlib.contextmanager
def own_folder(workdir: Path) -> Iterator[None]:
    """Makes the folder of several runs, to be this process's alone in the block.

    Raises:
        UserError: it cannot be one, or is another process's.
    """
    with write_errors_explained(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(workdir):
        yield


def run_all(
    runs: Sequence[Run], train: Train, failed: Callable[[Run, str], None]
) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Trains what is not finished yet, giving the report of each run as soon as it is there.

    To the report are added `seconds`, those of `Run.seconds`.

    Args:
        runs: in order; a run after which nothing is given has called `failed`.
        train: of one run, `train_in_child` outside of tests.
        failed: called with a run that ended with an error and its message.

    Raises:
        StoppedError: a run was told to stop.
    """
    for number, run in enumerate(runs, 1):
        report = run.report()
        what = "finished before" if report else str(run.workdir)
        print(f"run {number} of {len(runs)}: {run.name}: {what}", file=sys.stderr, flush=True)
        if report is None:
            start = time.monotonic()
            try:
                train(run)
            except RunError as error:
                failed(run, str(error))
                continue
            finally:
                run.add_seconds(time.monotonic() - start)
            report = run.record_finished()
            if report is None:
                raise StoppedError
        yield run, report | {"seconds": run.seconds(report)}


def train_in_child(run: Run) -> None:
    """Calls agenet.main in a process of its own, whose memory and crashes stay there.

    What it prints passes through. Ctrl-C and SIGTERM are passed on to it, whereupon it saves.

    Raises:
        RunError: it ended with an error.
        StoppedError: this program got a signal.
    """
    arguments = [*run.flags, f"--workdir={run.workdir}"]
    output, terminal = _open_pipe()
    with os.fdopen(output, "rb", buffering=0) as stream, _passing_on_signals() as signals:
        try:
            child = _start(arguments, terminal, signals)
            signals.pass_to(child)
        finally:
            os.close(terminal)
        tail = _pass_through(stream)
        code = child.wait()
    if signals.received:
        raise StoppedError(signals.received[0])
    if code:
        raise RunError(_reason(code, tail))


class _Signals:
    """Those that this program has got, passed on to its child as soon as there is one."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._child: Child | None = None

    def receive(self, number: int, _: Any) -> None:
        self.received.append(number)
        if self._child:
            self._child.send_signal(number)

    def pass_to(self, child: Child) -> None:
        self._child = child
        for number in self.received:
            child.send_signal(number)


@contextlib.contextmanager
def _passing_on_signals() -> Iterator[_Signals]:
    signals = _Signals()
    previous = {
        number: signal.signal(number, signals.receive)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        # nohup and shells without job control have some ignored.
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _start(arguments: Sequence[str], stderr: int, signals: _Signals) -> Child:
    """Calls agenet.main in a session of its own.

    A terminal sends Ctrl-C to everybody in its own, and a run that hears it twice, from there and
    from here, ends without saving.
    """
    global _server
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path}
    if sys.platform != "linux":  # Other systems have no fork, or libraries that do not bear it.
        command = [sys.executable, "-m", "agenet.main", *arguments]
        return subprocess.Popen(command, env=environment, stderr=stderr, start_new_session=True)
    # What agenet.main would start itself anew for, and then have to import everything again.
    environment.setdefault("GLIBC_TUNABLES", LARGE_PAGES)
    try:
        if _server is None or not _server.is_alive():
            _server = RunServer(environment)
        if not _server.get_ready(stop=lambda: signals.received):
            raise StoppedError(signals.received[0])
        return _server.start("agenet.main", arguments, stderr)
    except (EOFError, ConnectionError) as error:
        raise RunError("no process could be started for it") from error


def _open_pipe() -> tuple[int, int]:
    """File descriptors to read from and to write to; a terminal where this program has one."""
    if not sys.stderr.isatty():
        return os.pipe()
    output, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, termios.tcgetwinsize(sys.stderr.fileno()))
    return output, terminal


def _pass_through(stream: Any) -> str:
    tail = b""
    # A terminal raises where a pipe ends.
    with contextlib.suppress(OSError):
        while chunk := stream.read(4096):
            os.write(sys.stderr.fileno(), chunk)
            tail = (tail + chunk)[-_TAIL:]
    return tail.decode(errors="replace")


def _reason(code: int, tail: str) -> str:
    """Why a run ended, in one line, from its exit code and what it printed last."""
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if told:
        return told[-1]
    if _OUT_OF_MEMORY.search(tail):
        return "out of memory"
    if code == -signal.SIGKILL:
        return "killed, as systems do that run out of memory"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return lines[-1][:300] if lines else f"ended with exit code {code}"


def end_if_stopped(stopped: StoppedError, name: str) -> None:
    """Ends the program, as shells expect it after a signal, and says how to go on."""
    print(f"{name}: stopped; to go on, run the same command again", file=sys.stderr)
    sys.exit(128 + stopped.number if stopped.number else 1)


def test_figures(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """For each task the figures of the test that are a single number, not a count."""
    return {
        task: {name: value for name, value in metrics.items() if isinstance(value, float)}
        for task, metrics in report["evaluation"]["tasks"].items()
    }


def validation_figures(workdir: Path, step: int) -> dict[str, float]:
    """The scalars of the validation at a step, without their prefix "validation/"."""
    rows = [row for row in read_json_lines(workdir / "metrics.jsonl") if row["step"] == step]
    return {
        name.removeprefix("validation/"): value
        for row in rows
        for name, value in row.items()
        if name.startswith("validation/")
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table that reads well on a terminal, too."""
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
    return shlex.join(["agenet", program, *arguments])


def _is_whole(report: Mapping[str, Any]) -> bool:
    """Whether a report is of a run's end; agenet evaluate also writes one half-way."""
    training = report["training"]
    return training.get("complete", training["steps"] == training.get("total_steps"))


def stopped_early(training: Mapping[str, Any]) -> str:
    """Of a report's `training`: "60 of 100 steps" if a patience ended it, else ""."""
    steps, total = training["steps"], training.get("total_steps")
    return f"{steps:,} of {total:,} steps" if total and steps < total else ""


def _plain(config: ConfigDict) -> dict[str, Any]:
    """As JSON has it."""
    return json.loads(json.dumps(config.to_dict()))
