import threading
import time
from collections.abc import Callable, Mapping

import pytest

from agenet.runs.logging import log_to
from agenet.runs.trackers import background
from agenet.runs.trackers.background import BackgroundTracker, Trackers, explain


class Recorder:
    """A tracker that keeps what it is given, after `before` was called with each row."""

    def __init__(self, before: Callable[[int], object] = lambda step: None) -> None:
        self.rows: dict[int, Mapping[str, float]] = {}
        self.ended: list[object] = []
        self._before = before

    def log_scalars(self, step: int, time: float, scalars: Mapping[str, float]) -> None:
        self._before(step)
        self.rows[step] = scalars

    def log_report(self, step: int) -> None:
        self.ended.append(step)

    def close(self, finished: bool) -> None:
        self.ended.append(finished)


def fail(step: int) -> None:
    if step == 2:
        raise OSError("no route to http://me:secret@host/\nTraceback")


def log(trackers: Trackers, steps: int = 4) -> None:
    for step in range(steps):
        trackers.write_scalars(step, {"loss": float(step)})


def test_everything_arrives_in_order() -> None:
    recorder = Recorder()
    trackers = Trackers([BackgroundTracker("any", lambda: recorder)])
    row = {"loss": 1.0}
    trackers.write_scalars(1, row)
    row["loss"] = 2.0  # Belongs to the caller.
    trackers.write_report(9, {"test/age_accuracy": 0.5})
    trackers.close()
    assert recorder.rows == {1: {"loss": 1.0}, 9: {"test/age_accuracy": 0.5}}
    assert recorder.ended == [9, True]


def test_a_failure_is_one_line_and_the_others_go_on(capsys: pytest.CaptureFixture) -> None:
    good, bad = Recorder(), Recorder(fail)

    def missing() -> Recorder:
        raise ModuleNotFoundError("No module named 'wandb'", name="wandb")

    with log_to():
        kinds = {"good": lambda: good, "bad": lambda: bad, "wandb": missing}
        trackers = Trackers([BackgroundTracker(*kind) for kind in kinds.items()])
        log(trackers)
        trackers.close()
    assert list(good.rows) == [0, 1, 2, 3]
    assert (list(bad.rows), bad.ended) == ([0, 1], [False])
    lines = sorted(line[9:] for line in capsys.readouterr().err.splitlines())
    assert lines[0] == ("bad: no route to http://***@host/ Traceback; the run goes on without it")
    assert lines[1].startswith('wandb: this tracker needs the extra "wandb" (')
    assert len(lines) == 2


def test_one_that_hangs_costs_neither_training_nor_memory(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "QUEUED", 2)
    monkeypatch.setattr(background, "WAIT", 0.2)
    go_on = threading.Event()
    recorder = Recorder(lambda step: go_on.wait())
    with log_to():
        tracker = BackgroundTracker("slow", lambda: recorder)
        trackers = Trackers([tracker])
        start = time.monotonic()
        log(trackers, 100)
        assert time.monotonic() - start < 0.2
        trackers.close()
        assert time.monotonic() - start < 5
    lines = [line[9:] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "slow does not keep up: rows are left out there; metrics.jsonl has all",
        "slow does not answer: not waited for any longer; the work directory has all",
    ]
    go_on.set()


def test_one_that_is_slow_is_closed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "QUEUED", 2)
    go_on = threading.Event()
    recorder = Recorder(lambda step: go_on.wait())
    tracker = BackgroundTracker("slow", lambda: recorder)
    for step in range(8):  # The queue is full when it is told to end.
        tracker.call(lambda t, step=step: t.log_scalars(step, 0.0, {}))  # type: ignore[misc]
    threading.Timer(0.1, go_on.set).start()
    tracker.end(True)
    tracker.wait(time.monotonic() + 10)
    assert recorder.ended == [True]


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    error = ValueError("key 0123456789abcdef\x1b[2J at https://a:b@c/ is wrong")
    assert explain(error) == "key ***?[2J at https://***@c/ is wrong"
