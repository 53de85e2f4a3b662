"""What the processes that decode untrusted images do: from the bytes of a file to its faces."""

import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection, parent_process

import cv2
import numpy as np

from agenet.data.decoding import to_square
from agenet.errors import UserError
from agenet.faces.detectors import create_detector
from agenet.faces.face import Box, Detection, Detector
from agenet.faces.image_io import ImageFileError, read_image_bytes
from agenet.faces.selection import FaceSelection
from agenet.inference.finder import FaceFinder

# Beside what the process takes at its start: an image takes up to 0.8 GB.
MEMORY = 1_500_000_000

_detector: Detector | None = None


@dataclass(frozen=True)
class Task:
    """An image and what to look for in it.

    Attributes:
        content: of the file.
        size: side of the faces to cut out, in pixels.
        cropped: the image is one face.
        select: the faces to cut out.
        max_pixels: of the image.
        seconds: that decoding may take.
    """

    content: bytes
    size: int
    cropped: bool
    select: FaceSelection
    max_pixels: int
    seconds: float


@dataclass(frozen=True)
class Found:
    """The N faces of an image.

    Attributes:
        size: width and height of the image, upright; None if it could not be read.
        detections: in its pixels.
        squares: the faces as the network takes them, uint8 [N, S, S, 3].
        error: why it could not be read.
    """

    size: tuple[int, int] | None = None
    detections: Sequence[Detection] = ()
    squares: Sequence[np.ndarray] = ()
    error: str = ""


def start(detector: str) -> int:
    """Prepares this process, which a server owns, and returns its identifier.

    It may not write files and not take more than `MEMORY`, prints nothing, ends with its parent
    and leaves signals to it.

    Raises:
        UserError: there is no such detector.
    """
    global _detector
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)
    _detector = create_detector(detector, threads=1)
    _detector.detect(np.zeros((64, 64, 3), np.uint8))
    _limit()
    return os.getpid()


def _end_with_parent() -> None:
    # A pool's process would wait for ever for the next task of a parent that was killed.
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _limit() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = _data_bytes() + MEMORY
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _data_bytes() -> int:
    """What Linux counts towards RLIMIT_DATA in this process."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            return int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):  # Not Linux.
        return 0


def find_faces(task: Task) -> Found:
    """Reads an image and cuts its faces out."""
    try:
        return _find(task)
    except ImageFileError as error:
        return Found(error=error.reason)
    except MemoryError:
        return Found(error="too large for the memory that an image may take")
    except UserError as error:
        return Found(error=str(error))
    except cv2.error as error:
        if error.code == cv2.Error.STS_NO_MEM:
            return Found(error="too large for the memory that an image may take")
        raise RuntimeError(str(error)) from None  # One that can be pickled.


def _find(task: Task) -> Found:
    read = partial(read_image_bytes, task.content, max_pixels=task.max_pixels, seconds=task.seconds)
    image = read(to_detect=not task.cropped)
    if task.cropped:
        height, width = image.pixels.shape[:2]
        whole = Detection(Box(0, 0, width, height), score=1.0).scaled(image.reduction)
        return Found(image.size, [whole], [to_square(image.pixels, task.size)])
    assert _detector is not None
    finder = FaceFinder(_detector, task.size)
    detections = task.select(finder.detect(image.pixels), image.reduction)
    if image.to_detect and any(map(finder.is_coarse, detections)):
        reduced, image = image.reduction, read(to_detect=False)
        detections = [found.scaled(reduced // image.reduction) for found in detections]
    squares = finder.crop(image.pixels, detections)
    return Found(image.size, [found.scaled(image.reduction) for found in detections], squares)
