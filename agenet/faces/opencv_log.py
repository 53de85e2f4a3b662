"""Controls what OpenCV itself writes to the terminal."""

import cv2

SILENT = 0


def set_log_level(level: int) -> int:
    """Sets OpenCV's log level and returns the previous one."""
    # In OpenCV 4 the function is in cv2 itself, in OpenCV 5 in cv2.utils.logging.
    return int(getattr(cv2.utils, "logging", cv2).setLogLevel(level))
