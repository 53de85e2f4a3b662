import json
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from agenet.cli.app import run_command
from agenet.errors import UserError
from agenet.main import read_config
from agenet.runs import series, sweep
from agenet.runs.child_process import StoppedError
from agenet.runs.series import Run
from tests.runs.test_folds import FakeTrainer, leave_report

# How ml_collections reads config files.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

REPORT = "configs/sweeps/report.py"


def read(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "sweep.json").read_text())


def run_sweep(arguments: Sequence[str], train: Callable[[Run], None]) -> None:
    """Runs `agenet sweep` with `train` in place of a process for each run."""
    with mock.patch.object(series, "train_in_child", train):
        run_command(["sweep", *arguments])


def write_sweep(path: Path, *fields: dict[str, Any], config: str = "configs/default.py") -> str:
    variants = [
        {"name": str(number), "fields": changes, "reported": {"age": 50.5}}
        for number, changes in enumerate(fields)
    ]
    described = {"config": config, "fields": {"seed": 3}, "source": "a test"}
    described["tables"] = {"One": variants, "Two": variants}
    path.write_text(f"def get_sweep():\n    return {described!r}\n")
    return str(path)


def test_tables_of_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = FakeTrainer(batch_size_128="out of memory", optimizer_sgd="the loss is nan")
    arguments = [f"--sweep={REPORT}:lite0", f"--workdir={tmp_path}", "--config.duration=100 steps"]
    run_sweep(arguments, trainer)
    assert trainer.ran == [
        "default",
        "batch_size_32",
        "batch_size_128",
        "optimizer_sgd",
        "learning_rate_0.001",
        "learning_rate_0.01",
        "gender_head_softmax",
        "extra_layers_with",
    ]
    result, printed = read(tmp_path), capsys.readouterr()
    assert result["complete"] and len(result["runs"]) == 8
    assert result["runs"]["Optimizer: SGD"]["error"] == "the loss is nan"
    default = result["runs"]["default"]
    assert default["validation"]["gender_accuracy"] == 0.8  # of the step that was kept
    assert default["test"]["age"]["accuracy"] == pytest.approx(0.564) and default["seconds"] == 42
    rows = [re.split(r" *\| *", line)[1:-1] for line in printed.out.splitlines() if "|" in line]
    assert ["32", "80.00 / 53.20", "80.00 / 53.20", "42", "97.19 / 61.16"] in rows
    assert ["64", "**80.00 / 56.40**", "80.00 / 56.40", "42", "97.42 / 66.52"] in rows
    assert ["128", "out of memory", "–", "–", "out of memory"] in rows
    assert ["SGD", "failed, see below", "–", "–", "92.57 / 57.57"] in rows
    assert "- Optimizer: SGD: the loss is nan" in printed.out
    assert "run 8 of 8: Extra layers: with" in printed.err
    assert "All 6 runs took 252 s, the longest 42 s: 6.00 times that." in printed.out

    # What failed is tried again, nothing else.
    trainer = FakeTrainer()
    run_sweep(arguments, trainer)
    assert trainer.ran == ["batch_size_128", "optimizer_sgd"]


def test_flags_of_the_runs(tmp_path: Path) -> None:
    path, described = sweep.read_file(f"{REPORT}:lite0")
    fields = ["--config.batch_size=16"]
    found = sweep.read_sweep(path, described, tmp_path, fields, "command", read_config)
    configs = {run.workdir.name: run.config for run in found.runs}
    assert {config.model.name for config in configs.values()} == {"efficientnet_lite0"}
    assert {config.freeze for config in configs.values()} == {"backbone"}
    assert configs["optimizer_sgd"].batch_size == 16
    assert configs["batch_size_32"].batch_size == 32
    assert configs["batch_size_64"].batch_size == 64  # no longer the default
    extra_layers = configs["extra_layers_with"].model
    assert extra_layers.extra_layers and extra_layers.dropout_rate == 0.2
    assert configs["default"].model.dropout_rate == 0
    assert configs["gender_head_softmax"].heads.gender == "softmax"
    assert configs["default"].heads.gender == "sigmoid"
    assert configs["learning_rate_0.01"].schedule.learning_rate == 0.01


def test_age_heads(tmp_path: Path) -> None:
    path, described = sweep.read_file("age_heads")
    found = sweep.read_sweep(path, described, tmp_path, [], "command", read_config)
    assert [run.config.heads.age for run in found.runs] == ["groups", "distribution", "ordinal"]
    assert "Reported" not in sweep.markdown(found, sweep.Results())


