"""What a tracker is given of a run, and what it must be able to do."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agenet.files import write_json


@dataclass(frozen=True)
class TrackedRun:
    """A run, as trackers see it.

    Attributes:
        workdir: its work directory.
        config: all settings, nested.
        lineage: identity of its data and splits, its initial weights, and the subjects in its
            training data, see `agenet.runs.lineage`.
        step: at which this session begins; 0 for a new run.
    """

    workdir: Path
    config: Mapping[str, Any]
    lineage: Mapping[str, Any]
    step: int

    @property
    def name(self) -> str:
        """That of the work directory, without the folders that hold it."""
        return self.workdir.resolve().name or "run"

    def read_id(self, tracker: str) -> dict[str, str]:
        """What an earlier session kept about its run in a tracker; empty if there is nothing."""
        try:
            kept = json.loads(self._id_file(tracker).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        texts = isinstance(kept, dict) and all(isinstance(text, str) for text in kept.values())
        return kept if texts else {}

    def keep_id(self, tracker: str, **fields: str) -> None:
        """Keeps what identifies this run in a tracker, for later sessions."""
        write_json(self._id_file(tracker), fields)

    def _id_file(self, tracker: str) -> Path:
        return self.workdir / f"{tracker}.json"


class Tracker(Protocol):
    """A tracker that is open for one run; used by one thread.

    Any method may raise anything: `agenet.runs.trackers.background` says so in one line.
    """

    def log_scalars(self, step: int, time: float, scalars: Mapping[str, float]) -> None:
        """Logs scalars that were measured at `time`, in seconds since 1970."""
        ...

    def log_report(self, step: int) -> None:
        """Logs the figures and the files of the report, which is in the work directory."""
        ...

    def close(self, finished: bool) -> None:
        """Sends what is left; `finished` says whether the run has its report."""
        ...


def report_files(workdir: Path, *, faces: bool) -> tuple[Sequence[Path], Sequence[Path]]:
    """The figures and the documents of a report.

    Args:
        workdir: of the run.
        faces: whether those with images of the data set are among them. Its terms may not allow
            to send these to others.
    """
    figures = [path for path in sorted(workdir.glob("*.png")) if path.is_file()]
    if not faces:
        figures = [path for path in figures if not path.name.startswith("faces_")]
    names = ["report.json", "report.md", *(["report.html"] if faces else [])]
    return figures, [workdir / name for name in names if (workdir / name).is_file()]
