"""Runs a framework in a process of its own and calls its methods from this one.

Between calls the process should be idle. It reports how much processor time it used nevertheless:
the threads of some libraries wait by spinning, which slows down whatever is measured next.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Self

from agenet.errors import UserError
from agenet.frameworks.timing import Figures

_MOMENT = 5.0  # seconds


class Worker:
    """A process that holds one engine. Any failure in it is returned as {"error": one line}.

    Args:
        name: of the engine, for messages and tables.
        kind: class of the engine; it is called with `work` in the process.
        work: what the engine is to do; it is pickled.
        limit: seconds after which a process that does not answer is ended.

    Attributes:
        idle: seconds that the process waited before the last call, and how many of them its
            threads were busy nevertheless.
    """

    def __init__(self, name: str, kind: Callable[[Any], Any], work: Any, limit: float) -> None:
        self.name, self.work, self.limit = name, work, limit
        self.error = ""
        self.idle = (0.0, 0.0)
        self._kind = kind
        self._process: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Figures:
        """Creates the engine and returns its description, or an error that later calls repeat."""
        if self.error:
            return {"error": self.error}
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, self._kind, self.work)
        # Not a daemon: those may not start the processes that load images.
        process = context.Process(target=_serve, args=arguments)
        with _interrupts_blocked():
            process.start()
            self._process = process
        theirs.close()
        description: Figures = self.ask("start")
        self.error = description.get("error", "")
        return description

    def ask(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the engine and returns its result."""
        if self.error:
            return {"error": self.error}
        try:
            self._connection.send((method, arguments))
            if self._connection.poll(self.limit):
                answer, self.idle = self._connection.recv()
                return answer
            self.error = f"took longer than {self.limit:.0f} s"
        except (EOFError, ConnectionError):
            self._process.join()
            # Linux kills a process when memory runs out.
            full = ", out of memory?" if self._process.exitcode == -signal.SIGKILL else ""
            self.error = f"its process ended with code {self._process.exitcode}{full}"
        self.close()
        return {"error": self.error}

    def close(self) -> None:
        """Ends the process, after a moment in which it may end its own child processes."""
        if self._process:
            self._connection.close()
            try:
                self._process.join(_MOMENT)
            finally:  # A second Ctrl-C does not wait.
                self._process.kill()
                self._process.join()
                self._process = None


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Holds SIGINT and SIGTERM back in the block, and from the processes that start in it.

    Ctrl-C reaches all processes of a terminal, also one that is still importing a framework.
    """
    resource_tracker.ensure_running()  # Its start in the block would let signals through.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, kind: Callable[[Any], Any], work: Any) -> None:
    # SIGINT stays blocked: the parent process ends this one.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(2, 1)  # what libraries print must not mix with the table
    instance: Any = None

    def start() -> Figures:
        nonlocal instance
        instance = kind(work)
        return dict(instance.describe())

    while True:
        wall, busy = time.perf_counter(), time.process_time()
        try:
            method, arguments = connection.recv()
        except (EOFError, ConnectionError):  # The parent process has closed its end.
            return
        idle = (time.perf_counter() - wall, time.process_time() - busy)
        try:
            answer = start() if method == "start" else getattr(instance, method)(*arguments)
        except Exception as error:  # Any: a framework's failure becomes a line of the table.
            answer = {"error": _one_line(error)}
        try:
            connection.send((answer, idle))
        except ConnectionError:
            return


def _end_with_parent() -> None:
    """Ends this process when its parent has died, which may be in the middle of long work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def _one_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    is_plain = isinstance(error, UserError | ModuleNotFoundError)
    named = text if is_plain else f"{type(error).__name__}: {text}"
    return named.splitlines()[0][:200]
