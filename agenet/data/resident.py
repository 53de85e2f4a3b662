"""A data set that is decoded once and kept as uint8, on the devices or on the host."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from agenet.data.decoding import allocate_images, decode_images
from agenet.data.records import Records
from agenet.distributed.mesh import batch_sharded, local_rows, make_take, place

# The rows int [B] of a batch, and its mask bool [B], False for padding; None: no padding.
BatchRows = tuple[np.ndarray, np.ndarray | None]


def label_columns(
    records: Records, rows: np.ndarray, mask: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """A batch of the rows int [B] without its images; without `mask` nothing is padding.

    Returns:
        Labels int32 [B] for each task, `age_low`, `age_high` and `row` int32 [B], `mask` bool [B].
    """
    columns = {task: labels[rows] for task, labels in records.labels.items()}
    columns |= {"age_low": records.age_low[rows], "age_high": records.age_high[rows]}
    columns["row"] = rows.astype(np.int32)
    columns["mask"] = np.ones(len(rows), bool) if mask is None else mask
    return columns


class ResidentImages:
    """All decoded images of a data set and their labels, from which batches are taken by row."""

    def __init__(
        self, records: Records, *, size: int, mesh: Mesh, on_device: bool, progress: bool = False
    ):
        """Decodes the images and places them.

        Args:
            records: the data set, N images.
            size: side of the stored square images, in pixels.
            mesh: the devices that images and batches are divided over.
            on_device: keep the images on the devices; otherwise on the host, which sends batches.
            progress: show a progress bar.

        Raises:
            UserError: an image cannot be read or decoded.
        """
        count = len(records.fold)
        rows = np.arange(count)
        if on_device:
            # Padded with unused rows, so that every device holds the same number.
            count = -(-count // mesh.size) * mesh.size
            part = local_rows(mesh, count)
            rows, count = rows[part], part.stop - part.start
        images = allocate_images(count, size)
        decode_images(records.images, rows, images, progress=progress)
        self._mesh = mesh
        self._on_device = on_device
        self._sharding = batch_sharded(mesh)
        self._records = records
        self._images: Any = place(images, self._sharding) if on_device else images
        self._take = make_take(mesh)

    def batches(self, parts: Iterable[BatchRows]) -> Iterator[dict[str, jax.Array]]:
        """Yields `batch(rows, mask)` for each pair."""
        for rows, mask in parts:
            yield self.batch(rows, mask)

    def batch(self, rows: np.ndarray, mask: np.ndarray | None = None) -> dict[str, jax.Array]:
        """The batch of the rows int [B], divided over the mesh; without `mask`, no padding.

        Returns:
            `image` uint8 [B, S, S, 3] and the columns of `label_columns`.
        """
        part = local_rows(self._mesh, len(rows))
        own = rows[part]
        columns = label_columns(self._records, own, None if mask is None else mask[part])
        if not self._on_device:
            columns["image"] = self._images[own]
        batch = place(columns, self._sharding)
        if self._on_device:
            batch["image"] = self._take(self._images, rows)
        return batch
