"""Task heads: one linear classifier per task on shared features."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from agenet.models.layers import Dense


class TaskHeads(nn.Module):
    """Features [B, D] to logits {task: float32 [B, num_classes[task]]}."""

    num_classes: Mapping[str, int]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> dict[str, jax.Array]:
        return {
            task: Dense(classes, dtype=self.dtype, name=task)(features).astype(jnp.float32)
            for task, classes in self.num_classes.items()
        }
