"""Reads files ahead in a thread that can be given up."""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Generic, TypeVar

# More would hold more images in memory, and no more than one can be read at a time.
AHEAD = 1
_SLICE = 0.5  # seconds

Item = TypeVar("Item")
Read = TypeVar("Read")


def read_ahead(
    items: Iterable[Item],
    read: Callable[[Item], Read],
    give_up: Callable[[Item], Read],
    patience: float,
) -> Generator[Read, None, None]:
    """Yields `read(item)` for each item, and reads the next one meanwhile.

    Nothing waits for the thread: Ctrl-C ends the program at once, even within a decoder that does
    not return.

    Args:
        items: are taken one by one in the calling thread.
        read: runs in a thread.
        give_up: what to yield instead for an item that is not read in time.
        patience: seconds to wait for an item.
    """
    reader = _Reader(read)
    waiting: deque[tuple[Item, Future[Read]]] = deque()

    def take() -> Read:
        nonlocal reader
        item, future = waiting.popleft()
        until = time.monotonic() + patience
        # A signal that comes just before Python waits is heard only after that wait.
        while not future.done() and (left := until - time.monotonic()) > 0:
            with suppress(TimeoutError):
                return future.result(min(left, _SLICE))
        if future.done():
            return future.result()
        # The thread stays in the decoder; another one reads the rest.
        reader.close()
        reader = _Reader(read)
        for at, (later, _) in enumerate(waiting):
            waiting[at] = later, reader.submit(later)
        return give_up(item)

    try:
        for item in items:
            waiting.append((item, reader.submit(item)))
            if len(waiting) > AHEAD:
                yield take()
        while waiting:
            yield take()
    finally:
        reader.close()


class _Reader(Generic[Item, Read]):
    """A thread that reads one item after the other and dies with the program."""

    def __init__(self, read: Callable[[Item], Read]) -> None:
        self._read = read
        self._closed = False
        self._jobs: SimpleQueue[tuple[Item, Future[Read]] | None] = SimpleQueue()
        # A pool's threads would be waited for.
        threading.Thread(target=self._run, name="reader", daemon=True).start()

    def submit(self, item: Item) -> Future[Read]:
        future: Future[Read] = Future()
        self._jobs.put((item, future))
        return future

    def close(self) -> None:
        self._closed = True
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self._closed:
            item, future = job
            try:
                future.set_result(self._read(item))
            except BaseException as error:
                future.set_exception(error)
