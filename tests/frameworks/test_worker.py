"""The processes of frameworks end with the one that started them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agenet.errors import one_line_errors
from agenet.frameworks import worker
from agenet.frameworks.worker import Worker

ROOT = Path(__file__).parents[2]
_LONG = 600.0  # seconds


class Busy:
    """An engine that works for as long as it is asked to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def describe(self) -> dict[str, Any]:
        return {"process": os.getpid()}

    def work(self, seconds: float) -> str:
        (self.folder / "working").write_text(str(os.getpid()))
        time.sleep(seconds)
        return "done"

    def fail(self) -> None:
        raise ValueError("first line\nsecond line")


class Starting(Busy):
    """An engine whose start takes long."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.work(_LONG)


def ask(kind: type[Busy], folder: str) -> None:
    """Waits for an engine, as `agenet compare` does; run in a process of its own."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    worker._MOMENT = 0.1
    with one_line_errors(), Worker("busy", kind, Path(folder), limit=_LONG) as process:
        process.start()
        process.ask("work", _LONG)


def test_answers_and_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_MOMENT", 0.1)
    with Worker("busy", Busy, tmp_path, limit=_LONG) as process:
        child = process.start()["process"]
        assert child != os.getpid() and process.ask("work", 0.0) == "done"
        assert process.ask("fail") == {"error": "ValueError: first line"}
        assert process.ask("work", 0.0) == "done"
        process.limit = 0.1
        for _ in range(2):
            assert process.ask("work", _LONG) == {"error": "took longer than 0 s"}
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def wait_for(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextlib.contextmanager
def asking(kind: type[Busy], folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A program that waits for an engine, and the engine's process."""
    name = kind.__name__
    code = f"from tests.frameworks.test_worker import {name}, ask; ask({name}, {str(folder)!r})"
    program = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    pid = folder / "working"
    try:
        wait_for(lambda: pid.is_file() and pid.read_text() != "")
        yield program, int(pid.read_text())
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()


@pytest.mark.parametrize(
    ("kind", "end"),
    [(Busy, signal.SIGTERM), (Busy, signal.SIGKILL), (Starting, signal.SIGTERM)],
)
def test_the_process_ends_with_its_parent(
    tmp_path: Path, kind: type[Busy], end: signal.Signals
) -> None:
    """Also in the middle of long work, with one line at most."""
    with asking(kind, tmp_path) as (program, _):
        program.send_signal(end)
        printed, _ = program.communicate(timeout=60)  # until the last process has ended
        assert printed == ("interrupted\n" if end == signal.SIGTERM else "")


def test_ctrl_c_reaches_all_processes_and_is_one_line(tmp_path: Path) -> None:
    with asking(Starting, tmp_path) as (program, _):
        os.killpg(program.pid, signal.SIGINT)
        printed, _ = program.communicate(timeout=60)
        assert printed == "interrupted\n" and program.returncode == 130
