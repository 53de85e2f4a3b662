"""Ends all processes of a run, each with a one-line error, when one of them fails or dies.

JAX itself aborts the remaining processes, too, but only with a C++ stack trace.
"""

import ctypes
import itertools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import jax

from agenet.distributed.coordination import client
from agenet.errors import UserError, say

log = logging.getLogger(__name__)

HEARTBEAT = 0.5  # seconds between two heartbeats of a process


class Watchdog:
    """A thread that sends this process's heartbeats and ends the process if another one failed."""

    def __init__(self, timeout: int):
        """Starts the thread. A process without a heartbeat for `timeout` seconds counts as dead."""
        self._timeout = timeout
        self._index, self._count = jax.process_index(), jax.process_count()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        self._thread.join()

    def report_failure(self, error: BaseException) -> None:
        """Ends all processes; the others log the error's first line."""
        if _may_come_from_another_process(error):
            time.sleep(self._timeout + 4 * HEARTBEAT)  # The thread ends this process if it does.
        plain = isinstance(error, UserError | SystemExit) or not str(error)
        name = "" if plain else f"{type(error).__name__}: "
        text = (str(error) or type(error).__name__).splitlines()[0]
        with suppress(jax.errors.JaxRuntimeError):  # Process 0 may have failed before.
            self._post(self._index, f"process {self._index} of {self._count}: {name}{text}")
        # The coordinator must live until the others have read this.
        time.sleep(HEARTBEAT * (4 if self._index == 0 else 0))

    def _post(self, index: int, line: str) -> None:
        client().key_value_set(f"agenet/failed/{index}", line, allow_overwrite=True)

    def _run(self) -> None:
        # Of each process its last heartbeat and the time when it was first seen.
        heard = dict.fromkeys(range(self._count), ("", time.monotonic()))
        for beat in itertools.count():
            with suppress(jax.errors.JaxRuntimeError):  # JAX aborts the process if it persists.
                self._exchange(str(beat), heard)
            if self._stopped.wait(HEARTBEAT):
                return

    def _exchange(self, beat: str, heard: dict[int, tuple[str, float]]) -> None:
        now = time.monotonic()
        client().key_value_set(f"agenet/alive/{self._index}", beat, allow_overwrite=True)
        failed = client().key_value_dir_get("agenet/failed")
        if failed:
            self._exit({_process_index(key): line for key, line in failed})
        if self._index > 0:
            return
        for key, value in client().key_value_dir_get("agenet/alive"):
            if heard[_process_index(key)][0] != value:
                heard[_process_index(key)] = value, now
        for index, (_, last) in heard.items():
            if now - last > self._timeout:
                self._post(
                    index,
                    f"process {index} of {self._count} has sent no heartbeat for {self._timeout} "
                    "s: it was killed, or its machine failed",
                )

    def _exit(self, failures: dict[int, str]) -> NoReturn:
        failed_itself = self._index in failures  # Then the main thread is about to print why.
        if not failed_itself:
            for line in failures.values():
                log.error("error: %s", line)
        # Process 0 ends last: without the coordinator JAX aborts the others.
        time.sleep(HEARTBEAT * (6 if self._index == 0 else 3 if failed_itself else 0))
        sys.stderr.flush()
        os._exit(1)


def exit_with(line: str) -> NoReturn:
    """Ends the process at once, from any thread, with a one-line error."""
    say(f"error: {line}")
    os._exit(1)


_handlers: list[Any] = []  # C code calls them: they must not be garbage-collected.


def exit_with_line_on_abort(make_line: Callable[[], str]) -> None:
    """Prints a line when JAX aborts the process, as it does when it loses the coordinator.

    JAX aborts in a C++ thread, and Python's `signal` runs handlers in the main thread only.
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: exit_with(make_line()))
    _handlers.append(handler)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)


def _may_come_from_another_process(error: BaseException) -> bool:
    """Whether another process's end may have caused the error; JAX has many messages for that."""
    errors = [e for e in (error, error.__cause__) if isinstance(e, jax.errors.JaxRuntimeError)]
    return any(
        "RESOURCE_EXHAUSTED" not in str(e) and "out of memory" not in str(e).lower() for e in errors
    )


def _process_index(key: str) -> int:
    return int(key.rpartition("/")[2])
