"""Frames of a video, and the interface of what they are read from."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

TIMEOUT = 10.0  # seconds to wait for a stream to connect or for its next frame
DEFAULT_RATE = 25.0  # frames per second of a source that does not report its rate
MIN_RATE, MAX_RATE = 0.001, 1000.0  # frames per second; rates beyond are not believed


@dataclass(frozen=True)
class Frame:
    """One frame of a video.

    Attributes:
        number: its index, from 0.
        seconds: time since the first frame.
        image: RGB uint8 [H, W, 3], upright and with square pixels.
        duration: seconds until the next frame as reported by a file; else 0.
    """

    number: int
    seconds: float
    image: np.ndarray
    duration: float = 0.0


class VideoSource(ABC):
    """An open camera, video file or stream.

    Attributes:
        name: for messages; without the password that a URL may contain.
        live: frames arrive in real time, so that a slow reader should skip to the newest.
        rate: frames per second as reported, else `DEFAULT_RATE`.
        count: number of frames as reported by a file, or estimated; None for others.
        seconds: length as reported by a file; None for others.
        damaged: number of parts of a file or stream that could not be decoded so far.
        truncated: its end is missing, as far as its format tells without a length.
        waits: `read` may wait for a source that is disconnected, until `stop`.
    """

    name: str
    live: bool
    rate: float
    count: int | None = None
    seconds: float | None = None
    damaged: int = 0
    truncated: bool = False
    waits: bool = False

    @abstractmethod
    def read(self) -> Frame | None:
        """Returns the next frame; None at the end or when the source is disconnected."""

    def stop(self) -> None:  # noqa: B027 (most do not wait)
        """Ends such a wait, from another thread."""

    @abstractmethod
    def close(self) -> None: ...


def plausible_rate(rate: float | None) -> float | None:
    """A reported frame rate, or None if it cannot be meant: zero, not a number, or too large."""
    return float(rate) if rate is not None and MIN_RATE <= rate <= MAX_RATE else None
