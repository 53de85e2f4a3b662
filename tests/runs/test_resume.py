"""A run that is interrupted, in whatever way, ends as the uninterrupted run does, to the bit."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agenet.data.records import Records
from agenet.errors import UserError
from agenet.runs import launch
from agenet.training.checkpoints import Checkpoints
from tests.tiny import on_batch, result, run_process, tiny_config, use_records

Run = Callable[..., None]


@pytest.fixture(scope="module")
def records(make_records: Callable[..., Records]) -> Records:
    return make_records()


@pytest.fixture
def run(records: Records, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Launches a tiny run in this process."""
    use_records(records, monkeypatch.setattr)

    def run(workdir: Path, **fields: Any) -> None:
        launch.launch(tiny_config(**fields), workdir, "command")

    return run


@pytest.fixture(scope="module")
def uninterrupted(records: Records, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    workdir = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        use_records(records, patch.setattr)
        launch.launch(tiny_config(), workdir, "command")
    return result(workdir)


def stop(
    run: Run, workdir: Path, *, call: int, number: int = signal.SIGTERM, **fields: Any
) -> None:
    """Runs until a signal arrives with the batch number `call`."""
    with pytest.MonkeyPatch.context() as patch:
        on_batch(call, lambda: signal.raise_signal(number), patch.setattr)
        run(workdir, **fields)


# Validations are two batches each, the first one's 7 and 8, the last one's 27 and 28.
@pytest.mark.parametrize(
    ("number", "call", "step"),
    [
        (signal.SIGTERM, 1, 1),
        (signal.SIGTERM, 4, 4),
        (signal.SIGINT, 7, 6),
        (signal.SIGINT, 27, 20),
        (signal.SIGTERM, 28, 20),
    ],
)
def test_signal(
    run: Run,
    uninterrupted: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    number: signal.Signals,
    call: int,
    step: int,
) -> None:
    stop(run, tmp_path, call=call, number=number)
    output = capsys.readouterr().err
    assert f"{number.name}: stopped and saved at step {step} of 20" in output
    assert "to resume, run the same command again" in output
    assert result(tmp_path)["latest"] == step
    run(tmp_path)
    assert f"resuming from step {step} of 20" in capsys.readouterr().err
    assert result(tmp_path) == uninterrupted


def test_all_that_a_step_can_do_goes_on(run: Run, tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "accumulate": 2,
        "augment__cutmix": 0.5,
        "augment__erase": 0.5,
        "augment__mixup": 0.2,
        "augment__randaugment": 1,
        "best": "last",
        "class_weights": "balanced",
        "dataset__sampling": "class_balanced",
        "ema": 0.9,
        "label_smoothing": 0.1,
        "optimizer__clip_norm": 1.0,
        "optimizer__layer_decay": 0.5,
        "optimizer__name": "muon",
        "optimizer__weight_decay": 0.01,
        "schedule__name": "one_cycle",
    }
    run(tmp_path / "whole", **fields)
    stop(run, tmp_path / "stopped", call=9, **fields)
    run(tmp_path / "stopped", **fields)
    found = result(tmp_path / "whole")
    assert result(tmp_path / "stopped") == found
    # The averages are what is kept.
    kernel = "['params']['heads']['age']['kernel']"
    assert found[f"best{kernel}"] == found[f"latest['average']{kernel}"] != found[f"latest{kernel}"]
    mean = "['batch_stats']['backbone']['bn']['mean']"
    assert found[f"best{mean}"] == found[f"latest['average']{mean}"] != found[f"latest{mean}"]


@pytest.mark.parametrize("placement", ["host", "stream"])
def test_settings_without_influence_may_change(
    run: Run, uninterrupted: dict[str, Any], tmp_path: Path, placement: str
) -> None:
    stop(run, tmp_path, call=9)
    run(
        tmp_path,
        checkpoint_every="7 steps",
        log_every="3 steps",
        dataset__data_dir="elsewhere",
        dataset__prepare=True,
        input__placement=placement,
    )
    assert result(tmp_path) | {"rows": []} == uninterrupted | {"rows": []}


@pytest.fixture(scope="module")
def undisturbed(records: Records, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """As `uninterrupted`, in a process with one device: with eight, sums round differently."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run_process(workdir, records, tiny_config())[0] == 0
    return result(workdir)


@pytest.mark.slow
def test_killed_while_saving(records: Records, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    # A save takes some 25 operations, so most sessions are killed somewhere in their second one
    # or while what it replaces is removed.
    workdir, config, kills = tmp_path / "run", tiny_config(checkpoint_every="2 steps"), 0
    for operation in range(31, 80, 4):
        code, _ = run_process(workdir, records, config, kill_at=operation)
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
    assert kills > 4
    assert run_process(workdir, records, config)[0] == 0
    assert result(workdir) == undisturbed
    assert not list(workdir.glob("checkpoints/*/*tmp*"))


@pytest.mark.slow
def test_killed_at_random(records: Records, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    for seconds in np.random.default_rng(0).uniform(0.01, 0.6, 4):
        run_process(workdir, records, tiny_config(), kill_after=seconds)
    assert run_process(workdir, records, tiny_config())[0] == 0
    assert result(workdir) == undisturbed


@pytest.mark.slow
def test_second_interrupt_acts_at_once(records: Records, tmp_path: Path) -> None:
    code, _ = run_process(tmp_path / "run", records, tiny_config(), interrupt_at=3)
    assert code == -signal.SIGINT


def test_finished_run_says_so(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path)
    confusion = np.diag([18] + [0] * 7).tolist()
    confusion[0][1] = 18
    age = {
        "accuracy": 0.5,
        "one_off": 0.75,
        "balanced_accuracy": 0.25,
        "loss": 1.5,
        "count": 36,
        "recall": [0.5] + [None] * 7,
        "support": [36] + [0] * 7,
        "confusion": confusion,
    }
    of_data = dict.fromkeys(("name", "labels", "protocol"), "x") | {"notice": "Noise."}
    report = {
        "config": {"duration": "20 steps"},
        "training": {
            **dict.fromkeys(("seconds", "epochs", "pictures_per_second", "best_step"), 1),
            **{"steps": 20, "total_steps": 20, "complete": True},
        },
        "dataset": of_data | {"test_fold": 0, "leakage": {"test_faces": 36, "seen_subject": 0}},
        "model": {"name": "tiny", "parameters": 330},
        "evaluation": {"step": 20, "seconds": 1.5, "tasks": {"age": age}},
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    before = result(tmp_path)
    capsys.readouterr()
    monkeypatch.setattr(launch, "train_and_test", None)
    run(tmp_path)
    output = capsys.readouterr().err
    assert "this run is finished" in output
    assert "test, age: accuracy 50.00%, 1-off 75.00%, balanced 25.00%, loss 1.5000" in output
    assert str(tmp_path / "report.html") in output
    assert result(tmp_path) == before


def relabelled(records: Records) -> Records:
    age = records.labels["age"].copy()
    age[0] = (age[0] + 1) % 8
    return dataclasses.replace(records, labels=records.labels | {"age": age})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"schedule__learning_rate": 0.5}, ["schedule.learning_rate: 0.01 there, 0.5 now"]),
        (
            {"batch_size": 8, "seed": 3},
            ["config.batch_size: 16 there, 8 now", "config.seed: 0 there, 3 now", "splits.train"],
        ),
        ({"model__dropout_rate": 0.1}, ["config.model.dropout_rate: 0.5 there, 0.1 now"]),
        ({"tasks": "age"}, ["config.tasks", "classes.gender: ['female', 'male'] there, absent"]),
        ({}, ["dataset.fingerprint: images, subjects or labels have changed"]),
    ],
)
def test_another_run_is_refused(
    run: Run,
    records: Records,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    named: list[str],
) -> None:
    stop(run, tmp_path, call=2)
    before = result(tmp_path)
    if not fields:
        use_records(relabelled(records), monkeypatch.setattr)
    with pytest.raises(UserError, match="is of another run") as caught:
        run(tmp_path, **fields)
    for name in named:
        assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert result(tmp_path) == before
    assert "UserError" in (tmp_path / "train.log").read_text()


def test_a_finished_run_is_not_made_longer(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "run")
    with pytest.raises(
        UserError, match="is finished, and its length stays as it is; to tr"
    ) as caught:
        run(tmp_path / "run", duration="30 steps")
    advice = f"--config.init={tmp_path / 'run'} --config.new_parts= and another --workdir"
    assert "config.duration: 20 steps there, 30 steps now" in str(caught.value)
    assert advice in str(caught.value)
    run(tmp_path / "longer", init=str(tmp_path / "run"), new_parts="")
    stop(run, tmp_path / "stopped", call=4)
    with pytest.raises(UserError, match="give that run's settings and data, or another --workdir"):
        run(tmp_path / "stopped", duration="30 steps")


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("part", ["state", "run"])
def test_damaged_checkpoint_and_the_one_before_it(
    run: Run, uninterrupted: dict[str, Any], tmp_path: Path, part: str
) -> None:
    stop(run, tmp_path, call=16)
    latest = tmp_path / "checkpoints/latest"
    before, damaged = sorted(latest.iterdir(), key=lambda path: int(path.name))
    files = [path for path in (damaged / part).rglob("*") if path.is_file()]
    damage(max(files, key=lambda path: path.stat().st_size))
    with pytest.raises(
        UserError, match=rf"{damaged} cannot be read: .*step {before.name}"
    ) as caught:
        run(tmp_path)
    assert f"remove {damaged} and run the same command again" in str(caught.value)
    shutil.rmtree(damaged)
    run(tmp_path)
    assert result(tmp_path) == uninterrupted


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if (
        not shutil.which("mount")
        or subprocess.run(mount, check=False, capture_output=True).returncode
    ):
        pytest.skip("no permission to mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 24 * 1024])  # For nothing; for rows but not for a checkpoint.
def test_full_disk(
    records: Records, undisturbed: dict[str, Any], small_disk: Path, room: int
) -> None:
    workdir, ballast = small_disk / "run", small_disk / "ballast"
    assert run_process(workdir, records, tiny_config(), stop_at=4)[0] == 0
    before = result(workdir)
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
    code, stderr = run_process(workdir, records, tiny_config())
    assert code == 1
    *_, last = stderr.splitlines()
    assert re.fullmatch("(?i)error: no space left on .*: free some and run the same .*", last)
    assert "Traceback" not in stderr
    assert not list(workdir.glob("checkpoints/*/*tmp*"))
    ballast.unlink()
    assert result(workdir) | {"rows": []} == before | {"rows": []}
    assert run_process(workdir, records, tiny_config())[0] == 0
    assert result(workdir) == undisturbed


def test_work_directory_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(UserError, match=r"cannot be written to .*: name another one"):
            run(workdir)


def test_stopping_and_training_save_the_same(run: Run, tmp_path: Path) -> None:
    stop(run, tmp_path / "stopped", call=5)
    run(tmp_path / "short", duration="5 steps", evaluate_every="50 steps")
    stopped, short = result(tmp_path / "stopped"), result(tmp_path / "short")
    assert {k: v for k, v in stopped.items() if k.startswith("latest")} == {
        k: v for k, v in short.items() if k.startswith("latest")
    }
    assert Checkpoints(tmp_path / "short", read_only=True).best_step == 5
