import json
import os
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from agenet.cli.app import run_command
from agenet.errors import UserError
from agenet.runs import series
from agenet.runs.child_process import RunError, StoppedError
from agenet.runs.config import to_dict
from agenet.runs.series import Run
from tests.conftest import ROOT

# How ml_collections reads config files.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

CONFIG = "configs/effnet_adience.py"
STEPS = 100


class FakeTrainer:
    """Leaves a report as agenet.main does; fails for the given runs, and records what it ran."""

    def __init__(self, **failures: str):
        self.failures = failures
        self.ran: list[str] = []

    def __call__(self, run: Run) -> None:
        self.ran.append(run.workdir.name)
        if message := self.failures.get(run.workdir.name):
            raise RunError(message)
        leave_report(run)


def leave_report(run: Run, steps: int = STEPS) -> None:
    fold, accuracy = run.config.dataset.test_fold, 0.5 + run.config.batch_size / 1000
    accuracy += 0.01 * fold**2
    age = {"accuracy": accuracy, "one_off": 0.9, "loss": 1.25} | of_classes(8, 10)
    gender = {"accuracy": 0.8, "loss": 0.5, "roc_auc": None if fold == 3 else 0.75}
    gender |= of_classes(2, 12)
    report = {
        "config": to_dict(run.config),
        "dataset": {"name": "adience/faces/1.0.0", "notice": "", "labels": "official"}
        | {"protocol": "subject", "leakage": {"test_faces": 10, "seen_subject": 0}}
        | {"test_fold": fold},
        "model": {"name": run.config.model.name, "initial": run.config.init, "parameters": 1},
        "training": {"steps": steps, "total_steps": STEPS, "seconds": 40.0 + fold, "best_step": 80}
        | {"epochs": 5, "pictures_per_second": 10.5},
        "evaluation": {"step": 80, "seconds": 2.0, "tasks": {"age": age, "gender": gender}},
    }
    run.workdir.mkdir(parents=True, exist_ok=True)
    (run.workdir / "report.json").write_text(json.dumps(report))
    rows: list[dict[str, float]] = [
        {"step": step, "epoch": step / 20, "validation/accuracy": accuracy}
        | {"validation/age_accuracy": accuracy, "validation/gender_accuracy": step / 100}
        for step in (60, 80, 100)
    ]
    (run.workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def of_classes(count: int, faces: int) -> dict[str, Any]:
    """Counts of a task whose faces are all of the first class."""
    confusion = [[0] * count for _ in range(count)]
    confusion[0][0] = faces
    support = [faces] + [0] * (count - 1)
    recall = [None] * count
    found = {"count": faces, "balanced_accuracy": None, "support": support, "recall": recall}
    return found | {"confusion": confusion}


def run_folds(arguments: Sequence[str], train: Callable[[Run], None]) -> None:
    """Runs `agenet folds` with `train` in place of a process for each fold."""
    with mock.patch.object(series, "train_in_child", train):
        run_command(["folds", *arguments])


def read(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "folds.json").read_text())


def test_continues_where_it_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"--config={CONFIG}", f"--workdir={tmp_path}"]
    failing = FakeTrainer(fold_2="the disk is full")
    with pytest.raises(UserError, match=r"^fold 2: the disk is full$"):
        run_folds(arguments, failing)
    assert failing.ran == ["fold_0", "fold_1", "fold_2"]
    assert not read(tmp_path)["complete"] and set(read(tmp_path)["folds"]) == {"0", "1"}
    assert "2 of 5 folds" in (tmp_path / "folds.md").read_text()

    trainer = FakeTrainer()
    run_folds(arguments, trainer)
    assert trainer.ran == ["fold_2", "fold_3", "fold_4"]
    printed = capsys.readouterr()
    assert "run 1 of 5: fold 0: finished before" in printed.err
    assert printed.out.strip() == (tmp_path / "folds.md").read_text().strip()
    run_folds(arguments, trainer)
    assert len(trainer.ran) == 3


