"""A framework of a benchmark in a process of its own, asked for one turn at a time.

Between its turns it is idle, and says how much of a core it used nevertheless: the threads of some
libraries wait by spinning, which would slow down whoever's turn it is.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, Self

from agenet.errors import UserError
from scripts.benchmarks.engines import ENGINES, Figures

_MOMENT = 5.0  # seconds


class Worker:
    """The process; whatever fails in it is an answer {"error": one line}.

    `limit` are the seconds after which it is ended for not answering; `kinds` the engines by name,
    classes that are made of a work, and `missing` tells what one lacks for a network.
    """

    def __init__(
        self,
        engine: str,
        work: Any,
        limit: float,
        kinds: Mapping[str, Callable[[Any], Any]] = ENGINES,
        missing: Callable[[str, str], str] = lambda engine, model: "",
    ) -> None:
        self.engine, self.work, self.limit, self.error = engine, work, limit, ""
        self._kinds, self._missing = kinds, missing
        self.idle = (0.0, 0.0)  # seconds before the last question, and how many of them busy
        self._process: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Figures:
        """Creates the engine: its description, or an error that stays for all that follows."""
        if missing := self._missing(self.engine, self.work.model):
            self.error = f"{missing} is not installed"
        if self.error:
            return {"error": self.error}
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, self._kinds[self.engine], self.work)
        # No daemon, as these may have no processes of their own to load pictures.
        self._process = context.Process(target=_serve, args=arguments)
        self._process.start()
        theirs.close()
        description: Figures = self.ask("start")
        self.error = description.get("error", "")
        return description

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of the engine answers."""
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
            # The system ends whoever takes more memory than there is.
            full = ", out of memory?" if self._process.exitcode == -signal.SIGKILL else ""
            self.error = f"its process ended with code {self._process.exitcode}{full}"
        self.close()
        return {"error": self.error}

    def close(self) -> None:
        """Ends the process, which has a moment to end what it has started."""
        if self._process:
            self._connection.close()
            self._process.join(_MOMENT)
            self._process.kill()
            self._process.join()
            self._process = None


def _serve(connection: Connection, kind: Callable[[Any], Any], work: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    os.dup2(2, 1)  # what libraries print is no part of the table
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
        except Exception as error:  # Any: a framework's failure is a line in the table.
            answer = {"error": _one_line(error)}
        connection.send((answer, idle))


def _one_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    told = isinstance(error, UserError | ModuleNotFoundError)
    named = text if told else f"{type(error).__name__}: {text}"
    return named.splitlines()[0][:200]
