"""Where the scalars of a run go: JSON lines always, TensorBoard where TensorFlow is installed."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)


class MetricWriter(Protocol):
    """The part of clu's `MetricWriter` that training needs."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class JsonLinesWriter:
    """One JSON object per call: "step" and the scalars."""

    def __init__(self, path: Path, *, resume_step: int):
        """Appends to `path`, dropping rows after `resume_step` that an interrupted run left."""
        kept = [row for row in read_json_lines(path) if row["step"] <= resume_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(temporary, path)
        self._file = path.open("a")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._file.flush()

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_json_lines(path: Path) -> list[dict[str, float]]:
    """The rows of a file that `JsonLinesWriter` wrote, without a last one that was cut off."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # Killed while writing.
            break
    return rows


class Writers:
    """Several writers as one."""

    def __init__(self, writers: list[MetricWriter]):
        self._writers = writers

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def create_writer(workdir: Path, *, tensorboard: bool, resume_step: int) -> MetricWriter:
    """`metrics.jsonl` and, if asked for and TensorFlow is installed, `tensorboard/`."""
    writers: list[MetricWriter] = [
        JsonLinesWriter(workdir / "metrics.jsonl", resume_step=resume_step)
    ]
    if tensorboard:
        try:  # Imports TensorFlow: seconds, and not everyone has it.
            from clu.metric_writers import SummaryWriter
        except ImportError:
            log.info("no TensorBoard log: TensorFlow is not installed; metrics.jsonl has it all")
        else:
            writers.append(SummaryWriter(str(workdir / "tensorboard")))
    return Writers(writers)
