"""The network of Levi and Hassner, "Age and Gender Classification using CNNs", CVPRW 2015."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from agenet.models.layers import Conv, Dense, ceil_max_pool, local_response_norm, max_pool


class LeviHassner(nn.Module):
    """Three convolutions and two hidden layers: images [B, 227, 227, 3] to features [B, 512].

    Flavours: "report" pads the first convolution and every pooling by one, as PyTorch ports of the
    network do; "caffe" is the authors' own model, which pads neither and rounds the output size of
    poolings up. Both have parameters of the same shapes.
    """

    FLAVOURS: ClassVar = ("report", "caffe")
    STAGES: ClassVar = (("conv1",), ("conv2",), ("conv3",), ("fc1", "fc2"))
    input_size: ClassVar[int] = 227

    flavour: str = "report"
    dropout_rate: float = 0.5
    frozen_stages: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        padding, pool = (1, max_pool) if self.flavour == "report" else (0, ceil_max_pool)
        # ReLU and max-pooling commute; after pooling ReLU has a quarter of the values.
        x = self._thaw(images, 0)
        x = Conv(96, 7, stride=4, padding=padding, dtype=self.dtype, name="conv1")(x)
        x = self._thaw(local_response_norm(nn.relu(pool(x))), 1)
        x = Conv(256, 5, padding=2, dtype=self.dtype, name="conv2")(x)
        x = self._thaw(local_response_norm(nn.relu(pool(x))), 2)
        x = Conv(384, 3, padding=1, dtype=self.dtype, name="conv3")(x)
        x = self._thaw(nn.relu(pool(x)), 3)
        x = x.reshape(x.shape[0], -1)
        train = train and self.frozen_stages < len(self.STAGES)
        for name in ("fc1", "fc2"):
            x = Dense(512, dtype=self.dtype, name=name)(x)
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(nn.relu(x))
        return self._thaw(x, 4)

    def _thaw(self, x: jax.Array, stage: int) -> jax.Array:
        return lax.stop_gradient(x) if stage == self.frozen_stages else x
