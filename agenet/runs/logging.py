"""Log lines on the terminal and in train.log; scalars in metrics.jsonl."""

import functools
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from absl import logging as absl_logging
from tqdm.contrib.logging import logging_redirect_tqdm

from agenet.errors import UserError, one_line
from agenet.evaluation.history import digest_row, read_rows
from agenet.files import write_file
from agenet.training.run_record import Progress

log = logging.getLogger(__name__)


def quiet_libraries() -> None:
    """Silences what JAX and Orbax log about their own work, and Keras's file of settings."""
    # JAX reports every kind of device that this machine does not have.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    # Orbax reports every file that it touches, and the tracebacks of errors that it raises.
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        Path.home()
    except RuntimeError:
        # TensorFlow imports Keras, which would create a folder called "~" here.
        os.environ.setdefault("KERAS_HOME", os.devnull)


class _OneLine(logging.Formatter):
    """Shows a message as one line, without what could control the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return one_line(super().formatMessage(record))


@contextmanager
def log_to(path: Path | None = None, *, process: int = 0) -> Iterator[None]:
    """Logs to the terminal, without breaking progress bars, and appends to a file.

    Processes other than the first one would log the same: they log only warnings, with their
    number. An exception that ends the block is logged to the file; the program shows it on the
    terminal.

    Args:
        path: of the file, if there is to be one.
        process: number of this process.
    """
    quiet_libraries()
    logging.raiseExceptions = False  # A full disk must not end a run because of a log line.
    logger = logging.getLogger("agenet")
    before = logger.level, logger.propagate
    logger.setLevel(logging.WARNING if process else logging.INFO)
    logger.propagate = False
    terminal = logging.StreamHandler()
    whose = f"process {process}: " if process else ""
    terminal.setFormatter(_OneLine(f"%(asctime)s {whose}%(message)s", "%H:%M:%S"))
    file = logging.FileHandler(path) if path else logging.NullHandler()
    file.setFormatter(_OneLine("%(asctime)s %(message)s"))
    logger.addHandler(file)
    try:
        logger.addHandler(terminal)
        try:
            with logging_redirect_tqdm([logger]):
                yield
        finally:
            logger.removeHandler(terminal)
    except BaseException as error:
        # Neither a mistake of the user's nor a signal needs one.
        traceback = isinstance(error, Exception) and not isinstance(error, UserError)
        log.error("%s: %s", type(error).__name__, error, exc_info=traceback)
        raise
    finally:
        logger.removeHandler(file)
        file.close()
        logger.setLevel(before[0])
        logger.propagate = before[1]


class MetricWriter(Protocol):
    """The part of clu's `MetricWriter` that training uses."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLinesWriter:
    """Writes one JSON object per call: "step" and the scalars."""

    def __init__(self, path: Path, rows: Sequence[Mapping[str, Any]] = ()):
        """Replaces the file by one with the given rows."""
        write_file(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        self._file = path.open("a", buffering=1)  # Each row is on disk at once.

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")

    def close(self) -> None:
        self._file.close()


class Writers:
    """Passes scalars on to several writers."""

    def __init__(self, writers: list[MetricWriter]):
        self._writers = writers

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def create_writer(workdir: Path, progress: Progress) -> MetricWriter:
    """A writer to metrics.jsonl.

    The rows in metrics.jsonl that `progress` knows of are kept; an interrupted run may have
    written more. Where they are not those that were written this logs it, and corrects `progress`.

    Raises:
        UserError: metrics.jsonl is damaged.
    """
    path = workdir / "metrics.jsonl"
    kept = read_rows(path)[: progress.rows]
    digest = functools.reduce(digest_row, kept, "")
    if digest != (progress.rows_digest or digest) or len(kept) != progress.rows:
        log.warning(
            "%s: of the %d rows that were written, some have changed or are missing: learning "
            "curves show what is left",
            path,
            progress.rows,
        )
    progress.rows, progress.rows_digest = len(kept), digest
    return JsonLinesWriter(path, kept)
