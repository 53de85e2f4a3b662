"""One mesh with one axis, over which every batch is divided."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from agenet.errors import UserError

DATA_AXIS = "data"


def create_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (all there are by default) with the single axis "data"."""
    # By process, which `jax.make_mesh` need not keep to, so that each has rows that are neighbours.
    devices = sorted(devices or jax.devices(), key=lambda each: (each.process_index, each.id))
    # Auto axes: Flax's Dropout fails on explicit ones.
    return Mesh(np.array(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


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


def make_largest(mesh: Mesh) -> Callable[[int], jax.Array]:
    """Returns `largest(number)`: the largest of the processes' numbers >= 0, as int32 []."""
    largest = jax.jit(jnp.max, out_shardings=replicated(mesh))
    own = local_part(mesh, mesh.size)

    def ask(number: int) -> jax.Array:
        column = np.full(own.stop - own.start, number, np.int32)
        return largest(place(column, batch_sharded(mesh)))

    return ask


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises `UserError`, naming the nearest sizes that fit, if the mesh cannot divide a batch."""
    devices = mesh.size
    if batch_size > 0 and batch_size % devices == 0:
        return
    below = max(batch_size, 0) // devices * devices
    fitting = " or ".join(str(size) for size in (below, below + devices) if size > 0)
    processes = len({device.process_index for device in mesh.devices.flat})
    of = f" of {processes} processes" if processes > 1 else ""
    raise UserError(
        f"batch_size {batch_size} cannot be divided over {devices} devices{of}: "
        f"use --config.batch_size={fitting}"
    )