def test_what_the_runs_were_tested_on(tmp_path: Path) -> None:
    file = write_sweep(tmp_path / "file.py", {}, {"seed": 4}, {"dataset.test_fold": 2})
    arguments = [f"--sweep={file}", f"--workdir={tmp_path / 'runs'}"]
    run_sweep(arguments, FakeTrainer(one_2="out of memory"))
    tested = (
        "Initial weights `random`; the state that was best on validation data is tested on "
        "`adience/faces/1.0.0`, fold 0, official labels, protocol `subject`: 0 of 10 test faces "
        "show a subject from training.\n"
    )
    assert f"\n\n{tested}\n" in (tmp_path / "runs" / "sweep.md").read_text()
    run_sweep(arguments, FakeTrainer())
    text = (tmp_path / "runs" / "sweep.md").read_text()
    assert f"\n- default, One: 1: {tested}- One: 2: {tested.replace('fold 0', 'fold 2')}\n" in text


def test_stopped_and_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_sweep(tmp_path / "file.py", {"seed": 3}, {"seed": 4}, {"batch_size": 20})

    def train(run: Run) -> None:
        if run.config.seed == 4:
            raise StoppedError(15)
        leave_report(run)

    arguments = [f"--sweep={file}", f"--workdir={tmp_path / 'runs'}"]
    with pytest.raises(SystemExit) as caught:
        run_sweep(arguments, train)
    assert caught.value.code == 143
    assert "One: 1: stopped; to resume, run the same command again" in capsys.readouterr().err
    assert not read(tmp_path / "runs")["complete"]
    trainer = FakeTrainer()
    run_sweep(arguments, trainer)
    assert trainer.ran == ["one_1", "one_2"]
    assert read(tmp_path / "runs")["complete"]


def test_workers_share_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command typed twice: the second takes what the first has not begun."""
    monkeypatch.setattr(series, "POLL_SECONDS", 0.01)
    fields = [{}, {"seed": 4}, {"seed": 5}, {"seed": 6}]
    file, workdir = write_sweep(tmp_path / "file.py", *fields), tmp_path / "runs"
    arguments = ["sweep", f"--sweep={file}", f"--workdir={workdir}"]
    trainer, begun = FakeTrainer(one_1="out of memory"), threading.Event()
    second = threading.Thread(target=run_command, args=(arguments,))

    def train(run: Run) -> None:
        if run.workdir.name == "default":
            second.start()
            assert begun.wait(20)
        else:
            begun.set()
        trainer(run)

    with mock.patch.object(series, "train_in_child", train):
        run_command(arguments)
        second.join(20)
    result = read(workdir)
    assert sorted(trainer.ran) == ["default", "one_1", "one_2", "one_3"]
    assert result["complete"] and result["runs"]["One: 1"]["error"] == "out of memory"


def test_first_failure_ends_it(tmp_path: Path) -> None:
    file = write_sweep(tmp_path / "file.py", {"seed": 4}, {})
    trainer = FakeTrainer(default="init: the run in x trained resnet50")
    with pytest.raises(UserError, match=r"^default: init: the run in x trained resnet50$"):
        run_sweep([f"--sweep={file}", f"--workdir={tmp_path / 'runs'}"], trainer)
    assert trainer.ran == ["default"]


REPORTED_OTHERWISE = """
def get_sweep():
    variants = [{"name": "0", "fields": {}, "reported": 3.0}]
    return {"config": "configs/default.py", "fields": {}, "tables": {"One": variants}}
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "file.py is not a sweep: KeyError: 'get_sweep'"),
        ("def get_sweep(:", "file.py is not a sweep: SyntaxError"),
        ("def get_sweep():\n    return {'config': 'x'}", "file.py is not a sweep: KeyError: 'fiel"),
        (REPORTED_OTHERWISE, "file.py is not a sweep: TypeError"),
        ([{"sed": 1}], "file.py, One: 0: unknown config field sed: did you mean seed?"),
        ([], "it has no variants"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, text: str | list[dict[str, Any]], message: str) -> None:
    file = tmp_path / "file.py"
    if isinstance(text, str):
        file.write_text(text)
    else:
        write_sweep(file, *text)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        run_sweep([f"--sweep={file}", f"--workdir={tmp_path / 'runs'}"], FakeTrainer())
    assert "\n" not in str(caught.value) and not (tmp_path / "runs").exists()


def test_mistakes(tmp_path: Path) -> None:
    for arguments, message in (
        (["--sweep=configs/sweeps/nope.py"], "name a file, or one of age_heads, heads, report"),
        ([f"--sweep={REPORT}", "--config.bach_size=1"], "did you mean batch_size?"),
        ([f"--sweep={REPORT}", "stray"], "stray is not a flag"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            run_sweep([*arguments, f"--workdir={tmp_path / 'runs'}"], FakeTrainer())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to \(Not a directory\): name another"):
        run_sweep([f"--sweep={REPORT}", f"--workdir={tmp_path / 'file' / 'x'}"], FakeTrainer())
