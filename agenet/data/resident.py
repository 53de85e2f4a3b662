"""A data set decoded once and kept, as uint8, where the computation is."""

import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from agenet.data.records import Records
from agenet.data.square import to_square
from agenet.data.stored import read_pictures
from agenet.distributed.mesh import batch_sharded, local_part, make_take, place
from agenet.errors import UserError

# Rows int [B] of a data set that make a batch, and bool [B], False for padding; None: no padding.
Part = tuple[np.ndarray, np.ndarray | None]

_DECODE_CHUNK = 64
_NO_MEMORY = -4  # as OpenCV has it
# Faces stand upright as their pixels are stored, whatever Exif data say, as in preparation. Grey
# pictures stay grey until they have their size: that is a third of the work.
_READ_FLAGS = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION


def decode_picture(picture: bytes, out: np.ndarray) -> bool:
    """Decodes a JPEG or PNG into `out` uint8 [S, S, 3] RGB; False if it is not a picture.

    The shorter side is brought to S and the middle square kept.
    """
    try:
        image = cv2.imdecode(np.frombuffer(picture, np.uint8), _READ_FLAGS)
    except cv2.error as error:
        if error.code == _NO_MEMORY:
            raise MemoryError from error
        return False
    if image is None:
        return False
    image = to_square(image, out.shape[0])
    cv2.cvtColor(image, cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB, dst=out)
    return True


def decode_pictures(
    pictures: Sequence[bytes], rows: np.ndarray, out: np.ndarray, *, progress: bool = False
) -> None:
    """Decodes the given rows [K] on all cores into the first of `out` uint8 [>=K, S, S, 3] RGB.

    Raises:
        UserError: if a picture cannot be read or decoded.
    """

    def decode(start: int) -> list[int]:
        part = slice(start, start + _DECODE_CHUNK)
        return decode_some(pictures, rows[part], out[part])

    # One picture a thread: OpenCV's own threads would only get in each other's way.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with (
            ThreadPoolExecutor(available_cores()) as pool,
            tqdm(total=len(rows), desc="decoding", unit=" faces", disable=not progress) as bar,
        ):
            broken = []
            for bad in pool.map(decode, range(0, len(rows), _DECODE_CHUNK)):
                broken += bad
                bar.update(min(_DECODE_CHUNK, len(rows) - bar.n))
    finally:
        cv2.setNumThreads(threads)
    check_decoded(broken, len(rows))


def decode_some(pictures: Sequence[bytes], rows: np.ndarray, out: np.ndarray) -> list[int]:
    """Decodes the given rows [K] into `out` uint8 [>=K, S, S, 3]; those that are no pictures."""
    encoded = zip(rows.tolist(), read_pictures(pictures, rows), out, strict=False)
    return [row for row, picture, image in encoded if not decode_picture(picture, image)]


def check_decoded(broken: Sequence[int], count: int) -> None:
    """Raises `UserError` if of `count` pictures those of the rows `broken` did not decode."""
    if broken:
        raise UserError(
            f"{len(broken)} of {count} prepared pictures do not decode (rows "
            f"{', '.join(map(str, broken[:5]))}): prepare the data set again with --overwrite"
        )


def load_faces(records: Records, rows: np.ndarray, size: int) -> np.ndarray:
    """The pictures of the given rows [K] alone: uint8 [K, size, size, 3] RGB."""
    faces = np.empty((len(rows), size, size, 3), np.uint8)
    decode_pictures(records.pictures, rows, faces)
    return faces


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def create_images(count: int, size: int) -> np.ndarray:
    """Black pictures uint8 [count, size, size, 3] that a CPU device takes over without a copy.

    JAX's CPU devices do so if an array is aligned, as pages are. NumPy would ask for huge pages
    besides, for which Linux may have to move much else first: several times the time of decoding.
    """
    pages = mmap.mmap(-1, count * size * size * 3, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, np.uint8).reshape(count, size, size, 3)


def label_columns(
    records: Records, rows: np.ndarray, mask: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """A batch of the given rows int [B] without its pictures; no padding without `mask`.

    Returns:
        An int32 [B] of labels per task, `age_low`, `age_high` and `row`, int32 [B], and `mask`
        bool [B].
    """
    columns = {task: labels[rows] for task, labels in records.labels.items()}
    columns |= {"age_low": records.age_low[rows], "age_high": records.age_high[rows]}
    columns["row"] = rows.astype(np.int32)
    columns["mask"] = np.ones(len(rows), bool) if mask is None else mask
    return columns


class Resident:
    """All pictures of a data set and their labels, ready to be drawn from by row."""

    def __init__(
        self, records: Records, *, size: int, mesh: Mesh, on_device: bool, progress: bool = False
    ):
        """Decodes the pictures and places them.

        Args:
            records: the data set, N pictures.
            size: side of the stored square pictures, in pixels.
            mesh: the devices that pictures are divided over and batches are made for.
            on_device: keep them there, or else on the host, from where every batch is sent.
            progress: show a progress bar.

        Raises:
            UserError: a broken picture.
        """
        count = len(records.fold)
        rows = np.arange(count)
        if on_device:
            # Rows that nobody asks for, so that every device holds as many.
            count = -(-count // mesh.size) * mesh.size
            part = local_part(mesh, count)
            rows, count = rows[part], part.stop - part.start
        images = create_images(count, size)
        decode_pictures(records.pictures, rows, images, progress=progress)
        self._mesh = mesh
        self._on_device = on_device
        self._sharding = batch_sharded(mesh)
        self._records = records
        self._images: Any = place(images, self._sharding) if on_device else images
        self._take = make_take(mesh)

    def batches(self, parts: Iterable[Part]) -> Iterator[dict[str, jax.Array]]:
        """As `batch` has it, for each of the given rows and masks."""
        for rows, mask in parts:
            yield self.batch(rows, mask)

    def batch(self, rows: np.ndarray, mask: np.ndarray | None = None) -> dict[str, jax.Array]:
        """The batch of the given rows int [B], divided over the mesh; without `mask`, no padding.

        Returns:
            `image` uint8 [B, S, S, 3] and the columns of `label_columns`.
        """
        part = local_part(self._mesh, len(rows))
        own = rows[part]
        columns = label_columns(self._records, own, None if mask is None else mask[part])
        if not self._on_device:
            columns["image"] = self._images[own]
        batch = place(columns, self._sharding)
        if self._on_device:
            batch["image"] = self._take(self._images, rows)
        return batch
