"""Runs trackers in threads of their own: training never waits for them, nor ends with them."""

import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from agenet.errors import extra_of, needs_extra, printable
from agenet.runs.trackers.tracker import Tracker

log = logging.getLogger(__name__)

QUEUED = 10_000  # calls that may wait; hours of rows
WAIT = 60.0  # seconds at the end of a run, for all trackers together
_QUIET = 3.0  # seconds of that without a line

_SECRETS = re.compile(r"(KEY|TOKEN|PASSWORD|SECRET)", re.IGNORECASE)
_SHORTEST_SECRET = 6  # Shorter ones would be found in ordinary words.

_Call = Callable[[Tracker], None]


class BackgroundTracker:
    """One tracker, opened and called in a thread.

    Whatever goes wrong is one line in the log, and the tracker is not called again.

    Args:
        name: of the tracker.
        create: opens it.
    """

    def __init__(self, name: str, create: Callable[[], Tracker]) -> None:
        self.name = name
        self._create = create
        self._calls: queue.Queue[_Call | None] = queue.Queue(QUEUED)
        self._ending = threading.Event()  # No further call comes.
        self._ended = threading.Event()  # It has failed or is closed, or nobody waits any more.
        self._dropped = 0
        self._finished = False
        # A daemon: one that hangs must not keep the process.
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def call(self, call: _Call) -> None:
        """Has the thread do something; returns at once."""
        if self._ended.is_set():
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            if not self._dropped:
                log.warning(
                    "%s does not keep up: rows are left out there; metrics.jsonl has all",
                    self.name,
                )
            self._dropped += 1

    def end(self, finished: bool) -> None:
        """Has the thread close the tracker after what it was given; returns at once."""
        self._finished = finished
        self._ending.set()
        with suppress(queue.Full):  # Then the thread has calls to do, and looks after each.
            self._calls.put_nowait(None)

    def wait(self, deadline: float) -> None:
        """Waits for the thread until a time of `time.monotonic`; then gives up, with a line."""
        self._thread.join(min(_QUIET, max(deadline - time.monotonic(), 0)))
        if self._thread.is_alive():
            left = deadline - time.monotonic()
            if left > 0:
                log.info("waiting for %s, for at most %.0f s", self.name, left)
                self._thread.join(left)
        if self._thread.is_alive() and not self._ended.is_set():
            self._ended.set()
            log.warning(
                "%s does not answer: not waited for any longer; the work directory has all",
                self.name,
            )

    def _work(self) -> None:
        tracker: Tracker | None = None
        try:
            tracker = self._create()
            while (call := self._calls.get()) is not None:
                call(tracker)
                if self._ending.is_set() and self._calls.empty():
                    break
        except BaseException as error:  # Libraries of trackers raise what they like.
            self._fail(error)
        if tracker is not None:
            try:
                tracker.close(self._finished)
            except BaseException as error:
                self._fail(error)
        self._ended.set()

    def _fail(self, error: BaseException) -> None:
        if not self._ended.is_set():
            self._ended.set()
            log.warning("%s: %s; the run goes on without it", self.name, explain(error))


class Trackers:
    """All trackers of a run, as a writer of scalars."""

    def __init__(self, trackers: Sequence[BackgroundTracker]) -> None:
        self._trackers = trackers
        self._finished = False

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        now, row = time.time(), dict(scalars)
        self._call(lambda tracker: tracker.log_scalars(step, now, row))

    def write_report(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs the report in the work directory and its main metrics; the run is finished."""
        self.write_scalars(step, scalars)
        self._call(lambda tracker: tracker.log_report(step))
        self._finished = True

    def _call(self, call: _Call) -> None:
        for tracker in self._trackers:
            tracker.call(call)

    def close(self) -> None:
        """Waits for what is left, `WAIT` seconds at most."""
        for tracker in self._trackers:
            tracker.end(self._finished)
        deadline = time.monotonic() + WAIT
        for tracker in self._trackers:
            tracker.wait(deadline)


def explain(error: BaseException) -> str:
    """One line without secrets: messages of libraries may hold addresses with passwords."""
    if isinstance(error, ModuleNotFoundError) and (extra := extra_of(error.name or "")):
        return str(needs_extra(extra, "this tracker", error))
    text = " ".join(str(error).split()) or type(error).__name__
    for name, value in os.environ.items():
        if _SECRETS.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return printable(re.sub(r"//[^/\s@]*@", "//***@", text), 300)
