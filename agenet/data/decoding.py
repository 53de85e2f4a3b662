"""Decodes prepared images on all cores, into squares of one size."""

import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from tqdm import tqdm

from agenet.data.records import Records
from agenet.data.stored import read_images
from agenet.distributed.cores import available_cores
from agenet.errors import UserError

_CHUNK = 64  # images that a thread takes at a time
_NO_MEMORY = -4  # OpenCV's error code
# As in preparation, the EXIF orientation is ignored: the stored pixels are upright. Grey images
# are converted to RGB after resizing, which takes a third of the time.
_READ_FLAGS = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION


def to_square(image: np.ndarray, size: int) -> np.ndarray:
    """Crops an image uint8 [H, W] or [H, W, C] to its central square and resizes it to `size`.

    Training and serving share this.
    """
    height, width = image.shape[:2]
    if height != width:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = np.ascontiguousarray(image[top : top + side, left : left + side])
    # Averaging avoids aliasing where the image shrinks.
    interpolation = cv2.INTER_AREA if image.shape[0] > size else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=interpolation)


def decode_image(encoded: bytes, out: np.ndarray) -> bool:
    """Decodes a JPEG or PNG into `out` uint8 [S, S, 3] RGB, see `to_square`.

    Returns:
        False if it is not an image.
    """
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), _READ_FLAGS)
    except cv2.error as error:
        if error.code == _NO_MEMORY:
            raise MemoryError from error
        return False
    if image is None:
        return False
    image = to_square(image, out.shape[0])
    cv2.cvtColor(image, cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB, dst=out)
    return True


def decode_images(
    images: Sequence[bytes], rows: np.ndarray, out: np.ndarray, *, progress: bool = False
) -> None:
    """Decodes the images of `rows` [K] on all cores into the first K of `out` uint8 [.., S, S, 3].

    Raises:
        UserError: an image cannot be read or decoded.
    """

    def decode(start: int) -> list[int]:
        part = slice(start, start + _CHUNK)
        return decode_chunk(images, rows[part], out[part])

    # Each thread decodes images of its own; OpenCV's threads would compete with them.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with (
            ThreadPoolExecutor(available_cores()) as pool,
            tqdm(total=len(rows), desc="decoding", unit=" faces", disable=not progress) as bar,
        ):
            broken = []
            for bad in pool.map(decode, range(0, len(rows), _CHUNK)):
                broken += bad
                bar.update(min(_CHUNK, len(rows) - bar.n))
    finally:
        cv2.setNumThreads(threads)
    check_decoded(broken, len(rows))


def decode_chunk(images: Sequence[bytes], rows: np.ndarray, out: np.ndarray) -> list[int]:
    """As `decode_images`, in this thread; returns the rows that did not decode."""
    encoded = zip(rows.tolist(), read_images(images, rows), out, strict=False)
    return [row for row, image, decoded in encoded if not decode_image(image, decoded)]


def check_decoded(broken: Sequence[int], count: int) -> None:
    """Raises `UserError` if any rows `broken`, of `count` images, did not decode."""
    if broken:
        raise UserError(
            f"{len(broken)} of {count} prepared images do not decode (rows "
            f"{', '.join(map(str, broken[:5]))}): prepare the data set again with --overwrite"
        )


def load_faces(records: Records, rows: np.ndarray, size: int) -> np.ndarray:
    """Decodes the images of `rows` [K]: uint8 [K, size, size, 3] RGB."""
    faces = np.empty((len(rows), size, size, 3), np.uint8)
    decode_images(records.images, rows, faces)
    return faces


def allocate_images(count: int, size: int) -> np.ndarray:
    """Zeros uint8 [count, size, size, 3] that a CPU device of JAX uses without a copy.

    JAX needs aligned memory for that. NumPy's large arrays ask Linux for huge pages, for which it
    may have to move other memory first: that takes several times as long as decoding.
    """
    pages = mmap.mmap(-1, count * size * size * 3, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, np.uint8).reshape(count, size, size, 3)
