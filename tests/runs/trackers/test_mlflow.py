import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from agenet.errors import UserError
from agenet.runs.trackers.background import explain
from agenet.runs.trackers.mlflow import MlflowTracker
from agenet.runs.trackers.tracker import TrackedRun

# What MLflow warns of in its own code and dependencies.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MAX_RETRIES", "TIMEOUT"):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", "1")


def open_store(folder: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")


@pytest.mark.slow
def test_local_store(tracked: TrackedRun) -> None:
    """A run that is stopped and resumed is one run, each of whose steps is there once."""
    tracker = MlflowTracker(tracked)
    for step in (2, 4, 6):
        tracker.log_scalars(step, 1000.5, {"train/loss": float(step)})
    tracker.close(False)
    folder = tracked.workdir.parent
    client = open_store(folder)
    run_id = json.loads((tracked.workdir / "mlflow.json").read_text())["run_id"]
    assert client.get_run(run_id).info.status == "KILLED"

    tracker = MlflowTracker(dataclasses.replace(tracked, step=4))
    for step in (6, 8):
        tracker.log_scalars(step, 2000.5, {"train/loss": float(step), "test/loss": float("nan")})
    tracker.log_report(8)
    tracker.close(True)
    (experiment,) = (e for e in client.search_experiments() if e.name == "agenet")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status, run.info.run_name) == (run_id, "FINISHED", "run")
    history = client.get_metric_history(run_id, "train/loss")
    assert [(m.step, m.value, m.timestamp) for m in sorted(history, key=lambda m: m.step)] == [
        (2, 2.0, 1000500),
        (4, 4.0, 1000500),
        (6, 6.0, 1000500),
        (8, 8.0, 2000500),
    ]
    assert run.data.params["config.model.name"] == "tiny"
    assert run.data.params["lineage.dataset.fingerprint"] == "f00"
    # Neither the user nor the program that was started.
    assert set(run.data.tags) == {"mlflow.runName"}
    files = {path.name for path in (folder / "mlflow-artifacts").rglob("*") if path.is_file()}
    report = {"confusion_age.png", "faces_age.png", "report.json", "report.md", "report.html"}
    assert files == report | {"config.json", "lineage.json"}

    # A run that somebody has deleted there is begun anew, and so is one of another store.
    client.delete_run(run_id)
    MlflowTracker(tracked).close(True)
    assert json.loads((tracked.workdir / "mlflow.json").read_text())["run_id"] != run_id


def test_server_that_is_down(tracked: TrackedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with pytest.raises(Exception, match="refused") as caught:
        MlflowTracker(tracked)
    assert "secret" not in explain(caught.value)


def test_offline(tracked: TrackedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracking.invalid")
    monkeypatch.setenv("AGENET_OFFLINE", "1")
    with pytest.raises(UserError, match="AGENET_OFFLINE forbids"):
        MlflowTracker(tracked)
