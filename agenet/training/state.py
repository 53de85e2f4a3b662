"""Train state: parameters, batch statistics, optimizer state and their averages."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from agenet.models.classifier import Classifier
from agenet.training.freeze import split_params


@flax.struct.dataclass
class TrainState:
    """The state after `step` updates; every leaf is an array.

    The field names are part of checkpoints. `average` has the exponential moving averages of the
    trained parameters and the batch statistics, or is None if there are none.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    average: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """The current variables for `model.apply`."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def averaged_variables(self) -> dict[str, Any]:
        """The variables that are validated and kept: the averages, if there are any."""
        if self.average is None:
            return self.variables
        trained, backbone = self.average["params"], self.params["backbone"]
        params = {**trained, "backbone": {**backbone, **trained["backbone"]}}
        return {"params": params, "batch_stats": self.average["batch_stats"]}


def create_variables(model: Classifier, input_size: int, seed: int) -> dict[str, Any]:
    """Initialises parameters and batch statistics from the seed. Traceable by JAX."""
    images = jnp.zeros((1, input_size, input_size, 3), jnp.float32)
    variables = model.init(jax.random.key(seed), images, train=False)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def create_state(
    model: Classifier,
    tx: optax.GradientTransformation,
    variables: dict[str, Any],
    *,
    average: bool = False,
) -> TrainState:
    """The state before the first step, with averages if `average`. Traceable by JAX.

    Optimizer state and averages cover trained parameters only, see `split_params`.
    """
    trained, _ = split_params(variables["params"], model.frozen)
    averaged = {"params": trained, "batch_stats": variables["batch_stats"]}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(trained),
        # Copied, because a training step cannot donate the same array twice.
        average=jax.tree.map(jnp.copy, averaged) if average else None,
    )
