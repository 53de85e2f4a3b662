"""Validates released JPEG images and reduces them to the size that is stored."""

import cv2
import numpy as np

MAX_PIXELS = 25_000_000  # decoded, 75 MB in each thread; released faces have 0.7 million
MAX_STORED_BYTES = 12 << 20  # released faces have 0.2 MB; readers refuse records of 16 MiB
MAX_SCANS = 100  # of a progressive file, each of which decodes the whole image; usual are ten
JPEG_QUALITY = 95
_MAX_SEGMENTS = 1000  # before the image

_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = 0xDA


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Returns the (width, height) in a JPEG file's header; None if it is not a complete JPEG file.

    Nothing is decoded. The layout follows ITU-T T.81, annex B.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    size = None
    position = 2
    for _ in range(_MAX_SEGMENTS):
        if position + 4 > len(data) or data[position] != 0xFF:
            break
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == _START_OF_SCAN:
            # OpenCV decodes truncated files and fills the rest with grey, so check here.
            is_complete = data.find(b"\xff\xd9", position) >= 0
            return size if is_complete else None
        if marker in _START_OF_FRAME and size is None:
            height = int.from_bytes(data[position + 5 : position + 7], "big")
            width = int.from_bytes(data[position + 7 : position + 9], "big")
            size = (width, height) if width and height else None
        if length < 2 or not 0xC0 <= marker <= 0xFE:
            return None
        position += 2 + length
    return None


def encode_for_storage(data: bytes, max_side: int | None) -> bytes | None:
    """Returns the JPEG file to store for a released one; None if it cannot be decoded or stored.

    An image whose shorter side is at most `max_side` is stored byte for byte. A larger one is
    resized with `INTER_AREA` and re-encoded. EXIF orientation is ignored, because the pixels of
    released faces are upright as stored.

    Args:
        data: the released file.
        max_side: maximum length of the shorter side in pixels; None stores every file as released.
    """
    size = jpeg_size(data)
    if size is None or size[0] * size[1] > MAX_PIXELS or data.count(b"\xff\xda") > MAX_SCANS:
        return None
    try:
        image = cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        )
    except cv2.error:
        return None
    if image is None:
        return None
    height, width = image.shape[:2]
    if max_side is None or min(height, width) <= max_side:
        return data if len(data) <= MAX_STORED_BYTES else None
    scale = max_side / min(height, width)
    small = cv2.resize(
        image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA
    )
    encoded, jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return jpeg.tobytes() if encoded else None
