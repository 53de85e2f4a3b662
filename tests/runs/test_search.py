"""Searches: the space and its mistakes, workers that share a study, and what comes of it."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any
from unittest import mock

import numpy as np
import optuna
import pytest

from agenet.cli.app import run_command
from agenet.errors import UserError
from agenet.evaluation.figure_style import to_png
from agenet.evaluation.search_figures import Line, importance_bars, parallel_coordinates
from agenet.runs import search, search_page, series, workers
from agenet.runs.child_process import RunError, StoppedError
from agenet.runs.series import Run
from tests.conftest import ROOT
from tests.runs.test_folds import leave_report

# How ml_collections reads config files.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

FILE = """
def get_sweep(trials="4"):
    return {{
        "config": "configs/default.py",
        "fields": {{"best": "validation/accuracy", "seed": 3}},
        "trials": int(trials),
        "suggest": suggest,
    }}

def suggest(trial):
    fields = {{
        "batch_size": trial.suggest_int("batch", {low}, 100),
        "schedule.learning_rate": trial.suggest_float("rate", 1e-4, 1e-1, log=True),
        "optimizer.name": trial.suggest_categorical("optimizer", ["adam", "sgd"]),
    }}
    if fields["optimizer.name"] == "sgd":
        fields["optimizer.momentum"] = trial.suggest_float("momentum", 0.5, 0.99)
    return fields
"""
Train = Callable[..., None]


class Trainer:
    """Stands in for the process of a run: leaves its report; keeps what it ran."""

    def __init__(self, **failures: Exception):
        self.failures, self.ran = failures, list[str]()

    def __call__(self, run: Run, watch: Callable[[], bool]) -> None:
        name = run.workdir.name.replace("-", "_")
        self.ran.append(name)
        run.workdir.mkdir(exist_ok=True)
        if error := self.failures.get(name):
            raise error
        leave_report(run)
        watch()


@pytest.fixture(autouse=True)
def _few_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of these tests; the first one draws."""
    if request.node.name != "test_results":
        monkeypatch.setattr(search_page, "_figures", lambda page: [])


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "space.py"
    path.write_text(FILE.format(low=10))
    return str(path)


def run_search(file: str, workdir: Path, *arguments: str, train: Train | None = None) -> Any:
    """Runs `agenet sweep` with `train` in place of processes; returns sweep.json."""
    with mock.patch.object(series, "train_in_child", train or Trainer()):
        run_command(["sweep", f"--sweep={file}", f"--workdir={workdir}", *arguments])
    return json.loads((workdir / "sweep.json").read_text())


def open_study(workdir: Path) -> Any:
    backend = optuna.storages.journal.JournalFileBackend(str(workdir / search.JOURNAL))
    return optuna.load_study(study_name="space", storage=optuna.storages.JournalStorage(backend))


