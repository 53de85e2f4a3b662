"""Heads for each task, on pooled features."""

import functools
import math
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from agenet.models.layers import BatchNorm, Dense, fan_in_uniform

# By default GPUs round float32 factors to TensorFloat32, and TPUs to bfloat16.
_EXACT = lax.Precision.HIGHEST
# Of an `OrdinalHead`; part of the meaning of its saved parameters.
_FIRST_THRESHOLD, _SMALLEST_GAP = -3.0, 1e-3


class TaskHeads(nn.Module):
    """One head for each task: features [B, D] to {task: logits float32 [B, C]}.

    Heads are linear, or an `OrdinalHead` for the tasks in `ordinal`. `norm` adds a batch
    normalisation before them, `dropout_rate` a dropout, which needs the random stream "dropout" in
    training. Logits are computed in float32, because lower precision would save nothing here.
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
    """Ordinal regression: features [B, D] to log-probabilities float32 [B, classes].

    P(class > k) = sigmoid(exp(s) * (m - t_k)), with a score m and a log-precision s that are linear
    in the features, and thresholds t_k that are ordered because their gaps are the parameters: the
    location-scale model of McCullagh, "Regression Models for Ordinal Data", J. R. Statist. Soc. B
    42, 1980.
    """

    classes: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        width, count = features.shape[-1], self.classes - 1
        kernel = self.param("kernel", fan_in_uniform(width), (width, 2))
        bias = self.param("bias", nn.initializers.zeros, (2,))
        # Initially from -3 to 3, which has 90 % of the mass of the logistic distribution.
        even = nn.initializers.constant(_softplus_inverse(-2 * _FIRST_THRESHOLD / (count - 1)))
        # Gaps between years that no label separates shrink to 0, whose logarithm is infinite.
        gaps = nn.softplus(self.param("gaps", even, (count - 1,))) + _SMALLEST_GAP
        thresholds = jnp.pad(jnp.cumsum(gaps), (1, 0)) + _FIRST_THRESHOLD
        scores = jnp.matmul(features.astype(jnp.float32), kernel, precision=_EXACT) + bias
        score, log_precision = jnp.split(scores, 2, axis=-1)
        # Bounded smoothly, so that a confident error cannot dominate the loss and can be unlearnt.
        precision = jnp.exp(3 * jnp.tanh(log_precision / 3))
        above = precision * (score - thresholds)
        # log(sigmoid(a) - sigmoid(b)) is log sigmoid(a) + log sigmoid(-b) + log(1 - exp(b - a)).
        between = nn.log_sigmoid(above[:, :-1]) + nn.log_sigmoid(-above[:, 1:])
        between += jnp.log(-jnp.expm1(-precision * gaps))
        first, last = nn.log_sigmoid(-above[:, :1]), nn.log_sigmoid(above[:, -1:])
        return jnp.concatenate([first, between, last], axis=-1)


def ordinal_start(shares: np.ndarray) -> dict[str, np.ndarray]:
    """Parameters of an `OrdinalHead` that predict given probabilities, whatever the features.

    That holds with a kernel of zeros; a random one adds to the score and to the log-precision.

    Args:
        shares: float64 [classes], positive, with a sum of 1.

    Returns:
        `bias` [2] and `gaps` [classes - 2], float64.
    """
    below, above = np.cumsum(shares)[:-1], np.cumsum(shares[::-1])[-2::-1]
    logits = np.log(above) - np.log(below)  # of P(class > k), which decrease
    # Smaller gaps, between years that hardly occur, would take long to grow.
    gaps = np.maximum(-np.diff(logits) - _SMALLEST_GAP, _SMALLEST_GAP)
    return {"bias": np.array([logits[0] + _FIRST_THRESHOLD, 0.0]), "gaps": np.log(np.expm1(gaps))}


def _softplus_inverse(y: float) -> float:
    return math.log(math.expm1(y))
