import dataclasses
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import jax
import numpy as np
import pytest

from agenet.cli.app import run_command
from agenet.data.order import evaluation_batches
from agenet.data.records import Records
from agenet.errors import UserError
from agenet.evaluation.metrics import expected_age
from agenet.labels import RACES
from agenet.runs import create, evaluator, launch, reporting
from agenet.runs.evaluator import predict
from tests.conftest import run_program
from tests.tiny import on_batch, tiny_config, use_records


@pytest.mark.parametrize("batch_size", [1, 4, 7, 21, 32])
def test_predicts_every_row_once_in_order(batch_size: int) -> None:
    rows = np.random.default_rng(0).permutation(100)[:21]
    batches = [(np.where(m, part, 1000), m) for part, m in evaluation_batches(rows, batch_size)]
    assert all(len(part) == len(mask) == batch_size for part, mask in batches)

    def eval_step(variables: str, batch: Any) -> dict[str, Any]:
        assert variables == "variables"
        return {"age": jax.numpy.stack([batch, -batch], 1)}

    predicted = predict(eval_step, "variables", batches)
    np.testing.assert_array_equal(predicted["age"], np.stack([rows, -rows], 1))


def test_prediction_stops_when_asked() -> None:
    asked, seen = iter([False, False, True]), []

    def eval_step(_: Any, batch: Any) -> dict[str, Any]:
        seen.append(batch)
        return {}

    batches = evaluation_batches(np.arange(9), 2)
    assert predict(eval_step, None, batches, stop=lambda: next(asked)) is None
    assert len(seen) == 2


@pytest.fixture(scope="module")
def records(make_records: Callable[..., Records]) -> Records:
    return make_records()


