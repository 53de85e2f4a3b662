"""Times the calls of a network, whichever framework runs it."""

import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

Figures = dict[str, Any]


class Engine(ABC):
    """A network that is timed in stages such as "training": `prepare`, `measure`, `release`."""

    pipelined = False  # whether calls are queued on a device; else each one is timed
    call: Callable[[], Any]

    def describe(self) -> Figures:
        return {}

    @abstractmethod
    def build(self, stage: str, batch: int) -> Figures:
        """Sets `call` to one step of the stage; returns figures such as compilation seconds."""

    def synchronise(self) -> None:
        """Waits until the device has finished all calls."""
        return  # by default calls return after their work

    def prepare(self, stage: str, batch: int) -> Figures:
        """Builds a stage and runs it once; `peak_bytes` is the peak memory until then."""
        start = time.perf_counter()
        figures = self.build(stage, batch)
        self.call()
        self.synchronise()
        seconds = time.perf_counter() - start
        return figures | {"prepare_seconds": seconds, "peak_bytes": self.peak()}

    def measure(self, stage: str, seconds: float) -> list[float]:
        """Seconds of each call in a turn of about `seconds`, or their mean if calls are queued.

        The first call is not counted, since others' turns have left caches and threads cold.
        """
        first = self._time(1)
        if self.pipelined and stage != "latency":
            count = max(1, round(seconds / first))
            return [self._time(count) / count]
        times = [self._time(1)]
        while sum(times) < seconds:
            times.append(self._time(1))
        return times

    def release(self) -> None:
        """Frees what the stage needed."""
        del self.call

    def peak(self) -> int:
        """Peak bytes of the process, or on a GPU of its framework, so far."""
        if (status := Path("/proc/self/status")).exists():
            # getrusage would include the memory of the parent process.
            line = next(line for line in status.read_text().splitlines() if "VmHWM" in line)
            return int(line.split()[1]) * 1024
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def _time(self, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            self.call()
        self.synchronise()
        return time.perf_counter() - start
