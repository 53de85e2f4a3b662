"""Runs in processes of their own: why they failed, signals, and the server that forks them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

from agenet.runs import child_process
from agenet.runs.child_process import RunError, StoppedError, run_in_child
from tests.conftest import ROOT


@pytest.fixture(params=["linux", "darwin"], autouse=True)
def _platform(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """On Linux processes are forked, elsewhere they are started anew; nothing is preloaded."""
    monkeypatch.setattr(sys, "platform", request.param)
    monkeypatch.setattr(child_process, "PRELOAD", "tests.runs.nothing")
    forkserver._forkserver._stop()
    yield
    forkserver._forkserver._stop()


def end_with_error() -> None:
    sys.exit("error: batch_size 9 does not fit")


def exhaust_memory() -> None:
    raise RuntimeError("RESOURCE_EXHAUSTED: 3 GiB\nmore")


def raise_key_error() -> None:
    raise KeyError("x")


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def abort() -> None:
    os.abort()


def exit_with_code() -> None:
    sys.exit(3)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (end_with_error, "^batch_size 9 does not fit$"),
        (exhaust_memory, "^out of memory$"),
        (raise_key_error, "^KeyError: 'x'$"),
        (be_killed, "^killed, as systems do"),
        (abort, "SIGABRT"),
        (exit_with_code, "exit code 3"),
    ],
)
def test_reason_of_a_failure(function: Callable[[], None], reason: str) -> None:
    with pytest.raises(RunError, match=reason):
        run_in_child(function)


def count_signals(parent: int, argument: str) -> None:
    """Interrupts its parent, as a terminal would, and reports what it gets itself."""
    signal.signal(signal.SIGINT, lambda *_: print("interrupted", file=sys.stderr))
    print(argument, file=sys.stderr)
    os.kill(parent, signal.SIGINT)
    time.sleep(0.5)


def test_child_gets_arguments_and_one_signal(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(StoppedError) as caught:
        run_in_child(count_signals, os.getpid(), "the argument")
    assert caught.value.number == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) == before
    printed = capfd.readouterr().err
    assert printed.count("the argument") == 1
    assert printed.count("interrupted") == 1


def show_process() -> None:
    threads = [thread.name for thread in threading.enumerate() if not thread.daemon]
    print(os.getppid(), os.environ.get("GLIBC_TUNABLES"), threads, file=sys.stderr)


def test_runs_are_forked_from_one_server(capfd: pytest.CaptureFixture[str]) -> None:
    """The server has started nothing, and is started anew if it is gone."""
    for _ in range(2):
        run_in_child(show_process)
    first, second = capfd.readouterr().err.splitlines()
    assert first == second and first.endswith("['MainThread']")
    if sys.platform != "linux":
        assert first.split()[0] == str(os.getpid())
        return
    assert " glibc.malloc.hugetlb=1 " in first
    server = int(first.split()[0])
    os.kill(server, signal.SIGKILL)
    while Path(f"/proc/{server}/stat").read_text().split(")")[1].split()[0] != "Z":
        time.sleep(0.01)
    run_in_child(show_process)
    assert capfd.readouterr().err.split()[0] != first.split()[0]


def train_until_stopped(file: Path) -> None:
    def save(*_: object) -> None:
        file.touch()
        sys.exit()

    signal.signal(signal.SIGTERM, save)
    print("training", file=sys.stderr, flush=True)
    time.sleep(60)


def test_a_run_ends_with_a_program_that_is_killed(tmp_path: Path) -> None:
    if sys.platform != "linux":
        return
    program = (
        "from pathlib import Path\n"
        "from agenet.runs import child_process\n"
        "from tests.runs.test_child_process import train_until_stopped\n"
        "child_process.PRELOAD = 'tests.runs.nothing'\n"
        f"child_process.run_in_child(train_until_stopped, Path({str(tmp_path / 'saved')!r}))\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"training\n"
        process.kill()
    deadline = time.monotonic() + 20
    while not (tmp_path / "saved").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_signal_while_the_server_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        return
    (tmp_path / "slow_to_import.py").write_text(
        f"import os, time\nos.kill({os.getpid()}, {signal.SIGTERM:d})\ntime.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(child_process, "PRELOAD", "slow_to_import")
    with pytest.raises(StoppedError) as caught:
        run_in_child(exit_with_code)
    assert caught.value.number == signal.SIGTERM
    assert forkserver._forkserver._forkserver_pid is not None
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