def test_mean_and_deviation(tmp_path: Path) -> None:
    run_folds([f"--config={CONFIG}", f"--workdir={tmp_path}"], FakeTrainer())
    values = [0.5 + 0.064 + 0.01 * fold**2 for fold in range(5)]
    result = read(tmp_path)
    assert result["complete"]
    found = result["summary"]["age"]["accuracy"]
    assert found["mean"] == pytest.approx(sum(values) / 5)
    assert found["sd"] == pytest.approx(statistics.stdev(values))
    assert result["summary"]["age"].keys() == {"accuracy", "one_off", "loss"}
    assert "roc_auc" not in result["summary"]["gender"]  # undefined on fold 3
    text = (tmp_path / "folds.md").read_text()
    assert "62.4 ± 6.6" in text and "62.40 ± 6.60" in text
    assert "Levi & Hassner 2015" in text and "67.14" in text
    assert "220 in all" in text
    assert (
        "Initial weights `imagenet`; the state that was best on validation data is tested on "
        "`adience/faces/1.0.0`, folds 0, 1, 2, 3, 4, official labels, protocol `subject`: 0 of 50 "
        "test faces show a subject from training. ±"
    ) in text


def test_the_last_state_of_joined_data_sets(tmp_path: Path) -> None:
    def train(run: Run) -> None:
        leave_report(run)
        path = run.workdir / "report.json"
        report = json.loads(path.read_text())
        report["dataset"]["name"] += " + fairface/partial/1.0.0"
        report["training"]["best_metric"] = "last"
        path.write_text(json.dumps(report))

    run_folds([f"--config={CONFIG}", f"--workdir={tmp_path}"], train)
    text = (tmp_path / "folds.md").read_text()
    assert re.match(r"# efficientnet_b0 on adience/faces/1\.0\.0, 5 of 5 folds\n", text)
    assert "; the state at the end of training is tested on `adience/faces/1.0.0`, folds" in text
    assert "Also trained on fairface/partial/1.0.0. ±" in text and "Levi & Hassner" in text


def test_another_config_is_left_to_agenet_main(tmp_path: Path) -> None:
    arguments = [f"--config={CONFIG}", f"--workdir={tmp_path}"]
    run_folds(arguments, FakeTrainer())
    trainer = FakeTrainer(fold_0="the checkpoint is of another run")
    tables = {name: (tmp_path / name).read_text() for name in ("folds.json", "folds.md")}
    with pytest.raises(UserError, match="another run"):
        run_folds([*arguments, "--config.batch_size=32"], trainer)
    assert tables == {name: (tmp_path / name).read_text() for name in tables}
    # What did not come from here is not trusted either.
    trainer = FakeTrainer()
    report = tmp_path / "fold_1" / "report.json"
    report.write_text(report.read_text() + "\n")
    run_folds(arguments, trainer)
    assert trainer.ran == ["fold_1"]


def test_what_an_earlier_version_left_is_finished(tmp_path: Path) -> None:
    arguments = [f"--config={CONFIG}", f"--workdir={tmp_path}"]
    run_folds(arguments, FakeTrainer())
    deep = "[" * 100_000
    for fold, damaged in enumerate(["", "[]", '{"seconds": null}', '{"seconds": 1e999}', deep]):
        path = tmp_path / f"fold_{fold}" / series.FINISHED
        finished = json.loads(path.read_text())
        del finished["config"]["test_views"], finished["config"]["patience"]
        path.write_text(json.dumps(finished))
        (tmp_path / f"fold_{fold}" / series.TIME).write_text(damaged)
    trainer = FakeTrainer()
    run_folds(arguments, trainer)
    assert not trainer.ran
    run_folds([*arguments, "--config.test_views=4"], trainer)  # to be tested anew
    assert len(trainer.ran) == 5


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b'{"config": 1}', b"[" * 100_000, b'{"config": {"a": NaN}}']
)
def test_damaged_notes_are_left_to_agenet_main(tmp_path: Path, content: bytes) -> None:
    arguments = [f"--config={CONFIG}", f"--workdir={tmp_path}"]
    run_folds(arguments, FakeTrainer())
    (tmp_path / "fold_1" / series.FINISHED).write_bytes(content)
    (tmp_path / "fold_2/report.json").write_bytes(content)
    trainer = FakeTrainer()
    run_folds(arguments, trainer)
    assert trainer.ran == ["fold_1", "fold_2"]


