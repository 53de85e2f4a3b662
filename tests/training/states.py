"""Small states and records of runs, to save and to restore."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agenet.training.state import TrainState


def make_state(step: int) -> TrainState:
    return TrainState(
        step=jnp.int32(step),
        params={"conv": {"kernel": jnp.full((3, 4), step, jnp.float32)}},
        batch_stats={"mean": jnp.arange(4.0) / 3 + step},
        opt_state=({"mu": jnp.full(3, step + 0.1, jnp.bfloat16)}, jnp.int32(step)),
    )


def make_record(step: int, **fields: Any) -> dict[str, Any]:
    """A record such as runs save."""
    return {
        "step": step,
        "config": {
            "seed": 0,
            "init": "random",
            "model": {"name": "levi_hassner", "flavour": "report"},
            "input": {"size": 256, "crop_size": 0, "mean": [1.5, 2, 3], "std": [1, 1, 1]},
            "heads": {"age": "groups", "gender": "softmax"},
        },
        "dataset": {"name": "noise/faces/1.0.0", "fingerprint": "0123"},
        "splits": {"train": 1, "validation": 2, "test": 3},
        "classes": {"age": ["0-2", "4-6"]},
        "metric": "validation/loss",
        "value": 0.5,
        **fields,
    }


def assert_equal(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
