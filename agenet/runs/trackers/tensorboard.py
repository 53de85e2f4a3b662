"""Writes event files that TensorBoard reads, without TensorFlow.

Of the package `tensorboard` this takes the messages and the format of records. Its own writers
import TensorFlow where it is installed, which takes seconds and memory of accelerators.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from agenet.runs.trackers.tracker import TrackedRun, report_files

_FLUSH_EVERY = 2.0  # seconds


class TensorBoardTracker:
    """Writes to `tensorboard/` in the work directory."""

    def __init__(self, run: TrackedRun) -> None:
        # Imported here: it belongs to an extra.
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._tensor = event_pb2, tensor_pb2.TensorProto
        self._summary: Any = summary_pb2.Summary
        self._metadata: Any = summary_pb2.SummaryMetadata
        self._workdir = run.workdir
        folder = run.workdir / "tensorboard"
        folder.mkdir(exist_ok=True)
        self._writer = RecordWriter(_create(folder).open("xb"))
        self._flushed = 0.0
        # TensorFlow's number of type for texts.
        self._string = 7
        self._write(time.time(), 0, file_version="brain.Event:2")
        if run.step:
            # TensorBoard leaves out what an interrupted session wrote from this step on.
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(time.time(), run.step + 1, session_log=start)
        else:
            self._text("config", run.config)
            self._text("lineage", run.lineage)

    def log_scalars(self, step: int, time: float, scalars: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=tag, simple_value=v) for tag, v in scalars.items()]
        self._write(time, step, summary=self._summary(value=values))

    def log_report(self, step: int) -> None:
        figures, documents = report_files(self._workdir, faces=True)
        for path in figures:
            with Image.open(path) as image:
                width, height = image.size
            image = self._summary.Image(
                width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes()
            )
            value = self._summary.Value(tag=f"report/{path.stem}", image=image)
            self._write(time.time(), step, summary=self._summary(value=[value]))
        for path in documents:
            if path.suffix == ".md":
                self._text("report", path.read_text(encoding="utf-8"), step)

    def close(self, finished: bool) -> None:
        self._writer.close()

    def _text(self, tag: str, content: Mapping[str, Any] | str, step: int = 0) -> None:
        if not isinstance(content, str):  # Markdown's mark of code.
            lines = json.dumps(content, indent=2).splitlines()
            content = "\n".join(f"    {line}" for line in lines)
        plugin = self._metadata.PluginData(plugin_name="text")
        value = self._summary.Value(
            tag=tag,
            metadata=self._metadata(plugin_data=plugin),
            tensor=self._tensor(dtype=self._string, string_val=[content.encode()]),
        )
        self._write(time.time(), step, summary=self._summary(value=[value]))

    def _write(self, at: float, step: int, **content: Any) -> None:
        event = self._event.Event(wall_time=at, step=step, **content)
        self._writer.write(event.SerializeToString())
        now = time.monotonic()
        if now - self._flushed > _FLUSH_EVERY:
            self._writer.flush()
            self._flushed = now


def _create(folder: Path) -> Path:
    """A new name that sorts after those of earlier sessions, which is how TensorBoard reads."""
    return folder / f"events.out.tfevents.{time.time():017.6f}.agenet.{os.getpid()}"