@pytest.fixture
def finished(records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The work directory of a finished run, with its report."""
    report_run = launch.report_run
    use_records(records, monkeypatch.setattr)
    monkeypatch.setattr(launch, "report_run", report_run)
    monkeypatch.setattr(reporting, "write_report", write_summary)
    launch.launch(tiny_config(), tmp_path, "the command")
    return tmp_path


def write_summary(
    workdir: Path, summary: dict, history: list, predictions: dict[str, np.ndarray], *_: Any
) -> None:
    text = json.dumps(summary | {"history": len(history)})
    np.savez(workdir / "predictions.npz", **predictions)
    (workdir / "report.json").write_text(text)


def read_summary(workdir: Path) -> dict[str, Any]:
    summary = json.loads((workdir / "report.json").read_text())
    summary["evaluation"].pop("seconds")
    summary["config"]["dataset"].pop("data_dir")
    return summary


def test_checkpoint_alone_gives_the_same_report(
    finished: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_summary(finished)
    assert before["evaluation"]["split"] == "test"
    assert before["evaluation"]["tasks"]["age"]["count"] > 20
    assert before["command"] == "the command"
    assert before["history"] == 9
    alone = tmp_path_factory.mktemp("alone")
    (finished / "checkpoints").rename(alone / "checkpoints")
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    run_command(["evaluate", f"--workdir={alone}", "--data_dir=elsewhere"])
    assert read_summary(alone) == before | {"history": 0}
    config = json.loads((alone / "report.json").read_text())["config"]
    assert config["dataset"]["data_dir"] == "elsewhere"


def test_mean_of_views(finished: Path) -> None:
    before = read_summary(finished)
    run_command(["evaluate", f"--workdir={finished}", "--test_views=4"])
    after = read_summary(finished)
    assert (before["evaluation"]["views"], after["evaluation"]["views"]) == (1, 4)
    assert after["config"]["test_views"] == 4 and before["config"]["test_views"] == 1
    assert after["command"] == "the command --config.test_views=4"
    for task, metrics in after["evaluation"]["tasks"].items():
        other = before["evaluation"]["tasks"][task]
        assert metrics["loss"] != other["loss"]
        assert metrics["loss"] == pytest.approx(other["loss"], rel=0.5)
    # The run's own command tests in as many views as it asks for, once.
    launch.launch(tiny_config(), finished, "the command")
    again = read_summary(finished)
    assert {name: again[name] for name in ("evaluation", "command", "config")} == {
        name: before[name] for name in ("evaluation", "command", "config")
    }
    launch.launch(tiny_config(test_views=2), finished, "another command")
    summary = read_summary(finished)
    assert summary["evaluation"]["views"] == 2 and summary["training"]["steps"] == 20
    assert summary["command"] == "another command"
    with pytest.raises(UserError, match=r"test_views 3 is not known: use 1, 2 or 4"):
        run_command(["evaluate", f"--workdir={finished}", "--test_views=3"])


def test_subgroups_and_years_are_of_the_data_set(
    finished: Path, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_summary(finished)["evaluation"]
    assert "mae" not in before["tasks"]["age"]  # Ages are ranges only.
    assert list(before["tasks"]["gender"]["subgroups"]) == ["age", "gender"]
    assert before["bootstrap"] == {
        "by": "person",
        "resamples": 1000,
        "level": 0.95,
        "seed": 0,
        "min_subjects": 10,
    }
    count = len(records.images)
    race = np.random.default_rng(0).integers(-1, 7, count).astype(np.int32)
    known = np.arange(count) % 2 == 0
    low, high = np.where(known, 30, 20), np.where(known, 30, 90)
    richer = dataclasses.replace(records, race=race, age_low=low, age_high=high)
    monkeypatch.setattr(create, "open_records", lambda *args: richer)
    monkeypatch.setattr(reporting, "check_same_run", lambda *args: None)
    run_command(["evaluate", f"--workdir={finished}"])
    tasks = read_summary(finished)["evaluation"]["tasks"]
    assert list(tasks["age"]["subgroups"]) == ["age", "gender", "race"]
    assert "mae" in tasks["age"] and "mae" not in tasks["gender"]
    with np.load(finished / "predictions.npz") as saved:
        rows = saved["index"]
        assert tasks["age"]["exact_ages"] == known[rows].sum()
        error = np.abs(expected_age(saved["age_log_probs"]) - 30)[known[rows]].mean()
        assert tasks["age"]["mae"] == pytest.approx(error)
        for name in ("subject_id", "race", "age_low", "age_high"):
            np.testing.assert_array_equal(saved[name], getattr(richer, name)[rows])
    for group in tasks["gender"]["subgroups"]["race"]:
        of_group = race[rows] == RACES.index(group["name"])
        assert group["count"] == (of_group & (records.labels["gender"][rows] >= 0)).sum()


def test_accuracy_in_ranges_has_an_interval(records: Records) -> None:
    rows = np.arange(len(records.fold))
    rng = np.random.default_rng(0)
    answers = {"age": np.log(rng.dirichlet(np.ones(8), len(rows)))}
    age = evaluator.measure_in_full(answers, records, rows)["age"]
    assert "range_accuracy" not in age and "range_accuracy" not in age["intervals"]
    answers["years"] = np.log(rng.dirichlet(np.ones(101), len(rows)))
    age = evaluator.measure_in_full(answers, records, rows)["age"]
    low, high = age["intervals"]["range_accuracy"]
    assert 0 <= low < age["range_accuracy"] < high <= 1


@pytest.mark.parametrize("head", ["distribution", "ordinal"])
def test_ages_by_year(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    report_run = launch.report_run
    exact = dataclasses.replace(records, age_high=records.age_low)
    use_records(exact, monkeypatch.setattr)
    monkeypatch.setattr(launch, "report_run", report_run)
    monkeypatch.setattr(reporting, "write_report", write_summary)
    launch.launch(tiny_config(heads__age=head), tmp_path / "years", "the command")
    age = read_summary(tmp_path / "years")["evaluation"]["tasks"]["age"]
    with np.load(tmp_path / "years" / "predictions.npz") as saved:
        years, groups = np.exp(saved["years_log_probs"]), np.exp(saved["age_log_probs"])
        known = saved["age_low"] >= 0
        error = np.abs(years @ np.arange(101) - saved["age_low"])[known].mean()
    assert years.shape == (len(groups), 101)
    np.testing.assert_allclose(groups[:, 0], years[:, :4].sum(1), rtol=1e-4)  # to 3 years
    assert age["mae"] == pytest.approx(error, rel=1e-4)
    # All of it can be taken from there, heads too; but not by another head.
    again = tiny_config(heads__age=head, init=str(tmp_path / "years"), new_parts="")
    launch.launch(again, tmp_path / "again", "the command")
    other = tiny_config(init=str(tmp_path / "years"), new_parts="")
    with pytest.raises(UserError, match=f"has the head {head} for age"):
        launch.launch(other, tmp_path / "other", "the command")


def test_any_number_of_devices_will_do(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_summary(finished)["evaluation"]
    used = []
    create_mesh = reporting.create_mesh
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:6])
    monkeypatch.setattr(
        reporting, "create_mesh", lambda devices: used.append(devices) or create_mesh(devices)
    )
    run_command(["evaluate", f"--workdir={finished}"])
    assert len(used[0]) == 2  # Of six for batches of 16.
    after = read_summary(finished)["evaluation"]
    assert after["tasks"]["age"]["confusion"] == before["tasks"]["age"]["confusion"]
    assert after["tasks"]["age"]["loss"] == pytest.approx(before["tasks"]["age"]["loss"], rel=1e-5)


def test_other_data_are_refused(
    finished: Path, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = dataclasses.replace(records, images=[b"" for _ in records.images])
    monkeypatch.setattr(create, "open_records", lambda *args: fewer)
    with pytest.raises(UserError, match=r"of another run \(dataset.fingerprint: "):
        run_command(["evaluate", f"--workdir={finished}"])


def test_run_without_a_best_state(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="holds no checkpoints: is it the --workdir of a run"):
        run_command(["evaluate", f"--workdir={tmp_path}"])
    use_records(records, monkeypatch.setattr)
    stop = iter([True])
    monkeypatch.setattr("agenet.runs.loop.StopRequest.__call__", lambda self: next(stop))
    launch.launch(tiny_config(), tmp_path, "command")
    with pytest.raises(UserError, match="no evaluated state yet: train past the first validation"):
        run_command(["evaluate", f"--workdir={tmp_path}"])


def test_times_are_of_training_and_validation_over_all_sessions(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report_run = launch.report_run
    use_records(records, monkeypatch.setattr)
    monkeypatch.setattr(launch, "report_run", report_run)
    monkeypatch.setattr(reporting, "write_report", write_summary)
    clock = [0.0]
    monkeypatch.setattr("agenet.runs.loop.time.perf_counter", lambda: clock[0])
    for name, cost in {
        "Experiment.load_images": 1e6,
        "Checkpoints.save_latest": 1e4,
        "Checkpoints.save_best": 1e4,
        "predict": 100.0,
    }.items():
        slow_down(monkeypatch, f"runs.loop.{name}", clock, cost)
    slow_down(monkeypatch, "data.order.training_batch", clock, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        on_batch(9, lambda: signal.raise_signal(signal.SIGTERM), patch.setattr)
        launch.launch(tiny_config(), tmp_path, "command")
    launch.launch(tiny_config(), tmp_path, "command")
    training = read_summary(tmp_path)["training"]
    assert training["seconds"] == 20 * 1 + 4 * 100
    assert training["pictures_per_second"] == 20 * 16 / 20
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    speeds = {row["pictures_per_second"] for row in rows if "pictures_per_second" in row}
    assert speeds == {16.0}


def slow_down(patch: pytest.MonkeyPatch, name: str, clock: list[float], cost: float) -> None:
    wing, module, attribute = name.split(".", 2)
    target = resolve_name(f"agenet.{wing}.{module}:{attribute}")

    def slow(*args: Any, **options: Any) -> Any:
        clock[0] += cost
        return target(*args, **options)

    patch.setattr(f"agenet.{name}", slow)


def test_help_does_not_wait_for_jax() -> None:
    output = run_program("-X", "importtime", "-m", "agenet.cli", "evaluate", "--help")
    assert "--data_dir DIR" in output
    assert not re.search(r"\| +(jax|numpy|flax)\b", output)


def test_mistyped_flags_are_one_line() -> None:
    output = run_program("-m", "agenet.cli", "evaluate", "--workdr=x", fails=True)
    assert output == (
        "error: there is no option --workdr: did you mean --workdir? (see agenet evaluate --help)\n"
    )
