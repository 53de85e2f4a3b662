"""Device mesh with one axis, over which every batch is sharded."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from agenet.errors import UserError

DATA_AXIS = "data"


def create_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (by default all) with the single axis "data"."""
    # Sorted by process, unlike `jax.make_mesh`, so that each process has contiguous rows.
    devices = sorted(devices or jax.devices(), key=lambda each: (each.process_index, each.id))
    # Flax's Dropout fails with explicit axes.
    return Mesh(np.array(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device has in full."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose first axis is divided over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def local_rows(mesh: Mesh, size: int) -> slice:
    """The rows, of `size` rows sharded over the mesh, that this process's devices hold."""
    rows = batch_sharded(mesh).addressable_devices_indices_map((size,)).values()
    parts = [index[0].indices(size) for index in rows if index is not None]
    return slice(min(start for start, *_ in parts), max(stop for _, stop, _ in parts))


def place(columns: Any, sharding: NamedSharding) -> Any:
    """Moves arrays to the devices; each process passes its own rows, see `local_rows`."""
    return jax.make_array_from_process_local_data(sharding, columns)


def make_process_max(mesh: Mesh) -> Callable[[int], jax.Array]:
    """Returns `process_max(number)`, the maximum of all processes' numbers as int32 []."""
    maximum = jax.jit(jnp.max, out_shardings=replicated(mesh))
    own = local_rows(mesh, mesh.size)

    def process_max(number: int) -> jax.Array:
        column = np.full(own.stop - own.start, number, np.int32)
        return maximum(place(column, batch_sharded(mesh)))

    return process_max


def make_take(mesh: Mesh) -> Callable[[jax.Array, np.ndarray], jax.Array]:
    """Returns a compiled `take(array, rows)`: `array[rows]`, sharded like the array.

    The array is [N, ...], the rows are int [B] and complete in every process; the number of
    devices divides N and B. Each device's shard of the batch travels once around all devices, and
    each adds the rows that it holds, so a device never has more than a few shards in memory. XLA's
    own way has the whole batch on every device, twice.
    """
    devices = mesh.size
    ring = [(device, (device + 1) % devices) for device in range(devices)]

    def take(array: jax.Array, rows: jax.Array) -> jax.Array:
        """Runs on each device, which holds [N / devices, ...] of the array."""
        device = jax.lax.axis_index(DATA_AXIS)
        shards = rows.reshape(devices, -1) - device * len(array)

        def held(shard: jax.Array) -> jax.Array:
            """The rows of a shard that this device holds, zeros elsewhere."""
            here = array.at[shards[shard % devices]]
            return here.get(mode="fill", fill_value=0, wrap_negative_indices=False)

        def hop(number: jax.Array, shard: jax.Array) -> jax.Array:
            return jax.lax.ppermute(shard, DATA_AXIS, ring) + held(device - 1 - number)

        return jax.lax.fori_loop(1, devices, hop, held(device - 1))

    sharded = PartitionSpec(DATA_AXIS)
    specs = (sharded, PartitionSpec())
    return jax.jit(jax.shard_map(take, mesh=mesh, in_specs=specs, out_specs=sharded))


def split_microbatches(batch: Any, parts: int, mesh: Mesh) -> Any:
    """Reshapes a batch's arrays [B, ...] to [parts, B / parts, ...] for gradient accumulation.

    Rows are dealt out in turn, so that none leaves its device.
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, DATA_AXIS))

    def deal(array: jax.Array) -> jax.Array:
        dealt = array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(dealt, sharding)

    return jax.tree.map(deal, batch)


def check_batch_size(batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises `UserError`, with the nearest valid settings, if batches cannot be divided evenly.

    Args:
        batch_size: rows of a whole batch.
        mesh: the devices that each part is divided over.
        parts: number of parts for gradient accumulation.
    """
    devices = mesh.size
    if batch_size <= 0 or batch_size % devices:
        processes = len({device.process_index for device in mesh.devices.flat})
        of = f" of {processes} processes" if processes > 1 else ""
        unit = devices * parts
        below = max(batch_size, 0) // unit * unit
        fitting = " or ".join(str(size) for size in (below, below + unit) if size > 0)
        raise UserError(
            f"batch_size {batch_size} cannot be divided over {devices} devices{of}"
            f"{f' in {parts} parts' if parts > 1 else ''}: use --config.batch_size={fitting}"
        )
    local_size = batch_size // devices
    if local_size % parts:
        divisors = [n for n in range(1, local_size + 1) if local_size % n == 0]
        near = [n for n in divisors if n < parts][-1:] + [n for n in divisors if n > parts][:1]
        raise UserError(
            f"accumulate {parts} cannot divide the {local_size} images of a batch that each device "
            f"has: use --config.accumulate={' or '.join(map(str, near))}"
        )
