"""YuNet face detector in OpenCV: finds small, turned and occluded faces, with five landmarks.

W. Wu, H. Peng, S. Yu, "YuNet: a tiny millisecond-level face detector", Machine Intelligence
Research 20 (2023). The weights come from OpenCV's model zoo.
"""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from agenet.errors import UserError
from agenet.faces.face import Box, Detection
from agenet.faces.opencv_log import silenced
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
# The publisher's other address, which serves files stored in Git LFS.
_MIRROR = (
    "https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models/"
    "face_detection_yunet/face_detection_yunet_2023mar.onnx"
)
# The mirror is the second attempt; without a network nobody should wait long.
_RETRIES = RetryPolicy(timeout=10.0, attempts=1, max_bytes=2**20)

# Finds 91 % of faces of 25 px; 0.7 finds 79 %. Below 0.6 there are false positives in the clips.
SCORE_THRESHOLD = 0.6
# Intersection over union above which only the box with the higher score is kept.
NMS_THRESHOLD = 0.3
# The network detects faces of about 10 to 300 px. An image is searched at its own size within these
# bounds, and again at the coarse size for larger faces: without that, one in twelve FairFace images
# upscaled to 640 px is missed, and three in four upscaled to 1280 px.
_MIN_SIDE = 96
_MAX_SIDE = 1280
_COARSE_SIDE = 320
# The shorter side is padded to this. OpenCV 4.11 reads uninitialised memory when the coarsest
# feature map (stride 32) has a single row or column.
_MIN_PADDED_SIDE = 64
# Duplicates of the two searches: the smaller box lies inside the other by more than this fraction.
_MAX_INSIDE = 0.5


def find_yunet() -> Path:
    """Returns YuNet's file from the cache, after downloading and verifying it if needed.

    Raises:
        UserError: it is not cached and cannot be downloaded.
    """
    try:
        return find_file(YUNET, _RETRIES)
    except UserError as error:
        try:
            return find_file(replace(YUNET, url=_MIRROR), _RETRIES)
        except UserError:
            raise error from None


class YuNet:
    """Detects faces with YuNet, with landmarks. Not thread-safe: one instance per thread."""

    name = "yunet"

    def __init__(self, path: Path | None = None) -> None:
        """Loads the network.

        Args:
            path: an ONNX file of YuNet, which is not verified; by default that of `find_yunet`.

        Raises:
            UserError: the file is not available, or OpenCV cannot load it as YuNet.
        """
        path = find_yunet() if path is None else path
        if not path.is_file():
            raise UserError(f"{path} is not a file; YuNet's is {YUNET.file_name} from {YUNET.url}")
        try:
            with silenced():
                self._network = cv2.FaceDetectorYN.create(
                    str(path), "", (_MIN_SIDE, _MIN_SIDE), SCORE_THRESHOLD, NMS_THRESHOLD
                )
                # A file of another network fails only when it runs.
                self._search(np.zeros((_MIN_SIDE, _MIN_SIDE, 3), np.uint8), _MIN_SIDE)
        except cv2.error as error:
            raise UserError(
                f"OpenCV {cv2.__version__} cannot open {path} as YuNet; "
                f"its file is {YUNET.file_name} from {YUNET.url}"
            ) from error

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Returns the faces in an RGB image uint8 [H, W, 3], largest first."""
        if not image.size:
            return []
        side = min(max(*image.shape[:2], _MIN_SIDE), _MAX_SIDE)
        found = self._search(image, side)
        if side > _COARSE_SIDE:
            found = _merged(found + self._search(image, _COARSE_SIDE))
        return sorted(found, key=lambda face: -face.box.width * face.box.height)

    def _search(self, image: np.ndarray, side: int) -> list[Detection]:
        """Detects faces in the image scaled to a longer side of `side` pixels."""
        height, width = image.shape[:2]
        scale = side / max(height, width)
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        resized = cv2.resize(np.ascontiguousarray(image), size, interpolation=method)
        right, below = (max(_MIN_PADDED_SIDE - length, 0) for length in size)
        padded = cv2.copyMakeBorder(resized, 0, below, 0, right, cv2.BORDER_CONSTANT)
        self._network.setInputSize((padded.shape[1], padded.shape[0]))
        rows = self._network.detect(cv2.cvtColor(padded, cv2.COLOR_RGB2BGR))[1]
        found = []
        for row in [] if rows is None else rows.astype(np.float64):
            if np.isfinite(row).all() and (row[2:4] > 0).all():
                # Left, top, width, height; right eye, left eye, nose, right and left corner of the
                # mouth, as seen by the person, so from left to right in the image; score.
                points = row[:14].reshape(7, 2) * (width / size[0], height / size[1])
                box = Box(*map(float, (*points[0], *(points[0] + points[1]))))
                found.append(Detection(box, float(row[14]), points[2:].copy()))
        return found


def _merged(found: list[Detection]) -> list[Detection]:
    """Removes detections that lie inside or around one with a higher score."""
    kept: list[Detection] = []
    for face in sorted(found, key=lambda face: -face.score):
        if all(_inside(face.box, other.box) <= _MAX_INSIDE for other in kept):
            kept.append(face)
    return kept


def _inside(a: Box, b: Box) -> float:
    """The fraction of the smaller box that lies inside the other."""
    width = min(a.right, b.right) - max(a.left, b.left)
    height = min(a.bottom, b.bottom) - max(a.top, b.top)
    smaller = min(a.width * a.height, b.width * b.height)
    return max(width, 0.0) * max(height, 0.0) / smaller
