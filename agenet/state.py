"""What training changes: one dataclass of arrays. Model, optimiser and schedule stay outside."""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


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


def create_state(
    model: nn.Module, tx: optax.GradientTransformation, input_size: int, seed: int
) -> TrainState:
    """Freshly initialised state, a pure function of the seed. Traceable, so it can be jitted."""
    images = jnp.zeros((1, input_size, input_size, 3), jnp.float32)
    variables = model.init(jax.random.key(seed), images, train=False)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(variables["params"]),
    )
