import jax
import numpy as np
import pytest

from agenet.errors import UserError
from agenet.sharding import (
    batch_sharded,
    check_batch_size,
    create_mesh,
    local_part,
    place,
    replicated,
)


def test_mesh_has_one_axis_over_all_devices() -> None:
    assert dict(create_mesh().shape) == {"data": 8}
    assert dict(create_mesh(jax.devices()[:2]).shape) == {"data": 2}


def test_placing() -> None:
    mesh, array = create_mesh(), np.arange(32).reshape(16, 2)
    shards = jax.device_put(array, batch_sharded(mesh)).addressable_shards
    assert [shard.data.tolist() for shard in shards] == array.reshape(8, 2, 2).tolist()
    copies = jax.device_put(array, replicated(mesh)).addressable_shards
    assert len(copies) == 8 and all(copy.data.shape == (16, 2) for copy in copies)


def test_a_process_alone_gives_all_rows() -> None:
    mesh, rows = create_mesh(), np.arange(16)
    assert local_part(mesh, 16) == slice(0, 16)
    placed = place({"row": rows[local_part(mesh, 16)]}, batch_sharded(mesh))["row"]
    assert placed.sharding == batch_sharded(mesh)
    np.testing.assert_array_equal(placed, rows)


@pytest.mark.parametrize("batch_size", [8, 48])
def test_batch_that_fits(batch_size: int) -> None:
    check_batch_size(batch_size, create_mesh())


@pytest.mark.parametrize(
    ("batch_size", "fitting"), [(50, "48 or 56"), (3, "8"), (0, "8"), (-3, "8"), (-8, "8")]
)
def test_batch_that_does_not_fit(batch_size: int, fitting: str) -> None:
    with pytest.raises(UserError, match=f"--config.batch_size={fitting}$"):
        check_batch_size(batch_size, create_mesh())
