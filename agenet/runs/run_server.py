"""Forks the process of each run from one that has imported what runs need, and started nothing.

To import JAX, Flax, Orbax and so on takes seconds, many of them where a run reads its features from
disk. Here that is done once: runs.py starts this module as a program and asks it for processes.
"""

import contextlib
import ctypes
import gc
import importlib
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import recv_handle, send_handle

# What a run imports sooner or later. Not TensorFlow, which only some need, for TensorBoard's files.
_IMPORTED = (
    "agenet.runs.launch",
    "tensorflow_datasets.proto",
    "array_record.python.array_record_data_source",
    "matplotlib.backends.backend_agg",
)

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class Forked:
    """A process that the server has forked; as much of `subprocess.Popen` as runs.py needs."""

    def __init__(self, pid: int, connection: Connection):
        self._pid = pid
        self._connection = connection

    def send_signal(self, number: int) -> None:
        # Once its exit code is there the number may be that of another process.
        if not self._connection.poll():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def wait(self) -> int:
        """Its exit code; minus the number of a signal that ended it."""
        try:
            return self._connection.recv()
        except (EOFError, ConnectionError):  # The server itself is gone.
            return -signal.SIGKILL


class RunServer:
    """The server, as the program sees it that has started it. It ends with that program."""

    def __init__(self, environment: Mapping[str, str]):
        self._connection, other = Pipe()
        self._is_ready = False
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "agenet.runs.run_server", str(other.fileno())],
                env=environment,
                pass_fds=[other.fileno()],
                start_new_session=True,  # Where no terminal sends it a Ctrl-C.
            )

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def get_ready(self, stop: Callable[[], object]) -> bool:
        """Waits until the server has imported everything; False if it has not and `stop` says so.

        Raises:
            EOFError: the server has ended.
        """
        while not self._is_ready:
            if stop():
                return False
            if self._connection.poll(0.1):
                self._is_ready = self._connection.recv()
        return True

    def start(self, module: str, arguments: Sequence[str], stderr: int) -> Forked:
        """Calls `python -m MODULE ARGUMENT ...`, one at a time.

        Raises:
            EOFError, ConnectionError: the server has ended.
        """
        self._connection.send((module, arguments))
        send_handle(self._connection, stderr, self._process.pid)
        return Forked(self._connection.recv(), self._connection)

    def close(self) -> None:
        """Ends the server; a process that it has forked gets a SIGTERM."""
        self._connection.close()
        self._process.kill()
        self._process.wait()


def serve(connection: Connection) -> tuple[str, Sequence[str], int] | None:
    """Forks what it is asked for until the program at the other end is gone.

    Returns:
        In each process that it forks the module, the arguments and the stderr of that one.
    """
    _end_with_parent()  # It hears nothing else while it waits for a run.
    for name in _IMPORTED:
        with contextlib.suppress(Exception):  # Runs tell of it, if they need it.
            importlib.import_module(name)
    # Or every run would go through all that was imported, again and again, in search of garbage.
    gc.collect()
    gc.freeze()
    with contextlib.suppress(EOFError, ConnectionError):
        connection.send(True)
        while True:
            module, arguments = connection.recv()
            stderr = recv_handle(connection)
            if not (pid := os.fork()):
                _end_with_parent()
                connection.close()
                return module, arguments, stderr
            os.close(stderr)
            connection.send(pid)
            _, status = os.waitpid(pid, 0)
            connection.send(os.waitstatus_to_exitcode(status))
    return None


def _end_with_parent() -> None:
    """Has Linux send this process a SIGTERM as soon as its parent is gone, even by SIGKILL.

    Or the same command, given again, would train beside a run in the same folder.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


def become(module: str, arguments: Sequence[str], stderr: int) -> None:
    """Makes this process `python -m MODULE ARGUMENT ...`."""
    os.dup2(stderr, sys.stderr.fileno())
    os.close(stderr)
    sys.argv = [module, *arguments]
    sys.orig_argv = [sys.executable, "-m", *sys.argv]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if asked := serve(Connection(int(sys.argv[1]))):
        become(*asked)
