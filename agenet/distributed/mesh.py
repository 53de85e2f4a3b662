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


def make_take(mesh: Mesh) -> Callable[[jax.Array, np.ndarray], jax.Array]:
    """Returns `take(array, rows)`: `array[rows]`, compiled, both divided over the mesh.

    The array is [N, ...] and the rows int [B], all of them in every process; the devices divide N
    and B. Each device's share of the batch goes once around all devices, and each adds the rows
    that it holds, so that none has more than a few shares at a time. Left to itself XLA makes the
    whole batch on every device, twice, to add that up.
    """
    devices = mesh.size
    ring = [(device, (device + 1) % devices) for device in range(devices)]

    def take(array: jax.Array, rows: jax.Array) -> jax.Array:
        """What one device does, which holds [N / devices, ...] of the array."""
        device = jax.lax.axis_index(DATA_AXIS)
        shares = rows.reshape(devices, -1) - device * len(array)

        def held(share: jax.Array) -> jax.Array:
            """The rows of a share that are here, among zeros."""
            here = array.at[shares[share % devices]]
            return here.get(mode="fill", fill_value=0, wrap_negative_indices=False)

        def hop(number: jax.Array, share: jax.Array) -> jax.Array:
            return jax.lax.ppermute(share, DATA_AXIS, ring) + held(device - 1 - number)

        return jax.lax.fori_loop(1, devices, hop, held(device - 1))

    divided = PartitionSpec(DATA_AXIS)
    specs = (divided, PartitionSpec())
    return jax.jit(jax.shard_map(take, mesh=mesh, in_specs=specs, out_specs=divided))


def divide(batch: Any, parts: int, mesh: Mesh) -> Any:
    """A batch's arrays [B, ...] as [parts, B / parts, ...], the rows dealt out in turn.

    Every part has the same share of each device's rows, so that no row leaves its device.
    """
    placed = NamedSharding(mesh, PartitionSpec(None, DATA_AXIS))

    def deal(array: jax.Array) -> jax.Array:
        dealt = array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(dealt, placed)

    return jax.tree.map(deal, batch)


def check_batch_size(batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises `UserError`, naming what fits, if the mesh cannot divide each of a batch's parts.

    Args:
        batch_size: rows of the whole batch.
        mesh: what each part is divided over.
        parts: see `divide`.
    """
    if parts < 1:
        raise UserError(f"accumulate {parts} must be 1, which takes each batch at once, or more")
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
    share = batch_size // devices
    if share % parts:
        divisors = [number for number in range(1, share + 1) if share % number == 0]
        near = [n for n in divisors if n < parts][-1:] + [n for n in divisors if n > parts][:1]
        raise UserError(
            f"accumulate {parts} cannot divide the {share} pictures of a batch that each device "
            f"has: use --config.accumulate={' or '.join(map(str, near))}"
        )
