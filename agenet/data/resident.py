"""A data set decoded once and kept, as uint8, where the computation is."""

import math
import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from agenet.data.records import Records
from agenet.data.square import to_square
from agenet.errors import UserError
from agenet.sharding import batch_sharded

PLACEMENTS = ("auto", "device", "host")
# Of a device's free memory; the rest is for the network's activations.
_DEVICE_SHARE = 0.5
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


def decode_pictures(pictures: Sequence[bytes], out: np.ndarray, *, progress: bool) -> None:
    """Decodes N pictures on all cores into the first rows of `out` uint8 [>=N, S, S, 3] RGB.

    Raises:
        UserError: if a picture cannot be decoded.
    """

    def decode(start: int) -> list[int]:
        rows = range(start, min(start + _DECODE_CHUNK, len(pictures)))
        return [row for row in rows if not decode_picture(pictures[row], out[row])]

    # One picture a thread: OpenCV's own threads would only get in each other's way.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with (
            ThreadPoolExecutor(available_cores()) as pool,
            tqdm(total=len(pictures), desc="decoding", unit=" faces", disable=not progress) as bar,
        ):
            broken = []
            for bad in pool.map(decode, range(0, len(pictures), _DECODE_CHUNK)):
                broken += bad
                bar.update(min(_DECODE_CHUNK, len(pictures) - bar.n))
    finally:
        cv2.setNumThreads(threads)
    if broken:
        raise UserError(
            f"{len(broken)} of {len(pictures)} prepared pictures do not decode (rows "
            f"{', '.join(map(str, broken[:5]))}): prepare the data set again with --overwrite"
        )


def load_faces(records: Records, rows: np.ndarray, size: int) -> np.ndarray:
    """The pictures of the given rows [K] alone: uint8 [K, size, size, 3] RGB."""
    faces = np.empty((len(rows), size, size, 3), np.uint8)
    decode_pictures([records.pictures[row] for row in rows], faces, progress=False)
    return faces


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory(device: jax.Device) -> float:
    """Bytes that a device has left; infinite if it does not tell, as a CPU does not."""
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return math.inf
    return stats["bytes_limit"] - stats["bytes_in_use"]


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
        self,
        records: Records,
        *,
        size: int,
        mesh: Mesh,
        placement: str,
        progress: bool = False,
        free_memory: Callable[[jax.Device], float] = free_memory,
    ):
        """Decodes the pictures and places them.

        Args:
            records: the data set, N pictures.
            size: side of the stored square pictures, in pixels.
            mesh: the devices that pictures are divided over and batches are made for.
            placement: "device"; "host", from where every batch is sent; or "auto", the devices
                if they have the memory.
            progress: show a progress bar.
            free_memory: tells the free bytes of a device.

        Raises:
            UserError: unknown placement, not enough memory, or a broken picture.
        """
        if placement not in PLACEMENTS:
            raise UserError(f'input.placement "{placement}" is not known: use one of {PLACEMENTS}')
        # Rows that nobody asks for, so that every device holds as many.
        padded = -(-len(records.fold) // mesh.size) * mesh.size
        self.nbytes = padded * size * size * 3
        _check_host_memory(self.nbytes, size)
        free = min(map(free_memory, mesh.local_devices))
        self.on_device = belongs_on_device(placement, self.nbytes // mesh.size, free)
        self._sharding = batch_sharded(mesh)
        self._records = records
        images = create_images(padded, size)
        decode_pictures(records.pictures, images, progress=progress)
        self._images: Any = jax.device_put(images, self._sharding) if self.on_device else images
        # XLA reads the asked rows where they lie and sends only those between the devices.
        self._gather = jax.jit(lambda images, rows: images[rows], out_shardings=self._sharding)

    def batch(self, rows: np.ndarray, mask: np.ndarray | None = None) -> dict[str, jax.Array]:
        """The batch of the given rows int [B], divided over the mesh; without `mask`, no padding.

        Returns:
            `image` uint8 [B, S, S, 3] and the columns of `label_columns`.
        """
        columns: dict[str, Any] = label_columns(self._records, rows, mask)
        if not self.on_device:
            columns["image"] = self._images[rows]
        batch = jax.device_put(columns, self._sharding)
        if self.on_device:
            batch["image"] = self._gather(self._images, rows)
        return batch


def belongs_on_device(placement: str, nbytes: int, free: float) -> bool:
    """Whether every device is to hold `nbytes`, when each has `free` bytes."""
    if placement == "device" and nbytes > free:
        raise UserError(
            f"the pictures take {nbytes / 1e9:.1f} GB of each device, which has "
            f"{free / 1e9:.1f} GB free: use --config.input.placement=host"
        )
    return placement == "device" or (placement == "auto" and nbytes <= _DEVICE_SHARE * free)


def _check_host_memory(nbytes: int, size: int) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if nbytes > 0.8 * memory:
        raise UserError(
            f"the decoded pictures take {nbytes / 1e9:.1f} GB and this machine has "
            f"{memory / 1e9:.1f} GB: use smaller ones with --config.input.size (now {size})"
        )