def test_results(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = tmp_path / "runs"
    found = run_search(file, workdir, "--trials=6")
    assert found["complete"] and found["direction"] == "maximize" and len(found["trials"]) == 6
    # The fake accuracy grows with the batch.
    best = max(found["trials"], key=lambda trial: trial["params"]["batch"])
    assert found["best"]["trial"] == best["number"]
    command = found["best"]["command"]
    assert command.startswith("agenet train --config=configs/default.py ")
    assert f"--config.batch_size={best['params']['batch']}" in command
    assert f"--config.schedule.learning_rate={best['params']['rate']!r}" in command
    assert found["space"]["rate"] == "0.0001 to 0.1, logarithmic"
    assert found["space"]["momentum"] == "0.5 to 0.99"
    assert found["importance"].keys() >= {"batch", "rate"}
    printed = capsys.readouterr()
    assert command in printed.out and "6 of 6 trials" in printed.out
    assert printed.err.count("the best so far") >= 1
    page = (workdir / "sweep.html").read_text()
    assert page.count("<svg") == 2 and "To train it again" in page
    assert "![" in (workdir / "sweep.md").read_text()
    assert all((workdir / name).stat().st_size for name in ("importance.png", "parallel.png"))

    trainer = Trainer()
    again = run_search(file, workdir, "--trials=6", train=trainer)
    assert not trainer.ran and again["trials"] == found["trials"]
    run_search(file, workdir, "--trials=7", train=trainer)
    assert trainer.ran == ["trial_0006"]


def test_pruned_by_validations(file: str, tmp_path: Path) -> None:
    def train(run: Run, watch: Callable[[], bool]) -> None:
        """Six good runs, then one that would be bad; it ends when it is asked to."""
        run.workdir.mkdir(exist_ok=True)
        number = int(run.workdir.name[-4:])
        rows = run.workdir / "metrics.jsonl"
        for step in (10 + number, 20 + number, 30 + number):  # Other batches, other steps.
            value = 0.1 if number == 6 else 0.5 + step / 1000
            row = {"step": step, "epoch": step / 10, "validation/accuracy": value}
            with rows.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            if watch():
                asked.append(number)
                return
        report = rows.read_text()
        leave_report(run)
        rows.write_text(report + json.dumps({"step": 80, "epoch": 4, "validation/accuracy": 0.7}))

    asked: list[int] = []
    found = run_search(file, tmp_path / "runs", "--trials=7", train=train)
    assert asked == [6]
    pruned = found["trials"][6]
    assert (pruned["state"], pruned["value"], pruned["validations"]) == ("pruned", 0.1, 2)
    assert found["best"]["trial"] != 6 and found["complete"]
    text = (tmp_path / "runs/sweep.md").read_text()
    assert "7 of 7 trials, 1 pruned" in text and "0.1000 (pruned after 2)" in text.replace("\\", "")
    # It is not finished, and not begun again either.
    trainer = Trainer()
    run_search(file, tmp_path / "runs", "--trials=7", train=trainer)
    assert not trainer.ran


def test_failures(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = tmp_path / "runs"
    with pytest.raises(UserError, match=r"^trial 0: there is no data set$"):
        run_search(file, workdir, train=Trainer(trial_0000=RunError("there is no data set")))
    # Nothing has worked yet: that trial does not count. Later ones do.
    failing = Trainer(trial_0002=RunError("out of memory"))
    found = run_search(file, workdir, train=failing)
    assert failing.ran == ["trial_0001", "trial_0002", "trial_0003", "trial_0004"]
    assert [trial["state"] for trial in found["trials"]] == (
        ["fail", "complete", "fail", "complete", "complete"]
    )
    assert "trial 2: out of memory: continuing without it" in capsys.readouterr().err
    assert "trial 2: out of memory" in (workdir / "sweep.md").read_text()


def test_stopped_and_resumed(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = tmp_path / "runs"
    with pytest.raises(SystemExit) as caught:
        run_search(file, workdir, train=Trainer(trial_0001=StoppedError(signal.SIGTERM)))
    assert caught.value.code == 128 + signal.SIGTERM
    assert "trial 1: stopped; to resume, run the same command again" in capsys.readouterr().err
    params = open_study(workdir).trials[1].params
    trainer = Trainer()
    found = run_search(file, workdir, train=trainer)
    assert trainer.ran == ["trial_0001", "trial_0002", "trial_0003"]
    assert found["trials"][1]["params"] == params


def test_a_worker_that_died_anywhere(file: str, tmp_path: Path) -> None:
    """After it had drawn some parameters, before it drew any, and before it told the result."""
    workdir = tmp_path / "runs"
    run_search(file, workdir, "--trials=1")
    shared, place = open_study(workdir), (workdir / ".workers/place").read_text()
    half = shared.ask()
    half.set_user_attr("place", place)
    half.suggest_int("batch", 10, 100)
    none = shared.ask()
    none.set_user_attr("place", place)
    elsewhere = shared.ask()
    elsewhere.set_user_attr("place", "on another disk")
    with (workdir / search.JOURNAL).open("ab") as journal:
        journal.write(b'{"op_code": 6, "trial_id"')  # A line that a full disk cut short.
    trainer = Trainer()
    found = run_search(file, workdir, train=trainer)
    assert trainer.ran == ["trial_0001", "trial_0002"]
    assert found["trials"][1]["params"]["batch"] == half.params["batch"]
    assert found["trials"][3]["state"] == "running" and not found["complete"]


def test_workers_share_trials(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "POLL_SECONDS", 0.01)
    workdir, both = tmp_path / "runs", threading.Barrier(2, timeout=20)
    trainer = Trainer()
    places: dict[str, set[int]] = {}

    def train(run: Run, watch: Callable[[], bool]) -> None:
        places.setdefault(run.workdir.name, set()).add(threading.get_ident())
        if len(places) <= 2:  # Each has one at the same time.
            both.wait()
        trainer(run, watch)

    run_search(file, workdir, "--trials=1", train=Trainer())
    with mock.patch.object(series, "train_in_child", train):
        arguments = ["sweep", f"--sweep={file}", f"--workdir={workdir}", "--trials=6"]
        threads = [threading.Thread(target=run_command, args=(arguments,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    found = json.loads((workdir / "sweep.json").read_text())
    assert found["complete"] and len(found["trials"]) == 6
    assert sorted(trainer.ran) == [f"trial_{number:04d}" for number in range(1, 6)]
    assert len({*map(frozenset, places.values())}) == 2
    # They draw other points although they draw at the same moment.
    assert len({trial["params"]["rate"] for trial in found["trials"]}) == 6


def test_a_study_of_another_search(file: str, tmp_path: Path) -> None:
    workdir = tmp_path / "runs"
    run_search(file, workdir)
    journal = f"the study space in {workdir}/study.journal is of another search "
    with pytest.raises(UserError, match=re.escape(f"{journal}(config.accumulate: 1 there, 2 now)")):
        run_search(file, workdir, "--config.accumulate=2")
    (tmp_path / "space.py").write_text(FILE.format(low=20))
    with pytest.raises(UserError, match=re.escape("(space.batch: 10 to 100 there, 20 to 100 now)")):
        run_search(file, workdir)
    # What does not change results may differ, and another name is another study.
    trainer = Trainer()
    run_search(file, workdir, "--config.log_every=5 steps", "--study=other", train=trainer)
    assert len(trainer.ran) == 4
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "foreign"))
    storage = optuna.storages.JournalStorage(backend)
    optuna.create_study(storage=storage, study_name="space").ask()
    with pytest.raises(UserError, match=r"the study space in .*foreign is not of agenet sweep"):
        run_search(file, tmp_path / "new", f"--storage={tmp_path / 'foreign'}")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size", "bach_size", "unknown config field bach_size: did you mean batch_size?"),
        ('"batch_size"', '"best"', "trials are compared by best, it must not vary"),
        ('suggest_int("batch", 10, 100)', 'suggest_int("batch", -9, -5)', "batch_size -"),
        ('trial.suggest_int("batch", 10, 100)', "trial.number + 1 / 0", "suggest: ZeroDivisionErr"),
        (' "validation/accuracy"', ' "last"', 'best "last" is no metric to search by'),
        ("int(trials)", "0", "trials 0 must be a whole number from 1 on"),
        ('"suggest": suggest', '"suggest": suggest, "prunner": 1', "a search has no prunner, but"),
        (
            'suggest_float("rate", 1e-4,',
            'suggest_float("rate", 1e-4 * (1 + trial.number % 2),',
            "rate has the ranges 0.0001 to 0.1, logarithmic and 0.0002 to 0.1",
        ),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, old: str, new: str, message: str) -> None:
    path, text = tmp_path / "space.py", FILE.format(low=10)
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        run_search(str(path), tmp_path / "runs")
    assert "\n" not in str(caught.value) and not (tmp_path / "runs/study.journal").exists()


def test_mistakes_in_options(file: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no journal")
    (tmp_path / "hostile").write_text('{"op_code": 0, "worker_id": [], "directions": "x"}\n' * 2)
    for arguments, message in (
        ([f"--storage={tmp_path / 'text'}"], "text is not the journal of a study: name"),
        ([f"--storage={tmp_path / 'hostile'}"], "cannot be used (KeyError"),
        ([f"--storage={tmp_path}"], "is not a file, or too large"),
        (["--storage=nosuch://me:secret@host/x"], "--storage nosuch://me:***@host/x cannot be"),
        (["--storage=mysql://me:secret@host/x"], "needs a Python package of that database"),
        ([f"--storage=sqlite:///{tmp_path}/no/x.db"], "unable to open database file"),
    ):
        with pytest.raises(UserError, match=re.escape(message)) as caught:
            run_search(file, tmp_path / "runs", *arguments)
        assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    assert (tmp_path / "text").read_text() == "no journal"
    with pytest.raises(UserError, match="--trials is for searches"):
        run_search("configs/sweeps/report.py", tmp_path / "runs", "--trials=3")


def test_a_database(file: str, tmp_path: Path) -> None:
    storage, trainer = f"--storage=sqlite:///{tmp_path}/study.db", Trainer()
    found = run_search(file, tmp_path / "a", storage, "--trials=2", train=trainer)
    assert found["complete"] and storage in found["command"]
    # From another folder, as on a machine that shares no disk.
    found = run_search(file, tmp_path / "b", storage, "--trials=3", train=trainer)
    assert trainer.ran == ["trial_0000", "trial_0001", "trial_0002"]
    assert [Path(trial["workdir"]).parent.name for trial in found["trials"]] == ["a", "a", "b"]


def test_claims_end_with_their_process(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from agenet.runs.workers import Workers\n"
        "folder = Path(sys.argv[1])\n"
        "with Workers(folder).claim(folder / 'run') as mine:\n"
        "    print(mine, flush=True); time.sleep(60)"
    )
    mine = workers.Workers(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "."},
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"True\n"
        with mine.claim(tmp_path / "run") as claimed, mine.claim(tmp_path / "other") as other:
            assert (claimed, other) == (False, True)
        process.kill()
    with mine.claim(tmp_path / "run") as claimed:
        assert claimed
    assert workers.Workers(tmp_path).place == mine.place != workers.Workers(tmp_path / "b").place


def lines() -> list[Line]:
    rng = np.random.default_rng(0)
    found = []
    for number in range(20):
        params: dict[str, Any] = {
            "rate": float(10 ** rng.uniform(-4, -1)),
            "depth": int(rng.integers(1, 5)),
        }
        params["optimizer"] = str(rng.choice(["adam", "sgd"]))
        if params["optimizer"] == "sgd":
            params["momentum"] = float(rng.uniform(0.5, 1))
        found.append(Line(params, float(rng.uniform(0.5, 0.7)), number % 4 != 0))
    return found


@pytest.mark.parametrize("shown", [lines(), [Line({"$x_1$": 1}, 1.0, False)] * 2])
def test_figures(shown: Sequence[Line]) -> None:
    figure = parallel_coordinates(shown, "loss", True, ["rate"], ["depth"], "subtitle", "notice")
    assert to_png(figure)
    assert to_png(importance_bars({"depth": 0.7, "$a_rate$": 0.3}, "subtitle", ""))
    names = [text.get_text() for text in figure.axes[0].texts if text.get_weight() == "bold"]
    assert names[-1] == "loss" and names[0] in ("depth", r"\$x_1\$")


REAL = """
def get_sweep():
    fields = {{"dataset.name": "drawn_faces/faces", "dataset.data_dir": {data!r}}}
    fields |= {{"model.name": "tiny", "input.size": 20, "batch_size": 16, "trackers": ()}}
    fields |= {{"best": "validation/accuracy", "evaluate_every": "100 steps"}}
    return {{"config": "configs/default.py", "fields": fields, "trials": 2, "suggest": suggest}}

def suggest(trial):
    rate = trial.suggest_float("rate", 1e-4, 1e-2, log=True)
    duration = "800 steps" if trial.number == 0 else "100 steps"
    return {{"schedule.learning_rate": rate, "duration": duration}}
"""


@pytest.mark.slow
def test_a_worker_is_killed(drawn_faces: Path, tmp_path: Path) -> None:
    """Another one resumes its trial from the checkpoint."""
    file, workdir = tmp_path / "space.py", tmp_path / "runs"
    file.write_text(REAL.format(data=str(drawn_faces)))
    code = "import tests.runs.tiny_network; from agenet.cli.app import main; main()"
    command = [sys.executable, "-c", code, "sweep", f"--sweep={file}", f"--workdir={workdir}"]
    options: dict[str, Any] = {"cwd": ROOT, "env": os.environ | {"PYTHONPATH": "."}, "text": True}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **options) as first:
        assert first.stderr is not None
        read_until(first.stderr, "trial 0 of 2")
        with subprocess.Popen(command, **options) as second:
            read_until(first.stderr, "train    20 ")
            first.kill()
            printed, logged = second.communicate(timeout=600)
    assert second.returncode == 0, logged
    assert "trial 1 of 2" in logged and "trial 0 of 2" in logged
    assert re.search(r"resuming from step \d+ of 800", logged)
    found = json.loads((workdir / "sweep.json").read_text())
    assert found["complete"]
    assert [trial["state"] for trial in found["trials"]] == ["complete"] * 2
    assert "# Search: tiny on drawn_faces/faces, 2 of 2 trials" in printed


def read_until(stream: IO[str], text: str) -> None:
    output = ""
    while text not in output:
        line = stream.readline()
        assert line, output
        output += line
