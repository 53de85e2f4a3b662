"""Runs a function in a process of its own and says in one line why it failed.

Processes are forked from a server that has imported JAX and everything else that a run needs, and
started nothing: imports take seconds, most of the time of a run on cached features. Four steps and
a report of the quickstart's network take 12.7 s of processor time, as a program of its own 18 s
(two busy cores of an Intel Xeon, means of two runs after a first one).
"""

import contextlib
import os
import pty
import re
import select
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, get_context, parent_process
from multiprocessing.connection import Connection
from typing import Any

from agenet.errors import one_line_errors
from agenet.runs.allocation import LARGE_PAGES

PRELOAD = "agenet.runs.preload"  # imported by the server before it forks
WATCH_SECONDS = 1.0
_TAIL = 20_000  # bytes at the end of a run's output that are searched for the reason of a failure
_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|out of memory|MemoryError|bad_alloc", re.I)


class RunError(Exception):
    """A run ended with an error: its message in one line."""


class StoppedError(Exception):
    """A run was asked to stop; the signal's number, if this program received it."""

    def __init__(self, number: int | None = None):
        self.number = number


def run_in_child(
    function: Callable[..., None], *arguments: Any, watch: Callable[[], bool] | None = None
) -> None:
    """Calls a function in a process of its own, whose memory and crashes stay there.

    Its output on stderr passes through. Ctrl-C, SIGTERM and SIGHUP are passed on to it. If this
    program is killed, the process gets a SIGTERM.

    Args:
        function: defined at the top level of a module, as are the types of its arguments.
        *arguments: of the function.
        watch: called every `WATCH_SECONDS` while it runs, and once at its end; when it returns
            True, or raises an error, the process gets a SIGTERM, and `watch` is not called again.
            The error is raised when the process has ended.

    Raises:
        RunError: it ended with an error.
        StoppedError: this program received a signal.
    """
    output, terminal = _open_pipe()
    with os.fdopen(output, "rb", buffering=0) as stream, _passing_on_signals() as signals:
        with Connection(terminal, readable=False) as stderr:
            try:
                # A daemon: if this program ends before it, it gets a SIGTERM.
                process = _context().Process(
                    target=_child, args=(stderr, function, arguments), daemon=True
                )
                process.start()
            except (EOFError, OSError) as error:
                raise RunError("no process could be started for it") from error
            signals.child = process.pid
        watched = _Watch(watch, process.terminate)
        tail = _pass_through(stream, watched.look)
        process.join()
    if signals.received:
        raise StoppedError(signals.received[0])
    if watched.error:
        raise watched.error
    if process.exitcode:
        raise RunError(_reason(process.exitcode, tail))


def _context() -> Any:
    """How processes are started; on Linux this also starts the server."""
    # Other systems have no fork, or libraries that do not survive one.
    context = get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        os.environ.setdefault("GLIBC_TUNABLES", LARGE_PAGES)
        context.set_forkserver_preload([PRELOAD])
        # A terminal sends Ctrl-C to the server, too.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            forkserver.ensure_running()
        finally:
            signal.signal(signal.SIGINT, previous)
    return context


def _child(stderr: Connection, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    # In a session of its own, where no terminal sends it a Ctrl-C: a run that receives the signal
    # twice, from there and from its parent, ends without saving.
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(stderr.fileno(), 2)
    stderr.close()
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    with one_line_errors():
        function(*arguments)


def _end_with_parent(server: int) -> None:
    """Sends this process a SIGTERM when the program, or the server that forked it, is gone.

    Otherwise the same command, given again, would train in a folder where this run still trains.
    """
    program = parent_process()
    assert program is not None
    while program.is_alive() and os.getppid() == server:
        program.join(1)
    os.kill(os.getpid(), signal.SIGTERM)


class _Signals:
    """Signals that this program has received; passes them on to its child."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.child: int | None = None

    def receive(self, number: int, _: Any) -> None:
        if self.child is None:
            raise StoppedError(number)  # While the server starts, which takes seconds.
        self.received.append(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, number)


@contextlib.contextmanager
def _passing_on_signals() -> Iterator[_Signals]:
    signals = _Signals()
    previous = {
        number: signal.signal(number, signals.receive)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        # nohup and shells without job control have some ignored.
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _open_pipe() -> tuple[int, int]:
    """File descriptors to read from and to write to; a terminal if this program has one."""
    if not sys.stderr.isatty():
        return os.pipe()
    output, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, termios.tcgetwinsize(sys.stderr.fileno()))
    return output, terminal


class _Watch:
    """Calls `watch` until that asks for the end of the process, or fails."""

    def __init__(self, watch: Callable[[], bool] | None, terminate: Callable[[], None]):
        self.error: Exception | None = None
        self._watch, self._terminate = watch, terminate

    def look(self) -> None:
        if self._watch is None:
            return
        try:
            ends = self._watch()
        except Exception as error:  # The process must end in order, too.
            self.error, ends = error, True
        if ends:
            self._watch = None
            self._terminate()


def _pass_through(stream: Any, look: Callable[[], None]) -> str:
    """Copies a stream to stderr until it ends; returns the end of it."""
    tail, due = b"", time.monotonic() + WATCH_SECONDS
    while True:
        if time.monotonic() >= due:
            look()
            due = time.monotonic() + WATCH_SECONDS
        if not select.select([stream], [], [], max(0.0, due - time.monotonic()))[0]:
            continue
        # A terminal raises an error where a pipe ends.
        chunk = b""
        with contextlib.suppress(OSError):
            chunk = stream.read(4096)
            os.write(sys.stderr.fileno(), chunk)
        if not chunk:
            break
        tail = (tail + chunk)[-_TAIL:]
    look()
    return tail.decode(errors="replace")


def _reason(code: int, tail: str) -> str:
    """Why a run ended, in one line, from its exit code and the end of its output."""
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    if _OUT_OF_MEMORY.search(tail):
        return "out of memory"
    if code == -signal.SIGKILL:
        return "killed, as systems do that run out of memory"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return lines[-1][:300] if lines else f"ended with exit code {code}"
