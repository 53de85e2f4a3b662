"""What OpenCV's releases call by different names."""

import cv2

SILENT = 0


def set_log_level(level: int) -> int:
    """What OpenCV itself writes to the terminal; returns the level until now."""
    # OpenCV 4 has it at the top, 5 below.
    return int(getattr(cv2.utils, "logging", cv2).setLogLevel(level))
