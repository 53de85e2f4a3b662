"""YuNet face detector in ONNX Runtime: finds small, turned and occluded faces, with landmarks.

W. Wu, H. Peng, S. Yu, "YuNet: a tiny millisecond-level face detector", Machine Intelligence
Research 20 (2023). The weights come from OpenCV's model zoo, see the `.md` file beside them. One
search gives the boxes of OpenCV's `FaceDetectorYN`, in half the time.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from agenet.errors import UserError, printable
from agenet.faces.face import Box, Detection
from agenet.faces.forks import abandon, restart_after_fork
from agenet.faces.onnx_file import MAX_BYTES, open_network, try_network
from agenet.faces.pyramid import levels, tiles

log = logging.getLogger(__name__)

BUNDLED_FILE = Path(__file__).with_name("face_detection_yunet_2023mar.onnx")

# Finds 91 % of faces of 25 px; 0.7 finds 79 %. Below 0.6 there are false positives in the clips.
SCORE_THRESHOLD = 0.6
# Intersection over union above which only the box with the higher score is kept.
NMS_THRESHOLD = 0.3
# The boxes with the highest scores that compete in one search, as in OpenCV.
_MAX_CANDIDATES = 5000
# The boxes with the highest scores in all searches of an image: suppression takes the square of
# their number of steps.
_MAX_FACES = 10_000
# Duplicates of several searches: the smaller box lies inside the other by more than this fraction.
_MAX_INSIDE = 0.5
# A box that is so near to an edge between tiles, in pixels, may be that of a part of a face. The
# next tile shows all of it, or the next level if it is larger than the tiles' overlap.
_CUT_MARGIN = 8.0
# Pixels; only a damaged network gives a smaller box, or one further away.
_MIN_SIDE, _MAX_COORDINATE = 0.1, 1e6

# Pixels of the image per row and column of the three feature maps.
_STRIDES = (8, 16, 32)
# The shorter side is padded to this. OpenCV 4.11 reads uninitialised memory when the coarsest
# feature map has a single row or column.
_MIN_PADDED_SIDE = 64
# Outputs for each stride [1, N, values] and their number of values: class and object scores, boxes,
# landmarks.
_VALUES = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
_OUTPUTS = [f"{name}_{stride}" for stride in _STRIDES for name in _VALUES]
_SCORE = 14  # column of the rows of `YuNet.search`

Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]


class YuNet:
    """Detects faces with YuNet, with landmarks.

    A pickle holds the content of the file, and opens the network again; so does a forked process.
    """

    name = "yunet"
    thread_safe = True

    def __init__(self, path: Path | None = None, threads: int | None = None) -> None:
        """Opens the network.

        Args:
            path: an ONNX file of YuNet; by default the bundled one.
            threads: of one search; by default `agenet.faces.onnx_file.THREADS`.

        Raises:
            UserError: the file cannot be read, or ONNX Runtime cannot run it as YuNet.
        """
        self._path, self._threads = path or BUNDLED_FILE, threads
        self._content = _read(self._path)
        self._start()

    def __getstate__(self) -> tuple[Any, ...]:
        return self._path, self._threads, self._content

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._path, self._threads, self._content = state
        self._start()

    def _start(self) -> None:
        self._session: Any = None
        try:
            if self._path != BUNDLED_FILE:
                try_network(self._content, _OUTPUTS)
            self.search(np.zeros((64, 96, 3), np.uint8))  # Outputs may have other shapes.
        except ImportError as error:
            raise UserError(
                'ONNX Runtime is not installed: pip install onnxruntime, or use the detector "hog"'
            ) from error
        except Exception as error:  # ONNX Runtime raises errors of many types.
            reason = printable(str(error).strip().partition("\n")[0], 200)
            raise UserError(
                f"{self._path} cannot be used as YuNet: {reason}; the bundled one is used without "
                "naming a file"
            ) from error
        restart_after_fork(self)

    def restart(self) -> None:
        """Has the session, whose threads a fork loses, opened again when it is used."""
        abandon(self._session)
        self._session = None

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Returns the faces in an RGB image uint8 [H, W, 3], largest first.

        Large images are searched in tiles: memory is bounded, time is proportional to the pixels.
        """
        if not image.size:
            return []
        found = []
        for level in levels(image):
            height, width = level.image.shape[:2]
            for left, top, tile in tiles(level.image):
                rows = self.search(tile)
                right, bottom = left + tile.shape[1], top + tile.shape[0]
                inner = left > 0, top > 0, right < width, bottom < height
                rows = rows[~_is_cut(rows, tile.shape, inner)]
                shift = np.tile([left, top], 7)
                shift[2:4] = 0  # width and height
                rows[:, :_SCORE] = (rows[:, :_SCORE] + shift) * np.tile(level.scale, 7)
                found.append(rows)
        if not found:
            return []
        rows = np.concatenate(found)
        if len(found) > 1:
            if len(rows) > _MAX_FACES:
                log.warning("an image shows more than %s faces: the others are ignored", _MAX_FACES)
            rows = _suppress(rows, _inside, _MAX_INSIDE, _MAX_FACES)
        by_area = np.argsort(-rows[:, 2] * rows[:, 3], kind="stable")
        return [_detection(row) for row in rows[by_area]]

    def search(self, image: np.ndarray) -> np.ndarray:
        """Searches an RGB image uint8 [H, W, 3] once, at its own size.

        Returns:
            float64 [N, 15] in pixels, like `cv2.FaceDetectorYN.detect`, with the highest score
            first: left, top, width and height of the box; x and y of each of five landmarks: right
            eye, left eye, nose, right and left corner of the mouth, as seen by the person, so from
            left to right in the image; score.

        Raises:
            ValueError: the outputs of the network are not those of YuNet.
        """
        height, width = image.shape[:2]
        padded_height, padded_width = (
            max(-(-side // _STRIDES[-1]) * _STRIDES[-1], _MIN_PADDED_SIDE)
            for side in (height, width)
        )
        pixels = np.zeros((1, 3, padded_height, padded_width), np.float32)
        for channel, values in enumerate(reversed(cv2.split(image))):  # to BGR
            pixels[0, channel, :height, :width] = values
        session = self._session
        if session is None:
            session = self._session = open_network(self._content, self._threads)
        outputs = iter(session.run(_OUTPUTS, {session.get_inputs()[0].name: pixels}))
        found = []
        for stride in _STRIDES:
            maps = [next(outputs) for _ in _VALUES]
            found.append(_decode(maps, stride, padded_height // stride, padded_width // stride))
        return _suppress(np.concatenate(found), _overlap, NMS_THRESHOLD, _MAX_CANDIDATES)


def _read(path: Path) -> bytes:
    if not path.is_file():
        advice = "install agenet again" if path == BUNDLED_FILE else "give the path of an ONNX file"
        raise UserError(f"{path} is not a file: {advice}")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES // 2**20} MB: it is not YuNet's file")
    return content


def _decode(maps: Sequence[np.ndarray], stride: int, rows: int, columns: int) -> np.ndarray:
    """Decodes one feature map to the faces above the threshold, float64 [N, 15]."""
    for name, values, output in zip(_VALUES, _VALUES.values(), maps, strict=True):
        if output.shape != (1, rows * columns, values):
            raise ValueError(f"its output {name}_{stride} has the shape {list(output.shape)}")
    cls, obj, box, points = (output[0] for output in maps)
    score = np.sqrt(np.clip(cls[:, 0], 0, 1) * np.clip(obj[:, 0], 0, 1))
    places = np.flatnonzero(score >= SCORE_THRESHOLD)
    cell = np.stack([places % columns, places // columns], axis=1)
    faces = np.empty((len(places), 15))
    with np.errstate(over="ignore"):
        size = np.exp(box[places, 2:], dtype=np.float64) * stride
    faces[:, :2] = (cell + box[places, :2]) * stride - size / 2
    faces[:, 2:4] = size
    faces[:, 4:_SCORE] = (np.tile(cell, 5) + points[places]) * stride
    faces[:, _SCORE] = score[places]
    return faces[(np.abs(faces) < _MAX_COORDINATE).all(axis=1) & (size > _MIN_SIDE).all(axis=1)]


def _is_cut(
    rows: np.ndarray, shape: Sequence[int], inner: tuple[bool, bool, bool, bool]
) -> np.ndarray:
    """Whether boxes touch those edges of a tile [H, W, 3] beyond which the image continues.

    `inner` says so for its left, top, right and bottom.
    """
    upper_left, lower_right = rows[:, :2], rows[:, :2] + rows[:, 2:4]
    distances = np.concatenate([upper_left, (shape[1], shape[0]) - lower_right], axis=1)
    return np.any((distances < _CUT_MARGIN) & inner, axis=1)


def _suppress(
    rows: np.ndarray, measure: Measure, limit: float, most: int | None = None
) -> np.ndarray:
    """Non-maximum suppression: keeps boxes whose measure with no better one exceeds the limit."""
    order = np.argsort(-rows[:, _SCORE], kind="stable")[:most]
    boxes = rows[order, :4]
    kept = []
    while order.size:
        kept.append(order[0])
        far = measure(boxes[0], boxes[1:]) <= limit
        order, boxes = order[1:][far], boxes[1:][far]
    return rows[kept]


def _overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes in whole pixels, as in OpenCV: [N]."""
    box, others = np.trunc(box), np.trunc(others)
    shared = _intersection(box, others)
    return shared / np.maximum(_area(box) + _area(others) - shared, 1.0)


def _inside(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The fraction of the smaller box that lies inside the other: [N]."""
    return _intersection(box, others) / np.minimum(_area(box), _area(others))


def _intersection(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    upper_left = np.maximum(box[:2], others[:, :2])
    lower_right = np.minimum(box[:2] + box[2:4], others[:, :2] + others[:, 2:4])
    return np.maximum(lower_right - upper_left, 0).prod(axis=1)


def _area(boxes: np.ndarray) -> np.ndarray:
    return boxes[..., 2] * boxes[..., 3]


def _detection(row: np.ndarray) -> Detection:
    left, top, width, height = map(float, row[:4])
    box = Box(left, top, left + width, top + height)
    return Detection(box, float(row[_SCORE]), row[4:_SCORE].reshape(5, 2).copy())
