"""Reads frames from cameras."""

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from agenet.errors import UserError
from agenet.faces.frames import DEFAULT_RATE, Frame, VideoSource, plausible_rate
from agenet.faces.opencv_log import SILENT, set_log_level

MAX_CAMERA_DIGITS = 2  # OpenCV takes numbers from 100 for camera back ends


class Camera(VideoSource):
    """An open camera.

    Args:
        capture: opened by OpenCV; released by `close`.
        name: for messages.
        clock: seconds, for the timestamps.

    Raises:
        UserError: it returns no frame.
    """

    live = True

    def __init__(self, capture: cv2.VideoCapture, name: str, clock: Callable[[], float]) -> None:
        self.name = name
        self._capture = capture
        self._clock = clock
        self.rate = plausible_rate(capture.get(cv2.CAP_PROP_FPS)) or DEFAULT_RATE
        self._number = 0
        self._start = 0.0
        # Busy cameras open without error and fail at the first frame.
        self._first = self._decode()
        if self._first is None:
            capture.release()
            raise UserError(f"{name} returns no frame: is another program using it?")

    def read(self) -> Frame | None:
        image = self._first if self._first is not None else self._decode()
        self._first = None
        if image is None:
            return None
        now = self._clock()
        self._start = self._start if self._number else now
        frame = Frame(self._number, now - self._start, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        self._number += 1
        return frame

    def close(self) -> None:
        self._capture.release()

    def _decode(self) -> np.ndarray | None:
        try:
            there, image = self._capture.read()
        except cv2.error:
            return None
        return image if there and image is not None and image.size else None


def open_camera(text: str, clock: Callable[[], float]) -> Camera:
    """Opens a camera.

    Args:
        text: its number or device file.
        clock: seconds, for the timestamps.

    Raises:
        UserError: it does not exist, or returns no frame.
    """
    # Errors are reported here, not by OpenCV and its FFmpeg.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    if "OPENCV_LOG_LEVEL" not in os.environ:
        set_log_level(SILENT)
    capture = cv2.VideoCapture()
    if not text.isdecimal():
        capture.open(text)
    elif len(text) <= MAX_CAMERA_DIGITS:
        capture.open(int(text))
    if not capture.isOpened():
        raise UserError(f"camera {text} cannot be opened: {_known_cameras()}")
    return Camera(capture, f"camera {text}", clock)


def _known_cameras() -> str:
    if not Path("/dev").is_dir():
        return "is it connected, and is this program allowed to use it?"
    found = sorted(str(path) for path in Path("/dev").glob("video*"))
    if found:
        return f"this machine has {', '.join(found)}; give another number, a file or a URL"
    return "this machine has no /dev/video*; give a video file or the URL of a stream instead"
