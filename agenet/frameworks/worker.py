"""Runs a framework in a process of its own and calls its methods from this one.

Between calls the process should be idle. It reports how much processor time it used nevertheless:
the threads of some libraries wait by spinning, which slows down whatever is measured next.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
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
        self._process = context.Process(target=_serve, args=arguments)
        self._process.start()
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
            self._process.join(_MOMENT)
            self._process.kill()
            self._process.join()
            self._process = None


def _serve(connection: Connection, kind: Callable[[Any], Any], work: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends this one
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
        except EOFError:
            return
        idle = (time.perf_counter() - wall, time.process_time() - busy)
        try:
            answer = start() if method == "start" else getattr(instance, method)(*arguments)
        except Exception as error:  # Any: a framework's failure becomes a line of the table.
            answer = {"error": _one_line(error)}
        connection.send((answer, idle))


def _one_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    is_plain = isinstance(error, UserError | ModuleNotFoundError)
    named = text if is_plain else f"{type(error).__name__}: {text}"
    return named.splitlines()[0][:200]
