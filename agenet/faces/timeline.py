"""Turns the timestamps of a video file into seconds that only increase."""

SHORTEST_GAP = 1e-5  # seconds between two frames; less is a timestamp that is repeated
LONGEST_GAP = 6 * 3600.0  # seconds between two frames; MP4 can hold 9 hours in our ticks
JITTER = 1.0  # seconds that a timestamp may lie behind its predecessor without being a new start
MAX_STALLED = 3  # frames in a row that may lie behind


class Timeline:
    """Gives each frame a time after that of the frame before.

    Files in the wild lack timestamps, repeat them, start at any value including negative ones,
    and start again in their middle, where recordings were joined or a counter overflowed.

    >>> timeline = Timeline(rate=10)
    >>> [timeline.next(stamp) for stamp in (-0.5, -0.25, 0.5, None, 1.0)]
    [0.0, 0.25, 1.0, 1.1, 1.5]

    Args:
        rate: frames per second where timestamps are missing or start anew.
    """

    def __init__(self, rate: float) -> None:
        self._step = 1 / rate
        self._seconds: float | None = None
        self._offset: float | None = None  # of timestamps from the times returned
        self._stalled = 0

    def next(self, stamp: float | None) -> float:
        """Returns the time of the next frame in seconds since the first; see the class.

        Args:
            stamp: its timestamp in seconds; None if it has none.
        """
        if self._seconds is None:
            seconds, self._offset = 0.0, stamp
        else:
            seconds = self._following(self._seconds, stamp)
        self._seconds = seconds
        return seconds

    def _following(self, before: float, stamp: float | None) -> float:
        expected = before + self._step
        if stamp is None:
            return expected
        if self._offset is not None:
            seconds = stamp - self._offset
            if before + SHORTEST_GAP <= seconds <= before + LONGEST_GAP:
                self._stalled = 0
                return seconds
            if abs(seconds - before) <= JITTER and self._stalled < MAX_STALLED:
                # Not a whole step, so that the frames after it are on time.
                self._stalled += 1
                return before + self._step / (MAX_STALLED + 1)
        self._offset = stamp - expected
        return expected
