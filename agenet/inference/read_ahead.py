"""Reads items ahead in threads that can be given up, in bounded memory."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Generic, TypeVar

_SLICE = 0.5  # seconds

Item = TypeVar("Item")
Read = TypeVar("Read")
# Says how much the item that is read holds from now on; waits until there is room for it.
Hold = Callable[[int], None]


def read_ahead(
    items: Iterable[Item],
    read: Callable[[Item, Hold], Read],
    give_up: Callable[[Item], Read],
    patience: float,
    *,
    threads: int,
    ahead: int,
    room: int,
    pause: float,
) -> Generator[Read | None, None, None]:
    """Yields `read(item, hold)` for each item, in order, and reads the next ones meanwhile.

    Nothing waits for the threads: Ctrl-C ends the program at once, even within a decoder that does
    not return.

    Args:
        items: are taken one by one in the calling thread.
        read: runs in several threads. It calls `hold` before it takes memory, and when it has
            given some back.
        give_up: what to yield instead for an item that is not read in time.
        patience: seconds to wait for an item.
        threads: that read.
        ahead: the number of items that are read or wait at most.
        room: that these items may hold together, in the units of `hold`; the first of them never
            waits for room.
        pause: seconds without an item after which None is yielded.
    """
    readers = _Readers(read, threads, _Room(room))
    waiting: deque[_Job[Item, Read]] = deque()
    waited = 0.0

    def take() -> Read | None:
        nonlocal waited
        job, began = waiting[0], time.monotonic()
        until = began + min(pause, patience - waited)
        # A signal that comes just before Python waits is heard only after that wait.
        while not job.future.done() and (left := until - time.monotonic()) > 0:
            with suppress(TimeoutError):
                job.future.result(min(left, _SLICE))
        waited += time.monotonic() - began
        if not job.future.done() and waited < patience:
            return None
        waiting.popleft()
        waited = 0.0
        readers.release(job)
        return job.future.result() if job.future.done() else give_up(job.item)

    try:
        for number, item in enumerate(items):
            waiting.append(readers.submit(number, item))
            while len(waiting) > ahead:
                yield take()
        while waiting:
            yield take()
    finally:
        readers.close()


class _Room:
    """What the items that are read ahead may hold together.

    The item that is yielded next does not wait for room: it would wait for items that wait for it.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: dict[int, int] = {}
        self._next: float = 0
        self._changed = threading.Condition()

    def hold(self, number: int, amount: int) -> None:
        """Waits until the item of this number may hold so much, in place of what it holds."""
        with self._changed:
            self._changed.wait_for(lambda: number <= self._next or self._fits(number, amount))
            if number >= self._next:  # It was not given up.
                self._held[number] = amount
            self._changed.notify_all()

    def _fits(self, number: int, amount: int) -> bool:
        return sum(self._held.values()) - self._held.get(number, 0) + amount <= self._size

    def advance(self, number: float) -> None:
        """Makes this the next item; those before it hold nothing."""
        with self._changed:
            self._next = number
            self._held = {at: amount for at, amount in self._held.items() if at >= number}
            self._changed.notify_all()


@dataclass(eq=False)
class _Job(Generic[Item, Read]):
    number: int
    item: Item
    future: Future[Read] = field(default_factory=Future)
    is_given_up: bool = False


class _Readers(Generic[Item, Read]):
    """Threads that read one item after the other and die with the program."""

    def __init__(self, read: Callable[[Item, Hold], Read], threads: int, room: _Room) -> None:
        self._read, self._room = read, room
        self._closed = False
        self._jobs: SimpleQueue[_Job[Item, Read] | None] = SimpleQueue()
        self._idle = threads  # that may still be started
        self._started = 0

    def submit(self, number: int, item: Item) -> _Job[Item, Read]:
        job: _Job[Item, Read] = _Job(number, item)
        self._jobs.put(job)
        if self._idle:
            self._idle -= 1
            self._start()
        return job

    def release(self, job: _Job[Item, Read]) -> None:
        """Ends the wait for a job: another thread takes the place of one that is still in it."""
        if not job.future.done():
            job.is_given_up = True
            self._start()
        self._room.advance(job.number + 1)

    def close(self) -> None:
        self._closed = True
        self._room.advance(math.inf)
        for _ in range(self._started):
            self._jobs.put(None)

    def _start(self) -> None:
        self._started += 1
        # A pool's threads would be waited for.
        threading.Thread(target=self._run, name="reader", daemon=True).start()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self._closed:
            try:
                job.future.set_result(self._read(job.item, partial(self._room.hold, job.number)))
            except BaseException as error:
                job.future.set_exception(error)
            if job.is_given_up:
                return
