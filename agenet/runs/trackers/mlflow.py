"""Logs a run to MLflow: to its server if `MLFLOW_TRACKING_URI` is set, else to a local store.

The local store is the database `mlflow.db` beside the work directory, so that the runs in a folder
share it: `mlflow ui --backend-store-uri sqlite:///runs/mlflow.db`.
"""

import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic, time_ns
from typing import Any
from urllib.parse import urlsplit

from flax.traverse_util import flatten_dict

from agenet.errors import UserError
from agenet.runs.trackers.tracker import TrackedRun, report_files
from agenet.weights.connection import is_local, is_offline

NAME = "mlflow"
_EXPERIMENT = "agenet"
# Of parameters, by MLflow's own limits.
_LONGEST_VALUE = 6000
_MOST_AT_ONCE = 100
_MOST_METRICS = 500
_SEND_EVERY = 5.0  # seconds; each call takes some of Python's time from the training
# Unless the user has set other ones: by default MLflow tries a server for several minutes.
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


class MlflowTracker:
    """One run in the experiment "agenet", or the one that `MLFLOW_EXPERIMENT_NAME` names."""

    def __init__(self, run: TrackedRun) -> None:
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        folder = run.workdir.resolve().parent
        store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
        remote = urlsplit(store).scheme not in ("", "file", "sqlite")
        if remote and is_offline() and not is_local(store):
            raise UserError("AGENET_OFFLINE forbids to send anything to MLFLOW_TRACKING_URI")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        for library in ("mlflow", "alembic"):  # They report how they create a database.
            logging.getLogger(library).setLevel(logging.ERROR)
        self._metric, self._param = Metric, Param
        self._client = MlflowClient(tracking_uri=store)
        self._workdir, self._faces = run.workdir, not remote
        # Without the user's name and password for it.
        known = {"store": re.sub(r"//[^/@]*@", "//", store)}
        kept = run.read_id(NAME)
        self._last: dict[str, int] = {}
        self._unsent: list[Any] = []
        self._sent = monotonic()
        if kept.get("store") == known["store"] and self._reopen(kept.get("run_id", "")):
            return
        experiment = self._experiment(None if remote else folder / "mlflow-artifacts")
        created = self._client.create_run(experiment, run_name=run.name)
        self._run_id = created.info.run_id
        run.keep_id(NAME, run_id=self._run_id, **known)
        data, initial = run.lineage.get("dataset", {}), run.lineage.get("initial", {})
        self._log_params({"config": run.config})
        self._log_params({"lineage": {"dataset": data, "initial": initial}})
        with tempfile.TemporaryDirectory() as temporary:
            for name, content in (("config", run.config), ("lineage", run.lineage)):
                path = Path(temporary, f"{name}.json")
                path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
                self._client.log_artifact(self._run_id, str(path))

    def _reopen(self, run_id: str) -> bool:
        """Resumes an earlier session's run; returns whether it is still there."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id) if run_id else None
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return False
        if run is None or run.info.lifecycle_stage == "deleted":
            return False
        self._run_id = run_id
        self._client.update_run(run_id, status="RUNNING")
        # What an interrupted session logged after its last checkpoint comes once more.
        for name in run.data.metrics:
            history = self._client.get_metric_history(run_id, name)
            self._last[name] = max((metric.step for metric in history), default=-1)
        return True

    def _experiment(self, artifacts: Path | None) -> str:
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT
        location = artifacts.as_uri() if artifacts else None
        found = self._client.get_experiment_by_name(name)
        if found is None:
            with suppress(MlflowException):  # Another run has just created it.
                return str(self._client.create_experiment(name, artifact_location=location))
            found = self._client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage == "deleted":
            raise UserError(
                f"the experiment {name} cannot be used, it may be deleted: restore it, or set "
                "MLFLOW_EXPERIMENT_NAME"
            )
        return str(found.experiment_id)

    def _log_params(self, tree: Mapping[str, Any]) -> None:
        flat = flatten_dict(dict(tree), sep=".")
        params = [self._param(name, str(v)[:_LONGEST_VALUE]) for name, v in flat.items()]
        for start in range(0, len(params), _MOST_AT_ONCE):
            some = params[start : start + _MOST_AT_ONCE]
            self._client.log_batch(self._run_id, params=some)

    def log_scalars(self, step: int, time: float, scalars: Mapping[str, float]) -> None:
        self._unsent += [
            self._metric(name, value, int(1000 * time), step)
            for name, value in scalars.items()
            if step > self._last.get(name, -1)
        ]
        if len(self._unsent) >= _MOST_METRICS or monotonic() - self._sent > _SEND_EVERY:
            self._send()

    def _send(self) -> None:
        metrics, self._unsent, self._sent = self._unsent, [], monotonic()
        for start in range(0, len(metrics), _MOST_METRICS):
            some = metrics[start : start + _MOST_METRICS]
            self._client.log_batch(self._run_id, metrics=some)

    def log_report(self, step: int) -> None:
        self._send()
        figures, documents = report_files(self._workdir, faces=self._faces)
        for path in (*figures, *documents):
            self._client.log_artifact(self._run_id, str(path), "report")

    def close(self, finished: bool) -> None:
        self._send()
        status = "FINISHED" if finished else "KILLED"
        self._client.set_terminated(self._run_id, status, time_ns() // 1_000_000)
