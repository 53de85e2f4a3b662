"""Opens a camera or stream again when it stops."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from agenet.errors import UserError, say
from agenet.faces.frames import Frame, VideoSource

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between attempts; each is twice as long


class Reconnecting(VideoSource):
    """A live source that is opened again, after pauses that grow, until it is stopped.

    Frames keep counting, and their times go on by the clock.

    Args:
        source: opened; its name and frame rate are kept.
        reopen: opens it again, or raises `UserError`.
        give_up: seconds without a frame after which the source has ended; None: never.
        clock: seconds.
    """

    live = True
    waits = True

    def __init__(
        self,
        source: VideoSource,
        reopen: Callable[[], VideoSource],
        give_up: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.rate = source.name, source.rate
        self._source: VideoSource | None = source
        self._reopen, self._give_up, self._clock = reopen, give_up, clock
        self._number, self._start = 0, 0.0
        self._opened, self._seen = clock(), clock()  # since when; time of the latest frame
        self._pause = FIRST_PAUSE
        self._stopped = threading.Event()

    def read(self) -> Frame | None:
        while not self._stopped.is_set():
            frame = self._source.read() if self._source else None
            if frame is not None:
                return self._following(frame)
            if not self._connect():
                break
        return None

    def _following(self, frame: Frame) -> Frame:
        self._seen = self._clock()
        self._start = self._start if self._number else self._seen
        frame = replace(frame, number=self._number, seconds=self._seen - self._start)
        self._number += 1
        return frame

    def _connect(self) -> bool:
        """Opens the source again; returns False if it is given up or stopped."""
        self.close()
        # One that ends as soon as it is open is not asked for all the time.
        if self._clock() - self._opened > LONGEST_PAUSE:
            self._pause = FIRST_PAUSE
        left = self._left()
        if left <= 0:
            return False
        until = "Ctrl-C" if self._give_up is None else f"{left:.0f} s have passed"
        say(f"{self.name} returns no more frames: opening it again until {until}")
        while (left := self._left()) > 0:
            if self._stopped.wait(min(self._pause, left)):
                return False
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            try:
                self._source = self._reopen()
            except UserError:
                continue
            self._opened = self._clock()
            say(f"{self.name} is back after {self._opened - self._seen:.1f} s")
            return True
        return False

    def _left(self) -> float:
        if self._give_up is None:
            return float("inf")
        return self._seen + self._give_up - self._clock()

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        if self._source:
            self._source.close()
            self._source = None
