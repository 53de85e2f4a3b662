"""Reads, cuts and encodes the faces of a user's own images on all cores."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from agenet.data.claims import check_image
from agenet.data.near_duplicates import WORDS, hash_image
from agenet.data.table_faces import FaceTable
from agenet.distributed.cores import available_cores
from agenet.faces.crop import crop_square, face_square
from agenet.faces.face import Box, Detection, Detector
from agenet.faces.image_io import FileImage, ImageFileError, read_image_file

MIN_SIDE = 20  # pixels; smaller faces show neither age nor gender
JPEG_QUALITY = 95
_MIN_OVERLAP = 0.3  # of a detected face and a given box, intersection over union
_MAX_BYTES_KEPT = 1 << 20  # of a file that is stored as it is
_MAX_BYTES_PLAIN = 16 << 20  # of a file that OpenCV decodes
_CHUNK = 16  # images that a thread takes at a time
_MAX_SIDES = 4  # of an image, longer to shorter: training cuts out the central square

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class EncodedFaces:
    """N faces in a file, in the order of their table.

    Attributes:
        places: int64 [N, 2], first byte and length of each image; length 0 if it is left out.
        hashes: uint64 [N, WORDS], see `agenet.data.near_duplicates`.
        checksums: int64 [N], of the encoded images, in this process.
        sizes: int32 [N, 2], width and height of the faces as stored.
        several: bool [N], whether the largest of several detected faces was taken.
        left_out: the rows of images that are left out, by reason.
    """

    places: np.ndarray
    hashes: np.ndarray
    checksums: np.ndarray
    sizes: np.ndarray
    several: np.ndarray
    left_out: dict[str, list[int]]


def encode_faces(
    table: FaceTable, folder: Path, spool: Path, size: int, detector: Detector | None
) -> EncodedFaces:
    """Encodes the faces of a table into one file.

    With a detector the largest face of an image, or the one in its box, is cut out, turned upright
    by its landmarks, as at prediction. With boxes alone the same square is cut out upright. Without
    either the images are taken for faces that are cut out already, and stored byte for byte where
    they are small JPEG files.

    Args:
        table: the faces.
        folder: of the images.
        spool: the file to write.
        size: shorter side of the stored faces in pixels, at most.
        detector: finds the faces; None takes boxes or whole images.
    """
    count = len(table)
    places = np.zeros((count, 2), np.int64)
    hashes = np.zeros((count, WORDS), np.uint64)
    checksums = np.zeros(count, np.int64)
    sizes = np.zeros((count, 2), np.int32)
    several = np.zeros(count, bool)
    left_out: dict[str, list[int]] = {}

    def encode(rows: range) -> list["_Encoded | str"]:
        return [_encode(folder / table.path[row], _box(table, row), size, detector) for row in rows]

    # Each thread decodes images of its own; OpenCV's threads would compete with them.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with (
            ThreadPoolExecutor(available_cores()) as pool,
            spool.open("wb") as file,
            tqdm(total=count, desc="Reading", unit=" images", leave=False, disable=None) as bar,
        ):
            parts = (range(first, min(first + _CHUNK, count)) for first in range(0, count, _CHUNK))
            row = 0
            for faces in _map_ahead(pool, encode, parts, ahead=4 * available_cores()):
                for face in faces:
                    if isinstance(face, str):
                        left_out.setdefault(face, []).append(row)
                    else:
                        places[row] = file.tell(), len(face.jpeg)
                        file.write(face.jpeg)
                        hashes[row], checksums[row] = face.hash, face.checksum
                        sizes[row], several[row] = face.size, face.several
                    row += 1
                bar.update(len(faces))
    finally:
        cv2.setNumThreads(threads)
    return EncodedFaces(places, hashes, checksums, sizes, several, left_out)


@dataclass(frozen=True)
class _Encoded:
    jpeg: bytes
    hash: np.ndarray
    checksum: int
    size: tuple[int, int]
    several: bool


def _box(table: FaceTable, row: int) -> Box | None:
    if table.box is None or np.isnan(table.box[row]).any():
        return None
    return Box(*table.box[row].tolist())


def _encode(path: Path, box: Box | None, size: int, detector: Detector | None) -> "_Encoded | str":
    """A face, or why it is left out."""
    jpeg = _plain_jpeg(path)
    image = _decode(jpeg) if jpeg else None
    if image is None:
        try:
            image = read_image_file(path)
        except ImageFileError as error:
            return error.reason
    pixels, several = image.pixels, False
    if detector or box:
        found = _find(image, box, detector)
        if isinstance(found, str):
            return found
        detection, name, several = found
        square = face_square(detection, name)
        if square.side < MIN_SIDE:
            return f"a face of less than {MIN_SIDE} pixels"
        pixels = crop_square(pixels, square, min(size, round(square.side)))
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        return f"smaller than {MIN_SIDE} pixels"
    if max(height, width) > _MAX_SIDES * min(height, width):
        return f"more than {_MAX_SIDES} times as long as wide"
    is_stored = jpeg and len(jpeg) <= _MAX_BYTES_KEPT and pixels is image.pixels
    if min(height, width) > size:
        scale = size / min(height, width)
        width, height = round(width * scale), round(height * scale)
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        is_stored = False
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    if not jpeg or not is_stored:
        jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    return _Encoded(jpeg, hash_image(bgr), hash(jpeg), (width, height), several)


def _plain_jpeg(path: Path) -> bytes | None:
    """A JPEG file that OpenCV decodes rightly, at twice the speed of `read_image_file`.

    It is complete, of usual colours, not turned, and claims no more than training accepts.
    """
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES_PLAIN:
            return None
        data = path.read_bytes()
        check_image(data, 0)
    except (OSError, ValueError):
        return None
    is_plain = data.startswith(b"\xff\xd8\xff") and data.rstrip(b"\0")[-2:] == b"\xff\xd9"
    # Metadata may turn the image or say where somebody lives; Adobe's marks other colours.
    return data if is_plain and not any(mark in data for mark in (b"Exif\0", b"Adobe")) else None


def _decode(jpeg: bytes) -> FileImage | None:
    try:
        pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        return None
    return None if pixels is None else FileImage(pixels, pixels.shape[1::-1])


def _find(
    image: FileImage, box: Box | None, detector: Detector | None
) -> "tuple[Detection, str, bool] | str":
    """The face to cut out, the detector that it is like, and whether there are others."""
    if box and image.reduction > 1:
        box = Box(*(side / image.reduction for side in box))
    height, width = image.pixels.shape[:2]
    if box and (box.left >= width or box.top >= height or box.right <= 0 or box.bottom <= 0):
        return "a box outside of the image"
    if detector:
        found = detector.detect(image.pixels)
        if box:
            best = max(found, key=lambda face: _overlap(face.box, box), default=None)
            if best and _overlap(best.box, box) >= _MIN_OVERLAP:
                return best, detector.name, False
        elif found:
            return found[0], detector.name, len(found) > 1
        else:
            return "no face was found"
    assert box
    return Detection(box, score=1.0), "yunet", False


def _overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    width = min(one.right, other.right) - max(one.left, other.left)
    height = min(one.bottom, other.bottom) - max(one.top, other.top)
    common = max(width, 0.0) * max(height, 0.0)
    return common / (one.width * one.height + other.width * other.height - common)


def _map_ahead(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """Like `pool.map`, with at most `ahead` items in memory."""
    running: deque[Future[R]] = deque()
    try:
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) >= ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()
