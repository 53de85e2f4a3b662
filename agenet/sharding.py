"""One mesh with one axis, over which every batch is divided."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from agenet.errors import UserError

DATA_AXIS = "data"


def create_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (all there are by default) with the single axis "data"."""
    devices = devices or jax.devices()
    # Auto axes: Flax's Dropout fails on explicit ones.
    return jax.make_mesh((len(devices),), (DATA_AXIS,), (AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """An array whose first axis is divided over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def local_part(mesh: Mesh, size: int) -> slice:
    """The rows, of `size` that are divided over the mesh, which this process's devices hold."""
    rows = batch_sharded(mesh).addressable_devices_indices_map((size,)).values()
    parts = [index[0].indices(size) for index in rows if index is not None]
    return slice(min(start for start, *_ in parts), max(stop for _, stop, _ in parts))


def place(columns: Any, sharding: NamedSharding) -> Any:
    """Arrays on the devices, of which each process gives its own rows, see `local_part`."""
    return jax.make_array_from_process_local_data(sharding, columns)


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises `UserError`, naming the nearest sizes that fit, if the mesh cannot divide a batch."""
    devices = mesh.size
    if batch_size > 0 and batch_size % devices == 0:
        return
    below = max(batch_size, 0) // devices * devices
    fitting = " or ".join(str(size) for size in (below, below + devices) if size > 0)
    raise UserError(
        f"batch_size {batch_size} cannot be divided over {devices} devices: "
        f"use --config.batch_size={fitting}"
    )
