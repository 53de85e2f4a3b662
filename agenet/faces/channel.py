"""Bounded queues between threads that can be closed, and threads that write to them."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):  # noqa: N818
    """The channel is closed and empty."""


class Channel(Generic[T]):
    """A queue of at most `size` items between two threads.

    Args:
        size: number of items.
        newest: drop the oldest item when full; otherwise `put` blocks.
    """

    def __init__(self, size: int, *, newest: bool = False) -> None:
        self._items: deque[T] = deque()
        self._size = size
        self._newest = newest
        self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, item: T) -> bool:
        """Adds an item; returns False if the channel is closed."""
        with self._changed:
            while len(self._items) >= self._size and not self._closed:
                if self._newest:
                    self._items.popleft()
                else:
                    self._changed.wait()
            if not self._closed:
                self._items.append(item)
                self._changed.notify_all()
            return not self._closed

    def get(self, timeout: float | None = None) -> T:
        """Removes and returns the oldest item.

        Args:
            timeout: seconds to wait for an item; None waits without limit.

        Raises:
            Closed: the channel is closed and empty. If it was closed with an error, that error.
            TimeoutError: no item arrived within `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._items or self._closed, timeout):
                raise TimeoutError
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            raise self._error or Closed

    def close(self, error: BaseException | None = None) -> None:
        """Closes the channel for both threads; the items in it can still be read."""
        with self._changed:
            if not self._closed:
                self._closed, self._error = True, error
                self._changed.notify_all()


def start_thread(work: Callable[[], None], output: Channel[T], name: str) -> threading.Thread:
    """Runs `work` in a thread, then closes `output`, with the error if `work` raised one."""

    def run() -> None:
        try:
            work()
        except Closed:
            output.close()
        except BaseException as error:  # `output.get` raises it in the reading thread.
            output.close(error)
        else:
            output.close()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
