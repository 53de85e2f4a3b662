"""A lease on a folder in a store: the nearest to a lock that object stores can keep.

It is an object beside the files, created only if there is none, which S3 and Google Cloud Storage
do atomically. Its holder writes it anew every few seconds. Whoever finds one that has not changed
for a while takes it over: the holder was killed, or has lost its connection. A holder that finds
another's in the place of its own stops. Until it looks, at most `BEAT` seconds or its next upload
later, two processes may believe that they hold it: this is a lease, not a lock.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from agenet.errors import UserError, printable, say
from agenet.places.stores import Address, store_errors_explained

log = logging.getLogger(__name__)

NAME = ".agenet-lease"
BEAT = 10.0  # seconds between two signs of life
DEAD = 60.0  # seconds without one after which a lease is taken over
_SETTLE = 2.0  # seconds after which the one who wrote last has it
_LONGEST = 10_000  # bytes


class Lease:
    """Holds a folder from `acquire` to `release`.

    Args:
        store: the file system.
        address: of the folder.
        copy: identifies the local copy that the holder works on. It is locked by other means, so a
            lease with the same one is that of a process which has ended.
        sleep: waits for so many seconds.
    """

    def __init__(
        self, store: Any, address: Address, copy: str, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._store, self._address, self._copy, self._sleep = store, address, copy, sleep
        self._path = f"{address.path}/{NAME}"
        self._owner = secrets.token_hex(8)
        self._beats = 0
        self._lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def acquire(self) -> None:
        """Takes the lease, and keeps it alive.

        Raises:
            UserError: another process has it, or the store denies or does not answer.
        """
        with store_errors_explained(self._address):
            while not self._create():
                other = self._read()
                if other is None:  # Given back in the meantime.
                    continue
                if other.get("copy") == self._copy or self._is_dead(other):
                    self._write()
                    if other.get("copy") != self._copy:
                        self._sleep(_SETTLE)
                    self.check()
                    break
        self._thread.start()

    def check(self) -> None:
        """Raises `UserError` if another process has taken the lease over."""
        if not self._lost:
            with store_errors_explained(self._address):
                self._lost = not self._is_mine()
        if self._lost:
            raise self._in_use("has taken it over")

    def release(self) -> None:
        """Gives the lease back; one that is not given back, as after a kill, runs out."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join(BEAT)
        try:
            with store_errors_explained(self._address):
                if self._is_mine():
                    self._store.rm_file(self._path)
        except (UserError, OSError) as error:
            log.warning("%s: %s", self._address, error)

    def _create(self) -> bool:
        """Whether the lease was created: there was none."""
        if not self._put("create"):
            return False
        # A store that does not know the condition would create it again.
        if self._put("create"):
            say(f"{self._address}: this store has no locks: start no second process there")
        return True

    def _write(self) -> None:
        self._put("overwrite")

    def _put(self, mode: str) -> bool:
        content = {
            "owner": self._owner,
            "copy": self._copy,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "beats": self._beats,
        }
        try:
            self._store.pipe_file(self._path, json.dumps(content).encode(), mode=mode)
        except FileExistsError:
            return False
        except OSError as error:  # Some stores answer less precisely.
            if "condition" not in str(error).lower():
                raise
            return False
        return True

    def _read(self) -> dict[str, Any] | None:
        """The content of the lease; None if there is none."""
        try:
            content = json.loads(self._store.cat_file(self._path, end=_LONGEST))
        except FileNotFoundError:
            return None
        except ValueError:  # Of something else.
            return {}
        return content if isinstance(content, dict) else {}

    def _is_mine(self) -> bool:
        """False also if there is none: another process may have taken it over and ended."""
        return (self._read() or {}).get("owner") == self._owner

    def _is_dead(self, other: dict[str, Any]) -> bool:
        """Watches another one's lease; raises `UserError` if it is alive."""
        who = f"{_holder(other)} uses it, or did until it was killed"
        say(f"{self._address}: {who}: watching it for {DEAD:g} s")
        waited = 0.0
        while waited < DEAD:
            self._sleep(BEAT / 5)
            waited += BEAT / 5
            now = self._read()
            if now is None:
                return False
            if now != other:
                raise self._in_use(f"uses it ({_holder(now)})")
        return True

    def _in_use(self, how: str) -> UserError:
        return UserError(
            f"{self._address} is in use: another process {how}: wait until it ends, or name "
            "another place"
        )

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                if not self._is_mine():
                    self._lost = True
                    return
                self._beats += 1
                self._write()
            except Exception as error:  # No connection: the next sign of life may get through.
                log.debug("%s: %s", self._address, error)


def _holder(content: dict[str, Any]) -> str:
    host, process = (printable(str(content.get(name, "?"))) for name in ("host", "process"))
    return f"process {process} on {host}"