def test_damaged_rows_are_one_line(tmp_path: Path) -> None:
    run_folds([f"--config={CONFIG}", f"--workdir={tmp_path}"], FakeTrainer())
    (tmp_path / "fold_1/metrics.jsonl").write_bytes(b"\xff\n" + b"[" * 100_000 + b"\n{}\n")
    with pytest.raises(UserError, match=r"fold_1/metrics.jsonl is damaged: line 1 is not a row"):
        series.validation_figures(tmp_path / "fold_1", 80)


def test_other_weights_or_data_are_left_to_agenet_main(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, info = tmp_path / "weights.pth", tmp_path / "adience/faces/1.1.0/dataset_info.json"
    info.parent.mkdir(parents=True)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    arguments = [f"--config={CONFIG}", f"--workdir={tmp_path}/folds", f"--config.init={weights}"]

    def ran() -> int:
        trainer = FakeTrainer()
        run_folds(arguments, trainer)
        return len(trainer.ran)

    for path in (weights, info):
        path.write_text("1, to be read by nobody")
    assert [ran(), ran()] == [5, 0]
    for path in (weights, info):
        path.write_text("2, to be read by nobody")
        assert [ran(), ran()] == [5, 0]
        path.unlink()  # It need not be there any more.
        assert ran() == 0


def test_a_run_that_stopped_early_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(run: Run) -> None:
        leave_report(run, steps=60)
        report = json.loads((run.workdir / "report.json").read_text())
        report["training"]["complete"] = True
        (run.workdir / "report.json").write_text(json.dumps(report))

    run_folds([f"--config={CONFIG}", f"--workdir={tmp_path}"], train)
    assert read(tmp_path)["complete"]
    assert capsys.readouterr().out.count(f" (60 of {STEPS} steps) |") == 2 * 5


def test_half_a_run_is_not_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def train(run: Run) -> None:
        leave_report(run, steps=STEPS if run.workdir.name == "fold_0" else 60)

    with pytest.raises(SystemExit) as caught:
        run_folds([f"--config={CONFIG}", f"--workdir={tmp_path}"], train)
    assert caught.value.code == 1
    assert "fold 1: stopped; to resume, run the same command again" in capsys.readouterr().err
    assert set(read(tmp_path)["folds"]) == {"0"}


def test_start_from_runs_of_the_same_folds(tmp_path: Path) -> None:
    inits: list[str] = []

    def train(run: Run) -> None:
        inits.append(run.config.init)
        leave_report(run)

    arguments = [f"--config={CONFIG}", f"--workdir={tmp_path}"]
    run_folds([*arguments, "--config.init=first/fold_{fold}"], train)
    assert inits == [f"first/fold_{fold}" for fold in range(5)]


def test_time_counts_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(series, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def train(run: Run) -> None:
        clock[0] += 100
        if not run.workdir.exists():
            run.workdir.mkdir()
            raise StoppedError(15)
        leave_report(run)

    arguments = [f"--config={CONFIG}", f"--workdir={tmp_path}"]
    (tmp_path / "fold_0").mkdir()
    for _ in range(4):
        with pytest.raises(SystemExit):
            run_folds(arguments, train)
    run_folds(arguments, train)
    run_folds(arguments, train)
    times = [fold["seconds"] for fold in read(tmp_path)["folds"].values()]
    assert times == [100, 200, 200, 200, 200]
    (tmp_path / "fold_2" / "time.json").unlink()  # It came from elsewhere.
    run_folds(arguments, train)
    assert read(tmp_path)["folds"]["2"]["seconds"] == 44


@pytest.mark.parametrize(("exact", "shown"), [(4, False), (5, True)])
def test_errors_in_years_of_few_faces(tmp_path: Path, exact: int, shown: bool) -> None:
    def train(run: Run) -> None:
        leave_report(run)
        path = run.workdir / "report.json"
        report = json.loads(path.read_text())
        number = exact if run.workdir.name == "fold_3" else 10
        report["evaluation"]["tasks"]["age"] |= {"exact_ages": number, "mae": 4.25, "cs5": 0.75}
        path.write_text(json.dumps(report))

    run_folds([f"--config={CONFIG}", f"--workdir={tmp_path}"], train)
    text = (tmp_path / "folds.md").read_text()
    assert ("MAE" in text) == ("CS@5" in text) == shown
    assert ("mae" in read(tmp_path)["summary"]["age"]) == shown


def test_folds_are_those_of_the_data_set(tmp_path: Path) -> None:
    def prepare(splits: list[str]) -> None:
        folder = tmp_path / "adience/faces/1.0.0"
        folder.mkdir(parents=True, exist_ok=True)
        info = {"splits": [{"name": name} for name in splits]}
        (folder / "dataset_info.json").write_text(json.dumps(info))

    trainer, workdir = FakeTrainer(), tmp_path / "runs"
    arguments = [f"--config={CONFIG}", f"--workdir={workdir}"]
    arguments.append(f"--config.dataset.data_dir={tmp_path}")
    prepare(["train", "test"])
    with pytest.raises(UserError, match=r"^adience/faces has no folds \(train, test\): train it"):
        run_folds(arguments, trainer)
    assert not trainer.ran and not workdir.exists()
    prepare(["fold_0", "fold_2", "fold_1"])
    run_folds(arguments, trainer)
    assert trainer.ran == ["fold_0", "fold_1", "fold_2"] and read(workdir)["complete"]
    assert "3 of 3 folds" in (workdir / "folds.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config"),
        (["--config=configs/quickstrat.py"], "did you mean configs/quickstart.py?"),
        ([f"--config={CONFIG}", "--config.sed=1"], "did you mean seed?"),
        ([f"--config={CONFIG}", "--config.seed", "1"], "--config.FIELD=VALUE"),
        ([f"--config={CONFIG}", "--config.dataset.test_fold=1"], "leave it out"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: list[str], message: str) -> None:
    trainer = FakeTrainer()
    with pytest.raises(UserError, match=re.escape(message)):
        run_folds([*arguments, f"--workdir={tmp_path / 'new'}"], trainer)
    assert not trainer.ran and not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_fold_of_drawn_faces(drawn_faces: Path, tmp_path: Path) -> None:
    """Stopped, then continued to the end, and once more when all is done."""
    code = "from agenet.runs import folds; folds.find_folds = lambda _: [0]; "
    code += "from agenet.cli.app import main; main()"
    fields = {"dataset.data_dir": drawn_faces, "input.crop_size": 67, "input.size": 72}
    fields |= {"duration": "4 steps", "schedule.warmup": "1 steps", "log_every": "1 steps"}
    fields |= {"trackers": ()}
    command = [sys.executable, "-c", code, "folds", "--config=configs/quickstart.py"]
    command += [f"--workdir={tmp_path}", *(f"--config.{k}={v}" for k, v in fields.items())]
    options: dict[str, Any] = {"cwd": ROOT, "env": os.environ | {"PYTHONPATH": "."}, "text": True}
    with subprocess.Popen(command, stderr=subprocess.PIPE, **options) as process:
        assert process.stderr is not None
        output = ""
        while "train     1 " not in output:
            line = process.stderr.readline()
            assert line, output
            output += line
        process.terminate()
        output += process.stderr.read()
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped and saved at step" in output and "fold 0: stopped; to resume" in output
    done = subprocess.run(command, capture_output=True, check=True, **options)
    assert "resuming from step" in done.stderr
    result = read(tmp_path)
    assert result["complete"] and 0 <= result["summary"]["gender"]["accuracy"]["mean"] <= 1
    assert "Drawn faces, not photographs" in done.stdout
    again = subprocess.run(command, capture_output=True, check=True, **options)
    assert again.stdout == done.stdout and again.stderr == "run 1 of 1: fold 0: finished before\n"
