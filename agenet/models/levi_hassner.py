"""The network of Levi and Hassner, "Age and Gender Classification using CNNs", CVPRW 2015."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from agenet.models.heads import TaskHeads
from agenet.models.layers import Conv, Dense, local_response_norm, max_pool


class LeviHassner(nn.Module):
    """Three convolutions and two hidden layers: images [B, 227, 227, 3] to logits per task.

    Images are float32, already normalised; the result is {task: float32 [B, num_classes[task]]}.
    Every convolution and pooling is padded and pooling rounds down, as in PyTorch ports of the
    network; the authors' Caffe model pads less and rounds up. `train` turns on dropout, which
    needs the random stream "dropout".
    """

    input_size: ClassVar[int] = 227

    num_classes: Mapping[str, int]
    dropout_rate: float = 0.5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        x = Conv(96, 7, stride=4, padding=1, dtype=self.dtype, name="conv1")(images)
        x = local_response_norm(_pool_relu(x))
        x = Conv(256, 5, padding=2, dtype=self.dtype, name="conv2")(x)
        x = local_response_norm(_pool_relu(x))
        x = Conv(384, 3, padding=1, dtype=self.dtype, name="conv3")(x)
        x = _pool_relu(x)
        x = x.reshape(x.shape[0], -1)
        for name in ("fc1", "fc2"):
            x = Dense(512, dtype=self.dtype, name=name)(x)
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(nn.relu(x))
        return TaskHeads(self.num_classes, dtype=self.dtype, name="heads")(x)


def _pool_relu(x: jax.Array) -> jax.Array:
    # ReLU and maximum commute; pooling first leaves ReLU a quarter of the values.
    return nn.relu(max_pool(x))
