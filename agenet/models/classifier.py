"""A classifier: a backbone and a head for each task."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from agenet.models.heads import TaskHeads


class Classifier(nn.Module):
    """Normalised RGB images [B, S, S, 3] to {task: logits float32 [B, num_classes[task]]}.

    The backbone gives a feature map [B, H, W, D], which is averaged, or features [B, D]. Heads are
    linear, or ordinal for the tasks in `ordinal`. `extra_layers` are those that the reference
    report tried before the heads: 2 x 2 max-pooling of the feature map, batch normalisation, and
    dropout.

    `train` turns on dropout and stochastic depth, both with the random stream "dropout", and batch
    statistics in batch normalisation, except in frozen stages of the backbone.
    """

    backbone: Any
    num_classes: Mapping[str, int]
    ordinal: Sequence[str] = ()
    dropout_rate: float = 0.0
    extra_layers: bool = False
    dtype: DTypeLike = jnp.float32

    @property
    def frozen(self) -> Sequence[Sequence[str]]:
        """For each frozen stage of the backbone, the prefixes of its parameters' names."""
        return self.backbone.STAGES[: self.backbone.frozen_stages]

    def setup(self) -> None:
        self.heads = TaskHeads(
            self.num_classes,
            ordinal=self.ordinal,
            dropout_rate=self.dropout_rate,
            norm=self.extra_layers,
            dtype=self.dtype,
        )

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Pooled features [B, D], the input of the heads."""
        return self._pool(self.backbone(images, train), self.extra_layers)

    def both_features(self, images: jax.Array) -> jax.Array:
        """Pooled features [2, B, D] without and with the extra layers."""
        x = self.backbone(images, train=False)
        return jnp.stack([self._pool(x, extra_layers) for extra_layers in (False, True)])

    def classify(self, features: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """The logits of each task from pooled features [B, D]."""
        return self.heads(features.astype(self.dtype), train)

    def __call__(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        return self.classify(self.features(images, train), train)

    def _pool(self, x: jax.Array, extra_layers: bool) -> jax.Array:
        if x.ndim == 2:
            return x
        if extra_layers:
            x = nn.max_pool(x, (2, 2), (2, 2))
        # In float32, because half precision is too inaccurate for sums over a feature map.
        return x.mean((1, 2), dtype=jnp.float32).astype(self.dtype)
