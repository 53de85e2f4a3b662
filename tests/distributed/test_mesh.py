import jax
import numpy as np
import pytest

from agenet.distributed.mesh import (
    batch_sharded,
    check_batch_size,
    create_mesh,
    local_rows,
    make_process_max,
    place,
    replicated,
    split_microbatches,
)
from agenet.errors import UserError


def test_mesh_has_one_axis_over_all_devices() -> None:
    assert dict(create_mesh().shape) == {"data": 8}
    assert dict(create_mesh(jax.devices()[:2]).shape) == {"data": 2}


def test_placing() -> None:
    mesh, array = create_mesh(), np.arange(32).reshape(16, 2)
    shards = jax.device_put(array, batch_sharded(mesh)).addressable_shards
    assert [shard.data.tolist() for shard in shards] == array.reshape(8, 2, 2).tolist()
    copies = jax.device_put(array, replicated(mesh)).addressable_shards
    assert len(copies) == 8 and all(copy.data.shape == (16, 2) for copy in copies)


def test_one_process_has_all_rows() -> None:
    mesh, array = create_mesh(), np.arange(32).reshape(16, 2)
    assert local_rows(mesh, 16) == slice(0, 16)
    placed = place({"a": array}, batch_sharded(mesh))["a"]
    assert placed.sharding == batch_sharded(mesh)
    np.testing.assert_array_equal(placed, array)
    assert make_process_max(mesh)(15) == 15


def test_microbatches_stay_on_their_devices() -> None:
    mesh, rows = create_mesh(), np.arange(32)
    placed = jax.device_put({"row": rows}, batch_sharded(mesh))
    program = jax.jit(lambda batch: split_microbatches(batch, 2, mesh)).lower(placed).compile()
    parts = program(placed)["row"]
    np.testing.assert_array_equal(parts, [rows[0::2], rows[1::2]])
    for shard, before in zip(
        parts.addressable_shards, placed["row"].addressable_shards, strict=True
    ):
        assert sorted(shard.data.ravel().tolist()) == before.data.tolist()
    assert "collective" not in program.as_text() and "all-" not in program.as_text()


@pytest.mark.parametrize("batch_size", [8, 48])
def test_batch_size_that_fits(batch_size: int) -> None:
    check_batch_size(batch_size, create_mesh())


@pytest.mark.parametrize(
    ("batch_size", "fitting"), [(50, "48 or 56"), (3, "8"), (0, "8"), (-3, "8"), (-8, "8")]
)
def test_batch_size_that_does_not_fit(batch_size: int, fitting: str) -> None:
    with pytest.raises(UserError, match=f"--config.batch_size={fitting}$"):
        check_batch_size(batch_size, create_mesh())


@pytest.mark.parametrize(
    ("batch_size", "parts", "message"),
    [
        (50, 2, "50 cannot be divided over 8 devices in 2 parts: use --config.batch_size=48 or 64"),
        (
            96,
            5,
            "5 cannot divide the 12 images .* each device has: use --config.accumulate=4 or 6",
        ),
        (16, 3, "the 2 images .* use --config.accumulate=2"),
    ],
)
def test_microbatches_that_do_not_fit(batch_size: int, parts: int, message: str) -> None:
    check_batch_size(64, create_mesh(), 4)
    with pytest.raises(UserError, match=f"{message}$" if "use" in message else message):
        check_batch_size(batch_size, create_mesh(), parts)
