"""Lets several processes, the workers, share the runs of one folder: who trains which.

A worker claims a run by a lock on a file in `.workers/` below the folder. Locks end with their
process, however it ends, so that another worker goes on with the runs of one that has died. Over
several machines this needs a file system whose locks hold between them, as NFS 4 has.
"""

import contextlib
import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from agenet.errors import say
from agenet.files import write_errors_explained, write_file, write_json

POLL_SECONDS = 2.0
_LARGEST_NOTE = 1 << 16  # bytes


class Workers:
    """The claims on runs in a folder, and which of them failed in another worker.

    Args:
        workdir: the folder of all runs; it is created.

    Raises:
        UserError: the folder cannot be written to.
    """

    def __init__(self, workdir: Path):
        self._folder = workdir / ".workers"
        self._started = time.time()
        with write_errors_explained(workdir):
            self._folder.mkdir(parents=True, exist_ok=True)
            self.place = self._read_place()

    @contextlib.contextmanager
    def claim(self, workdir: Path) -> Iterator[bool]:
        """Claims the run in a folder for as long as the block lasts.

        Yields:
            Whether this worker has it; False if another one does.
        """
        lock = FileLock(self._folder / f"{workdir.name}.lock")
        mine = self._acquire(lock)
        try:
            if mine:
                _wait_until_ended(workdir)
            yield mine
        finally:
            lock.release()

    def _acquire(self, lock: BaseFileLock) -> bool:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return False
        except (OSError, NotImplementedError) as error:
            say(f"{self._folder} cannot be locked ({error}): start no second worker there")
        return True

    def note_failure(self, workdir: Path, message: str) -> None:
        """Lets the other workers know that a run has failed."""
        with contextlib.suppress(OSError):
            write_json(self._folder / f"{workdir.name}.json", {"error": message})

    def failure(self, workdir: Path) -> str | None:
        """Why a run failed in another worker since this one was started; None if it did not."""
        path = self._folder / f"{workdir.name}.json"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            state = path.stat()
            if state.st_mtime >= self._started and state.st_size < _LARGEST_NOTE:
                return str(json.loads(path.read_bytes())["error"])
        return None

    def _read_place(self) -> str:
        """A name for the folder that is the same on all machines that share it."""
        path = self._folder / "place"
        lock = FileLock(self._folder / "place.lock")
        with contextlib.suppress(OSError, NotImplementedError):
            lock.acquire()
        try:
            if not path.is_file() or not path.stat().st_size:
                write_file(path, secrets.token_hex(8).encode())
            return path.read_text("ascii", "replace")[:16]
        finally:
            lock.release()


def _wait_until_ended(workdir: Path) -> None:
    """Waits for the process that trained here for a worker that is gone: it is told to stop."""
    lock, said = FileLock(workdir / ".lock"), False
    while workdir.is_dir():
        try:
            with lock.acquire(blocking=False):
                return
        except Timeout:
            if not said:
                say(f"waiting for the process that still trains in {workdir}")
            said = True
            time.sleep(POLL_SECONDS)
        except (OSError, NotImplementedError):
            return
