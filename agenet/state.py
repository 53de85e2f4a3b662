"""What training changes: one dataclass of arrays. Model, optimiser and schedule stay outside."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from agenet.freeze import split
from agenet.models.classifier import Classifier


@flax.struct.dataclass
class TrainState:
    """The state after `step` updates; every leaf is an array."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_variables(model: Classifier, input_size: int, seed: int) -> dict[str, Any]:
    """Fresh parameters and batch statistics, a pure function of the seed. Traceable."""
    images = jnp.zeros((1, input_size, input_size, 3), jnp.float32)
    variables = model.init(jax.random.key(seed), images, train=False)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def create_state(
    model: Classifier, tx: optax.GradientTransformation, variables: dict[str, Any]
) -> TrainState:
    """The state before the first step; the optimiser knows only what is trained. Traceable."""
    trained, _ = split(variables["params"], model.frozen)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(trained),
    )
