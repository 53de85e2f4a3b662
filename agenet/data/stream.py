"""A data set of any size: each batch is read and decoded anew, ahead of its use."""

import weakref
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import jax
import numpy as np
from jax.sharding import Mesh

from agenet.data.decoding import allocate_images, check_decoded, decode_chunk
from agenet.data.records import Records
from agenet.data.resident import BatchRows, label_columns
from agenet.distributed.cores import available_cores
from agenet.distributed.mesh import batch_sharded, local_rows, place

# Batches prepared ahead: at least `AHEAD`, more where all cores need more to be busy, but no more
# than fit into `AHEAD_BYTES`.
AHEAD = 4
AHEAD_BYTES = 1 << 30
# Of these, batches that are already on the devices, so that copying overlaps with computing.
_PLACED = 2
_CHUNK = 16  # images that a thread takes at a time


class StreamedImages:
    """The images of a data set and their labels, of which only a few batches are in memory.

    The caller chooses the rows of each batch, so there is no iterator state to save. It uses
    threads: Grain took 1.1 to 3 times the processor time for the same images, because it copies
    them into batches, which are in newly allocated memory.
    """

    def __init__(self, records: Records, *, size: int, mesh: Mesh):
        """Reads nothing yet.

        Args:
            records: the data set.
            size: side of the square images, in pixels.
            mesh: the devices that batches are divided over.
        """
        self._records = records
        self._size = size
        self._mesh = mesh
        self._sharding = batch_sharded(mesh)
        self._buffers = _BufferPool()

    def batches(self, parts: Iterable[BatchRows]) -> Iterator[dict[str, jax.Array]]:
        """Yields the batches of the given rows int [B] and masks, as `ResidentImages.batches`.

        The iterator has its own threads, which end when it is exhausted or closed.

        Raises:
            UserError: an image cannot be read or decoded.
        """
        parts = iter(parts)
        decoding: deque[_DecodingBatch] = deque()
        placing: deque[Future[dict[str, jax.Array]]] = deque()
        # Each thread decodes images of its own; OpenCV's threads would compete with them.
        cores = available_cores()
        decoders = ThreadPoolExecutor(cores, "decoder", initializer=partial(cv2.setNumThreads, 1))
        placer = ThreadPoolExecutor(1, "placer")
        try:
            ahead = AHEAD
            while True:
                while len(decoding) + len(placing) < ahead:
                    part = next(parts, None)
                    if part is None:
                        break
                    decoding.append(self._decode(decoders, *part))
                    images = decoding[-1].images
                    ahead = max(AHEAD, -(-2 * cores * _CHUNK // len(images)))
                    ahead = max(_PLACED, min(ahead, AHEAD_BYTES // images.nbytes))
                while decoding and len(placing) < _PLACED:
                    placing.append(placer.submit(self._place, decoding.popleft()))
                if not placing:
                    return
                yield placing.popleft().result()
        finally:
            # In this order: the placer waits for the decoders.
            decoders.shutdown(cancel_futures=True)
            placer.shutdown(cancel_futures=True)

    def _decode(
        self, pool: ThreadPoolExecutor, rows: np.ndarray, mask: np.ndarray | None
    ) -> "_DecodingBatch":
        part = local_rows(self._mesh, len(rows))
        rows, mask = rows[part], None if mask is None else mask[part]
        images = self._buffers.take(len(rows), self._size)
        chunks = [slice(start, start + _CHUNK) for start in range(0, len(rows), _CHUNK)]
        encoded = self._records.images
        broken = [pool.submit(decode_chunk, encoded, rows[c], images[c]) for c in chunks]
        return _DecodingBatch(images, label_columns(self._records, rows, mask), broken)

    def _place(self, decoding: "_DecodingBatch") -> dict[str, Any]:
        broken = [row for rows in decoding.broken for row in rows.result()]
        check_decoded(broken, len(decoding.images))
        return place(decoding.columns | {"image": decoding.images}, self._sharding)


@dataclass(frozen=True)
class _DecodingBatch:
    """This process's part of a batch; `images` are complete once all `broken` have results."""

    images: np.ndarray
    columns: dict[str, np.ndarray]
    broken: list[Future[list[int]]]  # for each chunk, the rows that did not decode


class _BufferPool:
    """Memory for batches, reused once no array refers to it any more, JAX's arrays included.

    Touching new memory for every batch takes a third of the time of decoding.
    """

    def __init__(self) -> None:
        self._free: defaultdict[tuple[int, int], list[np.ndarray]] = defaultdict(list)

    def take(self, count: int, size: int) -> np.ndarray:
        """A buffer uint8 [count, size, size, 3]."""
        free = self._free[count, size]
        buffer = free.pop() if free else allocate_images(count, size)
        # A new array, not a view, so that all views of it keep this object alive.
        images = np.frombuffer(buffer.data, np.uint8)
        weakref.finalize(images, free.append, buffer).atexit = False
        return images.reshape(buffer.shape)
