"""Items handed from one thread to another, a few at a time."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):  # noqa: N818
    """Nothing more comes out of a channel."""


class Channel(Generic[T]):
    """Hands items from one thread to another and never holds more than `size` of them.

    Args:
        newest: where it is full the oldest item gives way; else whoever puts one in waits.
    """

    def __init__(self, size: int, *, newest: bool = False) -> None:
        self._items: deque[T] = deque()
        self._size = size
        self._newest = newest
        self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, item: T) -> bool:
        """Adds an item; False if the channel is closed."""
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
        """Takes the oldest item out.

        Raises:
            Closed: the channel is closed and empty. Where it was closed with an error, that.
            TimeoutError: none came within `timeout` seconds.
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
        """Ends it for both sides; what is in it can still be taken out."""
        with self._changed:
            if not self._closed:
                self._closed, self._error = True, error
                self._changed.notify_all()


def start_thread(work: Callable[[], None], output: Channel[T], name: str) -> threading.Thread:
    """Runs `work` in a thread and closes `output` after it, with its error if it raised one."""

    def run() -> None:
        try:
            work()
        except Closed:
            output.close()
        except BaseException as error:  # Whoever reads from `output` raises it.
            output.close(error)
        else:
            output.close()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
