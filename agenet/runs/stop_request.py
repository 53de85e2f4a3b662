"""Turns signals that ask a run to stop into a flag that the training loop polls."""

import signal
from collections import deque
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import jax
from jax.sharding import Mesh

from agenet.distributed.mesh import make_process_max

# Number of steps that are given to the device before the host waits for the first of them: enough
# to keep a device busy, few enough to react to a signal soon and to keep few batches in memory.
STEPS_AHEAD = 2


class StopRequest(AbstractContextManager["StopRequest"]):
    """Turns the first SIGTERM or Ctrl-C into a flag; a second one ends the process at once.

    Several processes stop together: all of them poll equally often, and a signal to any of them is
    seen by all in the same poll. That is `STEPS_AHEAD` polls after the devices have been asked, so
    that their answer is there and no process waits for it.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.signal: signal.Signals | None = None  # the one that all processes know of
        self._received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._process_max = make_process_max(mesh) if jax.process_count() > 1 else None
        self._polls: deque[jax.Array] = deque()

    def __call__(self, *, wait: bool = False) -> bool:
        """Whether to stop; with `wait`, a signal that has just arrived counts as well."""
        if self._process_max is None:
            self.signal = self._received
        elif self.signal is None:
            self._polls.append(self._process_max(self._received or 0))
            while self.signal is None and len(self._polls) > (0 if wait else STEPS_AHEAD):
                number = int(self._polls.popleft())
                self.signal = signal.Signals(number) if number else None
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self._received = signal.Signals(number)
        for number in self._previous:
            signal.signal(number, signal.SIG_DFL)
