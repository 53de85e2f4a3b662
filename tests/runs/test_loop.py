import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from agenet.data.records import Records
from agenet.errors import UserError
from agenet.evaluation.metrics import task_metrics
from agenet.runs import launch
from agenet.runs.config import IN_YEARS, validation_metrics
from agenet.runs.evaluator import age_errors
from agenet.runs.loop import is_better, validation_row
from agenet.training.checkpoints import Checkpoints
from tests.runs.conftest import Run
from tests.tiny import read_rows, result, use_records


def test_rows(run: Run) -> None:
    workdir = run()
    assert "conv/kernel " in (workdir / "parameters.txt").read_text()
    rows = read_rows(workdir)
    training = [row for row in rows if "train/loss" in row]
    validation = [row for row in rows if "validation/loss" in row]
    assert len(training) + len(validation) == len(rows)
    assert [row["step"] for row in training] == [4, 8, 12, 16, 20]
    assert [row["step"] for row in validation] == [6, 12, 18, 20]
    assert [row["epoch"] for row in validation] == [step / 7 for step in (6, 12, 18, 20)]
    for row in training:
        assert row["train/loss"] == row["train/age_loss"] + row["train/gender_loss"]
        assert 0 <= row["train/age_accuracy"] <= 1
        assert row["train/gradient_norm"] > 0
    for row in validation:
        assert row["validation/loss"] == row["validation/age_loss"] + row["validation/gender_loss"]
        known = {*validation_metrics(["age", "gender"])} - {*IN_YEARS}  # Ages are ranges only.
        assert set(row) == {"step", "epoch", *known}


def test_rows_are_means_over_the_steps_since_the_last(
    run: Run, make_records: Callable[..., Records], monkeypatch: pytest.MonkeyPatch
) -> None:
    records = make_records()
    # With every label known all batches weigh the same.
    known = {task: np.maximum(labels, 0) for task, labels in records.labels.items()}
    use_records(dataclasses.replace(records, labels=known), monkeypatch.setattr)
    single = [row for row in read_rows(run("one", log_every="1 steps")) if "train/loss" in row]
    several = [row for row in read_rows(run("four")) if "train/loss" in row]
    for i, row in enumerate(several):
        for name in ("loss", "age_accuracy", "gender_loss", "gradient_norm"):
            parts = [part[f"train/{name}"] for part in single[4 * i : 4 * i + 4]]
            assert row[f"train/{name}"] == pytest.approx(np.mean(parts))


