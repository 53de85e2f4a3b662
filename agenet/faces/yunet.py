"""YuNet through OpenCV: small, turned and covered faces too, with five landmarks.

W. Wu, H. Peng, S. Yu, "YuNet: a tiny millisecond-level face detector", Machine Intelligence
Research 20 (2023). The network's file comes from OpenCV's model zoo.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from agenet.errors import UserError
from agenet.faces.face import Box, Detection
from agenet.faces.opencv import SILENT, set_log_level
from agenet.weights.cache import find_file
from agenet.weights.download import RetryPolicy
from agenet.weights.known import FileHash, KnownWeights
from agenet.weights.spec import InputSpec

YUNET = KnownWeights(
    name="opencv/yunet.2023mar",
    model="yunet",
    flavour="",
    source="faces",
    file_name="face_detection_yunet_2023mar.onnx",
    url="https://huggingface.co/opencv/face_detection_yunet/resolve/"
    "3cc26e7f1014a5ee5d74a42acee58bafc9d0a310/face_detection_yunet_2023mar.onnx",
    hash=FileHash("sha256", "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"),
    licence="MIT",
    input=InputSpec(640, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear", 1.0),
    classes={},
)
# Its publisher's other address, which serves what Git LFS keeps.
_MIRROR = (
    "https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models/"
    "face_detection_yunet/face_detection_yunet_2023mar.onnx"
)
# The mirror is the second attempt; whoever is without a network should not wait for long.
_RETRIES = RetryPolicy(timeout=10.0, attempts=1, max_bytes=2**20)

# Of faces of 25 px 91 % are found, 79 % with 0.7. Below 0.6 the clips have finds that are no faces.
SCORE_THRESHOLD = 0.6
# Of two boxes with a greater intersection over union the one of the lower score goes.
NMS_THRESHOLD = 0.3
# The network knows faces of about 10 to 300 px. A picture is searched at its own size within these
# bounds, and again at the coarse size for the faces that are too large: of FairFace pictures
# enlarged to 640 px every twelfth is missed without, to 1280 px three of four.
_MIN_SIDE = 96
_MAX_SIDE = 1280
_COARSE_SIDE = 320
# The shorter side is padded to this. OpenCV 4.11 finds faces where memory was not set when the
# coarsest features, one for 32 px, have a single row or column.
_NARROWEST = 64
# Between the two searches: of two boxes of which one lies in the other by more than this part.
_INSIDE = 0.5


def find_yunet() -> Path:
    """The verified file of YuNet: from the cache, or else downloaded into it.

    Raises:
        UserError: it cannot be had.
    """
    try:
        return find_file(YUNET, _RETRIES)
    except UserError as error:
        try:
            return find_file(replace(YUNET, url=_MIRROR), _RETRIES)
        except UserError:
            raise error from None


class YuNet:
    """Faces by YuNet, with landmarks. Not for two threads at once: each needs its own."""

    name = "yunet"

    def __init__(self, path: Path | None = None) -> None:
        """Opens the network.

        Args:
            path: its file, which is not verified; by default that of `find_yunet`.

        Raises:
            UserError: the file cannot be had, or OpenCV cannot open it as YuNet.
        """
        path = find_yunet() if path is None else path
        if not path.is_file():
            raise UserError(f"{path} is not a file; YuNet's is {YUNET.file_name} from {YUNET.url}")
        try:
            with _quiet():
                self._network = cv2.FaceDetectorYN.create(
                    str(path), "", (_MIN_SIDE, _MIN_SIDE), SCORE_THRESHOLD, NMS_THRESHOLD
                )
                # Another network shows itself only when it runs.
                self._search(np.zeros((_MIN_SIDE, _MIN_SIDE, 3), np.uint8), _MIN_SIDE)
        except cv2.error as error:
            raise UserError(
                f"OpenCV {cv2.__version__} cannot open {path} as YuNet; "
                f"its file is {YUNET.file_name} from {YUNET.url}"
            ) from error

    def detect(self, image: np.ndarray) -> list[Detection]:
        """The faces in an RGB picture uint8 [H, W, 3], the largest first."""
        if not image.size:
            return []
        side = min(max(*image.shape[:2], _MIN_SIDE), _MAX_SIDE)
        found = self._search(image, side)
        if side > _COARSE_SIDE:
            found = _merged(found + self._search(image, _COARSE_SIDE))
        return sorted(found, key=lambda face: -face.box.width * face.box.height)

    def _search(self, image: np.ndarray, side: int) -> list[Detection]:
        """What is found in the picture scaled to a longer side of `side` pixels."""
        height, width = image.shape[:2]
        scale = side / max(height, width)
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        resized = cv2.resize(np.ascontiguousarray(image), size, interpolation=method)
        right, below = (max(_NARROWEST - length, 0) for length in size)
        padded = cv2.copyMakeBorder(resized, 0, below, 0, right, cv2.BORDER_CONSTANT)
        self._network.setInputSize((padded.shape[1], padded.shape[0]))
        rows = self._network.detect(cv2.cvtColor(padded, cv2.COLOR_RGB2BGR))[1]
        found = []
        for row in [] if rows is None else rows.astype(np.float64):
            if np.isfinite(row).all() and (row[2:4] > 0).all():
                # Left, top, width, height; right eye, left eye, nose, right and left corner of the
                # mouth, as their owner has them, which is from left to right in the picture; score.
                points = row[:14].reshape(7, 2) * (width / size[0], height / size[1])
                box = Box(*map(float, (*points[0], *(points[0] + points[1]))))
                found.append(Detection(box, float(row[14]), points[2:].copy()))
        return found


def _merged(found: list[Detection]) -> list[Detection]:
    """Without what lies in, or around, a detection of a higher score."""
    kept: list[Detection] = []
    for face in sorted(found, key=lambda face: -face.score):
        if all(_inside(face.box, other.box) <= _INSIDE for other in kept):
            kept.append(face)
    return kept


def _inside(a: Box, b: Box) -> float:
    """Which part of the smaller box lies in the other."""
    width = min(a.right, b.right) - max(a.left, b.left)
    height = min(a.bottom, b.bottom) - max(a.top, b.top)
    smaller = min(a.width * a.height, b.width * b.height)
    return max(width, 0.0) * max(height, 0.0) / smaller


_log_level = threading.Lock()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without OpenCV's own lines: of a file that it cannot read, of targets that it lacks."""
    with _log_level:
        level = set_log_level(SILENT)
        try:
            yield
        finally:
            set_log_level(level)
