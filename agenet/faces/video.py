"""Reads frames from cameras, video files and network streams; writes video files."""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from agenet import files
from agenet.errors import UserError
from agenet.faces.opencv_log import SILENT, set_log_level

TIMEOUT = 10.0  # seconds to wait for a stream to connect or for its next frame
# Codecs that are part of OpenCV's packages. An AVI file is playable even if the program that wrote
# it was killed.
CODECS = {".mp4": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
MIN_SIDE = 16  # pixels; codecs need even sides, and corrupt memory at 4 px
DEFAULT_RATE = 25.0  # frames per second of a source that does not report its rate
MAX_CAMERA_DIGITS = 2  # OpenCV takes numbers from 100 for camera back ends


@dataclass(frozen=True)
class Frame:
    """One frame of a video.

    Attributes:
        number: its index, from 0.
        seconds: time since the first frame.
        image: RGB uint8 [H, W, 3].
    """

    number: int
    seconds: float
    image: np.ndarray


class VideoSource:
    """An open camera, video file or stream.

    Attributes:
        name: for messages; without the password that a URL may contain.
        live: frames arrive in real time, so that a slow reader should skip to the newest.
        rate: frames per second as reported, else `DEFAULT_RATE`.
        count: number of frames as reported by a file; None for others.
    """

    def __init__(
        self, capture: cv2.VideoCapture, name: str, live: bool, clock: Callable[[], float]
    ) -> None:
        self.name = name
        self._capture = capture
        self._clock = clock
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(count) if not live and 0 < count < 1e9 else None
        self.live = live
        rate = capture.get(cv2.CAP_PROP_FPS)
        self.rate = float(rate) if 1 <= rate <= 240 else DEFAULT_RATE
        self._number = 0
        self._seconds = 0.0
        self._start = 0.0
        # Busy cameras and truncated files open without error and fail at the first frame.
        self._first = self._decode()
        if self._first is None:
            capture.release()
            raise UserError(
                f"{name} returns no frame: "
                + ("is another program using it?" if live else "is it a video, and complete?")
            )

    def read(self) -> Frame | None:
        """Returns the next frame; None at the end or when the source is disconnected."""
        image = self._first if self._first is not None else self._decode()
        self._first = None
        if image is None:
            return None
        frame = Frame(self._number, self._time(), cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
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

    def _time(self) -> float:
        if self.live:
            now = self._clock()
            self._start = self._start if self._number else now
            return now - self._start
        seconds = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if self._number and not self._seconds < seconds < self._seconds + 3600:
            seconds = self._seconds + 1 / self.rate  # Some containers have no timestamps.
        elif not self._number:
            seconds = 0.0
        self._seconds = seconds
        return seconds


def open_video(text: str, clock: Callable[[], float] = time.monotonic) -> VideoSource:
    """Opens a camera, video file or stream.

    Args:
        text: a camera's number or device file, a video file, or the URL of a stream.
        clock: seconds, for the timestamps of live sources.

    Raises:
        UserError: it does not exist, or returns no frame.
    """
    _silence()
    if "://" in text:
        return _open_stream(text, clock)
    path = Path(text)
    if text.isdecimal() or re.fullmatch(r"/dev/video\d+", text) or path.is_char_device():
        capture = cv2.VideoCapture()
        if not text.isdecimal():
            capture.open(text)
        elif len(text) <= MAX_CAMERA_DIGITS:
            capture.open(int(text))
        if not capture.isOpened():
            raise UserError(f"camera {text} cannot be opened: {_known_cameras()}")
        return VideoSource(capture, f"camera {text}", True, clock)
    if not path.exists():
        raise UserError(f"{text} does not exist: give a video file, a camera's number or a URL")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not a file"
        raise UserError(f"{text} is {kind}: give a video file, a camera's number or a URL")
    with path.open("rb") as file:  # Raises `PermissionError`, which OpenCV does not.
        if not file.read(1):
            raise UserError(f"{text} is empty: is it a video, and complete?")
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise UserError(f"{text} cannot be read as a video: is it one, and complete?")
    return VideoSource(capture, text, False, clock)


def _open_stream(address: str, clock: Callable[[], float]) -> VideoSource:
    name = re.sub(r"//[^/]*@", "//***@", address)
    limits = (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, cv2.CAP_PROP_READ_TIMEOUT_MSEC)
    settings = [number for limit in limits for number in (limit, round(1000 * TIMEOUT))]
    capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, settings)
    if not capture.isOpened():
        raise UserError(
            f"{name} cannot be opened as a video within {TIMEOUT:g} s: is the URL right, and "
            "can this machine reach it?"
        )
    # A video file on a web server is not live.
    live = not 0 < capture.get(cv2.CAP_PROP_FRAME_COUNT) < 1e9
    return VideoSource(capture, name, live, clock)


def _known_cameras() -> str:
    if not Path("/dev").is_dir():
        return "is it connected, and is this program allowed to use it?"
    found = sorted(str(path) for path in Path("/dev").glob("video*"))
    if found:
        return f"this machine has {', '.join(found)}; give another number, a file or a URL"
    return "this machine has no /dev/video*; give a video file or the URL of a stream instead"


def _silence() -> None:
    """Turns off the messages of OpenCV and FFmpeg; errors are reported by this module."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    if "OPENCV_LOG_LEVEL" not in os.environ:
        set_log_level(SILENT)


class VideoWriter:
    """Writes a video file, which is created with the first frame and playable once closed.

    Args:
        path: a file with one of the suffixes in `CODECS`.
        rate: frames per second.

    Raises:
        UserError: from `write` and `close`: the file cannot be written.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path = path
        self.rate = rate
        self.count = 0
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def write(self, image: np.ndarray) -> None:
        """Adds a frame RGB uint8 [H, W, 3], resized to the size of the first one."""
        if self._writer is None:
            _silence()
            width, height = (max(MIN_SIDE, side // 2 * 2) for side in image.shape[1::-1])
            self._size = (width, height)
            code = cv2.VideoWriter_fourcc(*CODECS[self.path.suffix.lower()])  # type: ignore[attr-defined,unused-ignore]
            self._writer = cv2.VideoWriter(str(self.path), code, self.rate, self._size)
            if not self._writer.isOpened():
                raise UserError(f"{self.path} cannot be written: {image.shape[1]}x{image.shape[0]}")
        if (image.shape[1], image.shape[0]) != self._size:
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        self.count += 1

    def write_until(self, image: np.ndarray, seconds: float) -> None:
        """Repeats a frame until the video is `seconds` long, or drops it if it already is.

        This records a camera with an uneven frame rate at its true speed.
        """
        while self.count <= seconds * self.rate:
            self.write(image)

    def close(self) -> None:
        if self._writer is None or not self._writer.isOpened():
            return
        self._writer.release()
        # OpenCV does not report a full disk.
        capture = cv2.VideoCapture(str(self.path))
        readable = capture.isOpened() and capture.read()[0]
        capture.release()
        if not readable:
            raise UserError(f"{self.path} could not be written completely: is the disk full?")


def check_output(path: Path, source: str, overwrite: bool) -> None:
    """Raises `UserError` if a video cannot be written to `path`, or would replace another file."""
    if "://" not in source and path.exists() and Path(source).exists() and path.samefile(source):
        raise UserError(f"{path} is the video that is read: name another file to write")
    files.check_output(path, overwrite)
