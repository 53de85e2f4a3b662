"""Controls what OpenCV itself writes to the terminal."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import cv2

SILENT = 0
_lock = threading.Lock()


def set_log_level(level: int) -> int:
    """Sets OpenCV's log level and returns the previous one."""
    # In OpenCV 4 the function is in cv2 itself, in OpenCV 5 in cv2.utils.logging.
    return int(getattr(cv2.utils, "logging", cv2).setLogLevel(level))


@contextmanager
def silenced() -> Iterator[None]:
    """Suppresses OpenCV's messages, such as those about files that it cannot read."""
    with _lock:
        level = set_log_level(SILENT)
        try:
            yield
        finally:
            set_log_level(level)
