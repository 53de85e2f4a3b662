"""Task heads on pooled features."""

import functools
import math
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from agenet.models.layers import BatchNorm, Dense, fan_in_uniform

# Or GPUs would round the factors of float32 to TensorFloat32, and TPUs to bfloat16.
_EXACT = lax.Precision.HIGHEST


class TaskHeads(nn.Module):
    """One classifier per task: features [B, D] to {task: logits float32 [B, C]}.

    It is linear, or an `OrdinalHead` for the tasks named in `ordinal`. `norm` puts one batch
    normalisation before them, `dropout_rate` a dropout that needs the random stream "dropout" in
    training. The logits are computed in float32: of these few, less precision would save nothing.
    """

    num_classes: Mapping[str, int]
    ordinal: Sequence[str] = ()
    dropout_rate: float = 0.0
    norm: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        if self.norm:
            features = BatchNorm(dtype=self.dtype, name="bn")(features, train)
        features = nn.Dropout(self.dropout_rate, deterministic=not train)(features)
        dense = functools.partial(Dense, precision=_EXACT)
        return {
            task: (OrdinalHead if task in self.ordinal else dense)(classes, name=task)(features)
            for task, classes in self.num_classes.items()
        }


class OrdinalHead(nn.Module):
    """Ordered classes by one score: features [B, D] to log-probabilities float32 [B, classes].

    P(class > k) = sigmoid(exp(s) * (m - t_k)), with the score m and the precision exp(s) told from
    the features and thresholds t_k that are ordered because only the gaps between them are
    learnt: the location-scale form of McCullagh, "Regression Models for Ordinal Data", J. R.
    Statist. Soc. B 42, 1980.
    """

    classes: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        width, count = features.shape[-1], self.classes - 1
        kernel = self.param("kernel", fan_in_uniform(width), (width, 2))
        bias = self.param("bias", nn.initializers.zeros, (2,))
        # Evenly over -3 to 3, where the logistic distribution has nine tenths of its mass.
        even = nn.initializers.constant(_softplus_inverse(6 / (count - 1)))
        # Those of years that no range sets apart are learnt to be nothing, which has no logarithm.
        gaps = nn.softplus(self.param("gaps", even, (count - 1,))) + 1e-3
        thresholds = jnp.pad(jnp.cumsum(gaps), (1, 0)) - 3.0
        scores = jnp.matmul(features.astype(jnp.float32), kernel, precision=_EXACT) + bias
        score, log_precision = jnp.split(scores, 2, axis=-1)
        # Softly bounded: one that is sure and wrong must not outweigh all others, and can return.
        precision = jnp.exp(3 * jnp.tanh(log_precision / 3))
        above = precision * (score - thresholds)
        # log(sigmoid(a) - sigmoid(b)) is log sigmoid(a) + log sigmoid(-b) + log(1 - exp(b - a)).
        between = nn.log_sigmoid(above[:, :-1]) + nn.log_sigmoid(-above[:, 1:])
        between += jnp.log(-jnp.expm1(-precision * gaps))
        first, last = nn.log_sigmoid(-above[:, :1]), nn.log_sigmoid(above[:, -1:])
        return jnp.concatenate([first, between, last], axis=-1)


def _softplus_inverse(y: float) -> float:
    return math.log(math.expm1(y))
