"""A run that its patience ends is as complete as any, and ends at the same step after any stop."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from agenet.errors import UserError
from agenet.evaluation.document import compose
from agenet.evaluation.page import to_markdown
from agenet.runs import launch, reporting
from agenet.training.checkpoints import Checkpoints
from agenet.training.run_record import is_complete
from tests.evaluation.test_report import finished_run
from tests.runs.conftest import Run
from tests.tiny import on_batch, read_rows, result

# So large a rate that the loss soon gets worse.
FIELDS: dict[str, Any] = {
    "schedule__learning_rate": 0.6,
    "evaluate_every": "2 steps",
    "patience": "4 steps",
    "log_every": "20 steps",
}


@pytest.fixture
def run(run: Run) -> Run:
    """Launches a tiny run that its patience ends, in a new work directory, which it returns."""
    return lambda name="run", **fields: run(name, **FIELDS | fields)


def read_run(workdir: Path) -> dict[str, Any]:
    saved = Checkpoints(workdir, read_only=True).read_run("latest")
    assert saved is not None
    return saved


def test_ends_when_nothing_gets_better(run: Run, capsys: pytest.CaptureFixture) -> None:
    losses = {
        row["step"]: row["validation/loss"]
        for row in read_rows(run("patient", patience=""))
        if "validation/loss" in row
    }
    best, end = 0, 20
    for step, loss in losses.items():
        if loss < losses.get(best, float("inf")):
            best = step
        if step - best >= 4:
            end = step
            break
    assert end < 20
    capsys.readouterr()
    workdir = run()
    message = f"stopped early, at step {end} of 20: no better validation/loss in 4 steps"
    assert f"{message}, since step {best}" in capsys.readouterr().err
    validated = [row["step"] for row in read_rows(workdir) if "validation/loss" in row]
    assert validated == [step for step in losses if step <= end]
    trained = [row["step"] for row in read_rows(workdir) if "train/loss" in row]
    assert trained[-1] == end
    saved = Checkpoints(workdir, read_only=True)
    assert (saved.latest_step, saved.best_step) == (end, best)
    assert is_complete(read_run(workdir))
    run("next", init=str(workdir))  # As from any run that is complete.


def test_ends_alike_after_any_stop(run: Run, tmp_path: Path) -> None:
    whole = result(run("whole"))
    # Two batches of validation after every second step: the last two decide.
    end = whole["latest"] * 2
    for call in (1, 3, end - 2, end - 1, end):
        workdir = tmp_path / str(call)
        with pytest.MonkeyPatch.context() as patch:
            on_batch(call, lambda: signal.raise_signal(signal.SIGTERM), patch.setattr)
            run(workdir.name)
        assert not is_complete(read_run(workdir))
        run(workdir.name)
        assert result(workdir) == whole
        assert is_complete(read_run(workdir))
        run(workdir.name)  # As after a kill before the report was written.
        assert result(workdir) == whole


def test_the_last_row_is_not_written_twice(run: Run) -> None:
    """Nor one of no steps: here every validation follows a row."""
    workdir = run(log_every="2 steps")
    end = read_run(workdir)["step"]
    assert end < 20 and is_complete(read_run(workdir))
    trained = [row["step"] for row in read_rows(workdir) if "train/loss" in row]
    assert trained == [*range(2, end + 1, 2)]


def test_is_finished_and_reported_so(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def write(workdir: Path, summary: dict[str, Any], *args: Any) -> None:
        (workdir / "report.json").write_text(json.dumps(summary))

    monkeypatch.setattr(launch, "report_run", reporting.report_run)
    monkeypatch.setattr(reporting, "write_report", write)
    training = json.loads((run() / "report.json").read_text())["training"]
    assert training["complete"] and training["steps"] < training["total_steps"] == 20
    capsys.readouterr()
    run()
    assert "this run is finished" in capsys.readouterr().err
    summary = finished_run().summary
    summary["training"] |= {name: training[name] for name in ("steps", "total_steps", "complete")}
    text = to_markdown(compose(summary, {}, {}))
    assert f"| {training['steps']} of 20 |" in text
    assert "Stopped early: validation/loss had not improved" in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"best": "last"}, 'patience "4 steps" has no metric to watch, as best is "last"'),
        ({"patience": "2"}, '"2" is not a duration'),
    ],
)
def test_mistakes(run: Run, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        run(**fields)
    assert message in str(caught.value) and "\n" not in str(caught.value)
