"""Whole runs that are tracked."""

from pathlib import Path

import pytest

from tests.runs.conftest import Run
from tests.runs.trackers.test_tensorboard import read
from tests.tiny import read_rows


def test_a_run_is_tracked_and_resumed(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracking.invalid")
    monkeypatch.setenv("AGENET_OFFLINE", "1")
    workdir: Path = run(trackers=("tensorboard", "mlflow"))
    lines = [line for line in capsys.readouterr().err.splitlines() if "mlflow" in line.lower()]
    (line,) = (line for line in lines if "goes on without it" in line)
    assert "mlflow: " in line
    rows = [
        ({"step": event.step} | {value.tag: value.simple_value for value in event.summary.value})
        for event in read(workdir)
        if event.summary.value and event.summary.value[0].HasField("simple_value")
    ]
    expected = read_rows(workdir)
    assert [row.pop("pictures_per_second", None) is not None for row in rows].count(True) == 5
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    for row, known in zip(rows, expected, strict=True):
        assert row == pytest.approx(known, rel=1e-6)
    # One that is finished logs nothing more; other trackers do not make another run.
    files = sorted((workdir / "tensorboard").iterdir())
    run(trackers=())
    assert sorted((workdir / "tensorboard").iterdir())[: len(files)] == files
    assert read_rows(workdir) == expected
