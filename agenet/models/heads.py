"""Task heads on pooled features."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from agenet.models.layers import BatchNorm, Dense


class TaskHeads(nn.Module):
    """One linear classifier per task: features [B, D] to {task: logits float32 [B, C]}.

    `norm` puts one batch normalisation before them, `dropout_rate` a dropout that needs the
    random stream "dropout" in training.
    """

    num_classes: Mapping[str, int]
    dropout_rate: float = 0.0
    norm: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        if self.norm:
            features = BatchNorm(dtype=self.dtype, name="bn")(features, train)
        features = nn.Dropout(self.dropout_rate, deterministic=not train)(features)
        return {
            task: Dense(classes, dtype=self.dtype, name=task)(features).astype(jnp.float32)
            for task, classes in self.num_classes.items()
        }