def test_what_a_row_fetches_does_not_grow_with_its_steps(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch, fetched = jax.device_get, set()

    def counted(tree: Any) -> Any:
        fetched.add(len(jax.tree.leaves(tree)))
        return fetch(tree)

    monkeypatch.setattr(jax, "device_get", counted)
    run("short", log_every="1 steps")
    short = max(fetched)
    run("long", log_every="20 steps")
    assert max(fetched) == short


@pytest.mark.parametrize("tasks", [["age"], ["gender"], ["age", "gender"]])
def test_known_metrics_are_those_that_are_measured(tasks: list[str]) -> None:
    metrics = {
        task: task_metrics(task, np.zeros((1, {"age": 8, "gender": 2}[task])), np.array([0]))
        for task in tasks
    }
    if "age" in tasks:
        metrics["age"] |= age_errors(np.array([30.0]), np.array([36]))
    assert sorted(validation_row(metrics)) == sorted(validation_metrics(tasks))


def test_the_last_state_is_kept_where_asked(run: Run) -> None:
    workdir = run(best="last", schedule__learning_rate=0.6)
    record = Checkpoints(workdir, read_only=True).read_run("best")
    assert record is not None and (record["step"], record["metric"]) == (20, "last")


@pytest.mark.parametrize("metric", ["validation/loss", "validation/age_accuracy"])
def test_best_state_is_chosen_by_the_metric_of_the_config(run: Run, metric: str) -> None:
    workdir = run(best=metric, evaluate_every="1 steps", schedule__learning_rate=0.6)
    values = {row["step"]: row[metric] for row in read_rows(workdir) if metric in row}
    best = (min if metric.endswith("loss") else max)(values.values())
    step = next(step for step, value in values.items() if value == best)
    assert step != 20  # Or the latest state would do, too.
    saved = Checkpoints(workdir, read_only=True)
    record = saved.read_run("best")
    assert record is not None
    assert (saved.best_step, record["step"]) == (step, step)
    assert (record["metric"], record["value"]) == (metric, best)


def test_better_is_smaller_for_losses_only() -> None:
    assert is_better("validation/age_loss", 1.0, 2.0)
    assert not is_better("validation/loss", 2.0, 2.0)
    assert is_better("validation/accuracy", 0.6, 0.5)
    assert not is_better("validation/age_one_off", 0.5, 0.5)
    assert is_better("validation/age_mae", 5.1, 5.2)
    assert is_better("validation/age_cs5", 0.6, 0.5)


def in_years(records: Records, known: float = 1.0) -> Records:
    """The data set with ages in years for a share of the faces."""
    years = np.random.default_rng(0).random(len(records.fold)) < known
    return dataclasses.replace(
        records, age_high=np.where(years, records.age_low, records.age_high).astype(np.int32)
    )


@pytest.mark.parametrize("head", ["groups", "ordinal"])
def test_errors_in_years(
    run: Run,
    make_records: Callable[..., Records],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    head: str,
) -> None:
    use_records(in_years(make_records()), monkeypatch.setattr)
    workdir = run(best="validation/age_mae", evaluate_every="2 steps", heads__age=head)
    rows = [row for row in read_rows(workdir) if "validation/loss" in row]
    assert all(row["validation/age_mae"] > 0 for row in rows)
    assert all(0 <= row["validation/age_cs5"] <= 1 for row in rows)
    least = min(rows, key=lambda row: row["validation/age_mae"])
    record = Checkpoints(workdir, read_only=True).read_run("best")
    assert record is not None and record["value"] == least["validation/age_mae"]
    assert re.search(rf"valid +20 .*MAE +{rows[-1]['validation/age_mae']:.2f}\n", output(capsys))


def output(capsys: pytest.CaptureFixture) -> str:
    text: str = capsys.readouterr().err
    return text


def test_errors_in_years_where_few_ages_are_known(
    run: Run, make_records: Callable[..., Records], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_records(in_years(make_records(), 0.2), monkeypatch.setattr)
    assert not any("validation/age_mae" in row for row in read_rows(run("few")))
    chosen = run("chosen", best="validation/age_cs5")
    assert any("validation/age_cs5" in row for row in read_rows(chosen))


def test_errors_in_years_where_no_age_is_known(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "train_and_test", None)
    with pytest.raises(UserError, match=r"no face for validation has an age in years: use --conf"):
        run(best="validation/age_mae")


def test_compilation_is_announced(
    run: Run, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(schedule__learning_rate=0.0123)  # An experiment that no other test has used.
    text = output(capsys)
    for what in ("the initial parameters", "the training step", "the evaluation step"):
        assert text.count(f"compiling {what}, which can take minutes\n") == 1
        assert re.search(rf"compiling {what}, .*\n(.*\n)?.* compiled {what} in [0-9.]+ s\n", text)


@pytest.mark.parametrize("metric", ["validation/age_los", "train/loss", "validation/gender_loss"])
def test_unknown_metric_is_reported_before_anything_is_done(
    run: Run, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    monkeypatch.setattr(launch, "train_and_test", None)
    with pytest.raises(UserError, match=r"validation/loss, .*validation/age_cs5$") as caught:
        run(best=metric, tasks="age")
    assert f'best "{metric}"' in str(caught.value)


def test_schedule_is_applied(run: Run) -> None:
    fields: dict[str, Any] = {"optimizer__name": "sgd", "optimizer__momentum": 0.0}
    half = run("half", duration="10 steps", log_every="1 steps", **fields)
    whole = run(
        "whole",
        log_every="1 steps",
        schedule__name="piecewise",
        schedule__boundaries=("10 steps", "15 steps"),
        schedule__scales=(1.0, 0.0, 0.0),
        **fields,
    )
    rates = [row["learning_rate"] for row in read_rows(whole) if "learning_rate" in row]
    assert rates == pytest.approx([0.01] * 10 + [0.0] * 10)
    before, after = result(half), result(whole)
    kernel = "latest['params']['backbone']['conv']['kernel']"
    assert after[kernel] == before[kernel]
    # What has no learning rate goes on changing.
    assert (
        after["latest['batch_stats']['backbone']['bn']['mean']"]
        != before["latest['batch_stats']['backbone']['bn']['mean']"]
    )


def test_learning_rate_is_that_of_the_step(run: Run) -> None:
    workdir = run(log_every="1 steps", schedule__name="cosine", schedule__warmup="4 steps")
    rates = [row["learning_rate"] for row in read_rows(workdir) if "learning_rate" in row]
    cosine = [0.005 * (1 + math.cos(math.pi * step / 16)) for step in range(16)]
    assert rates == pytest.approx([0, 0.0025, 0.005, 0.0075, *cosine], rel=1e-5)


DIVERGING = {
    "optimizer__name": "sgd",
    "schedule__name": "piecewise",
    "schedule__learning_rate": 1e-3,
}


def test_loss_that_is_not_finite_stops_the_run(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        run(
            schedule__boundaries=("7 steps", "9 steps"),
            schedule__scales=(1.0, 1e38, 1.0),
            **DIVERGING,
        )
    message = str(caught.value)
    assert "its gradient's norm nan, at step 9 with learning rate 1e+35; " in message
    assert f"last good checkpoint: step 5 in {tmp_path / 'run'}/checkpoints/latest" in message
    assert "smaller --config.schedule.learning_rate" in message
    saved = Checkpoints(tmp_path / "run", read_only=True)
    assert (saved.latest_step, saved.best_step) == (5, 6)
    state = saved._latest.restore(5)["state"]
    assert np.isfinite(state["params"]["backbone"]["conv"]["kernel"]).all()
    assert [row["step"] for row in read_rows(tmp_path / "run")] == [4, 6, 8]


def test_validation_that_is_not_finite_stops_the_run(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"validation loss is not finite at step 6 .*: none yet"):
        run(
            schedule__boundaries=("5 steps",),
            schedule__scales=(1.0, 1e38),
            checkpoint_every="20 steps",
            **DIVERGING,
        )
    saved = Checkpoints(tmp_path / "run", read_only=True)
    assert (saved.latest_step, saved.best_step) == (None, None)


def test_tasks_apart(run: Run) -> None:
    rows = read_rows(run(tasks="gender"))
    assert {name for row in rows for name in row if "age" in name} == set()
    assert rows[0]["train/loss"] == rows[0]["train/gender_loss"]


def test_start_tells_what_is_about_to_happen(run: Run, capsys: pytest.CaptureFixture) -> None:
    workdir = run()
    output = capsys.readouterr().err
    for text in (
        "command",
        "devices   ",
        "mesh: data 1",
        "noise/faces/1.0.0, official labels, protocol subject, test fold 0",
        "0 of 36 test images show a subject from training",
        "model     tiny (tiny), 330 parameters, all trained; initial weights: random",
        "20 steps of 16 images, 7 an epoch",
        "adam, learning rate 0.01 constant, warm-up 0 steps",
        f"writes to {workdir}",
        "train    20   2.86  ",
        "valid    20   2.86  ",
    ):
        assert text in output
        assert text in (workdir / "train.log").read_text()
