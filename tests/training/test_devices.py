"""How far eight devices agree with one: with SGD up to rounding, which Adam amplifies."""

from typing import Any

import jax
import numpy as np
import optax
import pytest

from agenet.data.augment import make_train_transform
from agenet.distributed.mesh import batch_sharded, create_mesh, replicated
from agenet.models import create_model
from agenet.training.steps import make_train_step
from tests.training.test_steps import HEADS, MEAN, STD, make_batch, new_state

STEPS, LEARNING_RATE = 6, 0.01


def train(tx: optax.GradientTransformation, devices: int) -> tuple[list[float], Any]:
    """The losses of some steps, and the parameters after them."""
    mesh = create_mesh(jax.devices()[:devices])
    model = create_model("tiny", {"age": 8, "gender": 2})
    step = make_train_step(
        model,
        tx,
        make_train_transform(16, MEAN, STD),
        heads=HEADS,
        seed=1,
        steps_per_epoch=1,
        mesh=mesh,
    )
    state = jax.jit(lambda: new_state(model, tx), out_shardings=replicated(mesh))()
    batch, losses = jax.device_put(make_batch(32), batch_sharded(mesh)), []
    for _ in range(STEPS):
        state, sums = step(state, batch)
        losses.append(float(sums["loss"]))
    return losses, jax.device_get(state.params)


@pytest.mark.usefixtures("tiny_net")
def test_sgd() -> None:
    (losses, params), (others, other_params) = (
        train(optax.sgd(LEARNING_RATE, momentum=0.9), devices) for devices in (1, 8)
    )
    np.testing.assert_allclose(losses, others, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, other_params)


@pytest.mark.usefixtures("tiny_net")
def test_adam() -> None:
    (losses, params), (others, other_params) = (
        train(optax.adam(LEARNING_RATE), devices) for devices in (1, 8)
    )
    np.testing.assert_allclose(losses, others, rtol=1e-3)
    # Its gradient is nothing but rounding, as batch normalisation subtracts it again, and Adam
    # divides a gradient by its own size.
    bias, other = (each["backbone"]["conv"].pop("bias") for each in (params, other_params))
    assert LEARNING_RATE / 10 < np.abs(bias - other).max() <= 2 * STEPS * LEARNING_RATE
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), params, other_params)
