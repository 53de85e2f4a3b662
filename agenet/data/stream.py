"""A data set of any size: every batch is read and decoded anew, ahead of its use."""

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

from agenet.data.records import Records
from agenet.data.resident import (
    Part,
    available_cores,
    check_decoded,
    create_images,
    decode_some,
    label_columns,
)
from agenet.distributed.mesh import batch_sharded, local_part, place

# Batches that are made ahead, or as many as keep all cores busy, but no more bytes than that.
AHEAD = 4
AHEAD_BYTES = 1 << 30
# Of these, what is placed on the devices, which a copy reaches beside the computation.
_PLACED = 2
# Pictures that a thread takes at a time.
_CHUNK = 16


class Stream:
    """The pictures of a data set and their labels, in memory only for a few batches.

    Which rows a batch has is given from outside: nothing is shuffled here, and nothing to be saved.
    Plain threads, for Grain took 1.1 to 3 times the processor's time for the same pictures: it
    copies them into batches, and those lie in new memory.
    """

    def __init__(self, records: Records, *, size: int, mesh: Mesh):
        """Reads nothing.

        Args:
            records: the data set.
            size: side of the square pictures, in pixels.
            mesh: the devices that batches are made for.
        """
        self._records = records
        self._size = size
        self._mesh = mesh
        self._sharding = batch_sharded(mesh)
        self._slabs = _Slabs()

    def batches(self, parts: Iterable[Part]) -> Iterator[dict[str, jax.Array]]:
        """The batches of the given rows int [B] and masks, as `Resident.batches` has them.

        The iterator has threads of its own, which end with it or when it is closed.

        Raises:
            UserError: a picture cannot be read or decoded.
        """
        parts = iter(parts)
        decoding: deque[_Decoding] = deque()
        placing: deque[Future[dict[str, jax.Array]]] = deque()
        # One picture a thread: OpenCV's own threads would only get in each other's way.
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
            # In this order: who places waits for those who decode.
            decoders.shutdown(cancel_futures=True)
            placer.shutdown(cancel_futures=True)

    def _decode(
        self, pool: ThreadPoolExecutor, rows: np.ndarray, mask: np.ndarray | None
    ) -> "_Decoding":
        part = local_part(self._mesh, len(rows))
        rows, mask = rows[part], None if mask is None else mask[part]
        images = self._slabs.take(len(rows), self._size)
        chunks = [slice(start, start + _CHUNK) for start in range(0, len(rows), _CHUNK)]
        pictures = self._records.pictures
        broken = [pool.submit(decode_some, pictures, rows[c], images[c]) for c in chunks]
        return _Decoding(images, label_columns(self._records, rows, mask), broken)

    def _place(self, decoding: "_Decoding") -> dict[str, Any]:
        broken = [row for rows in decoding.broken for row in rows.result()]
        check_decoded(broken, len(decoding.images))
        return place(decoding.columns | {"image": decoding.images}, self._sharding)


@dataclass(frozen=True)
class _Decoding:
    """A batch of this process under way: `images` are there when `broken` rows are known."""

    images: np.ndarray
    columns: dict[str, np.ndarray]
    broken: list[Future[list[int]]]


class _Slabs:
    """Memory for batches, used again once nobody holds an array in it, JAX included.

    To touch as much new memory for every batch takes a third of the time of decoding.
    """

    def __init__(self) -> None:
        self._free: defaultdict[tuple[int, int], list[np.ndarray]] = defaultdict(list)

    def take(self, count: int, size: int) -> np.ndarray:
        """Room for uint8 [count, size, size, 3]."""
        free = self._free[count, size]
        slab = free.pop() if free else create_images(count, size)
        # Not a view of an array, so that it is what all views of it keep alive.
        images = np.frombuffer(slab.data, np.uint8)
        weakref.finalize(images, free.append, slab).atexit = False
        return images.reshape(slab.shape)
